"""Random tries of losses at extreme logits, each with the value and gradient of a plain formula in float64."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES, build_loss, expanded
from segkit.losses.library_presets import PRESETS, Preset

from support.loss_oracle import IGNORE_INDEX, MODES, MODES_OF, SOFT, VARIANTS, labels_of, spec_of
from support.reference_losses import FLOORS, reference

CLASS_COUNTS = {"pixels": [[60, 30, 10], [20, 70, 10]], "radius": [[2, 2, 1], [2, 2, 1]]}
BINARY_COUNTS = {"pixels": [[60, 40], [20, 80]], "radius": [[3, 2], [3, 2]]}
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
# ordinary logits; probabilities around the smallest numbers of float32; the largest numbers of each dtype
MAGNITUDES = (0.0, 1.0, 30.0, 88.0, 100.0, 104.0, 1e4, 65504.0, 1e19, 1e30, 1e38, 3.4e38, 8e307)
# the gradient of pixels that tie is arbitrary
ORDERED = ("topk_cross_entropy", "ohem_cross_entropy", "lovasz_softmax", "lovasz_hinge")


@dataclass(frozen=True)
class Try:
    """A loss with the batch that it is given."""

    spec: Any
    labels: Labels
    logits: Tensor
    mask: Tensor

    def __str__(self) -> str:
        values = self.logits.detach().double()
        return (
            f"{self.spec} in mode {self.labels.mode}, logits {list(values.shape)} of {self.logits.dtype} from "
            f"{values.min():.3g} to {values.max():.3g}, mask {list(self.mask.shape)} of {self.mask.dtype}"
        )


def specifications() -> list[tuple[Any, str]]:
    """Every loss, recipe and library preset with the modes that support it."""
    pairs = [(dict(options), mode) for options, modes in VARIANTS for mode in modes]
    pairs += [(spec_of(name), mode) for name in LOSSES for mode in MODES_OF.get(name, MODES)]
    pairs += [
        ({**options, "per": per}, mode)
        for options, mode in pairs
        for per in ("batch", "image")
        if "per" in inspect.signature(LOSSES[options["name"]]).parameters and options.get("of") != "mean"
    ]
    pairs += [(name, mode) for name in RECIPES for mode in MODES]
    for library, entries in PRESETS.items():
        for name, entry in entries.items():
            modes = [mode for mode in MODES_OF.get(name, MODES) if isinstance(entry, Preset)]
            pairs += [({"name": name, "like": library}, mode) for mode in modes]
    return [(spec, mode) for spec, mode in pairs if _is_possible(spec, mode)]


def class_counts(mode: str) -> dict[str, Any]:
    return BINARY_COUNTS if mode == "binary" else CLASS_COUNTS


def _is_possible(spec: Any, mode: str) -> bool:
    try:
        build_loss(spec, labels_of(mode), class_counts(mode))
    except ValueError:
        return False
    return True


def tries(seed: int) -> Iterator[Try]:
    """An endless stream of tries; every specification in turn."""
    rng, pairs = np.random.default_rng(seed), specifications()
    while True:
        for number in rng.permutation(len(pairs)):
            spec, mode = pairs[number]
            labels = labels_of(mode)
            extent = (int(rng.integers(1, 4)), *map(int, rng.integers(1, 7, rng.integers(1, 4))))
            yield Try(spec, labels, _logits(rng, labels, extent), _mask(rng, spec, labels, extent))


def _logits(rng: np.random.Generator, labels: Labels, extent: tuple[int, ...]) -> Tensor:
    dtype = DTYPES[rng.integers(len(DTYPES))]
    shape = (extent[0], labels.channels, *extent[1:])
    largest = float(torch.finfo(dtype).max) if dtype != torch.float64 else MAGNITUDES[-1]
    magnitudes = rng.choice(MAGNITUDES, int(rng.integers(1, 4)))
    values = rng.choice(magnitudes, shape) * rng.choice([-1, 1], shape)
    pattern = rng.integers(4)
    if pattern == 0:  # one extreme pixel among ordinary ones
        ordinary = rng.standard_normal(shape)
        keep = rng.random(shape) < 1 / np.prod(shape)
        values = np.where(keep, values, ordinary)
    elif pattern == 1:  # a slight jitter, so that no two logits are equal
        values = values * rng.uniform(0.5, 1.0, shape)
    elif pattern == 2:
        values = np.full(shape, magnitudes[0] * rng.choice([-1, 1]))
    return torch.from_numpy(np.clip(values, -largest, largest)).to(dtype)


def _mask(rng: np.random.Generator, spec: Any, labels: Labels, extent: tuple[int, ...]) -> Tensor:
    shape = (extent[0], labels.channels, *extent[1:])
    name = spec["name"] if isinstance(spec, dict) else spec
    if rng.random() < 0.2 and name in SOFT:
        shares = rng.random(shape)
        return torch.from_numpy(shares / shares.sum(1, keepdims=True) if labels.mode == "multiclass" else shares)
    classes = len(labels.names) if labels.mode == "multiclass" else 2
    mask = rng.integers(classes, size=shape if labels.mode == "multilabel" else extent)
    if rng.random() < 0.3:
        mask[...] = rng.integers(classes)
    mask[rng.random(mask.shape) < rng.choice([0.0, 0.3, 0.9])] = IGNORE_INDEX
    return torch.from_numpy(mask.astype(np.uint8))


def problem(attempt: Try) -> str | None:
    """What is wrong with value or gradient of a try; None if they are right."""
    counts = class_counts(attempt.labels.mode)
    loss = build_loss(attempt.spec, attempt.labels, counts)
    leaf = attempt.logits.clone().requires_grad_()
    value = loss(leaf, attempt.mask)
    (gradient,) = torch.autograd.grad(value, leaf)
    if not value.isfinite() or not gradient.isfinite().all():
        return f"value {value.item()}, largest gradient {gradient.abs().max().item()}: {attempt}"
    expected, slopes = _expected(attempt, loss)
    error = _difference(value.detach().double(), expected, *_value_tolerance(attempt.spec))
    if error is None and not _has_ties(attempt.spec):
        coarse = 1e-4 if gradient.dtype in (torch.float32, torch.float64) else 1e-2
        # 1 - p has an absolute error of the rounding of 1, and so has a gradient that is p (1 - p) times a slope
        rounding = 4 * torch.finfo(value.dtype).eps * _steepness(attempt.spec) + torch.finfo(gradient.dtype).tiny
        error = _difference(gradient.double(), slopes, coarse, max(1e-6 * slopes.abs().max().item(), rounding))
    return error if error is None else f"{error}: {attempt}"


def _value_tolerance(spec: Any) -> tuple[float, float]:
    """The relative and absolute error of a value."""
    is_binned = isinstance(spec, dict) and spec["name"] == "lovasz_hinge" and spec.get("mode") != "exact"
    return (2e-4, 2.0**-8) if is_binned else (1e-4, max(1e-5, 2e-7 * _steepness(spec)))  # as its docstring states


def _steepness(spec: Any) -> float:
    """The factor by which a loss enlarges the rounding errors of a probability: its largest slope near 1."""
    if not isinstance(spec, dict) or spec["name"] != "exponential_log":
        return 1.0
    return 1e-4 ** min(0.0, spec.get("gamma", 0.3) - 1)


def _difference(found: Tensor, expected: Tensor, relative: float, absolute: float) -> str | None:
    """How two tensors differ; None if they are close."""
    error = (found - expected).abs() - relative * expected.abs() - absolute
    if (error <= 0).all():
        return None
    worst = error.flatten().argmax()
    what = "value" if found.ndim == 0 else "gradient"
    return f"expected the {what} {expected.flatten()[worst].item():.6g}, got {found.flatten()[worst].item():.6g}"


def _has_ties(spec: Any) -> bool:
    names = [spec["name"]] if isinstance(spec, dict) else [term["name"] for term in RECIPES[spec]]
    return any(name in ORDERED for name in names)


def _expected(attempt: Try, loss: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient by the plain formulas in float64."""
    leaf = attempt.logits.double().requires_grad_()
    floor = FLOORS[torch.promote_types(attempt.logits.dtype, torch.float32)]
    value = leaf.new_zeros(())
    for term, scale in zip(_terms(attempt.spec, attempt.labels), loss.scales, strict=True):
        weight = term.pop("weight", 1.0)
        weight = weight if isinstance(weight, float) else 0.0  # the schedule `after` starts at 0
        logits = leaf
        if term["name"] == "lovasz_hinge" and term.get("mode") != "exact":
            logits = leaf.clamp(-255, 255)  # errors above 256 count as 256
        formula = reference(term, logits, attempt.mask, attempt.labels, floor=floor)
        value = value + weight * (scale.factor * formula + scale.offset)
    (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return value.detach(), gradient


def _terms(spec: Any, labels: Labels) -> list[dict[str, Any]]:
    """The terms of a specification with options of the plain formulas."""
    terms = [dict(term) for term in (RECIPES[spec] if isinstance(spec, str) else [expanded(spec, labels)])]
    for term in terms:
        term.pop("like", None)
        term.pop("bins", None)
        if term["name"] == "cldice":
            term.setdefault("iterations", 1)  # one less than the largest radius of the foreground in CLASS_COUNTS
        if isinstance(term.get("class_weights"), str):  # median frequency: median(q) / q
            counts = np.array(class_counts(labels.mode)["pixels"], dtype=float)
            frequency = counts.sum(0) / np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
            term["class_weights"] = list(np.median(frequency) / frequency)
        if term.pop("rounding", "up") == "down":
            term["rounding"] = "down"
    return terms
