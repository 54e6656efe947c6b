"""Damaged and hostile checkpoints, read by everything that reads them.

A try survives if an error of the right class names the file, or if the result is that of the honest file. Nothing may
be executed: the pickles of strangers here create a file if they are.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import random
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segkit.config import ConfigError
from segkit.experiment.build import build_model, load_config
from segkit.experiment.runner import run_experiment
from segkit.experiment.trained_model import load_trained
from segkit.training import checkpoint
from segkit.training.checkpoint import CheckpointError
from segkit.training.init_weights import load_weights
from segkit.training.run_folder import Run
from segkit.utils.errors import DataError, RunError

TINY = {
    "name": "tiny",
    "labels": {"names": ["background", "a"]},
    "data": {"name": "synthetic", "size": [16, 16], "train": 2, "validation": 1, "test": 1},
    "sampling": {"patch": [8, 8]},
    "loader": {"batch": 1},
    "model": {"name": "unet", "widths": [2, 2], "encoder_convs": 1, "decoder_convs": 1},
    "loss": "dice",
    "optimizer": "adamw",
    "train": {"steps": 2, "validate_every": {"steps": 1}},
    "evaluation": {"overlays": False, "read_first": False},
    "device": "cpu",
}
ERRORS = (CheckpointError, ConfigError, DataError, RunError)
MEMORY = 600 << 20  # more than any try may need at its peak
QUIET = Console(quiet=True)


@cache
def trained() -> bytes:
    """The last.pt of a training of one of two steps."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Run(Path(folder) / "run")
        config = load_config(TINY, ["train.max_steps=1"])
        run_experiment(config, run, resume=False, console=QUIET)
        content = torch.load(run.last, weights_only=True)
        shorter = load_config(TINY)  # continuing it makes the second step
        content |= {"config": shorter.to_dict(), "resolved": shorter.to_dict(), "finished": None}
        checkpoint.save(run.last, content)
        return run.last.read_bytes()


def honest() -> dict[str, Any]:
    """Its content, to be changed."""
    return torch.load(io.BytesIO(trained()), weights_only=True)


# --- what reads a checkpoint -----------------------------------------------------------------------------------------


def loaded(path: Path) -> Any:
    """All of a checkpoint as plain data and bytes."""
    return _plain(checkpoint.load(path))


def used(path: Path) -> Any:
    """The weights of a trained model, and its prediction of one image."""
    model = load_trained(path)
    logits = model.predictor.model(torch.ones(1, 1, 16, 16))
    if not torch.isfinite(logits).all():
        raise AssertionError("the network predicts NaN")
    return _plain(dict(model.predictor.model.state_dict()))


def started_from(path: Path) -> Any:
    """The weights of a network that starts from a checkpoint."""
    torch.manual_seed(0)
    config = load_config(TINY)
    model = build_model(config, 1, _labels(config), 2)
    load_weights(model, path)
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise AssertionError("weights are NaN")
    return _plain(dict(model.state_dict()))


