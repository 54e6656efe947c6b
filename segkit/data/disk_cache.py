"""A disk cache of compressed arrays, computed once and shared by all processes and runs. Regions are read lazily."""

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

compressed: Any = blosc2  # untyped, since its annotations are narrower than what it accepts
NUMBERS, SIZES = "numbers.npz", "bytes of the arrays"
ATTEMPTS = 4
ENDING = ".b2nd"
# one thread, since loader workers are forked and threads do not survive a fork
WRITING = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
READING = {"nthreads": 1}


class CacheError(OSError):
    """The cache cannot be written or read."""


class DamagedError(CacheError):
    """A cache entry that is incomplete or damaged."""


class StoredArray:
    """A memory-mapped array in a compressed file. `array[where]` reads only the blocks that it needs."""

    def __init__(self, path: Path):
        self.path = path
        with self._opened() as stored:
            self.shape = tuple(stored.shape)

    def __getitem__(self, where: Any) -> np.ndarray:
        with self._opened() as stored:
            return np.asarray(stored[where])

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        # opened for each access, so that nothing is shared with forked processes and no file stays open
        try:
            yield compressed.open(str(self.path), mode="r", mmap_mode="r", dparams=READING)
        except (RuntimeError, OSError) as error:
            raise CacheError(f"{self.path} cannot be read ({error}); delete {self.path.parent}") from error


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
    entry at the same time write the same content. Raises CacheError if an entry cannot be written, for example because
    the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity

    def entry(self, key: Mapping[str, Any], compute: Callable[[], Content]) -> Entry:
        """Return the entry of a key, which is plain data. A missing or damaged entry is computed and written first."""
        content = json.dumps({"identity": self.identity, "key": key}, sort_keys=True)
        folder = self.folder / hashlib.sha256(content.encode()).hexdigest()[:32]
        for _attempt in range(ATTEMPTS - 1):  # another process may delete a damaged entry meanwhile
            try:
                if folder.is_dir():
                    return self._read(folder)
                self._write(folder, *compute())
                return self._read(folder)
            except DamagedError:
                shutil.rmtree(folder, ignore_errors=True)
        self._write(folder, *compute())
        return self._read(folder)

    def _read(self, folder: Path) -> Entry:
        """Raises DamagedError if files are missing or truncated. The content of the arrays is not verified."""
        try:
            with np.load(folder / NUMBERS) as file:
                numbers = dict(file)
            sizes = json.loads(str(numbers.pop(SIZES)))
            arrays = {name: StoredArray(folder / f"{name}{ENDING}") for name in sizes}
            truncated = [name for name in sizes if (folder / f"{name}{ENDING}").stat().st_size != sizes[name]]
            if truncated:
                raise OSError(f"truncated: {', '.join(truncated)}")
            return Entry(arrays, numbers)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as error:
            raise DamagedError(f"{folder} cannot be read ({error}); delete it") from error

    def _write(self, folder: Path, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray]) -> None:
        """Write into a temporary folder, which is then renamed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
            try:
                for name, array in arrays.items():
                    file = str(temporary / f"{name}{ENDING}")
                    compressed.asarray(np.ascontiguousarray(array), urlpath=file, mode="w", cparams=WRITING)
                sizes = json.dumps({name: (temporary / f"{name}{ENDING}").stat().st_size for name in arrays})
                np.savez(temporary / NUMBERS, **{**numbers, SIZES: np.array(sizes)})  # pyright: ignore[reportArgumentType]
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            raise CacheError(
                f"{self.folder} cannot be written ({error}); choose another loader.cache_dir or set loader.cache: none"
            ) from error
