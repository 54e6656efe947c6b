"""The plan of a small U-Net, for CPUs and for little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from segkit.experiment.planning.memory import ADAMW, Task
from segkit.experiment.planning.networks import (
    NetworkPlan,
    batch_reason,
    batches_for,
    image_sizes,
    largest_fitting,
    patches,
    times,
)

MAX_PATCH = {2: 512, 3: 128}  # largest side, from which the search starts
MIN_BOTTOM = 4  # smallest side at the lowest resolution, as in nnU-Net (Isensee et al. 2021)
THICK = 2  # ratio to the finest spacing from which an axis is not downsampled
MAX_LEVELS = {2: 6, 3: 5}
FIRST_WIDTH, MAX_WIDTH = 16, 256


def plan_small_unet(task: Task) -> NetworkPlan:
    """The largest patch that fits into the memory, for it the largest batch, and the U-Net that the patch allows.

    If no patch fits, the smallest one with a batch of 2 is planned.
    """
    fingerprint = task.fingerprint

    def model(patch: Sequence[float]) -> dict[str, Any]:
        return _options(strides_for(patch, fingerprint.spacing_of_network))

    def multiple(patch: Sequence[float]) -> tuple[int, ...]:
        return tuple(
            math.prod(steps) for steps in zip(*strides_for(patch, fingerprint.spacing_of_network), strict=True)
        )

    candidates = list(patches(fingerprint.sides, MAX_PATCH[fingerprint.dims], multiple))
    batches = batches_for(task)
    found = largest_fitting(
        task, candidates, batches, lambda patch, batch: task.step(model(patch), ADAMW, batch, patch)
    )
    if found is None:
        patch, batch = candidates[-1], batches[-1]
        found = patch, batch, task.step(model(patch), ADAMW, batch, patch)
    patch, batch, memory = found
    plan = NetworkPlan(list(patch), batch, model(patch), ADAMW, memory)
    plan.reasons.update(_reasons(task, plan, multiple(patch)))
    return plan


def _options(strides: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The section `model` with the given downsampling steps."""
    dims = len(strides[0])
    widths = [min(FIRST_WIDTH * 2**level, MAX_WIDTH) for level in range(len(strides) + 1)]
    has_uneven_steps = any(min(step) == 1 for step in strides)
    uneven = {"strides": [list(step) for step in strides]} if has_uneven_steps else {}
    return {"name": "unet", "widths": widths, **uneven, "norm": "batch" if dims == 2 else "instance", "residual": True}


def strides_for(patch: Sequence[float], spacing: Sequence[float]) -> list[list[int]]:
    """The strides of each downsampling step, chosen as in nnU-Net (Isensee et al. 2021).

    An axis is halved while it stays long enough, but one with a coarse spacing only once the other axes are similarly
    coarse. There is at least one step.
    """
    sides, spacings = np.array(patch, float), np.array(spacing, float)
    strides: list[list[int]] = []
    while len(strides) < MAX_LEVELS[len(patch)] - 1:
        is_long = sides / 2 >= MIN_BOTTOM
        if not is_long.any():
            break
        step = np.where(is_long & (spacings < THICK * spacings[is_long].min()), 2, 1)
        strides.append(step.tolist())
        sides, spacings = sides / step, spacings * step
    return strides or [[2] * len(patch)]


def _reasons(task: Task, plan: NetworkPlan, multiple: tuple[int, ...]) -> dict[str, list[str]]:
    """Comment lines of a plan."""
    fingerprint, limit = task.fingerprint, task.limit
    named = str(multiple[0]) if len(set(multiple)) == 1 else times(multiple)
    bottom = [side // number for side, number in zip(plan.patch, multiple, strict=True)]
    reasons = {
        "sampling.patch": [
            image_sizes(task),
            f"sides of at most {MAX_PATCH[fingerprint.dims]}, reduced until a training step fits into {limit.gb:.3g} "
            f"GB, and multiples of {named}",
        ],
        "loader.batch": [
            task.described(plan.memory),
            *([] if task.fits(plan.memory) else [f"nothing smaller is planned, though this exceeds {limit.gb:.3g} GB"]),
            batch_reason(task),
        ],
        "model.widths": [
            f"{int(math.log2(max(multiple)))} downsampling steps: {times(plan.patch)} -> {times(bottom)}, sides of at "
            f"least {MIN_BOTTOM}",
            f"{FIRST_WIDTH} channels, doubled with each step up to {MAX_WIDTH}",
        ],
    }
    if "strides" in plan.model:
        reasons["model.strides"] = [
            f"spacing {times(fingerprint.spacing_of_network)}: an axis is halved while at least {MIN_BOTTOM} pixels "
            f"remain, unless its spacing is {THICK} or more times the finest one"
        ]
    return reasons
