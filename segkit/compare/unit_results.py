"""The results of units: whether a unit has finished or failed, its scores, and what is done about damaged files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit.compare.design import Unit
from segkit.compare.score_table import read_rows
from segkit.config import Config
from segkit.evaluation.results import scores_match
from segkit.experiment.build import MODES, build_labels, scoring_of
from segkit.experiment.evaluate_run import lacks_pictures
from segkit.metrics.case_table import add_scores
from segkit.metrics.rules import SEGKIT, Rules
from segkit.training.checkpoint import CheckpointError, NewerFormat
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run
from segkit.utils.console import warn
from segkit.utils.errors import reason as reason_of
from segkit.utils.files import read_json, remove_leftovers
from segkit.utils.leases import Leases
from segkit.utils.text import listed

COLUMNS = ["loss", "seed", "fold"]
FAILED = "failed.json"
RUNS = "runs.csv"  # the finished runs of a comparison with their folders


def finished(unit: Unit) -> bool:
    """Whether the last checkpoint of the complete training has been evaluated with the current scoring."""
    content = unit_scores(unit)
    if not content or lacks_pictures(Run(unit.folder).evaluation(unit.part)):
        return False
    scoring = scoring_of(unit.config, build_labels(unit.config))
    run = Run(unit.folder)
    is_current = scores_match(content, scoring, content.get("step", -1), unit.config.evaluation.threshold)
    return is_current and content.get("checkpoint") == str(run.last.relative_to(run.folder))


def failure(unit: Unit) -> str | None:
    """Why a unit failed; None if it did not fail."""
    reason = failure_record(unit).get("error")
    return None if reason is None else str(reason)


def failure_code(unit: Unit) -> int | None:
    """The exit code that a failed unit would have as a single training; None if it is not recorded."""
    code = failure_record(unit).get("exit_code")
    return code if isinstance(code, int) else None


def failure_record(unit: Unit) -> dict[str, Any]:
    """The record of a failure, with `error`, `exit_code` and `when`; empty if the unit did not fail."""
    return read_json(unit.folder / FAILED, dict, {})


def finished_folders(out: Path) -> int:
    """Number of evaluated runs in the folder of a comparison, of any design."""
    return len({file.parents[2] for file in (out / "units").glob("*/evaluation/*/scores.json")})


def unit_rows(unit: Unit, metric: str) -> pd.DataFrame:
    """The rows of a finished unit in the long table, scored by the rules of the comparison.

    The unit's own report may use other rules.
    """
    folder = Run(unit.folder).evaluation(unit.part)
    table = read_rows(folder / "cases.csv")
    rules = rules_of(unit.config)
    table = add_scores(table, tuple(dict.fromkeys(("dice", "iou", metric))), rules).assign(rules=rules.id)
    for position, (name, value) in enumerate(zip(COLUMNS, (unit.loss, unit.seed, unit.fold), strict=True)):
        table.insert(position, name, value)
    return table


def runs_table(units: Sequence[Unit], out: Path) -> pd.DataFrame:
    """The runs of a comparison: loss, seed, fold, and the run folder, relative to the folder of the comparison."""
    rows = [(unit.loss, unit.seed, unit.fold, unit.folder.relative_to(out).as_posix()) for unit in units]
    return pd.DataFrame(rows, columns=pd.Index([*COLUMNS, "folder"]))


def unit_scores(unit: Unit) -> dict[str, Any]:
    """The contents of scores.json of a finished unit; empty if it does not exist or is damaged."""
    return read_json(Run(unit.folder).evaluation(unit.part) / "scores.json", dict, {})


def is_complete(unit: Unit, records: Sequence[dict[str, Any]]) -> bool:
    """Whether the log of a finished unit reaches its last step."""
    steps = [record["step"] for record in records if record["kind"] == "step"]
    return bool(steps) and steps[-1] == unit_scores(unit)["step"]


def rules_of(config: Config) -> Rules:
    """The rules by which all units of a comparison are scored.

    These are segkit's rules, by which a missed structure counts, with the distance settings and the excluded classes of
    the configuration.
    """
    configured = scoring_of(config, build_labels(config)).rules
    modes = {name: getattr(configured, name) for name in MODES}
    return replace(SEGKIT, exclude_classes=tuple(config.evaluation.exclude_classes), **modes)


def foreground_classes(config: Config) -> list[str]:
    """The names of the foreground classes that are not excluded."""
    labels, excluded = build_labels(config), config.evaluation.exclude_classes
    names = [labels.channel_names[channel] for channel in labels.foreground]
    return [name for name in names if name not in excluded]


# --- damaged files ---------------------------------------------------------------------------------------------------


def repair(units: Sequence[Unit], console: Console) -> None:
    """Find units whose results are damaged, name them, and have what is damaged made again.

    A damaged table or scores.json is made again by an evaluation, a damaged checkpoint by a training.
    """
    leases = Leases()
    for unit in units:
        for folder in (unit.folder, unit.folder / "checkpoints", Run(unit.folder).evaluation(unit.part)):
            remove_leftovers(folder)
        if not _evaluation(unit, "scores.json").exists():
            continue
        with leases.acquire(unit.folder) as acquired:
            if acquired and (damage := _damage(unit)) is not None:
                warn(f"{unit.name}: {damage}; it is made again", console)
                _evaluation(unit, "scores.json").unlink()
                remove_damaged_checkpoint(unit, console)
            elif acquired and finished(unit):  # it may have failed after its scores were written
                (unit.folder / FAILED).unlink(missing_ok=True)


def _evaluation(unit: Unit, name: str) -> Path:
    """A file of the evaluation of a unit."""
    return Run(unit.folder).evaluation(unit.part) / name


def _damage(unit: Unit) -> str | None:
    """What is damaged in the results of an evaluated unit; None if nothing is."""
    scores = unit_scores(unit)
    if not {"step", "checkpoint", "rules", "metrics"} <= scores.keys():
        return f"{_evaluation(unit, 'scores.json')} is damaged"
    try:
        table = read_rows(_evaluation(unit, "cases.csv"))
        add_scores(table, ("dice", "iou"), rules_of(unit.config))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_evaluation(unit, 'cases.csv')} is damaged ({reason_of(error)})"
    labels = build_labels(unit.config)
    classes = [name for name in labels.channel_names if name not in unit.config.evaluation.exclude_classes]
    expected = {(case, name) for case in unit.cases for name in classes}
    rows = list(zip(table["case"], table["class"], strict=True))
    if len(rows) != len(expected) or set(rows) != expected:
        missing = [f"{case} ({name})" for case, name in sorted(expected - set(rows))]
        shown = f"; missing: {listed(missing)}" if missing else ""
        return f"{_evaluation(unit, 'cases.csv')} does not have one row for each case and class{shown}"
    return None if _readable(Run(unit.folder).last) else f"{Run(unit.folder).last} is damaged or missing"


def remove_damaged_checkpoint(unit: Unit, console: Console) -> None:
    """Remove a checkpoint that cannot be read, so that the unit is trained again."""
    last = Run(unit.folder).last
    if last.exists() and not _readable(last):
        warn(f"{unit.name}: {last} is damaged; the unit is trained again", console)
        last.unlink()


def _readable(file: Path) -> bool:
    """Whether a checkpoint can be read. One of a newer version is not damaged."""
    try:
        return bool(load_checkpoint(file))
    except NewerFormat:
        return True
    except CheckpointError:
        return False
