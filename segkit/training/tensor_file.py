"""Read files of tensors and plain data, as `torch.save` writes them, without running code from them.

The sizes that a file declares are compared with its own size before anything is read, and records of an archive with
their checksums. `torch.load(weights_only=True)` does neither: it unpacks compressed records of any size, and returns
flipped bits. All that is built is a tensor in a record, or plain data.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from segkit.training.tensor_pickle import Unreadable, check_operations, check_plain, unpickled
from segkit.utils.optional import require

ZIP = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
PLAIN_BYTES = 64 << 20  # of the pickle, which holds everything but the numbers of tensors
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files of torch before 1.6


def read_archive(path: Path) -> Any:
    """The content of a file written by `torch.save`, on the CPU. Raises Unreadable."""
    with _opened(path) as file:
        if file.read(len(ZIP)) != ZIP:
            raise Unreadable(_kind_of_other(file))
        return check_plain(_read_zip(file))


def read_weights(path: Path) -> Any:
    """The same, also for safetensors and for files of torch before 1.6, which have no checksums. Raises Unreadable,
    and MissingExtra without the package safetensors."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with _opened(path) as file:
        start = file.read(len(ZIP))
        if start != ZIP and start[:1] != pickle.PROTO:
            raise Unreadable(_kind_of_other(file))
        return check_plain(_read_zip(file) if start == ZIP else _read_legacy(file))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Only a regular file: opening a pipe or a device could wait forever. Raises Unreadable, also while it is read."""
    try:
        if not path.is_file():
            raise Unreadable("it is a folder" if path.is_dir() else "it is neither a file nor a folder")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _kind_of_other(file: BinaryIO) -> str:
    """What a file is that is no archive of torch."""
    file.seek(0)
    start = file.read(512)
    if not start:
        return "the file is empty"
    if start[257:262] == b"ustar":
        return "it has the tar format of torch before 0.2; load it with torch and save its state dict again"
    if start[:1] == pickle.PROTO:
        return "it has the format of torch before 1.6, or holds a pickled object; load it with torch and save it again"
    return "the file is damaged, or was not written by torch.save"


# --- archives --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """A record of an archive: where its bytes start, how many there are, and their CRC-32."""

    start: int
    size: int
    checksum: int


def _read_zip(file: BinaryIO) -> Any:
    records = _records(file)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Unreadable("it is a zip file, but not one that torch.save wrote")
    folder = pickles[0].removesuffix("data.pkl")
    has_checksums = any(record.checksum for record in records.values())  # torch can be told to leave them out

    def content(name: str) -> Tensor:
        if folder + name not in records:
            raise Unreadable(f"the record {name} is missing")
        return _content(file, name, records[folder + name], has_checksums)

    if f"{folder}byteorder" in records and bytes(content("byteorder").numpy()) != sys.byteorder.encode():
        raise Unreadable(f"its numbers are not in the byte order of this machine, {sys.byteorder}-endian")
    if records[pickles[0]].size > PLAIN_BYTES:
        raise Unreadable(
            f"expected at most {PLAIN_BYTES} bytes of names and plain data, got {records[pickles[0]].size}"
        )
    pickled = bytes(content("data.pkl").numpy())
    return unpickled(pickled, lambda key, _size: content(f"data/{key}"))


def _records(file: BinaryIO) -> dict[str, _Record]:
    """The records of a zip file. Raises Unreadable unless they lie uncompressed beside each other in the file."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise Unreadable(f"the file is damaged or cut short ({error})") from error
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise Unreadable(
            "it holds code (TorchScript), not weights: refused; use the state dict of the network, which a MONAI "
            "bundle has in models/model.pt beside model.ts"
        )
    records: dict[str, _Record] = {}
    end = 0
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Unreadable(f"the record {entry.filename} is compressed or encrypted, which torch.save never does")
        start = _start_of(file, entry.header_offset)
        if entry.header_offset < end or start + entry.file_size > archive.start_dir:
            raise Unreadable(
                f"the record {entry.filename} declares {entry.file_size} bytes, which overlap with other records or "
                "exceed the file"
            )
        end = start + entry.file_size
        records[entry.filename] = _Record(start, entry.file_size, entry.CRC)
    if len(records) < len(entries):
        raise Unreadable("two of its records have the same name")
    return records


def _start_of(file: BinaryIO, header: int) -> int:
    """Where the bytes of a record start."""
    if header < 0:  # the end of the file says that more lies before the table than does
        raise Unreadable("the file is damaged or cut short")
    file.seek(header)
    content = file.read(LOCAL_HEADER.size)
    if len(content) < LOCAL_HEADER.size or not content.startswith(ZIP):
        raise Unreadable("the file is damaged: the table of its records points to none")
    _, name, extra = LOCAL_HEADER.unpack(content)
    return header + LOCAL_HEADER.size + name + extra


def _content(file: BinaryIO, name: str, record: _Record, has_checksums: bool) -> Tensor:
    """The bytes of a record, uint8 [N]."""
    data = torch.empty(record.size, dtype=torch.uint8)
    file.seek(record.start)
    if file.readinto(data.numpy()) != record.size:  # pyright: ignore[reportAttributeAccessIssue]
        raise Unreadable(f"the file ends within the record {name}")
    if has_checksums and zlib.crc32(data.numpy().data) != record.checksum:
        raise Unreadable(f"the file is damaged: the record {name} does not have its checksum")
    return data


# --- other formats ---------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path):
        pass
    safetensors = require("safetensors", "encoders", f"reading {path.name}")
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:  # it compares the declared sizes with the file itself
        raise Unreadable(f"the file is damaged ({error})") from error


def _read_legacy(file: BinaryIO) -> Any:
    """A file of torch before 1.6: five pickles, of which the fourth is the content, and then the numbers."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages: dict[str, Tensor] = {}

    def allocated(key: str, needed: int) -> Tensor:
        if needed + sum(data.numel() for data in storages.values()) > size:
            raise Unreadable(f"it declares tensors of more than {needed} bytes, but the file has {size}")
        storages[key] = torch.empty(needed, dtype=torch.uint8)
        return storages[key]

    def pickled() -> bytes:
        start = file.tell()
        check_operations(file)
        end = file.tell()
        file.seek(start)
        return file.read(end - start)

    if unpickled(pickled(), allocated) != LEGACY_MAGIC:
        raise Unreadable("it holds a pickled object, not weights: refused; save the state dict of the network")
    _version, _machine = unpickled(pickled(), allocated), unpickled(pickled(), allocated)
    content = unpickled(pickled(), allocated)
    keys = unpickled(pickled(), allocated)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Unreadable("the file is damaged: its tensors and its list of tensors differ")
    for key in keys:
        file.seek(8, io.SEEK_CUR)  # the number of elements, which the content has declared already
        if file.readinto(storages[key].numpy()) != storages[key].numel():  # pyright: ignore[reportAttributeAccessIssue]
            raise Unreadable("the file is cut short")
    return content
