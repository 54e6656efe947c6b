"""Damaged and hostile data files: every format, listing and cache entry that segkit reads."""

import csv
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES, DataError
from segkit.data.case_store import CachedSource
from segkit.data.cases import Case, MaskFile, file_stamps
from segkit.data.disk_cache import DiskCache
from segkit.data.formats import case_name
from segkit.data.readers import geometry_of, number_type, orientation, read_files, read_image, read_mask
from segkit.data.splits import lists_split

LABELS = Labels(["background", "a", "b"], ignore_index=255)
SIDES = (9, 7, 5)
ENDINGS = {
    "pictures": (".png", ".jpg", ".webp", ".gif", ".bmp", ".ppm", ".jp2"),
    "TIFF": (".tif", ".deflate.tif", ".pages.tif"),
    "arrays": (".npy", ".npz", ".mat"),
    "volumes": (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".mha"),
    "DICOM": (".dcm",),
}
# numbers that programs do not expect in sizes, offsets and counts
EXTREMES = (0, 1, -1, 127, 255, 256, 32767, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 10**6, 10**9)
FREE, FACTOR = 640 << 20, 10_000  # bytes that a try may use, and more for each byte of the file
ADDRESSES = 6 << 30  # address space that a try may use, so that a bomb does not end the whole run
PATIENCE = 30  # seconds that a try may take
CHUNK = 500  # tries in one process
CONTROL = "\r\n\t\0\x1b"


def _numbers(sides: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, sides).astype(np.uint8)


def _save(path: Path) -> bytes:
    """The content of a small valid file of the format of its ending."""
    plane, volume = _numbers(SIDES[:2]), _numbers(SIDES)
    name = path.name
    if name.endswith((".png", ".jpg", ".webp", ".gif", ".bmp", ".ppm", ".jp2")):
        is_lossy = name.endswith((".jpg", ".jp2"))
        options = {"quality": 100} if name.endswith(".jpg") else {"lossless": True} if name.endswith(".webp") else {}
        Image.fromarray(np.stack([plane * (0 if is_lossy else 1)] * 3, -1)).save(path, **options)
    elif name.endswith(".tif"):
        import tifffile

        array, compression = (volume, None) if ".pages" in name else (plane, "zlib" if ".deflate" in name else None)
        tifffile.imwrite(path, array, compression=compression, photometric="minisblack")
    elif name.endswith(".npy"):
        np.save(path, plane)
    elif name.endswith(".npz"):
        np.savez_compressed(path, image=plane, mask=plane)
    elif name.endswith(".mat"):
        from scipy.io import savemat

        savemat(path, {"image": plane, "note": "text"}, do_compression=True)
    elif name.endswith((".mgh", ".mgz")):
        nib.save(nib.MGHImage(volume, np.eye(4)), path)  # pyright: ignore[reportPrivateImportUsage]
    elif name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)  # pyright: ignore[reportPrivateImportUsage]
    else:
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(plane if name.endswith(".dcm") else volume), str(path))
    return path.read_bytes()


