"""Faults of images, folders, disk and memory for `segkit predict`.

Each try is survived if the masks of the good images are written whole, nothing else lies in the output, and the command
ends with the right exit code and a message that names what is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segkit
from segkit import cli
from segkit.commands.prediction_record import RECORD
from segkit.models.unet import UNet

CONFIG = """\
labels: {names: [background, a, b]}
data: {name: synthetic, size: [16, 16], train: 2, validation: 1, test: 1}
augment: {engine: albumentations, transforms: []}
loader: {batch: 2}
model: {name: unet, widths: [4, 8]}
loss: dice_ce
optimizer: {name: sgd}
train: {steps: 1}
evaluation: {overlays: false}
"""
Masks = Mapping[str, np.ndarray]


def _command(*arguments: object) -> tuple[int, str]:
    """The exit code and the output of the command. Raises what is not an expected error."""
    printed = io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()
        finally:
            torch.set_num_threads(threads)
    return 0, printed.getvalue()


class _Bench:
    """A trained network, good images, and their masks."""

    def __init__(self, folder: Path, seed: int):
        self.random = random.Random(seed)
        self.folder = folder
        (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        code, printed = _command("train", "--config", folder / "config.yaml", f"run.dir={folder / 'run'}")
        assert code == 0, printed
        self.model = segkit.load(folder / "run", device="cpu")

    def images(self, count: int) -> tuple[Path, Path, Masks]:
        """Empty folders for images and masks, with good images in the first, and the masks of these by file name."""
        source, output = self.folder / "in", self.folder / "out"
        for path in (source, output):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        source.mkdir()
        masks = {}
        for number in range(count):
            sides = self.random.randint(5, 24), self.random.randint(5, 24)
            pixels = np.frombuffer(self.random.randbytes(sides[0] * sides[1]), np.uint8).reshape(sides)
            Image.fromarray(pixels).save(source / f"good{number}.png")
            masks[f"good{number}.png"] = self.model.predict(source / f"good{number}.png")
        return source, output, masks

    def attempt(self, source: Path, output: Path, masks: Masks, code: int, *names: str) -> str | None:
        """Run the command; what is wrong with its exit code, its message, which has to contain the names, or the masks
        that it leaves."""
        try:
            found, printed = _command(
                *("predict", "--checkpoint", self.folder / "run", "--input", source),
                *("--output", output, "--skip-existing"),
            )
        except Exception as error:  # anything that is not an expected error is a fault
            return f"{type(error).__name__}: {error}"
        if found != code:
            return f"exit code {found} instead of {code}: {printed}"
        missing = [name for name in names if name not in printed]
        if missing or "Traceback" in printed or len(printed) > 20_000:
            return f"a message without {missing}: {printed[:500]}"
        return wrong_masks(output, masks)


def wrong_masks(output: Path, masks: Masks, *, complete: bool = True) -> str | None:
    """What is wrong with the files of a folder of masks. complete: whether none may be missing."""
    files = {path.name: path for path in output.iterdir() if path.name != RECORD} if output.is_dir() else {}
    if not files.keys() <= masks.keys() or (complete and files.keys() != masks.keys()):
        return f"expected the masks {sorted(masks)}, got {sorted(files)}"
    for name, path in files.items():
        with Image.open(path) as image:
            if not np.array_equal(np.asarray(image), masks[name]):
                return f"the mask {name} is not that of its image"
    return None


def unreadable_files(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """Pictures that are cut, empty, of random bytes, or of another format than their name says."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, masks = bench.images(2)
        content = bytearray((source / "good0.png").read_bytes())
        start = bench.random.randrange(0, 33)  # within the signature and the header, which are always read
        damaged = bench.random.choice(
            [bytes(content[:start]), b"", bench.random.randbytes(200), b"GIF89a" + bench.random.randbytes(40)]
        )
        ending = bench.random.choice([".png", ".tif", ".nii.gz", ".npy", ".jpg", ".nrrd", ".mha"])
        (source / f"bad{ending}").write_bytes(damaged)
        yield bench.attempt(source, output, masks, 3, f"bad{ending}", "1 of 3 images")


