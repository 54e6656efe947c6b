"""Predict every case, count on the device, and derive tables, scores and pictures from the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from segkit.data.loaders import EvaluationSet
from segkit.evaluation.results import Scored
from segkit.evaluation.scoring import DICE_AND_IOU, UNKNOWN, Scoring
from segkit.inference.predictor import Predictor, to_device
from segkit.labels import Labels
from segkit.metrics.all_gather import Part, add_parts, gather_parts, gather_table, share_of
from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration_summary import calibration_of, calibration_scores
from segkit.metrics.case_table import BOUNDARY, COUNTS, DIAGONAL, PIXELS, cases_table
from segkit.metrics.counts import tally
from segkit.metrics.surface import image_diagonal, surface_scores
from segkit.utils.errors import DataError


class Scorer:
    """Counts case after case into one table on the device, which is read back once, at the end."""

    def __init__(self, cases: int, labels: Labels, scoring: Scoring, device: torch.device, *, shared: bool = False):
        """shared: whether `result` is to put the parts of several processes together, so that a case that two of them
        have can be taken out of confusion matrix and calibration too, which are then kept for each case."""
        self.labels, self.scoring = labels, scoring
        columns = [*COUNTS, *PIXELS, *(BOUNDARY if "boundary_iou" in scoring.metrics else [])]
        self.columns = columns
        self.table = torch.zeros(cases, labels.channels, len(columns), dtype=torch.int64, device=device)
        self.unknown = torch.zeros(cases, 2, dtype=torch.int64, device=device)
        self.whole: Part = (None, {})
        self.parts: dict[str, Part] | None = {} if shared else None
        asked = [*scoring.surface, DIAGONAL] if scoring.surface else []
        self.measured: dict[str, list[list[float]]] = {name: [] for name in asked}
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
    ) -> None:
        """Take in a case: prediction and mask [1, ...] as `count` takes them, on the device; spacing in mm."""
        found = tally(prediction, mask, self.labels)
        parts = [found.counts, found.pixels[..., None], found.ignored[..., None]]
        if "boundary_iou" in self.scoring.metrics:
            width = ("ratio", self.scoring.rules.boundary_ratio)
            parts.append(boundary_counts(prediction, mask, self.labels, width))
        row = len(self.names)
        self.table[row] = torch.cat(parts, -1)[0]
        self.unknown[row] = found.unknown[0]
        asked = probabilities if self.scoring.calibration else None
        calibration = {} if asked is None else calibration_of(asked, mask, self.labels)
        part: Part = (None if found.matrix is None else found.matrix[0], calibration)
        if self.parts is None:
            self.whole = add_parts(self.whole, part)
        else:
            self.parts[case] = part
        if self.scoring.surface:
            self._measure(prediction, mask, spacing)
        self.names.append(case)
        self.groups.append(group)

    def _measure(self, prediction: Tensor, mask: Tensor, spacing: Sequence[float]) -> None:
        """Surfaces of each class, which are found on the CPU."""
        rules, scores_json = self.scoring.rules, []
        for predicted, reference in structures(prediction.cpu(), mask.cpu(), self.labels):
            scores_json.append(
                surface_scores(
                    predicted,
                    reference,
                    spacing,
                    self.scoring.surface,
                    tolerance_mm=rules.tolerance_mm,
                    hd95=rules.hd95,
                    assd=rules.assd,
                    nsd=rules.nsd,
                )
            )
            scores_json[-1][DIAGONAL] = image_diagonal(predicted.shape, spacing)
        for name, column in self.measured.items():
            column.append([score[name] for score in scores_json])

    def result(self, group: ProcessGroup | None = None) -> Scored:
        """Everything, read back at once. group: of processes that share the cases; each gets the whole result, a case
        that several have once.

        Raises DataError for a case that holds a value that is no class, and ValueError for a group without `shared`.
        """
        if group is not None and self.parts is None:
            raise ValueError("expected a scorer that was made with shared=True to be given a group")
        table, shape = self.table[: len(self.names)].cpu().numpy(), (len(self.names), self.labels.channels)
        unknown = self.unknown[: len(self.names), None].expand(*shape, 2).cpu().numpy()
        cases = cases_table(
            self.names,
            self.groups,
            table[..., : len(COUNTS)],
            self.labels,
            columns={name: table[..., place] for place, name in enumerate(self.columns) if name not in COUNTS}
            | {name: np.array(column, float).reshape(shape) for name, column in self.measured.items()}
            | {name: unknown[..., place] for place, name in enumerate(UNKNOWN)},
            metrics=self.scoring.metrics,
            rules=self.scoring.rules,
        )
        cases = gather_table(cases, group)
        matrix, calibration = self.whole if group is None else gather_parts(self.parts or {}, group)
        # what is wrong with a case is said after all have met, so that no process waits for one that has stopped
        refuse_unknown(cases, self.labels)
        judged = calibration_scores(calibration, self.labels) if calibration else None
        return Scored(cases.drop(columns=UNKNOWN), None if matrix is None else matrix.cpu().numpy(), judged)


def refuse_unknown(cases: Any, labels: Labels) -> None:
    """Raise DataError for the first case in which a value is no class."""
    for row in cases[(cases[UNKNOWN] > 0).any(axis=1)].to_dict("records"):
        raise DataError(
            f"case {row['case']}: expected the values {labels.values_in_words}, got {row[UNKNOWN[0]]} pixels of the "
            f"prediction and {row[UNKNOWN[1]]} of the mask that hold another one"
        )


def structures(prediction: Tensor, mask: Tensor, labels: Labels) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predicted and reference pixels of each channel, bool [*S], from [1, ...]; ignored pixels are in neither."""
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    target = labels.target(mask, spatial=spatial)
    numbers = labels.channel_numbers(prediction.dtype, prediction.device).tolist()
    for channel, number in enumerate(numbers):
        predicted = prediction[0, channel] == 1 if labels.mode == "multilabel" else prediction[0] == number
        reference = target.index[0] == number if target.index is not None else target.onehot[0, channel]  # pyright: ignore
        valid = target.valid_channels
        counts = torch.ones_like(predicted) if valid is None else valid[0, channel if valid.shape[1] > 1 else 0]
        yield (predicted & counts).numpy(), (reference & counts).numpy()


def score_cases(
    predictor: Predictor,
    cases: EvaluationSet,
    labels: Labels,
    scoring: Scoring = DICE_AND_IOU,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    group: ProcessGroup | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Scored:
    """Predict and count every case on its own grid. `track` wraps the case numbers, for a progress bar.

    group: of processes that share the cases; each takes its share, and all get the whole result. keep: what to do with
    the predicted mask of each case, by its number.
    """
    mine = share_of(len(cases), group)
    scorer = Scorer(len(mine), labels, scoring, predictor.device, shared=group is not None)
    for number in track(mine):
        sample = cases[number]
        mask = to_device(sample["mask"][None], predictor.device)
        logits = labels.resample(predictor(sample["image"]), spatial_size(sample["mask"], labels))
        probabilities = labels.probabilities(logits) if scoring.calibration else None
        prediction = labels.decode(logits, scoring.threshold)
        scorer.add(sample["case"], sample["group"], prediction, mask, sample["spacing"], probabilities)
        if keep is not None:
            keep(number, prediction[0])
    return scorer.result(group)


def spatial_size(mask: Tensor, labels: Labels) -> tuple[int, ...]:
    """The sides of a mask [*S] or [K, *S]."""
    return tuple(mask.shape[1:] if labels.has_mask_channels else mask.shape)
