"""A network under torch.compile, or as it is where that fails."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """Calls a network compiled; should compiling fail, warns with the reason and calls it as it is from then on.

    A graph is made for the first shape, and one for all others once a second shape comes.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.calls: list[Any] = [
            torch.compile(network)
        ]  # in a list, so that it is no second part with the same weights

    def forward(self, image: Tensor) -> Any:
        (call,) = self.calls
        try:
            return call(image)
        except Exception as error:  # whatever compiler, linker or system may raise
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"train.compile: the network cannot be compiled and runs as it is ({type(error).__name__}: {reason})",
                stacklevel=1,
            )
            self.calls = [self.network]
        return self.network(image)