def resumed(path: Path) -> Any:
    """The weights after the second step of the run."""
    run = Run(path.parent.parent)
    for file in run.folder.rglob("*"):
        if file.is_file() and file != path:
            file.unlink()
    run.log({"kind": "step", "step": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_experiment(load_config(TINY), run, resume=True, console=QUIET)
    return _plain(dict(checkpoint.load(run.last)["model"]))


def _labels(config: Any) -> Any:
    from segkit.experiment.build import build_labels

    return build_labels(config)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return value


READERS: dict[str, Callable[[Path], Any]] = {
    "loading": loaded,
    "evaluating": used,
    "starting from its weights": started_from,
    "resuming": resumed,
}


@cache
def _expected(reader: Callable[[Path], Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return reader(_written(Path(folder), trained()))


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "run" / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _tried(folder: Path, content: bytes, reader: str, what: str, *, may_differ: bool = False) -> str | None:
    """Read a file. None if that ended as it should, otherwise what went wrong.

    may_differ: whether the file is another honest one, so that the result may differ from the first.
    """
    path, canary = _written(folder, content), folder / "canary"
    expected = None if may_differ else _expected(READERS[reader])
    peak = _peak()
    try:
        result = READERS[reader](path)
        survived = may_differ or result == expected
        failure = None if survived else "was read with another content"
    except ERRORS as error:
        named = str(path) in str(error) or isinstance(error, (DataError, RunError))
        failure = None if named else f"no file in {error}"
    except MemoryError:
        failure = "ran out of memory"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    if canary.exists():
        canary.unlink()
        failure = "executed code"
    if _peak() - peak > MEMORY:
        failure = f"took {(_peak() - peak) >> 20} MiB"
    return None if failure is None else f"{reader}, {what}: {failure[:300]}"


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- bytes -----------------------------------------------------------------------------------------------------------


def damaged_bytes(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Bytes flipped, replaced, removed, doubled, and the end cut off."""
    rng = random.Random(seed)
    for number in range(tries):
        content = bytearray(trained())
        for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
            _damage(content, rng)
        yield _tried(folder, bytes(content), "loading", f"damage {number} of seed {seed}")


def _damage(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content)) if content else 0
    length = min(rng.choice([1, 1, 1, 4, 64, 4096]), len(content) - start)
    kind = rng.choice(["flip", "flip", "flip", "replace", "remove", "repeat", "cut", "zero"])
    if not content:
        return
    if kind == "flip":
        content[start] ^= 1 << rng.randrange(8)
    elif kind == "replace":
        content[start : start + length] = rng.randbytes(length)
    elif kind == "remove":
        del content[start : start + length]
    elif kind == "repeat":
        content[start:start] = content[start : start + length]
    elif kind == "zero":
        content[start : start + length] = bytes(length)
    elif rng.random() < 0.1:
        del content[start:]


def damaged_pickles(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """The pickle in the archive damaged, with a correct checksum, so that the unpickler sees it."""
    rng = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(trained())) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    for number in range(tries):
        pickled = bytearray(records[name])
        for _ in range(rng.choice([1, 1, 2, 8])):
            _damage(pickled, rng)
        content = archived({**records, name: bytes(pickled)})
        reader = "loading" if number % 20 else rng.choice(list(READERS))
        # text and numbers of the content can change to others of the same meaning
        yield _tried(folder, content, reader, f"pickle {number} of seed {seed}", may_differ=True)


def archived(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


# --- archives of strangers -------------------------------------------------------------------------------------------


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def hostile_archives(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Compression, declared sizes, overlaps, code, and lists without end; by each reader."""
    cases = list(hostile_files(folder).items())
    random.Random(seed).shuffle(cases)
    readers = list(READERS)
    for number in range(tries):
        name, content = cases[number % len(cases)]
        yield _tried(folder, content, readers[number // len(cases) % len(readers)], name)


def hostile_files(folder: Path) -> dict[str, bytes]:
    """Files as a stranger may send them."""
    with zipfile.ZipFile(io.BytesIO(trained())) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    prefix = next(iter(records)).partition("/")[0]
    weights = f"{prefix}/data/0"

    def pickled(content: bytes, **others: bytes) -> bytes:
        return archived({**records, f"{prefix}/data.pkl": content, **others})

    bomb = {**records, weights: bytes(16 << 20)}
    touch = str(folder / "canary")
    code = {
        "os.system": Canary(os.system, f"touch {touch}"),
        "open": Canary(open, touch, "w"),
        "eval": Canary(eval, f"open({touch!r}, 'w')"),
        "Path.touch": Canary(Path.touch, Path(touch)),
    }
    return {
        "a bomb": archived(bomb, zipfile.ZIP_DEFLATED),
        "a bomb of bzip2": archived(bomb, zipfile.ZIP_BZIP2),
        "a bomb of lzma": archived(bomb, zipfile.ZIP_LZMA),
        "all compressed": archived(records, zipfile.ZIP_DEFLATED),
        "a record of 1 TB": _declared(archived(records), weights, 1 << 31),
        "a record that overlaps": _moved(archived(records), weights),
        "a name twice": _renamed(archived({**records, f"{prefix}/data/X": b""}), f"{prefix}/data/X", weights),
        "no pickle": archived({name: value for name, value in records.items() if not name.endswith(".pkl")}),
        "no weights": archived({name: value for name, value in records.items() if name != weights}),
        "short weights": archived({**records, weights: records[weights][:-1]}),
        "another byte order": archived({**records, f"{prefix}/byteorder": b"big"}),
        "a zip of something else": archived({"a.txt": b"text"}),
        "a zip of nothing": archived({}),
        "an empty file": b"",
        "a text": b"weights",
        "a tar": b"storages".ljust(257, b"\0") + b"ustar  \0" + bytes(2048),
        "a plain pickle": pickle.dumps({"format": 1}, protocol=2),
        "an old file": _old(honest()),
        "an old file that declares 4 GB": _old({"format": 1, "model": torch.zeros(3)}).replace(
            b"K\x03", b"J\xff\xff\xff\x3f"
        ),
        **{f"code, {name}": _saved({**honest(), "note": call}) for name, call in code.items()},
        **{f"a plain pickle of code, {name}": pickle.dumps(call, protocol=2) for name, call in code.items()},
        "a list in itself": pickled(b"\x80\x02]q\x00h\x00a."),
        "a list of lists of lists": pickled(b"\x80\x02]q\x00" + _nested(40) + b"."),
        "many levels": pickled(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b"."),
        "many objects": pickled(b"\x80\x02](" + b"]" * 3_000_000 + b"e."),
        "a place in the memo far away": pickled(b"\x80\x02]r\xff\xff\xff\x7f."),
        "a text of 4 GB": pickled(b"\x80\x02X\xff\xff\xff\xffa."),
        "bytes of 16 EB": pickled(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa."),
        "a frame of 16 EB": pickled(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."),
        "an array of bytes of 16 GB": pickled(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R."),
        "a tensor of 4 TB": pickled(_tensor(size=1 << 40)),
        "a tensor of one number": pickled(_tensor(size=1 << 40, stride=0)),
        "a tensor with a negative stride": pickled(_tensor(size=2, stride=-1)),
        "a tensor beside its storage": pickled(_tensor(size=1, offset=1 << 40)),
        "a storage that grows": pickled(b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\x00\x00\x00\x00\x04\x85R."),
        "a function with other defaults": pickled(
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
        ),
        "a mapping without its methods": pickled(
            b"\x80\x02ccollections\nOrderedDict\n)R}(X\x05\x00\x00\x00itemsK\x01ub."
        ),
    }


def _nested(levels: int) -> bytes:
    """Each level contains the one before twenty times."""
    return b"".join(
        b"]" + b"q" + bytes([number + 1]) + b"(" + (b"h" + bytes([number])) * 20 + b"e" for number in range(levels)
    )


def _tensor(size: int, stride: int = 1, offset: int = 0) -> bytes:
    """A checkpoint whose model is one tensor of these numbers in the first record."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    with zipfile.ZipFile(io.BytesIO(trained())) as archive:
        count = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data/0"))).file_size // 4
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count)
    arguments = b"(" + storage + b"tQ" + number(offset) + number(size) + b"\x85" + number(stride) + b"\x85\x89}t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}(X\x06\x00\x00\x00formatK\x01X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + tensor + b"su."


def _old(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _central(content: bytes, name: str) -> int:
    """Where the entry of a record starts in the table of a zip file."""
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    assert content[place + 46 :].startswith(name.encode())
    return place


def _declared(content: bytes, name: str, size: int) -> bytes:
    changed, place = bytearray(content), _central(content, name)
    changed[place + 20 : place + 28] = struct.pack("<II", size, size)
    return bytes(changed)


def _moved(content: bytes, name: str) -> bytes:
    """The record starts where the first one does."""
    changed, place = bytearray(content), _central(content, name)
    changed[place + 42 : place + 46] = struct.pack("<I", 0)
    return bytes(changed)


def _renamed(content: bytes, name: str, to: str) -> bytes:
    return content.replace(name.encode(), to.encode())


# --- fields ----------------------------------------------------------------------------------------------------------

OTHERS: list[Any] = [
    *(None, True, 0, 1, -1, 7, 2**40, 2**63, 10**400, 0.5, -0.5, math.nan, math.inf, 1e308),
    *("", "x", "../../etc", "https://example.org/x", "\ud800", "a" * 5000, [], {}, [[]], [None], {"": None}, {1: 2}),
    *({"a": {"b": [1]}}, [1, 2, 3], ["x"], (1, 2), torch.zeros(()), torch.zeros(0), torch.ones(3), torch.ones(2, 2, 2)),
    *(torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.int64), torch.tensor([True]), torch.float32),
    *(torch.full((3,), math.nan), torch.zeros(1).expand(100), torch.zeros(5056, dtype=torch.uint8)),
]


def damaged_fields(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Each field removed, added, or replaced by a value of another type, at any depth; by each reader."""
    rng = random.Random(seed)
    places = list(_places(honest()))
    readers = [*["loading", "evaluating", "starting from its weights"] * 5, "resuming"]
    for number in range(tries):
        content = honest()
        # fields at the top are few, and those of the network many
        depth = rng.choice([1, 1, 2, 2, 3, 4, 5, 9])
        place = rng.choice([place for place in places if len(place) <= depth])
        what = _changed(content, place, rng)
        try:
            file = _saved(content)
        except Exception:  # not a value that torch can save
            continue
        reader = readers[number % len(readers)]
        yield _tried(folder, file, reader, f"{'.'.join(map(str, place))} {what}"[:150], may_differ=True)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _changed(content: Any, place: tuple[Any, ...], rng: random.Random) -> str:
    *outer, last = place
    for key in outer:
        content = content[key]
    kind = rng.choice(["remove", "replace", "replace", "replace", "nest", "add"])
    if kind == "remove":
        del content[last]
    elif kind == "nest":
        content[last] = rng.choice([[content[last]], {"x": content[last]}, {last: content[last]}])
    elif kind == "add" and isinstance(content, dict):
        content[rng.choice(["x", "", 3, "name", "dir"])] = copy.deepcopy(rng.choice(OTHERS))
    else:
        content[last] = copy.deepcopy(rng.choice(OTHERS))
        return f"= {str(content[last])[:60]!r}"
    return kind


def weights_not_finite(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """One number of a weight is NaN or infinite, or a weight has another type or shape: an error that names it."""
    rng = random.Random(seed)
    readers = ["evaluating", "starting from its weights", "resuming"]
    for number in range(tries):
        content = honest()
        name = rng.choice([name for name, value in content["model"].items() if value.is_floating_point()])
        value = content["model"][name]
        kind = rng.choice(["NaN", "infinity", "complex", "integer", "boolean", "shape"])
        if kind in ("NaN", "infinity"):
            value.view(-1)[rng.randrange(value.numel())] = math.nan if kind == "NaN" else math.inf
        types = {"complex": torch.complex64, "integer": torch.int64, "boolean": torch.bool}
        changed = value[None] if kind == "shape" else value.to(types.get(kind, value.dtype))
        content["model"][name] = content["training"]["model"][name] = changed
        reader = readers[number % len(readers)] if number % 6 == 2 else readers[number % 2]
        path = _written(folder, _saved(content))
        try:
            READERS[reader](path)
            # train.init loads what has the same shape, and lists the others
            failure = None if (kind, reader) == ("shape", readers[1]) else "was taken"
        except CheckpointError as error:
            failure = None if str(path) in str(error) and name in str(error) else f"{name} is not in: {error}"
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        yield None if failure is None else f"{reader}, {name} {kind}: {failure[:300]}"


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    "damaged bytes of checkpoints": damaged_bytes,
    "damaged pickles of checkpoints": damaged_pickles,
    "hostile archives as checkpoints": hostile_archives,
    "damaged fields of checkpoints": damaged_fields,
    "weights that are not finite or of another type": weights_not_finite,
}
