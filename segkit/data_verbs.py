"""The verbs `segkit data ...`: look at a data set before anything is trained on it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit import assemble
from segkit.config import Config
from segkit.data.cases import DataError, Source
from segkit.data.checks import Finding, class_table, examine_all, find, split_of
from segkit.data.splits import PARTS
from segkit.labels import Labels
from segkit.meter import progress_bar
from segkit.report.data_tables import print_check
from segkit.runs import replace_text


class DataFaulty(DataError):
    """The check of a data set found errors."""


def check(
    path: Path, overrides: Sequence[str], *, workers: int | None, written: Path | None, console: Console
) -> dict[str, Any]:
    """Read every case of a configuration once, print what is wrong with them, and write it to a JSON file.

    Raises DataFaulty if there are errors, once all is told.
    """
    config = assemble.read(path, overrides)
    labels = assemble.build_labels(config)
    source, found = _found(config, labels)
    facts = []
    with progress_bar(console) as progress:
        task = progress.add_task("reading", total=len(source.cases), note="")
        for one in examine_all(source, labels, workers or os.cpu_count() or 1):
            facts.append(one)
            progress.update(task, advance=1)
    facts.sort(key=lambda one: one.case)
    split, refused = split_of(lambda: assemble.split_of(config, source))
    found += [*refused, *find(facts, source.cases, split, labels)]
    result = {
        "cases": len(source.cases),
        "groups": len({case.group for case in source.cases}),
        "read": sum(one.error is None for one in facts),
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
            return assemble.build_source(config, labels), []
        except DataError as error:
            if config.data.args.get("unpaired") != "refuse":
                raise
            finding = Finding("error", str(error))
            return assemble.build_source(assemble.with_data(config, unpaired="skip"), labels), [finding]
