"""The design of a comparison, recorded in a plan before the first run, and its units, each with its own run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from segkit.compare.aggregation import check_aggregation
from segkit.compare.score_table import lacks_margin, unit_of
from segkit.compare.table_checks import metric_properties
from segkit.config import Config, ConfigError
from segkit.config.schema import leaves
from segkit.utils.files import replace_text

if TYPE_CHECKING:  # an import would bring torch to the analysis of tables
    from segkit.data.splits import Split

RESERVED_KEYS = ("loss", "seed", "run.dir")  # set by the comparison for each unit
REPEATED_SUFFIX, REPEATED_SEED_OFFSET = " (again)", 1000  # label and seeds of the repeated baseline
FOLD_SEED_OFFSET = 10_000  # times the number of the fold: seeds of the runs of a fold
SWEEP_SEED = 500  # of learning-rate trials
PLAN = "plan.json"


@dataclass(frozen=True, eq=False)
class Unit:
    """One training of a comparison.

    Args:
        loss: The label of the loss.
        seed: The seed of the training.
        fold: The number of the fold, counted over all repeats.
        part: The part of the split on which the unit is evaluated.
        config: The complete configuration.
        folder: The run folder.
        split: The division of the cases.
        lr: The learning rate, for a learning-rate trial.
    """

    loss: str
    seed: int
    fold: int
    part: str
    config: Config
    folder: Path
    split: Split
    lr: float | None = None

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of the cases on which the unit is evaluated."""
        return getattr(self.split, self.part)

    @property
    def name(self) -> str:
        """The name of the unit in messages."""
        fold = f", fold {self.fold}" if self.fold or self.config.split.name == "kfold" else ""
        return f"{self.loss}, " + (f"seed {self.seed}{fold}" if self.lr is None else f"learning rate {self.lr:g}")


@dataclass(frozen=True)
class Design:
    """The section `comparison` of a configuration with all defaults filled in.

    `losses` maps each label to a value of the configuration key `loss`; `family` names the pairs that are compared.
    """

    losses: Mapping[str, Any]
    seeds: Sequence[int]
    folds: int | None
    repeats: int
    metric: str
    aggregation: str
    baseline: str | None
    family: Literal["all_pairs", "vs_baseline"]
    margin: float
    steps: int | None
    minutes: float | None
    sweep: Sequence[float] | None
    noise_floor: bool

    @property
    def repeated_baseline(self) -> tuple[str, str] | None:
        """The label of the repeated baseline and the label of the original; None without a noise floor."""
        label = next((label for label in self.losses if label.endswith(REPEATED_SUFFIX)), None)
        return None if label is None else (label, label.removesuffix(REPEATED_SUFFIX))

    @property
    def test_train_ratio(self) -> float | None:
        """Test cases divided by training cases of a fold if the sweep holds out a validation fold, otherwise None."""
        return 1 / (self.folds - 2) if self.folds is not None and self.sweep is not None else None

    def seed_of(self, loss: str, seed: int, fold: int) -> int:
        """The seed of a unit; all losses have the same, but the repeated baseline has seeds of its own."""
        return seed_of_fold(seed + (REPEATED_SEED_OFFSET if loss.endswith(REPEATED_SUFFIX) else 0), fold)

    def to_dict(self) -> dict[str, Any]:
        """The design for plan.json."""
        offset = {} if self.folds is None else {"seeds_of_folds": f"{FOLD_SEED_OFFSET} further for each fold"}
        return {**vars(self), "losses": dict(self.losses), "seeds": list(self.seeds), **offset}


def seed_of_fold(seed: int, fold: int) -> int:
    """The seed of the runs of a fold.

    Folds have seeds of their own: otherwise, what a seed adds to a loss would be in all folds, and the test over folds
    would not see it.
    """
    return seed + FOLD_SEED_OFFSET * fold


