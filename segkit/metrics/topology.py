"""Topology of one structure: the clDice of centrelines and the errors of Betti numbers, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from segkit.utils.morphology import (
    Connectivity,
    crop_to_foreground,
    euler_characteristic,
    label_components,
    skeleton,
)

BETTI_METRICS = ("betti_error", "betti0_error", "betti1_error", "betti2_error")
TOPOLOGY_METRICS = ("cldice", *BETTI_METRICS)


def cldice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Centreline Dice: the harmonic mean of topology precision and topology sensitivity, 0 to 1 (Shit et al., 2021).

    Topology precision is the fraction of the skeleton of the prediction that lies in the reference, topology
    sensitivity the fraction of the skeleton of the reference that lies in the prediction; skeletons are those of
    `segkit.utils.morphology.skeleton`. All pixels of a skeleton count the same, whatever the spacing.

    prediction, reference: bool [*S], 2D or 3D. NaN if both are empty, 0 if one is or no skeleton lies in the other
    mask. Raises MissingExtra without scikit-image.
    """
    prediction, reference = crop_to_foreground(prediction, reference)
    if not (prediction.any() and reference.any()):
        return 0.0 if prediction.any() or reference.any() else math.nan
    lines = skeleton(prediction, "the metric cldice"), skeleton(reference, "the metric cldice")
    precision = int(np.count_nonzero(lines[0] & reference)) / int(np.count_nonzero(lines[0]))
    sensitivity = int(np.count_nonzero(lines[1] & prediction)) / int(np.count_nonzero(lines[1]))
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def betti_numbers(mask: np.ndarray, connectivity: Connectivity = "full") -> tuple[int, ...]:
    """The Betti numbers of a bool mask [*S]: (components, holes) in 2D, (components, tunnels, cavities) in 3D.

    connectivity: of the foreground: `full` (8 neighbours in 2D, 26 in 3D) or `direct` (4 and 6). The background has the
        other one, so that a closed line separates its inside from its outside. Everything beyond the image is
        background.

    Components, and cavities as components of the background, are counted; holes or tunnels follow from the Euler
    characteristic.
    """
    mask, _ = crop_to_foreground(mask, mask)
    components = label_components(mask, connectivity)[1]
    euler = euler_characteristic(mask, connectivity)
    if mask.ndim == 2:
        return components, components - euler
    cavities = label_components(~mask, "direct" if connectivity == "full" else "full")[1] - 1
    return components, components + cavities - euler, cavities


def betti_errors(
    prediction: np.ndarray, reference: np.ndarray, connectivity: Connectivity = "full"
) -> dict[str, float]:
    """The absolute differences of the Betti numbers of two masks [*S], and their sum.

    `betti0_error`: of the numbers of components. `betti1_error`: of holes (2D) or tunnels (3D). `betti2_error`: of
    cavities (3D), 0 in 2D. `betti_error`: the sum of all. They count structures, wherever these are: a component in the
    wrong place is no error. An empty mask has none. Source: Hu et al., 2019, who count in patches; here the whole image
    is one.
    """
    pairs = zip(betti_numbers(prediction, connectivity), betti_numbers(reference, connectivity), strict=True)
    errors = [float(abs(first - second)) for first, second in pairs]
    by_dimension = {f"betti{number}_error": error for number, error in enumerate(errors)}
    return {"betti2_error": 0.0, **by_dimension, "betti_error": sum(errors)}


def topology_scores(
    prediction: np.ndarray, reference: np.ndarray, metrics: Sequence[str], connectivity: Connectivity = "full"
) -> dict[str, float]:
    """Scores of one structure by name, some of TOPOLOGY_METRICS.

    prediction, reference: bool [*S], 2D or 3D. connectivity: of the foreground, for Betti numbers.
    """
    scores = {"cldice": cldice(prediction, reference)} if "cldice" in metrics else {}
    if any(metric in BETTI_METRICS for metric in metrics):
        scores |= betti_errors(prediction, reference, connectivity)
    return {metric: scores[metric] for metric in metrics}
