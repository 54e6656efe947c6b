"""The metrics and rules of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segkit.labels import Labels
from segkit.metrics.case_table import check_metrics
from segkit.metrics.rules import SEGKIT, Rules, rules_by_name
from segkit.metrics.surface import SURFACE_METRICS

ALWAYS_COMPUTED = ("dice", "iou")


@dataclass(frozen=True)
class Scoring:
    """The metrics of an evaluation and the rules by which they are computed.

    metrics: metric names. Dice and IoU are always included, and come first.
    rules: how empty classes are scored and how scores are averaged.
    calibration: whether the predicted probabilities are evaluated as well.

    Raises ValueError for unknown metrics.
    """

    metrics: tuple[str, ...] = ALWAYS_COMPUTED
    rules: Rules = field(default_factory=lambda: SEGKIT)
    calibration: bool = False

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        others = tuple(metric for metric in self.metrics if metric not in ALWAYS_COMPUTED)
        object.__setattr__(self, "metrics", (*ALWAYS_COMPUTED, *others))

    @property
    def surface_metrics(self) -> list[str]:
        """The metrics that are computed from surface distances, on the CPU."""
        return [metric for metric in self.metrics if metric in SURFACE_METRICS]


def build_scoring(
    labels: Labels,
    *,
    metrics: Sequence[str],
    rules: str = "segkit",
    exclude_classes: Sequence[str] = (),
    calibration: bool = False,
    modes: Mapping[str, Any] | None = None,
) -> Scoring:
    """Build a `Scoring` from names.

    rules: name of a preset.
    exclude_classes: classes that are left out of tables and means.
    modes: fields of `Rules` that replace those of the preset; None keeps the value of the preset.

    Raises ValueError for unknown metrics, rules, classes or modes, and if no foreground class is left.
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
    return Scoring(tuple(metrics), changed_rules, calibration)


DICE_AND_IOU = Scoring()
