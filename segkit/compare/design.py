"""What is compared: the design, written down before the first run, and its units, one run folder each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from segkit.compare.aggregation import check_aggregation
from segkit.compare.score_table import METRICS, lacks_margin
from segkit.config import Config, ConfigError
from segkit.config.schema import leaves
from segkit.utils.files import replace_text

PLANNED = ("loss", "seed", "run.dir")  # what the comparison itself sets for each unit
AGAIN, AGAIN_SEEDS = " (again)", 1000  # the baseline once more: how it is called, and what is added to its seeds
SWEEP_SEED = 500  # of the runs that only choose a learning rate
PLAN = "plan.json"


@dataclass(frozen=True, eq=False)
class Unit:
    """One training: which loss, which seed and fold, the configuration that it amounts to, and its folder.

    part: the part of the split that it is judged on. lr: the learning rate that it tries, for a unit that only chooses
    one.
    """

    loss: str
    seed: int
    fold: int
    part: str
    config: Config
    folder: Path
    lr: float | None = None

    @property
    def name(self) -> str:
        fold = f", fold {self.fold}" if self.fold else ""
        return f"{self.loss}, " + (f"seed {self.seed}{fold}" if self.lr is None else f"learning rate {self.lr:g}")


@dataclass(frozen=True)
class Design:
    """The section `comparison` of a configuration, made definite.

    losses: what each label stands for, a value of the key `loss`. family: of the pairs that are tested. baseline: None
    for none.
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
    def again(self) -> tuple[str, str] | None:
        """The label under which a loss is there once more, and that of which."""
        label = next((label for label in self.losses if label.endswith(AGAIN)), None)
        return None if label is None else (label, label.removesuffix(AGAIN))

    @property
    def tested_to_trained(self) -> float | None:
        """Of the cases of a fold, those that judge by those that train, where others are held out too."""
        return 1 / (self.folds - 2) if self.folds is not None and self.sweep is not None else None

    def seed_of(self, loss: str, seed: int) -> int:
        return seed + AGAIN_SEEDS if loss.endswith(AGAIN) else seed

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "losses": dict(self.losses), "seeds": list(self.seeds)}


def make_design(config: Config) -> Design:
    """Check the section `comparison`. Raises ConfigError for what does not go together."""
    section = config.comparison
    losses = _named_losses(section.losses)
    seeds = list(range(section.seeds)) if isinstance(section.seeds, int) else section.seeds
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"expected comparison.seeds to be a number or different seeds, got {seeds}")
    if section.metric not in METRICS:
        raise ConfigError(f"expected comparison.metric to be one of {', '.join(METRICS)}, got {section.metric}")
    try:
        check_aggregation(section.aggregation, section.metric)
    except ValueError as error:
        raise ConfigError(f"comparison.aggregation: {error}") from error
    if lacks_margin(section.metric, section.margin):
        raise ConfigError(f"comparison.margin: {section.metric} is in mm; say how many of them are of no interest")
    if section.baseline is not None and section.baseline not in losses:
        raise ConfigError(
            f"expected comparison.baseline (--baseline) to be one of {', '.join(losses)}, got {section.baseline}"
        )
    if section.family == "vs_baseline" and section.baseline is None:
        raise ConfigError("comparison.family: vs_baseline needs comparison.baseline")
    if section.repeats > 1 and section.folds is None:
        raise ConfigError("comparison.repeats are those of comparison.folds; say how many folds")
    if section.sweep is not None and section.folds is not None and section.folds < 3:
        raise ConfigError(
            "comparison.sweep needs comparison.folds of at least 3: one part judges, one chooses the learning rate, "
            f"and one trains; got {section.folds}"
        )
    if section.steps is not None and section.minutes is not None:
        raise ConfigError("expected comparison.steps or comparison.minutes as the budget, got both")
    if section.noise_floor and max(seeds) >= AGAIN_SEEDS:
        raise ConfigError(
            f"comparison.noise_floor takes seeds from {AGAIN_SEEDS} on; use smaller ones, got {max(seeds)}"
        )
    family = section.family or ("all_pairs" if section.baseline is None else "vs_baseline")
    if section.noise_floor:
        again = section.baseline or next(iter(losses))
        losses = {**losses, f"{again}{AGAIN}": losses[again]}
    return Design(**section.model_dump() | {"losses": losses, "seeds": seeds, "family": family})


