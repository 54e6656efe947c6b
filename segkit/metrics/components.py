"""Scores of the connected components of one structure: lesion-wise F1, Dice and HD95, and panoptic quality.

Components of prediction and reference are matched by a rule, and each one that has no partner is an error. Sizes and
overlaps of all components are counted in one pass; only distances look at components one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from segkit.metrics.surface import Percentile, image_diagonal, surface_scores
from segkit.utils.morphology import Connectivity, crop_to_foreground, label_components

LesionMatching = Literal["overlap", "iou", "brats"]
LESION_METRICS = ("lesion_f1", "lesion_dice", "lesion_hd95")
PANOPTIC_METRICS = ("pq", "rq", "sq")
COMPONENT_METRICS = (*LESION_METRICS, *PANOPTIC_METRICS)
MATCHING_IN_WORDS: dict[LesionMatching, str] = {
    "overlap": "matched to all that share a pixel with them",
    "iou": "matched one to one if their IoU exceeds {iou:g}",
    "brats": "joined if they touch after {dilation} dilations, and then matched to all that they touch",
}


@dataclass(frozen=True)
class ComponentRules:
    """How components are found and matched.

    connectivity: see `label_components`.
    matching: of lesions. `overlap`: a component of the reference is matched to all predicted components that share a
        pixel with it. `iou`: components are matched one to one if their IoU exceeds `iou`, such that the sum of the IoU
        is the largest; above 0.5 there is only one such matching. `brats`: as in BraTS 2023: components of the
        reference that touch after `dilation` steps are one lesion, which is matched to all predicted components that
        share a pixel with the dilated lesion.
    iou: of the matching `iou`, and of panoptic quality (0.5 in Kirillov et al., 2019).
    dilation: steps, each of which adds the neighbours of a pixel that share a side or an edge with it: 18 in 3D, and
        all 8 in 2D.
    min_volume: lesions of the reference up to this volume in mm³ (area in mm² in 2D) are left out, and so are the
        predicted components that are matched to them. Not for panoptic quality.
    penalty: the HD95 in mm of a lesion without a partner; `worst` for the diagonal of the image.
    hd95: see `hausdorff95`.

    Raises ValueError for values out of range.
    """

    connectivity: Connectivity = "full"
    matching: LesionMatching = "overlap"
    iou: float = 0.5
    dilation: int = 3
    min_volume: float = 0.0
    penalty: float | Literal["worst"] = "worst"
    hd95: Percentile = "directed"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("connectivity", self.connectivity, get_args(Connectivity)),
            ("lesion_matching", self.matching, get_args(LesionMatching)),
        ):
            if value not in choices:
                raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}")
        if not 0 <= self.iou < 1:
            raise ValueError(f"expected component_iou from 0 to below 1, got {self.iou}")
        if self.dilation < 1 or not 0 <= self.min_volume < math.inf:
            raise ValueError(
                "expected a lesion_dilation of at least 1 and a finite lesion_min_volume of at least 0, got "
                f"{self.dilation} and {self.min_volume}"
            )
        if self.penalty != "worst" and not 0 <= self.penalty < math.inf:
            raise ValueError(f"expected lesion_penalty_mm to be a number of at least 0 or worst, got {self.penalty}")

    def describe(self, metrics: Sequence[str]) -> list[str]:
        """Lines of text that explain how the components of these metrics are matched."""
        neighbours = "sharing a corner" if self.connectivity == "full" else "sharing a side"
        lesions, panoptic = (
            [name for name in metrics if name in names] for names in (LESION_METRICS, PANOPTIC_METRICS)
        )
        lines = []
        if lesions:
            small = f"; lesions up to {self.min_volume:g} mm³ are left out" if self.min_volume else ""
            worst = "the image diagonal" if self.penalty == "worst" else f"{self.penalty:g} mm"
            missed = f"; HD95 of a missed or false one is {worst}" if "lesion_hd95" in lesions else ""
            how = MATCHING_IN_WORDS[self.matching].format(iou=self.iou, dilation=self.dilation)
            lines.append(f"{', '.join(lesions)}: lesions are pixels {neighbours}, {how}{small}{missed}")
        if panoptic:
            how = MATCHING_IN_WORDS["iou"].format(iou=self.iou)
            lines.append(f"{', '.join(panoptic)}: components are pixels {neighbours}, {how}")
        return lines


@dataclass(frozen=True, eq=False)
class Components:
    """The components of prediction and reference, numbered from 0 in the counts and from 1 in the masks.

    predicted, reference: int32 [*S].
    predicted_sizes, reference_sizes: their pixels, [P] and [R].
    """

    predicted: np.ndarray
    reference: np.ndarray
    predicted_sizes: np.ndarray
    reference_sizes: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of a component of the reference and a predicted one, [M] each. overlap: the pixels that they share, [M]."""

    reference: np.ndarray
    predicted: np.ndarray
    overlap: np.ndarray


