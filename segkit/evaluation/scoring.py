"""What is measured, and by which rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segkit.labels import Labels
from segkit.metrics.case_table import check_metrics
from segkit.metrics.rules import SEGKIT, Rules, rules_by_name
from segkit.metrics.surface import SURFACE_METRICS

ALWAYS = ("dice", "iou")


UNKNOWN = ["unknown_prediction", "unknown_mask"]


@dataclass(frozen=True)
class Scoring:
    """What is measured and by which rules. Raises ValueError for metrics that are none.

    metrics: beside Dice and IoU, which are always there, and first. threshold: of the probability, in binary and
    multilabel mode. calibration: whether probabilities are judged too.
    """

    metrics: tuple[str, ...] = ALWAYS
    rules: Rules = field(default_factory=lambda: SEGKIT)
    threshold: float = 0.5
    calibration: bool = False

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        others = tuple(metric for metric in self.metrics if metric not in ALWAYS)
        object.__setattr__(self, "metrics", (*ALWAYS, *others))

    @property
    def surface(self) -> list[str]:
        """The metrics that need surfaces, which are measured on the CPU."""
        return [metric for metric in self.metrics if metric in SURFACE_METRICS]


def build_scoring(
    labels: Labels,
    *,
    metrics: Sequence[str],
    rules: str = "segkit",
    exclude_classes: Sequence[str] = (),
    threshold: float = 0.5,
    calibration: bool = False,
    modes: Mapping[str, Any] | None = None,
) -> Scoring:
    """A scoring from names. modes: fields of `Rules` that are to be other than in the preset; None is as there.

    Raises ValueError for metrics, rules, classes or modes that are none.
    """
    unknown = [name for name in exclude_classes if name not in labels.channel_names]
    if unknown:
        raise ValueError(
            f"expected exclude_classes to be some of {', '.join(labels.channel_names)}, got {', '.join(unknown)}"
        )
    if all(labels.channel_names[channel] in exclude_classes for channel in labels.foreground):
        raise ValueError(f"exclude_classes {', '.join(exclude_classes)} leave no foreground class for a mean; keep one")
    changes = {name: value for name, value in (modes or {}).items() if value is not None}
    chosen = replace(rules_by_name(rules), exclude_classes=tuple(exclude_classes), **changes)
    return Scoring(tuple(metrics), chosen, threshold, calibration)


DICE_AND_IOU = Scoring()
