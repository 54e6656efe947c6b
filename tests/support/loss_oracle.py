"""What the tests of losses share: variants of every loss, random batches, and value and gradient of a loss."""

from __future__ import annotations

import pytest
import torch

from segkit.labels import Labels
from segkit.losses import LOSSES
from segkit.losses.target_maps import maps_of_target

IGNORE_INDEX = 255
MODES = ("multiclass", "binary", "multilabel")
SPACES = ((3, 5), (2, 3, 2))

INDEPENDENT = ("binary", "multilabel")  # the modes with independent channels
MODES_OF = {"lovasz_hinge": INDEPENDENT}  # all others support every mode
SOFT = (  # losses that support soft targets
    "cross_entropy", "poly_cross_entropy", "topk_cross_entropy", "dice", "jaccard", "tversky", "focal_tversky",
    "generalized_dice", "ohem_cross_entropy", "margin_label_smoothing", "log_cosh_dice", "dice_semimetric",
    "jaccard_metric", "mcc", "exponential_log",
)  # fmt: skip
SPATIAL = (  # losses that depend on where pixels lie
    "boundary", "hausdorff", "surface", "cldice", "skeleton_recall", "component_dice", "border_cross_entropy",
)  # fmt: skip
# losses that do not support pixel weights
UNWEIGHTED = ("topk_cross_entropy", "ohem_cross_entropy", "lovasz_softmax", "lovasz_hinge")
# options that some losses need: without class counts, the iterations of cldice have no default
NEEDED = {"cldice": {"iterations": 2}}
# With few pixels, the error of a histogram, which replaces errors by the centres of their bins, is large.
EXACT = {"lovasz_softmax": {"mode": "exact"}, "lovasz_hinge": {"mode": "exact"}}

