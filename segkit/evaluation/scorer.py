"""Count and measure case after case, and turn the counts into a table of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from segkit.data.datasets import EvaluationSet
from segkit.evaluation.results import CaseScores
from segkit.evaluation.scoring import DICE_AND_IOU, Scoring
from segkit.inference.memory import PredictionMemoryError
from segkit.inference.prediction import Prediction
from segkit.inference.predictor import ImagePredictor, nonfinite_text, to_device
from segkit.labels import Labels
from segkit.metrics.all_gather import PixelTotals, add_totals, cases_of_rank, gather_table, gather_totals
from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration_summary import calibration_scores, pooled_calibration_counts
from segkit.metrics.case_table import BOUNDARY, COUNTS, DIAGONAL, PIXELS, cases_table
from segkit.metrics.counts import pixel_counts
from segkit.metrics.measured import measure
from segkit.metrics.size_strata import SIZES, pixel_size
from segkit.metrics.surface import image_diagonal
from segkit.utils.errors import DataError

# columns: pixels whose value is not a class, and pixels whose logits are not finite
INVALID = ["unknown_prediction", "unknown_mask", "nonfinite"]


class Scorer:
    """Accumulates the counts of cases in one table on the device, which is read back once, by `result`."""

    def __init__(self, cases: int, labels: Labels, scoring: Scoring, device: torch.device, *, shared: bool = False):
        """Allocate the table.

        cases: the largest number of cases that will be added.
        shared: whether several processes score parts of the cases and `result` merges them. Confusion matrix and
            calibration are then kept per case, so that a case that is evaluated by two processes is counted once.
        """
        self.labels, self.scoring = labels, scoring
        self.columns = [*COUNTS, *PIXELS, *(BOUNDARY if "boundary_iou" in scoring.metrics else [])]
        self.table = torch.zeros(cases, labels.channels, len(self.columns), dtype=torch.int64, device=device)
        self.invalid = torch.zeros(cases, len(INVALID), dtype=torch.int64, device=device)
        self.totals: PixelTotals = (None, {})
        self.totals_by_case: dict[str, PixelTotals] | None = {} if shared else None
        measured_columns = [*scoring.measured_metrics, DIAGONAL] if scoring.measured_metrics else []
        self.measured_values: dict[str, list[list[float]]] = {name: [] for name in measured_columns}
        self.spacings: list[tuple[float, ...]] = []
        self.names: list[str] = []
        self.groups: list[str] = []

    def add(
        self,
        case: str,
        group: str,
        prediction: Tensor,
        mask: Tensor,
        spacing: Sequence[float],
        probabilities: Tensor | None = None,
        nonfinite: Tensor | None = None,
    ) -> None:
        """Count and measure one case.

        prediction, mask: [1, ...] in the forms that `segkit.metrics.count` accepts, on the device of the scorer.
        spacing: mm along each axis.
        probabilities: [1, K, *S]; only used if the scoring includes calibration.
        nonfinite: see `Prediction`; None for 0.
        """
        pixels = pixel_counts(prediction, mask, self.labels)
        columns = [pixels.counts, pixels.valid[..., None], pixels.ignored[..., None]]
        if "boundary_iou" in self.scoring.metrics:
            width = ("ratio", self.scoring.rules.boundary_ratio)
            columns.append(boundary_counts(prediction, mask, self.labels, width))
        row = len(self.names)
        self.table[row] = torch.cat(columns, -1)[0]
        self.invalid[row, :2] = pixels.invalid[0]
        if nonfinite is not None:
            self.invalid[row, 2] = nonfinite
        calibration = (
            pooled_calibration_counts(probabilities, mask, self.labels)
            if self.scoring.calibration and probabilities is not None
            else {}
        )
        totals: PixelTotals = (None if pixels.matrix is None else pixels.matrix[0], calibration)
        if self.totals_by_case is None:
            self.totals = add_totals(self.totals, totals)
        else:
            self.totals_by_case[case] = totals
        if self.scoring.measured_metrics:
            self._measure(prediction, mask, spacing)
        self.spacings.append(tuple(spacing))
        self.names.append(case)
        self.groups.append(group)

    def _measure(self, prediction: Tensor, mask: Tensor, spacing: Sequence[float]) -> None:
        """Measure each class on its masks, on the CPU."""
        rules, metrics, scores_by_class = self.scoring.rules, self.scoring.measured_metrics, []
        for masks in class_masks(prediction.cpu(), mask.cpu(), self.labels):
            scores = measure(*masks, spacing, metrics, rules)
            scores_by_class.append({**scores, DIAGONAL: image_diagonal(masks[0].shape, spacing)})
        for name, column in self.measured_values.items():
            column.append([scores[name] for scores in scores_by_class])

    def _sizes(self, reference: np.ndarray) -> dict[str, np.ndarray]:
        """The column of the sizes of each class, if scores by size are wanted. reference: its pixels, [N, K].

        Raises DataError for 2D and 3D cases together, whose sizes have no common unit.
        """
        if self.scoring.size_strata is None:
            return {}
        dimensions = {len(spacing) for spacing in self.spacings}
        if len(dimensions) > 1:
            raise DataError("size_strata need cases of one kind, got 2D images and volumes, whose sizes differ in unit")
        sizes = np.array([pixel_size(spacing) for spacing in self.spacings])
        return {SIZES[number]: reference * sizes[:, None] for number in dimensions}

    def result(self, group: ProcessGroup | None = None) -> CaseScores:
        """Read all counts back and return the scores of all cases.

        group: process group whose processes each scored a part of the cases. Every process gets the scores of all
            cases; a case that several processes have appears once.

        Raises DataError if a case contains a value that is not a class, or logits that are not finite, and ValueError
        for a group without `shared`.
        """
        if group is not None and self.totals_by_case is None:
            raise ValueError("expected a Scorer created with shared=True for a process group")
        table, shape = self.table[: len(self.names)].cpu().numpy(), (len(self.names), self.labels.channels)
        invalid = self.invalid[: len(self.names), None].expand(*shape, len(INVALID)).cpu().numpy()
        cases = cases_table(
            self.names,
            self.groups,
            table[..., : len(COUNTS)],
            self.labels,
            columns={name: table[..., column] for column, name in enumerate(self.columns) if name not in COUNTS}
            | {name: np.array(values, float).reshape(shape) for name, values in self.measured_values.items()}
            | self._sizes(table[..., COUNTS.index("reference")])
            | {name: invalid[..., column] for column, name in enumerate(INVALID)},
            metrics=self.scoring.metrics,
            rules=self.scoring.rules,
        )
        cases = gather_table(cases, group)
        matrix, counts = self.totals if group is None else gather_totals(self.totals_by_case or {}, group)
        # checked only after the exchange, so that no process waits for another one that has already failed
        check_values(cases, self.labels)
        calibration = calibration_scores(counts, self.labels) if counts else None
        return CaseScores(cases.drop(columns=INVALID), None if matrix is None else matrix.cpu().numpy(), calibration)


def check_values(cases: Any, labels: Labels) -> None:
    """Raise DataError for the first case with logits that are not finite, or with a value that is not a class."""
    for row in cases[(cases[INVALID] > 0).any(axis=1)].to_dict("records"):
        if row[INVALID[2]]:
            raise DataError(f"case {row['case']}: {nonfinite_text(row[INVALID[2]])}")
        raise DataError(
            f"case {row['case']}: expected the values {labels.values_text}, got other values in {row[INVALID[0]]} "
            f"pixels of the prediction and {row[INVALID[1]]} pixels of the mask"
        )


def class_masks(prediction: Tensor, mask: Tensor, labels: Labels) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The predicted and the reference mask of each channel, bool [*S], from tensors [1, ...].

    Ignored pixels are False in both.
    """
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    target = labels.target(mask, spatial=spatial)
    numbers = labels.channel_numbers(prediction.dtype, prediction.device).tolist()
    for channel, number in enumerate(numbers):
        predicted = prediction[0, channel] == 1 if labels.mode == "multilabel" else prediction[0] == number
        reference = target.index[0] == number if target.index is not None else target.onehot[0, channel]  # pyright: ignore
        valid = target.valid_channels
        counted = torch.ones_like(predicted) if valid is None else valid[0, channel if valid.shape[1] > 1 else 0]
        yield (predicted & counted).numpy(), (reference & counted).numpy()