def other_channels_and_axes(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """Colour, volumes, several channels, NaN, and no pixels, for a network of grey pictures."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, masks = bench.images(2)
        shapes = [(3, 8, 9), (2, 8, 9), (1, 4, 8, 9), (7,), (0, 5), (2, 3, 4, 5, 6), (4, 4, 4, 4)]
        array = np.zeros(bench.random.choice(shapes), bench.random.choice([np.float32, np.int16, np.uint8, np.float64]))
        if bench.random.random() < 0.2:
            array = np.full((8, 9), bench.random.choice([np.nan, np.inf]), np.float32)
        np.save(source / "bad.npy", array)
        yield bench.attempt(source, output, masks, 3, "bad.npy", "1 of 3 images")


def nothing_to_predict(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """Folders that are empty, missing, or hold other files, and tables without images."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, _masks = bench.images(0)
        kind = bench.random.choice(["empty", "missing", "other files", "hidden files", "table", "listing"])
        if kind == "missing":
            source.rmdir()
        elif kind == "other files":
            (source / "notes.txt").write_text("x", encoding="utf-8")
        elif kind == "hidden files":
            (source / ".a.png").write_bytes(b"x")
        elif kind in ("table", "listing"):
            name, text = ("t.csv", "image\n") if kind == "table" else ("dataset.json", '{"training": []}')
            source = source / name
            source.write_text(text, encoding="utf-8")
        yield bench.attempt(source, output, {}, 3, str(source))


def outputs_that_cannot_be_written(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """The output is a file, or lies in one, or is the folder of the images."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, _masks = bench.images(bench.random.randint(1, 3))
        kind = bench.random.choice(["file", "below a file", "input"])
        if kind == "input":
            before = {path: path.read_bytes() for path in source.iterdir()}
            problem = bench.attempt(source, source, {}, 2, "--output")
            changed = before != {path: path.read_bytes() for path in source.iterdir()}
            yield "an image was changed" if changed else None if "expected the masks" in str(problem) else problem
            continue
        output.write_text("a file", encoding="utf-8")
        yield bench.attempt(source, output if kind == "file" else output / "x", {}, 2, "--output", str(output))


def full_disk(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """No space, a failing disk or a read-only file system at one of the masks. The same command then goes on."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, masks = bench.images(4)
        number = bench.random.choice([errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
        fails_at, where = bench.random.randrange(4), bench.random.choice(["fsync", "replace"])
        written = dict(sorted(masks.items())[:fails_at])
        with _failing(where, fails_at + 1, number):  # the first file is the record
            problem = bench.attempt(source, output, written, 2, os.strerror(number), f"good{fails_at}.png")
        yield problem or bench.attempt(source, output, masks, 0)


@contextlib.contextmanager
def _failing(where: str, calls: int, number: int) -> Iterator[None]:
    """One step of writing a file raises an OSError after some calls."""
    owner = os if where == "fsync" else Path
    plain, remaining = getattr(owner, where), [calls]

    def failing(*arguments: object) -> object:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise OSError(number, os.strerror(number))
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, where, failing)
        yield


def masks_of_one_name(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """Names of cases in a table that become the same file name, and names that lead out of the folder."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, masks = bench.images(2)
        names = bench.random.choice(
            [("a/b", "a_b"), ("x", "x"), ("../good", ".._good"), ("a\\b", "a/b"), ("/etc/x", "_etc_x"), ("..a", "_a")]
        )
        table = source / "table.csv"
        rows = "".join(f"{name},{image}\n" for name, image in zip(names, sorted(masks), strict=True))
        table.write_text(f"case,image\n{rows}", encoding="utf-8")
        collide = _as_file(names[0]) == _as_file(names[1])
        expected = {f"{_as_file(name)}.png": masks[image] for name, image in zip(names, sorted(masks), strict=True)}
        yield bench.attempt(table, output, {} if collide else expected, 3 if collide else 0)


def _as_file(name: str) -> str:
    """What is expected of the name of a mask."""
    stripped = name.lstrip(".")
    return ("_" if stripped != name else "") + stripped.replace("/", "_").replace("\\", "_")


def out_of_memory(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """The network asks for more memory than there is, for one image."""
    bench = _Bench(folder, seed)
    plain = UNet.forward
    for _try in range(count):
        source, output, masks = bench.images(2)
        Image.fromarray(np.zeros((30, bench.random.randint(30, 60)), np.uint8)).save(source / "large.png")
        amount = 2 ** bench.random.randint(48, 58)

        def greedy(self: UNet, image: torch.Tensor, amount: int = amount) -> torch.Tensor:
            return torch.empty(amount) if image.shape[2] >= 30 else plain(self, image)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UNet, "forward", greedy)
            yield bench.attempt(source, output, masks, 4, "large.png", "evaluation.window=")


def output_that_is_not_finite(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """The network's output is NaN or infinite at some pixel of one image."""
    bench = _Bench(folder, seed)
    plain = UNet.forward
    for _try in range(count):
        source, output, masks = bench.images(2)
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(source / "large.png")
        value = bench.random.choice([float("nan"), float("inf"), -float("inf")])
        place = bench.random.randrange(3), bench.random.randrange(30), bench.random.randrange(40)

        def wrong(self: UNet, image: torch.Tensor, value: float = value, place: tuple = place) -> torch.Tensor:
            logits = plain(self, image)
            if image.shape[2] >= 30:
                logits[(0, *place)] = value
            return logits

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UNet, "forward", wrong)
            yield bench.attempt(source, output, masks, 3, "large.png", "finite", "1 pixels")


def kills(folder: Path, count: int, seed: int) -> Iterator[str | None]:
    """The process is killed at a random moment: what lies in the output is whole, and the same command goes on."""
    bench = _Bench(folder, seed)
    for _try in range(count):
        source, output, masks = bench.images(12)
        child = os.fork()
        if child == 0:
            try:
                _command("predict", "--checkpoint", folder / "run", "--input", source, "--output", output)
            finally:
                os._exit(0)
        time.sleep(bench.random.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        visible = folder / "visible"
        shutil.rmtree(visible, ignore_errors=True)
        if output.exists():
            shutil.copytree(output, visible, ignore=shutil.ignore_patterns(".*"))
        yield wrong_masks(visible, masks, complete=False) or bench.attempt(source, output, masks, 0)


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    "predict: an unreadable file among good images": unreadable_files,
    "predict: images of other channels and axes": other_channels_and_axes,
    "predict: nothing to predict": nothing_to_predict,
    "predict: an output that cannot be written": outputs_that_cannot_be_written,
    "predict: a full disk": full_disk,
    "predict: masks of one name": masks_of_one_name,
    "predict: out of memory": out_of_memory,
    "predict: output that is not finite": output_that_is_not_finite,
    "predict: kills": kills,
}
