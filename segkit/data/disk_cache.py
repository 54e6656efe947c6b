"""A disk cache of compressed arrays, computed once and shared by all processes and runs. Regions are read lazily."""

from __future__ import annotations

import errno
import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import blosc2
import numpy as np

from segkit.utils.errors import reason
from segkit.utils.files import remove_leftovers, temporary_folder

compressed: Any = blosc2  # untyped, since its annotations are narrower than what it accepts
NUMBERS, CONTENT = "numbers.npz", "content of the entry"
ATTEMPTS = 4
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ENDING = ".b2nd"
HEAD, TAIL = 1 << 12, 1 << 16  # bytes of a file that hold what blosc2 needs to find the blocks
# one thread, since loader workers are forked and threads do not survive a fork
WRITING = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
READING = {"nthreads": 1}
Result = TypeVar("Result")


class CacheError(OSError):
    """The cache cannot be written, or not be read although it was made again."""

    exit_code = 2


class DamagedError(CacheError):
    """A cache entry that is incomplete or damaged.

    folder: the folder of the entry. identity: see `_identity`; an entry with another one has been made meanwhile.
    """

    def __init__(self, folder: Path, why: str, identity: tuple[int, int] | None):
        super().__init__(f"the cache entry {folder} is damaged ({why}); delete it")
        self.folder, self.why, self.identity = folder, why, identity