def _named_losses(given: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if not given:
        raise ConfigError("expected losses to compare: --losses a,b or comparison.losses")
    if isinstance(given, Mapping):
        named = {label.strip(): loss for label, loss in given.items()}
    else:
        named = {name.strip(): name.strip() for name in given}
        if len(named) != len(given):
            raise ConfigError(f"expected names of losses that differ, separated by commas, got {','.join(given)}")
    if "" in named or any(label.endswith(AGAIN) for label in named):
        raise ConfigError(f"expected names of losses that differ, separated by commas, got {','.join(named)}")
    return named


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for an override of what the comparison sets itself."""
    for text in overrides:
        key = text.partition("=")[0]
        if key in PLANNED or key.startswith("loss."):
            raise ConfigError(f"override '{text}': the comparison sets {key}; use --losses, --seeds and --out")


def unit_overrides(
    design: Design, base: Config, loss: str, seed: int, repeat: int, fold: int | None, cache: Path
) -> list[str]:
    """What makes the configuration of a unit of that of the comparison. cache: a folder for prepared cases."""
    given = {"loss": design.losses[loss], "seed": seed, "comparison": {}, "evaluation.calibration": True}
    if fold is not None:
        cut = base.split.args.get("seed", 0) if base.split.name == "kfold" else 0
        given["split"] = {"name": "kfold", "folds": design.folds, "fold": fold, "seed": cut + repeat}
        if design.sweep is not None:  # learning rates are chosen on other cases than those that judge
            given["split"] |= {"test_fold": fold, "fold": (fold + 1) % (design.folds or 1)}
    if base.loader.cache_dir is None:  # cases are prepared once for all units
        given["loader.cache_dir"] = str(cache)
    if design.steps is not None:
        given["train.steps"] = design.steps
    if design.minutes is not None:
        given["train.max_minutes"] = design.minutes
    if design.metric not in base.evaluation.metrics:
        given["evaluation.metrics"] = [*base.evaluation.metrics, design.metric]
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def unit_folder(out: Path, loss: str, config: Config, cases: str, kind: str = "units") -> Path:
    """The folder's name holds digests of the configuration and of `cases`, which tells of the split and the data, so
    others are another folder."""
    name, digest = file_name(loss.replace(AGAIN, "-again")), hashlib.sha256(cases.encode()).hexdigest()
    return out / kind / f"{name}-seed{config.seed}-{config.digest()}-{digest[:6]}"


def file_name(text: str) -> str:
    """The text with a dash for whatever a file system may mind."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "-" for letter in text)


# --- the plan on paper -----------------------------------------------------------------------------------------------


def write_plan(
    out: Path, design: Design, base: Config, rules: Mapping[str, Any], data: str, finished: int
) -> dict[str, Any]:
    """Write the plan before the first run. If there is one already and it says otherwise, note what was changed and
    how many units were finished by then; the report shows it. Returns the plan with all its changes.

    data: the digest of the data. finished: units of any design.
    """
    said = {"design": design.to_dict(), "rules": dict(rules), "data": data, "configuration": _configuration(base)}
    said = json.loads(json.dumps(said))
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    with FileLock(out / "plan.lock"):
        plan = json.loads(path.read_text()) if path.exists() else {"format": 1, "written": now, "hash": digest, **said}
        latest = plan["changes"][-1] if plan.get("changes") else plan
        if latest["hash"] != digest:
            before, after = (leaves({key: one.get(key) for key in said}) for one in (latest, said))
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            differences = [f"{key}: {before.get(key)!r} before, {after.get(key)!r} after" for key in keys]
            change = {"when": now, "hash": digest, "finished_units": finished, "differences": differences, **said}
            plan.setdefault("changes", []).append(change)
        plan.setdefault("changes", [])
        replace_text(path, json.dumps(plan, indent=2) + "\n")
    return plan


def _configuration(base: Config) -> dict[str, Any]:
    """What all units have in common, without what the comparison sets and without paths."""
    content = base.experiment()
    return {key: value for key, value in content.items() if key not in ("loss", "seed")}
