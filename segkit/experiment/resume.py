"""Resuming a run: whether it is finished, and whether an experiment can be continued in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from segkit.config import Config
from segkit.config.schema import leaves
from segkit.data.cases import data_digest
from segkit.data.splits import Split
from segkit.evaluation.results import scores_match
from segkit.experiment.build import build_labels, build_source, choose_device, restore_config, scoring_of, split_cases
from segkit.experiment.build_training import init_digest, with_precision
from segkit.experiment.evaluate_run import DRAWING, MAX_KILLS, evaluated_part, lacks_pictures
from segkit.experiment.plugins import plugin_hashes
from segkit.training.checkpoint import CONTINUED, TRAINED, check_complete
from segkit.training.encoder_weights import current_digest
from segkit.training.lr_schedules import Plateau
from segkit.training.run_folder import Run
from segkit.training.trainer import Experiment
from segkit.utils.errors import RunError
from segkit.utils.files import read_json, remove_leftovers

NEEDED = (*TRAINED, *CONTINUED, "data", "init")  # the fields of a checkpoint by which a run is recognised and continued
FIXED = ("labels", "model", "optimizer.name", "parameters")  # a checkpoint cannot be continued if these change


def check_run_to_continue(config: Config, run: Run, allow: Sequence[str]) -> None:
    """Raise RunError if changes are allowed in a run that does not exist; the configuration names its folder."""
    if allow and config.run.dir is None and not run.last.exists():
        raise RunError(
            f"--allow {allow[0]}: there is no run in {run.folder}, whose name changes with the configuration; give the "
            "folder of the run to continue, run.dir=FOLDER"
        )


def finished_scores(config: Config, run: Run, console: Console, allow: Sequence[str] = ()) -> dict[str, Any] | None:
    """The scores of a finished run; None if it is not finished.

    A checkpoint from before the first step is removed. It remains if a run fails at once, and would prevent a run with
    the corrected configuration.
    """
    content = run.load_last(keep=True)
    if content is None:
        return None
    check_complete(run.last, content, NEEDED)
    if content["step"] == 0 and not run.has_steps:
        run.remove_last()
        return None
    changed = check_same_experiment(config, run, content, allow)
    if changed:
        console.print(f"continued with changes: {', '.join(changed)}", markup=False, highlight=False)
        return None
    # scores may be those of a shorter training that --allow permitted, which ended without a step and saved nothing
    if content["finished"] is None or content.get("validation_pending"):
        return None
    folder = run.evaluation(evaluated_part(config, Split.from_json(content["split"])))
    file = folder / "scores.json"
    scores = read_json(file, dict, {})
    scoring = scoring_of(config, build_labels(config))
    if lacks_pictures(folder) or not scores_match(scores, scoring, content["step"], config.evaluation.threshold):
        if file.exists():
            console.print(f"the evaluation in {folder} is incomplete, damaged or of other settings, and is made again")
        return None
    if (folder / DRAWING).exists():
        console.print(
            f"its pictures are left out, because the process was killed {MAX_KILLS} times while it drew them; `segkit "
            f"evaluate --checkpoint {run.folder}` tries again",
            markup=False,
            highlight=False,
        )
        remove_leftovers(folder)
    _restore_split(run, content["split"], console)
    console.print(f"{run.folder} holds the finished run; it is not trained again", markup=False, highlight=False)
    return scores


def _restore_split(run: Run, split: Any, console: Console) -> None:
    """Write split.json again from the checkpoint, if it is damaged or missing."""
    if read_json(run.folder / "split.json", dict, {}) != split:
        console.print(f"split.json in {run.folder} is damaged or missing, and is written again")
        run.write_json("split.json", split)


def check_same_experiment(config: Config, run: Run, content: Mapping[str, Any], allow: Sequence[str] = ()) -> list[str]:
    """The differences between a configuration and the run's checkpoint, `content`, that `allow` permits.

    Raises RunError for any other difference, and for keys that cannot be allowed because the checkpoint would not fit.
    """
    keys = leaves(config.to_dict())
    unknown = [allowed for allowed in allow if not any(_within(key, allowed) for key in keys)]
    if unknown:
        raise RunError(f"--allow {unknown[0]}: the configuration has no such key")
    recorded = restore_config(content["config"], file=run.last)
    differences = [*recorded.differences(config), *_other_files(config, content)]
    allowed = [difference for difference in differences if any(_within(difference[0], key) for key in allow)]
    differing = [
        f"{key}: {old!r} in the run, {new!r} now" for key, old, new in differences if (key, old, new) not in allowed
    ]
    if differing:
        shown = "".join(f"\n  {line}" for line in differing)
        raise RunError(
            f"{run.folder} holds a run of another experiment; differences:{shown}\n"
            "continue it as it was started, choose another folder with run.dir=, or allow a change with --allow KEY"
        )
    fixed = [key for key, *_ in allowed if any(_within(key, section) for section in FIXED)]
    if fixed:
        raise RunError(
            f"--allow {fixed[0]}: the checkpoint's weights and optimiser state do not fit this change; start a new run "
            f"from its weights with run.dir= and train.init={run.last}"
        )
    return [f"{key} {old!r} -> {new!r}" for key, old, new in allowed]


def _other_files(config: Config, content: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Differences outside the configuration, by the key they belong to: cases, their files, initial weights,
    plugins."""
    source = build_source(config, build_labels(config))
    split = split_cases(config, source)
    init = init_digest(config, content["init"])
    values = [
        ("data", content["data"], data_digest(source.cases)),
        ("split", Split.from_json(content["split"]).content_hash, split.content_hash),
        ("train.init", content["init"], init),
        ("train.precision", *_precisions(config, content)),
        ("model.weights", *_pretrained(config, content)),
        ("plugins", _short(content.get("plugins", {})), _short(plugin_hashes(config.plugins))),
    ]
    return [(key, old, new) for key, old, new in values if old != new]


