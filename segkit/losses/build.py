"""From a name, a mapping or a list to a loss: the checks of what was written, and the weighted sum of terms."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import types
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segkit.labels import Labels, Target
from segkit.losses.lovasz import LovaszSoftmax
from segkit.losses.pixel import CrossEntropy, Focal
from segkit.losses.region import Dice, Jaccard

LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "jaccard": Jaccard,
    "lovasz_softmax": LovaszSoftmax,
}

RECIPES: dict[str, list[dict[str, Any]]] = {
    "weighted_cross_entropy": [{"name": "cross_entropy", "class_weights": "median_frequency"}],
    "dice_ce": [{"name": "dice"}, {"name": "cross_entropy"}],
    "ce_lovasz": [{"name": "cross_entropy"}, {"name": "lovasz_softmax"}],
    "dice_focal": [{"name": "dice"}, {"name": "focal"}],
}

INJECTED = ("labels", "census")  # given by build_loss, never written by the user
TermSpec = str | Mapping[str, Any]


class WeightedSum(nn.Module):
    """The sum of weight * term over the terms of a loss.

    terms: modules by name. Each has `score(result)` and names in `needs` the pass that makes the result from
        (logits, target), or else it has `forward(logits, target)`. Equal passes run once a call.
    weights: one number a term; they live in the buffer `weights`.
    """

    def __init__(self, labels: Labels, terms: Mapping[str, nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.labels = labels
        self.names = list(terms)
        self.members = nn.ModuleList(terms.values())
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor([float(weight) for weight in weights]))
        needs = [getattr(term, "needs", None) for term in terms.values()]
        self.passes: list[Any] = []
        for needed in needs:
            if needed is not None and needed not in self.passes:
                self.passes.append(needed)
        self.pass_of = [None if needed is None else self.passes.index(needed) for needed in needs]

    def forward(self, logits: Tensor, mask: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """The loss, a scalar of at least float32; 0 with gradient 0 if every pixel is ignored.

        logits: floating [B, K, *S]; values under ignored pixels do not matter, be they NaN.
        mask: class numbers [B, *S], or one-hot or soft [B, K, *S], as in `Labels.target`.
        pixel_weight: [B, *S], 0 or more.

        Raises ValueError if the shapes do not fit, and where a term is not defined for what is given; a second
        derivative raises RuntimeError.
        """
        return self.combine(self.terms(logits, mask, pixel_weight))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from what `terms` returned."""
        values = torch.stack(list(terms.values()))
        return (values * self.weights.to(values.dtype)).sum()

    def terms(self, logits: Tensor, mask: Tensor, pixel_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Each term's value by name, scalars, without their weights; arguments as for the call."""
        self._check_shapes(logits, mask, pixel_weight)
        if not torch.compiler.is_compiling():
            logits = _FirstOrder.apply(logits)  # pyright: ignore[reportAssignmentType]
        target = self.labels.target(mask, spatial=logits.ndim - 2, pixel_weight=pixel_weight)
        logits = select_valid(logits, target)
        results = [run(logits, target) for run in self.passes]
        values = {}
        members = cast("Iterable[Any]", self.members)  # what a term has is in the class docstring
        for name, term, pass_number in zip(self.names, members, self.pass_of, strict=True):
            values[name] = term(logits, target) if pass_number is None else term.score(results[pass_number])
        return values

    def _check_shapes(self, logits: Tensor, mask: Tensor, pixel_weight: Tensor | None) -> None:
        channels = self.labels.channels
        if not logits.is_floating_point() or logits.ndim < 3 or logits.shape[1] != channels:
            raise ValueError(
                f"expected floating logits [B, {channels}, *S], one channel for each of "
                f"{', '.join(self.labels.channel_names)}, got {list(logits.shape)} of {logits.dtype}"
            )
        expected = [logits.shape[0], *logits.shape[2:]]
        for name, given in (("mask", mask), ("pixel_weight", pixel_weight)):
            if given is None:
                continue
            has_channels = name == "mask" and given.ndim == logits.ndim
            shape = [given.shape[0], *given.shape[2 if has_channels else 1 :]]
            if shape != expected:
                raise ValueError(
                    f"expected a {name} to fit logits {list(logits.shape)}, {expected}"
                    f"{' or with channels' if name == 'mask' else ''}, got {list(given.shape)}"
                )


class _FirstOrder(torch.autograd.Function):
    """The identity, through which no second derivative goes: no loss here has a backward meant for one."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:  # noqa: ARG004
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


def select_valid(logits: Tensor, target: Target) -> Tensor:
    """Logits in at least float32, with 0 at ignored pixels, which get no gradient whatever is there."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = target.valid_channels
    return logits if valid is None else torch.where(valid, logits, 0)


def build_loss(spec: TermSpec | Sequence[TermSpec], labels: Labels, census: Any = None) -> WeightedSum:
    """Build the loss that a name, a mapping or a list of these describes.

    spec: the name of a loss or of a recipe, `{"name": ..., "weight": 1, ...}` with the options of that loss, or
        a list of names and mappings of losses.
    census: integers [cases, classes] of the valid pixels a training case and class, for named class weights.

    Raises ValueError for a name, an option or a value that is not known, with the nearest one that is.
    """
    terms: dict[str, nn.Module] = {}
    weights = []
    for term in _term_mappings(spec):
        options = dict(term)
        name, weight = options.pop("name", None), options.pop("weight", 1.0)
        cls = _loss_class(name)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"loss {name}: expected weight as a number of 0 or more, got {weight!r}")
        terms[_free_name(name, terms)] = _build_term(name, cls, options, labels, census)
        weights.append(weight)
    return WeightedSum(labels, terms, weights)


