"""Maps of the target that some losses need: distances to boundaries, skeletons, components and distances to objects.

They cannot be computed on the device without waiting for it, so the workers of the training loader make them, from the
augmented mask. Without such maps, a loss makes them itself from the mask, on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from segkit.labels import Labels, Target
from segkit.utils.morphology import (
    bounding_box,
    distance_to,
    label_components,
    nearest_component,
    second_nearest_distances,
    widened_skeleton,
)

Maps = Mapping[str, Tensor]
Unit = Literal["pixels", "mm", "diagonal"]
# weights of pixels between objects are 0 beyond this many sigma, where they would be below 4e-6 of w0
BORDER_REACH = 5.0


class TargetMap(Protocol):
    """What a loss needs to know of a mask in addition to its classes. Maps of equal options are made once.

    name: the key of the map in a batch.
    """

    @property
    def name(self) -> str: ...

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:
        """The arrays of one image, whose keys begin with the name.

        classes, valid: bool [K, *S], the pixels of each class, False where ignored, and the pixels that are not
        ignored. spacing: mm along each axis.
        """
        ...

    def at_size(self, tensor: Tensor, steps: Sequence[int]) -> Tensor:
        """An array of a batch for a head whose pixels are `steps` times larger; see `DeepSupervision`."""
        ...


def middle_pixels(tensor: Tensor, steps: Sequence[int]) -> Tensor:
    """The middle pixel of each block of `steps` pixels along the last axes."""
    return tensor[(..., *(slice(step // 2, None, step) for step in steps))]


@dataclass(frozen=True)
class DistanceMap:
    """The distance of every pixel to the boundary of each class, floating [K, *S].

    form: `signed` is the distance to the nearest pixel of the class outside of it, and minus the distance to the
        nearest other pixel inside of it, plus the smallest spacing: 0 on the inner boundary, as in Kervadec et al.
        2019. `unsigned` is the distance to the nearest pixel of the class outside of it, and to the nearest other pixel
        inside of it, as in Karimi & Salcudean 2019.
    unit: `pixels` of the smallest spacing, `mm`, or `diagonal` for fractions of the diagonal of the smallest box around
        the pixels that are not ignored.
    channels: the channels for which it is computed; it is 0 for others, and for a class that is absent or fills the
        image, since it has no boundary.

    Ignored pixels belong neither to the class nor to the others, so that no boundary lies at them.
    """

    form: Literal["signed", "unsigned"]
    unit: Unit
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"distance-{self.form}-{self.unit}-{'-'.join(map(str, self.channels))}"

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:
        distances = np.zeros(classes.shape)
        unit = self._length_of_unit(np.asarray(valid.any(0)), spacing)
        for channel in self.channels:
            inside, outside = classes[channel], valid[channel] & ~classes[channel]
            if inside.any() and outside.any():
                distances[channel] = self._of_class(inside, outside, spacing) / unit
        return {self.name: distances}

    def _length_of_unit(self, valid: np.ndarray, spacing: Sequence[float]) -> float:
        """The length of a unit in mm."""
        if self.unit == "diagonal":
            return _diagonal(valid, spacing)
        return min(spacing) if self.unit == "pixels" else 1.0

    def _of_class(self, inside: np.ndarray, outside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        to_class, to_others = distance_to(inside, spacing), distance_to(outside, spacing)
        if self.form == "unsigned":
            return np.where(inside, to_others, to_class)
        return np.where(inside, min(spacing) - to_others, to_class)

    at_size = staticmethod(middle_pixels)


def _diagonal(valid: np.ndarray, spacing: Sequence[float]) -> float:
    """The diagonal in mm of the smallest box around the true pixels of a mask [*S]; 1 if there are none."""
    sides = [(side.stop - side.start) * step for side, step in zip(bounding_box(valid), spacing, strict=True)]
    return float(np.linalg.norm(sides)) or 1.0


@dataclass(frozen=True)
class SpacingMap:
    """mm along each axis, float64 [D], from which maps of the prediction are made."""

    name: str = "spacing"

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:  # noqa: ARG002
        return {self.name: np.array(spacing, np.float64)}

    @staticmethod
    def at_size(tensor: Tensor, steps: Sequence[int]) -> Tensor:
        """The spacing of larger pixels."""
        return tensor * tensor.new_tensor(steps)


@dataclass(frozen=True)
class SkeletonMap:
    """The skeleton of each class, widened by `radius` pixels and cut to the class, uint8 [K, *S].

    channels: the channels for which it is computed; it is 0 for others.
    """

    radius: int
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"skeleton-{self.radius}-{'-'.join(map(str, self.channels))}"

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:  # noqa: ARG002
        skeletons = np.zeros(classes.shape, np.uint8)
        for channel in self.channels:
            skeletons[channel] = widened_skeleton(classes[channel], self.radius, "loss skeleton_recall")
        return {self.name: skeletons}

    @staticmethod
    def at_size(tensor: Tensor, steps: Sequence[int]) -> Tensor:
        """Whether any pixel of a block is on the skeleton: a thin line would be cut by taking one pixel of each."""
        pool = {1: torch.nn.functional.max_pool1d, 2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}
        return pool[len(steps)](tensor.float(), list(steps)).to(tensor.dtype)


@dataclass(frozen=True)
class ComponentMap:
    """The number of the connected component of each class that a pixel belongs to, int32 [K, *S], counted from 1.

    of: `component` is 0 outside of the class; `region` is the nearest component, so that every pixel belongs to one
        (ties go to either). Pixels that share a corner are connected.
    channels: the channels for which it is computed; it is 0 for others.

    A second array, `NAME-slots`, has one entry for no component and at least one for each component of a class, so that
    losses know the largest number from its length, without reading it from the device. The length is a power of two, so
    that few lengths occur, which matters to compiled losses.
    """

    of: Literal["component", "region"]
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"components-{self.of}-{'-'.join(map(str, self.channels))}"

    @property
    def slots(self) -> str:
        """The name of the array that has a slot for each component, and one for no component."""
        return f"{self.name}-slots"

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:  # noqa: ARG002
        numbers, most = np.zeros(classes.shape, np.int32), 0
        for channel in self.channels:
            components, count = label_components(classes[channel])
            most = max(most, count)
            numbers[channel] = nearest_component(components, spacing) if self.of == "region" else components
        return {self.name: numbers, self.slots: np.zeros(max(8, 1 << most.bit_length()), np.uint8)}

    def at_size(self, tensor: Tensor, steps: Sequence[int]) -> Tensor:
        return tensor if tensor.ndim == 2 else middle_pixels(tensor, steps)


@dataclass(frozen=True)
class BorderMap:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) between objects, 0 on them, floating [1, *S] (Ronneberger et al. 2015).

    d1, d2: distance to the nearest and the second nearest object in mm. Objects are the connected components of the
        foreground classes together; pixels that share a side are connected, so that objects may touch at corners.
    channels: the foreground channels.

    It is 0 where d1 or d2 exceeds 5 sigma, which changes it by less than 4e-6 w0.
    """

    w0: float
    sigma: float
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"border-{self.w0!r}-{self.sigma!r}-{'-'.join(map(str, self.channels))}"

    def make(self, classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:  # noqa: ARG002
        objects = np.asarray(classes[list(self.channels)].any(0))
        components, count = label_components(objects, "direct")
        first, second = second_nearest_distances(components, count, spacing, BORDER_REACH * self.sigma)
        with np.errstate(over="ignore"):
            weight = self.w0 * np.exp(-((first + second) ** 2) / (2 * self.sigma**2))
        return {self.name: np.where(objects, 0, weight)[None]}

    at_size = staticmethod(middle_pixels)


def maps_of_mask(
    maps: Iterable[TargetMap], labels: Labels, mask: np.ndarray, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """The arrays of all maps of one stored mask, [*S] or [K, *S], in float32. spacing: mm along each axis."""
    target = labels.target(torch.from_numpy(np.ascontiguousarray(mask))[None])
    classes, valid = _planes(target, labels)
    arrays = _made(maps, classes[0], valid[0], spacing)
    return {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()}


@torch.no_grad()
def maps_of_target(
    maps: Iterable[TargetMap],
    labels: Labels,
    target: Target,
    spacing: Sequence[Sequence[float]] | None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The maps of a batch, made on the host, [B, ...] on the device of the target. It waits for the device.

    spacing: mm along each axis for each image; None for 1. dtype: that of floating maps.

    Raises ValueError for soft targets, which have no boundaries, skeletons or components.
    """
    classes, valid = _planes(target, labels)
    spacings = [[1.0] * (classes.ndim - 2)] * len(classes) if spacing is None else spacing
    if len(spacings) != len(classes) or any(len(steps) != classes.ndim - 2 for steps in spacings):
        raise ValueError(
            f"expected spacing of {len(classes)} images with {classes.ndim - 2} axes each, got {list(spacings)}"
        )
    made = [_made(maps, *image) for image in zip(classes, valid, spacings, strict=True)]
    device = target.index.device if target.index is not None else target.onehot.device  # pyright: ignore
    tensors = {name: torch.from_numpy(array) for name, array in stacked(made).items()}
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in tensors.items()}


def stacked(made: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of several images as a batch; those of one axis, the slots, are padded to the longest."""
    result = {}
    for name in made[0]:
        arrays = [arrays[name] for arrays in made]
        if arrays[0].ndim == 1:
            longest = max(map(len, arrays))
            arrays = [np.pad(array, (0, longest - len(array))) for array in arrays]
        result[name] = np.stack(arrays)
    return result


def _planes(target: Target, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of each class, and those that are not ignored, bool [B, K, *S] each."""
    if target.onehot is not None and target.onehot.is_floating_point():
        raise ValueError(
            "distances, skeletons and components are defined for hard targets, got a floating one; use dice or "
            "cross_entropy instead"
        )
    classes = labels.onehot(target)
    valid = target.valid_channels
    valid = torch.ones_like(classes) if valid is None else valid.expand_as(classes)
    return classes.cpu().numpy(), valid.cpu().numpy()


def _made(
    maps: Iterable[TargetMap], classes: np.ndarray, valid: np.ndarray, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for target_map in maps:
        arrays |= target_map.make(classes, valid, [float(step) for step in spacing])
    return arrays


def maps_needed(terms: Iterable[Any]) -> list[TargetMap]:
    """The distinct maps that terms need, in their attribute `maps`."""
    return list(dict.fromkeys(target_map for term in terms for target_map in getattr(term, "maps", ())))
