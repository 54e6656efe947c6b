"""Choosing among candidates on validation cases, and how much of the gain is more than chance.

The gain is estimated by cross-fitting: for the cases of each fold, the candidate is chosen on the cases of the other
folds. A candidate that fits nothing but the noise of the cases on which it was chosen gains nothing on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from segkit.data.datasets import EvaluationSet
from segkit.evaluation.scorer import Scorer, spatial_size
from segkit.evaluation.scoring import Scoring
from segkit.inference.decisions import Decisions, post_processed
from segkit.inference.post_processing import NOTHING, PostProcess
from segkit.inference.predictor import ImagePredictor, nonfinite_text, to_device
from segkit.labels import Labels
from segkit.metrics.bootstrap import Bootstrap, mean_intervals
from segkit.utils.errors import DataError

FOLDS = 5
THRESHOLDS = tuple(round(0.02 * number, 2) for number in range(1, 50))
TEMPERATURES = tuple(float(value) for value in np.geomspace(0.25, 4, 49))
SIZES = tuple(2**power for power in range(2, 15))  # pixels of the smallest object that is kept
SAMPLED = 20_000  # pixels per case by which temperatures are scored
# of the metrics by which decisions can be scored: whether higher is better
TUNED_METRICS = {"dice": True, "iou": True, "boundary_iou": True, "nsd": True, "hd95": False, "assd": False}
Track = Callable[[Sequence[int]], Any]


@dataclass(frozen=True)
class Choice:
    """The best candidate on all cases, and what choosing gains.

    candidate: its number; 0 for what is done without a decision.
    gain: the mean over cases of what the candidates that were chosen on other cases gain.
    interval: of the gain, 95 % for all decisions of a tuning together; None without one, for `reason`.
    """

    candidate: int
    gain: float
    interval: tuple[float, float] | None
    reason: str | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the gain is more than chance."""
        return self.candidate != 0 and self.interval is not None and self.interval[0] > 0


def choose(values: np.ndarray, groups: Sequence[str], decisions: int = 1) -> list[Choice]:
    """Choose the best candidate of each column.

    values: [J, N, C], higher is better: candidate, case, column; candidate 0 is what is done without a decision.
    groups: of each case, [N]. Cases of one group are in one fold.
    decisions: the number of choices among which all that are kept should be right, with 95 %; each has an interval of
        the level 1 - 0.05 / decisions (Bonferroni).

    The interval covers two: that of Student with the variance between groups, corrected for the overlap of the folds,
    and that of the bootstrap (BCa), which follows skewed gains. Harm in fewer groups than one in N cannot be seen in N
    groups.
    """
    names = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[group]: position % FOLDS for position, group in enumerate(order)}
    folds = np.array([fold_of[group] for group in groups])
    gains = np.zeros(values.shape[1:])
    for fold in np.unique(folds):
        others, own = folds != fold, folds == fold
        if others.any():
            best = _best(values[:, others])
            chosen = np.take_along_axis(values[:, own], best[None, None, :], 0)[0]
            gains[own] = chosen - values[0, own]
    intervals = _intervals(gains, list(groups), 1 - 0.05 / decisions)
    return [
        Choice(int(candidate), float(gains[:, column].mean()), *intervals[column])
        for column, candidate in enumerate(_best(values))
    ]


def _intervals(
    gains: np.ndarray, groups: Sequence[str], confidence: float
) -> list[tuple[tuple[float, float] | None, str | None]]:
    """The interval of the mean gain of each column, or why there is none."""
    bootstrap = Bootstrap(confidence, resamples=max(2000, int(np.ceil(4 / (1 - confidence)))))
    found = mean_intervals(torch.from_numpy(gains), groups, bootstrap)
    low, high = _student_intervals(gains, groups, confidence)
    return [
        (None, reason)
        if (reason := found.reasons[column])
        else ((float(min(found.low[column], low[column])), float(max(found.high[column], high[column]))), None)
        for column in range(gains.shape[1])
    ]