def component_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    metrics: Sequence[str],
    rules: ComponentRules | None = None,
) -> dict[str, float]:
    """Scores of the components of one structure by name, some of COMPONENT_METRICS.

    A lesion is detected if it is matched (TP), else it is missed (FN); a predicted component that is matched to none
    is false (FP). `lesion_f1`: 2 TP / (2 TP + FP + FN). `lesion_dice`: the mean over TP, FN and FP of the Dice of a
    lesion and the union of what it is matched to, 0 without a match. `lesion_hd95`: the same mean of HD95 in mm, with
    the penalty where there is no match.

    `rq`: F1 of components that are matched one to one by their IoU. `sq`: the mean IoU of matched pairs, 0 without any.
    `pq`: panoptic quality, rq x sq (Kirillov et al., 2019).

    prediction, reference: bool [*S], 2D or 3D. spacing: mm along each axis. rules: default `ComponentRules()`.

    NaN if there are no components, or none that count; if one mask is empty, all are missed or false.
    """
    rules = rules or ComponentRules()
    diagonal = image_diagonal(prediction.shape, spacing)
    components = find_components(*crop_to_foreground(prediction, reference), rules)
    scores = _panoptic_scores(components, rules) if any(metric in PANOPTIC_METRICS for metric in metrics) else {}
    if any(metric in LESION_METRICS for metric in metrics):
        penalty = diagonal if rules.penalty == "worst" else rules.penalty
        scores |= _lesion_scores(components, spacing, penalty, rules, with_distances="lesion_hd95" in metrics)
    return {metric: scores[metric] for metric in metrics}


def find_components(prediction: np.ndarray, reference: np.ndarray, rules: ComponentRules) -> Components:
    """The connected components of two bool masks [*S]."""
    return _counted(
        label_components(prediction, rules.connectivity)[0], label_components(reference, rules.connectivity)[0]
    )


def _counted(predicted: np.ndarray, reference: np.ndarray) -> Components:
    sizes = [np.bincount(labels.reshape(-1))[1:] for labels in (predicted, reference)]
    return Components(predicted, reference, *sizes)


