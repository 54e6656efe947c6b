"""Options of losses that follow the width of the structures in the training masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import Config, plain_named
from segkit.data.case_store import CaseStore
from segkit.data.cases import Case, file_stamps
from segkit.data.class_counts import class_radii
from segkit.data.preprocess import Preprocess
from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.utils.files import replace_text


def with_measured_iterations(
    config: Config,
    labels: Labels,
    cases: Sequence[Case],
    store: CaseStore,
    preprocess: Preprocess,
    folder: Path | None,
) -> tuple[Config, int | None]:
    """The configuration with `iterations: measured` replaced by numbers, and the radius in pixels that they follow.

    cases: the training part, whose masks are measured on the grid of the network. folder: where radii are kept for runs
    on the same masks; None measures again. The radius is None if no term asks for it.
    """
    measured = [term for term in config.loss if term.get("iterations") == "measured"]
    if not measured:
        return config, None
    radii = _radii(config, labels, cases, store, preprocess, folder)
    numbers = [_iterations(term, labels, radii) if term in measured else None for term in config.loss]
    terms = [
        term if number is None else {**term, "iterations": number}
        for term, number in zip(config.loss, numbers, strict=True)
    ]
    return replace(config, loss=tuple(terms)), max(number for number in numbers if number is not None) + 1


def _iterations(term: Mapping[str, Any], labels: Labels, radii: np.ndarray) -> int:
    (built,) = build_loss(dict(term), labels, {"radius": radii}).members
    return built.iterations  # pyright: ignore[reportReturnType]


def _radii(
    config: Config, labels: Labels, cases: Sequence[Case], store: CaseStore, preprocess: Preprocess, folder: Path | None
) -> np.ndarray:
    """The largest radius of each class in each case, int64 [cases, K]."""
    spacing = preprocess.spacing
    files = [(case.name, file_stamps(case)) for case in cases]
    content = [config.labels.model_dump(), plain_named(config.data), None if spacing is None else list(spacing), files]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    file = None if folder is None else folder / f"radii-{digest}.json"
    if file is not None and file.is_file():
        return np.array(json.loads(file.read_text()), dtype=np.int64)
    masks = (store.prepared(case, preprocess, labels, locate=None).mask[...] for case in cases)
    radii = class_radii(masks, labels)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(radii.tolist()))
    return radii
