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

from segkit import assemble, judging, workflow
from segkit import evaluate as evaluation
from segkit.compare.aggregation import run_scores
from segkit.compare.claims import Claims
from segkit.compare.long_table import METRICS, read_rows, read_scores
from segkit.compare.plan import SWEEP_SEED, Design, Unit, unit_folder, unit_overrides
from segkit.config import Config, ConfigError
from segkit.data.cases import Source, data_digest
from segkit.metrics.policies import SEGKIT, Rules
from segkit.metrics.table import scored
from segkit.runs import Run, replace_text
from segkit.stopping import Diverged

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
        source = assemble.build_source(base, assemble.build_labels(base))
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


def make_sweep(comparison: Comparison, *, judged: str) -> list[Unit]:
    """One run for each loss and learning rate, on the first fold, judged on the validation part.

    judged: the part that the comparison itself is judged on, which has to be another one.
    """
    design = comparison.design
    if design.sweep is None:
        return []
    if judged != "test":
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation part, which judges here too ({judged}); use a "
            "split with a test part, or comparison.folds"
        )
    (repeat, fold), units = _folds(design)[0], []
    for loss in design.losses:
        for rate in design.sweep:
            given = unit_overrides(design, comparison.base, loss, SWEEP_SEED, repeat, fold, comparison.cache)
            given += [f"optimizer.lr={rate!r}", 'evaluation.split="validation"', "evaluation.overlays=false"]
            units.append(replace(_unit(comparison, given, loss, SWEEP_SEED, 0, "sweep"), lr=rate))
    return units


def _folds(design: Design) -> list[tuple[int, int | None]]:
    if design.folds is None:
        return [(0, None)]
    return [(repeat, fold) for repeat in range(design.repeats) for fold in range(design.folds)]


def _unit(comparison: Comparison, given: Sequence[str], loss: str, seed: int, fold: int, kind: str) -> Unit:
    config = assemble.read(comparison.path, [*comparison.overrides, *given])
    split = assemble.split_of(config, comparison.source)
    part = judging.evaluated_part(config, split)
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
                workflow.run_experiment(unit.config, Run(unit.folder), resume=True, console=console)
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
    scoring = assemble.scoring_of(unit.config, assemble.build_labels(unit.config))
    whole = evaluation.is_of(content, scoring, content["step"])
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


def choose_rates(tried: pd.DataFrame, metric: str) -> dict[str, float]:
    """For each loss, the learning rate that did best on the validation part; none where no trial came to an end. tried:
    what `tried_rates` gives."""
    signed = tried.assign(score=METRICS[metric].sign * tried["score"].fillna(-METRICS[metric].sign * math.inf))
    best: Any = signed.sort_values("score", ascending=False, kind="stable").drop_duplicates("loss")
    return dict(zip(best["loss"].tolist(), best["rate"].tolist(), strict=True))


def tried_rates(trials: Sequence[Unit], design: Design) -> pd.DataFrame:
    """The score of each loss with each learning rate: loss, rate, score, and the cases that judged. All trials are
    judged on the same cases, as all runs of the comparison are."""
    done = [unit for unit in trials if finished(unit)]
    columns = ["loss", "rate", "score", "cases"]
    if not done:
        return pd.DataFrame(columns=columns)
    rows = pd.concat(
        [unit_rows(unit, design.metric).assign(seed=place) for place, unit in enumerate(done)], ignore_index=True
    )
    classes = foreground_of(done[0].config)
    if rows.loc[rows["class"].isin(classes), design.metric].isna().all():
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation part, but none of its cases has a value of "
            f"{design.metric}: {', '.join(classes)} is in no reference and in no prediction; use another split, or "
            "leave the sweep out"
        )
    scores = read_scores(rows, design.metric, classes, "right", design.aggregation)
    of_run = dict(zip(scores.runs["seed"].tolist(), run_scores(scores).tolist(), strict=True))
    found = [(unit.loss, unit.lr, of_run[place], len(scores.cases)) for place, unit in enumerate(done)]
    return pd.DataFrame(found, columns=columns)


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
    measured = assemble.scoring_of(config, assemble.build_labels(config)).rules
    modes = {name: getattr(measured, name) for name in assemble.MODES}
    return replace(SEGKIT, exclude_classes=tuple(config.evaluation.exclude_classes), **modes)


def foreground_of(config: Config) -> list[str]:
    labels, excluded = assemble.build_labels(config), config.evaluation.exclude_classes
    names = [labels.channel_names[channel] for channel in labels.foreground]
    return [name for name in names if name not in excluded]
