"""Files of weights: a single file, the folder of a run, or a MONAI bundle as a folder or a zip file."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segkit.training.checkpoint import CheckpointError
from segkit.training.tensor_file import read_weights
from segkit.training.tensor_pickle import Unreadable
from segkit.utils.files import temporary_folder

IN_BUNDLE = "models/model.pt"
IN_FOLDER = (IN_BUNDLE, "checkpoints/last.pt", "checkpoint_final.pth")  # of a MONAI bundle, of segkit, of nnU-Net
MOST_TIMES = 20  # as large as its record in a zip file; weights hardly shrink


def read_content(path: Path) -> Any:
    """The content of a file of weights, or of the weights in a MONAI bundle.

    Raises CheckpointError if there is none, and if it cannot be read without running code.
    """
    file = weights_file(path)
    try:
        with _unpacked(file) as unpacked:
            return read_weights(unpacked)
    except Unreadable as error:
        raise CheckpointError(f"cannot read weights from {file}: {error}") from error


def weights_digest(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file of weights. Raises CheckpointError if the file does not exist."""
    return digest(weights_file(path))[:16]


def digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file(path: Path) -> Path:
    """The file itself, or that of the weights in a run folder or MONAI bundle. Raises CheckpointError without one."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise CheckpointError(f"train.init: there is no file {path}")
    return path


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (folder / "models" / "model.ts").is_file():
        raise CheckpointError(
            f"train.init: {folder} has only models/model.ts, which is code (TorchScript): refused; use a bundle with "
            f"{IN_BUNDLE}, or save the state dict of its network there"
        )
    raise CheckpointError(
        f"train.init: expected a file of weights, or a folder with one of {', '.join(IN_FOLDER)}, got the folder "
        f"{folder}; name the file of weights itself"
    )


@contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """The file itself; of a MONAI bundle in a zip file, its weights as a temporary file."""
    record = _record_of_bundle(file)
    if record is None:
        yield file
        return
    if record.file_size > MOST_TIMES * max(record.compress_size, 1):
        raise Unreadable(
            f"{record.filename} would grow from {record.compress_size} to {record.file_size} bytes, which weights do "
            "not; unpack the file yourself and name its folder"
        )
    with temporary_folder() as folder:
        target = folder / "model.pt"
        try:
            with zipfile.ZipFile(file) as archive, archive.open(record) as source, open(target, "wb") as output:
                shutil.copyfileobj(source, output)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise Unreadable(f"{record.filename} in it is damaged or encrypted ({error})") from error
        yield target


def _record_of_bundle(file: Path) -> zipfile.ZipInfo | None:
    """The record with the weights, if a file is the zip file of a MONAI bundle. Raises Unreadable for several."""
    if file.suffix != ".zip":
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise Unreadable(f"the file is damaged or cut short ({error})") from error
    weights = [record for record in records if f"/{record.filename}".endswith(f"/{IN_BUNDLE}")]
    if len(weights) > 1:
        raise Unreadable(f"expected one {IN_BUNDLE} in the zip file of a MONAI bundle, got {len(weights)}")
    return weights[0] if weights else None
