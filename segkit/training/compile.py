"""Compilation of a network with torch.compile, with a fallback if it fails."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """A network compiled with torch.compile.

    If compilation fails, a warning gives the reason, and the network is called without compilation from then on. The
    first input shape is compiled statically; at the second shape, a graph for dynamic shapes is compiled.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        # in a list, so that it is not registered as a second submodule with the same weights
        self.calls: list[Any] = [torch.compile(network)]

    def forward(self, image: Tensor) -> Any:
        (call,) = self.calls
        try:
            return call(image)
        except Exception as error:  # of any type: from the compiler, the linker or the system
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"train.compile: compilation failed, training continues without it ({type(error).__name__}: {reason})",
                stacklevel=1,
            )
            self.calls = [self.network]
        return self.network(image)