def _term_mappings(spec: TermSpec | Sequence[TermSpec]) -> list[Mapping[str, Any]]:
    if isinstance(spec, str):
        if spec not in LOSSES and spec not in RECIPES:
            known = [*LOSSES, *RECIPES]
            raise ValueError(f"expected a loss or recipe among {', '.join(known)}, got {spec!r}{_nearest(spec, known)}")
        return list(RECIPES.get(spec, [{"name": spec}]))
    terms = [spec] if isinstance(spec, Mapping) else spec
    if not isinstance(terms, Sequence) or not terms or not all(isinstance(term, (str, Mapping)) for term in terms):
        raise ValueError(f"expected a loss as a name, a mapping with a name, or a list of these, got {spec!r}")
    return [{"name": term} if isinstance(term, str) else term for term in terms]


def _loss_class(name: Any) -> type[nn.Module]:
    if isinstance(name, str) and name in LOSSES:
        return LOSSES[name]
    if isinstance(name, str) and name in RECIPES:
        raise ValueError(f"{name} is a recipe: give its name alone, or list its terms {RECIPES[name]}")
    raise ValueError(f"expected a loss name among {', '.join(LOSSES)}, got {name!r}{_nearest(name, LOSSES)}")


def _build_term(name: str, cls: type[nn.Module], options: Mapping[str, Any], labels: Labels, census: Any) -> nn.Module:
    """Check the options against the signature, and let the class check what they mean together."""
    here = f"loss {name}, mode {labels.mode}"
    parameters = inspect.signature(cls).parameters
    known = [parameter for parameter in parameters if parameter not in INJECTED]
    hints = get_type_hints(cls.__init__)
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"{here}: expected options among {', '.join(known)}, got {option!r}{_nearest(option, known)}"
            )
        if not _fits(value, hints[option]):
            allowed = _literals(hints[option])
            raise ValueError(
                f"{here}: expected {option} as {_describe(hints[option])}, got {value!r}{_nearest(value, allowed)}"
            )
    given = {"labels": labels, "census": census}
    try:
        return cls(**{key: given[key] for key in INJECTED if key in parameters}, **options)
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from error


def _free_name(name: str, taken: Container[str]) -> str:
    """`name`, or for a further term of that name the first of name_2, name_3, ... that is free."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(free for free in numbered if free not in taken)


def _nearest(word: Any, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in known], 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one annotation."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _literals(annotation: Any) -> list[Any]:
    return [value for choice in _choices(annotation) if get_origin(choice) is Literal for value in get_args(choice)]


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of an annotated type: Literal, list, number, text, None or a union of these."""
    choices = _choices(annotation)
    if len(choices) > 1:
        return any(_fits(value, choice) for choice in choices)
    if get_origin(annotation) is Literal:
        return any(type(value) is type(known) and value == known for known in get_args(annotation))
    if get_origin(annotation) is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(annotation)[0]) for item in value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is annotation or (annotation is type(None) and value is None)


def _describe(annotation: Any) -> str:
    choices = _choices(annotation)
    if len(choices) > 1:
        return " or ".join(_describe(choice) for choice in choices)
    if get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list of {_describe(get_args(annotation)[0])}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(annotation, str(annotation))
