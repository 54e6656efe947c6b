"""Class weights, given as a list or computed from the class counts of the training cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Required, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict

from segkit.labels import Labels
from segkit.losses.limits import LARGEST_OPTION
from segkit.utils.text import shown

Method = Literal["inverse", "sqrt_inverse", "median_frequency", "enet", "effective_number"]
METHODS: tuple[str, ...] = get_args(Method)
Counts = Literal["pixels", "images", "components"]


class FromClassCounts(TypedDict, total=False):
    """A method with its options.

    cap: an upper limit of the weights. mean_one: divide the weights by their mean, after the limit.
    beta, counts: options of `effective_number`: the overlap of the samples, and what counts as a sample.
    """

    method: Required[Method]
    cap: float
    mean_one: bool
    beta: float
    counts: Literal["images", "components"]


# YAML 1.2 reads `class_weights: none` as the string "none"
ClassWeights = list[float] | Method | FromClassCounts | Literal["none"] | None


def class_weights(method: str | Mapping[str, Any], class_counts: Any, names: Sequence[str] | None = None) -> Tensor:
    """Class weights [K], float64, from class counts.

    method: a name, or a mapping as in `FromClassCounts`.
    class_counts: the number of valid pixels of each class in each case, integers [cases, K] (K = 2 in binary mode); or
        a mapping with this array under `pixels` and the number of connected components under `components`.

    Let n_c be the pixels of class c, N all pixels and f_c = n_c / N:
    inverse: N / (K n_c).  sqrt_inverse: its square root.  enet: 1 / ln(1.02 + f_c) (Paszke et al. 2016).
    median_frequency: median(q) / q_c, where q_c is n_c divided by the pixels of the cases that contain c
        (Eigen & Fergus 2015).
    effective_number: (1 - beta) / (1 - beta^m_c), where m_c is the number of images or components of class c, scaled to
        mean 1 (Cui et al. 2019). For pixel counts, beta^m is 0 for every class, so all weights would be equal.
    For overlapping classes, N is the sum over the classes.

    Raises ValueError for an unknown method or option, class counts of another shape, class counts without the
    components that a method needs, and a class that no case contains.
    """
    options: dict[str, Any] = dict(method) if isinstance(method, Mapping) else {"method": method}
    name = options.get("method")
    if name not in METHODS:
        raise ValueError(f"expected class_weights to be a list or one of {', '.join(METHODS)}, got {shown(name)}")
    _check_options(options)
    weights = _weights(name, options, class_counts, names)
    if "cap" in options:
        weights = weights.clamp(max=options["cap"])
    return weights / weights.mean() if options.get("mean_one", name == "effective_number") else weights


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# For each option of a method: a check of its value, and a description of the valid values.
_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda method: method in METHODS, f"one of {', '.join(METHODS)}"),
    "cap": (lambda cap: _is_number(cap) and cap > 0, "a number above 0"),
    "mean_one": (lambda mean_one: isinstance(mean_one, bool), "true or false"),
    "beta": (lambda beta: _is_number(beta) and 0 < beta < 1, "a number between 0 and 1"),
    "counts": (lambda counts: counts in ("images", "components"), "images or components"),
}


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"expected class_weights with {', '.join(_OPTIONS)}, got {shown(name)}")
        is_valid, description = _OPTIONS[name]
        if not is_valid(value):
            raise ValueError(f"expected {name} of class_weights as {description}, got {shown(value)}")
        if name in ("beta", "counts") and options["method"] != "effective_number":
            raise ValueError(f"{name} is an option of effective_number, got it with {options['method']}")


def _weights(name: str, options: Mapping[str, Any], class_counts: Any, names: Sequence[str] | None) -> Tensor:
    counts = _checked_counts(_counts_of(class_counts, "pixels"), names)
    total = counts.sum(0)
    if name == "effective_number":
        samples = (counts > 0).double()
        if options.get("counts", "images") == "components":
            samples = _checked_counts(_counts_of(class_counts, "components"), names)
        return (1 - options.get("beta", 0.999)) / (1 - options.get("beta", 0.999) ** samples.sum(0))
    if name == "median_frequency":
        frequency = total / torch.where(counts > 0, counts.sum(1, keepdim=True), 0).sum(0)
        return frequency.quantile(0.5) / frequency
    if name == "enet":
        return 1 / torch.log(1.02 + total / total.sum())
    inverse = total.sum() / (len(total) * total)
    return inverse if name == "inverse" else inverse.sqrt()


def _counts_of(class_counts: Any, name: str) -> Any:
    """The array of pixels or components; class counts that are not a mapping are pixel counts."""
    if isinstance(class_counts, Mapping) and name in class_counts:
        return class_counts[name]
    if isinstance(class_counts, Mapping) or name != "pixels":
        raise ValueError(
            f"expected class counts with {name}: a mapping {{'pixels': [cases, classes], 'components': ...}}, "
            f"got {sorted(class_counts) if isinstance(class_counts, Mapping) else 'pixels only'}"
        )
    return class_counts


def is_from_class_counts(option: Any) -> bool:
    """Whether a `class_weights` option is computed from class counts."""
    return isinstance(option, Mapping) or (isinstance(option, str) and option != "none")


def _checked_counts(class_counts: Any, names: Sequence[str] | None) -> Tensor:
    counts = torch.as_tensor(class_counts).to("cpu", torch.float64)
    columns = len(names) if names is not None else "classes"
    if counts.ndim != 2 or (names is not None and counts.shape[1] != columns):
        raise ValueError(
            f"expected class counts [cases, {columns}], the pixels of each class, got shape {list(counts.shape)}"
        )
    if not bool((counts >= 0).all()):
        raise ValueError("expected class counts of 0 or more, got a negative number or NaN")
    class_names = range(counts.shape[1]) if names is None else names
    absent = [str(name) for name, total in zip(class_names, counts.sum(0), strict=True) if total == 0]
    if absent:
        raise ValueError(
            f"no training case contains {', '.join(absent)}, so its weight cannot be computed from the class counts; "
            "give class_weights as a list, or remove the class"
        )
    return counts


def equal_class_counts(labels: Labels) -> dict[str, Any]:
    """Class counts with which every loss can be built, where its weights do not matter."""
    ones = torch.ones((1, len(labels.names)), dtype=torch.int64)
    return {"pixels": ones, "components": ones, "radius": 16 * ones}


def resolve_class_weights(option: ClassWeights, labels: Labels, class_counts: Any = None) -> Tensor:
    """The option `class_weights` as a float64 tensor, with one weight for each of `labels.names`; ones for None.

    Raises ValueError for a named method without class counts, a wrong length, and weights that are negative, not
    finite, or all 0.
    """
    if option is None or option == "none":
        return torch.ones(len(labels.names), dtype=torch.float64)
    if isinstance(option, (str, Mapping)):
        if class_counts is None:
            raise ValueError(
                f"class_weights {shown(option)} needs the class counts of the training cases: pass class_counts=, "
                f"integers [cases, {len(labels.names)}] with the pixels of each class, or give the weights as a list"
            )
        return class_weights(option, class_counts, labels.names)
    weights = torch.tensor([float(weight) for weight in option], dtype=torch.float64)
    if len(weights) != len(labels.names):
        raise ValueError(
            f"expected {len(labels.names)} class_weights, one for each of {', '.join(labels.names)}, "
            f"got {len(weights)}: {shown(list(option))}"
        )
    if not bool(((weights >= 0) & (weights <= LARGEST_OPTION)).all()) or weights.sum() == 0:
        expected = f"expected class_weights of 0 or more, at most {LARGEST_OPTION:g} and not all 0"
        raise ValueError(f"{expected}, got {shown(list(option))}")
    return weights
