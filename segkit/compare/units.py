"""Units of a comparison: created from the design, and trained one at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from segkit.compare.design import Design, Unit, latest_plan, unit_folder, unit_overrides
from segkit.compare.fixed_at_start import digests_of_weights, fixed_precision
from segkit.compare.unit_results import FAILED, failure_record, finished, remove_damaged_checkpoint
from segkit.compare.variance_models import MIN_GROUPS
from segkit.config import Config, ConfigError
from segkit.data.cases import Source, data_digest
from segkit.experiment.build import build_labels, build_source, load_config, split_cases
from segkit.experiment.evaluate_run import evaluated_part
from segkit.experiment.plugins import plugin_hashes
from segkit.experiment.runner import run_experiment
from segkit.training.run_folder import Run
from segkit.training.stopping import Interrupted
from segkit.utils.console import warn
from segkit.utils.exit_codes import OUT_OF_MEMORY, describe, exit_code
from segkit.utils.files import read_json, replace_text
from segkit.utils.leases import Leases

ATTEMPTS = "attempts.json"
MAX_DEATHS = 2  # of the process that trains a unit, after which the unit counts as failed


@dataclass(frozen=True)
class Comparison:
    """The inputs from which all units are created.

    Args:
        path: The YAML file of the experiment.
        overrides: Overrides of the command line, `key=value`.
        design: What is compared.
        base: The configuration before the settings of a unit are applied.
        out: The folder of the comparison.
        source: The data source.
        digest: The digest of the data.
        initial_weights: Digests of the files of initial weights, see `digests_of_weights`.
    """

    path: Path
    overrides: Sequence[str]
    design: Design
    base: Config
    out: Path
    source: Source
    digest: str
    initial_weights: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str], design: Design, base: Config, out: Path) -> Comparison:
        """Fix what the configuration leaves to the machine.

        Raises CheckpointError for initial weights that are missing.
        """
        plan = latest_plan(out)
        fixed = fixed_precision(base, plan)
        overrides = [*overrides, *([] if fixed is base else [f"train.precision={fixed.train.precision}"])]
        source, weights = build_source(fixed, build_labels(fixed)), digests_of_weights(fixed, plan)
        return cls(path, overrides, design, fixed, out.absolute(), source, _digest(fixed, source), weights)

    @property
    def content(self) -> str:
        """What identifies the content of the files that units are made from."""
        weights = json.dumps(dict(self.initial_weights), sort_keys=True) if self.initial_weights else ""
        return f"{self.digest} {weights}".rstrip()

    @property
    def cache(self) -> Path:
        """The folder in which all units cache prepared cases."""
        return self.out / "cache"


def _digest(base: Config, source: Source) -> str:
    """A digest of the data and of the files of plugins; units made from others are other units."""
    digest = data_digest(source.cases)
    return digest if not base.plugins else f"{digest} {json.dumps(plugin_hashes(base.plugins), sort_keys=True)}"


def make_units(comparison: Comparison, rates: Mapping[str, float] | None = None) -> list[Unit]:
    """One unit for each loss, seed and fold.

    Losses vary fastest, so a comparison that is stopped early has about equally many runs of each loss.

    Args:
        comparison: The inputs.
        rates: The learning rates that a sweep chose; losses without a rate are left out. None keeps those of the
            configuration.

    Raises:
        ConfigError: The configuration is invalid for one of the losses. It is raised before any training.
    """
    design, units = comparison.design, []
    for seed in design.seeds:
        for repeat, fold in folds_of(design):
            fold_number = repeat * (design.folds or 1) + (fold or 0)
            for loss in design.losses:
                if rates is not None and loss not in rates:
                    continue
                unit_seed = design.seed_of(loss, seed, fold_number)
                overrides = unit_overrides(design, comparison.base, loss, unit_seed, repeat, fold, comparison.cache)
                if rates is not None:
                    overrides.append(f"optimizer.lr={rates[loss]!r}")
                units.append(make_unit(comparison, overrides, loss, unit_seed, fold_number, "units"))
    if not design.folds:
        units = [replace(unit, fold=int(unit.config.split.args.get("fold", 0))) for unit in units]
    return units


def folds_of(design: Design) -> list[tuple[int, int | None]]:
    """The pairs (repeat, fold) of a design; the fold is None without cross-validation."""
    if design.folds is None:
        return [(0, None)]
    return [(repeat, fold) for repeat in range(design.repeats) for fold in range(design.folds)]


def make_unit(comparison: Comparison, overrides: Sequence[str], loss: str, seed: int, fold: int, kind: str) -> Unit:
    """A unit with the overrides that distinguish it, in the subfolder `kind` of the comparison."""
    config = load_config(comparison.path, [*comparison.overrides, *overrides])
    split = split_cases(config, comparison.source)
    part = evaluated_part(config, split)
    folder = unit_folder(comparison.out, loss, config, f"{split.content_hash} {comparison.content}", kind)
    return Unit(loss, seed, fold, part, config, folder, split)


def check_evaluation_cases(units: Sequence[Unit]) -> None:
    """Raise ConfigError if training uses scores of the cases on which the losses are evaluated."""
    for unit in units:
        patience, plateau = unit.config.train.patience is not None, unit.config.schedule.name == "plateau"
        if unit.part == "validation" and (patience or plateau):
            raise ConfigError(
                f"{'train.patience' if patience else 'schedule.name: plateau'} uses scores of the validation set, on "
                "which the losses are evaluated here; remove it, or use a split with a test set"
            )


def few_groups(comparison: Comparison, units: Sequence[Unit]) -> list[str]:
    """Whether there are too few groups of cases for conclusions about new cases, which is known before any training."""
    if comparison.design.folds:
        return []
    group_of, cases = {case.name: case.group for case in comparison.source.cases}, units[0].cases
    groups = len({group_of[case] for case in cases})
    if groups >= MIN_GROUPS:
        return []
    return [
        f"the losses are evaluated on {len(cases)} cases in {groups} groups ({units[0].part}): with fewer than "
        f"{MIN_GROUPS} groups, such as patients, conclusions apply to these cases only; comparison.folds (--folds) "
        f"evaluates all {len(group_of)} cases"
    ]


def config_of(units: Sequence[Unit], loss: str) -> Config:
    """The configuration of the first unit of a loss."""
    return next(unit.config for unit in units if unit.loss == loss)


# --- training --------------------------------------------------------------------------------------------------------


def train_unit(unit: Unit, leases: Leases, since: float, console: Console) -> bool:
    """Train a unit, unless it has finished, has failed since the command started, or is trained by another process.

    A failure is written to the folder of the unit. A unit also counts as failed once its process has died `MAX_DEATHS`
    times.

    Args:
        unit: The unit to train.
        leases: The leases of this process.
        since: When the command started, in seconds since the epoch.
        console: Receives the output of the training.

    Returns:
        False if another process is training the unit, else True.
    """
    if _settled(unit, since):
        return True
    with leases.acquire(unit.folder) as acquired:
        if not acquired:
            return False
        if _settled(unit, since):
            return True
        console.rule(unit.name)
        (unit.folder / FAILED).unlink(missing_ok=True)
        deaths = len([when for when in _attempts(unit) if when >= since])
        if deaths >= MAX_DEATHS:
            reason = f"its training process was killed {deaths} times, most likely for lack of memory"
            _note_failure(unit, reason, OUT_OF_MEMORY)
            return True
        remove_damaged_checkpoint(unit, console)
        with _attempt(unit):
            try:
                run_experiment(unit.config, Run(unit.folder), resume=True, console=console)
            except Interrupted:
                raise
            except Exception as error:  # also of a bug, which need not be one of the other units
                reason = describe(error)
                _note_failure(unit, reason, exit_code(error))
                warn(reason, console, "failed")
    return True


@contextmanager
def _attempt(unit: Unit) -> Iterator[None]:
    """Record the start of a training; the record remains only if the process is killed."""
    unit.folder.mkdir(exist_ok=True)  # not its parents, see `Leases.acquire`
    replace_text(unit.folder / ATTEMPTS, json.dumps([*_attempts(unit), time.time()]))
    try:
        yield
    finally:
        (unit.folder / ATTEMPTS).unlink(missing_ok=True)


def _attempts(unit: Unit) -> list[float]:
    """When the trainings that were killed had started."""
    return [when for when in read_json(unit.folder / ATTEMPTS, list, []) if isinstance(when, (int, float))]


def _note_failure(unit: Unit, reason: str, code: int | None) -> None:
    unit.folder.mkdir(exist_ok=True)  # not its parents, see `Leases.acquire`
    replace_text(unit.folder / FAILED, json.dumps({"error": reason, "exit_code": code, "when": time.time()}) + "\n")


def _settled(unit: Unit, since: float) -> bool:
    """Whether the unit has finished, or has failed since that time."""
    when = failure_record(unit).get("when")
    return finished(unit) or (isinstance(when, (int, float)) and when >= since)
