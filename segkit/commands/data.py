"""The commands `segkit data ...`, which inspect, check and plan a data set before training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit.config import Config, ConfigError
from segkit.data import SOURCES
from segkit.data.cases import Case, Source, spread
from segkit.data.inspection import Layout, detect_layout, infer_classes, unused_files
from segkit.data.inspection.case_summaries import CaseSummary, examine_all
from segkit.data.inspection.checks import Finding, class_table, find_problems, try_split
from segkit.data.inspection.group_names import GROUP_IN_NAME, groups_in_names
from segkit.data.sampling import Key
from segkit.data.splits import PARTS, Split
from segkit.experiment.augmentation_effect import augmentation_warnings, augmented_pixels, describe_effect
from segkit.experiment.build import (
    ConfigSource,
    build_augment_from,
    build_data,
    build_labels,
    build_source,
    fitted_data,
    load_config,
    padding_multiple,
    split_cases,
    with_data,
)
from segkit.experiment.build_training import training_set
from segkit.experiment.planning import (
    MemoryLimit,
    PlanDevice,
    PlannedNetwork,
    extract_fingerprint,
    memory_limit,
    propose,
)
from segkit.experiment.preflight import mirror_warnings
from segkit.experiment.schema_file import write_config
from segkit.labels import Labels
from segkit.report.console_data import print_check
from segkit.report.contact_sheet import contact_sheet
from segkit.utils.console import warn
from segkit.utils.errors import DataError
from segkit.utils.files import replace_text, temporary_folder
from segkit.utils.progress import tracked

FOLDS = 5
AUGMENTED_CASES, AUGMENTED_SAMPLES = 8, 4  # of which `check` looks at the intensities after augmentation
NO_VALIDATION = (
    "there is no validation part: training runs without validation and without a best checkpoint; "
    "`split: {name: kfold}` makes one"
)
MAX_NAMED = 3  # unused files named on the console
NAMES_HINT = [
    "class names in the order of the class numbers: rename them as you like;",
    "the class named background is excluded from means over classes",
]


class DataCheckFailed(DataError):
    """The check of a data set found errors. results: what `check` returns otherwise."""

    def __init__(self, message: str, results: dict[str, Any]):
        super().__init__(message)
        self.results = results


def check(
    described: ConfigSource,
    overrides: Sequence[str],
    *,
    workers: int | None,
    console: Console,
    name: str | None = None,
) -> dict[str, Any]:
    """Read every case of a configuration once, and print the problems.

    Args:
        described: The configuration, which need not say how to train.
        overrides: Changes to it, `key=value`.
        workers: Processes that read; one per CPU core by default.
        console: Where to print.
        name: What the data are called in the error; by default `described`.

    Returns the numbers of cases, the split, the classes, the effect of augmentation, and the problems. Raises
    DataCheckFailed, after reporting, if there are errors.
    """
    config = load_config(described, overrides, data_only=True)
    labels = build_labels(config)
    name = name or str(described)
    source, findings = _source_and_unpaired(config, labels)
    examined = examine_all(source, labels, workers or os.cpu_count() or 1)
    summaries = list(tracked(examined, "reading", len(source.cases), console))
    summaries.sort(key=lambda summary: summary.name)
    split, split_findings = try_split(lambda: split_cases(config, source))
    findings += split_findings
    findings += find_problems(summaries, source.cases, split, labels)
    findings += _mirror_findings(config, summaries)
    effect, effect_findings = _augmentation_effect(config, labels, source, split, summaries)
    findings += effect_findings
    result = {
        "cases": len(source.cases),
        "groups": len({case.group for case in source.cases}),
        "read": sum(not summary.errors for summary in summaries),
        "split": None if split is None else split.content_hash,
        "parts": {} if split is None else {part: len(getattr(split, part)) for part in PARTS},
        "classes": class_table(summaries, labels),
        "augmentation": effect,
        "findings": [asdict(finding) for finding in findings],
    }
    print_check(result, console)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise DataCheckFailed(f"{errors} {'error' if errors == 1 else 'errors'} in the data of {name}", result)
    return result


def _source_and_unpaired(config: Config, labels: Labels) -> tuple[Source, list[Finding]]:
    """The source, and unpaired files as a finding, so that all other cases can be checked nevertheless."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return build_source(config, labels), []
        except DataError as error:
            if config.data.args.get("unpaired") != "refuse":
                raise
            finding = Finding("error", str(error))
            return build_source(with_data(config, unpaired="skip"), labels), [finding]


