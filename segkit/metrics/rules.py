"""The rules that turn counts and distances into reported numbers: what an empty class counts, how cases are averaged.

Rules are plain data and travel with every number that they made. Other tools' rules are presets, so that their numbers
can be had beside ours; docs/evaluation.md has them in a table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from segkit.metrics.bootstrap import Bootstrap
from segkit.metrics.surface import SURFACE_METRICS, Average, Elements, Percentile

Cell = float | Literal["worst"] | None
Aggregation = Literal["class_case", "case_class", "pairs", "global", "micro"]
AGGREGATIONS: dict[Aggregation, str] = {
    "class_case": "mean over cases for each class, then over classes",
    "case_class": "mean over classes for each case, then over cases",
    "pairs": "mean over all pairs of a case and a class",
    "global": "counts summed over cases for each class, then mean over classes",
    "micro": "counts summed over cases and classes",
}
POOLED = ("global", "micro")
OF_CASES = ("generalized_dice",)  # one score a case, of all its classes together


@dataclass(frozen=True)
class Empty:
    """What a case counts for a class that is in neither prediction nor reference, is spurious (predicted only), or is
    missed (in the reference only): a number, `worst` for the diagonal of the image, None for not being counted."""

    neither: Cell
    spurious: Cell
    missed: Cell


OVERLAP = Empty(neither=None, spurious=0.0, missed=0.0)
DISTANCE = Empty(neither=None, spurious="worst", missed="worst")
EMPTY: dict[str, Empty] = {
    **dict.fromkeys(("dice", "iou", "boundary_iou", "nsd", "precision"), OVERLAP),
    "recall": Empty(neither=None, spurious=None, missed=0.0),
    "volume_difference": Empty(neither=None, spurious=None, missed=-1.0),
    **dict.fromkeys(("hd", "hd95", "assd"), DISTANCE),
}


@dataclass(frozen=True)
class Rules:
    """What the numbers of a score table mean.

    empty: a metric's table of empty classes; a metric that is not in it is always what its formula says.
    aggregation: how cases and classes become one number, for each metric that is not averaged as `class_case`.
    background: the metrics whose mean takes the background class in.
    exclude_classes: rows that are left out of tables and means; their pixels still count for the other classes,
        unlike ignored ones.
    absent: what a class counts in the mean that no case counts: a number, None for nothing; NaN makes the mean NaN.
    hd95, assd, nsd: the modes of `segkit.metrics.surface`. tolerance_mm: of NSD.
    boundary_ratio: the width of the band of boundary IoU, as a share of the image diagonal.
    bootstrap: of the intervals.
    """

    name: str = "segkit"
    empty: Mapping[str, Empty] = field(default_factory=lambda: EMPTY)
    aggregation: Mapping[str, Aggregation] = field(default_factory=dict)
    background: tuple[str, ...] = ()
    exclude_classes: tuple[str, ...] = ()
    absent: float | None = None
    hd95: Percentile = "directed"
    assd: Average = "pooled"
    nsd: Elements = "area"
    tolerance_mm: float = 1.0
    boundary_ratio: float = 0.02
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        """Raises ValueError for an aggregation that is none, or none for its metric."""
        for metric, way in self.aggregation.items():
            if way not in AGGREGATIONS:
                raise ValueError(f"expected the aggregation of {metric} among {', '.join(AGGREGATIONS)}, got {way!r}")
            if way in POOLED and metric in (*SURFACE_METRICS, *OF_CASES):
                raise ValueError(f"{metric} is measured for each case and not made of sums over cases, so not {way}")

    def aggregated(self, metric: str) -> Aggregation:
        """How the metric is averaged."""
        return self.aggregation.get(metric, "class_case")

    def full_name(self, metric: str) -> str:
        """The metric with its aggregation, such as dice/class_case."""
        return f"{metric}/case" if metric in OF_CASES else f"{metric}/{self.aggregated(metric)}"

    @property
    def id(self) -> str:
        """The name, and where they are not as the preset has them, a digest of all that they are."""
        if self == PRESETS.get(self.name):
            return self.name
        content = json.dumps(self._plain(), sort_keys=True)
        return f"{self.name}+{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """The rules as JSON takes them, every metric's table written out."""
        return {"name": self.name, "id": self.id, **self._plain()}

    def _plain(self) -> dict[str, Any]:
        return {
            "empty": {
                name: {cell: _plain(value) for cell, value in vars(row).items()} for name, row in self.empty.items()
            },
            "aggregation": {"default": "class_case", **self.aggregation},
            "background": list(self.background),
            "exclude_classes": list(self.exclude_classes),
            "absent": _plain(self.absent),
            "surface": {"hd95": self.hd95, "assd": self.assd, "nsd": self.nsd, "tolerance_mm": self.tolerance_mm},
            "boundary_ratio": self.boundary_ratio,
            "generalized_dice": {
                "weight": "1 / reference^2",
                "class without reference": "the largest weight of the case",
                "classes": "all" if "generalized_dice" in self.background else "foreground",
                "case without any of them": "not counted",
            },
            "interval": {"method": "BCa bootstrap of groups of cases; percentile for medians", **vars(self.bootstrap)},
        }

    def in_words(self, metrics: Sequence[str]) -> list[str]:
        """What a reader of a table of these metrics has to know, a line each."""
        lines = [f"rules {self.name}: {self._mean_in_words(metrics)}"]
        by_row: dict[str, list[str]] = {}
        for metric in (metric for metric in metrics if metric not in OF_CASES):
            by_row.setdefault(_in_words(self.empty.get(metric)), []).append(metric)
        lines += [f"{', '.join(names)}: {row}" for row, names in by_row.items()]
        if "generalized_dice" in metrics:
            classes = "all" if "generalized_dice" in self.background else "foreground"
            lines.append(f"generalized_dice: of {classes} classes of a case together, weights 1 / reference^2")
        return lines

    def _mean_in_words(self, metrics: Sequence[str]) -> str:
        by_way: dict[Aggregation, list[str]] = {}
        for metric in (metric for metric in metrics if metric not in OF_CASES):
            by_way.setdefault(self.aggregated(metric), []).append(metric)
        with_background = [metric for metric in metrics if metric in self.background]
        classes = "foreground classes"
        if with_background:
            only = f", for {', '.join(with_background)}" if len(with_background) < len(metrics) else ""
            classes = f"all classes{only}" if not only else f"foreground classes{only} all classes"
        without = f" without {', '.join(self.exclude_classes)}" if self.exclude_classes else ""
        ways = [
            AGGREGATIONS[way] + (f" ({', '.join(names)})" if len(by_way) > 1 else "") for way, names in by_way.items()
        ]
        return f"{'; '.join(ways)}; {classes}{without}"


