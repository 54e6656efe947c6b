"""The metrics by name: in which direction each is better, between which values it lies, and what a name stands for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["prediction", "reference"]
# the percentile without leading or trailing zeros, so that a metric has one name
PERCENTILE, ONE_DIRECTION = r"([1-9]\d?(?:\.\d*[1-9])?)", r"(?:_from_(prediction|reference))"
SURFACE_NAME = re.compile(rf"(?:hd{PERCENTILE}?|assd(?!_)|asd(?=_)){ONE_DIRECTION}?", re.ASCII)
# further names, by an example of each
PATTERNS = {
    "hd90": "any percentile",
    "hd95_from_prediction": "one direction only; also _from_reference, and for hd and asd",
}
DESCRIBED_PATTERNS = tuple(f"{name} ({meaning})" for name, meaning in PATTERNS.items())  # in errors


@dataclass(frozen=True)
class MetricFacts:
    """What is known of the values of a metric.

    higher: whether larger values are better; None if values near `perfect` are.
    perfect: the value of a perfect prediction.
    minimum, maximum: the smallest and the largest possible value.
    is_length: whether the values are in mm.
    """

    higher: bool | None
    perfect: float
    minimum: float
    maximum: float
    is_length: bool = False

    @property
    def sign(self) -> int:
        """The factor that makes larger values better."""
        return -1 if self.higher is False else 1


FRACTION = MetricFacts(True, 1.0, 0.0, 1.0)
DISTANCE = MetricFacts(False, 0.0, 0.0, math.inf, is_length=True)
ERRORS = MetricFacts(False, 0.0, 0.0, math.inf)  # a number of errors
FACTS: dict[str, MetricFacts] = {
    **dict.fromkeys(("dice", "iou", "precision", "recall", "specificity", "accuracy"), FRACTION),
    "mcc": MetricFacts(True, 1.0, -1.0, 1.0),
    "volume_difference": MetricFacts(None, 0.0, -1.0, math.inf),
    **dict.fromkeys(("boundary_iou", "nsd"), FRACTION),
    **dict.fromkeys(("hd", "hd95", "assd"), DISTANCE),
    "cldice": FRACTION,
    **dict.fromkeys(("betti_error", "betti0_error", "betti1_error", "betti2_error"), ERRORS),
    **dict.fromkeys(("lesion_f1", "lesion_dice", "pq", "rq", "sq"), FRACTION),
    "lesion_hd95": DISTANCE,
    "generalized_dice": FRACTION,
}


# derived from pixel counts, and of a case as a whole; all others are measured on the masks of one case and class
FROM_PIXELS = ("dice", "iou", "precision", "recall", "specificity", "accuracy", "mcc", "volume_difference")
NOT_MEASURED = (*FROM_PIXELS, "boundary_iou", "generalized_dice")


@dataclass(frozen=True)
class SurfaceName:
    """What the name of a distance between surfaces stands for.

    base: `hd` for the largest distance, `hd95` for a percentile, `assd` for a mean.
    percentile: from 0 to 100; None for `hd` and `assd`.
    direction: the surface from which distances are measured; None for both.
    """

    base: Literal["hd", "hd95", "assd"]
    percentile: float | None = None
    direction: Direction | None = None


def surface_name(metric: str) -> SurfaceName | None:
    """What a name such as `hd`, `hd90`, `hd99.5_from_reference` or `asd_from_prediction` stands for; None if it is no
    such name."""
    match = SURFACE_NAME.fullmatch(metric)
    if match is None:
        return None
    base = "assd" if metric.startswith("a") else "hd95" if match[1] else "hd"
    return SurfaceName(base, float(match[1]) if match[1] else None, match[2])  # pyright: ignore[reportArgumentType]


def base_metric(metric: str) -> str:
    """The metric whose rules and properties a metric shares: `hd95` for `hd90_from_reference`, mostly itself."""
    name = surface_name(metric)
    return metric if name is None else name.base


def is_measured(metric: str) -> bool:
    """Whether a metric is measured on the masks of one case and class; False for an unknown name."""
    return metric_facts(metric) is not None and metric not in NOT_MEASURED


def metric_facts(metric: str) -> MetricFacts | None:
    """What is known of a metric; None for an unknown name."""
    return FACTS.get(base_metric(metric))
