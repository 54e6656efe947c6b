"""The metrics and rules of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segkit.labels import Labels
from segkit.metrics.case_table import check_metrics
from segkit.metrics.rules import SEGKIT, Rules, rules_by_name
from segkit.metrics.size_strata import SizeStrata
from segkit.utils.metric_names import is_measured, metric_facts
from segkit.utils.optional import require

ALWAYS_COMPUTED = ("dice", "iou")


@dataclass(frozen=True)
class Scoring:
    """The metrics of an evaluation and the rules by which they are computed.

    metrics: metric names. Dice and IoU are always included, and come first.
    rules: how empty classes are scored and how scores are averaged.
    calibration: whether the predicted probabilities are evaluated as well.
    size_strata: strata by the size of a class, for which scores are reported as well; None for none.

    Raises ValueError for unknown metrics, and MissingExtra for those that need a package that is not installed.
    """

    metrics: tuple[str, ...] = ALWAYS_COMPUTED
    rules: Rules = field(default_factory=lambda: SEGKIT)
    calibration: bool = False
    size_strata: SizeStrata | None = None

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        if "cldice" in self.metrics:
            require("skimage", "topology", "the metric cldice")
        others = tuple(metric for metric in self.metrics if metric not in ALWAYS_COMPUTED)
        object.__setattr__(self, "metrics", (*ALWAYS_COMPUTED, *others))

    @property
    def measured_metrics(self) -> list[str]:
        """The metrics that are measured on the masks of each class, on the CPU."""
        return [metric for metric in self.metrics if is_measured(metric)]


def build_scoring(
    labels: Labels,
    *,
    metrics: Sequence[str],
    rules: str = "segkit",
    exclude_classes: Sequence[str] = (),
    calibration: bool = False,
    size_strata: int | Sequence[float] | None = None,
    modes: Mapping[str, Any] | None = None,
) -> Scoring:
    """Build a `Scoring` from names.

    rules: name of a preset.
    exclude_classes: classes that are left out of tables and means.
    size_strata: see `SizeStrata.of`.
    modes: fields of `Rules` that replace those of the preset; None keeps the value of the preset.

    Raises ValueError for unknown metrics, rules, classes, strata or modes, and if no foreground class is left.
    """
    unknown = [name for name in exclude_classes if name not in labels.channel_names]
    if unknown:
        raise ValueError(
            f"expected exclude_classes to be some of {', '.join(labels.channel_names)}, got {', '.join(unknown)}"
        )
    if all(labels.channel_names[channel] in exclude_classes for channel in labels.foreground):
        raise ValueError(
            f"exclude_classes {', '.join(exclude_classes)} leave no foreground class to average; keep at least one"
        )
    changes = {name: value for name, value in (modes or {}).items() if value is not None}
    changed_rules = replace(rules_by_name(rules), exclude_classes=tuple(exclude_classes), **changes)
    return Scoring(tuple(metrics), changed_rules, calibration, SizeStrata.of(size_strata))


DICE_AND_IOU = Scoring()


def validation_scoring(best: str) -> Scoring:
    """The scoring of validations during a training: Dice, IoU and the metric that selects the best checkpoint.

    The rules are segkit's defaults, whatever the evaluation uses: settings of the evaluation alone must not change a
    training.

    Raises ValueError for an unknown metric and for one of which neither more nor less is better.
    """
    scoring = Scoring(tuple(dict.fromkeys((*ALWAYS_COMPUTED, best))))
    facts = metric_facts(best)
    if facts is None or facts.higher is None:
        raise ValueError(f"{best} cannot select a checkpoint: neither larger nor smaller values are better")
    return scoring