def _in_words(row: Empty | None) -> str:
    if row is None:
        return "what the formula says, also for an empty class"
    cells = {name: _cell_in_words(cell) for name, cell in vars(row).items()}
    return f"a class in neither {cells['neither']}, spurious {cells['spurious']}, missed {cells['missed']}"


def _cell_in_words(cell: Cell) -> str:
    if cell is None:
        return "is not counted"
    return "counts the image diagonal" if cell == "worst" else f"counts {cell:g}"


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _with_overlap(row: Empty) -> dict[str, Empty]:
    return {**EMPTY, **dict.fromkeys(("dice", "iou"), row)}


SEGKIT = Rules()
MONAI_DISTANCE = Empty(neither=None, spurious=math.inf, missed=math.inf)
PRESETS: dict[str, Rules] = {
    "segkit": SEGKIT,
    # compute_metrics_on_folder: nanmean over cases of each label, then a mean that NaN goes through
    "nnunet": Rules(name="nnunet", absent=math.nan),
    # DiceMetric and MeanIoU with their defaults; HD95 of a missed structure is NaN and so not counted
    "monai": Rules(
        name="monai",
        empty={
            **_with_overlap(Empty(neither=None, spurious=None, missed=0.0)),
            "hd": MONAI_DISTANCE,
            "assd": MONAI_DISTANCE,
            "hd95": Empty(neither=None, spurious=None, missed=None),
        },
        aggregation=dict.fromkeys(("dice", "iou", "hd", "hd95", "assd", "nsd"), "case_class"),
        background=("dice", "iou", "generalized_dice"),
        nsd="voxel",
    ),
    # segmentation.DiceScore (macro, samplewise) and segmentation.MeanIoU with their defaults
    "torchmetrics": Rules(
        name="torchmetrics", aggregation={"dice": "case_class", "iou": "pairs"}, background=("dice", "iou")
    ),
    # IoUMetric: nanmean over classes
    "mmseg": Rules(name="mmseg", aggregation={"dice": "global", "iou": "global"}, background=("dice", "iou")),
    # iou_score and f1_score with reduction="macro" and zero_division=1
    "smp": Rules(
        name="smp",
        empty=_with_overlap(Empty(neither=1.0, spurious=0.0, missed=0.0)),
        aggregation={"dice": "global", "iou": "global"},
        background=("dice", "iou"),
    ),
}


def rules_by_name(name: str) -> Rules:
    """A preset. Raises ValueError for a name that is none."""
    if name not in PRESETS:
        raise ValueError(f"expected rules to be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
