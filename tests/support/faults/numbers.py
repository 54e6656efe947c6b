"""Extreme numbers: logits, masks, options of losses, labels, and counts of pixels and cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.metrics.boundary import boundary_counts
from segkit.metrics.case_table import cases_table
from segkit.metrics.counts import count
from segkit.metrics.overlap import dice, iou, precision, recall, specificity, volume_difference
from segkit.metrics.summary import summarise

from support import extreme_losses
from support.loss_oracle import IGNORE_INDEX, MODES

HUGE = (0, 1, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**40 + 3, 2**50 + 1)


def _survives(attempt: Callable[[], str | None], description: str) -> str | None:
    """None if an attempt ends well or in a ValueError with a message, otherwise what happened."""
    try:
        wrong = attempt()
    except ValueError as error:
        wrong = None if str(error) else "a ValueError without a message"
    except RuntimeError as error:  # values are checked on the device, where an assertion is all there is
        wrong = None if "contains a value" in str(error) or "assigns more than" in str(error) else f"{error}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return wrong if wrong is None else f"{wrong}: {description}"


def extreme_logits(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Losses of logits up to the largest number of each type, against plain formulas in float64."""
    for attempt in itertools.islice(extreme_losses.tries(seed), tries):
        yield _survives(lambda attempt=attempt: extreme_losses.problem(attempt), str(attempt))


