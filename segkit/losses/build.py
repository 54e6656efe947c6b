"""Building a loss from a name, a mapping or a list: checks the options and returns the weighted sum of the terms."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

from pydantic import ValidationError
from torch import nn

from segkit.labels import Labels
from segkit.losses.all_reduce import GlobalSum, Reduce, single_process
from segkit.losses.border import BorderCrossEntropy
from segkit.losses.centreline import ClDice, SkeletonRecall
from segkit.losses.class_weights import is_from_class_counts, resolve_class_weights
from segkit.losses.components import ComponentDice
from segkit.losses.correlation import MatthewsCorrelation
from segkit.losses.distance import Boundary, Hausdorff, Surface
from segkit.losses.library_presets import preset
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.logarithmic import ExponentialLog, LogCoshDice
from segkit.losses.lovasz import LovaszHinge, LovaszSoftmax
from segkit.losses.margin import MarginLabelSmoothing
from segkit.losses.ohem import OhemCrossEntropy
from segkit.losses.per_case import PerCase
from segkit.losses.pixel import CrossEntropy, Focal, PolyCrossEntropy
from segkit.losses.region import Dice, Jaccard
from segkit.losses.soft_labels import DiceSemimetric, JaccardMetric
from segkit.losses.topk import TopkCrossEntropy
from segkit.losses.tversky import FocalTversky, GeneralizedDice, Tversky
from segkit.losses.unified_focal import UnifiedFocal
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES, Constant, WeightSchedule
from segkit.losses.weighted_sum import Scale, WeightedSum
from segkit.utils.field_errors import PROBLEM
from segkit.utils.signatures import (
    describe,
    first_errors,
    is_mapping_type,
    literal_values,
    signature_model,
    union_members,
)
from segkit.utils.text import did_you_mean, shown

LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "poly_cross_entropy": PolyCrossEntropy,
    "topk_cross_entropy": TopkCrossEntropy,
    "ohem_cross_entropy": OhemCrossEntropy,
    "margin_label_smoothing": MarginLabelSmoothing,
    "focal": Focal,
    "dice": Dice,
    "jaccard": Jaccard,
    "tversky": Tversky,
    "focal_tversky": FocalTversky,
    "generalized_dice": GeneralizedDice,
    "log_cosh_dice": LogCoshDice,
    "dice_semimetric": DiceSemimetric,
    "jaccard_metric": JaccardMetric,
    "mcc": MatthewsCorrelation,
    "unified_focal": UnifiedFocal,
    "exponential_log": ExponentialLog,
    "lovasz_softmax": LovaszSoftmax,
    "lovasz_hinge": LovaszHinge,
    "boundary": Boundary,
    "hausdorff": Hausdorff,
    "surface": Surface,
    "cldice": ClDice,
    "skeleton_recall": SkeletonRecall,
    "component_dice": ComponentDice,
    "border_cross_entropy": BorderCrossEntropy,
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
    "dice_ce_boundary": [
        {"name": "dice"},
        {"name": "cross_entropy"},
        {"name": "boundary", "weight": {"name": "linear", "start": 0.0, "end": 0.1}},
    ],
    "dice_ce_cldice": [{"name": "dice"}, {"name": "cross_entropy"}, {"name": "cldice"}],
    "dice_ce_skeleton_recall": [{"name": "dice"}, {"name": "cross_entropy"}, {"name": "skeleton_recall"}],
    "dice_ce_component_dice": [{"name": "dice"}, {"name": "cross_entropy"}, {"name": "component_dice"}],
}

MAX_DEPTH = 8  # of lists and mappings in an option
INJECTED = ("labels", "class_counts", "reduce")  # passed by `build_loss`; users cannot set them
TermSpec = str | Mapping[str, Any]


@overload
def build_loss(
    spec: TermSpec | Sequence[TermSpec],
    labels: Labels,
    class_counts: Any = None,
    group: Any = None,
    reduction: Literal["batch"] = "batch",
) -> WeightedSum: ...


@overload
def build_loss(
    spec: TermSpec | Sequence[TermSpec],
    labels: Labels,
    class_counts: Any = None,
    group: Any = None,
    *,
    reduction: Literal["none"],
) -> PerCase: ...


def build_loss(
    spec: TermSpec | Sequence[TermSpec],
    labels: Labels,
    class_counts: Any = None,
    group: Any = None,
    reduction: Literal["batch", "none"] = "batch",
) -> WeightedSum | PerCase:
    """Build a loss from a name, a mapping or a list of terms.

    spec: the name of a loss or of a recipe; a mapping `{"name": ..., "weight": 1, ...}` with the options of the loss;
        or a list of names and mappings of losses. `weight` is a number, or a schedule over the run such as
        `{"name": "linear", "start": 0, "end": 1}`. `like` names a library: options that are not given are set such
        that value and gradient equal those of that library.
    class_counts: the number of valid pixels of each class in each training case, integers [cases, classes]; required
        by named class weights. Or a mapping with this array under `pixels`, the number of connected components under
        `components`, and the largest radius of each class in each case under `radius`, see `ClDice`.
    group: a process group of `torch.distributed` whose processes each hold a part of the batch. Every process then
        gets the loss of the whole batch, and the mean of the processes' gradients is the gradient of the whole batch.
    reduction: `batch` gives a scalar, the loss of the batch; `none` the loss of each case, [B], see `PerCase`. `none`
        is not an option of a configuration, since training needs a scalar, and cannot be combined with `group`.

    Raises ValueError for an unknown name, option or value, and suggests the nearest known one.
    """
    if reduction not in ("batch", "none"):
        raise ValueError(f"expected reduction as 'batch' or 'none', got {shown(reduction)}")
    if reduction == "none" and group is not None:
        raise ValueError("reduction none gives the loss of each case, which needs no other process; leave group out")
    reduce: Reduce = single_process if group is None else GlobalSum(group)
    terms: dict[str, nn.Module] = {}
    schedules, scales = [], []
    for term in term_mappings(spec):
        loss_class = _loss_class(term.get("name"))
        with _naming(term["name"]):
            options = expanded(term, labels)
        name, weight, library = options.pop("name"), options.pop("weight", 1.0), options.pop("like", None)
        if library is not None:
            options = _with_numeric_class_weights(options, labels, class_counts)
        schedules.append(_weight_schedule(name, weight))
        with _naming(name):
            scales.append(_library_scale(name, library, options, labels))
        terms[_free_name(name, terms)] = _build_term(name, loss_class, options, labels, class_counts, reduce)
    loss = WeightedSum(labels, terms, schedules, scales, reduce)
    return loss if reduction == "batch" else PerCase(loss)


@contextmanager
def _naming(loss: str) -> Iterator[None]:
    """Put the name of the loss before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"loss {loss}: {error}") from error