def score_cases(
    predictor: ImagePredictor,
    cases: EvaluationSet,
    labels: Labels,
    scoring: Scoring = DICE_AND_IOU,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    group: ProcessGroup | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
    observe: Callable[[int, Tensor, Tensor, Sequence[float]], None] | None = None,
) -> CaseScores:
    """Predict and score every case on its original grid.

    track: wraps the iterable of case numbers, for a progress bar.
    group: process group that shares the cases. Each process scores a part of them, and all get the scores of all cases.
    keep: called with the number and the predicted mask of each case.
    observe: called with the number, the logits [1, K, *S], the mask [1, ...] and the spacing of each case.

    Raises DataError, as `Scorer.result` does, and PredictionMemoryError, which names the case.
    """
    numbers = cases_of_rank(len(cases), group)
    scorer = Scorer(len(numbers), labels, scoring, predictor.device, shared=group is not None)
    for number in track(numbers):
        mask = score_case(scorer, predictor, cases[number], None if observe is None else partial(observe, number))
        if keep is not None:
            keep(number, mask[0])
    threshold = None if labels.mode == "multiclass" else predictor.threshold
    return replace(scorer.result(group), threshold=threshold)


def score_case(
    scorer: Scorer,
    predictor: ImagePredictor,
    sample: Mapping[str, Any],
    observe: Callable[[Tensor, Tensor, Sequence[float]], None] | None = None,
) -> Tensor:
    """Predict and score a sample on the grid of its mask; the predicted mask [1, ...].

    observe: called with the logits [1, K, *S], the mask [1, ...] and the spacing.

    Raises PredictionMemoryError, which names the case.
    """
    labels, calibrated = scorer.labels, scorer.scoring.calibration
    mask = to_device(sample["mask"][None], predictor.device)
    prediction = _predicted(predictor, sample, labels, keep_logits=calibrated or observe is not None)
    logits = prediction.logits
    if observe is not None and logits is not None:
        observe(logits, mask, sample["spacing"])
    scorer.add(
        sample["case"],
        sample["group"],
        prediction.mask,
        mask,
        sample["spacing"],
        labels.probabilities(logits) if calibrated and logits is not None else None,
        prediction.nonfinite,
    )
    return prediction.mask


def _predicted(
    predictor: ImagePredictor, sample: Mapping[str, Any], labels: Labels, *, keep_logits: bool
) -> Prediction:
    try:
        return predictor.predict(sample["image"], spatial_size(sample["mask"], labels), keep_logits=keep_logits)
    except PredictionMemoryError as error:
        raise PredictionMemoryError(f"case {sample['case']}: {error}") from error


def spatial_size(mask: Tensor, labels: Labels) -> tuple[int, ...]:
    """The spatial size of a mask [*S] or [K, *S]."""
    return tuple(mask.shape[1:] if labels.has_mask_channels else mask.shape)
