"""The rules that turn counts and distances into reported numbers: scores of empty classes, and averaging over cases.

Rules are plain data, and are stored with every number that they produced. The conventions of other tools are available
as presets, so that their numbers can be reproduced.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from segkit.metrics.bootstrap import Bootstrap
from segkit.metrics.components import COMPONENT_METRICS, ComponentRules, LesionMatching
from segkit.metrics.surface import Average, Elements, Percentile
from segkit.metrics.topology import BETTI_METRICS
from segkit.utils.metric_names import base_metric, is_measured
from segkit.utils.morphology import Connectivity

EmptyClassScore = float | Literal["worst", "formula"] | None
Aggregation = Literal["class_case", "case_class", "pairs", "global", "micro"]
AGGREGATIONS: dict[Aggregation, str] = {
    "class_case": "mean over cases for each class, then over classes",
    "case_class": "mean over classes for each case, then over cases",
    "pairs": "mean over all pairs of a case and a class",
    "global": "counts summed over cases for each class, then mean over classes",
    "micro": "counts summed over cases and classes",
}
POOLED_AGGREGATIONS = ("global", "micro")
PER_CASE_METRICS = ("generalized_dice",)  # one score per case, over all of its classes


@dataclass(frozen=True)
class EmptyClassRule:
    """The score of a case for a class without predicted or without reference pixels.

    neither: if the class is absent from both prediction and reference.
    spurious: if the class is in the prediction only.
    missed: if the class is in the reference only.

    Each is a number, `worst` for the diagonal of the image in mm, `formula` for the value that the formula of the
    metric gives, or None if the case is not counted.
    """

    neither: EmptyClassScore
    spurious: EmptyClassScore
    missed: EmptyClassScore


OVERLAP = EmptyClassRule(neither=None, spurious=0.0, missed=0.0)
DISTANCE = EmptyClassRule(neither=None, spurious="worst", missed="worst")
COMPONENTS = EmptyClassRule(neither=None, spurious="formula", missed="formula")
EMPTY: dict[str, EmptyClassRule] = {
    **dict.fromkeys(("dice", "iou", "boundary_iou", "nsd", "precision"), OVERLAP),
    "recall": EmptyClassRule(neither=None, spurious=None, missed=0.0),
    "volume_difference": EmptyClassRule(neither=None, spurious=None, missed=-1.0),
    **dict.fromkeys(("hd", "hd95", "assd"), DISTANCE),
    **dict.fromkeys(("mcc", "cldice"), OVERLAP),
    # of an absent class all components are missed or false, and its Betti numbers are 0
    **dict.fromkeys((*COMPONENT_METRICS, *BETTI_METRICS), COMPONENTS),
}
FIRST_METRICS = tuple(EMPTY)[:10]  # of the first version, whose ids of changed rules are kept


@dataclass(frozen=True)
class Rules:
    """How scores are computed and averaged.

    name: name of the preset that the rules are based on.
    empty: the rule for empty classes of each metric. A metric without one keeps the value of its formula.
    aggregation: how each metric is averaged over cases and classes; the default is `class_case`.
    background: metrics whose mean includes the background class.
    exclude_classes: classes that are left out of tables and means. Unlike ignored pixels, their pixels still count for
        the other classes.
    absent: the contribution of a class without counted cases to the mean over classes: a number (NaN makes the mean
        NaN), or None if it is left out.
    hd95, assd, nsd: definitions of the surface metrics, see `segkit.metrics.surface`.
    tolerance_mm: tolerance of NSD.
    boundary_ratio: width of the band of boundary IoU, as a fraction of the image diagonal.
    connectivity, lesion_matching, component_iou, lesion_dilation, lesion_min_volume, lesion_penalty_mm: definitions of
        the metrics of components, see `ComponentRules`; the connectivity is also that of Betti numbers.
    bootstrap: parameters of the intervals.

    Raises ValueError for an unknown aggregation, for one that the metric does not support, and as `ComponentRules`.
    """

    name: str = "segkit"
    empty: Mapping[str, EmptyClassRule] = field(default_factory=lambda: EMPTY)
    aggregation: Mapping[str, Aggregation] = field(default_factory=dict)
    background: tuple[str, ...] = ()
    exclude_classes: tuple[str, ...] = ()
    absent: float | None = None
    hd95: Percentile = "directed"
    assd: Average = "pooled"
    nsd: Elements = "area"
    tolerance_mm: float = 1.0
    boundary_ratio: float = 0.02
    connectivity: Connectivity = "full"
    lesion_matching: LesionMatching = "overlap"
    component_iou: float = 0.5
    lesion_dilation: int = 3
    lesion_min_volume: float = 0.0
    lesion_penalty_mm: float | Literal["worst"] = "worst"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        for metric, aggregation in self.aggregation.items():
            if aggregation not in AGGREGATIONS:
                choices = ", ".join(AGGREGATIONS)
                raise ValueError(f"expected the aggregation of {metric} to be one of {choices}, got {aggregation!r}")
            if aggregation in POOLED_AGGREGATIONS and (is_measured(metric) or metric in PER_CASE_METRICS):
                raise ValueError(
                    f"{metric} does not support the aggregation {aggregation}: it is computed for each case, not from "
                    "counts summed over cases"
                )
        _ = self.components  # which checks its values

    @property
    def components(self) -> ComponentRules:
        """The rules for the metrics of components."""
        return ComponentRules(
            self.connectivity,
            self.lesion_matching,
            self.component_iou,
            self.lesion_dilation,
            self.lesion_min_volume,
            self.lesion_penalty_mm,
            self.hd95,
        )

    def empty_class_rule(self, metric: str) -> EmptyClassRule | None:
        """The rule for empty classes of a metric; percentiles and single directions have that of hd, hd95 or assd."""
        return self.empty.get(base_metric(metric))

    def aggregation_of(self, metric: str) -> Aggregation:
        """The aggregation of a metric."""
        return self.aggregation.get(metric, "class_case")

    def full_name(self, metric: str) -> str:
        """The name of a metric with its aggregation, such as dice/class_case."""
        return f"{metric}/case" if metric in PER_CASE_METRICS else f"{metric}/{self.aggregation_of(metric)}"

    @property
    def id(self) -> str:
        """The name, followed by a hash of all fields if they differ from the preset of that name."""
        if self == PRESETS.get(self.name):
            return self.name
        plain, defaults = self._plain(), SEGKIT._plain()
        # what was added later counts only where it differs, so that ids of earlier versions stay the same
        plain["empty"] = {
            metric: rule
            for metric, rule in plain["empty"].items()
            if metric in FIRST_METRICS or rule != defaults["empty"].get(metric)
        }
        if plain["components"] == defaults["components"]:
            del plain["components"]
        content = json.dumps(plain, sort_keys=True)
        return f"{self.name}+{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_dict(self, metrics: Sequence[str] | None = None) -> dict[str, Any]:
        """The rules as plain data for JSON, with the rule for empty classes of every metric.

        metrics: leave out what concerns none of these metrics, except the first ones that segkit had, so that records
            of earlier versions, and of versions with more metrics, are the same.
        """
        plain = self._plain()
        if metrics is not None:
            kept = {*FIRST_METRICS, *map(base_metric, metrics)}
            plain["empty"] = {metric: rule for metric, rule in plain["empty"].items() if metric in kept}
            if not kept & {*COMPONENT_METRICS, *BETTI_METRICS}:
                del plain["components"]
        return {"name": self.name, "id": self.id, **plain}

    def _plain(self) -> dict[str, Any]:
        return {
            "empty": {
                metric: {name: _plain(score) for name, score in vars(rule).items()}
                for metric, rule in self.empty.items()
            },
            "aggregation": {"default": "class_case", **self.aggregation},
            "background": list(self.background),
            "exclude_classes": list(self.exclude_classes),
            "absent": _plain(self.absent),
            "surface": {"hd95": self.hd95, "assd": self.assd, "nsd": self.nsd, "tolerance_mm": self.tolerance_mm},
            "boundary_ratio": self.boundary_ratio,
            "components": {name: value for name, value in vars(self.components).items() if name != "hd95"},
            "generalized_dice": {
                "weight": "1 / reference^2",
                "class without reference": "the largest weight of the case",
                "classes": "all" if "generalized_dice" in self.background else "foreground",
                "case without any of them": "not counted",
            },
            "interval": {"method": "BCa bootstrap of groups of cases; percentile for medians", **vars(self.bootstrap)},
        }

    def describe(self, metrics: Sequence[str]) -> list[str]:
        """Lines of text that explain the rules for these metrics, for the reader of a table."""
        lines = [f"rules {self.name}: {self._describe_mean(metrics)}"]
        by_rule: dict[str, list[str]] = {}
        for metric in (metric for metric in metrics if metric not in PER_CASE_METRICS):
            by_rule.setdefault(_describe_empty_class(self.empty_class_rule(metric)), []).append(metric)
        lines += [f"{', '.join(names)}: {description}" for description, names in by_rule.items()]
        lines += self.components.describe(metrics)
        if "generalized_dice" in metrics:
            classes = "all" if "generalized_dice" in self.background else "foreground"
            lines.append(f"generalized_dice: over {classes} classes of each case, with weights 1 / reference^2")
        return lines

    def _describe_mean(self, metrics: Sequence[str]) -> str:
        by_aggregation: dict[Aggregation, list[str]] = {}
        for metric in (metric for metric in metrics if metric not in PER_CASE_METRICS):
            by_aggregation.setdefault(self.aggregation_of(metric), []).append(metric)
        with_background = [metric for metric in metrics if metric in self.background]
        classes = "foreground classes"
        if with_background:
            every_metric = len(with_background) == len(metrics)
            classes = (
                "all classes" if every_metric else f"foreground classes, all classes for {', '.join(with_background)}"
            )
        without = f" without {', '.join(self.exclude_classes)}" if self.exclude_classes else ""
        aggregations = [
            AGGREGATIONS[aggregation] + (f" ({', '.join(names)})" if len(by_aggregation) > 1 else "")
            for aggregation, names in by_aggregation.items()
        ]
        return f"{'; '.join(aggregations)}; {classes}{without}"


def _describe_empty_class(rule: EmptyClassRule | None) -> str:
    if rule is None:
        return "the value of the formula, also for empty classes"
    scores = {name: _describe_score(score) for name, score in vars(rule).items()}
    return (
        f"a class absent from both prediction and reference {scores['neither']}, a spurious class "
        f"{scores['spurious']}, a missed class {scores['missed']}"
    )


def _describe_score(score: EmptyClassScore) -> str:
    if score is None:
        return "is not counted"
    if score == "formula":
        return "has the value of its formula"
    return "counts as the image diagonal" if score == "worst" else f"counts as {score:g}"


def _plain(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _with_overlap(rule: EmptyClassRule) -> dict[str, EmptyClassRule]:
    """The default rules for empty classes, with another one for Dice and IoU."""
    return {**EMPTY, **dict.fromkeys(("dice", "iou"), rule)}


SEGKIT = Rules()
NOT_COUNTED = EmptyClassRule(neither=None, spurious=None, missed=None)
MONAI_DISTANCE = EmptyClassRule(neither=None, spurious=math.inf, missed=math.inf)
PRESETS: dict[str, Rules] = {
    "segkit": SEGKIT,
    # compute_metrics_on_folder: nanmean over cases for each label, then a mean that propagates NaN
    "nnunet": Rules(name="nnunet", absent=math.nan),
    # DiceMetric and MeanIoU with their defaults; HD95 of a missed structure is NaN and therefore not counted
    "monai": Rules(
        name="monai",
        empty={
            **_with_overlap(EmptyClassRule(neither=None, spurious=None, missed=0.0)),
            "hd": MONAI_DISTANCE,
            "assd": MONAI_DISTANCE,
            "hd95": NOT_COUNTED,
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
        empty=_with_overlap(EmptyClassRule(neither=1.0, spurious=0.0, missed=0.0)),
        aggregation={"dice": "global", "iou": "global"},
        background=("dice", "iou"),
    ),
    # BinaryPairwiseMeasures of June 2025 (commit cb38dfc): perfect scores for a class that is in neither mask, except
    # IoU, precision and MCC, which are NaN; distances of a missed or spurious class are NaN, to be set by the user to
    # their worst value, which is done here; clDice of a missed or spurious class is NaN
    "metrics_reloaded": Rules(
        name="metrics_reloaded",
        empty={
            **EMPTY,
            **dict.fromkeys(("dice", "boundary_iou", "nsd"), EmptyClassRule(neither=1.0, spurious=0.0, missed=0.0)),
            **dict.fromkeys(("hd", "hd95", "assd"), EmptyClassRule(neither=0.0, spurious="worst", missed="worst")),
            "mcc": NOT_COUNTED,
            "cldice": NOT_COUNTED,
        },
        nsd="voxel",
    ),
    # the evaluation of the adult glioma task (BraTS-GLI), in voxels of 1 mm³
    "brats2023": Rules(
        name="brats2023",
        empty={
            **EMPTY,
            **dict.fromkeys(("dice", "lesion_dice"), EmptyClassRule(neither=1.0, spurious="formula", missed="formula")),
            "hd95": EmptyClassRule(neither=0.0, spurious=374.0, missed=374.0),
            "lesion_hd95": EmptyClassRule(neither=0.0, spurious="formula", missed="formula"),
        },
        hd95="area",
        lesion_matching="brats",
        lesion_dilation=3,
        lesion_min_volume=50.0,
        lesion_penalty_mm=374.0,
    ),
}


def rules_by_name(name: str) -> Rules:
    """The preset of that name. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"expected rules to be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
