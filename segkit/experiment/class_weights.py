"""Class weights that a configuration leaves to the data: counted once, kept in a file, written out as numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import Config, plain_named
from segkit.data.case_store import CaseStore
from segkit.data.cases import Case, file_stamps
from segkit.data.class_counts import class_counts as pixel_counts
from segkit.data.class_counts import pixel_and_component_counts
from segkit.labels import Labels
from segkit.losses.class_weights import class_weights, is_from_class_counts
from segkit.utils.files import replace_text


@dataclass(frozen=True)
class Weighted:
    """The weights that a term got from the data. share: of the pixels, of each class, by which they were chosen."""

    term: str
    method: str
    names: Sequence[str]
    share: Sequence[float]
    weights: Sequence[float]


def with_class_weights(
    config: Config, labels: Labels, cases: Sequence[Case], store: CaseStore, folder: Path | None
) -> tuple[Config, list[Weighted]]:
    """The configuration with named class weights as lists of numbers, and what they are, a table a term.

    cases: the training part. folder: where the class counts is kept for runs on the same masks; None counts afresh.
    """
    methods = [term["class_weights"] for term in config.loss if is_from_class_counts(term.get("class_weights"))]
    if not methods:
        return config, []
    components = any(isinstance(method, Mapping) and method.get("counts") == "components" for method in methods)
    class_counts = _class_counts(config, labels, cases, store, folder, components)
    terms, found = [], []
    for term in config.loss:
        chosen = term.get("class_weights")
        if chosen is not None and is_from_class_counts(chosen):
            numbers = class_weights(chosen, class_counts, labels.names).tolist()
            term = {**term, "class_weights": numbers}
            found.append(Weighted(term["name"], _method(chosen), labels.names, _shares(class_counts), numbers))
        terms.append(term)
    return replace(config, loss=tuple(terms)), found


def _method(chosen: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in chosen.items()) if isinstance(chosen, Mapping) else chosen


def _shares(class_counts: Mapping[str, np.ndarray]) -> list[float]:
    totals = class_counts["pixels"].sum(0)
    return (totals / totals.sum()).tolist()


def _class_counts(
    config: Config, labels: Labels, cases: Sequence[Case], store: CaseStore, folder: Path | None, components: bool
) -> dict[str, np.ndarray]:
    """The class_counts of the cases; components take far longer to count than pixels, so they have a file of their
    own."""
    kind = "components" if components else "pixels"
    file = None if folder is None else folder / f"census-{kind}-{_digest(config, cases)}.json"
    if file is not None and file.is_file():
        return {name: np.array(rows, dtype=np.int64) for name, rows in json.loads(file.read_text()).items()}
    masks = (mask for case in cases if (mask := store.read(case).mask) is not None)
    counted = pixel_and_component_counts(masks, labels) if components else {"pixels": pixel_counts(masks, labels)}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps({name: rows.tolist() for name, rows in counted.items()}))
    return counted


def _digest(config: Config, cases: Sequence[Case]) -> str:
    """Of all that the class counts depends on: labels, source, cases, and whether their files have changed."""
    files = [(case.name, file_stamps(case)) for case in cases]
    content = [config.labels.model_dump(), plain_named(config.data), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
