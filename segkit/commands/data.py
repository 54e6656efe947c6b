"""The verbs `segkit data ...`: look at a data set before anything is trained on it."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit.config import Config, ConfigError
from segkit.config.commented_yaml import commented_yaml
from segkit.data import SOURCES
from segkit.data.cases import Case, Source, spread
from segkit.data.inspection import Classes, Layout, find_layout, survey, unused
from segkit.data.inspection.checks import Facts, Finding, class_table, examine_all, find, split_of
from segkit.data.sampling import Key
from segkit.data.splits import PARTS
from segkit.experiment.build import (
    build_augment_from,
    build_data,
    build_labels,
    build_source,
    load_config,
    padding_multiple,
    split_cases,
    with_data,
)
from segkit.experiment.build_training import training_set
from segkit.experiment.planning import Proposal, propose, take_fingerprint
from segkit.experiment.preflight import mirror_warnings
from segkit.labels import Labels
from segkit.report.console_data import print_check
from segkit.report.contact_sheet import contact_sheet
from segkit.training.step_logger import progress_bar
from segkit.utils.errors import DataError
from segkit.utils.files import replace_text

FOLDS = 5
NAMES_HINT = [
    "names in the order of their numbers: give them those that they have for you;",
    "the one that is called background counts in no mean over classes",
]


class DataFaulty(DataError):
    """The check of a data set found errors."""


def check(
    path: Path, overrides: Sequence[str], *, workers: int | None, written: Path | None, console: Console
) -> dict[str, Any]:
    """Read every case of a configuration once, print what is wrong with them, and write it to a JSON file.

    Raises DataFaulty if there are errors, once all is told.
    """
    config = load_config(path, overrides)
    labels = build_labels(config)
    source, found = _found(config, labels)
    facts = []
    with progress_bar(console) as progress:
        task = progress.add_task("reading", total=len(source.cases), note="")
        for one in examine_all(source, labels, workers or os.cpu_count() or 1):
            facts.append(one)
            progress.update(task, advance=1)
    facts.sort(key=lambda one: one.case)
    split, refused = split_of(lambda: split_cases(config, source))
    found += [*refused, *find(facts, source.cases, split, labels), *_mirrored(config, facts)]
    result = {
        "cases": len(source.cases),
        "groups": len({case.group for case in source.cases}),
        "read": sum(not one.errors for one in facts),
        "split": None if split is None else split.content_hash,
        "parts": {} if split is None else {part: len(getattr(split, part)) for part in PARTS},
        "classes": class_table(facts, labels),
        "findings": [asdict(finding) for finding in found],
    }
    if written is not None:
        written.parent.mkdir(parents=True, exist_ok=True)
        replace_text(written, json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_check(result, console)
    errors = sum(finding.level == "error" for finding in found)
    if errors:
        raise DataFaulty(f"{errors} errors in the data of {path}")
    return result


def _found(config: Config, labels: Labels) -> tuple[Source, list[Finding]]:
    """The source; files without partner are told, and what is left is looked at all the same."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return build_source(config, labels), []
        except DataError as error:
            if config.data.args.get("unpaired") != "refuse":
                raise
            finding = Finding("error", str(error))
            return build_source(with_data(config, unpaired="skip"), labels), [finding]


def check_folder(root: Path, *, workers: int | None, written: Path | None, console: Console) -> dict[str, Any]:
    """Check a folder by the layout and the classes that `inspect` finds in it."""
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "segkit.yaml"
        inspect(root, config, memory=4.0, console=console)
        try:
            return check(config, [], workers=workers, written=written, console=console)
        except DataFaulty as error:
            raise DataFaulty(str(error).replace(str(config), str(root))) from error


def _mirrored(config: Config, facts: Sequence[Facts]) -> list[Finding]:
    dims = next((len(one.shape) - 1 for one in facts if one.shape), 2)
    return [Finding("warning", text) for text in mirror_warnings(config.labels.names, config.augment, dims)]


def inspect(root: Path, written: Path, *, memory: float, console: Console) -> None:
    """Say which layout and which classes a folder has, and why, and write a configuration that trains on it.

    memory: GB that a training step may take. Raises DataError for a folder of no known layout, ConfigError if there is
    a file already.
    """
    _check_new(written)
    root = Path(os.path.abspath(root))  # paths are written for the folder of the configuration
    layout = find_layout(root)
    classes = None if layout.labels is not None else survey(layout.masks)
    named = (layout.labels or {}) if classes is None else classes.labels
    labels = Labels(**named)
    codes = {} if classes is None else classes.options
    if not layout.rows:
        _inspected(root, layout, {**layout.options, **codes}, classes, labels, written, memory, console)
        return
    table = _write_table(layout, written)
    try:
        _inspected(root, layout, {"file": table, **layout.options, **codes}, classes, labels, written, memory, console)
    except BaseException:
        table.unlink()
        raise


