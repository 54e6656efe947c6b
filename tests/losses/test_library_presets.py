"""`like: library`: value and gradient of every preset, compared with the library or with loops over its definition."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor
from torch.testing import assert_close

from segkit.labels import Labels
from segkit.losses import LOSSES, build_loss
from segkit.losses.library_presets import LIBRARIES, PRESETS, Preset, Refusal
from segkit.losses.library_versions import SINCE

from support.library_code import (
    installed,
    mmseg_cross_entropy,
    mmseg_dice,
    mmseg_focal,
    mmseg_lovasz,
    mmseg_tversky,
    nnunet_cross_entropy,
    nnunet_dice,
    nnunet_topk,
)

IGNORE_INDEX = 255
MODES = ("multiclass", "binary", "multilabel")
WEIGHTS = [0.5, 2.0, 1.25]
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-13}  # for two computations of the same value in float64

LibraryLoss = Callable[[Tensor, Tensor, str], Tensor]


def labels_of(mode: str, ignoring: bool = True) -> Labels:
    names = ["background", "a"] if mode == "binary" else ["background", "a", "b"]
    return Labels(names, mode=mode, ignore_index=IGNORE_INDEX if ignoring else None)


def batch(mode: str, situation: str = "plain") -> tuple[Tensor, Tensor]:
    """Logits in float64 and a mask of two images with 40 pixels in total. situation: see `Case`."""
    rng = torch.Generator().manual_seed(3)
    space = (2, 5, 2) if situation == "volume" else (4, 5)
    channels = labels_of(mode).channels
    logits = 2 * torch.randn(2, channels, *space, generator=rng, dtype=torch.float64)
    shape = (2, channels, *space) if mode == "multilabel" else (2, *space)
    mask = torch.randint(3 if mode == "multiclass" else 2, shape, generator=rng, dtype=torch.uint8)
    if situation == "absent":
        second_class = mask[:, 1] if mode == "multilabel" else mask
        second_class[second_class == 1] = 0
    if situation == "ignored":
        mask[torch.rand(shape, generator=rng) < 0.3] = IGNORE_INDEX
    if situation == "ignored pixels":
        ignored = torch.rand((2, 1, *space), generator=rng) < 0.3
        mask[ignored.expand(shape) if mode == "multilabel" else ignored[:, 0]] = IGNORE_INDEX
    return logits, mask


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    assert value.shape == ()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def segkit_loss(options: dict[str, Any], mode: str, mask: Tensor) -> Callable[[Tensor], Tensor]:
    loss = build_loss(options, labels_of(mode, bool((mask == IGNORE_INDEX).any())))
    return lambda logits: loss(logits, mask)


# --- installed libraries -------------------------------------------------------------------------


def channels_of(mask: Tensor, mode: str) -> Tensor:
    """The mask of binary or overlapping classes, with a channel axis."""
    return mask.unsqueeze(1) if mode == "binary" else mask


def presence(mask: Tensor, mode: str, channels: int) -> Tensor:
    """A mask without ignored pixels as channels of 0 and 1 in float64."""
    if mode == "multiclass":
        return F.one_hot(mask.long(), channels).movedim(-1, 1).double()
    return channels_of(mask, mode).double()


def torch_cross_entropy(**options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        arguments = {name: torch.tensor(numbers, dtype=logits.dtype) for name, numbers in options.items()}
        if mode == "multiclass":
            return F.cross_entropy(logits, mask.long(), ignore_index=IGNORE_INDEX, **arguments)
        return F.binary_cross_entropy_with_logits(logits, presence(mask, mode, logits.shape[1]), **arguments)

    return library_loss


def torch_soft_cross_entropy(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    weight = torch.tensor(WEIGHTS, dtype=logits.dtype)
    return F.cross_entropy(logits, presence(mask, mode, 3), weight=weight, label_smoothing=0.1)


def torchvision_focal(**options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        ops = pytest.importorskip("torchvision.ops")
        return ops.sigmoid_focal_loss(logits, presence(mask, mode, logits.shape[1]), reduction="mean", **options)

    return library_loss


def monai(name: str, activation: bool = True, **options: Any) -> LibraryLoss:
    """activation: whether the loss has the options `softmax` and `sigmoid`."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        cls = getattr(pytest.importorskip("monai.losses"), name)
        ignore = {"ignore_index": IGNORE_INDEX} if (mask == IGNORE_INDEX).any() else {}
        active = {"softmax" if mode == "multiclass" else "sigmoid": True} if activation else {}
        loss = cls(to_onehot_y=mode == "multiclass", **active, **options, **ignore)
        # class numbers as [B, 1, *S]; channels of 0 and 1 unchanged
        return loss(logits, mask.unsqueeze(1) if mode == "multiclass" else channels_of(mask, mode).to(logits))

    return library_loss


