"""The units of a comparison: made from the design, trained one by one, and what has become of each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit.compare.design import Design, Unit, unit_folder, unit_overrides
from segkit.compare.leases import Claims
from segkit.compare.score_table import read_rows
from segkit.config import Config, ConfigError
from segkit.data.cases import Source, data_digest
from segkit.evaluation.results import scores_match
from segkit.experiment.build import MODES, build_labels, build_source, load_config, scoring_of, split_cases
from segkit.experiment.evaluate_run import evaluated_part
from segkit.experiment.runner import run_experiment
from segkit.metrics.case_table import scored
from segkit.metrics.rules import SEGKIT, Rules
from segkit.training.run_folder import Run
from segkit.training.stopping import Diverged
from segkit.utils.files import replace_text

COLUMNS = ["loss", "seed", "fold"]
FAILED, ATTEMPTS = "failed.json", "attempts.json"
DEATHS = 2  # of the process that trains a unit, after which it counts as failed


@dataclass(frozen=True)
class Comparison:
    """What all units are made from. base: the configuration without what tells units apart. digest: of the data."""

    path: Path
    overrides: Sequence[str]
    design: Design
    base: Config
    out: Path
    source: Source
    digest: str

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str], design: Design, base: Config, out: Path) -> Comparison:
        source = build_source(base, build_labels(base))
        return cls(path, overrides, design, base, out.absolute(), source, data_digest(source.cases))

    @property
    def cache(self) -> Path:
        """Where units keep the cases that they prepare."""
        return self.out / "cache"


def make_units(comparison: Comparison, rates: Mapping[str, float] | None = None) -> list[Unit]:
    """Every loss with every seed and fold: these go round before losses do, so that a part is a fair comparison.

    rates: the learning rate of each loss, where they were chosen; a loss for which none was is left out. Raises
    ConfigError if the configuration does not fit one of the losses, before anything is trained.
    """
    design, units = comparison.design, []
    for seed in design.seeds:
        for repeat, fold in _folds(design):
            for loss in design.losses:
                if rates is not None and loss not in rates:
                    continue
                own = design.seed_of(loss, seed)
                given = unit_overrides(design, comparison.base, loss, own, repeat, fold, comparison.cache)
                if rates is not None:
                    given.append(f"optimizer.lr={rates[loss]!r}")
                units.append(_unit(comparison, given, loss, own, repeat * (design.folds or 1) + (fold or 0), "units"))
    if not design.folds:
        units = [replace(unit, fold=int(unit.config.split.args.get("fold", 0))) for unit in units]
    return units


def _folds(design: Design) -> list[tuple[int, int | None]]:
    if design.folds is None:
        return [(0, None)]
    return [(repeat, fold) for repeat in range(design.repeats) for fold in range(design.folds)]


def _unit(comparison: Comparison, given: Sequence[str], loss: str, seed: int, fold: int, kind: str) -> Unit:
    config = load_config(comparison.path, [*comparison.overrides, *given])
    split = split_cases(config, comparison.source)
    part = evaluated_part(config, split)
    folder = unit_folder(comparison.out, loss, config, f"{split.content_hash} {comparison.digest}", kind)
    return Unit(loss, seed, fold, part, config, folder)


def check_judged(units: Sequence[Unit]) -> None:
    """Raises ConfigError where the training itself follows the cases that judge it."""
    for unit in units:
        patience, plateau = unit.config.train.patience is not None, unit.config.schedule.name == "plateau"
        if unit.part == "validation" and (patience or plateau):
            raise ConfigError(
                f"{'train.patience' if patience else 'schedule.name: plateau'} follows the scores of the validation "
                "part, which judges the losses here; leave it out, or use a split with a test part"
            )


def config_of(units: Sequence[Unit], loss: str) -> Config:
    return next(unit.config for unit in units if unit.loss == loss)


# --- training one -----------------------------------------------------------------------------------------------------


def train_unit(unit: Unit, claims: Claims, since: float, console: Console) -> bool:
    """Train a unit, unless it is finished, has failed since the command was given, or another process is at it, which
    is what False says. How it failed is written into its folder; a unit whose process died again and again has."""
    if _settled(unit, since):
        return True
    with claims.claimed(unit.folder) as ours:
        if not ours:
            return False
        if _settled(unit, since):
            return True
        console.rule(unit.name)
        (unit.folder / FAILED).unlink(missing_ok=True)
        deaths = len([when for when in _attempts(unit) if when >= since])
        if deaths >= DEATHS:
            _note_failure(unit, f"the process that trains it died {deaths} times; memory is the usual cause")
            return True
        with _attempt(unit):
            try:
                run_experiment(unit.config, Run(unit.folder), resume=True, console=console)
            except (ValueError, RuntimeError, OSError, MemoryError, Diverged) as error:
                _note_failure(unit, str(error) or type(error).__name__)
                console.print(f"failed: {error}", style="red", markup=False)
    return True


@contextmanager
def _attempt(unit: Unit) -> Iterator[None]:
    """A note that is left only where the process dies without a word."""
    unit.folder.mkdir(parents=True, exist_ok=True)
    before = _attempts(unit)
    replace_text(unit.folder / ATTEMPTS, json.dumps([*before, time.time()]))
    try:
        yield
    finally:
        (unit.folder / ATTEMPTS).unlink(missing_ok=True)


def _attempts(unit: Unit) -> list[float]:
    file = unit.folder / ATTEMPTS
    return json.loads(file.read_text()) if file.exists() else []


def _note_failure(unit: Unit, reason: str) -> None:
    unit.folder.mkdir(parents=True, exist_ok=True)
    replace_text(unit.folder / FAILED, json.dumps({"error": reason, "when": time.time()}) + "\n")


def _settled(unit: Unit, since: float) -> bool:
    """Whether there is nothing left to do for a command that was given at a time."""
    return finished(unit) or _failed(unit).get("when", -math.inf) >= since


# --- what has become of them ------------------------------------------------------------------------------------------


def finished(unit: Unit) -> bool:
    """Whether the part that counts was evaluated with the last checkpoint of the whole training."""
    if not (Run(unit.folder).evaluation(unit.part) / "scores.json").is_file():
        return False
    content = unit_scores(unit)
    scoring = scoring_of(unit.config, build_labels(unit.config))
    whole = scores_match(content, scoring, content["step"])
    run = Run(unit.folder)
    return whole and content["checkpoint"] == str(run.last.relative_to(run.folder))


def failure(unit: Unit) -> str | None:
    """Why a unit failed; None if it did not."""
    return _failed(unit).get("error")


def _failed(unit: Unit) -> dict[str, Any]:
    """What was noted of a failure, and when; empty without one."""
    file = unit.folder / FAILED
    return json.loads(file.read_text()) if file.exists() else {}


def finished_folders(out: Path) -> int:
    """How many runs of any design were evaluated in the folder of a comparison."""
    return len({file.parents[2] for file in (out / "units").glob("*/evaluation/*/scores.json")})


def unit_rows(unit: Unit, metric: str) -> pd.DataFrame:
    """The rows of a finished unit, scored by the one rule of the comparison, whatever the unit itself reports by."""
    folder = Run(unit.folder).evaluation(unit.part)
    table = read_rows(folder / "cases.csv")
    rules = rules_of(unit.config)
    table = scored(table, tuple(dict.fromkeys(("dice", "iou", metric))), rules).assign(rules=rules.id)
    for place, (name, value) in enumerate(zip(COLUMNS, (unit.loss, unit.seed, unit.fold), strict=True)):
        table.insert(place, name, value)
    return table


def unit_scores(unit: Unit) -> dict[str, Any]:
    return json.loads((Run(unit.folder).evaluation(unit.part) / "scores.json").read_text())


def rules_of(config: Config) -> Rules:
    """The rules that all units of a comparison are scored by: segkit's, under which a missed structure counts, with the
    distances as they were measured, and without the classes that are left out."""
    measured = scoring_of(config, build_labels(config)).rules
    modes = {name: getattr(measured, name) for name in MODES}
    return replace(SEGKIT, exclude_classes=tuple(config.evaluation.exclude_classes), **modes)


def foreground_of(config: Config) -> list[str]:
    labels, excluded = build_labels(config), config.evaluation.exclude_classes
    names = [labels.channel_names[channel] for channel in labels.foreground]
    return [name for name in names if name not in excluded]