def make_design(config: Config) -> Design:
    """Create the design from the section `comparison`.

    Raises:
        ConfigError: A value is invalid or two settings exclude each other.
    """
    section = config.comparison
    losses = _named_losses(section.losses)
    seeds = list(range(section.seeds)) if isinstance(section.seeds, int) else section.seeds
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(
            f"expected comparison.seeds to be a number of seeds or a list of different seeds, got {seeds}"
        )
    try:
        metric_properties(section.metric)
    except ValueError as error:
        raise ConfigError(f"comparison.metric: {error}") from error
    try:
        check_aggregation(section.aggregation, section.metric)
    except ValueError as error:
        raise ConfigError(f"comparison.aggregation: {error}") from error
    if lacks_margin(section.metric, section.margin):
        raise ConfigError(
            f"{section.metric} is in {unit_of(section.metric)}: set comparison.margin (--margin) to the difference in "
            "this unit that is practically equivalent"
        )
    if section.baseline is not None and section.baseline not in losses:
        raise ConfigError(
            f"expected comparison.baseline (--baseline) to be one of {', '.join(losses)}, got {section.baseline}"
        )
    if section.family == "vs_baseline" and section.baseline is None:
        raise ConfigError("comparison.family: vs_baseline needs comparison.baseline")
    if section.repeats > 1 and section.folds is None:
        raise ConfigError("comparison.repeats needs comparison.folds, the number of folds to repeat")
    if section.sweep is not None and section.folds is not None and section.folds < 3:
        raise ConfigError(
            "comparison.sweep needs comparison.folds of at least 3 (one fold for testing, one for choosing the "
            f"learning rate, the others for training), got {section.folds}"
        )
    if section.steps is not None and section.minutes is not None:
        raise ConfigError("expected either comparison.steps or comparison.minutes as the budget, got both")
    if section.noise_floor and max(seeds) >= REPEATED_SEED_OFFSET:
        raise ConfigError(
            f"comparison.noise_floor uses the seeds from {REPEATED_SEED_OFFSET}; choose smaller seeds than {max(seeds)}"
        )
    if section.folds is not None and max(seeds) >= FOLD_SEED_OFFSET:
        raise ConfigError(
            f"comparison.folds uses the seeds from {FOLD_SEED_OFFSET} for further folds; choose smaller seeds than "
            f"{max(seeds)}"
        )
    family = section.family or ("all_pairs" if section.baseline is None else "vs_baseline")
    if section.noise_floor:
        repeated = section.baseline or next(iter(losses))
        losses = {**losses, f"{repeated}{REPEATED_SUFFIX}": losses[repeated]}
    return Design(**section.model_dump() | {"losses": losses, "seeds": seeds, "family": family})


