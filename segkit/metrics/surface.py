"""Distances between the surfaces of two masks, and the scores made of them: HD, HD95, ASSD and NSD, in float64.

Libraries differ in what a surface is made of and in how two directions become one number; here both have names.
Surfaces are in the millimetres of the spacing; where it is in pixels, so are the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from segkit.utils.morphology import boundary, crop_to_foreground, distances_between

Elements = Literal["voxel", "area"]
Percentile = Literal["directed", "pooled", "area"]
Average = Literal["pooled", "mean_of_means"]
SURFACE_METRICS = ("hd", "hd95", "assd", "nsd")
# Spacings and areas often come as float32. What is equal up to that must not be told apart by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far each element of one surface is from the other surface, in both directions.

    from_prediction float64 [n], from_reference float64 [m]: distances in mm; inf where the other mask is empty, and of
    length 0 where the mask itself is. prediction_weights [n], reference_weights [m]: 1 for voxels; for areas the
    length in mm (2D) or the area in mm² (3D) of each element.
    """

    from_prediction: np.ndarray
    from_reference: np.ndarray
    prediction_weights: np.ndarray
    reference_weights: np.ndarray


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], elements: Elements = "voxel"
) -> SurfaceDistances:
    """Distances from each surface element of one mask to the nearest of the other, both ways.

    prediction, reference: bool [*S], 2D or 3D. spacing: mm along each axis. Beyond the image there is background.
    elements: `voxel`, the pixels of the mask with a neighbour along an axis outside it, each counting 1; `area`, the
    corners where 2 x 2 (x 2) pixels are not all the same, each counting the length or area of the surface there
    (Nikolov et al. 2021).

    Raises ValueError if the masks are not bool or not 2D or 3D, if their shapes differ, if the spacing is not one
    positive number for each axis, or if there are no such elements.
    """
    _check(prediction, reference, spacing)
    _check_choice("elements", elements, get_args(Elements))
    prediction, reference = crop_to_foreground(prediction, reference)
    prediction_surface, prediction_weights = _surface(prediction, spacing, elements)
    reference_surface, reference_weights = _surface(reference, spacing, elements)
    both_ways = distances_between(prediction_surface, reference_surface, spacing)
    return SurfaceDistances(*both_ways, prediction_weights, reference_weights)


def hausdorff(distances: SurfaceDistances) -> float:
    """The Hausdorff distance: the largest distance of both directions, in mm. Weights do not matter.

    NaN where both masks are empty, inf where one is.
    """
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    return float(max(distances.from_prediction.max(), distances.from_reference.max()))


def hausdorff95(distances: SurfaceDistances, mode: Percentile = "directed") -> float:
    """The 95th percentile of the distances instead of their maximum, in mm (Huttenlocher et al. 1993).

    directed: the larger of the percentiles of the two directions, interpolated linearly (MONAI, MetricsReloaded).
    pooled: the percentile of the distances of both directions together, likewise (MedPy). area: the larger of the two
    directions, where the percentile is the least distance within which 95 % of the weight lies (Nikolov et al. 2021);
    only this one uses weights.

    NaN where both masks are empty, inf where one is. Raises ValueError if there is no such mode.
    """
    _check_choice("mode", mode, get_args(Percentile))
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    directions = distances.from_prediction, distances.from_reference
    if mode == "pooled":
        return float(np.percentile(np.concatenate(directions), 95))
    if mode == "directed":
        return float(max(np.percentile(direction, 95) for direction in directions))
    weights = distances.prediction_weights, distances.reference_weights
    return max(_weighted_quantile(*pair, 0.95) for pair in zip(directions, weights, strict=True))


