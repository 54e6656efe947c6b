"""From a name, a mapping or a list to a loss: the checks of what was written, and the weighted sum of terms."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import types
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn
from typing_extensions import is_typeddict

from segkit.labels import Labels
from segkit.losses.all_reduce import GlobalSum, Reduce, keep
from segkit.losses.class_weights import is_from_class_counts, resolve_class_weights
from segkit.losses.library_presets import preset
from segkit.losses.lovasz import LovaszHinge, LovaszSoftmax
from segkit.losses.pixel import CrossEntropy, Focal, PolyCrossEntropy
from segkit.losses.region import Dice, Jaccard
from segkit.losses.topk import TopkCrossEntropy
from segkit.losses.tversky import FocalTversky, GeneralizedDice, Tversky
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES, Constant, WeightSchedule
from segkit.losses.weighted_sum import Scale, WeightedSum

LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "poly_cross_entropy": PolyCrossEntropy,
    "topk_cross_entropy": TopkCrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "jaccard": Jaccard,
    "tversky": Tversky,
    "focal_tversky": FocalTversky,
    "generalized_dice": GeneralizedDice,
    "lovasz_softmax": LovaszSoftmax,
    "lovasz_hinge": LovaszHinge,
}

RECIPES: dict[str, list[dict[str, Any]]] = {
    "weighted_cross_entropy": [{"name": "cross_entropy", "class_weights": "median_frequency"}],
    "dice_ce": [{"name": "dice"}, {"name": "cross_entropy"}],
    "ce_lovasz": [{"name": "cross_entropy"}, {"name": "lovasz_softmax"}],
    "ce_then_lovasz": [
        {"name": "cross_entropy"},
        {"name": "lovasz_softmax", "weight": {"name": "after", "fraction": 0.5}},
    ],
    "dice_focal": [{"name": "dice"}, {"name": "focal"}],
    "dice_topk": [{"name": "dice"}, {"name": "topk_cross_entropy"}],
}

INJECTED = ("labels", "class_counts", "reduce")  # given by build_loss, never written by the user
TermSpec = str | Mapping[str, Any]


def build_loss(
    spec: TermSpec | Sequence[TermSpec], labels: Labels, class_counts: Any = None, group: Any = None
) -> WeightedSum:
    """Build the loss that a name, a mapping or a list of these describes.

    spec: the name of a loss or of a recipe, `{"name": ..., "weight": 1, ...}` with the options of that loss, or
        a list of names and mappings of losses. `weight` is a number, or a schedule over the run such as
        `{"name": "linear", "start": 0, "end": 1}`. `like` names a library: options that are not given are set so that
        the value and the gradient are that library's.
    class_counts: integers [cases, classes] of the valid pixels a training case and class, for named class weights; or a
        mapping with these under `pixels` and the components under `components`.
    group: processes (of torch.distributed) over which the sums are taken, each with its part of the batch. The value is
        then that of the whole batch on every one, and the mean of their gradients its gradient.

    Raises ValueError for a name, an option or a value that is not known, with the nearest one that is.
    """
    reduce: Reduce = keep if group is None else GlobalSum(group)
    terms: dict[str, nn.Module] = {}
    schedules, scales = [], []
    for term in _term_mappings(spec):
        cls = _loss_class(term.get("name"))
        options = expanded(term, labels)
        name, weight, library = options.pop("name"), options.pop("weight", 1.0), options.pop("like", None)
        if library is not None:
            options = _with_numbers(options, labels, class_counts)
        schedules.append(_weight_schedule(name, weight))
        scales.append(_library_scale(name, library, options, labels))
        terms[_free_name(name, terms)] = _build_term(name, cls, options, labels, class_counts, reduce)
    return WeightedSum(labels, terms, schedules, scales, reduce)


def _weight_schedule(loss: str, weight: Any) -> WeightSchedule:
    """A number of 0 or more, or a mapping with the name and the arguments of a schedule."""
    if isinstance(weight, Mapping):
        options = dict(weight)
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in WEIGHT_SCHEDULES:
            raise ValueError(
                f"loss {loss}: expected weight as a number, or a mapping with a name among "
                f"{', '.join(WEIGHT_SCHEDULES)}, got {name!r}{_nearest(name, WEIGHT_SCHEDULES)}"
            )
        _check_options(f"loss {loss}, weight {name}", WEIGHT_SCHEDULES[name], options)
        try:
            return WEIGHT_SCHEDULES[name](**options)
        except ValueError as error:
            raise ValueError(f"loss {loss}, weight {name}: {error}") from error
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ValueError(f"loss {loss}: expected weight as a number of 0 or more, got {weight!r}")
    return Constant(value=float(weight))


def expanded(term: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """A term with what `like` stands for written out; `like` stays, for the factor that goes with it.

    Raises ValueError for an unknown library, and where it has no such loss or has it wrong.
    """
    library = term.get("like")
    if library is None:
        return dict(term)
    options = dict(preset(library, term["name"]).options)
    if labels.background_channel is None:
        options.pop("background", None)
    if labels.mode != "multiclass":
        options.pop("activation", None)
    return {"name": term["name"], "like": library, **options, **term}


def _with_numbers(options: dict[str, Any], labels: Labels, class_counts: Any) -> dict[str, Any]:
    """The options with class weights from the class counts as the numbers that a factor may follow from; what is
    wrong with
    them the loss itself says."""
    if class_counts is None or not is_from_class_counts(options.get("class_weights")):
        return options
    try:
        return {
            **options,
            "class_weights": resolve_class_weights(options["class_weights"], labels, class_counts).tolist(),
        }
    except ValueError:
        return options


def _library_scale(name: str, library: Any, options: Mapping[str, Any], labels: Labels) -> Scale:
    """What `like` scales the value by; the options are those that `expanded` gave."""
    if library is None:
        return Scale()
    signature = inspect.signature(LOSSES[name]).parameters
    defaults = {key: one.default for key, one in signature.items() if key not in INJECTED}
    return preset(library, name).scale({**defaults, **options}, labels)


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


def _build_term(
    name: str, cls: type[nn.Module], options: Mapping[str, Any], labels: Labels, class_counts: Any, reduce: Reduce
) -> nn.Module:
    """Check the options against the signature, and let the class check what they mean together."""
    here = f"loss {name}, mode {labels.mode}"
    _check_options(here, cls, options)
    given = {"labels": labels, "class_counts": class_counts, "reduce": reduce}
    parameters = inspect.signature(cls).parameters
    try:
        return cls(**{key: given[key] for key in INJECTED if key in parameters}, **options)
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from error


def _check_options(here: str, entry: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the signature has not, or a value that its annotation does not allow."""
    known = [parameter for parameter in inspect.signature(entry).parameters if parameter not in INJECTED]
    hints = get_type_hints(entry.__init__ if isinstance(entry, type) else entry)
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
    if is_typeddict(annotation):
        return isinstance(value, Mapping)  # what is in it is checked where it is used
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
    if is_typeddict(annotation):
        return f"a mapping with {', '.join(annotation.__annotations__)}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(annotation, str(annotation))