def _weight_schedule(loss: str, weight: Any) -> WeightSchedule:
    """The schedule of a weight, which is a number of at least 0 or a mapping with the name and options of a schedule.

    Raises ValueError for anything else.
    """
    if isinstance(weight, Mapping):
        options = dict(weight)
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in WEIGHT_SCHEDULES:
            raise ValueError(
                f"loss {loss}: expected weight as a number, or a mapping with a name among "
                f"{', '.join(WEIGHT_SCHEDULES)}, got {shown(name)}{did_you_mean(name, WEIGHT_SCHEDULES)}"
            )
        _check_options(f"loss {loss}, weight {name}", WEIGHT_SCHEDULES[name], options)
        try:
            return WEIGHT_SCHEDULES[name](**options)
        except ValueError as error:
            raise ValueError(f"loss {loss}, weight {name}: {error}") from error
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= LARGEST_OPTION:
        expected = f"expected weight as a number of 0 or more, at most {LARGEST_OPTION:g}"
        raise ValueError(f"loss {loss}: {expected}, got {shown(weight)}")
    return Constant(value=float(weight))


def expanded(term: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """A term with the options that `like` implies; `like` itself stays, because it may also imply a factor.

    Raises ValueError for an unknown library, and if the library does not have the loss or implements it incorrectly.
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


def _with_numeric_class_weights(options: dict[str, Any], labels: Labels, class_counts: Any) -> dict[str, Any]:
    """The options with named class weights as numbers, since the factor of a library may depend on them.

    Invalid class weights are returned unchanged; the loss itself raises the error.
    """
    if class_counts is None or not is_from_class_counts(options.get("class_weights")):
        return options
    try:
        weights = resolve_class_weights(options["class_weights"], labels, class_counts)
    except ValueError:
        return options
    return {**options, "class_weights": weights.tolist()}


def _library_scale(name: str, library: Any, options: Mapping[str, Any], labels: Labels) -> Scale:
    """The factor and offset that `like` implies; `options` come from `expanded`."""
    if library is None:
        return Scale()
    parameters = inspect.signature(LOSSES[name]).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key not in INJECTED}
    return preset(library, name).scale({**defaults, **options}, labels)


def term_mappings(spec: TermSpec | Sequence[TermSpec]) -> list[Mapping[str, Any]]:
    """The terms of a specification, each as a mapping with a name."""
    if isinstance(spec, str):
        if spec not in LOSSES and spec not in RECIPES:
            known = [*LOSSES, *RECIPES]
            raise ValueError(
                f"expected a loss or recipe among {', '.join(known)}, got {shown(spec)}{did_you_mean(spec, known)}"
            )
        return list(RECIPES.get(spec, [{"name": spec}]))
    terms = [spec] if isinstance(spec, Mapping) else spec
    if not isinstance(terms, Sequence) or not terms or not all(isinstance(term, (str, Mapping)) for term in terms):
        raise ValueError(f"expected a loss as a name, a mapping with a name, or a list of these, got {shown(spec)}")
    mappings: list[Mapping[str, Any]] = [{"name": term} if isinstance(term, str) else term for term in terms]
    for term in mappings:
        for option, value in term.items():
            _check_plain(f"loss {shown(term.get('name'))}", option, value)
    return mappings


def _check_plain(context: str, option: Any, value: Any, depth: int = 0) -> None:
    """Raise ValueError for an option whose name is not text, or whose value is not plain data."""
    if not isinstance(option, str):
        raise ValueError(f"{context}: expected text as the name of an option, got {shown(option)}")
    if depth > MAX_DEPTH:
        raise ValueError(f"{context}: expected {option} with at most {MAX_DEPTH} lists inside each other, got more")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(context, key, item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(context, option, item, depth + 1)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(
            f"{context}: expected {option} as a number, text, true, false, null, a list or a mapping, got "
            f"{shown(value)}"
        )


def _loss_class(name: Any) -> type[nn.Module]:
    if isinstance(name, str) and name in LOSSES:
        return LOSSES[name]
    if isinstance(name, str) and name in RECIPES:
        raise ValueError(f"the loss {name} is a recipe: use its name alone, or list its terms {RECIPES[name]}")
    raise ValueError(f"expected a loss name among {', '.join(LOSSES)}, got {shown(name)}{did_you_mean(name, LOSSES)}")


def _build_term(
    name: str,
    loss_class: type[nn.Module],
    options: Mapping[str, Any],
    labels: Labels,
    class_counts: Any,
    reduce: Reduce,
) -> nn.Module:
    """Check the options against the signature, then build the loss, which checks their combination."""
    context = f"loss {name}, mode {labels.mode}"
    _check_options(context, loss_class, options)
    injected = {"labels": labels, "class_counts": class_counts, "reduce": reduce}
    parameters = inspect.signature(loss_class).parameters
    try:
        return loss_class(**{key: injected[key] for key in INJECTED if key in parameters}, **options)
    except ValueError as error:
        raise ValueError(f"{context}: {error}") from error


def _check_options(context: str, entry: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is not in the signature, or a value that its annotation does not allow."""
    model = signature_model(entry, frozenset(INJECTED), allow_inf_nan=True)  # the losses check ranges themselves
    try:
        model.model_validate({option: _as_plain(value) for option, value in options.items()})
    except ValidationError as error:
        for option, details in first_errors(error).items():
            if details["type"] == PROBLEM:
                raise ValueError(f"{context}, {option}: {details['msg']}") from error
            _raise_option_error(context, option, details["type"], options.get(option), model.model_fields)


def _raise_option_error(context: str, option: str, kind: str, value: Any, fields: Mapping[str, Any]) -> None:
    if kind == "missing":
        raise ValueError(f"{context}: missing required option {shown(option)}")
    if kind == "extra_forbidden":
        raise ValueError(
            f"{context}: expected options among {', '.join(fields)}, got {shown(option)}{did_you_mean(option, fields)}"
        )
    annotation = fields[option].annotation
    if isinstance(value, Mapping) and any(is_mapping_type(member) for member in union_members(annotation)):
        return  # `class_weights` checks its own mapping and names the key that is wrong
    suggestion = did_you_mean(value, literal_values(annotation))
    raise ValueError(f"{context}: expected {option} as {describe(annotation)}, got {shown(value)}{suggestion}")


def _as_plain(value: Any) -> Any:
    """A tuple as a list and a mapping as a dict, the only forms that strict validation accepts."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _free_name(name: str, taken: Container[str]) -> str:
    """`name`, or the first of name_2, name_3, ... that is free."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(candidate for candidate in numbered if candidate not in taken)