def average_surface_distance(distances: SurfaceDistances, mode: Average = "pooled") -> float:
    """The average symmetric surface distance, weighted, in mm (Heimann et al. 2009).

    pooled: the mean over the elements of both surfaces (MONAI, MedPy). mean_of_means: the mean of the means of the two
    directions, also called MASD (MetricsReloaded).

    NaN where both masks are empty, inf where one is. Raises ValueError if there is no such mode.
    """
    _check_choice("mode", mode, get_args(Average))
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    sums = [
        float(distances.from_prediction @ distances.prediction_weights),
        float(distances.from_reference @ distances.reference_weights),
    ]
    sizes = [float(distances.prediction_weights.sum()), float(distances.reference_weights.sum())]
    if mode == "pooled":
        return sum(sums) / sum(sizes)
    return (sums[0] / sizes[0] + sums[1] / sizes[1]) / 2


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """The normalised surface Dice, NSD: the share of both surfaces within `tolerance_mm` of the other, 0 to 1.

    By number of voxels or by area, as the distances were made (Nikolov et al. 2021: by area). At the tolerance is
    within it, up to the rounding of float32.

    NaN where both masks are empty, 0 where one is. Raises ValueError if the tolerance is negative or not finite.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"expected a tolerance of 0 mm or more, got {tolerance_mm}; choose one that observers reach")
    empty = _empty_score(distances, 0.0)
    if empty is not None:
        return empty
    values = np.concatenate([distances.from_prediction, distances.from_reference])
    weights = np.concatenate([distances.prediction_weights, distances.reference_weights])
    return float(weights[values <= tolerance_mm * (1 + ROUNDING)].sum() / weights.sum())


def surface_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    metrics: Sequence[str],
    tolerance_mm: float = 1.0,
    hd95: Percentile = "directed",
    assd: Average = "pooled",
    nsd: Elements = "area",
) -> dict[str, float]:
    """The surface scores of one structure, by name: `hd`, `hd95` and `assd` in mm, and `nsd`, 0 to 1.

    prediction, reference: bool [*S], 2D or 3D. spacing: mm along each axis. metrics: which scores. hd95, assd and nsd
    say which definition: the modes of `hausdorff95` and `average_surface_distance`, and the elements of the NSD. All
    but the NSD and hd95 of `area` are of voxels.

    Both masks empty: NaN. One empty: inf for hd, hd95 and assd, 0 for nsd. Raises ValueError as `surface_distances`
    does, and for a metric, definition or tolerance that there is not.
    """
    for metric in metrics:
        _check_choice("metrics", metric, SURFACE_METRICS)
    for name, choice, choices in (("hd95", hd95, Percentile), ("assd", assd, Average), ("nsd", nsd, Elements)):
        _check_choice(name, choice, get_args(choices))
    _check(prediction, reference, spacing)
    cropped = crop_to_foreground(prediction, reference)
    elements: dict[str, Elements] = {
        "hd": "voxel",
        "hd95": "area" if hd95 == "area" else "voxel",
        "assd": "voxel",
        "nsd": nsd,
    }
    scores: dict[str, Callable[[SurfaceDistances], float]] = {
        "hd": hausdorff,
        "hd95": lambda distances: hausdorff95(distances, hd95),
        "assd": lambda distances: average_surface_distance(distances, assd),
        "nsd": lambda distances: surface_dice(distances, tolerance_mm),
    }
    kinds: set[Elements] = {elements[metric] for metric in metrics}
    made = {kind: surface_distances(*cropped, spacing, kind) for kind in kinds}
    return {metric: scores[metric](made[elements[metric]]) for metric in metrics}


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The length of the diagonal of an image in mm: no distance in it is larger, so it can stand for a missed mask.

    Raises ValueError if the spacing is not one positive number for each axis.
    """
    _check_spacing(spacing, len(shape))
    return math.hypot(*(side * step for side, step in zip(shape, spacing, strict=True)))


def _surface(mask: np.ndarray, spacing: Sequence[float], elements: Elements) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface elements of a mask are, bool, and the weight of each. Its outermost pixels are background."""
    if elements == "voxel":
        surface = boundary(mask)
        return surface, np.ones(np.count_nonzero(surface))
    codes = _neighbour_codes(mask)
    sizes = _element_sizes(tuple(float(step) for step in spacing))
    surface = (codes != 0) & (codes != len(sizes) - 1)
    return surface, sizes[codes[surface]]


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the 2 x 2 (x 2) pixels about each inner corner are true, uint8 [*(S - 1)]: the first is the top bit."""
    codes, bits = mask.view(np.uint8), 1
    for axis in reversed(range(mask.ndim)):
        slices = np.moveaxis(codes, axis, 0)
        codes = np.moveaxis(slices[:-1] << bits | slices[1:], 0, axis)
        bits *= 2
    return codes


@lru_cache(maxsize=1024)
def _element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """The length in mm (2D, [16]) or area in mm² (3D, [256]) of the surface at a corner, for each neighbour code."""
    from monai.metrics.utils import (
        create_table_neighbour_code_to_contour_length,
        create_table_neighbour_code_to_surface_area,
    )

    flat = len(spacing) == 2
    make = create_table_neighbour_code_to_contour_length if flat else create_table_neighbour_code_to_surface_area
    sizes = make(spacing)[0].numpy().astype(np.float64)
    sizes.flags.writeable = False
    return sizes


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least of the values up to which the given share of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    place = np.searchsorted(reached, share * (1 - ROUNDING) * reached[-1])
    return float(values[order[place]])


def _empty_score(distances: SurfaceDistances, missed: float) -> float | None:
    """The score where a mask is empty: NaN for both, `missed` for one. None where neither is."""
    filled = len(distances.from_prediction) > 0, len(distances.from_reference) > 0
    if not any(filled):
        return math.nan
    return None if all(filled) else missed


def _check(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise ValueError(
                f"expected the {name} as a NumPy array of bool, got {type(mask).__name__} of "
                f"{getattr(mask, 'dtype', 'no dtype')}; make one structure of class numbers with `numbers == number`, "
                "and an array of a tensor with `.cpu().numpy()`"
            )
    if prediction.shape != reference.shape or prediction.ndim not in (2, 3):
        raise ValueError(
            f"expected two masks of one shape [*S], 2D or 3D, got {list(prediction.shape)} and "
            f"{list(reference.shape)}; give one case and structure at a time, without batch and channel axes"
        )
    _check_spacing(spacing, prediction.ndim)


def _check_spacing(spacing: Sequence[float], dimensions: int) -> None:
    if len(spacing) != dimensions or not all(0 < step < math.inf for step in spacing):
        raise ValueError(
            f"expected {dimensions} positive spacings in mm, one for each axis, got {list(spacing)}; "
            f"use {[1.0] * dimensions} to measure in pixels"
        )


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"expected {name} among {', '.join(choices)}, got {choice!r}")
