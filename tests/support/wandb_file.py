"""Reads the file that Weights & Biases writes in offline mode: records of a LevelDB log, each a message of protobuf."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = 7  # bytes before the first record: a name, a magic number and a version
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> Iterator[Any]:
    """The messages of the file, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    for content in _contents(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        yield record


def _contents(data: bytes) -> Iterator[bytes]:
    place, parts = HEAD, []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # the end of a block has no room for a head
            place += BLOCK - place % BLOCK
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