def infinite_logits(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """NaN and infinite logits: without effect at ignored pixels; at others the loss is finite or tells so by NaN."""
    rng = np.random.default_rng(seed)
    for attempt in itertools.islice(extreme_losses.tries(seed), tries):
        worst = rng.choice([math.nan, math.inf, -math.inf])
        yield _survives(lambda attempt=attempt, worst=worst: _infinite(attempt, worst), f"{worst} in {attempt}")


def _infinite(attempt: extreme_losses.Try, worst: float) -> str | None:
    loss = build_loss(attempt.spec, attempt.labels, extreme_losses.class_counts(attempt.labels.mode))
    mask = attempt.mask
    if mask.is_floating_point():
        return None
    ignored = mask == IGNORE_INDEX
    ignored = ignored if ignored.ndim == attempt.logits.ndim else ignored.unsqueeze(1).expand_as(attempt.logits)
    clean = _value_and_gradient(loss, attempt.logits, mask)
    hidden = _value_and_gradient(loss, torch.where(ignored, worst, attempt.logits), mask)
    if not all(torch.equal(a, b) for a, b in zip(clean, hidden, strict=True)):
        return "logits at ignored pixels have an effect"
    if ignored.all() or not math.isnan(worst):
        return None
    value, gradient = _value_and_gradient(loss, torch.where(ignored, attempt.logits, worst), mask)
    is_known = value.isnan() or gradient.isnan().any() or (value == 0 and (gradient == 0).all())
    return None if is_known else f"value {value.item()} where every logit is NaN"


def _value_and_gradient(loss: Any, logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, mask)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def extreme_options(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Numbers beyond all reason as options of losses: refused, or value and gradient are finite."""
    rng = np.random.default_rng(seed)
    numbers = (0, 1e-300, 1e-45, 1e-30, 1.0, 1e6, 1e12, 1e13, 1e38, 1e300, math.inf, math.nan, -1.0, 10**400)
    options = {
        "cross_entropy": ("weight", "label_smoothing", "class_weights"),
        "poly_cross_entropy": ("weight", "epsilon"),
        "topk_cross_entropy": ("weight", "share"),
        "focal": ("weight", "gamma", "alpha", "class_weights"),
        "dice": ("weight", "eps", "class_weights"),
        "jaccard": ("eps",),
        "tversky": ("alpha", "beta", "eps"),
        "focal_tversky": ("alpha", "beta", "gamma", "eps"),
        "generalized_dice": ("eps",),
        "lovasz_softmax": ("bins",),
    }
    for _try in range(tries):
        name = str(rng.choice(list(options)))
        option = str(rng.choice(options[name]))
        number = numbers[rng.integers(len(numbers))]
        value = [1.0, number, 2.0] if option == "class_weights" else number
        spec = {"name": name, option: value}
        yield _survives(lambda spec=spec: _finite(spec, rng), f"{spec}")


def _finite(spec: dict[str, Any], rng: np.random.Generator) -> str | None:
    labels = Labels(["background", "a", "b"], ignore_index=IGNORE_INDEX)
    logits = torch.from_numpy(rng.choice([-1e38, -100.0, 0.0, 1.0, 1e38], (2, 3, 3, 4))).float()
    mask = torch.from_numpy(rng.choice([0, 1, 2, IGNORE_INDEX], (2, 3, 4)).astype(np.uint8))
    value, gradient = _value_and_gradient(build_loss(spec, labels), logits, mask)
    if value.isfinite() and gradient.isfinite().all():
        return None
    return f"value {value.item()}, largest gradient {gradient.abs().max().item()}"


def extreme_masks(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Masks of one class, all ignored, empty, 1 x 1, of other shapes, types and values, for losses and counts."""
    rng = np.random.default_rng(seed)
    for _try in range(tries):
        mode = str(rng.choice(MODES))
        labels = Labels(["background", "a"] if mode == "binary" else ["background", "a", "b"], mode, IGNORE_INDEX)  # pyright: ignore
        extent = tuple(int(side) for side in rng.choice([0, 1, 1, 2, 3], rng.integers(1, 5)))
        mask = _any_mask(rng, labels, extent)
        loss = str(rng.choice(["dice_ce", "focal", "topk_cross_entropy", "lovasz_softmax", "generalized_dice"]))
        description = f"mask {list(mask.shape)} of {mask.dtype} for {mode} {list(extent)}, {loss}"
        yield _survives(lambda m=mask, a=(labels, extent, loss): _accepted(m, *a), description)


def _any_mask(rng: np.random.Generator, labels: Labels, extent: tuple[int, ...]) -> torch.Tensor:
    shape = (extent[0], labels.channels, *extent[1:]) if rng.random() < 0.4 else extent
    if rng.random() < 0.1:
        shape = shape[::-1]
    values = [0, 1, IGNORE_INDEX] if rng.random() < 0.6 else [0, 1, 2, -1, 3, 254, 256, 65535, 2**31 - 1, 2**62]
    numbers = rng.choice(values, shape)
    if rng.random() < 0.5 and numbers.size:
        numbers[...] = rng.choice(values)
    types = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float32", "complex64"]
    return torch.from_numpy(numbers.astype(np.int64).astype(str(rng.choice(types))))


def _accepted(mask: torch.Tensor, labels: Labels, extent: tuple[int, ...], name: str) -> str | None:
    logits = torch.randn(extent[0], labels.channels, *extent[1:])
    try:
        value, gradient = _value_and_gradient(build_loss(name, labels), logits, mask)
        if not value.isfinite() or not gradient.isfinite().all():
            return f"value {value.item()}"
    finally:
        for counted in (count, boundary_counts):
            wrong = _survives(lambda f=counted: _counted(f, labels.decode(logits), mask, labels), counted.__name__)
            if wrong is not None:
                raise AssertionError(wrong)
    return None


def _counted(function: Any, prediction: torch.Tensor, mask: torch.Tensor, labels: Labels) -> str | None:
    counts = function(prediction, mask, labels)
    return None if (counts >= 0).all() and (counts[..., 0] <= counts[..., 1:].amin(-1)).all() else f"counts {counts}"


def extreme_labels(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Labels with many names, huge numbers and wrong types: refused, or their masks hold every number."""
    rng = np.random.default_rng(seed)
    numbers = (None, -1, 0, 1, 254, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**63, 10**400, 1.0, "1", True)
    for _try in range(tries):
        names = [f"class {number}" for number in range(int(rng.choice([0, 1, 2, 3, 254, 255, 256, 257, 1000, 65536])))]
        ignore = numbers[rng.integers(len(numbers))]
        regions = None
        if rng.random() < 0.4:
            names = names[:3]
            regions = {name: [numbers[rng.integers(1, len(numbers))]] for name in names}
        mode = str(rng.choice(MODES)) if regions is None else "multilabel"
        arguments = {"names": names, "mode": mode, "ignore_index": ignore, "regions": regions}
        description = f"{len(names)} names, mode {mode}, ignore_index {str(ignore)[:20]}, regions {str(regions)[:80]}"
        yield _survives(lambda a=arguments: _holds_numbers(Labels(**a)), description)


def _holds_numbers(labels: Labels) -> str | None:
    values = [*labels.values, labels.padding_value]
    held = torch.tensor(values, dtype=torch.int64).to(labels.mask_dtype).tolist()
    if held != values or len(set(values)) != len(values):
        return f"{labels.mask_dtype} cannot hold the values, or two are the same"
    mask = torch.tensor(values[:2]).to(labels.mask_dtype).view(1, 2, 1)
    if not labels.has_mask_channels:
        labels.target(mask)
    return None


def extreme_counts(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Scores of counts above 2^31 and 2^50, against fractions of Python integers."""
    rng = np.random.default_rng(seed)
    labels = Labels(["background", "a", "b"])
    for _try in range(tries):
        cases = int(rng.integers(1, 4))
        counts = rng.choice(HUGE, (cases, 3, 3)).astype(np.int64)
        counts[..., 0] = np.minimum(counts[..., 0], counts[..., 1:].min(-1))
        yield _survives(lambda c=counts: _scored(c, labels), f"{counts.tolist()}")


def _scored(counts: np.ndarray, labels: Labels) -> str | None:
    for row in counts.reshape(-1, 3).tolist():
        tp, predicted, reference = row
        pixels = predicted + reference - tp + 12345
        expected = {
            dice: _fraction(2 * tp, predicted + reference),
            iou: _fraction(tp, predicted + reference - tp),
            precision: _fraction(tp, predicted),
            recall: _fraction(tp, reference),
            volume_difference: _fraction(predicted - reference, reference),
            specificity: _fraction(pixels - reference - (predicted - tp), pixels - reference),
        }
        for score, value in expected.items():
            more = (torch.tensor(pixels),) if score is specificity else ()
            found = score(torch.tensor(row), *more).item()
            if not math.isclose(found, value, rel_tol=1e-12) and not (math.isnan(found) and math.isnan(value)):
                return f"{score.__name__} {found} instead of {value}"
    names = [f"case {number}" for number in range(len(counts))]
    table = cases_table(names, names, counts, labels)
    pooled = summarise(table, labels, intervals=False)["global"]["classes"]
    for column, name in enumerate(labels.names):
        tp, predicted, reference = (sum(row[column][k] for row in counts.tolist()) for k in range(3))
        value, found = _fraction(2 * tp, predicted + reference), pooled[name]["dice"]
        if not (found is None and math.isnan(value)) and not math.isclose(found, value, rel_tol=1e-12):
            return f"pooled dice {found} instead of {value}"
    return None


def _fraction(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    "losses at extreme logits": extreme_logits,
    "losses at NaN and infinite logits": infinite_logits,
    "extreme options of losses": extreme_options,
    "extreme masks": extreme_masks,
    "extreme labels": extreme_labels,
    "scores of extreme counts": extreme_counts,
}