def _inspected(
    root: Path,
    layout: Layout,
    options: dict[str, Any],
    classes: Classes | None,
    labels: Labels,
    written: Path,
    memory: float,
    console: Console,
) -> None:
    """Say what was found, and write the configuration."""
    named = (layout.labels or {}) if classes is None else classes.labels
    source = SOURCES[layout.source](labels=labels, **options)
    others = unused(root, source.cases)
    why = [*layout.why, *([] if classes is None else classes.why)]
    if others:
        shown = ", ".join(str(path.relative_to(root)) for path in others[:3])
        why.append(f"{len(others)} other images below {root.name} are in no case, such as {shown}")
    console.print(f"{root}: layout {layout.source}, {len(source.cases)} cases", markup=False, highlight=False)
    for reason in why:
        console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    data = {"name": layout.source, **_below(options, written.parent)}
    own = {"labels": named, "data": data, "split": _split(source.cases, given=layout.split)}
    reasons = {
        "labels": NAMES_HINT if classes is not None else [],
        "data": [*why, *_group_hint(source.cases)],
    }
    _write(written, own, reasons, source, labels, memory, console)


def plan(path: Path, overrides: Sequence[str], written: Path, *, memory: float, console: Console) -> None:
    """Write a configuration for the data of another one, with the arithmetic that led to each value as comments."""
    _check_new(written)
    config = load_config(path, overrides)
    labels = build_labels(config)
    source = build_source(config, labels)
    content = config.to_dict()
    own = {
        key: {option: value for option, value in content[key].items() if value is not None}
        for key in ("labels", "data", "split")
    }
    own["data"] = _below(own["data"], written.parent)
    _write(written, own, {}, source, labels, memory, console)


def preview(path: Path, overrides: Sequence[str], written: Path, *, cases: int, samples: int, console: Console) -> None:
    """Write a sheet with training cases as stored, and beside each what the network is shown of it in the first epochs.

    cases: how many, from all over the training part. samples: of each.
    """
    config = load_config(path, [*overrides, "loader.cache=none"])
    labels = build_labels(config)
    data = build_data(config, labels, multiple=padding_multiple(config, labels))
    augment = build_augment_from(config, labels)
    training = training_set(config, data, augment)
    rows = []
    for number in spread(range(len(training)), cases):
        raw = data.source.read(training.cases[number])
        assert raw.mask is not None
        drawn = [training[Key(epoch, number, number)] for epoch in range(samples)]
        pieces = [(sample["image"].numpy(), sample["mask"].numpy()) for sample in drawn]
        rows.append((training.cases[number].name, [(raw.image, raw.mask), *pieces]))
    named = ", ".join(one.name for one in config.augment.transforms) or "no augmentation"
    contact_sheet(rows, labels, written, f"{config.name}: as stored, then {samples} samples of each: {named}")
    console.print(f"written to {written}", markup=False, highlight=False, soft_wrap=True)


def _write_table(layout: Layout, written: Path) -> Path:
    """The cases of a layout that no source takes as it is, beside the configuration."""
    file = written.with_name(f"{written.stem}_cases.csv").absolute()
    _check_new(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, pd.DataFrame(layout.rows).to_csv(index=False))
    return file


def _check_new(written: Path) -> None:
    if written.exists():
        raise ConfigError(f"{written} is there already; give another name with --out, or move it away")


def _write(
    written: Path,
    own: dict[str, Any],
    reasons: dict[str, list[str]],
    source: Source,
    labels: Labels,
    memory: float,
    console: Console,
) -> None:
    found = take_fingerprint(source, labels)
    proposal: Proposal = propose(found, labels, memory * 1e9)
    order = ("preprocess", "augment", "sampling", "loader", "model", "loss", "optimizer", "schedule", "train")
    sections = {"name": written.stem, **own, **{key: proposal.sections[key] for key in order}}
    top = [
        f"by `segkit data`, from {found.read} of {found.cases} cases; every value is a proposal, to be changed",
        f"look at the data: segkit data check --config {written.name}",
        f"train:            segkit train --config {written.name}",
    ]
    if found.refused:
        console.print(
            f"  {found.refused} of {found.refused + found.read} cases cannot be read; segkit data check says why",
            style="yellow",
            highlight=False,
        )
    written.parent.mkdir(parents=True, exist_ok=True)
    replace_text(written, commented_yaml(sections, {**reasons, **proposal.reasons}, top))
    load_config(written)
    console.print(f"written to {written}; next:", markup=False, highlight=False)
    console.print(
        f"  segkit data check --config {written}\n  segkit train --config {written}", markup=False, highlight=False
    )


def _split(cases: Sequence[Case], *, given: bool) -> dict[str, Any]:
    if given:
        return {"name": "source"}
    groups = len({case.group for case in cases})
    if groups < 2:
        raise DataError(f"expected at least two cases to train and to validate on, got {groups}")
    return {"name": "kfold", "folds": min(FOLDS, groups), "fold": 0, "seed": 0}


def _group_hint(cases: Sequence[Case]) -> list[str]:
    if len({case.group for case in cases}) < len(cases):
        return []
    return ["if several cases are of one patient or place, say so with `group`, a regular expression of their names"]


def _below(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options with paths as text, relative to a folder where they lie in it or beside it."""

    def text(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: text(one) for key, one in value.items()}
        if isinstance(value, (Path, str)) and Path(value).is_absolute():
            relative = os.path.relpath(value, folder.resolve())
            return str(value) if relative.startswith(os.path.join("..", "..")) else relative
        return str(value) if isinstance(value, Path) else value

    return {key: text(value) for key, value in options.items()}
