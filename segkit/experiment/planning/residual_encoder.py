"""The plan of nnU-Net's residual encoder, by its own rules (Isensee et al., 2024)."""

from __future__ import annotations

import math

from segkit.experiment.planning.memory import Recipe, Task
from segkit.experiment.planning.networks import NetworkPlan, image_sizes, times
from segkit.models.nnunet_shapes import BUDGETS, REFERENCE_BATCH, START, Kind, Shapes, nnunet_shapes
from segkit.training.step_memory import StepMemory

KINDS: tuple[Kind, ...] = ("XL", "L", "M")
SHARES = range(100, 45, -5)  # percent of the memory that nnU-Net's rule is given, until a step fits
# the optimiser of nnU-Net: its memory rule expects one moment per weight and no moving average
# nnU-Net trains 250,000 steps whatever the data
SGD = Recipe(
    {"name": "sgd", "lr": 1e-2, "momentum": 0.99, "weight_decay": 3e-5},
    {"name": "poly"},
    {"clip_norm": 12},
    least_steps=5000,
)


def plan_residual_encoder(task: Task) -> NetworkPlan | None:
    """The kind that the memory allows, M at least; None for images too small to be halved, and if no step fits."""
    kind = max(KINDS, key=lambda kind: (BUDGETS[kind].gb <= task.limit.gb, BUDGETS[kind].gb))
    rejected: dict[Shapes, StepMemory] = {}
    for percent in SHARES:
        shapes = _shapes(task, kind, percent)
        if shapes is None:
            return None
        if shapes in rejected:
            continue
        memory = task.step(shapes.model(), SGD, shapes.batch, shapes.patch)
        if task.fits(memory):
            reasons = _reasons(task, shapes, memory, percent, rejected)
            return NetworkPlan(list(shapes.patch), shapes.batch, shapes.model(), SGD, memory, reasons)
        rejected[shapes] = memory
    return None


def _shapes(task: Task, kind: Kind, percent: int) -> Shapes | None:
    """nnU-Net's plan for a share of the memory; None if there is none, or one without downsampling."""
    fingerprint = task.fingerprint
    try:
        shapes = nnunet_shapes(
            kind,
            spacing=fingerprint.spacing_of_network,
            median=fingerprint.sides,
            classes=task.labels.channels,
            pixels=_pixels(task),
            memory_gb=task.limit.gb * percent / 100,
        )
    except ValueError:  # no patch fits
        return None
    return shapes if shapes.strides else None


def _pixels(task: Task) -> int:
    return task.fingerprint.cases * math.prod(task.fingerprint.sides)


def _reasons(
    task: Task, shapes: Shapes, memory: StepMemory, percent: int, rejected: dict[Shapes, StepMemory]
) -> dict[str, list[str]]:
    """Comment lines of a plan."""
    fingerprint, gb, dims = task.fingerprint, task.limit.gb * percent / 100, task.fingerprint.dims
    budget = BUDGETS[shapes.kind]
    elements = budget.elements[dims]
    unit = "pixels" if dims == 2 else "voxels"
    limit = elements * gb / budget.gb
    fitting, patch_pixels = limit / shapes.elements * REFERENCE_BATCH[dims], math.prod(shapes.patch)
    covering = budget.covered * _pixels(task) / patch_pixels
    bottom = [
        side // math.prod(steps) for side, steps in zip(shapes.patch, zip(*shapes.strides, strict=True), strict=True)
    ]
    return {
        "model": [
            f"nnU-Net's residual encoder {shapes.kind}, made for GPUs with {budget.gb:g} GB and more, by its own "
            "rules (Isensee et al. 2024)"
        ],
        "sampling.patch": [
            image_sizes(task),
            f"spacing {times(fingerprint.spacing_of_network)}: the search starts with a patch that is equally long on "
            f"each axis and has {START[dims]:.3g} {unit}, cropped to the median image",
            "it reduces the axis on which the patch covers most of the image, until the feature maps have at most "
            f"{elements:.3g} x {gb:.3g} / {budget.gb:g} GB = {limit:.4g} elements; they have {shapes.elements:.4g}",
        ],
        "loader.batch": [
            f"{limit:.4g} / {shapes.elements:.4g} x {REFERENCE_BATCH[dims]} = {fitting:.3g} patches fit by nnU-Net's "
            f"rule, {covering:.3g} cover {budget.covered:.0%} of the {_pixels(task):.3g} {unit} of {fingerprint.cases} "
            "cases: the smaller number, rounded, but at least 2",
            *_reduced(task, rejected, gb),
            task.described(memory),
        ],
        "model.widths": [
            f"{len(shapes.strides)} downsampling steps: {times(shapes.patch)} -> {times(bottom)}; channels double from "
            f"{shapes.widths[0]} up to {max(shapes.widths)}"
        ],
        "model.strides": ["an axis is halved while at least 4 pixels remain and its spacing is below twice the finest"],
        "model.kernels": ["1 along an axis until its spacing has once been below twice the finest one"],
        "optimizer": ["as nnU-Net trains this network: its memory rule expects one moment per weight"],
    }


def _reduced(task: Task, rejected: dict[Shapes, StepMemory], gb: float) -> list[str]:
    """What was rejected by our own count."""
    if not rejected:
        return []
    shapes, memory = next(iter(rejected.items()))
    return [
        f"for {task.limit.gb:.3g} GB, the rule gives {shapes.batch} patches of {times(shapes.patch)}, whose step takes "
        f"{memory.peak / task.limit.unit:.3g} GB by the count below: the rule was given {gb:.3g} GB instead"
    ]
