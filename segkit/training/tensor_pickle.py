"""Pickles of tensors and plain data, read without running code from them.

The unpickler knows the functions with which torch rebuilds tensors by name, and nothing else. The numbers of the
tensors lie outside the pickle.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from segkit.utils.text import listed

PLAIN_OBJECTS = 2_000_000
DEPTH = 64
# what torch's own reader of weights understands, without the operations that create objects of classes
OPERATIONS = frozenset(
    "PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT APPEND APPENDS SETITEM "  # noqa: SIM905
    "SETITEMS TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT BININT BININT1 "
    "BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING".split()
)
STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
DTYPES = (*STORAGES.values(), torch.uint16, torch.uint32, torch.uint64)
NUMPY_TYPES = frozenset(("b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"))


class Unreadable(ValueError):
    """Why a file is not read. The message does not name the file."""


class _Inert:
    """Something that a pickle names. `BUILD` cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Unreadable("it holds code, not weights: refused")


class _Call(_Inert):
    """A function that a pickle may call."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., Any]):
        self.build = build

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


class _Storage(_Inert):
    """The numbers of tensors: their type, and their bytes, uint8 [N]."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: torch.dtype, data: Tensor):
        self.dtype, self.data = dtype, data


def _tensor(storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, view: Any = None) -> Tensor:
    """A view of a storage, as `torch._utils._rebuild_tensor_v2` builds it."""
    return _view(storage, storage.dtype, offset, size, stride, view)


def _typed_tensor(
    storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: torch.dtype, view: Any = None
) -> Tensor:
    """The same with a type of its own, as `torch._utils._rebuild_tensor_v3` builds it."""
    return _view(storage, dtype, offset, size, stride, view)


def _view(storage: _Storage, dtype: torch.dtype, offset: int, size: Any, stride: Any, view: Any) -> Tensor:
    if (
        view
        or len(size) != len(stride)
        or any(type(number) is not int or number < 0 for number in (offset, *size, *stride))
    ):
        raise Unreadable(f"a tensor has the shape {shown(size)} and the strides {shown(stride)}, or is conjugated")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    available = storage.data.numel() // dtype.itemsize
    if last >= available:
        raise Unreadable(
            f"a tensor of the shape {shown(list(size))} needs {last + 1} numbers, but its record has {available}"
        )
    return torch.empty(0, dtype=dtype).set_(storage.data.untyped_storage(), offset, size, stride)


class _NumpyType(_Inert):
    """The type of a NumPy scalar, such as `f8`."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_options: object):
        if code not in NUMPY_TYPES:
            raise Unreadable(f"expected plain data, got NumPy values of the type {shown(code)}")
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        """The order of the bytes, which is the only thing that NumPy sets afterwards for these types."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise Unreadable(f"expected NumPy scalars in little-endian order, got {shown(state)}")


def _numpy_scalar(kind: _NumpyType, content: str) -> bool | int | float:
    """A NumPy scalar as a plain number. content: its bytes as text, one letter each."""
    if len(content) > 8:
        raise Unreadable(f"a NumPy scalar has {len(content)} bytes")
    return np.frombuffer(content.encode("latin1"), f"<{kind.code}", 1)[0].item()


def _are_counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _first(value: Any, *_rest: Any) -> Any:
    """The plain value itself in place of a set, bytes, Size, device or Parameter, which nothing here needs."""
    return value


GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": None,  # see `find_class`
    "collections.Counter": _Call(_first),
    "builtins.set": _Call(_first),
    "__builtin__.set": _Call(_first),
    "_codecs.encode": _Call(_first),
    "collections.defaultdict": _Call(lambda *_factory: {}),
    "builtins.list": _Inert(),  # such factories
    "builtins.dict": _Inert(),
    "__builtin__.list": _Inert(),
    "__builtin__.dict": _Inert(),
    "pathlib.PosixPath": _Call(lambda *_parts: "a path"),  # joining the parts would copy them
    "pathlib._local.PosixPath": _Call(lambda *_parts: "a path"),  # of Python 3.13
    "numpy.dtype": _Call(_NumpyType),
    "numpy.core.multiarray.scalar": _Call(_numpy_scalar),  # of NumPy 1
    "numpy._core.multiarray.scalar": _Call(_numpy_scalar),
    "torch.Size": _Call(_first),
    "torch.device": _Call(_first),
    "torch._utils._rebuild_parameter": _Call(_first),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_tensor_v3": _Call(_typed_tensor),
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
    **{str(dtype): dtype for dtype in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain data. storage: the bytes of a storage, by its key and its number of bytes."""

    def __init__(self, pickled: bytes, storage: Callable[[str, int], Tensor]):
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self.storage = storage
        self.storages: dict[str, _Storage] = {}
        self.copied = 0

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = GLOBALS[f"{module_name}.{global_name}"]
        return _Call(self._ordered) if found is None else found

    def _ordered(self, pairs: Sequence[Any] = ()) -> OrderedDict[Any, Any]:
        """The one call that copies, since Python 2 wrote ordered mappings as lists; a pickle can repeat it for free."""
        self.copied += len(pairs)
        if self.copied > PLAIN_OBJECTS:
            raise Unreadable(f"expected at most {PLAIN_OBJECTS} names and plain values, got more")
        return OrderedDict(pairs)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or type(count) is not int
            or view not in ([], [None])
        ):
            raise Unreadable("the file is damaged: it refers to something that is not a tensor")
        if key not in self.storages:
            size = count * dtype.itemsize
            self.storages[key] = _Storage(dtype, self.storage(key, size))
        actual = self.storages[key].data.numel()
        if actual != count * dtype.itemsize:
            raise Unreadable(
                f"a tensor declares {count} numbers of {dtype}, but its record data/{key} has {actual} bytes"
            )
        return self.storages[key]


def unpickled(pickled: bytes, storage: Callable[[str, int], Tensor]) -> Any:
    """The object in a pickle. Raises Unreadable."""
    check_operations(io.BytesIO(pickled))
    try:
        return _Unpickler(pickled, storage).load()
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can call the functions above with anything
        raise Unreadable(f"the file is damaged ({type(error).__name__} in its pickle)") from error


def check_operations(file: BinaryIO) -> None:
    """Read to the end of a pickle. Raises Unreadable for what is no tensor and no plain data, and for too many objects.

    Python's unpickler allocates memory for numbers of entries and lengths before it reads them.
    """
    others: list[str] = []
    objects = 0
    try:
        for operation, argument, _place in pickletools.genops(file):
            objects += 1
            if objects > PLAIN_OBJECTS:
                raise Unreadable(
                    f"expected at most {PLAIN_OBJECTS} names and plain values, got more; save the weights alone, "
                    "without the log of their training"
                )
            if operation.name == "GLOBAL":
                others += [name] if (name := str(argument).replace(" ", ".", 1)) not in GLOBALS else []
            elif operation.name not in OPERATIONS and not others:
                others.append(f"the pickle operation {operation.name}")
            elif operation.name == "LONG_BINPUT" and int(argument or 0) > objects:
                raise Unreadable("the file is damaged: it refers to objects that it does not have")
    except Unreadable:
        raise
    except (ValueError, struct.error, EOFError) as error:
        if not others:
            raise Unreadable("the file is damaged or cut short") from error
    if others:
        raise Unreadable(
            f"it holds code, not weights: refused ({listed(list(dict.fromkeys(others)), limit=3)}); save tensors and "
            "plain data alone, such as the state dict of the network"
        )


def check_plain(content: Any, limit: int = PLAIN_OBJECTS) -> Any:
    """The content, if it is a tree of tensors and plain data with at most `limit` nodes. Raises Unreadable.

    A list that contains another one twenty times, and so on, is a tree without end in a file of a few bytes.
    """
    nodes: dict[int, int] = {}

    def count(value: Any, depth: int) -> int:
        if value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype)):
            return 1
        if not isinstance(value, (dict, list, tuple)):
            raise Unreadable(f"expected tensors and plain data, got {type(value).__name__.strip('_')}")
        if depth > DEPTH:
            raise Unreadable(f"expected at most {DEPTH} levels of lists and mappings, got more")
        if id(value) not in nodes:
            _clean(value)
            items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            nodes[id(value)] = 1 + sum(count(item, depth + 1) for item in items)
            if nodes[id(value)] > limit:
                raise Unreadable(f"expected at most {limit} names and plain values, got more")
        return nodes[id(value)]

    count(content, 0)
    return content


def _clean(value: Any) -> None:
    """Of the attributes of an ordered mapping, keep the versions of modules that `state_dict` records."""
    if not isinstance(value, OrderedDict) or not vars(value):
        return
    recorded = vars(value).get("_metadata")
    vars(value).clear()
    if isinstance(recorded, dict):  # the methods of `dict` itself, since attributes may hide those of an entry
        entries = [
            (name, dict.get(entry, "version")) for name, entry in dict.items(recorded) if isinstance(entry, dict)
        ]
        known = {name: {"version": version} for name, version in entries if type(name) is str and type(version) is int}
        value._metadata = OrderedDict(known)  # pyright: ignore[reportAttributeAccessIssue]


def shown(value: object) -> str:
    """A value of an unknown file for a message: short, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and the shape {_short.repr(list(value.shape))}"
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxtuple, _short.maxother = 2, 3, 6, 6, 60