def check_folder(root: Path, *, workers: int | None, console: Console) -> dict[str, Any]:
    """Check a folder with the layout and the classes that `inspect` detects. See `check` for the arguments."""
    with temporary_folder() as temporary:
        folder = Path(os.path.abspath(root))
        layout = detect_layout(folder)
        table = _write_table(layout, temporary / "segkit.yaml") if layout.rows else None
        described = _describe(folder, layout, table)
        _print_layout(root, layout, described, console)
        config = {"name": root.name or "data", **described.sections}
        return check(config, [], workers=workers, console=console, name=str(root))


def _mirror_findings(config: Config, summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Warnings about augmentation that swaps left and right classes."""
    dims = next((len(summary.shape) - 1 for summary in summaries if summary.shape), 2)
    return [Finding("warning", text) for text in mirror_warnings(config.labels.names, config.augment, dims)]


def _augmentation_effect(
    config: Config, labels: Labels, source: Source, split: Split | None, summaries: Sequence[CaseSummary]
) -> tuple[str, list[Finding]]:
    """What augmentation does to the intensities of some training cases, as text and as warnings."""
    readable = {case.name for case in summaries if not case.errors and case.labelled}
    training = [] if split is None else [name for name in split.train if name in readable]
    if not training or not config.augment.transforms:
        return "", []
    some = Split(train=tuple(spread(training, AUGMENTED_CASES)), validation=(), test=())
    without_cache = replace(config, loader=config.loader.model_copy(update={"cache": "none"}))
    try:
        data = fitted_data(without_cache, labels, source, some, multiple=padding_multiple(config, labels))
        pixels = augmented_pixels(without_cache, data, len(some.train), AUGMENTED_SAMPLES)
    except ValueError as error:  # cases that do not fit together have findings of their own
        return "", [Finding("error", f"augmenting a training case fails: {error}")]
    return describe_effect(pixels), [Finding("warning", text) for text in augmentation_warnings(pixels)]


def inspect(
    root: Path,
    written: Path,
    *,
    memory: float | None = None,
    device: PlanDevice | None = None,
    network: PlannedNetwork | None = None,
    console: Console,
) -> None:
    """Print the layout and the classes of a folder with the reasons, and write a configuration that trains on it.

    Args:
        root: The folder.
        written: The configuration to write.
        memory, device: See `segkit.experiment.planning.memory_limit`.
        network: The network to plan; None to choose one.
        console: Where to print.

    Raises DataError for a folder without a known layout, ConfigError if the file to write exists, or the network does
    not fit.
    """
    check_new(written)
    limit = memory_limit(memory, device)
    root = Path(os.path.abspath(root))  # the configuration may be written to another folder
    layout = detect_layout(root)
    table = _write_table(layout, written) if layout.rows else None
    try:
        described = _describe(root, layout, table)
        _print_layout(root, layout, described, console)
        known = {**described.sections, "data": relative_paths(described.sections["data"], written.parent)}
        _write(written, known, described.reasons, described.source, described.labels, (limit, network), console)
    except BaseException:
        if table is not None:
            table.unlink()
        raise


@dataclass(frozen=True)
class _Described:
    """What is known about a folder.

    Attributes:
        sections: The sections `labels`, `data` and `split` of a configuration, with absolute paths.
        labels: The labels.
        source: The data source.
        reasons: Comment lines for the sections.
    """

    sections: dict[str, Any]
    labels: Labels
    source: Source
    reasons: dict[str, list[str]]


def _describe(root: Path, layout: Layout, table: Path | None) -> _Described:
    """The cases and classes of the layout of a folder. table: the table of cases, if one is used."""
    classes = None if layout.labels is not None else infer_classes(layout.masks)
    label_section = (layout.labels or {}) if classes is None else classes.labels
    labels = Labels(**label_section)
    options = {
        **({} if table is None else {"file": table}),
        **layout.options,
        **({} if classes is None else classes.options),
    }
    source = SOURCES[layout.source](labels=labels, **options)
    sections = {
        "labels": label_section,
        "data": {"name": layout.source, **_plain_paths(options)},
        "split": {"name": "source"} if layout.has_split else _kfold_split(source.cases),
    }
    reasons = {
        "labels": NAMES_HINT if classes is not None else [],
        "data": [
            *layout.reasons,
            *([] if classes is None else classes.reasons),
            *_group_hint(source.cases),
            *_unused(root, source.cases),
        ],
    }
    if layout.has_split and not any(case.split == "validation" for case in source.cases):
        reasons["data"].append(NO_VALIDATION)
    return _Described(sections, labels, source, reasons)


def _print_layout(root: Path, layout: Layout, described: _Described, console: Console) -> None:
    """Print the layout of a folder and the reasons."""
    cases = len(described.source.cases)
    console.print(f"{root}: layout {layout.source}, {cases} cases", markup=False, highlight=False)
    for reason in described.reasons["data"]:
        console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)


def _unused(root: Path, cases: Sequence[Case]) -> list[str]:
    """A line about images and masks that belong to no case."""
    unused = unused_files(root, cases)
    if not unused:
        return []
    examples = ", ".join(str(path.relative_to(root)) for path in unused[:MAX_NAMED])
    return [f"{len(unused)} other images below {root.name} belong to no case, such as {examples}"]


def plan(
    path: Path,
    overrides: Sequence[str],
    written: Path,
    *,
    memory: float | None = None,
    device: PlanDevice | None = None,
    network: PlannedNetwork | None = None,
    console: Console,
) -> None:
    """Write a configuration for the data of an existing one, with the reasons for each value as comments.

    Args:
        path: The existing configuration, whose sections `labels`, `data` and `split` are kept.
        overrides: Changes to it, `key=value`.
        written: The configuration to write.
        memory, device: See `segkit.experiment.planning.memory_limit`.
        network: The network to plan; None to choose one.
        console: Where to print.

    Raises ConfigError if the file to write exists, or the network does not fit.
    """
    check_new(written)
    limit = memory_limit(memory, device)
    config = load_config(path, overrides, data_only=True)
    labels = build_labels(config)
    source = build_source(config, labels)
    content = config.to_dict()
    known = {
        key: {option: value for option, value in content[key].items() if value is not None}
        for key in ("labels", "data", "split")
    }
    known["data"] = relative_paths(known["data"], written.parent)
    _write(written, known, {}, source, labels, (limit, network), console)


def preview(path: Path, overrides: Sequence[str], written: Path, *, cases: int, samples: int, console: Console) -> None:
    """Draw training cases as stored, and next to each the augmented samples that the network sees in the first epochs.

    Args:
        path: The configuration.
        overrides: Changes to it, `key=value`.
        written: The image to write.
        cases: Number of cases, evenly spaced in the training part.
        samples: Number of samples per case.
        console: Where to print.
    """
    config = load_config(path, [*overrides, "loader.cache=none"], data_only=True)
    labels = build_labels(config)
    data = build_data(config, labels, multiple=padding_multiple(config, labels))
    training = training_set(config, data, build_augment_from(config, labels))
    rows = []
    for number in spread(range(len(training)), cases):
        raw = data.source.read(training.cases[number])
        assert raw.mask is not None
        augmented = [training[Key(epoch, number, number)] for epoch in range(samples)]
        patches = [(sample["image"].numpy(), sample["mask"].numpy()) for sample in augmented]
        rows.append((training.cases[number].name, [(raw.image, raw.mask), *patches]))
    transforms = ", ".join(transform.name for transform in config.augment.transforms) or "no augmentation"
    pixels = augmented_pixels(config, data, cases, samples)
    title = f"{config.name}: as stored, and {samples} samples of each: {transforms}"
    contact_sheet(rows, labels, written, title, histograms=[(case.before, case.after) for case in pixels])
    console.print(describe_effect(pixels), markup=False, highlight=False, soft_wrap=True)
    for text in augmentation_warnings(pixels):
        warn(text, console)
    console.print(f"written to {written}", markup=False, highlight=False, soft_wrap=True)


def _write_table(layout: Layout, written: Path) -> Path:
    """Write the table of cases next to the configuration, and return its path."""
    file = written.with_name(f"{written.stem}_cases.csv").absolute()
    check_new(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, pd.DataFrame(layout.rows).to_csv(index=False))
    return file


def check_new(written: Path) -> None:
    """Raise ConfigError if a file to write exists."""
    if written.exists():
        raise ConfigError(f"{written} already exists; choose another name with --out, or move it away")


def _write(
    written: Path,
    known: dict[str, Any],
    reasons: dict[str, list[str]],
    source: Source,
    labels: Labels,
    wanted: tuple[MemoryLimit, PlannedNetwork | None],
    console: Console,
) -> None:
    """Plan the remaining sections, and write the configuration.

    Args:
        written: The configuration to write.
        known: Sections that describe the data.
        reasons: Comment lines for them.
        source: The data source.
        labels: The labels.
        wanted: Memory that a training step may use, and the network.
        console: Where to print.
    """
    limit, network = wanted
    fingerprint = extract_fingerprint(source, labels)
    console.print(f"  memory of a training step: {limit.source}", markup=False, highlight=False, soft_wrap=True)
    proposal = propose(fingerprint, labels, limit, network)
    sections = {"name": written.stem, **known, **proposal.sections}
    top = [
        f"written by `segkit data` from {fingerprint.read} of {fingerprint.cases} cases; change any value as needed",
        f"memory of a training step: {limit.source}",
    ]
    if fingerprint.unreadable:
        warn(
            f"{fingerprint.unreadable} of {fingerprint.unreadable + fingerprint.read} cases cannot be read; "
            "segkit data check shows the errors",
            console,
        )
    write_config(written, sections, {**reasons, **proposal.reasons}, top)
    load_config(written)
    console.print(f"written to {written}; next steps:", markup=False, highlight=False)
    console.print(
        f"  segkit data check --config {written}\n  segkit train --config {written}", markup=False, highlight=False
    )


def _kfold_split(cases: Sequence[Case]) -> dict[str, Any]:
    """The section `split` for data without a split of their own. Raises DataError for fewer than two groups."""
    groups = len({case.group for case in cases})
    if groups < 2:
        raise DataError(f"expected at least two groups of cases, for training and for validation, got {groups}")
    return {"name": "kfold", "folds": min(FOLDS, groups), "fold": 0, "seed": 0}


def _group_hint(cases: Sequence[Case]) -> list[str]:
    """A comment about groups, if every case is its own group."""
    if len({case.group for case in cases}) < len(cases):
        return []
    if number := groups_in_names(cases):
        return [f"the names suggest {number} patients or series: if they are, set `group: '{GROUP_IN_NAME}'`"]
    return ["if several cases belong to one patient or site, set `group`, a regular expression for the case names"]


def _plain_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths as text."""
    return {
        key: _plain_paths(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for key, value in options.items()
    }


def relative_paths(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options with paths as strings, relative to a folder if they are below it or below its parent."""

    def as_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_text(item) for key, item in value.items()}
        if isinstance(value, (Path, str)) and Path(value).is_absolute():
            relative = os.path.relpath(value, folder.resolve())
            return str(value) if relative.startswith(os.path.join("..", "..")) else relative
        return str(value) if isinstance(value, Path) else value

    return {key: as_text(value) for key, value in options.items()}
