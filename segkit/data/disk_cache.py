"""Arrays that are made once and then read from disk, piece by piece, by every process and run that asks for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import blosc2
import numpy as np

compressed: Any = blosc2  # its annotations are narrower than what it takes
NUMBERS, SIZES = "numbers.npz", "bytes of the arrays"
ATTEMPTS = 4
ENDING = ".b2nd"
# one thread: loader workers are forked, and threads do not survive that
WRITING = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
READING = {"nthreads": 1}


class CacheError(OSError):
    """A folder of kept arrays that cannot be written or read."""


class DamagedError(CacheError):
    """An entry that is not as it was written."""


class StoredArray:
    """An array in a compressed file, memory-mapped: `array[where]` reads the blocks that it touches and no others."""

    def __init__(self, path: Path):
        self.path = path
        with self._opened() as stored:
            self.shape = tuple(stored.shape)

    def __getitem__(self, where: Any) -> np.ndarray:
        with self._opened() as stored:
            return np.asarray(stored[where])

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        # anew each time, so that nothing is shared with forked processes and no file stays open
        try:
            yield compressed.open(str(self.path), mode="r", mmap_mode="r", dparams=READING)
        except (RuntimeError, OSError) as error:
            raise CacheError(f"{self.path} cannot be read ({error}); delete {self.path.parent}") from error


@dataclass(frozen=True)
class Entry:
    """What is kept under one key: large arrays, to be read piece by piece, and small ones, which are read at once."""

    arrays: Mapping[str, StoredArray]
    numbers: Mapping[str, np.ndarray]


Made = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # arrays, numbers


class DiskCache:
    """A folder of entries, each in a folder of its own that is named by a digest of its key.

    identity: plain data that all keys have in common. An entry appears whole or not at all, so any number of processes
    may use one folder; two that make the same entry at once write the same. Raises CacheError where it cannot be
    written, for lack of space, for instance.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity

    def entry(self, key: Mapping[str, Any], make: Callable[[], Made]) -> Entry:
        """What is kept under a key of plain data; made and written if there is nothing yet, or something damaged."""
        content = json.dumps({"identity": self.identity, "key": key}, sort_keys=True)
        folder = self.folder / hashlib.sha256(content.encode()).hexdigest()[:32]
        for _attempt in range(ATTEMPTS - 1):  # another process may take away what is damaged just then
            try:
                if folder.is_dir():
                    return self._read(folder)
                self._write(folder, *make())
                return self._read(folder)
            except DamagedError:
                shutil.rmtree(folder, ignore_errors=True)
        self._write(folder, *make())
        return self._read(folder)

    def _read(self, folder: Path) -> Entry:
        """Raises DamagedError for an entry that is not what was written; bytes inside the files are not looked at."""
        try:
            with np.load(folder / NUMBERS) as numbers:
                found = dict(numbers)
            sizes = json.loads(str(found.pop(SIZES)))
            arrays = {name: StoredArray(folder / f"{name}{ENDING}") for name in sizes}
            wrong = [name for name in sizes if (folder / f"{name}{ENDING}").stat().st_size != sizes[name]]
            if wrong:
                raise OSError(f"{', '.join(wrong)} is cut off")
            return Entry(arrays, found)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as error:
            raise DamagedError(f"{folder} cannot be read ({error}); delete it") from error

    def _write(self, folder: Path, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray]) -> None:
        """Beside its place, and then renamed to it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
            try:
                for name, array in arrays.items():
                    file = str(beside / f"{name}{ENDING}")
                    compressed.asarray(np.ascontiguousarray(array), urlpath=file, mode="w", cparams=WRITING)
                sizes = json.dumps({name: (beside / f"{name}{ENDING}").stat().st_size for name in arrays})
                np.savez(beside / NUMBERS, **{**numbers, SIZES: np.array(sizes)})  # pyright: ignore[reportArgumentType]
                beside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            raise CacheError(
                f"{self.folder} cannot be written ({error}); choose another loader.cache_dir, or loader.cache: none"
            ) from error
