"""Checks for custom losses: `check_loss` tests the properties that every loss of segkit has."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from segkit.labels import Labels, Mode
from segkit.losses import LOSSES, WeightedSum, build_loss
from segkit.losses.target_maps import maps_of_target
from segkit.losses.weight_schedules import Constant
from segkit.losses.weighted_sum import Scale

__all__ = ["check_loss"]

MODES: tuple[Mode, ...] = ("multiclass", "binary", "multilabel")
IGNORED = 255
NAMES: Mapping[Mode, list[str]] = {
    "multiclass": ["background", "a", "b"],
    "binary": ["background", "a"],
    "multilabel": ["a", "b", "c"],
}
Loss = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss: str | type[nn.Module], *, modes: Sequence[Mode] = MODES, **options: Any) -> list[str]:
    """Check that a loss satisfies the contract of segkit's losses. Returns the modes that it was checked in.

    loss: a class, or the name of an entry of `LOSSES`. options: its options, as in a configuration.
    modes: the label modes to try; a mode for which the class raises ValueError is left out.

    In each mode, in 2D and 3D: the value is a finite scalar in at least float32; the gradient agrees with finite
    differences in float64; logits of ignored pixels change neither value nor gradient, even if they are NaN; if all
    pixels are ignored, value and gradient are 0; absent classes give a finite value; half precision gives nearly the
    value of float32; a good prediction has a lower loss than a bad one; nothing is read back from the device (shown on
    torch's meta device).

    The histogram form of the Lovász losses approximates the sorted form, whose gradient it has: check it with
    `mode="exact"`.

    Raises AssertionError with a list of the properties that do not hold, and ValueError if the loss supports no mode.
    """
    if not isinstance(loss, (str, type)):
        raise TypeError(f"expected a class or the name of a loss, got {loss!r}; options follow as keyword arguments")
    modes = [modes] if isinstance(modes, str) else modes  # pyright: ignore[reportAssignmentType]
    failures: list[str] = []
    checked: list[str] = []
    reasons: list[str] = []
    for mode in modes:
        labels = Labels(NAMES[mode], mode=mode, ignore_index=IGNORED)
        try:
            built = _build(loss, labels, options)
        except ValueError as error:
            reasons.append(f"{mode}: {error}")
            continue
        checked.append(mode)
        for dims in (2, 3):
            failures += [f"{mode}, {dims}D: {failure}" for failure in _failures(built, labels, dims)]
    if not checked:
        raise ValueError(f"the loss supports none of the modes {', '.join(modes)}: {'; '.join(reasons)}")
    if failures:
        name = loss if isinstance(loss, str) else loss.__name__
        raise AssertionError(f"{name} does not satisfy the contract of a loss:\n  " + "\n  ".join(failures))
    return checked


def _build(loss: str | type[nn.Module], labels: Labels, options: Mapping[str, Any]) -> WeightedSum:
    if isinstance(loss, str):
        return build_loss({"name": loss, **options}, labels)
    name = next((name for name, entry in LOSSES.items() if entry is loss), None)
    if name is not None:
        return build_loss({"name": name, **options}, labels)
    known = {"labels": labels} if "labels" in inspect.signature(loss).parameters else {}
    return WeightedSum(labels, {loss.__name__: loss(**known, **options)}, [Constant(value=1.0)], [Scale()])


def _failures(loss: Loss, labels: Labels, dims: int) -> list[str]:
    """The failed checks of a loss, as text."""
    failures = []
    for check in (_value, _gradient, _ignored, _all_ignored, _absent, _half, _order, _no_read_back):
        try:
            failure = check(loss, labels, dims)
        except Exception as error:  # a third-party loss may raise any exception
            reason = next(iter(str(error).splitlines()), "")
            failure = f"{(check.__doc__ or '').rstrip('.')}: raises {type(error).__name__}: {reason}"
        if failure is not None:
            failures.append(failure)
    return failures


def _batch(labels: Labels, dims: int, *, ignored: bool = True) -> tuple[Tensor, Tensor]:
    """Logits [2, K, *S] and a mask for them, some of whose pixels are ignored."""
    generator = torch.Generator().manual_seed(dims)
    shape = (2, 3, 4) if dims == 2 else (2, 2, 3, 2)
    logits = torch.randn(shape[0], labels.channels, *shape[1:], generator=generator, dtype=torch.float64)
    if labels.mode == "multilabel":
        mask = torch.randint(0, 2, logits.shape, generator=generator, dtype=torch.uint8)
    else:
        mask = torch.randint(0, len(labels.names), shape, generator=generator, dtype=torch.uint8)
    if ignored:
        mask[:, ..., 0] = IGNORED
    return logits, mask


def _value_and_gradient(loss: Loss, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, mask)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def _where_ignored(logits: Tensor, mask: Tensor) -> Tensor:
    ignored = mask == IGNORED
    return ignored if ignored.ndim == logits.ndim else ignored.unsqueeze(1).expand_as(logits)


def _value(loss: Loss, labels: Labels, dims: int) -> str | None:
    """The value."""
    logits, mask = _batch(labels, dims)
    for dtype in (torch.float64, torch.float32):
        value = loss(logits.to(dtype), mask)
        if value.ndim or value.dtype != dtype or not math.isfinite(value):
            return f"expected a finite scalar of {dtype} from logits of {dtype}, got {value!r}"
    return None


def _gradient(loss: Loss, labels: Labels, dims: int) -> str | None:
    """The gradient."""
    logits, mask = _batch(labels, dims)
    function = cast("Any", lambda variable: loss(variable, mask))
    try:
        gradcheck(function, (logits.requires_grad_(),), check_undefined_grad=False, fast_mode=True)
    except GradcheckError as error:
        return f"the gradient does not agree with finite differences: {str(error).strip().splitlines()[0]}"
    return None


def _ignored(loss: Loss, labels: Labels, dims: int) -> str | None:
    """Ignored pixels."""
    logits, mask = _batch(labels, dims)
    value, gradient = _value_and_gradient(loss, logits, mask)
    hidden = _where_ignored(logits, mask)
    for replacement in (7.0, math.nan, math.inf):
        other = _value_and_gradient(loss, logits.masked_fill(hidden, replacement), mask)
        if not torch.allclose(other[0], value) or not torch.allclose(other[1], gradient):
            return f"logits of {replacement} under ignored pixels change the value or the gradient"
    return "the gradient under ignored pixels is not 0" if gradient[hidden].any() else None


def _all_ignored(loss: Loss, labels: Labels, dims: int) -> str | None:
    """Nothing but ignored pixels."""
    logits, mask = _batch(labels, dims)
    value, gradient = _value_and_gradient(loss, logits, torch.full_like(mask, IGNORED))
    if value != 0 or gradient.any() or gradient.isnan().any():
        return f"all pixels ignored: expected value 0 and gradient 0, got {value.item()} and {gradient.abs().max()}"
    return None


def _absent(loss: Loss, labels: Labels, dims: int) -> str | None:
    """Absent classes."""
    logits, mask = _batch(labels, dims, ignored=False)
    value, gradient = _value_and_gradient(loss, logits, torch.zeros_like(mask))
    if not value.isfinite() or not gradient.isfinite().all():
        return f"with all classes but the first absent, expected finite numbers, got value {value.item()}"
    return None


def _half(loss: Loss, labels: Labels, dims: int) -> str | None:
    """Half precision."""
    logits, mask = _batch(labels, dims)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = logits.to(dtype)
        value, expected = loss(rounded, mask), loss(rounded.float(), mask)
        if value.dtype != torch.float32 or not torch.allclose(value, expected, rtol=1e-5):
            return f"logits of {dtype}: expected {expected!r}, computed in float32, got {value!r}"
    return None


def _order(loss: Loss, labels: Labels, dims: int) -> str | None:
    """Good and bad predictions."""
    logits, mask = _batch(labels, dims, ignored=False)
    present = mask.unsqueeze(1) if labels.mode == "binary" else labels.onehot(labels.target(mask, dims))
    good = 6 * (2 * present.to(logits.dtype) - 1)
    right, wrong = loss(good, mask).item(), loss(-good, mask).item()
    return None if right < wrong else f"a right prediction has the loss {right:.6g}, a wrong one {wrong:.6g}"


def _no_read_back(loss: Loss, labels: Labels, dims: int) -> str | None:
    """The meta device, where nothing can be read back."""
    logits, mask = _batch(labels, dims)
    needed = maps_of_target(cast("WeightedSum", loss).maps, labels, labels.target(mask, dims), None)
    maps = {name: values.to("meta") for name, values in needed.items()} or None
    leaf = logits.to("meta").requires_grad_()
    copy.deepcopy(cast("nn.Module", loss)).to("meta")(leaf, mask.to("meta"), maps=maps).backward()
    return None
