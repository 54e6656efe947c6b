"""Distances between the surfaces of two masks, and the scores HD, HD95, ASSD, NSD and others of them, in float64.

Libraries differ in the elements of a surface and in how the two directions are combined into one number; both choices
are explicit here. Distances are in the unit of the spacing: mm, or pixels for a spacing of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from segkit.utils.metric_names import DESCRIBED_PATTERNS, Direction, SurfaceName, surface_name
from segkit.utils.morphology import boundary, crop_to_foreground, distances_between

Elements = Literal["voxel", "area"]
Percentile = Literal["directed", "pooled", "area"]
Average = Literal["pooled", "mean_of_means"]
SURFACE_METRICS = ("hd", "hd95", "assd", "nsd")
# Spacings and areas are often float32. Values that are equal up to its precision are treated as equal.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The distance of each element of one surface to the other surface, in both directions.

    from_prediction, from_reference: distances in mm, float64 [n] and [m]. They are inf if the other mask is empty, and
        have length 0 if the mask itself is empty.
    prediction_weights, reference_weights: weight of each element, [n] and [m]: 1 for voxels; for areas its length in
        mm (2D) or area in mm² (3D).
    """

    from_prediction: np.ndarray
    from_reference: np.ndarray
    prediction_weights: np.ndarray
    reference_weights: np.ndarray


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], elements: Elements = "voxel"
) -> SurfaceDistances:
    """Distances from each surface element of one mask to the nearest surface element of the other, both ways.

    prediction, reference: bool [*S], 2D or 3D. Everything beyond the image is background.
    spacing: mm along each axis.
    elements: `voxel`: mask pixels with a direct neighbour outside of the mask, each with weight 1. `area`: the corners
        at which 2 x 2 (x 2) pixels are not all equal, each weighted by the length or area of the surface at the corner
        (Nikolov et al., 2021).

    Raises ValueError if the masks are not bool or not 2D or 3D, if their shapes differ, if the spacing is not one
    positive number per axis, or for unknown elements.
    """
    _check(prediction, reference, spacing)
    _check_choice("elements", elements, get_args(Elements))
    prediction, reference = crop_to_foreground(prediction, reference)
    prediction_surface, prediction_weights = _surface(prediction, spacing, elements)
    reference_surface, reference_weights = _surface(reference, spacing, elements)
    distances = distances_between(prediction_surface, reference_surface, spacing)
    return SurfaceDistances(*distances, prediction_weights, reference_weights)


def hausdorff(distances: SurfaceDistances, direction: Direction | None = None) -> float:
    """Hausdorff distance: the largest distance in either direction, in mm. Weights are not used.

    direction: the surface from which distances are measured, for a one-directional distance: `prediction` finds what is
        predicted far from the reference, `reference` what of the reference is far from the prediction.

    NaN if both masks are empty, inf if one is.
    """
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    return float(max(values.max() for values, _ in _directions(distances, direction)))


def hausdorff95(distances: SurfaceDistances, mode: Percentile = "directed") -> float:
    """95th percentile of the surface distances, a robust Hausdorff distance, in mm; see `hausdorff_percentile`."""
    return hausdorff_percentile(distances, 95, mode)


def hausdorff_percentile(
    distances: SurfaceDistances, percentile: float, mode: Percentile = "directed", direction: Direction | None = None
) -> float:
    """A percentile of the surface distances, a robust Hausdorff distance, in mm (Huttenlocher et al., 1993).

    percentile: above 0 and below 100.
    mode: `directed`: the larger of the percentiles of the two directions, with linear interpolation (MONAI,
        MetricsReloaded). `pooled`: the percentile of the distances of both directions together, with linear
        interpolation (MedPy). `area`: the larger of the two directions, where the percentile is the smallest distance
        within which that percentage of the weight lies (Nikolov et al., 2021). Only `area` uses the weights.
    direction: see `hausdorff`; of one direction, `directed` and `pooled` are the same.

    NaN if both masks are empty, inf if one is. Raises ValueError for an unknown mode.
    """
    _check_choice("mode", mode, get_args(Percentile))
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    ways = _directions(distances, direction)
    if mode == "pooled":
        return float(np.percentile(np.concatenate([values for values, _ in ways]), percentile))
    if mode == "directed":
        return float(max(np.percentile(values, percentile) for values, _ in ways))
    return max(_weighted_quantile(*way, percentile / 100) for way in ways)


