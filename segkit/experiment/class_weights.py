"""Class weights computed from the training masks: counted once, cached in a file, and written out as numbers."""

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
    """The class weights of a term, computed from the data. share: the fraction of pixels of each class."""

    term: str
    method: str
    names: Sequence[str]
    share: Sequence[float]
    weights: Sequence[float]


def with_class_weights(
    config: Config, labels: Labels, cases: Sequence[Case], store: CaseStore, folder: Path | None
) -> tuple[Config, list[Weighted]]:
    """The configuration with named class weights replaced by numbers, and a description of them per term.

    cases: the training part. folder: where class counts are cached for runs on the same masks; None counts again.
    """
    methods = [term["class_weights"] for term in config.loss if is_from_class_counts(term.get("class_weights"))]
    if not methods:
        return config, []
    components = any(isinstance(method, Mapping) and method.get("counts") == "components" for method in methods)
    class_counts = _class_counts(config, labels, cases, store, folder, components)
    terms, computed = [], []
    for term in config.loss:
        chosen = term.get("class_weights")
        if chosen is not None and is_from_class_counts(chosen):
            numbers = class_weights(chosen, class_counts, labels.names).tolist()
            term = {**term, "class_weights": numbers}
            computed.append(Weighted(term["name"], _method(chosen), labels.names, _shares(class_counts), numbers))
        terms.append(term)
    return replace(config, loss=tuple(terms)), computed


def _method(chosen: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in chosen.items()) if isinstance(chosen, Mapping) else chosen


def _shares(class_counts: Mapping[str, np.ndarray]) -> list[float]:
    totals = class_counts["pixels"].sum(0)
    return (totals / totals.sum()).tolist()


def _class_counts(
    config: Config, labels: Labels, cases: Sequence[Case], store: CaseStore, folder: Path | None, components: bool
) -> dict[str, np.ndarray]:
    """The class counts of the cases. Counting components takes much longer than pixels, so they have their own file."""
    kind = "components" if components else "pixels"
    # the name of earlier versions, whose files are still valid
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
    """A digest of everything that the class counts depend on: labels, source, cases, and changes of their files."""
    files = [(case.name, file_stamps(case)) for case in cases]
    content = [config.labels.model_dump(), plain_named(config.data), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
