"""A planned network, and the search for its patch and its batch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from segkit.experiment.planning.memory import Recipe, Task
from segkit.training.step_memory import StepMemory
from segkit.utils.padding import padded

BATCHES = {2: (16, 8, 4, 2), 3: (4, 2)}
MAX_BATCH_SHARE = 0.05  # largest batch as a share of the cases


@dataclass(frozen=True)
class NetworkPlan:
    """A network with a patch and a batch.

    Attributes:
        patch: Sides of the patch.
        batch: Patches per batch.
        model: The section `model` of a configuration.
        recipe: How the network is trained.
        memory: Memory of a training step.
        reasons: Comment lines for a section or for a `section.key`.
        has_own_intensity: Whether the network says itself how images are normalised.
    """

    patch: list[int]
    batch: int
    model: dict[str, Any]
    recipe: Recipe
    memory: StepMemory
    reasons: dict[str, list[str]] = field(default_factory=dict)
    has_own_intensity: bool = False


def batches_for(task: Task) -> list[int]:
    """The batches to try, largest first."""
    most = max(2, MAX_BATCH_SHARE * task.fingerprint.cases)
    return [batch for batch in BATCHES[task.fingerprint.dims] if batch <= most]


def batch_reason(task: Task) -> str:
    """Why a batch is no larger."""
    return (
        f"the largest of {', '.join(map(str, sorted(BATCHES[task.fingerprint.dims])))} that fits and is at most "
        f"{MAX_BATCH_SHARE:.0%} of the {task.fingerprint.cases} cases, but at least 2"
    )


def patches(
    sides: Sequence[int], most: int, multiple_of: Callable[[Sequence[float]], Sequence[int]]
) -> Iterator[tuple[int, ...]]:
    """Patches from the largest one on.

    The first one is the median image, cropped to `most` per side. Each further one is smaller on the axis on which the
    patch covers most of the image; the last one has at most twice the multiple per side.

    Args:
        sides: Median sides of the images.
        most: Largest side of a patch.
        multiple_of: From sides to the numbers of which the patch must be a multiple.
    """
    target = [float(min(side, most)) for side in sides]
    while True:
        multiple = multiple_of(target)
        patch = padded([math.ceil(side) for side in target], tuple(multiple))
        yield patch
        if all(side <= 2 * number for side, number in zip(patch, multiple, strict=True)):
            return
        reducible = [axis for axis in range(len(patch)) if patch[axis] > multiple[axis]]
        axis = max(reducible, key=lambda axis: patch[axis] / sides[axis])
        target[axis] = max(multiple[axis], target[axis] - multiple[axis])


def largest_fitting(
    task: Task,
    candidates: Sequence[tuple[int, ...]],
    batches: Sequence[int],
    step: Callable[[tuple[int, ...], int], StepMemory],
) -> tuple[tuple[int, ...], int, StepMemory] | None:
    """The largest patch that fits into the memory with the smallest batch, and for it the largest batch; None if no
    patch fits.

    Args:
        task: What is planned.
        candidates: Patches, largest first.
        batches: Batches, largest first.
        step: From patch and batch to the memory of a training step.
    """
    index = _first(len(candidates), lambda number: task.fits(step(candidates[number], batches[-1])))
    if index is None:
        return None
    patch = candidates[index]
    batch = batches[_first(len(batches), lambda number: task.fits(step(patch, batches[number]))) or 0]
    return patch, batch, step(patch, batch)


def _first(number: int, fits: Callable[[int], bool]) -> int | None:
    """The first of `number` candidates, each smaller than the one before it, that fits."""
    if fits(0):
        return 0
    found = bisect_left(range(number), True, lo=1, key=fits)
    return found if found < number else None


def times(sides: Sequence[float]) -> str:
    """Sides as text, `4 x 5`."""
    return " x ".join(f"{side:g}" for side in sides)


def image_sizes(task: Task) -> str:
    """The sizes of the images in words."""
    fingerprint = task.fingerprint
    resampled = f", {times(fingerprint.sides)} after resampling" if fingerprint.is_resampled else ""
    return (
        f"image sizes: median {times(fingerprint.median)}{resampled}, from {times(fingerprint.smallest)} to "
        f"{times(fingerprint.largest)}"
    )