def _student_intervals(gains: np.ndarray, groups: Sequence[str], confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval of the mean over cases, with the variance between groups of cases, [C] each.

    Gains of different folds depend on each other, since their candidates were chosen on mostly the same cases. The
    variance is therefore multiplied by 1 + K / (K - 1) for K folds (Nadeau and Bengio, 2003).
    """
    names, numbers = np.unique(groups, return_inverse=True)
    mean, count = gains.mean(0), len(names)
    residuals = np.zeros((count, gains.shape[1]))
    np.add.at(residuals, numbers, gains - mean)
    if count < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    correction = 1 + FOLDS / (FOLDS - 1)
    error = np.sqrt(correction * count / (count - 1) * (residuals**2).sum(0)) / len(gains)
    width = scipy.stats.t.ppf((1 + confidence) / 2, count - 1) * error
    return mean - width, mean + width


def _best(values: np.ndarray) -> np.ndarray:
    """The candidate with the highest mean of each column; of equal ones the first."""
    return values.mean(1).argmax(0)


# --- what the candidates score ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted:
    """The validation cases with their predictions, one case at a time.

    metric: by which masks are scored, one of TUNED_METRICS, computed as the scoring says.
    """

    predictor: ImagePredictor
    cases: EvaluationSet
    scoring: Scoring
    metric: str
    track: Track

    @property
    def labels(self) -> Labels:
        return self.predictor.labels

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
        """The sample, the logits [1, K, *S] and the mask [1, ...] of each case."""
        for number in self.track(range(len(self.cases))):
            sample = self.cases[number]
            prediction = self.predictor.predict(
                sample["image"], spatial_size(sample["mask"], self.labels), keep_logits=True
            )
            if pixels := int(prediction.nonfinite):
                raise DataError(f"case {sample['case']}: {nonfinite_text(pixels)}")
            assert prediction.logits is not None
            yield sample, prediction.logits, to_device(sample["mask"][None], self.predictor.device)

    @property
    def groups(self) -> list[str]:
        return [case.group or case.name for case in self.cases.cases]


def threshold_scores(predicted: Predicted) -> np.ndarray:
    """The scores of the present threshold and of THRESHOLDS: [J, N, C], higher is better."""
    present = predicted.predictor.threshold
    thresholds = [present, *THRESHOLDS]
    return _scores(
        predicted,
        len(thresholds),
        lambda logits: (predicted.labels.decode(logits, threshold) for threshold in thresholds),
    )


def post_processes() -> list[PostProcess]:
    """The candidates of post-processing, the simplest ones first."""
    kept = [NOTHING, PostProcess(largest=True), *(PostProcess(smallest=size) for size in SIZES)]
    return [*kept, *(PostProcess(process.smallest, process.largest, fill=True) for process in kept)]


def post_processing_scores(predicted: Predicted) -> np.ndarray:
    """The scores of `post_processes`: [J, N, C], higher is better."""
    labels, processes = predicted.labels, post_processes()
    names = [labels.channel_names[channel] for channel in labels.foreground]
    decisions = [Decisions(post_processing=dict.fromkeys(names, process)) for process in processes]

    def masks(logits: Tensor) -> Iterator[Tensor]:
        mask = labels.decode(logits, predicted.predictor.threshold)
        return (post_processed(mask, decision, labels) for decision in decisions)

    return _scores(predicted, len(processes), masks)


def _scores(predicted: Predicted, candidates: int, masks: Callable[[Tensor], Iterator[Tensor]]) -> np.ndarray:
    """The metric for the masks of each candidate: [J, N, C], higher is better.

    A class that is in neither prediction nor reference counts as perfect, so that removing what is not there is a gain.

    Raises ValueError for rules that do not count other cases, such as missed objects: what they leave out would seem
    perfect.
    """
    labels, metric, scoring = predicted.labels, predicted.metric, predicted.scoring
    number, device = len(predicted.cases), predicted.predictor.device
    scorers = [Scorer(number, labels, scoring, device) for _candidate in range(candidates)]
    for sample, logits, reference in predicted:
        for scorer, mask in zip(scorers, masks(logits), strict=True):
            scorer.add(sample["case"], sample["group"], mask, reference, sample["spacing"])
    tables = [scorer.result().cases for scorer in scorers]
    values = np.stack([table[metric].to_numpy(float) for table in tables])
    is_absent = np.stack([(table["predicted"] + table["reference"] == 0).to_numpy() for table in tables])
    if not np.isfinite(values[~is_absent]).all():
        raise ValueError(f"{metric} is not counted, or infinite, for some cases by the rules {scoring.rules.id}")
    higher = TUNED_METRICS[metric]
    values = np.where(is_absent, 1.0 if higher else 0.0, values).reshape(candidates, number, labels.channels)
    return (values if higher else -values)[..., list(labels.foreground)]


def temperature_scores(predicted: Predicted) -> np.ndarray:
    """The mean log-likelihood of the reference with a temperature of 1 and with TEMPERATURES: [J, N, 1]."""
    temperatures = (1.0, *TEMPERATURES)
    rows = []
    for number, (_sample, logits, reference) in enumerate(predicted):
        sampled, truth = _sampled(logits, reference, predicted.labels, number)
        rows.append([log_likelihood(sampled / temperature, truth, predicted.labels) for temperature in temperatures])
    return np.array(rows).T[..., None]


def _sampled(logits: Tensor, reference: Tensor, labels: Labels, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and one-hot reference of at most SAMPLED valid pixels, float64 [P, K] each; for overlapping classes of
    pixels and classes, [P, 1]."""
    target = labels.target(reference, spatial=logits.ndim - 2)
    onehot = labels.onehot(target)
    valid = torch.ones_like(onehot) if target.valid_channels is None else target.valid_channels.expand_as(onehot)
    per_class = labels.mode == "multilabel"
    flat = [array.movedim(1, -1).reshape(-1, 1 if per_class else labels.channels) for array in (logits, onehot, valid)]
    places = flat[2][:, 0].nonzero()[:, 0].cpu()
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:SAMPLED]
    places = places[chosen].to(logits.device)
    return flat[0][places].double(), flat[1][places].double()


def log_likelihood(logits: Tensor, onehot: Tensor, labels: Labels) -> float:
    """The mean over pixels of the logarithm of the probability of the reference, [P, K] each; 0 without pixels."""
    if not len(logits):
        return 0.0
    if labels.mode == "multiclass":
        return float((logits.log_softmax(1) * onehot).sum(1).mean())
    return float(-binary_cross_entropy_with_logits(logits, onehot))
