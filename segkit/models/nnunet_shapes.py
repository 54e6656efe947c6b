"""The shapes of nnU-Net's networks, by its rules and numbers, as plain arithmetic (Isensee et al., 2021 and 2024).

A rule chooses the patch, the resolutions, the widths and the batch from spacing, image size and memory. The memory of a
network is measured in feature-map elements: the number of values that all convolutions put out for one patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

FIRST_WIDTH = 32
MAX_WIDTH = {2: 512, 3: 320}
RESIDUAL_BLOCKS = (1, 3, 4)  # of the first resolutions of the residual encoder; all further ones have FURTHER_BLOCKS
FURTHER_BLOCKS = 6
PLAIN_CONVS = 2  # per resolution of the plain U-Net, in encoder and decoder
MIN_SIDE = 4  # at the coarsest resolution
START = {2: 2048**2, 3: 256**3}  # pixels of the patch from which the search starts
REFERENCE_BATCH = {2: 12, 3: 2}  # which the reference elements are meant for
MIN_BATCH = 2

Kind = Literal["plain", "M", "L", "XL"]


@dataclass(frozen=True)
class Budget:
    """What a kind of network may use.

    Args:
        gb: GPU memory that it is meant for.
        elements: Feature-map elements per patch that fit into it, for 2D and 3D.
        covered: Share of the pixels of a data set that a batch may cover.
    """

    gb: float
    elements: dict[int, float]
    covered: float


BUDGETS: dict[Kind, Budget] = {
    "plain": Budget(8, {2: 85e6, 3: 560e6}, 0.05),
    "M": Budget(8, {2: 135e6, 3: 680e6}, 1.0),
    "L": Budget(24, {2: 380e6, 3: 2100e6}, 1.0),
    "XL": Budget(40, {2: 560e6, 3: 3600e6}, 1.0),
}


@dataclass(frozen=True)
class Shapes:
    """A network, its patch and its batch.

    Args:
        kind: `plain` for the plain U-Net; M, L and XL for the residual encoder.
        patch: Sides of the patch.
        batch: Patches per batch.
        widths: Channels at each resolution, finest first.
        strides: Downsampling between the resolutions, one number per axis.
        kernels: Kernel of the convolutions at each resolution, one number per axis.
        blocks: Residual blocks, or convolutions of the plain U-Net, at each resolution of the encoder.
        decoder_convs: Convolutions at each resolution of the decoder, finest first.
        elements: Feature-map elements for one patch.
    """

    kind: Kind
    patch: tuple[int, ...]
    batch: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    decoder_convs: tuple[int, ...]
    elements: int

    def model(self) -> dict[str, Any]:
        """The section `model` of a configuration."""
        shapes: dict[str, Any] = {
            "widths": list(self.widths),
            "strides": [list(step) for step in self.strides],
            "kernels": [list(kernel) for kernel in self.kernels],
        }
        deep = {"decoder_convs": list(self.decoder_convs), "deep_supervision": True}
        if self.kind != "plain":
            return {"name": "residual_encoder_unet", **shapes, "blocks_per_stage": list(self.blocks), **deep}
        nnunet = {"norm": "instance", "bias": True, "init": "he"}
        return {"name": "unet", **shapes, "encoder_convs": list(self.blocks), **deep, **nnunet}


def widths_of(levels: int, dims: int) -> list[int]:
    """The channels at each of `levels` resolutions: doubled from 32 up to 512 (2D) or 320 (3D)."""
    return [min(FIRST_WIDTH * 2**level, MAX_WIDTH[dims]) for level in range(levels)]


def residual_blocks(levels: int) -> list[int]:
    """The residual blocks at each of `levels` resolutions of the encoder: 1, 3, 4, 6, 6, ..."""
    return [*RESIDUAL_BLOCKS, *[FURTHER_BLOCKS] * levels][:levels]


def nnunet_shapes(
    kind: Kind,
    *,
    spacing: Sequence[float],
    median: Sequence[float],
    classes: int,
    pixels: float,
    memory_gb: float | None = None,
) -> Shapes:
    """The network, patch and batch that nnU-Net plans for a data set.

    Args:
        kind: `plain`, or M, L or XL for the residual encoder in 8, 24 or 40 GB.
        spacing: Spacing of the images after resampling, one number per axis; two axes for slices.
        median: Median sides of the images after resampling.
        classes: Output channels, including the background.
        pixels: Pixels of all images of the data set after resampling.
        memory_gb: Another amount of GPU memory than the kind is meant for.

    Raises ValueError for lengths that are not positive.
    """
    _check(spacing, median)
    dims, budget = len(spacing), BUDGETS[kind]
    limit = budget.elements[dims] * (budget.gb if memory_gb is None else memory_gb) / budget.gb
    sides = [min(sides) for sides in zip(_first_patch(spacing), median, strict=True)]
    strides, kernels, patch = topology(spacing, sides)
    # the plan of the plain U-Net shrinks the patch until two fit, the others until the reference batch fits
    most = limit * REFERENCE_BATCH[dims] / MIN_BATCH if kind == "plain" else limit
    while (elements := _elements(kind, patch, strides, classes)) > most:
        sides = _reduced(spacing, patch, median)
        if min(sides) < 1:
            raise ValueError(f"no patch of nnU-Net's network {kind} fits into {memory_gb} GB; use more memory_gb")
        strides, kernels, patch = topology(spacing, sides)
    batch = round(limit / elements * REFERENCE_BATCH[dims])
    batch = max(min(batch, round(pixels * budget.covered / math.prod(patch))), MIN_BATCH)
    levels = len(kernels)
    widths = tuple(widths_of(levels, dims))
    encoding, decoding = _convs(kind, levels)
    return Shapes(kind, patch, batch, widths, strides, kernels, encoding, decoding, elements)


def _check(spacing: Sequence[float], median: Sequence[float]) -> None:
    if len(spacing) not in START or len(median) != len(spacing) or min(*spacing, *median) <= 0:
        raise ValueError(
            f"expected spacing and median with two or three positive numbers each, got {list(spacing)} and "
            f"{list(median)}"
        )


def _first_patch(spacing: Sequence[float]) -> list[int]:
    """A patch with the same length in mm on each axis and START pixels."""
    inverse = [1 / length for length in spacing]
    factor = (START[len(spacing)] / math.prod(inverse)) ** (1 / len(spacing))
    return [round(number * factor) for number in inverse]


def topology(
    spacing: Sequence[float], sides: Sequence[float]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Strides between resolutions, kernels at each resolution, and the sides rounded up to multiples of the strides.

    An axis is halved while at least 4 pixels remain (6, if it is the only one) and its spacing is below twice the
    finest one of such axes. Its kernel is 1 until its spacing has once been below twice the finest one; the coarsest
    resolution has kernels of 3.
    """
    dims = len(spacing)
    lengths, remaining = list(spacing), list(sides)
    kernel, strides, kernels = [1] * dims, [], []
    while halved := _halved_axes(lengths, remaining):
        kernel = [
            3 if size == 3 or length / min(lengths) < 2 else 1 for size, length in zip(kernel, lengths, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        for axis in halved:
            lengths[axis] *= 2
            remaining[axis] = math.ceil(remaining[axis] / 2)
    multiple = _multiple(strides, dims)
    patch = tuple(math.ceil(side / number) * number for side, number in zip(sides, multiple, strict=True))
    return tuple(strides), (*kernels, (3,) * dims), patch


def _halved_axes(lengths: Sequence[float], sides: Sequence[float]) -> list[int]:
    """The axes to halve at the next resolution; none at the last one."""
    long = [axis for axis, side in enumerate(sides) if side >= 2 * MIN_SIDE]
    finest = min((lengths[axis] for axis in long), default=1.0)
    halved = [axis for axis in long if lengths[axis] / finest < 2]
    is_short = len(halved) == 1 and sides[halved[0]] < 3 * MIN_SIDE
    return [] if is_short else halved


def _multiple(strides: Sequence[Sequence[int]], dims: int) -> tuple[int, ...]:
    return tuple(math.prod(step[axis] for step in strides) for axis in range(dims))


def _reduced(spacing: Sequence[float], patch: Sequence[int], median: Sequence[float]) -> list[int]:
    """The patch, smaller on the axis on which it covers most of the median image, by the last one if several do.

    The step is the multiple that the reduced side would need, which may be less than that of the patch.
    """
    axis = max(range(len(patch)), key=lambda axis: (patch[axis] / median[axis], axis))
    strides, _kernels, _patch = topology(spacing, patch)
    trial = list(patch)
    trial[axis] -= _multiple(strides, len(patch))[axis]
    strides, _kernels, _patch = topology(spacing, trial)
    reduced = list(patch)
    reduced[axis] -= _multiple(strides, len(patch))[axis]
    return reduced


def _convs(kind: Kind, levels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks or convolutions of the encoder, and convolutions of the decoder, at each resolution."""
    if kind == "plain":
        return (PLAIN_CONVS,) * levels, (PLAIN_CONVS,) * (levels - 1)
    return tuple(residual_blocks(levels)), (1,) * (levels - 1)


def _elements(kind: Kind, patch: Sequence[int], strides: Sequence[Sequence[int]], classes: int) -> int:
    """Feature-map elements of a network for one patch: its convolutions, and the logits of the finest resolution."""
    levels, dims = len(strides) + 1, len(patch)
    widths = widths_of(levels, dims)
    encoding, decoding = _convs(kind, levels)
    sizes = [list(patch)]
    for step in strides:
        sizes.append([side // number for side, number in zip(sizes[-1], step, strict=True)])
    pixels = [math.prod(size) for size in sizes]
    total = classes * pixels[0]
    for level, (width, number) in enumerate(zip(widths, encoding, strict=True)):
        convs = number if kind == "plain" else 2 * number
        # the stem at the finest resolution, and the shortcut of the first block at each further one
        total += (convs + (kind != "plain")) * width * pixels[level]
    for width, number, size in zip(widths, decoding, pixels, strict=False):
        total += (number + 1) * width * size  # and the transposed convolution
    return total
