"""A dispatch mode that raises on every operation that would synchronise with an accelerator, usable on the CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::index_put"}


class NoWaiting(TorchDispatchMode):
    """Raises AssertionError on operations that copy a value from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        boolean = name in INDEXING and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1] or []
        )
        if name in WAITING or boolean:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))