def _named_losses(losses: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The losses by label; losses without a label are labelled with their names."""
    if not losses:
        raise ConfigError("expected losses to compare: --losses a,b or comparison.losses")
    if isinstance(losses, Mapping):
        named = {label.strip(): loss for label, loss in losses.items()}
    else:
        named = {name.strip(): name.strip() for name in losses}
        if len(named) != len(losses):
            raise ConfigError(f"expected different names of losses, separated by commas, got {','.join(losses)}")
    if "" in named or any(label.endswith(REPEATED_SUFFIX) for label in named):
        raise ConfigError(
            f"expected nonempty names of losses that do not end in '{REPEATED_SUFFIX}', got {','.join(named)}"
        )
    return named


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override of a key that the comparison sets itself."""
    for text in overrides:
        key = text.partition("=")[0]
        if key in RESERVED_KEYS or key.startswith("loss."):
            raise ConfigError(f"override '{text}': the comparison sets {key}; use --losses, --seeds and --out")


def unit_overrides(
    design: Design, base: Config, loss: str, seed: int, repeat: int, fold: int | None, cache: Path
) -> list[str]:
    """The overrides that turn the configuration of the comparison into that of a unit.

    Args:
        design: The design of the comparison.
        base: The configuration of the comparison.
        loss: The label of the loss.
        seed: The seed of the unit.
        repeat: The repetition of the k-fold.
        fold: The fold within the repetition; None without cross-validation.
        cache: The folder for prepared cases, which all units share.
    """
    overrides = {"loss": design.losses[loss], "seed": seed, "comparison": {}, "evaluation.calibration": True}
    if fold is not None:
        split_seed = base.split.args.get("seed", 0) if base.split.name == "kfold" else 0
        overrides["split"] = {"name": "kfold", "folds": design.folds, "fold": fold, "seed": split_seed + repeat}
        if design.sweep is not None:  # learning rates are chosen on cases outside the test fold
            overrides["split"] |= {"test_fold": fold, "fold": (fold + 1) % (design.folds or 1)}
    if base.loader.cache_dir is None:
        overrides["loader.cache_dir"] = str(cache)
    if design.steps is not None:
        overrides["train.steps"] = design.steps
    if design.minutes is not None:
        overrides["train.max_minutes"] = design.minutes
    if design.metric not in base.evaluation.metrics:
        overrides["evaluation.metrics"] = [*base.evaluation.metrics, design.metric]
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def unit_folder(out: Path, loss: str, config: Config, cases: str, kind: str = "units") -> Path:
    """The run folder of a unit, whose name contains digests of the configuration and of the cases.

    A different configuration, split or data set therefore gets a different folder.

    Args:
        out: The folder of the comparison.
        loss: The label of the loss.
        config: The configuration of the unit.
        cases: A text that identifies the split and the data.
        kind: The subfolder, `units` or `sweep`.
    """
    name, digest = file_name(loss.replace(REPEATED_SUFFIX, "-again")), hashlib.sha256(cases.encode()).hexdigest()
    return out / kind / f"{name}-seed{config.seed}-{config.digest()}-{digest[:6]}"


def file_name(text: str) -> str:
    """The text with a dash in place of each character that may be invalid in a file name."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "-" for letter in text)


# --- the plan --------------------------------------------------------------------------------------------------------


def write_plan(
    out: Path,
    design: Design,
    base: Config,
    rules: Mapping[str, Any],
    data: str,
    initial_weights: Mapping[str, str],
    finished: int,
) -> dict[str, Any]:
    """Write the plan before the first run, or record how it differs from the plan that exists.

    The report shows each change with the number of units that had finished by then.

    Args:
        out: The folder of the comparison.
        design: The design.
        base: The configuration of the comparison.
        rules: The scoring rules.
        data: The digest of the data.
        initial_weights: The digests of the files of initial weights.
        finished: The number of finished units of any design.

    Returns:
        The plan with all its changes.
    """
    content = {"design": design.to_dict(), "rules": dict(rules), "data": data, "configuration": _configuration(base)}
    if initial_weights:
        content["initial_weights"] = dict(initial_weights)
    content = json.loads(json.dumps(content))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    with FileLock(out / "plan.lock"):
        new = {"format": 1, "written": now, "finished_units": finished, "hash": digest, **content}
        plan = _read_plan(path) if path.exists() else new
        latest = _latest(plan)
        if latest["hash"] != digest:
            known = dict.fromkeys(("initial_weights", *content))  # the former is missing in a plan without them
            before, after = (leaves({key: version.get(key) for key in known}) for version in (latest, content))
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            differences = [f"{key}: {before.get(key)!r} before, {after.get(key)!r} after" for key in keys]
            change = {"when": now, "hash": digest, "finished_units": finished, "differences": differences, **content}
            plan.setdefault("changes", []).append(change)
        plan.setdefault("changes", [])
        replace_text(path, json.dumps(plan, indent=2) + "\n")
    return plan


def latest_plan(out: Path) -> dict[str, Any]:
    """The latest version of the plan in the folder of a comparison; empty before the first start."""
    path = out / PLAN
    return _latest(_read_plan(path)) if path.exists() else {}


def _latest(plan: dict[str, Any]) -> dict[str, Any]:
    return plan["changes"][-1] if plan.get("changes") else plan


def _read_plan(path: Path) -> dict[str, Any]:
    """The plan of an earlier start. Raises ConfigError if it is damaged, because it cannot be made again."""
    try:
        plan = json.loads(path.read_bytes())
        if isinstance(plan, dict) and all(isinstance(entry["hash"], str) for entry in [plan, *plan.get("changes", [])]):
            return plan
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    raise ConfigError(
        f"{path} is damaged. It records the design before the first run and cannot be made again: restore it from a "
        "backup, or delete it; then a new plan is written, and the report says how many units had finished by then"
    )


def _configuration(base: Config) -> dict[str, Any]:
    """The settings that all units share, without paths and without the keys that the comparison sets."""
    content = base.experiment()
    return {key: value for key, value in content.items() if key not in ("loss", "seed")}
