"""A proposal for a data set: what its numbers are, and a commented configuration with the arithmetic behind each value.

Nothing here changes a training: the proposal is a file that its reader may change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.data.cases import Source, spread
from segkit.data.class_counts import count_classes
from segkit.labels import Labels
from segkit.losses.class_weights import class_weights
from segkit.models.unet import UNet
from segkit.utils.errors import DataError
from segkit.utils.padding import padded

READ = 50  # cases for the fingerprint
PERCENTILES = (0.5, 50.0, 99.5)
LARGEST_PATCH = {2: 512, 3: 128}  # a side, at the first try
SMALLEST_BOTTOM = 4  # pixels a side at the lowest resolution, as in nnU-Net (Isensee et al. 2021)
THICK = 2  # times the finest spacing, from which on an axis is not halved
FLAT = 3  # times the finest spacing, from which on volumes are turned in the plane alone (Isensee et al. 2021)
MOST_LEVELS = {2: 6, 3: 5}
FIRST_WIDTH, LARGEST_WIDTH = {2: 16, 3: 16}, {2: 256, 3: 256}
BATCHES = {2: (16, 8, 4, 2), 3: (4, 2)}
# what a step takes at its peak over what it keeps, by axes: gradients on their way, copies that convolutions and norms
# make; the most that was measured on a CPU (docs/log.md)
PEAK = {2: 1.4, 3: 2.5}
SEEN_AT_ONCE = 0.05  # of all pixels of the data, at most, in a batch
RARE = 0.05  # share of foreground below which patches are drawn towards it
UNEQUAL = 10  # times the smallest share, from which on weights are worth a try
TIMES_SEEN = 250  # each training pixel, about, by the proposed number of steps


@dataclass(frozen=True)
class Fingerprint:
    """What planning looks at, by some of the cases.

    sides: of the images, smallest, median and largest, [D] each. spacing: the same. refused: cases that could not be
    read. percentiles: of the intensity, mean over cases. shares: of the counted pixels, of each class.
    class_counts: the
    pixels of each case and class.
    """

    cases: int
    read: int
    refused: int
    groups: int
    channels: int
    smallest: tuple[int, ...]
    median: tuple[int, ...]
    largest: tuple[int, ...]
    finest: tuple[float, ...]
    spacing: tuple[float, ...]
    coarsest: tuple[float, ...]
    percentiles: tuple[float, ...]
    shares: tuple[float, ...]
    class_counts: tuple[tuple[int, ...], ...] = ()

    @property
    def dims(self) -> int:
        return len(self.median)


def take_fingerprint(source: Source, labels: Labels) -> Fingerprint:
    """Read up to READ cases from all over the data set. Raises DataError if none of them can be read."""
    chosen = spread(source.cases, READ)
    sides, spacings, intensities = [], [], []
    class_counts, channels = [], 0
    refused: list[DataError] = []
    for case in chosen:
        try:
            raw = source.read(case)
        except DataError as error:
            refused.append(error)
            continue
        sides.append(raw.image.shape[1:])
        spacings.append(raw.spacing)
        intensities.append(np.percentile(raw.image, PERCENTILES))
        assert raw.mask is not None
        class_counts.append(count_classes(raw.mask, labels))
        channels = len(raw.image)
    if not sides:
        raise refused[0]
    counts = np.sum(class_counts, axis=0)
    counted = sum(math.prod(one) for one in sides) if labels.has_mask_channels else counts.sum()
    every_side, every_spacing = np.array(sides), np.array(spacings)

    def whole(values: np.ndarray) -> tuple[int, ...]:
        return tuple(int(value) for value in values)

    def real(values: np.ndarray) -> tuple[float, ...]:
        return tuple(float(f"{value:.4g}") for value in values)

    return Fingerprint(
        len(source.cases),
        len(sides),
        len(refused),
        len({case.group for case in source.cases}),
        channels,
        whole(every_side.min(0)),
        whole(np.median(every_side, axis=0)),
        whole(every_side.max(0)),
        real(every_spacing.min(0)),
        real(np.median(every_spacing, axis=0)),
        real(every_spacing.max(0)),
        real(np.mean(intensities, axis=0)),
        tuple((counts / max(counted, 1)).tolist()),
        tuple(tuple(case.tolist()) for case in class_counts),
    )


@dataclass(frozen=True)
class Proposal:
    """sections: of a configuration, as plain data. reasons: for a section or a `section.key`, the lines of comment."""

    sections: dict[str, Any]
    reasons: dict[str, list[str]]


def propose(found: Fingerprint, labels: Labels, memory: float) -> Proposal:
    """Patch, spacing, normalisation, batch, depth, loss and length for a data set. memory: bytes for training."""
    sections: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    sides = _preprocess(found, sections, reasons)
    _network(found, labels, sides, memory, sections, reasons)
    _sampling(found, labels, sections, reasons)
    _loss(found, labels, sections, reasons)
    _training(found, sides, sections, reasons)
    return Proposal(sections, reasons)


def _preprocess(found: Fingerprint, sections: dict[str, Any], reasons: dict[str, list[str]]) -> tuple[float, ...]:
    """Returns the median sides once resampled."""
    low, middle, high = found.percentiles
    shown = f"percentiles 0.5, 50 and 99.5 of the intensity: {low:g}, {middle:g}, {high:g}, mean over cases"
    preprocess: dict[str, Any] = {"intensity": "zscore"}
    reasons["preprocess.intensity"] = [shown, "each image to mean 0 and deviation 1"]
    if found.dims == 2 and found.channels == 3:
        preprocess["intensity"] = "dataset"
        reasons["preprocess.intensity"] = [shown, "colour pictures of one kind: mean and deviation of the training set"]
    elif low < -500:
        preprocess["intensity"] = "percentile"
        reasons["preprocess.intensity"] = [shown, "as of computed tomography: the 0.5 and 99.5 percentiles to 0 and 1"]
    sides = tuple(float(side) for side in found.median)
    ratio = max(high / low for high, low in zip(found.coarsest, found.finest, strict=True))
    if found.dims == 3 and ratio > 1.05:
        preprocess["spacing"] = "median"
        reasons["preprocess.spacing"] = [
            f"spacings differ by up to {ratio:.2g} times, {found.finest} to {found.coarsest} mm: all to {found.spacing}"
        ]
    sections["preprocess"] = preprocess
    return sides


def _network(
    found: Fingerprint,
    labels: Labels,
    sides: tuple[float, ...],
    memory: float,
    sections: dict[str, Any],
    reasons: dict[str, list[str]],
) -> None:
    """The largest patch first, then the largest batch, that fits into the memory."""
    dims = found.dims
    patch = [min(side, float(LARGEST_PATCH[dims])) for side in sides]
    while True:
        strides = _strides(patch, found.spacing)
        multiple = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
        whole = list(padded([math.ceil(side) for side in patch], multiple))
        model = _model(strides)
        fitting = [
            (batch, needed)
            for batch in BATCHES[dims]
            if (needed := PEAK[dims] * training_bytes(model, found.channels, labels.channels, batch, whole)) <= memory
            and batch <= max(2, SEEN_AT_ONCE * found.cases)
        ]
        larger = [axis for axis in range(dims) if whole[axis] > multiple[axis]]
        if fitting or not larger or all(side <= 2 * number for side, number in zip(whole, multiple, strict=True)):
            break
        widest = max(larger, key=lambda axis: whole[axis] / sides[axis])
        patch[widest] = max(multiple[widest], patch[widest] - multiple[widest])
    smallest = PEAK[dims] * training_bytes(model, found.channels, labels.channels, 2, whole)
    batch, needed = fitting[0] if fitting else (2, smallest)
    bottom = [side // number for side, number in zip(whole, multiple, strict=True)]
    median = " x ".join(f"{side:g}" for side in sides)
    sections["sampling"] = {"patch": whole}
    sections["loader"] = {"batch": batch}
    sections["model"] = {"name": "unet", **model}
    reasons["sampling.patch"] = [
        f"images: median {median}, from {_times(found.smallest)} to {_times(found.largest)}",
        f"at most {LARGEST_PATCH[dims]} a side, made smaller until a training step fits into {memory / 1e9:.3g} GB, "
        f"and a multiple of {multiple[0] if len(set(multiple)) == 1 else _times(multiple)}",
    ]
    reasons["loader.batch"] = [
        f"a step keeps {needed / PEAK[dims] / 1e9:.3g} GB: what the backward pass needs, weights, gradients, moments; "
        f"with the copies that layers make, up to {PEAK[dims]:g} times that: {needed / 1e9:.3g} GB",
        f"the largest of {', '.join(map(str, sorted(BATCHES[dims])))} that fits, and is at most {SEEN_AT_ONCE:.0%} of "
        f"the {found.cases} cases, or two",
    ]
    reasons["model.widths"] = [
        f"{len(strides)} times halved: {_times(whole)} -> {_times(bottom)}, at least {SMALLEST_BOTTOM} a side",
        f"doubled from {FIRST_WIDTH[dims]} at each, up to {LARGEST_WIDTH[dims]}",
    ]
    if "strides" in model:
        reasons["model.strides"] = [
            f"spacing {' x '.join(f'{length:g}' for length in found.spacing)}: an axis is halved while it leaves at "
            f"least {SMALLEST_BOTTOM}, and waits while another is {THICK} times as fine or more"
        ]


def _model(strides: Sequence[Sequence[int]]) -> dict[str, Any]:
    dims = len(strides[0])
    widths = [min(FIRST_WIDTH[dims] * 2**level, LARGEST_WIDTH[dims]) for level in range(len(strides) + 1)]
    uneven = {"strides": [list(step) for step in strides]} if any(min(step) == 1 for step in strides) else {}
    return {"widths": widths, **uneven, "norm": "batch" if dims == 2 else "instance", "residual": True}


def _strides(patch: Sequence[float], spacing: Sequence[float]) -> list[list[int]]:
    """Which axes each further resolution halves, as nnU-Net chooses them (Isensee et al. 2021): those that stay long
    enough, but for the thick ones, which wait until the others are as coarse. The first one halves something anyway."""
    sides, lengths = np.array(patch, float), np.array(spacing, float)
    strides: list[list[int]] = []
    while len(strides) < MOST_LEVELS[len(patch)] - 1:
        long = sides / 2 >= SMALLEST_BOTTOM
        if not long.any():
            break
        step = np.where(long & (lengths < THICK * lengths[long].min()), 2, 1)
        strides.append(step.tolist())
        sides, lengths = sides / step, lengths * step
    return strides or [[2] * len(patch)]


def training_bytes(model: Mapping[str, Any], channels: int, classes: int, batch: int, patch: Sequence[int]) -> int:
    """Bytes that a training step in float32 holds at once: all that autograd keeps for the backward pass, counted on a
    network without memory, and four numbers for each weight (itself, its gradient and two moments of Adam)."""
    kept: dict[int, int] = {}
    tensors: list[Tensor] = []  # alive, so that no two have one identity

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:  # pyright: ignore[reportPrivateUsage]
            kept[storage._cdata] = storage.nbytes()  # pyright: ignore[reportPrivateUsage]
            tensors.append(tensor)
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network = UNet(in_channels=channels, out_channels=classes, dims=len(patch), **model).train()
        logits = network(torch.zeros(batch, channels, *patch))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    # the loss keeps probabilities and gives back a gradient of the logits
    return sum(kept.values()) + 3 * weights + 3 * logits.nbytes


def _sampling(found: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]) -> None:
    foreground = _foreground(found, labels)
    whole = all(side >= size for side, size in zip(sections["sampling"]["patch"], found.largest, strict=True))
    if foreground < RARE and not whole:
        sections["sampling"]["foreground"] = 0.33
        reasons["sampling.foreground"] = [
            f"{100 * foreground:.2g} % of the pixels are foreground: a third of the patches is centred on one"
        ]


def _foreground(found: Fingerprint, labels: Labels) -> float:
    background = 0 if labels.mode == "binary" else labels.background_channel
    return sum(share for number, share in enumerate(found.shares) if number != background)


def _loss(found: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]) -> None:
    shares = dict(zip(labels.names, found.shares, strict=True))
    text = ", ".join(f"{name} {100 * share:.2g}" for name, share in shares.items())
    sections["loss"] = "dice_ce"
    reasons["loss"] = [
        f"shares of the pixels in %: {text[:200]}{' ...' if len(text) > 200 else ''}",
        "Dice weighs classes alike whatever their share, cross-entropy is smooth: a sound first choice",
    ]
    if labels.mode == "multiclass" and all(shares.values()) and max(shares.values()) > UNEQUAL * min(shares.values()):
        weights = class_weights("median_frequency", torch.tensor(found.class_counts), labels.names)
        named = ", ".join(f"{name} {weight:.2g}" for name, weight in zip(labels.names, weights.tolist(), strict=True))
        reasons["loss"] += [
            f"the shares differ by more than {UNEQUAL} times; to try beside it, cross-entropy with weights, the median "
            "share over that of the class in the cases that have it:",
            "loss: [{name: cross_entropy, class_weights: median_frequency}, dice]",
            f"by these cases: {named[:200]}{' ...' if len(named) > 200 else ''}",
        ]
    reasons["loss"].append("which loss is better on these data, `segkit compare` tells")


def _training(
    found: Fingerprint, sides: tuple[float, ...], sections: dict[str, Any], reasons: dict[str, list[str]]
) -> None:
    patch, batch = sections["sampling"]["patch"], sections["loader"]["batch"]
    pieces = max(1.0, math.prod(sides) / math.prod(patch))
    training = max(1, round(0.8 * found.cases))
    steps = min(20_000, max(300, round(TIMES_SEEN * training * min(pieces, 8) / batch / 100) * 100))
    sections["optimizer"] = {"name": "adamw", "lr": 2e-3}
    sections["schedule"] = {"name": "cosine", "warmup": {"fraction": 0.05}}
    sections["train"] = {
        "steps": steps,
        "channels_last": True,
        "clip_norm": 12,
        "ema": 0.99,
        "validate_every": {"fraction": 0.1},
    }
    reasons["train.steps"] = [
        f"{training} training cases of about {min(pieces, 8):.2g} patches each, seen about {TIMES_SEEN} times, "
        f"{batch} a step; at least 300, at most 20000"
    ]
    if found.dims == 2:
        flips = ["horizontal_flip", {"name": "affine", "rotate": 15, "scale": 0.2, "shift": 0.0, "p": 0.7}]
        sections["augment"] = {"engine": "albumentations", "transforms": [*flips, "brightness_contrast"]}
        reasons["augment"] = ["left and right are exchanged: take horizontal_flip out where a side matters"]
    else:
        affine = {"name": "affine", "rotate": 15, "scale": 0.15, "shift": 0.0, "p": 0.5}
        reasons["augment"] = ["no mirroring, since organs have a side"]
        thick = int(np.argmax(found.spacing))
        if found.spacing[thick] >= FLAT * min(found.spacing):
            affine["axis"] = thick
            reasons["augment"].append(
                f"voxels {found.spacing[thick] / min(found.spacing):.2g} times as thick as wide: slices are turned in "
                "their plane alone"
            )
        sections["augment"] = {"engine": "monai", "transforms": [affine]}


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