# every loss with its defaults, and options that change the arithmetic, each with the modes that support them
VARIANTS = [
    *[({"name": name, **NEEDED.get(name, {}), **EXACT.get(name, {})}, MODES_OF.get(name, MODES)) for name in LOSSES],
    ({"name": "cross_entropy", "label_smoothing": 0.2}, MODES),
    (
        {"name": "cross_entropy", "label_smoothing": 0.2, "class_weights": [0.3, 2.1, 1.25], "normalize": "numel"},
        ("multiclass", "multilabel"),
    ),
    ({"name": "cross_entropy", "label_smoothing": 0.3, "class_weights": [0.3, 2.1]}, ("binary",)),
    ({"name": "poly_cross_entropy", "epsilon": -0.5, "class_weights": [0.3, 2.1, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "poly_cross_entropy", "normalize": "numel"}, ("binary",)),
    ({"name": "topk_cross_entropy", "share": 0.5}, MODES),
    ({"name": "focal", "alpha": 0.25, "normalize": "valid"}, MODES),
    ({"name": "focal", "alpha": [0.2, 0.7, 1.0], "gamma": 1.0}, ("multiclass", "multilabel")),
    ({"name": "focal", "alpha": [0.2, 0.7, 1.0], "activation": "sigmoid", "normalize": "numel"}, ("multiclass",)),
    ({"name": "tversky", "alpha": 0.2, "beta": 1.3, "per": "image", "empty": "keep", "eps": [0.5, 1.0]}, MODES),
    ({"name": "focal_tversky", "gamma": 2.0, "per": "image", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass",)),
    ({"name": "focal_tversky", "of": "mean", "empty": "zero"}, MODES),
    ({"name": "generalized_dice", "absent": "max", "relative": False, "per": "image"}, MODES),
    ({"name": "generalized_dice", "weight_by": "simple", "background": False}, ("multiclass",)),
    ({"name": "generalized_dice", "weight_by": "uniform", "eps": [0.5, 1.0], "relative": False}, MODES),
    ({"name": "lovasz_hinge", "mode": "exact", "per": "image", "classes": "all"}, INDEPENDENT),
    (
        {"name": "cross_entropy", "class_weights": [0.3, 2.1, 1.25], "normalize": "weights"},
        ("multiclass", "multilabel"),
    ),
    ({"name": "cross_entropy", "class_weights": [0.3, 2.1], "normalize": "valid"}, ("binary",)),
    ({"name": "cross_entropy", "class_weights": [0.3, 2.1, 1.25], "normalize": "numel"}, ("multiclass", "multilabel")),
    ({"name": "cross_entropy", "normalize": "valid"}, MODES),
    ({"name": "focal", "gamma": 0.5, "class_weights": [0.3, 2.1, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "focal", "gamma": 1.5, "class_weights": [0.3, 2.1]}, ("binary",)),
    ({"name": "focal", "activation": "sigmoid", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass",)),
    ({"name": "dice", "per": "image", "power": 2, "eps": [0.0, 0.5], "empty": "keep"}, MODES),
    ({"name": "dice", "empty": "zero", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "dice", "background": False, "per": "image", "eps": 0.0}, ("multiclass",)),
    ({"name": "jaccard", "per": "image", "eps": [1.0, 0.5], "empty": "keep"}, MODES),
    ({"name": "jaccard", "power": 2, "empty": "zero"}, MODES),
    ({"name": "dice", "average": "micro", "per": "image", "eps": [0.0, 0.5]}, MODES),
    ({"name": "dice", "average": "micro", "class_weights": [0.3, 2.1, 1.25], "empty": "keep"}, ("multiclass",)),
    ({"name": "dice", "average": "micro", "activation": "sigmoid", "power": 2, "per": "image"}, MODES),
    ({"name": "jaccard", "average": "micro", "background": False, "empty": "zero"}, ("multiclass",)),
    ({"name": "jaccard", "activation": "sigmoid", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass",)),
    ({"name": "tversky", "activation": "sigmoid", "per": "image"}, ("multiclass",)),
    ({"name": "tversky", "average": "micro", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "focal_tversky", "average": "micro", "of": "mean"}, ("multilabel",)),
    ({"name": "generalized_dice", "power": 2, "activation": "sigmoid"}, ("multiclass",)),
    ({"name": "generalized_dice", "power": 2, "per": "image"}, MODES),
    ({"name": "lovasz_softmax", "mode": "exact", "per": "image"}, MODES),
    ({"name": "lovasz_softmax", "mode": "exact", "classes": "all"}, MODES),
    ({"name": "lovasz_softmax", "mode": "exact", "per": "image", "classes": ["a", 2]}, ("multiclass", "multilabel")),
    ({"name": "boundary", "distance": "mm", "offset": False, "per": "image"}, MODES),
    (
        {"name": "boundary", "background": True, "class_weights": [0.3, 2.1, 1.25], "distance": "diagonal"},
        ("multiclass", "multilabel"),
    ),
    ({"name": "hausdorff", "alpha": 1.5, "log": True, "distance": "mm"}, MODES),
    ({"name": "surface", "per": "image"}, MODES),
    ({"name": "cldice", "iterations": 1, "per": "image", "eps": [1.0, 0.5]}, MODES),
    ({"name": "skeleton_recall", "radius": 0, "eps": [1.0, 0.5], "per": "image"}, MODES),
    ({"name": "component_dice", "of": "region", "per": "image", "eps": 0.5}, MODES),
    ({"name": "border_cross_entropy", "w0": 3.0, "sigma": 1.0, "normalize": "weights"}, MODES),
    ({"name": "border_cross_entropy", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "cross_entropy", "positive_weights": 3.0, "class_weights": [0.3, 2.1]}, ("binary",)),
    (
        {"name": "cross_entropy", "positive_weights": [2.5, 0.4, 1.5], "label_smoothing": 0.1, "normalize": "valid"},
        ("multilabel",),
    ),
    ({"name": "ohem_cross_entropy", "threshold": 0.05, "min_share": 0.0, "min_pixels": 7}, ("multilabel",)),
    ({"name": "margin_label_smoothing", "margin": 1.5, "penalty": 0.7}, MODES),
    ({"name": "jaccard_metric", "variant": 2, "per": "image", "eps": [0.5, 1.0]}, ("multiclass", "binary")),
    ({"name": "dice_semimetric", "variant": 2, "empty": "zero", "class_weights": [0.3, 2.1, 1.25]}, ("multilabel",)),
    ({"name": "mcc", "per": "image", "empty": "keep", "background": False}, ("multiclass",)),
    (
        {"name": "unified_focal", "variant": "symmetric", "gamma": 0.3, "delta": 0.7, "per": "image"},
        ("multiclass", "binary"),
    ),
    ({"name": "exponential_log", "gamma": 1.5, "per": "image", "class_weights": [0.3, 2.1, 1.25]}, ("multiclass",)),
]
# variants that make maps of the prediction on the host
ON_HOST = [({"name": "hausdorff", "one_sided": False, "distance": "mm"}, MODES)]


def spec_of(name):
    """The loss of this name with its defaults and the options that it needs."""
    return {"name": name, **NEEDED.get(name, {})}


def cases(*spaces, variants=VARIANTS):
    return [
        pytest.param(options, mode, space, id=f"{'-'.join(str(v) for v in options.values())}-{mode}-{len(space)}d")
        for options, modes in variants
        for mode in modes
        for space in spaces
    ]


DEFAULTS = [pytest.param(name, mode, id=f"{name}-{mode}") for name in LOSSES for mode in MODES_OF.get(name, MODES)]


def labels_of(mode):
    names = ["background", "a"] if mode == "binary" else ["background", "a", "b"]
    return Labels(names, mode=mode, ignore_index=IGNORE_INDEX)


def batch(mode, space, seed=0, ignored=0.3, absent=None, dtype=torch.float64):
    """Logits and a mask with ignored pixels. absent: a class that no pixel has."""
    rng = torch.Generator().manual_seed(seed)
    labels = labels_of(mode)
    logits = 2 * torch.randn(2, labels.channels, *space, generator=rng, dtype=dtype)
    shape = (2, labels.channels, *space) if mode == "multilabel" else (2, *space)
    mask = torch.randint(len(labels.names) if mode == "multiclass" else 2, shape, generator=rng, dtype=torch.uint8)
    if absent is not None and mode == "multilabel":
        mask[:, absent] = 0
    elif absent is not None:
        mask[mask == absent] = 0
    mask[torch.rand(shape, generator=rng) < ignored] = IGNORE_INDEX
    return logits, mask


def maps_of(loss, mask, spatial):
    """The maps of a batch that a loss needs, as the training loader would provide them."""
    target = loss.labels.target(mask, spatial)
    return {"maps": maps_of_target(loss.maps, loss.labels, target, None, torch.float64)} if loss.maps else {}


def value_and_gradient(loss, logits, mask, **kwargs):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, mask, **kwargs)
    assert value.shape == ()
    return value.detach(), torch.autograd.grad(value, logits)[0]