def shared_pixels(predicted: np.ndarray, reference: np.ndarray) -> Matches:
    """All pairs of components of two numbered masks [*S] that share pixels."""
    both = (predicted > 0) & (reference > 0)
    columns = int(predicted.max(initial=0)) + 1
    found, overlap = np.unique(reference[both].astype(np.int64) * columns + predicted[both], return_counts=True)
    return Matches(found // columns - 1, found % columns - 1, overlap)


def match_by_iou(components: Components, threshold: float) -> tuple[Matches, np.ndarray]:
    """Match components one to one, and the IoU of each pair [M]; only pairs above the threshold are matched."""
    from scipy.optimize import linear_sum_assignment

    pairs = shared_pixels(components.predicted, components.reference)
    union = components.reference_sizes[pairs.reference] + components.predicted_sizes[pairs.predicted] - pairs.overlap
    iou = pairs.overlap / union
    above = np.flatnonzero(iou > threshold)
    if threshold < 0.5 and len(above):
        (rows, row), (columns, column) = (
            np.unique(numbers[above], return_inverse=True) for numbers in (pairs.reference, pairs.predicted)
        )
        table = np.zeros((len(rows), len(columns)))
        table[row, column] = iou[above]
        chosen = np.zeros_like(table, dtype=bool)
        chosen[linear_sum_assignment(table, maximize=True)] = True
        above = above[chosen[row, column]]
    return Matches(pairs.reference[above], pairs.predicted[above], pairs.overlap[above]), iou[above]


def _panoptic_scores(components: Components, rules: ComponentRules) -> dict[str, float]:
    _, iou = match_by_iou(components, rules.iou)
    number = len(components.reference_sizes) + len(components.predicted_sizes)
    if not number:
        return dict.fromkeys(PANOPTIC_METRICS, math.nan)
    recognition = 2 * len(iou) / number
    segmentation = float(iou.mean()) if len(iou) else 0.0
    return {"pq": recognition * segmentation, "rq": recognition, "sq": segmentation}


# --- lesions ----------------------------------------------------------------------------------------------------------


def _by_overlap(components: Components, _rules: ComponentRules) -> tuple[Components, Matches]:
    return components, shared_pixels(components.predicted, components.reference)


def _by_iou(components: Components, rules: ComponentRules) -> tuple[Components, Matches]:
    return components, match_by_iou(components, rules.iou)[0]


def _by_dilation(components: Components, rules: ComponentRules) -> tuple[Components, Matches]:
    """Lesions are components of the dilated reference; a dilated lesion is matched to all that it touches."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    # what is dilated beyond the box of both masks joins and touches nothing that it does not join and touch inside
    structure = generate_binary_structure(components.reference.ndim, 2)
    dilated = binary_dilation(components.reference > 0, structure, rules.dilation)
    groups, _ = label_components(dilated, rules.connectivity)
    lesions = np.where(components.reference > 0, groups, 0)
    return _counted(components.predicted, lesions), shared_pixels(components.predicted, groups)


MATCHINGS: dict[LesionMatching, Callable[[Components, ComponentRules], tuple[Components, Matches]]] = {
    "overlap": _by_overlap,
    "iou": _by_iou,
    "brats": _by_dilation,
}


def _lesion_scores(
    components: Components, spacing: Sequence[float], penalty: float, rules: ComponentRules, *, with_distances: bool
) -> dict[str, float]:
    components, matches = MATCHINGS[rules.matching](components, rules)
    counted = components.reference_sizes * math.prod(spacing) > rules.min_volume
    partners = np.bincount(matches.reference, minlength=len(counted))
    false = len(components.predicted_sizes) - len(np.unique(matches.predicted))
    number = int(counted.sum()) + false
    if not number:
        return dict.fromkeys(LESION_METRICS, math.nan)
    detected = int((counted & (partners > 0)).sum())
    scores = {
        "lesion_f1": 2 * detected / (detected + number),
        "lesion_dice": float(_dice_of_lesions(components, matches)[counted].sum()) / number,
    }
    if with_distances:
        found = _hd95_of_lesions(components, matches, np.flatnonzero(counted & (partners > 0)), spacing, rules.hd95)
        scores["lesion_hd95"] = (math.fsum(found) + (number - detected) * penalty) / number
    return scores


def _dice_of_lesions(components: Components, matches: Matches) -> np.ndarray:
    """The Dice of each lesion and the union of what it is matched to, [R]; 0 without a match."""
    size, lesions = components.reference_sizes, len(components.reference_sizes)
    predicted = np.bincount(matches.reference, components.predicted_sizes[matches.predicted], lesions)
    shared = shared_pixels(components.predicted, components.reference)
    # a match may share no pixel with the lesion itself, and pixels may be shared without a match
    is_match = np.isin(_pair_numbers(shared, components), _pair_numbers(matches, components))
    overlap = np.bincount(shared.reference[is_match], shared.overlap[is_match], lesions)
    return 2 * overlap / (size + predicted)


def _pair_numbers(matches: Matches, components: Components) -> np.ndarray:
    return matches.reference * len(components.predicted_sizes) + matches.predicted


def _hd95_of_lesions(
    components: Components, matches: Matches, lesions: np.ndarray, spacing: Sequence[float], mode: Percentile
) -> list[float]:
    """HD95 of each of some lesions and the union of what it is matched to, in its bounding box."""
    from scipy.ndimage import find_objects

    boxes = [find_objects(labels) for labels in (components.reference, components.predicted)]
    found = []
    for lesion in lesions:
        partners = matches.predicted[matches.reference == lesion]
        box = _around([boxes[0][lesion], *(boxes[1][partner] for partner in partners)])
        masks = np.isin(components.predicted[box], partners + 1), components.reference[box] == lesion + 1
        found.append(surface_scores(*masks, spacing, ["hd95"], hd95=mode)["hd95"])
    return found


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box around some boxes."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*boxes, strict=True)
    )