class StoredArray:
    """A memory-mapped array in a compressed file. `array[where]` reads only the blocks that it needs.

    Each chunk of blocks is compared with its checksum when it is first read, and again after the file has changed.

    content: shape, type and checksums, as `_written` returns them. Raises DamagedError if the file differs from them.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]):
        self.path, self.content = path, content
        self.shape = tuple(content["shape"])
        self.identity = _identity(path.parent)
        self._verified: set[int] = set()
        self._stamp: tuple[int, int] | None = None  # of the file whose chunks are verified

    def __getitem__(self, where: Any) -> np.ndarray:
        with self._opened() as stored:
            self._verify(stored, where)
            return np.asarray(stored[where])

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        # opened for each access, so that nothing is shared with forked processes and no file stays open
        try:
            self.check()
            yield compressed.open(str(self.path), mode="r", mmap_mode="r", dparams=READING)
        except DamagedError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise self._damaged(f"{self.path.name}: {reason(error)}") from error

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(self.path.parent, why, self.identity)

    def check(self) -> None:
        """Raise DamagedError if the file is missing or cut, or if its beginning or end has changed."""
        try:
            status = self.path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return
            ends = _checksum_of_ends(self.path)
        except OSError as error:
            raise self._damaged(f"{self.path.name}: {error.strerror or error}") from error
        if [status.st_size, ends] != [self.content["bytes"], self.content["ends"]]:
            raise self._damaged(f"{self.path.name} has changed")
        self._stamp, self._verified = stamp, set()

    def _verify(self, stored: Any, where: Any) -> None:
        """Compare the chunks that a region touches with their checksums."""
        for chunk in _touched(where, self.shape, stored.chunks):
            if chunk not in self._verified:
                if zlib.crc32(stored.schunk.get_chunk(chunk)) != self.content["checksums"][chunk]:
                    raise self._damaged(f"{self.path.name}: wrong checksum")
                self._verified.add(chunk)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from one that replaces it; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _touched(where: Any, shape: tuple[int, ...], chunks: tuple[int, ...]) -> list[int]:
    """The numbers of the chunks, in C order, that the region `array[where]` touches."""
    chunks = tuple(max(part, 1) for part in chunks)  # 0 for an empty array, in earlier versions of blosc2
    grid = np.arange(np.prod([-(-side // part) for side, part in zip(shape, chunks, strict=True)], dtype=int))
    grid = grid.reshape([-(-side // part) for side, part in zip(shape, chunks, strict=True)])
    where = where if isinstance(where, tuple) else (where,)
    filled = len(shape) - sum(part is not Ellipsis for part in where)
    parts = [every for part in where for every in ([slice(None)] * filled if part is Ellipsis else [part])]
    bounds = [part.indices(side)[:2] for part, side in zip(parts, shape, strict=False)]
    region = tuple(slice(start // part, -(-stop // part)) for (start, stop), part in zip(bounds, chunks, strict=False))
    return grid[region].ravel().tolist()


def _checksum_of_ends(path: Path) -> int:
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, path.stat().st_size - TAIL))
        return zlib.crc32(file.read(), zlib.crc32(head))


def _written(array: np.ndarray, path: Path) -> dict[str, Any]:
    """Write an array. Returns its shape, the size of the file and checksums of its ends and its chunks."""
    stored = compressed.asarray(np.ascontiguousarray(array), cparams=WRITING)
    # by Python, which reports a full disk
    size = path.write_bytes(stored.to_cframe())
    # of the file and not of the array in memory: chunks of one value are represented in another way there
    read = compressed.open(str(path), mode="r", mmap_mode="r", dparams=READING)
    checksums = [zlib.crc32(read.schunk.get_chunk(number)) for number in range(read.schunk.nchunks)]
    return {"shape": list(array.shape), "bytes": size, "ends": _checksum_of_ends(path), "checksums": checksums}


@dataclass(frozen=True)
class Entry:
    """The content of one key: large `arrays`, read lazily, and small `numbers`, which are already in memory."""

    arrays: Mapping[str, StoredArray]
    numbers: Mapping[str, np.ndarray]


Content = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # arrays, numbers


class DiskCache:
    """A folder of cache entries. Each entry is a subfolder named by a digest of its key.

    identity: plain data that is part of every key.

    Entries are written atomically, so any number of processes may share one folder. Processes that compute the same
    entry at the same time write the same content. What processes of this machine left behind when they were killed is
    removed. Raises CacheError if an entry cannot be written, for example because the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity
        remove_leftovers(folder)

    def entry(self, key: Mapping[str, Any], compute: Callable[[], Content]) -> Entry:
        """Return the entry of a key, which is plain data. A missing or damaged entry is computed and written first."""
        content = json.dumps({"identity": self.identity, "key": key}, sort_keys=True)
        folder = self.folder / hashlib.sha256(content.encode()).hexdigest()[:32]

        def read() -> Entry:
            entry = self._read(folder) if folder.is_dir() else None
            if entry is None:
                self._write(folder, *compute())
                entry = self._read(folder)
            if entry is None:
                raise DamagedError(folder, "it is of an earlier version", _identity(folder))
            return entry

        return self.with_repair(read)

    def with_repair(self, read: Callable[[], Result]) -> Result:
        """Return what `read` returns. If it meets a damaged entry, the entry is removed with a warning, and `read` is
        called again to make a new one.

        Raises CacheError if that does not help.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return read()
            except DamagedError as error:
                if attempt == ATTEMPTS:
                    raise CacheError(
                        f"{error.folder} was made {ATTEMPTS - 1} times and cannot be read ({error.why}); check the "
                        "disk, choose another folder with loader.cache_dir, or set loader.cache: none"
                    ) from error
                warnings.warn(f"{error.folder} in the cache is damaged ({error.why}) and is made again", stacklevel=2)
                if error.identity == _identity(error.folder):
                    self._remove(error.folder)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, folder: Path) -> Entry | None:
        """The entry in a folder; None for one of an earlier version, which is removed.

        Raises DamagedError if files are missing or differ from their checksums. The chunks of the arrays are verified
        when they are read.
        """
        identity = _identity(folder)
        try:
            with np.load(folder / NUMBERS) as file:
                numbers = dict(file)
            if CONTENT not in numbers and "bytes of the arrays" in numbers:
                self._remove(folder)
                return None
            content = json.loads(str(numbers.pop(CONTENT)))
            if content["numbers"] != sorted(numbers):
                raise ValueError(f"{NUMBERS} has changed")
        except Exception as error:  # numpy and zipfile raise exceptions of any type for damaged files
            raise DamagedError(folder, f"{NUMBERS} cannot be read", identity) from error
        arrays = {name: StoredArray(folder / f"{name}{ENDING}", array) for name, array in content["arrays"].items()}
        for array in arrays.values():
            array.check()
        return Entry(arrays, numbers)

    def _write(self, folder: Path, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray]) -> None:
        """Write into a temporary folder, which is then renamed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary_folder(self.folder) as temporary:
                written = {name: _written(array, temporary / f"{name}{ENDING}") for name, array in arrays.items()}
                content = json.dumps({"arrays": written, "numbers": sorted(numbers)})
                np.savez(temporary / NUMBERS, **{**numbers, CONTENT: np.array(content)})  # pyright: ignore[reportArgumentType]
                temporary.rename(folder)
        except (OSError, RuntimeError) as error:
            if folder.is_dir():  # another process was faster
                return
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            free = "free space there, " if isinstance(error, OSError) and error.errno in FULL else ""
            raise CacheError(
                f"the cache {self.folder} cannot be written ({why}); {free}choose another folder by loader.cache_dir "
                "or set loader.cache: none"
            ) from error

    def _remove(self, folder: Path) -> None:
        """Remove an entry. It is moved away first, so that no process meets a half of it."""
        with suppress(OSError), temporary_folder(self.folder) as away:  # removed by another process, or read-only
            folder.rename(away / folder.name)
