"""Flips and right-angle turns of an image for test-time augmentation: those that the training has allowed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PLANE_FLIPS = {"vertical_flip": 0, "horizontal_flip": 1}  # spatial axes; transforms of 2D images


@dataclass(frozen=True)
class Orientation:
    """An image turned by quarters in the plane of its last two axes, and then flipped.

    turns: quarter turns.
    flips: the spatial axes that are flipped, 0 for the first one.
    """

    turns: int = 0
    flips: tuple[int, ...] = ()

    def apply(self, image: Tensor) -> Tensor:
        """The image [B, C, *S] in this orientation."""
        turned = quarter_turns(image, self.turns)
        return turned.flip([axis + 2 for axis in self.flips]) if self.flips else turned

    def undo(self, output: Tensor) -> Tensor:
        """What a network gave for an image in this orientation, [B, K, *S], in that of the original image."""
        flipped = output.flip([axis + 2 for axis in self.flips]) if self.flips else output
        return quarter_turns(flipped, -self.turns % 4)

    def mirrors_sides(self, dims: int) -> bool:
        """Whether it flips left and right: the last axis of a 2D image, the first one of a volume."""
        return (0 if dims == 3 else dims - 1) in self.flips

    def __str__(self) -> str:
        parts = [f"turned by {90 * self.turns} degrees"] if self.turns else []
        parts += [f"axis {axis} flipped" for axis in self.flips]
        return ", ".join(parts) or "as it is"


def quarter_turns(image: Tensor, turns: int) -> Tensor:
    """`torch.rot90` in the plane of the last two axes, by operations that can be exported. turns: 0 to 3."""
    if turns == 2:
        return image.flip(-2, -1)
    return image if turns == 0 else image.transpose(-2, -1).flip(-2 if turns == 1 else -1)


AS_IT_IS = Orientation()


def trained_orientations(
    transforms: Sequence[tuple[str, Mapping[str, Any]]], dims: int, *, exchanges: bool = False, turns: bool = True
) -> list[Orientation]:
    """The original orientation, and those that the random flips and turns of a training have given, each once.

    transforms: the names and options of the transforms of the training.
    exchanges: whether classes change places where left and right are flipped. Half a turn and two flips then give one
        image with different classes, so that orientations which both can give are left out.
    turns: whether the network takes images that are turned.
    """
    axes, quarters = set[int](), 1
    for name, options in transforms:
        if options.get("p") == 0:
            continue
        if name in PLANE_FLIPS:
            axes.add(PLANE_FLIPS[name])
        elif name == "flip":
            axes |= set(range(dims)) if options["axes"] == "all" else {axis % dims for axis in options["axes"]}
        elif name == "rotate90" and turns:
            quarters = 4
    flips = [chosen for number in range(len(axes) + 1) for chosen in itertools.combinations(sorted(axes), number)]
    same: dict[tuple[int, ...], list[Orientation]] = {}  # by where the pixels end up
    for turn, flip in itertools.product(range(quarters), flips):
        orientation = Orientation(turn, flip)
        same.setdefault(_places(orientation, dims), []).append(orientation)
    sure = [
        group[0]
        for group in same.values()
        if not exchanges or len({orientation.mirrors_sides(dims) for orientation in group}) == 1
    ]
    return [AS_IT_IS, *(orientation for orientation in sure if orientation != AS_IT_IS)]


def _places(orientation: Orientation, dims: int) -> tuple[int, ...]:
    """Where the pixels of a small image end up."""
    image = torch.arange(2**dims).view(1, 1, *[2] * dims)
    return tuple(orientation.apply(image).flatten().tolist())