def monai_cross_entropy(**options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        arguments = {name: torch.tensor(numbers, dtype=logits.dtype) for name, numbers in options.items()}
        active = {"softmax": True, "to_onehot_y": True} if mode == "multiclass" else {"sigmoid": True}
        cls = pytest.importorskip("monai.losses").DiceCELoss
        return cls(lambda_dice=0.0, **active, **arguments)(logits, mask.unsqueeze(1))

    return library_loss


def smp(name: str, **options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        losses = pytest.importorskip("segmentation_models_pytorch.losses")
        ignore = {"ignore_index": IGNORE_INDEX} if (mask == IGNORE_INDEX).any() else {}
        return getattr(losses, name)(mode, **options, **ignore)(logits, mask.long())

    return library_loss


def smp_mcc(logits: Tensor, mask: Tensor, _mode: str) -> Tensor:
    return pytest.importorskip("segmentation_models_pytorch.losses").MCCLoss()(logits.sigmoid(), mask.double())


def smp_cross_entropy(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    if mode == "multiclass":
        return losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE_INDEX)(logits, mask.long())
    return losses.SoftBCEWithLogitsLoss(ignore_index=IGNORE_INDEX)(logits, channels_of(mask, mode).to(logits))


def smp_smoothed(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    if mode == "multiclass":
        return losses.SoftCrossEntropyLoss(smooth_factor=0.2, ignore_index=IGNORE_INDEX)(logits, mask.long())
    pos_weight = torch.tensor(3.0, dtype=logits.dtype) if mode == "binary" else None
    loss = losses.SoftBCEWithLogitsLoss(smooth_factor=0.1, ignore_index=IGNORE_INDEX, pos_weight=pos_weight)
    return loss(logits, channels_of(mask, mode).to(logits))


def kornia(name: str, ignores: bool = True, weight: list[float] | None = None, **options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, _mode: str) -> Tensor:
        losses = pytest.importorskip("kornia.losses")
        arguments = dict(options, ignore_index=IGNORE_INDEX) if ignores else dict(options)
        if weight is not None:
            arguments["weight"] = torch.tensor(weight, dtype=logits.dtype)
        return getattr(losses, name)(logits, mask.long(), **arguments)

    return library_loss


def kornia_focal(**options: Any) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        if mode == "multiclass":
            return kornia("focal_loss", reduction="mean", **options)(logits, mask, mode)
        loss = kornia("binary_focal_loss_with_logits", reduction="mean", **options)
        return loss(logits, channels_of(mask, mode), mode)

    return library_loss


def kornia_hinge(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    return kornia("lovasz_hinge_loss", ignores=False)(logits, mask, mode)


# --- nnU-Net v2 and mmsegmentation 1.2: loops over pixels, from the definitions ------------------------------------


@dataclass(frozen=True)
class Entry:
    """A pixel of a channel: image, channel, logit, probability, and whether the pixel belongs to the class."""

    image: int
    channel: int
    logit: Tensor
    p: Tensor
    present: bool


def entries(logits: Tensor, mask: Tensor, mode: str, activation: str | None = None) -> Iterator[Entry]:
    """All entries that are not ignored, ordered by image, channel and pixel."""
    z = logits.flatten(2)
    classes = mask.flatten(2) if mode == "multilabel" else mask.flatten(1).unsqueeze(1)
    exclusive = mode == "multiclass" and activation != "sigmoid"
    for image, channel, pixel in itertools.product(*map(range, z.shape)):
        number = int(classes[image, channel if mode == "multilabel" else 0, pixel])
        if number == IGNORE_INDEX:
            continue
        logit = z[image, channel, pixel]
        p = logit.exp() / sum(other.exp() for other in z[image, :, pixel]) if exclusive else 1 / (1 + (-logit).exp())
        yield Entry(image, channel, logit, p, number == (channel if mode == "multiclass" else 1))


def loop_cross_entropy(weights: list[float] | None = None, divide_by: str = "weights") -> LibraryLoss:
    """weights: one per class; in binary mode those of absence and presence."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        total, counts = torch.zeros((), dtype=logits.dtype), {"weights": 0.0, "valid": 0, "numel": mask.numel()}
        counts["pixels"] = int((mask != IGNORE_INDEX).sum()) / (logits.shape[1] if mode == "multilabel" else 1)
        for entry in entries(logits, mask, mode):
            if mode == "multiclass" and not entry.present:
                continue
            weight = 1.0 if weights is None else weights[entry.present if mode == "binary" else entry.channel]
            total = total - weight * (entry.p if entry.present else 1 - entry.p).log()
            counts["weights"] += weight
            counts["valid"] += 1
        return total / counts[divide_by]

    return library_loss


def loop_topk(share: float) -> LibraryLoss:
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        losses = [-entry.p.log() for entry in entries(logits, mask, mode) if entry.present]
        largest = sorted(losses, key=float, reverse=True)[: math.floor(mask.numel() * share + 1e-9)]
        return sum(largest, torch.zeros((), dtype=logits.dtype)) / len(largest)

    return library_loss


def loop_region(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch_wide: bool = False,
    first: dict[str, int] | None = None,
    weights: list[float] | None = None,
) -> LibraryLoss:
    """The mean over images and channels of `loss(tp, fp, fn)`.

    first: the first counted channel, by mode. weights: factors of the classes; the mean is divided by their number.
    """

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        images, channels = 1 if batch_wide else logits.shape[0], logits.shape[1]
        zero = torch.zeros((), dtype=logits.dtype)
        sums = {group: [zero, zero, zero] for group in itertools.product(range(images), range(channels))}
        for entry in entries(logits, mask, mode):
            tp, fp, fn = sums[0 if batch_wide else entry.image, entry.channel]
            if entry.present:
                sums[0 if batch_wide else entry.image, entry.channel] = [tp + entry.p, fp, fn + 1 - entry.p]
            else:
                sums[0 if batch_wide else entry.image, entry.channel] = [tp, fp + entry.p, fn]
        counted = range((first or {}).get(mode, 0), channels)
        values = [
            (1.0 if weights is None else weights[channel]) * loss(*sums[image, channel])
            for image, channel in itertools.product(range(images), counted)
        ]
        return sum(values, zero) / len(values)

    return library_loss


def negative_dice(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return -(2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5)


def dice_without_smooth(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return -2 * tp / (2 * tp + fp + fn).clamp(min=1e-8)


def loop_dice_over_all(
    eps: tuple[float, float], power: int, activation: str, weights: list[float] | None = None, first: int = 0
) -> LibraryLoss:
    """The mean over images of Dice, with the sums over all pixels of all channels from the channel `first`."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        zero = torch.zeros((), dtype=logits.dtype)
        sums = [[zero, zero] for _image in logits]
        for entry in entries(logits, mask, mode, activation):
            if entry.channel >= first:
                weight = 1.0 if weights is None else weights[entry.channel]
                tp, size = sums[entry.image]
                tp, size = tp + weight * entry.p * entry.present, size + weight * (entry.p**power + entry.present)
                sums[entry.image] = [tp, size]
        return sum((1 - (2 * tp + eps[0]) / (size + eps[1]) for tp, size in sums), zero) / len(sums)

    return library_loss


def tversky(smooth: float = 1.0, alpha: float = 0.3, beta: float = 0.7) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda tp, fp, fn: 1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def loop_focal(weights: list[float] | None = None, alpha: float = 0.5) -> LibraryLoss:
    """The mean over all pixels and channels, including ignored ones, with one binary problem per class."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        total = torch.zeros((), dtype=logits.dtype)
        for entry in entries(logits, mask, mode, "sigmoid"):
            p, side = (entry.p, alpha) if entry.present else (1 - entry.p, 1 - alpha)
            total = total - (1.0 if weights is None else weights[entry.channel]) * side * (1 - p) ** 2 * p.log()
        return total / logits.numel()

    return library_loss


def lovasz(errors: list[tuple[Tensor, bool]]) -> Tensor:
    """The sum over pixels, in the order of decreasing error, of the error times the increase of the Jaccard loss."""
    foreground = sum(present for _error, present in errors)
    total, loss, missed, added = 0.0, 0.0, 0, 0
    for error, present in sorted(errors, key=lambda pair: float(pair[0]), reverse=True):
        missed, added = missed + present, added + (not present)
        increased = 1 - (foreground - missed) / (foreground + added)
        total, loss = total + error * (increased - loss), increased
    assert isinstance(total, Tensor)
    return total


def loop_lovasz_softmax(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The mean over the classes that are present in the batch."""
    losses = []
    for channel in range(logits.shape[1]):
        of_class = [entry for entry in entries(logits, mask, mode) if entry.channel == channel]
        if any(entry.present for entry in of_class):
            losses.append(lovasz([(1 - entry.p if entry.present else entry.p, entry.present) for entry in of_class]))
    return sum(losses, torch.zeros((), dtype=logits.dtype)) / len(losses)


def loop_lovasz_hinge(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    errors = [
        ((1 - entry.logit if entry.present else 1 + entry.logit).clamp(min=0), entry.present)
        for entry in entries(logits, mask, mode)
    ]
    return lovasz(errors)


# --- the battery ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A preset in a mode with options of segkit, and the equal loss of the library.

    situations: in `absent` no pixel has the second class; in `ignored` a third of the pixels is ignored (only if the
        library supports it and treats them as segkit does); in `ignored pixels` pixels are ignored for all overlapping
        classes at once; `volume` has three spatial axes.
    named: the options by which the case is known. kept: the dtype that the library computes in. tolerance: for values
        and gradients.
    """

    library: str
    loss: str
    mode: str
    library_loss: LibraryLoss
    situations: tuple[str, ...]
    options: dict[str, Any]
    kept: torch.dtype
    tolerance: dict[str, Any]
    named: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join([self.library, self.loss, self.mode, *self.named])


@dataclass(frozen=True)
class Before:
    """What is equal to a library before `version`, as the note of the preset says: other options, or fewer digits."""

    version: str
    options: dict[str, Any]
    tolerance: dict[str, Any] | None = None


SINGLE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}
ROUNDED: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}
FIVE_DIGITS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
LOOPS = ("nnunet", "mmseg")  # libraries that may be absent
PLAIN = ("plain", "absent")
IGNORED = ("absent", "ignored")
VOLUME = ("absent", "volume")
EVERY = ("absent", "ignored", "volume")
CASES: list[Case] = []


def _in_double(code: LibraryLoss) -> LibraryLoss:
    return lambda logits, mask, mode: code(logits, mask, mode).double()


def add(
    library: str,
    loss: str,
    modes: str | tuple[str, ...],
    library_loss: LibraryLoss,
    situations: tuple[str, ...] = PLAIN,
    options: dict[str, Any] | None = None,
    kept: torch.dtype = torch.float64,
    tolerance: dict[str, Any] = EXACT,
    code: LibraryLoss | None = None,
    before: Before | None = None,
) -> None:
    """code: the loss of the library itself, in place of a loop over its definition where the library is installed."""
    each, options = [modes] if isinstance(modes, str) else modes, options or {}
    named = tuple(
        "list of alpha" if isinstance(options.get(name), list) and name == "alpha" else name for name in options
    )
    version = None if code is None and before is None and library not in LOOPS else installed(library)
    if code is not None and version is not None:
        library_loss, tolerance = _in_double(code), ROUNDED  # some of it computes in float32
    elif library in LOOPS and version is not None:
        named = (*named, "loop")
    if before is not None and version is not None and version < Version(before.version):
        options, tolerance, named = before.options, before.tolerance or tolerance, (*named, "as noted")
    CASES.extend(Case(library, loss, mode, library_loss, situations, options, kept, tolerance, named) for mode in each)


WEIGHTED = {"class_weights": WEIGHTS}
OVERLAP = ("binary", "multilabel")  # modes with independent channels

add("torch", "cross_entropy", "multiclass", torch_cross_entropy(), EVERY)
add("torch", "cross_entropy", "multiclass", torch_cross_entropy(weight=WEIGHTS), IGNORED, WEIGHTED)
add(
    "torch",
    "cross_entropy",
    "multiclass",
    torch_soft_cross_entropy,
    options={**WEIGHTED, "normalize": "numel", "label_smoothing": 0.1},
)
add("torch", "cross_entropy", OVERLAP, torch_cross_entropy())
add(
    "torch",
    "cross_entropy",
    "binary",
    torch_cross_entropy(pos_weight=3.0),
    options={"class_weights": [1.0, 3.0], "normalize": "valid"},
)
add("torch", "cross_entropy", OVERLAP, torch_cross_entropy(pos_weight=3.0), options={"positive_weights": 3.0})
add(
    "torch",
    "cross_entropy",
    "multilabel",
    torch_cross_entropy(weight=[[[weight]] for weight in WEIGHTS]),
    options={**WEIGHTED, "normalize": "valid"},
)
add("torch", "focal", MODES, torchvision_focal())
add("torch", "focal", MODES, torchvision_focal(alpha=-1, gamma=1.5), options={"alpha": None, "gamma": 1.5})

# MONAI squares a float32 mask for squared_pred, and computes the weights of generalised Dice in float32
add("monai", "cross_entropy", ("multiclass", "binary"), monai_cross_entropy(), VOLUME)
add("monai", "cross_entropy", "multiclass", monai_cross_entropy(weight=WEIGHTS), VOLUME, WEIGHTED)
add(
    "monai",
    "cross_entropy",
    "binary",
    monai_cross_entropy(weight=3.0),
    options={"class_weights": [1.0, 3.0], "normalize": "valid"},
)
for modes, situations in ((("multiclass", "binary"), EVERY), ("multilabel", VOLUME)):
    # in multilabel mode its ignore_index has another meaning: it excludes pixels without any class
    add("monai", "dice", modes, monai("DiceLoss"), situations)
    add("monai", "jaccard", modes, monai("DiceLoss", jaccard=True), situations)
    add("monai", "tversky", modes, monai("TverskyLoss"), situations)
    add(
        "monai",
        "dice",
        modes,
        monai("DiceLoss", batch=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1.0),
        situations,
        {"per": "batch", "power": 2, "eps": [0.0, 1.0]},
        tolerance=SINGLE,
    )
    add("monai", "tversky", modes, monai("TverskyLoss", alpha=0.2, beta=0.9), situations, {"alpha": 0.2, "beta": 0.9})
for loss, jaccard in (("dice", False), ("jaccard", True)):
    library_loss = monai("DiceLoss", jaccard=jaccard, weight=WEIGHTS)
    add("monai", loss, "multiclass", library_loss, EVERY, WEIGHTED)
    add("monai", loss, "multilabel", library_loss, VOLUME, WEIGHTED)
    library_loss = monai("DiceLoss", jaccard=jaccard, weight=WEIGHTS[1:], include_background=False)
    add("monai", loss, "multiclass", library_loss, EVERY, {**WEIGHTED, "background": False})
SIGMOID = {"activation": "sigmoid"}
add("monai", "dice", "multiclass", monai("DiceLoss", activation=False, sigmoid=True), EVERY, SIGMOID)
add("monai", "jaccard", "multiclass", monai("DiceLoss", activation=False, jaccard=True, sigmoid=True), EVERY, SIGMOID)
add("monai", "tversky", "multiclass", monai("TverskyLoss", activation=False, sigmoid=True), EVERY, SIGMOID)
library_loss = monai("GeneralizedDiceLoss", activation=False, sigmoid=True)
add("monai", "generalized_dice", "multiclass", library_loss, VOLUME, SIGMOID, tolerance=SINGLE)
for modes, situations in ((("multiclass", "multilabel"), VOLUME), ("binary", ("plain", "volume"))):
    # it counts an image without any class, such as a binary one without foreground, differently
    add("monai", "generalized_dice", modes, monai("GeneralizedDiceLoss"), situations, tolerance=SINGLE)
    add(
        "monai",
        "generalized_dice",
        modes,
        monai("GeneralizedDiceLoss", w_type="simple", batch=True, smooth_nr=0.0, smooth_dr=1.0),
        situations,
        {"weight_by": "simple", "per": "batch", "eps": [0.0, 1.0]},
        tolerance=SINGLE,
    )
# its distances are in float32
add("monai", "boundary", MODES, monai("BoundaryLoss"), VOLUME, tolerance=SINGLE)
library_loss = monai("BoundaryLoss", include_background=False)
add("monai", "boundary", "multiclass", library_loss, VOLUME, {"background": False}, tolerance=SINGLE)
add("monai", "hausdorff", "multiclass", monai("HausdorffDTLoss"), VOLUME, tolerance=SINGLE)
library_loss = monai("HausdorffDTLoss", include_background=True)
add("monai", "hausdorff", ("binary", "multilabel"), library_loss, VOLUME, tolerance=SINGLE)
add("monai", "hausdorff", "multiclass", library_loss, VOLUME, {"background": True}, tolerance=SINGLE)
library_loss = monai("LogHausdorffDTLoss")
add("monai", "hausdorff", "multiclass", library_loss, VOLUME, {"log": True}, tolerance=SINGLE)
# its focal loss computes in float32, for which the default tolerances suffice
FLOAT32: dict[str, Any] = {"kept": torch.float32, "tolerance": {}}
for modes, situations in (("multilabel", VOLUME), (("multiclass", "binary"), EVERY)):
    add("monai", "focal", modes, monai("FocalLoss", activation=False), situations, **FLOAT32)
    library_loss = monai("FocalLoss", activation=False, alpha=0.25, gamma=1.5)
    add("monai", "focal", modes, library_loss, situations, {"alpha": 0.25, "gamma": 1.5}, **FLOAT32)
library_loss = monai("FocalLoss", activation=False, weight=WEIGHTS)
add("monai", "focal", ("multiclass", "multilabel"), library_loss, VOLUME, WEIGHTED, **FLOAT32)
library_loss = monai("FocalLoss", activation=False, use_softmax=True, weight=WEIGHTS, alpha=0.25)
add(
    "monai", "focal", "multiclass", library_loss, EVERY, {"activation": "softmax", **WEIGHTED, "alpha": 0.25}, **FLOAT32
)
library_loss = monai("FocalLoss", activation=False, use_softmax=True, alpha=[0.25, 0.5, 0.75])
add(
    "monai",
    "focal",
    "multiclass",
    library_loss,
    VOLUME,
    {"activation": "softmax", "alpha": [0.25, 0.5, 0.75]},
    **FLOAT32,
)

add("smp", "cross_entropy", MODES, smp_cross_entropy, EVERY)
add("smp", "cross_entropy", "multiclass", smp_smoothed, IGNORED, {"label_smoothing": 0.2})
add("smp", "cross_entropy", "multilabel", smp_smoothed, IGNORED, {"label_smoothing": 0.2})
add("smp", "cross_entropy", "binary", smp_smoothed, IGNORED, {"label_smoothing": 0.2, "positive_weights": 3.0})
add("smp", "dice", MODES, smp("DiceLoss"), EVERY)
add("smp", "jaccard", MODES, smp("JaccardLoss"), EVERY)
add("smp", "tversky", MODES, smp("TverskyLoss"), EVERY)
add("smp", "dice", MODES, smp("DiceLoss", smooth=1.0), IGNORED, {"eps": 2.0}, before=Before("0.4", {"eps": 1.0}))
add("smp", "jaccard", MODES, smp("JaccardLoss", smooth=1.0), PLAIN, {"eps": 1.0})
add("smp", "tversky", MODES, smp("TverskyLoss", smooth=1.0), IGNORED, {"eps": 1.0})
several = ("multiclass", "multilabel")
add("smp", "dice", several, smp("DiceLoss", smooth=1.0, class_weights=WEIGHTS), IGNORED, {"eps": 2.0, **WEIGHTED})
add("smp", "jaccard", several, smp("JaccardLoss", smooth=1.0, class_weights=WEIGHTS), IGNORED, {"eps": 1.0, **WEIGHTED})
library_loss = smp("TverskyLoss", smooth=1.0, alpha=0.2, beta=0.9, class_weights=WEIGHTS)
add("smp", "tversky", several, library_loss, IGNORED, {"eps": 1.0, "alpha": 0.2, "beta": 0.9, **WEIGHTED})
add("smp", "focal_tversky", several, smp("TverskyLoss", gamma=0.75), EVERY)
add("smp", "focal_tversky", "binary", smp("TverskyLoss", gamma=0.75), ("ignored", "volume"))
library_loss = smp("TverskyLoss", gamma=1.5, alpha=0.2, beta=0.9, class_weights=WEIGHTS)
add("smp", "focal_tversky", several, library_loss, IGNORED, {"gamma": 1.5, "alpha": 0.2, "beta": 0.9, **WEIGHTED})
ALPHA = {"alpha": 0.25, "gamma": 1.5}
for options in ({}, ALPHA):
    library_loss, summed = smp("FocalLoss", **options), Before("0.6", {**options, "weight": 3.0})
    add("smp", "focal", "multiclass", library_loss, EVERY, options, before=summed)
    add("smp", "focal", "binary", library_loss, EVERY, options)
    add("smp", "focal", "multilabel", library_loss, VOLUME, options)  # it fails in other situations
add("smp", "focal", "multiclass", smp("FocalLoss", class_weights=WEIGHTS), IGNORED, WEIGHTED)
add("smp", "focal", "multilabel", smp("FocalLoss", class_weights=WEIGHTS), PLAIN, WEIGHTED)
# smp's Lovász losses subtract successive float32 values, which costs few digits at 40 pixels; this tolerance still
# distinguishes `mode: exact` from `histogram`
CURVE: dict[str, Any] = {"kept": torch.float32, "tolerance": {"rtol": 1e-6, "atol": 1e-7}}
for options in ({}, {"per": "image"}):
    library_loss = smp("LovaszLoss", per_image=bool(options))
    add("smp", "lovasz_softmax", "multiclass", library_loss, EVERY, options, **CURVE)
    add("smp", "lovasz_hinge", "binary", library_loss, EVERY, options, **CURVE)

add("smp", "mcc", "binary", smp_mcc, VOLUME)

before = Before("0.9", {"empty": "keep"}, FIVE_DIGITS)
add("kornia", "dice", "multiclass", kornia("dice_loss", average="macro"), IGNORED, before=before)
library_loss, options = kornia("dice_loss", average="macro", weight=WEIGHTS, eps=1.0), {**WEIGHTED, "eps": [0.0, 1.0]}
before = Before("0.9", {**options, "empty": "keep"}, FIVE_DIGITS)
add("kornia", "dice", "multiclass", library_loss, IGNORED, options, before=before)
library_loss, options = kornia("dice_loss", average="micro"), {"average": "micro"}
add("kornia", "dice", "multiclass", library_loss, IGNORED, options, before=Before("0.9", options, FIVE_DIGITS))
library_loss = kornia("dice_loss", average="micro", weight=WEIGHTS, eps=1.0)
add("kornia", "dice", "multiclass", library_loss, IGNORED, {"average": "micro", **WEIGHTED, "eps": [0.0, 1.0]})
before = Before("0.9", {"average": "micro"}, FIVE_DIGITS)
library_loss = kornia("tversky_loss", alpha=0.5, beta=0.5)
add("kornia", "tversky", "multiclass", library_loss, IGNORED, before=before)
options = {"alpha": 0.2, "beta": 0.9, "eps": [0.0, 1.0]}
library_loss = kornia("tversky_loss", alpha=0.2, beta=0.9, eps=1.0)
before = Before("0.9", {**options, "average": "micro"}, FIVE_DIGITS)
add("kornia", "tversky", "multiclass", library_loss, IGNORED, options, before=before)
for options in ({}, ALPHA):
    library_loss = kornia_focal(**{"alpha": None, **options})
    add("kornia", "focal", OVERLAP, library_loss, EVERY, options)
    add("kornia", "focal", "multiclass", library_loss, EVERY, options, before=Before("0.9", options, FIVE_DIGITS))
add("kornia", "focal", "multilabel", kornia_focal(alpha=None, weight=WEIGHTS), EVERY, WEIGHTED)
library_loss = kornia_focal(alpha=None, weight=WEIGHTS)
add("kornia", "focal", "multiclass", library_loss, EVERY, WEIGHTED, before=Before("0.9", WEIGHTED, FIVE_DIGITS))
add("kornia", "lovasz_softmax", "multiclass", kornia("lovasz_softmax_loss", ignores=False))
add("kornia", "lovasz_hinge", "binary", kornia_hinge)

code = nnunet_cross_entropy()
add("nnunet", "cross_entropy", "multiclass", loop_cross_entropy(), EVERY, code=code)
add("nnunet", "cross_entropy", OVERLAP, loop_cross_entropy(), VOLUME, code=code)
add("nnunet", "cross_entropy", OVERLAP, loop_cross_entropy(divide_by="pixels"), ("ignored pixels",), code=code)
code = nnunet_cross_entropy(WEIGHTS)
add("nnunet", "cross_entropy", "multiclass", loop_cross_entropy(WEIGHTS), EVERY, WEIGHTED, code=code)
add("nnunet", "topk_cross_entropy", "multiclass", loop_topk(0.1), VOLUME, code=nnunet_topk(0.1))
add("nnunet", "topk_cross_entropy", "multiclass", loop_topk(0.19), VOLUME, {"share": 0.19}, code=nnunet_topk(0.19))
FOREGROUND = {"multiclass": 1}
add("nnunet", "dice", MODES, loop_region(negative_dice, first=FOREGROUND), EVERY, code=nnunet_dice())
library_loss = loop_region(negative_dice, first=FOREGROUND, batch_wide=True)
add("nnunet", "dice", MODES, library_loss, EVERY, {"per": "batch"}, code=nnunet_dice(batch_wide=True))
# segkit adds 1e-8 to the denominator, where nnU-Net has at least 1e-8
library_loss, options = loop_region(dice_without_smooth, first=FOREGROUND), {"eps": [0.0, 1e-8]}
add("nnunet", "dice", MODES, library_loss, EVERY, options, tolerance=SINGLE, code=nnunet_dice(smooth=0.0))
code = mmseg_cross_entropy()
add("mmseg", "cross_entropy", MODES, loop_cross_entropy(divide_by="numel"), EVERY, code=code)
code = mmseg_cross_entropy(avg_non_ignore=True)
add("mmseg", "cross_entropy", MODES, loop_cross_entropy(divide_by="valid"), EVERY, {"normalize": "valid"}, code=code)
options, code = {**WEIGHTED, "normalize": "weights"}, mmseg_cross_entropy(WEIGHTS)
before = Before("1.2", {**WEIGHTED, "normalize": "numel", "like": None})
add("mmseg", "cross_entropy", "multiclass", loop_cross_entropy(WEIGHTS), PLAIN, options, code=code, before=before)
library_loss, code = loop_cross_entropy([1.0, 3.0], divide_by="numel"), mmseg_cross_entropy([3.0])
add("mmseg", "cross_entropy", "binary", library_loss, IGNORED, {"class_weights": [1.0, 3.0]}, code=code)
library_loss = loop_dice_over_all((0.0, 0.002), 2, "sigmoid")
by_class = Before("1.1", {"average": "macro", "activation": "softmax", "power": 2, "eps": 1.0})
add("mmseg", "dice", "multiclass", library_loss, PLAIN, code=mmseg_dice(), before=by_class)
add("mmseg", "dice", OVERLAP, library_loss, PLAIN, code=mmseg_dice())
library_loss, options = loop_dice_over_all((0.001, 0.001), 1, "sigmoid"), {"power": 1, "eps": 0.001}
add("mmseg", "dice", MODES, library_loss, PLAIN, options, code=mmseg_dice(naive_dice=True))
library_loss, options = loop_dice_over_all((0.0, 0.002), 2, "softmax"), {"activation": "softmax"}
add("mmseg", "dice", "multiclass", library_loss, PLAIN, options, code=mmseg_dice(use_sigmoid=False))
library_loss, options = loop_dice_over_all((0.0, 0.5), 2, "sigmoid", first=1), {"background": False, "eps": [0.0, 0.5]}
add("mmseg", "dice", "multiclass", library_loss, PLAIN, options, code=mmseg_dice(ignore_index=0, eps=0.25))
add("mmseg", "tversky", "multiclass", loop_region(tversky()), IGNORED, code=mmseg_tversky())
library_loss = loop_region(tversky(0.5, 0.4, 0.6), weights=WEIGHTS)
options, code = {"alpha": 0.4, "beta": 0.6}, mmseg_tversky(smooth=0.5, alpha=0.4, beta=0.6, class_weight=WEIGHTS)
add("mmseg", "tversky", "multiclass", library_loss, IGNORED, {"eps": 0.5, **options, **WEIGHTED}, code=code)
for situations, codes in (  # its code for a CPU ignores no pixels
    (PLAIN, (mmseg_focal(), mmseg_focal(class_weight=WEIGHTS, alpha=0.25))),
    (("ignored",), (None, None)),
):
    add("mmseg", "focal", ("multiclass", "binary"), loop_focal(), situations, code=codes[0])
    options = {**WEIGHTED, "alpha": 0.25}
    add("mmseg", "focal", "multiclass", loop_focal(WEIGHTS, 0.25), situations, options, code=codes[1])
add("mmseg", "lovasz_softmax", "multiclass", loop_lovasz_softmax, IGNORED, code=mmseg_lovasz)
add("mmseg", "lovasz_hinge", "binary", loop_lovasz_hinge, IGNORED, code=mmseg_lovasz)

EACH = [pytest.param(case, situation, id=f"{case}-{situation}") for case in CASES for situation in case.situations]


@pytest.mark.parametrize(("case", "situation"), EACH)
def test_value_and_gradient_equal_the_library(case: Case, situation: str):
    logits, mask = batch(case.mode, situation)
    logits = logits.to(case.kept)
    loss = segkit_loss({"name": case.loss, "like": case.library, **case.options}, case.mode, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = value_and_gradient(lambda logits: case.library_loss(logits, mask, case.mode), logits)
    assert_close(value_and_gradient(loss, logits), expected, **case.tolerance)


def test_every_preset_is_in_the_battery():
    presets = [
        (library, loss, mode)
        for library, loss, mode in itertools.product(PRESETS, LOSSES, MODES)
        if isinstance(entry := PRESETS[library].get(loss), Preset) and mode not in entry.not_for
        if (loss, mode) != ("lovasz_hinge", "multiclass")
    ]
    assert {(case.library, case.loss, case.mode) for case in CASES} == set(presets)
    assert tuple(PRESETS) == LIBRARIES
    assert all(loss in LOSSES for table in PRESETS.values() for loss in table)


def test_every_form_is_in_the_battery():
    forms = [
        (library, loss, sorted(options.items(), key=str))
        for library, table in PRESETS.items()
        for loss, entry in table.items()
        for options in (entry.forms.values() if isinstance(entry, Preset) else ())
    ]
    assert len(forms) >= 8
    cases = [(case.library, case.loss, sorted(case.options.items(), key=str)) for case in CASES]
    assert all(form in cases for form in forms)


def test_the_versions_of_every_preset_are_known():
    presets = {
        library: [loss for loss, entry in table.items() if isinstance(entry, Preset)]
        for library, table in PRESETS.items()
    }
    assert {library: list(table) for library, table in SINCE.items()} == presets


# --- frozen numbers -------------------------------------------------------------------------------------------


def fixed_batch(library: str, loss: str, mode: str) -> tuple[Tensor, Tensor]:
    """Logits and a mask of two images of 4 x 5 pixels from a formula, with ignored pixels where the cases have them."""
    channels = labels_of(mode).channels
    b, k, i = torch.meshgrid(torch.arange(2), torch.arange(channels), torch.arange(20), indexing="ij")
    logits = ((7 * i + 5 * k + 3 * b + i * k) % 13 - 6).double() / 4
    mask = ((i * i + b + i // 3) % 3)[:, :1] if mode == "multiclass" else (i * i // 3 + k + b) % 2
    same = [case for case in CASES if (case.library, case.loss, case.mode) == (library, loss, mode)]
    if any("ignored" in case.situations for case in same):
        mask = torch.where((i + b)[:, : mask.shape[1]] % 7 == 5, IGNORE_INDEX, mask)
    shape = (2, channels, 4, 5)
    return logits.view(shape), mask.to(torch.uint8).view(shape if mode == "multilabel" else (2, 4, 5))


# the value of the loop above over `fixed_batch`
FROZEN: dict[tuple[str, str, str], float] = {
    ("nnunet", "cross_entropy", "multiclass"): 1.3577312003149598,
    ("nnunet", "cross_entropy", "binary"): 0.8171815322478982,
    ("nnunet", "cross_entropy", "multilabel"): 0.8296969642116815,
    ("nnunet", "topk_cross_entropy", "multiclass"): 2.8154524810330495,
    ("nnunet", "dice", "multiclass"): -0.3272249804386461,
    ("nnunet", "dice", "binary"): -0.4943276987847286,
    ("nnunet", "dice", "multilabel"): -0.48629918774712505,
    ("mmseg", "cross_entropy", "multiclass"): 1.1540715202677156,
    ("mmseg", "cross_entropy", "binary"): 0.7094939427936591,
    ("mmseg", "cross_entropy", "multilabel"): 0.7059362954397358,
    ("mmseg", "dice", "multiclass"): 0.4627077472851607,
    ("mmseg", "dice", "binary"): 0.38893997121896606,
    ("mmseg", "dice", "multilabel"): 0.3916190146971028,
    ("mmseg", "tversky", "multiclass"): 0.5631838682269932,
    ("mmseg", "focal", "multiclass"): 0.1361161816379125,
    ("mmseg", "focal", "binary"): 0.1534939282639558,
    ("mmseg", "lovasz_softmax", "multiclass"): 0.7015333419628154,
    ("mmseg", "lovasz_hinge", "binary"): 1.4473839855343837,
}


@pytest.mark.parametrize("entry", FROZEN, ids="-".join)
def test_frozen_values(entry: tuple[str, str, str]):
    library, loss, mode = entry
    logits, mask = fixed_batch(*entry)
    value = segkit_loss({"name": loss, "like": library}, mode, mask)(logits)
    assert_close(value.item(), FROZEN[entry], **EXACT)


def test_every_preset_of_a_library_that_is_not_installed_has_a_frozen_value():
    covered = {(case.library, case.loss, case.mode) for case in CASES if case.library in ("nnunet", "mmseg")}
    assert set(FROZEN) == covered


# --- refusals, and options that override a preset ---------------------------------------------------------------

REFUSED = [
    (library, loss)
    for library, loss in itertools.product(LIBRARIES, LOSSES)
    if not isinstance(PRESETS[library].get(loss), Preset)
]
WITHOUT = [
    (library, loss, mode)
    for library, table in PRESETS.items()
    for loss, entry in table.items()
    for mode in (entry.not_for if isinstance(entry, Preset) else ())
]


@pytest.mark.parametrize(("library", "loss"), REFUSED)
def test_missing_or_incorrect_losses_are_refused_with_the_reason(library: str, loss: str):
    entry = PRESETS[library].get(loss, Refusal("it has no such loss"))
    assert isinstance(entry, Refusal)
    mode = "binary" if loss == "lovasz_hinge" else "multiclass"
    with pytest.raises(ValueError, match=f"like: {library} is not possible for {loss}: {re.escape(entry.reason)}"):
        build_loss({"name": loss, "like": library}, labels_of(mode))


@pytest.mark.parametrize(("library", "loss", "mode"), WITHOUT)
def test_missing_or_incorrect_modes_are_refused_with_the_reason(library: str, loss: str, mode: str):
    entry = PRESETS[library][loss]
    assert isinstance(entry, Preset)
    with pytest.raises(ValueError, match=f"mode {mode}.*{re.escape(entry.not_for[mode].reason)}"):
        build_loss({"name": loss, "like": library}, labels_of(mode))


@pytest.mark.parametrize(
    ("options", "mode", "reason"),
    [
        ({"name": "cross_entropy", "like": "torch", "class_weights": [1, 3]}, "binary", "normalize: valid"),
        ({"name": "cross_entropy", "like": "monai", "class_weights": [1, 3]}, "binary", "normalize: valid"),
        ({"name": "cross_entropy", "like": "nnunet", **WEIGHTED}, "multilabel", "normalize: valid"),
        ({"name": "cross_entropy", "like": "mmseg", **WEIGHTED}, "multiclass", "normalize: weights"),
        ({"name": "cross_entropy", "like": "mmseg", **WEIGHTED}, "multilabel", "width of the image"),
        ({"name": "focal", "like": "monai", "alpha": [0.25, 0.5, 0.75]}, "multilabel", "list of alpha"),
        ({"name": "dice", "like": "monai"}, "multilabel", "ignore_index"),
        *(
            ({"name": loss, "like": library, **WEIGHTED}, "multiclass", "class_weights")
            for library, loss in (
                ("monai", "tversky"),
                ("kornia", "tversky"),
                ("torch", "focal"),
                ("nnunet", "dice"),
                ("mmseg", "dice"),
                ("smp", "cross_entropy"),
            )
        ),
        ({"name": "tversky", "like": "monai"}, "multilabel", "ignore_index"),
        ({"name": "focal", "like": "monai"}, "multilabel", "ignore_index"),
        ({"name": "topk_cross_entropy", "like": "nnunet"}, "multiclass", "share is of all pixels"),
        *(({"name": "dice", "like": "mmseg"}, mode, "predicted at ignored pixels") for mode in MODES),
        # errors that the loss itself raises
        ({"name": "dice", "like": "monai", "class_weights": []}, "multiclass", "expected 3 class_weights"),
        ({"name": "dice", "like": "monai", "class_weights": ["a", 1, 1]}, "multiclass", "expected class_weights"),
        ({"name": "dice", "like": "monai", "class_weights": [1, 2]}, "binary", "only 'a' has a channel"),
    ],
)
def test_impossible_options_are_refused_with_a_remedy(options: dict[str, Any], mode: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        build_loss(options, labels_of(mode), class_counts=[[10, 20, 30]])


@pytest.mark.parametrize("library", ["tensorflow", ["monai"], 1])
def test_unknown_libraries_are_refused_with_the_known_ones(library: Any):
    with pytest.raises(ValueError, match="torch, monai, smp, kornia, nnunet, mmseg"):
        build_loss({"name": "dice", "like": library}, labels_of("multiclass"))


@pytest.mark.parametrize(
    ("like", "written"),
    [
        ("monai", {"name": "dice", "per": "batch", "eps": 1.0, "empty": "present"}),
        ("torch", {"name": "focal", "activation": "softmax", "alpha": None, "gamma": 1.0, "normalize": "weights"}),
        (
            "smp",
            {
                "name": "focal_tversky",
                "alpha": 0.3,
                "beta": 0.7,
                "gamma": 2.0,
                "of": "classes",
                "empty": "keep",
                "eps": 1.0,
            },
        ),
        ("smp", {"name": "lovasz_softmax", "per": "image", "classes": "all", "mode": "exact"}),
        ("mmseg", {"name": "cross_entropy", "normalize": "valid"}),
    ],
)
def test_explicit_options_override_the_preset(like: str, written: dict[str, Any]):
    logits, mask = batch("multiclass", "ignored")
    alone = segkit_loss(written, "multiclass", mask)
    beside = segkit_loss({**written, "like": like}, "multiclass", mask)
    assert_close(value_and_gradient(beside, logits), value_and_gradient(alone, logits), rtol=0, atol=0)


def test_each_term_has_its_own_library():
    terms = [
        {"name": "dice", "like": "nnunet", "weight": 2},
        {"name": "dice", "like": "smp"},
        {"name": "cross_entropy"},
    ]
    logits, mask = batch("multiclass", "ignored")
    values = build_loss(terms, labels_of("multiclass")).terms(logits, mask)
    alone = [build_loss({**term, "weight": 1}, labels_of("multiclass"))(logits, mask) for term in terms]
    assert_close(torch.stack(list(values.values())), torch.stack(alone), **EXACT)
    total = build_loss(terms, labels_of("multiclass"))(logits, mask)
    assert_close(total, 2 * alone[0] + alone[1] + alone[2], **EXACT)


# --- the notes of the table ----------------------------------------------------------------------------


def both(
    library: str, loss: str, library_loss: LibraryLoss, logits: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    mode = "multiclass" if logits.shape[1] > 1 else "binary"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = library_loss(logits, mask, mode)
    return segkit_loss({"name": loss, "like": library, **options}, mode, mask)(logits), expected


@pytest.mark.parametrize(
    ("library", "loss", "library_loss", "counts_as"),
    [
        ("monai", "dice", monai("DiceLoss"), 0.0),
        ("monai", "jaccard", monai("DiceLoss", jaccard=True), 0.0),
        ("monai", "tversky", monai("TverskyLoss"), 0.0),
        ("kornia", "dice", kornia("dice_loss", average="macro"), 1.0),
        ("kornia", "tversky", kornia("tversky_loss", alpha=0.5, beta=0.5), 1.0),
        ("nnunet", "dice", loop_region(negative_dice, first=FOREGROUND), -1.0),
        ("mmseg", "tversky", loop_region(tversky()), 0.0),
    ],
)
def test_an_entirely_ignored_image_counts_in_the_library_as_noted(library, loss, library_loss, counts_as):
    logits, mask = batch("multiclass")
    mask[1] = IGNORE_INDEX
    value, expected = both(library, loss, library_loss, logits, mask)
    assert_close((value + counts_as) / 2, expected, **EXACT)


def test_monai_counts_an_image_without_any_class_in_generalized_dice():
    logits, mask = batch("binary")
    mask[1] = 0
    value, expected = both("monai", "generalized_dice", monai("GeneralizedDiceLoss"), logits, mask)
    assert_close(value / 2, expected, **SINGLE)


@pytest.mark.parametrize(
    ("loss", "name", "options"),
    [
        ("dice", "DiceLoss", {}),
        ("jaccard", "DiceLoss", {"jaccard": True}),
        ("tversky", "TverskyLoss", {}),
        ("generalized_dice", "GeneralizedDiceLoss", {}),
    ],
)
def test_monai_with_soft_targets(loss: str, name: str, options: dict[str, Any]):
    logits, mask = batch("multiclass")
    shares = 0.7 * presence(mask, "multiclass", 3) + 0.1
    cls = getattr(pytest.importorskip("monai.losses"), name)
    expected = value_and_gradient(lambda logits: cls(softmax=True, soft_label=True, **options)(logits, shares), logits)
    loss_of = segkit_loss({"name": loss, "like": "monai"}, "multiclass", shares)
    assert_close(value_and_gradient(loss_of, logits), expected, **SINGLE)


def test_smp_focal_tversky_has_no_gradient_where_the_loss_is_0():
    mask = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    logits = 1000 * presence(mask, "multiclass", 3)
    _value, library_loss = value_and_gradient(lambda z: smp("TverskyLoss", gamma=0.75)(z, mask, "multiclass"), logits)
    value, gradient = value_and_gradient(
        segkit_loss({"name": "focal_tversky", "like": "smp"}, "multiclass", mask), logits
    )
    assert library_loss.isnan().any()
    assert value == 0
    assert gradient.isfinite().all()


def test_all_ignored_is_nan_in_torch_and_smp_focal_but_0_in_segkit():
    logits, mask = batch("multiclass")
    mask = torch.full_like(mask, IGNORE_INDEX)
    for library, loss, library_loss in (
        ("torch", "cross_entropy", torch_cross_entropy()),
        ("smp", "focal", smp("FocalLoss")),
    ):
        value, expected = both(library, loss, library_loss, logits, mask)
        assert value == 0
        assert expected.isnan()


def test_micro_dice_is_the_mean_of_1_minus_the_probability_of_the_true_class():
    logits, mask = batch("multiclass")
    value = segkit_loss({"name": "dice", "average": "micro", "eps": 0.0}, "multiclass", mask)(logits)
    assert_close(value, (1 - logits.softmax(1).gather(1, mask.long().unsqueeze(1))).mean(), **EXACT)


@pytest.mark.parametrize("power", [1, 2])
def test_micro_dice_is_generalized_dice_with_uniform_weights(power: int):
    logits, mask = batch("multilabel", "ignored")
    options = {"per": "image", "power": power, "eps": [0.5, 1.0]}
    uniform = segkit_loss(
        {"name": "generalized_dice", "weight_by": "uniform", "absent": "max", **options}, "multilabel", mask
    )
    micro = segkit_loss({"name": "dice", "average": "micro", **options}, "multilabel", mask)
    assert_close(value_and_gradient(micro, logits), value_and_gradient(uniform, logits), **EXACT)


@pytest.mark.parametrize("loss", ["dice", "jaccard", "tversky", "focal_tversky", "generalized_dice"])
@pytest.mark.parametrize("mode", OVERLAP)
def test_a_softmax_over_independent_channels_is_refused(loss: str, mode: str):
    with pytest.raises(ValueError, match=f"loss {loss}, mode {mode}: activation softmax"):
        build_loss({"name": loss, "activation": "softmax"}, labels_of(mode))


@pytest.mark.parametrize(("library", "loss"), [("monai", "dice"), ("mmseg", "tversky")])
def test_the_factor_of_a_library_follows_from_the_numbers_of_named_class_weights(library: str, loss: str):
    logits, mask = batch("multiclass")
    labels, class_counts = labels_of("multiclass", ignoring=False), [[10, 20, 30]]
    options: dict[str, Any] = {"name": loss, "like": library}
    named = build_loss({**options, "class_weights": "inverse"}, labels, class_counts)
    numbers = [60 / (3 * pixels) for pixels in class_counts[0]]
    assert_close(named(logits, mask), build_loss({**options, "class_weights": numbers}, labels)(logits, mask), **EXACT)
    with pytest.raises(ValueError, match="as a list"):
        build_loss({**options, "class_weights": "inverse"}, labels)