def _precisions(config: Config, content: Mapping[str, Any]) -> tuple[str, str]:
    """The precision of the run, and the one that `auto` stands for now."""
    now = with_precision(config, choose_device(config.device)).train.precision
    if config.train.precision != "auto":
        return now, now  # compared with the configuration
    return content.get("resolved", {}).get("train", {}).get("precision", now), now


def _pretrained(config: Config, content: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The SHA-256 of the pretrained weights of the run, and of those that the configuration names now."""
    recorded = content.get("pretrained")
    if recorded is None:
        return None, None
    return recorded["sha256"], current_digest(config.model.args.get("weights", "none"), recorded)


def _short(hashes: Mapping[str, str]) -> dict[str, str]:
    """The first digits of hashes, enough to tell files apart."""
    return {name: digest[:12] for name, digest in hashes.items()}


def _within(key: str, allowed: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def learning_rate_change(content: Mapping[str, Any], experiment: Experiment) -> str | None:
    """A message if the learning rate of a continued run differs from that of its last step, which lies on the schedule
    of its former length; None if it does not."""
    step, steps = content["step"], experiment.settings.limits.steps
    groups, former_groups = experiment.optimizer.param_groups, content["training"]["optimizer"]["param_groups"]
    if step == 0 or len(groups) != len(former_groups):
        return None
    schedule, state = experiment.schedule, content["training"]["schedule"]
    if isinstance(schedule, Plateau) and state is not None:  # its state is loaded with the weights
        factor = schedule.warmup(step - 1) * state["current"]
    else:
        factor = schedule(step - 1)
    rates = [group.get("initial_lr", group["lr"]) * factor for group in groups]
    former = [group.get("lr") for group in former_groups]
    if not all(isinstance(rate, float) for rate in former) or np.allclose(former, rates, rtol=1e-6, atol=0):
        return None
    changes = dict.fromkeys(f"{old:.3g} -> {new:.3g}" for old, new in zip(former, rates, strict=True))
    length = f" (length of the schedule: {content['steps']} -> {steps} steps)" if content["steps"] != steps else ""
    return f"learning rate at step {step}: {', '.join(changes)}{length}"
