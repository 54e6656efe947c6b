"""Class weights: given as a list, or made from a census of the training cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from segkit.labels import Labels

Method = Literal["inverse", "sqrt_inverse", "median_frequency", "enet"]
METHODS: tuple[str, ...] = get_args(Method)

# "none" is what YAML 1.2 makes of `class_weights: none`
ClassWeights = list[float] | Method | Literal["none"] | None


def class_weights(method: str, census: Any, names: Sequence[str] | None = None) -> Tensor:
    """Weights [K] from a census: integers [cases, K] of valid pixels a case and class (2 classes in binary mode).

    With n_c the pixels of class c, N all pixels and f_c = n_c / N:
    inverse: N / (K n_c).  sqrt_inverse: its square root.  enet: 1 / ln(1.02 + f_c).
    median_frequency: median(q) / q_c, q_c being n_c over the pixels of the cases that contain c
        (Eigen & Fergus 2015).
    Where classes overlap, N is the sum over the classes.

    Raises ValueError for an unknown method, a census of another shape and a class that no case contains.
    """
    if method not in METHODS:
        raise ValueError(f"expected class_weights to be a list or one of {', '.join(METHODS)}, got {method!r}")
    counts = _checked_census(census, names)
    total = counts.sum(0)
    if method == "median_frequency":
        frequency = total / torch.where(counts > 0, counts.sum(1, keepdim=True), 0).sum(0)
        return frequency.quantile(0.5) / frequency
    if method == "enet":
        return 1 / torch.log(1.02 + total / total.sum())
    inverse = total.sum() / (len(total) * total)
    return inverse if method == "inverse" else inverse.sqrt()


def _checked_census(census: Any, names: Sequence[str] | None) -> Tensor:
    counts = torch.as_tensor(census).to("cpu", torch.float64)
    columns = len(names) if names is not None else "classes"
    if counts.ndim != 2 or (names is not None and counts.shape[1] != columns):
        raise ValueError(f"expected a census [cases, {columns}] of pixels a class, got {list(counts.shape)}")
    if not bool((counts >= 0).all()):
        raise ValueError("expected a census of pixel counts, none of them negative or NaN")
    known = range(counts.shape[1]) if names is None else names
    unseen = [str(name) for name, total in zip(known, counts.sum(0), strict=True) if total == 0]
    if unseen:
        raise ValueError(
            f"no training case contains {', '.join(unseen)}, so no weight follows from the census; "
            "give class_weights as a list, or drop the class"
        )
    return counts


def resolve_class_weights(chosen: ClassWeights, labels: Labels, census: Any = None) -> Tensor:
    """The option `class_weights` as a float32 tensor, one weight for each of `labels.names`; ones for None.

    Raises ValueError for a named method without a census, a wrong length, and weights that are negative, not
    finite or all zero.
    """
    if chosen is None or chosen == "none":
        return torch.ones(len(labels.names))
    if isinstance(chosen, str):
        if census is None:
            raise ValueError(
                f"class_weights {chosen!r} need a census of the training cases: pass census=, integers "
                f"[cases, {len(labels.names)}] of pixels a class, or give the weights themselves as a list"
            )
        return class_weights(chosen, census, labels.names).float()
    weights = torch.tensor([float(weight) for weight in chosen])
    if len(weights) != len(labels.names):
        raise ValueError(
            f"expected {len(labels.names)} class_weights, for {', '.join(labels.names)}, "
            f"got {len(weights)}: {list(chosen)}"
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()) or weights.sum() == 0:
        raise ValueError(f"expected class_weights of 0 or more, finite and not all 0, got {list(chosen)}")
    return weights
