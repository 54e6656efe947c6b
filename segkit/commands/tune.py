"""The command `tune`: choose thresholds, temperature and post-processing on the validation cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.commands.checkpoints import checkpoint_files
from segkit.evaluation.scoring import Scoring, build_scoring
from segkit.evaluation.tuning import (
    TEMPERATURES,
    THRESHOLDS,
    TUNED_METRICS,
    Choice,
    Predicted,
    choose,
    post_processes,
    post_processing_scores,
    temperature_scores,
    threshold_scores,
)
from segkit.experiment.build import MODES
from segkit.experiment.decision_file import Chosen, DecisionFile, default_file, identity, settings_of, write_decisions
from segkit.experiment.evaluate_ensemble import joint_evaluation
from segkit.experiment.evaluate_run import progress
from segkit.experiment.trained_ensemble import load_members
from segkit.experiment.trained_model import TrainedModel
from segkit.inference.decisions import Decisions, decided
from segkit.inference.post_processing import PostProcess
from segkit.metrics.rules import SEGKIT
from segkit.utils.errors import RunError

PART = "validation"


def tune(
    checkpoints: Sequence[Path],
    overrides: Sequence[str],
    *,
    loss: str | None,
    metric: str,
    tta: bool,
    out: Path | None,
    device: str | None,
    console: Console,
) -> DecisionFile:
    """Choose decisions on the validation cases, and write those that gain more than chance beside the checkpoint.

    checkpoints, loss: see `checkpoint_files`. Several are tuned as one model; those of a cross-validation on the
    validation cases of all folds, each predicted by the checkpoints of its own fold.

    Raises RunError for a metric that cannot be tuned, and without validation cases.
    """
    from segkit.report.console_tune import print_decisions

    if metric not in TUNED_METRICS:
        raise RunError(f"expected --metric to be one of {', '.join(TUNED_METRICS)}, got {metric}")
    files = checkpoint_files(checkpoints, loss)
    if out is None and (len(files) > 1 or tta):
        raise RunError("decisions for several checkpoints, or with --tta, need a file: choose one with --out")
    members = load_members(files, device, overrides)
    for member in members:
        if not member.split.validation:
            raise RunError(f"{member.origin.checkpoint} was trained without validation cases, on which to choose")
    joint = joint_evaluation(members, PART, None, tta=tta)
    predicted = Predicted(
        joint.predictor, joint.cases, _scoring(members[0], metric), metric, progress("predicting", console)
    )
    checkpoint_ids, orientations = identity(members, joint.origin.orientations)
    content = DecisionFile(
        checkpoints=checkpoint_ids,
        orientations=orientations,
        metric=metric,
        rules=predicted.scoring.rules.id,
        settings=settings_of(members[0]),
        part=joint.part,
        cases=len(joint.cases),
        groups=len(set(predicted.groups)),
        **_choices(predicted),
    )
    file = default_file(files[0]) if out is None else out
    write_decisions(file, content)
    print_decisions(content.model_dump(), console)
    console.print(f"written to {file}", markup=False, highlight=False)
    return content


def _scoring(member: TrainedModel, metric: str) -> Scoring:
    """The metric by segkit's rules, by which missed and spurious objects count, with the distance settings of the run.

    By rules that leave missed objects out, predicting nothing would be best.
    """
    chosen = member.config.evaluation
    modes = {name: getattr(chosen, name) for name in MODES}
    return build_scoring(member.labels, metrics=[metric], rules=SEGKIT.name, modes=modes)


def _choices(predicted: Predicted) -> dict[str, Any]:
    """The choices, post-processing after thresholds; see `DecisionFile`."""
    labels, groups = predicted.labels, predicted.groups
    names = [labels.channel_names[channel] for channel in labels.foreground]
    has_thresholds, has_background = labels.mode != "multiclass", labels.background_channel is not None
    number = 1 + len(names) * (has_thresholds + (has_thresholds or has_background))
    (temperature,) = choose(temperature_scores(predicted), groups, number)
    thresholds: dict[str, Chosen] = {}
    if has_thresholds:
        present = predicted.predictor.threshold
        assert isinstance(present, float)  # that of the configuration
        candidates = (present, *THRESHOLDS)
        choices = choose(threshold_scores(predicted), groups, number)
        thresholds = {name: _chosen(choice, candidates) for name, choice in zip(names, choices, strict=True)}
        kept = {name: choice.value for name, choice in thresholds.items() if choice.kept}
        predictor = decided(predicted.predictor, Decisions(kept)).predictor
        predicted = Predicted(predictor, predicted.cases, predicted.scoring, predicted.metric, predicted.track)
    post_processing: dict[str, Chosen] = {}
    if has_thresholds or has_background:
        processes = post_processes()
        choices = choose(post_processing_scores(predicted), groups, number)
        post_processing = {name: _chosen(choice, processes) for name, choice in zip(names, choices, strict=True)}
    return {
        "temperature": _chosen(temperature, (1.0, *TEMPERATURES)),
        "thresholds": thresholds,
        "post_processing": post_processing,
    }


def _chosen(choice: Choice, candidates: Sequence[float | PostProcess]) -> Chosen:
    value = candidates[choice.candidate]
    return Chosen(
        value=asdict(value) if isinstance(value, PostProcess) else value,
        in_words=str(value) if isinstance(value, PostProcess) else f"{value:.3g}",
        kept=choice.is_kept,
        gain=choice.gain,
        ci95=None if choice.interval is None else list(choice.interval),
        reason=choice.reason,
    )