def average_surface_distance(
    distances: SurfaceDistances, mode: Average = "pooled", direction: Direction | None = None
) -> float:
    """Average symmetric surface distance (ASSD), weighted, in mm (Heimann et al., 2009).

    mode: `pooled`: the mean over the elements of both surfaces (MONAI, MedPy). `mean_of_means`: the mean of the means
        of the two directions, also called MASD (MetricsReloaded).
    direction: see `hausdorff`; the mean of one direction is the average surface distance (ASD) in either mode.

    NaN if both masks are empty, inf if one is. Raises ValueError for an unknown mode.
    """
    _check_choice("mode", mode, get_args(Average))
    empty = _empty_score(distances, math.inf)
    if empty is not None:
        return empty
    ways = _directions(distances, direction)
    sums, sizes = [float(values @ weights) for values, weights in ways], [float(weights.sum()) for _, weights in ways]
    if mode == "pooled":
        return sum(sums) / sum(sizes)
    return sum(total / size for total, size in zip(sums, sizes, strict=True)) / len(ways)


def _directions(distances: SurfaceDistances, direction: Direction | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The distances and weights of the directions that count."""
    ways = {
        "prediction": (distances.from_prediction, distances.prediction_weights),
        "reference": (distances.from_reference, distances.reference_weights),
    }
    return list(ways.values()) if direction is None else [ways[direction]]


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD): the fraction of both surfaces within `tolerance_mm` of the other one, 0 to 1.

    It is the fraction of voxels or of the area, depending on the elements of the distances (area in Nikolov et al.,
    2021). A distance equal to the tolerance is within it, up to the precision of float32.

    NaN if both masks are empty, 0 if one is. Raises ValueError if the tolerance is negative or not finite.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(
            f"expected a tolerance of 0 mm or more, got {tolerance_mm}; choose one within which human observers agree"
        )
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
    """Surface scores of one structure by name: distances in mm, and `nsd` from 0 to 1.

    prediction, reference: bool [*S], 2D or 3D.
    spacing: mm along each axis.
    metrics: names of the scores to compute: `hd`, `assd` and `nsd`; `hd95` or any other percentile, such as `hd90`; one
        direction of them, such as `hd_from_prediction`, `hd95_from_reference` or `asd_from_prediction`.
    tolerance_mm: tolerance of NSD.
    hd95, assd: the modes of `hausdorff_percentile`, for every percentile, and of `average_surface_distance`.
    nsd: the surface elements of NSD. All other scores use voxels, except percentiles with the mode `area`.

    If both masks are empty, scores are NaN; if one is, distances are inf and nsd is 0. Raises ValueError as
    `surface_distances` does, and for an unknown metric or mode or an invalid tolerance.
    """
    names = {metric: surface_name(metric) for metric in metrics}
    unknown = [metric for metric, name in names.items() if name is None and metric != "nsd"]
    if unknown:
        raise ValueError(
            f"expected metrics to be some of {', '.join((*SURFACE_METRICS, *DESCRIBED_PATTERNS))}, got {unknown[0]!r}"
        )
    for name, choice, choices in (("hd95", hd95, Percentile), ("assd", assd, Average), ("nsd", nsd, Elements)):
        _check_choice(name, choice, get_args(choices))
    _check(prediction, reference, spacing)
    cropped = crop_to_foreground(prediction, reference)

    elements: dict[str, Elements] = {"hd": "voxel", "hd95": "area" if hd95 == "area" else "voxel", "assd": "voxel"}
    needed: dict[str, Elements] = {
        metric: nsd if name is None else elements[name.base] for metric, name in names.items()
    }
    distances = {kind: surface_distances(*cropped, spacing, kind) for kind in set(needed.values())}
    return {
        metric: surface_dice(distances[kind], tolerance_mm)
        if (name := names[metric]) is None
        else _named_distance(distances[kind], name, hd95, assd)
        for metric, kind in needed.items()
    }


def _named_distance(distances: SurfaceDistances, name: SurfaceName, hd95: Percentile, assd: Average) -> float:
    """The distance that a name stands for."""
    if name.base == "hd":
        return hausdorff(distances, name.direction)
    if name.percentile is None:
        return average_surface_distance(distances, assd, name.direction)
    return hausdorff_percentile(distances, name.percentile, hd95, name.direction)


def is_surface_metric(metric: str) -> bool:
    """Whether `surface_scores` computes a metric of this name."""
    return metric == "nsd" or surface_name(metric) is not None


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the diagonal of an image in mm: an upper limit of all distances, used as the score of missed classes.

    Raises ValueError if the spacing is not one positive number per axis.
    """
    _check_spacing(spacing, len(shape))
    return math.hypot(*(side * step for side, step in zip(shape, spacing, strict=True)))


def _surface(mask: np.ndarray, spacing: Sequence[float], elements: Elements) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the surface elements of a mask, bool, and their weights. Its outermost pixels are background."""
    if elements == "voxel":
        surface = boundary(mask)
        return surface, np.ones(np.count_nonzero(surface))
    codes = _neighbour_codes(mask)
    sizes = _element_sizes(tuple(float(step) for step in spacing))
    surface = (codes != 0) & (codes != len(sizes) - 1)
    return surface, sizes[codes[surface]]


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """The 2 x 2 (x 2) pixels around each inner corner as bits of a uint8, the first pixel highest: [*(S - 1)]."""
    codes, bits = mask.view(np.uint8), 1
    for axis in reversed(range(mask.ndim)):
        slices = np.moveaxis(codes, axis, 0)
        codes = np.moveaxis(slices[:-1] << bits | slices[1:], 0, axis)
        bits *= 2
    return codes


@lru_cache(maxsize=1024)
def _element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """Length in mm (2D, [16]) or area in mm² (3D, [256]) of the surface at a corner, for each neighbour code."""
    from monai.metrics.utils import (
        create_table_neighbour_code_to_contour_length,
        create_table_neighbour_code_to_surface_area,
    )

    flat = len(spacing) == 2
    make = create_table_neighbour_code_to_contour_length if flat else create_table_neighbour_code_to_surface_area
    sizes = make(spacing)[0].numpy().astype(np.float64)
    sizes.flags.writeable = False
    return sizes


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest value such that the values up to it have the fraction `level` of the total weight."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    index = np.searchsorted(cumulative, level * (1 - ROUNDING) * cumulative[-1])
    return float(values[order[index]])


def _empty_score(distances: SurfaceDistances, one_empty: float) -> float | None:
    """The score if masks are empty: NaN for two empty masks, `one_empty` for one; None if neither is empty."""
    non_empty = len(distances.from_prediction) > 0, len(distances.from_reference) > 0
    if not any(non_empty):
        return math.nan
    return None if all(non_empty) else one_empty


def _check(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise ValueError(
                f"expected the {name} as a NumPy array of bool, got {type(mask).__name__} of "
                f"{getattr(mask, 'dtype', 'no dtype')}; select one class of class numbers with `mask == number`, "
                "and convert a tensor with `.cpu().numpy()`"
            )
    if prediction.shape != reference.shape or prediction.ndim not in (2, 3):
        raise ValueError(
            f"expected two masks of the same shape [*S], 2D or 3D, got {list(prediction.shape)} and "
            f"{list(reference.shape)}; pass one case and class at a time, without batch and channel axes"
        )
    _check_spacing(spacing, prediction.ndim)


def _check_spacing(spacing: Sequence[float], dimensions: int) -> None:
    if len(spacing) != dimensions or not all(0 < step < math.inf for step in spacing):
        raise ValueError(
            f"expected {dimensions} positive spacings in mm, one per axis, got {list(spacing)}; "
            f"use {[1.0] * dimensions} to measure in pixels"
        )


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {choice!r}")
