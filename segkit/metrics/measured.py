"""Metrics that are measured on the masks of one case and class, on the CPU, rather than derived from pixel counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segkit.metrics.components import COMPONENT_METRICS, component_scores
from segkit.metrics.rules import Rules
from segkit.metrics.surface import SURFACE_METRICS, is_surface_metric, surface_scores
from segkit.metrics.topology import TOPOLOGY_METRICS, topology_scores

MEASURED_METRICS = (*SURFACE_METRICS, *TOPOLOGY_METRICS, *COMPONENT_METRICS)
Spacing = Sequence[float]
Scores = dict[str, float]


@dataclass(frozen=True)
class Family:
    """Metrics that are measured together, since they share what takes time.

    contains: whether a name is one of its metrics.
    measure: their scores by name, from prediction and reference, bool [*S] each, spacing, names and rules.
    """

    contains: Callable[[str], bool]
    measure: Callable[[np.ndarray, np.ndarray, Spacing, Sequence[str], Rules], Scores]


def _surface(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing, metrics: Sequence[str], rules: Rules
) -> Scores:
    return surface_scores(
        prediction,
        reference,
        spacing,
        metrics,
        tolerance_mm=rules.tolerance_mm,
        hd95=rules.hd95,
        assd=rules.assd,
        nsd=rules.nsd,
    )


def _topology(
    prediction: np.ndarray, reference: np.ndarray, _spacing: Spacing, metrics: Sequence[str], rules: Rules
) -> Scores:
    return topology_scores(prediction, reference, metrics, rules.connectivity)


def _components(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing, metrics: Sequence[str], rules: Rules
) -> Scores:
    """A case without a lesion that counts has the score of a case in which the class is absent from both masks."""
    scores = component_scores(prediction, reference, spacing, metrics, rules.components)
    for metric, score in scores.items():
        rule = rules.empty_class_rule(metric)
        if np.isnan(score) and rule is not None and isinstance(rule.neither, (int, float)):
            scores[metric] = rule.neither
    return scores


FAMILIES: dict[str, Family] = {
    "surface": Family(is_surface_metric, _surface),
    "topology": Family(TOPOLOGY_METRICS.__contains__, _topology),
    "components": Family(COMPONENT_METRICS.__contains__, _components),
}


def measure(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing, metrics: Sequence[str], rules: Rules
) -> Scores:
    """Measure some metrics of one case and class, by name; nothing else is computed.

    prediction, reference: bool [*S], 2D or 3D. spacing: mm along each axis.

    Scores of empty masks are those of each metric's formula; see `apply_empty_class_rule`.
    """
    scores: Scores = {}
    for family in FAMILIES.values():
        names = [metric for metric in metrics if family.contains(metric)]
        if names:
            scores |= family.measure(prediction, reference, spacing, names, rules)
    return scores
