"""Damaged and hostile data files: every format, listing and cache entry that segkit reads."""

import csv
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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
from segkit.data.inspection.known_layouts import dataset_json
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
CONTROL = ("\r", "\t", "\0", "\x1b", "a\nb")


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


# --- changing a file ------------------------------------------------------------------------------------------------


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


# --- watching a try -------------------------------------------------------------------------------------------------


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


# --- files of images and masks --------------------------------------------------------------------------------------


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


# --- processes ------------------------------------------------------------------------------------------------------


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
        is_alive = True
        while is_alive and number < end:
            try:
                if not receive.poll(4 * PATIENCE):
                    child.kill()
                yield receive.recv()
            except EOFError:
                is_alive = False
                child.join()
                yield f"the process ended with code {child.exitcode} in try {number}"
            number += 1
        child.join()


def _attempts(attempt: Callable[[int], str | None], numbers: range, send: Any) -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print what they think of damaged files
    for number in numbers:
        send.send(attempt(number))


# --- listings -------------------------------------------------------------------------------------------------------


HOSTILE = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        255,
        2**31,
        2**64,
        10**30,
        -(10**30),
        0.5,
        -1e8,
        1e8,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", " ", "a", "0", "-1", "1e9", "nan", "\u00b2", "9" * 5000, "x" * 5000, "a\0b", "a\nb", "\x1b[2J", "\ud800"),
    *(
        "../x.png",
        "/etc/passwd",
        "..",
        ".",
        "/",
        "a/" * 3000,
        "~",
        "=cmd|'/c calc'!A1",
        "\\\\host\\x",
        "x.png",
        "\u202e",
    ),
    *(
        [],
        [[]],
        [None],
        [1, 2],
        {},
        {"a": None},
        [[float("nan")] * 6],
        [[1e8] * 6],
        {"size": [1e9, 1e9], "counts": "a"},
    ),
    *({"size": [10**6, 10**6], "counts": [10**12]}, {"size": [9, 7], "counts": "\x7f" * 99}, {"counts": [-5, 68]}),
    *({"size": [9, 7], "counts": [63]}, {"size": [9, 7], "counts": "o" * 50}, {"size": [9, 7], "counts": [2**40, 1]}),
)