# --- changing a file ---------------------------------------------------------------------------------------------------


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four changes: bits, bytes, numbers in the header, parts left out, repeated or moved."""
    changed = bytearray(content)
    for _change in range(draw.randint(1, 4)):
        if not changed:
            break
        draw.choice(CHANGES)(changed, draw)
    return bytes(changed)


def _flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _replace(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] = draw.randrange(256)


def _extreme(content: bytearray, draw: random.Random) -> None:
    """A number of two, four or eight bytes in either order, more often at the start, where headers are."""
    size = draw.choice((2, 4, 8))
    limit = min(len(content), draw.choice((64, 400, len(content))))
    start = draw.randrange(max(1, limit - size))
    number = draw.choice(EXTREMES) % (1 << 8 * size)
    content[start : start + size] = number.to_bytes(size, draw.choice(("little", "big")))


def _number(content: bytearray, draw: random.Random) -> None:
    """A floating-point number that is not finite, tiny or huge."""
    start = draw.randrange(max(1, min(len(content), 400) - 4))
    number = draw.choice((float("nan"), float("inf"), 1e-20, -1e30, 0.0))
    content[start : start + 4] = struct.pack(draw.choice("<>") + "f", number)


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _leave_out(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    del content[start : start + draw.randint(1, 64)]


def _repeat(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    content[start:start] = content[start : start + draw.randint(1, 64)] * draw.randint(1, 3)


def _digits(content: bytearray, draw: random.Random) -> None:
    """Another number written as text, as in the headers of NRRD, MetaImage and NPY."""
    places = [place for place, byte in enumerate(content[:2000]) if 48 <= byte < 58]
    if places:
        place = draw.choice(places)
        content[place : place + 1] = draw.choice((b"-1", b"0", b"99999", b"1e9", b"nan", b"9" * 30, b"x"))


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _replace, _extreme, _extreme, _number, _cut, _leave_out, _repeat, _digits),
)


def _with_checksums(content: bytes) -> bytes:
    """A PNG file whose checksums are those of its changed content, so that decoders go on to read it."""
    if not content.startswith(b"\x89PNG"):
        return content
    fixed, start = bytearray(content), 8
    while start + 12 <= len(fixed):
        end = start + 8 + struct.unpack_from(">I", fixed, start)[0]
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[start + 4 : end]))
        start = end + 4
    return bytes(fixed)


# --- watching a try ----------------------------------------------------------------------------------------------------


def _memory(field: str) -> int:
    """Bytes that this process uses, from Linux; `VmHWM` is the largest use since `_forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def survived(work: Callable[[], Any], named: str, size: int) -> str | None:
    """Run a try. Returns None if it ends well or in a DataError of few lines that names the file; otherwise why not.

    named: text that the error must hold. size: bytes of the file, which limit the memory that a try may use.
    """
    _forget_peak()
    started = time.monotonic()
    before, (soft, hard) = _memory("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ADDRESSES, hard))
    problem = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except DataError as error:
        problem = next(filter(None, (_unclear(message, named) for message in error.messages)), None)
    except BaseException as error:  # a fault, whatever it is
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    used = _memory("VmHWM") - before
    if problem is None and used > FREE + FACTOR * size:
        problem = f"used {used >> 20} MiB for a file of {size} bytes"
    if problem is None and time.monotonic() - started > PATIENCE:
        problem = f"took {time.monotonic() - started:.0f} s for a file of {size} bytes"
    return problem


def _unclear(message: str, named: str) -> str | None:
    """What is wrong with the message of an error; None if it is clear."""
    if not message.strip() or named not in message:
        return f"the message does not name {named}: {message[:200]!r}"
    if len(message) > 2000 or any(letter in message for letter in CONTROL):
        return f"the message is long or holds control characters: {message[:200]!r}"
    if "Traceback" in message or "bad_alloc" in message or "allocate" in message:
        return f"the message is about memory or code: {message[:300]!r}"
    return None


# --- files of images and masks -----------------------------------------------------------------------------------------


def _read_everything(path: Path) -> None:
    """Everything that segkit asks of a file. The first error ends it."""
    for read in (read_image, partial(read_mask, labels=LABELS), number_type, orientation):
        _allowing_data_errors(partial(read, path), path)
    _allowing_data_errors(lambda: geometry_of(path, str(path)), path)
    case = Case("a", "a", images=(path,), masks=(MaskFile(path),))
    file_stamps(case)
    read_files(case, LABELS)


def _allowing_data_errors(read: Callable[[], Any], path: Path) -> None:
    try:
        read()
    except DataError as error:
        if unclear := next(filter(None, (_unclear(message, path.name) for message in error.messages)), None):
            raise AssertionError(unclear) from error


def fuzzed_files(family: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Mutated files of the formats of a family."""
    valid = {ending: _save(folder / f"valid{ending}") for ending in ENDINGS[family]}
    for ending in valid:
        _read_everything(folder / f"valid{ending}")  # imports what the readers need

    def attempt(number: int) -> str | None:
        draw = random.Random(f"{seed} {number}")
        ending = draw.choice(ENDINGS[family])
        content = mutated(valid[ending], draw)
        content = _with_checksums(content) if draw.random() < 0.5 else content
        path = folder / f"try_{number}{ending}"
        path.write_bytes(content)
        problem = survived(partial(_read_everything, path), case_name(path), len(content))
        if problem:
            return f"{problem} ({path})"
        path.unlink()
        return None

    yield from isolated(attempt, tries)


# --- processes ---------------------------------------------------------------------------------------------------------


def isolated(attempt: Callable[[int], str | None], tries: int) -> Iterator[str | None]:
    """The results of all attempts, made in child processes: a library that crashes ends its process only."""
    context = multiprocessing.get_context("fork")
    number = 0
    while number < tries:
        receive, send = context.Pipe(duplex=False)
        end = min(number + CHUNK, tries)
        child = context.Process(target=_attempts, args=(attempt, range(number, end), send))
        child.start()
        send.close()
        for number in range(number, end):
            try:
                if not receive.poll(4 * PATIENCE):
                    child.kill()
                yield receive.recv()
            except EOFError:
                child.join()
                yield f"the process ended with code {child.exitcode} in try {number}"
                break
        child.join()
        number += 1


def _attempts(attempt: Callable[[int], str | None], numbers: range, send: Any) -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print what they think of damaged files
    for number in numbers:
        send.send(attempt(number))


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    f"changed bytes in {family}": partial(fuzzed_files, family) for family in ENDINGS
}
