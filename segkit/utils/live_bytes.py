"""Counting the memory of a computation by the tensors that are alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Records the largest number of bytes, `peak`, that the tensors of a computation occupy at the same time.

    known: tensors that do not count.
    """

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.known = {StorageWeakRef(tensor.untyped_storage()) for tensor in known}
        self.live: dict[StorageWeakRef, int] = {}
        self.listed = 0  # bytes of `live`, which may list tensors that are gone
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in self.known:
                    self.listed += storage.nbytes() - self.live.get(reference, 0)
                    self.live[reference] = storage.nbytes()
        if self.listed > self.peak:  # looking through all tensors after each operation takes most of the time
            self.peak = max(self.peak, self.current())
        return result

    def current(self) -> int:
        """The bytes of the tensors that are alive now."""
        self.live = {reference: size for reference, size in self.live.items() if not reference.expired()}
        self.listed = sum(self.live.values())
        return self.listed