def _changed(content: Any, draw: random.Random) -> Any:
    """A copy of plain data in which one to three parts are replaced, left out, repeated or put into another place."""
    content = json.loads(json.dumps(content))
    for _change in range(draw.randint(1, 3)):
        places = list(_places(content))
        holder, key = draw.choice(places) if places else (None, None)
        if holder is None:
            return deepcopy(draw.choice(HOSTILE))
        action = draw.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.25:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif action < 0.35 and isinstance(holder, dict):
            holder[str(draw.choice(HOSTILE))] = holder.pop(key)
        else:
            holder[key] = deepcopy(draw.choice(HOSTILE))
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object of plain data with each of its indices or keys."""
    for key in range(len(content)) if isinstance(content, list) else list(content) if isinstance(content, dict) else ():
        yield content, key
        yield from _places(content[key])


def _as_json(content: Any, draw: random.Random) -> bytes:
    """JSON text, at times with changed bytes or nested thousands of levels deep."""
    if draw.random() < 0.02:
        return draw.choice(
            (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"labels":' + b"1" * 5000 + b"}", b"\xff")
        )
    text = json.dumps(content).encode()
    return mutated(text, draw) if draw.random() < 0.2 else text


RUNS = {"size": [9, 7], "counts": [3, 10, 50]}
COCO = {
    "images": [{"id": 1, "file_name": "x.png", "height": 9, "width": 7}, {"id": 2, "file_name": "y.png"}],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": RUNS, "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": {"size": [9, 7], "counts": "3:b1"}, "iscrowd": 0},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [0, 0, 3, 3]},
    ],
}
DECATHLON = {"labels": {"0": "background", "1": "a", "2": "b"}, "training": [{"image": "x.png", "label": "y.png"}]}
NNUNET = {
    "channel_names": {"0": "grey"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "file_ending": ".png",
    "dataset": {"x": {"images": ["x.png"], "label": "y.png"}},
}
MANIFEST = [
    {"case": "x", "image": "x.png", "mask": "y.png", "group": "g", "split": "train", "weight": "y.png"},
    {"image": ["y.png", "x.png"], "mask": {"a": "y.png", "b": ["y.png"]}, "annotated": ["a"]},
]
SPLIT = {"train": ["x", "y"], "validation": ["z"], "test": []}


def _read_coco(file: Path) -> None:
    options: dict[str, Any] = {"boxes": "draw", "others": "background", "labels": LABELS}
    _read_all(SOURCES["coco"](images=file.parent, annotations=file, **options))


def _read_dataset(file: Path) -> None:
    target = file.with_name("dataset.json")
    file.replace(target)
    dataset_json(file.parent)
    _read_all(SOURCES["msd"](root=file.parent, labels=LABELS, unpaired="skip"))


def _read_manifest(file: Path) -> None:
    _read_all(SOURCES["manifest"](file=file, labels=LABELS))


def _read_split(file: Path) -> None:
    lists_split([Case(name, name) for name in "xyz"], file=file)


def _read_all(source: Any) -> None:
    for case in source.cases:
        assert Path(os.path.normpath(f"/out/{case.name}")).is_relative_to("/out/"), f"case {case.name!r}"
        file_stamps(case)
        source.read(case)


def _as_csv(content: Any, draw: random.Random) -> bytes:
    rows = [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
    names = list(dict.fromkeys(str(name) for row in rows for name in row)) or ["image", "mask"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw.choice(",;\t|"))
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow([";".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells])
        if draw.random() < 0.05:
            writer.writerow([draw.choice(HOSTILE)] * draw.randint(1, 20))
    written = text.getvalue().encode(errors="surrogatepass")
    return mutated(written, draw) if draw.random() < 0.3 else written


# ending of the file, valid contents, how they are written and read
LISTINGS: dict[str, tuple[str, tuple[Any, ...], Callable[[Any, random.Random], bytes], Callable[[Path], None]]] = {
    "COCO annotations": (".json", (COCO,), _as_json, _read_coco),
    "a dataset.json": (".json", (DECATHLON, NNUNET), _as_json, _read_dataset),
    "a table of cases in JSON": (".json", (MANIFEST, MANIFEST[:1]), _as_json, _read_manifest),
    "a table of cases in CSV": (".csv", (MANIFEST, MANIFEST[:1]), _as_csv, _read_manifest),
    "lists of a split": (".json", (SPLIT,), _as_json, _read_split),
}


def hostile_listings(kind: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Listings with hostile values in every place, beside two pictures."""
    ending, contents, write, read = LISTINGS[kind]
    for name in ("x.png", "y.png"):
        Image.fromarray(_numbers(SIDES[:2])).save(folder / name)

    def attempt(number: int) -> str | None:
        draw = random.Random(f"{seed} {number}")
        content = write(_changed(draw.choice(contents), draw), draw)
        file = folder / f"listing{ending}"
        file.write_bytes(content)
        problem = survived(partial(read, file), "", len(content))
        if problem:
            (folder / f"try_{number}{ending}").write_bytes(content)
            return f"{problem} (try_{number}{ending})"
        return None

    yield from isolated(attempt, tries)


# --- the disk cache -------------------------------------------------------------------------------------------------


def damaged_entries(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Entries of the disk cache that are deleted, cut or changed: they have to be made again with the same content."""
    Image.fromarray(_numbers((90, 70))).save(folder / "x.png")
    case = Case("x", "x", images=(folder / "x.png",), masks=(MaskFile(folder / "x.png"),))
    expected = read_files(case, LABELS)
    source = SimpleNamespace(cases=(case,), read=lambda case: read_files(case, LABELS))

    def attempt(number: int) -> str | None:
        draw, cache = random.Random(f"{seed} {number}"), DiskCache(folder / "cache", {})
        cached = CachedSource(source, cache)
        held = [cached.entry(case)]

        def region() -> np.ndarray:
            entry = held.pop() if held else cached.entry(case)
            return entry.arrays["image"][..., 3:50, :30]

        def read() -> None:
            _damage(draw.choice(sorted((folder / "cache").glob("*/*"))), draw)
            assert np.array_equal(cache.with_repair(region), expected.image[..., 3:50, :30]), "other pixels"
            again = cached.read(case)
            assert np.array_equal(again.image, expected.image), "other pixels"
            assert np.array_equal(again.mask, expected.mask), "other labels"
            assert len(list((folder / "cache").iterdir())) == 1, "leftovers"

        return survived(read, "", 0)

    yield from isolated(attempt, tries)


def _damage(file: Path, draw: random.Random) -> None:
    """Delete a file, its folder or the whole cache, or change the content of the file."""
    kind = draw.random()
    if kind < 0.1:
        file.unlink()
    elif kind < 0.2:
        shutil.rmtree(file.parents[draw.randrange(2)])
    else:
        file.write_bytes(mutated(file.read_bytes(), draw))


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    **{f"changed bytes in {family}": partial(fuzzed_files, family) for family in ENDINGS},
    **{f"hostile values in {kind}": partial(hostile_listings, kind) for kind in LISTINGS},
    "damaged entries of the disk cache": damaged_entries,
}
