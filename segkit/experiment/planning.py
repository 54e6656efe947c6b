"""Planning a configuration for a data set: its fingerprint, and proposed values with the arithmetic behind them.

Planning has no effect on training: the proposal is written to a configuration file that the user may edit.
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
from segkit.experiment.preflight import SIDE
from segkit.inference.memory import bytes_per_pixel
from segkit.inference.predictor import whole_image
from segkit.labels import Labels
from segkit.losses.class_weights import class_weights
from segkit.models.unet import UNet
from segkit.utils.errors import DataError
from segkit.utils.padding import padded

MAX_READ = 50  # cases read for the fingerprint
PERCENTILES = (0.5, 50.0, 99.5)
MAX_PATCH = {2: 512, 3: 128}  # largest side, from which the search starts
MIN_BOTTOM = 4  # smallest side at the lowest resolution, as in nnU-Net (Isensee et al. 2021)
THICK = 2  # ratio to the finest spacing from which an axis is not downsampled
ANISOTROPIC = 3  # ratio of the coarsest to the finest spacing from which volumes are rotated in-plane only (nnU-Net)
MAX_LEVELS = {2: 6, 3: 5}
FIRST_WIDTH, MAX_WIDTH = {2: 16, 3: 16}, {2: 256, 3: 256}
BATCHES = {2: (16, 8, 4, 2), 3: (4, 2)}
# peak memory of a step relative to the memory that it keeps, for 2D and 3D: temporary gradients, copies made by
# convolutions and norms; the largest ratio measured on a CPU (docs/log.md)
PEAK = {2: 1.4, 3: 2.5}
MAX_BATCH_SHARE = 0.05  # largest batch as a share of the cases
ALIKE = 0.3  # share of the variance between images up to which they are normalised together
FEW = 0.5  # share of cases with foreground below which such cases are drawn more often
RARE = 0.05  # share of foreground pixels below which patches are sampled around the foreground
IMBALANCED = 10  # ratio of the largest to the smallest class share from which class weights are suggested
EPOCHS = 250  # approximate number of times that each training pixel is seen


@dataclass(frozen=True)
class Fingerprint:
    """The properties of a data set that planning is based on, from some of its cases.

    Attributes:
        cases: Number of cases in the data set.
        read: Number of cases that were read.
        unreadable: Number of cases that could not be read.
        groups: Number of groups in the data set.
        channels: Number of image channels.
        smallest: Smallest image side, one number per spatial axis.
        median: Median image side, likewise.
        largest: Largest image side, likewise.
        finest: Smallest spacing, likewise.
        spacing: Median spacing, likewise.
        coarsest: Largest spacing, likewise.
        percentiles: PERCENTILES of the intensity, averaged over cases.
        between: Share of the variance of the intensity that lies between the means of cases, 0 to 1.
        with_foreground: Share of the cases that have foreground.
        shares: Share of each class in the labelled pixels.
        class_counts: Number of pixels of each class, for each case.
    """

    cases: int
    read: int
    unreadable: int
    groups: int
    channels: int
    smallest: tuple[int, ...]
    median: tuple[int, ...]
    largest: tuple[int, ...]
    finest: tuple[float, ...]
    spacing: tuple[float, ...]
    coarsest: tuple[float, ...]
    percentiles: tuple[float, ...]
    between: float
    with_foreground: float
    shares: tuple[float, ...]
    class_counts: tuple[tuple[int, ...], ...] = ()

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.median)


def extract_fingerprint(source: Source, labels: Labels) -> Fingerprint:
    """Read up to MAX_READ evenly spaced cases. Raises DataError if none of them can be read."""
    sides, spacings, intensities, means, variances = [], [], [], [], []
    class_counts, channels = [], 0
    errors: list[DataError] = []
    for case in spread(source.cases, MAX_READ):
        try:
            raw = source.read(case)
        except DataError as error:
            errors.append(error)
            continue
        sides.append(raw.image.shape[1:])
        spacings.append(raw.spacing)
        intensities.append(np.percentile(raw.image, PERCENTILES))
        flat = raw.image.reshape(len(raw.image), -1)
        means.append(flat.mean(1, dtype=np.float64))
        variances.append(flat.var(1, dtype=np.float64))
        assert raw.mask is not None
        class_counts.append(count_classes(raw.mask, labels))
        channels = len(raw.image)
    if not sides:
        raise DataError(f"{errors[0]} (none of the {len(errors)} cases that were tried can be read)")
    counts = np.sum(class_counts, axis=0)
    labelled = sum(map(math.prod, sides)) if labels.has_mask_channels else counts.sum()

    return Fingerprint(
        cases=len(source.cases),
        read=len(sides),
        unreadable=len(errors),
        groups=len({case.group for case in source.cases}),
        channels=channels,
        smallest=_integers(np.min(sides, axis=0)),
        median=_integers(np.median(sides, axis=0)),
        largest=_integers(np.max(sides, axis=0)),
        finest=_rounded(np.min(spacings, axis=0)),
        spacing=_rounded(np.median(spacings, axis=0)),
        coarsest=_rounded(np.max(spacings, axis=0)),
        percentiles=_rounded(np.mean(intensities, axis=0)),
        between=_share_between(means, variances),
        with_foreground=float(np.mean([counts[_foreground(labels)].sum() > 0 for counts in class_counts])),
        shares=tuple((counts / max(labelled, 1)).tolist()),
        class_counts=tuple(tuple(case.tolist()) for case in class_counts),
    )


def _foreground(labels: Labels) -> list[int]:
    """The numbers of the foreground classes."""
    background = 0 if labels.mode == "binary" else labels.background_channel
    return [number for number in range(len(labels.names)) if number != background]


def _share_between(means: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> float:
    """The share of the variance of the intensities that lies between the cases, averaged over the channels."""
    channels = min(map(len, means))
    between = np.var([mean[:channels] for mean in means], axis=0)
    within = np.mean([variance[:channels] for variance in variances], axis=0)
    return float(np.mean(between / np.maximum(between + within, 1e-12)))


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


@dataclass(frozen=True)
class Proposal:
    """A proposed configuration.

    Attributes:
        sections: Sections of the configuration.
        reasons: Comment lines for a section or for a `section.key`.
    """

    sections: dict[str, Any]
    reasons: dict[str, list[str]]


def propose(fingerprint: Fingerprint, labels: Labels, memory: float) -> Proposal:
    """Propose patch, spacing, normalisation, batch, network, loss and number of steps for a data set.

    Args:
        fingerprint: Fingerprint of the data set.
        labels: Labels of the data set.
        memory: Bytes that a training step may use.
    """
    sections: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    sides = _preprocess(fingerprint, sections, reasons)
    _network(fingerprint, labels, sides, memory, sections, reasons)
    _sampling(fingerprint, labels, sections, reasons)
    _loss(fingerprint, labels, sections, reasons)
    _training(fingerprint, labels, sides, sections, reasons)
    return Proposal(sections, reasons)


def _preprocess(fingerprint: Fingerprint, sections: dict[str, Any], reasons: dict[str, list[str]]) -> tuple[float, ...]:
    """Propose intensity normalisation and spacing, and return the median sides of the images."""
    low, middle, high = fingerprint.percentiles
    percentiles = f"intensity percentiles 0.5, 50 and 99.5: {low:g}, {middle:g}, {high:g}, averaged over cases"
    alike = f"{100 * fingerprint.between:.0f} % of the variance lies between the images"
    if fingerprint.dims == 2 and fingerprint.channels == 3 and fingerprint.between <= ALIKE:
        intensity = "dataset"
        reason = f"colour images of similar brightness ({alike}): mean and standard deviation of the training set"
    elif low < -500:
        intensity, reason = "percentile", "values as in computed tomography: percentiles 0.5 and 99.5 become 0 and 1"
    else:
        intensity, reason = "zscore", f"each image is normalised to mean 0 and standard deviation 1; {alike}"
    preprocess: dict[str, Any] = {"intensity": intensity}
    reasons["preprocess.intensity"] = [percentiles, reason]
    ratio = max(coarse / fine for coarse, fine in zip(fingerprint.coarsest, fingerprint.finest, strict=True))
    if fingerprint.dims == 3 and ratio > 1.05:
        preprocess["spacing"] = "median"
        reasons["preprocess.spacing"] = [
            f"spacings differ by factors up to {ratio:.2g}, from {fingerprint.finest} to {fingerprint.coarsest} mm; "
            f"all images are resampled to {fingerprint.spacing}"
        ]
    sections["preprocess"] = preprocess
    return tuple(float(side) for side in fingerprint.median)


def _network(
    fingerprint: Fingerprint,
    labels: Labels,
    sides: tuple[float, ...],
    memory: float,
    sections: dict[str, Any],
    reasons: dict[str, list[str]],
) -> None:
    """Propose patch, batch and network. sides: median sides of the images."""
    dims = fingerprint.dims
    plan = _fit_to_memory(fingerprint, labels, sides, memory)
    sections["sampling"] = {"patch": plan.patch}
    sections["loader"] = {"batch": plan.batch}
    sections["model"] = {"name": "unet", **plan.model}
    median = " x ".join(f"{side:g}" for side in sides)
    multiple = plan.multiple[0] if len(set(plan.multiple)) == 1 else _times(plan.multiple)
    bottom = [side // number for side, number in zip(plan.patch, plan.multiple, strict=True)]
    reasons["sampling.patch"] = [
        f"image sizes: median {median}, from {_times(fingerprint.smallest)} to {_times(fingerprint.largest)}",
        f"sides of at most {MAX_PATCH[dims]}, reduced until a training step fits into {memory / 1e9:.3g} GB, and "
        f"multiples of {multiple}",
    ]
    reasons["loader.batch"] = [
        f"a step keeps {plan.peak_bytes / PEAK[dims] / 1e9:.3g} GB: tensors for the backward pass, weights, gradients, "
        f"Adam moments; temporary copies in the layers need up to {PEAK[dims]:g} times that: "
        f"{plan.peak_bytes / 1e9:.3g} GB",
        f"the largest of {', '.join(map(str, sorted(BATCHES[dims])))} that fits and is at most {MAX_BATCH_SHARE:.0%} "
        f"of the {fingerprint.cases} cases, but at least 2",
    ]
    reasons["model.widths"] = [
        f"{len(plan.strides)} downsampling steps: {_times(plan.patch)} -> {_times(bottom)}, sides of at least "
        f"{MIN_BOTTOM}",
        f"{FIRST_WIDTH[dims]} channels, doubled with each step up to {MAX_WIDTH[dims]}",
    ]
    if "strides" in plan.model:
        reasons["model.strides"] = [
            f"spacing {' x '.join(f'{length:g}' for length in fingerprint.spacing)}: an axis is halved while at least "
            f"{MIN_BOTTOM} pixels remain, unless its spacing is {THICK} or more times the finest one"
        ]

    if dims == 2:
        _window(fingerprint, labels, plan, memory, sections, reasons)


def _window(
    fingerprint: Fingerprint,
    labels: Labels,
    plan: _NetworkPlan,
    memory: float,
    sections: dict[str, Any],
    reasons: dict[str, list[str]],
) -> None:
    """Propose windows for prediction if the largest image does not fit into the memory as a whole."""
    needed = prediction_bytes(plan.model, fingerprint.channels, labels.channels, fingerprint.largest)
    if needed > memory:
        sections["evaluation"] = {"window": plan.patch}
        reasons["evaluation.window"] = [
            f"to predict {_times(fingerprint.largest)} pixels as a whole takes about {needed / 1e9:.3g} GB: images are "
            "predicted in windows"
        ]


@dataclass(frozen=True)
class _NetworkPlan:
    """A network with a patch and a batch.

    Attributes:
        patch: Sides of the patch, multiples of `multiple`.
        multiple: Total downsampling factor of each axis.
        strides: Strides of each downsampling step.
        model: Options of the U-Net.
        batch: Patches per batch.
        peak_bytes: Estimated peak memory of a training step.
    """

    patch: list[int]
    multiple: tuple[int, ...]
    strides: list[list[int]]
    model: dict[str, Any]
    batch: int
    peak_bytes: float


def _fit_to_memory(fingerprint: Fingerprint, labels: Labels, sides: tuple[float, ...], memory: float) -> _NetworkPlan:
    """Choose the largest patch that fits into the memory, and for it the largest batch.

    The search starts with the median image, cropped to MAX_PATCH, and reduces the axis whose patch covers most of the
    image, until a training step fits. If no patch fits, the smallest one with a batch of 2 is returned.
    """
    batches = [batch for batch in BATCHES[fingerprint.dims] if batch <= max(2, MAX_BATCH_SHARE * fingerprint.cases)]
    target = [min(side, float(MAX_PATCH[fingerprint.dims])) for side in sides]
    while True:
        strides = _strides(target, fingerprint.spacing)
        multiple = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
        patch = list(padded([math.ceil(side) for side in target], multiple))
        model = _model_options(strides)
        for batch in batches:
            peak_bytes = PEAK[fingerprint.dims] * training_bytes(
                model, fingerprint.channels, labels.channels, batch, patch
            )
            if peak_bytes <= memory:
                return _NetworkPlan(patch, multiple, strides, model, batch, peak_bytes)
        if all(side <= 2 * number for side, number in zip(patch, multiple, strict=True)):
            return _NetworkPlan(patch, multiple, strides, model, batches[-1], peak_bytes)
        reducible = [axis for axis in range(fingerprint.dims) if patch[axis] > multiple[axis]]
        axis = max(reducible, key=lambda axis: patch[axis] / sides[axis])
        target[axis] = max(multiple[axis], target[axis] - multiple[axis])


def _model_options(strides: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The options of a U-Net with the given downsampling steps."""
    dims = len(strides[0])
    widths = [min(FIRST_WIDTH[dims] * 2**level, MAX_WIDTH[dims]) for level in range(len(strides) + 1)]
    has_uneven_steps = any(min(step) == 1 for step in strides)
    uneven = {"strides": [list(step) for step in strides]} if has_uneven_steps else {}
    return {"widths": widths, **uneven, "norm": "batch" if dims == 2 else "instance", "residual": True}


def _strides(patch: Sequence[float], spacing: Sequence[float]) -> list[list[int]]:
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


def training_bytes(model: Mapping[str, Any], channels: int, classes: int, batch: int, patch: Sequence[int]) -> int:
    """Bytes that a training step in float32 keeps at the same time.

    These are the tensors that autograd saves for the backward pass, counted on the meta device, and four numbers per
    weight: the weight, its gradient and the two moments of Adam.

    Args:
        model: Options of the U-Net.
        channels: Number of image channels.
        classes: Number of output channels.
        batch: Patches per batch.
        patch: Sides of the patch.
    """
    saved: dict[int, int] = {}
    tensors: list[Tensor] = []  # kept alive, so that no two storages have the same address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in saved:  # pyright: ignore[reportPrivateUsage]
            saved[storage._cdata] = storage.nbytes()  # pyright: ignore[reportPrivateUsage]
            tensors.append(tensor)
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network = UNet(in_channels=channels, out_channels=classes, dims=len(patch), **model).train()
        logits = network(torch.zeros(batch, channels, *patch))
    weights = sum(parameter.nbytes for parameter in network.parameters())
    # for the loss: probabilities and the gradient of the logits
    return sum(saved.values()) + 3 * weights + 3 * logits.nbytes


def prediction_bytes(model: Mapping[str, Any], channels: int, classes: int, size: Sequence[int]) -> float:
    """Estimated peak memory of the prediction of an image as a whole, by a pass on the meta device.

    Args:
        model: Options of the U-Net.
        channels: Number of image channels.
        classes: Number of output channels.
        size: Sides of the image.
    """
    with torch.device("meta"), torch.inference_mode():
        network = UNet(in_channels=channels, out_channels=classes, dims=len(size), **model).eval()
        image = torch.zeros(1, channels, *size)
        return math.prod(size) * bytes_per_pixel(network, image, lambda x: whole_image(x, network, network.multiple))


def _sampling(
    fingerprint: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]
) -> None:
    """Propose foreground sampling where foreground is rare and patches do not cover whole images."""
    foreground = _foreground_share(fingerprint, labels)
    covers_images = all(
        side >= size for side, size in zip(sections["sampling"]["patch"], fingerprint.largest, strict=True)
    )
    present = fingerprint.with_foreground
    if present < FEW and foreground > 0:
        sections["sampling"]["foreground_cases"] = FEW
        reasons["sampling.foreground_cases"] = [
            f"{100 * present:.2g} % of the cases have foreground: half of the samples are drawn from these alone"
        ]
    if foreground < RARE and not covers_images:
        sections["sampling"]["foreground"] = 0.33
        drawn = present if present >= FEW else FEW + (1 - FEW) * present
        reasons["sampling.foreground"] = [
            f"{100 * foreground:.2g} % of the pixels are foreground: a third of the patches of cases that have "
            f"foreground is centred on it, {100 * 0.33 * drawn:.0f} % of all patches"
        ]


def _foreground_share(fingerprint: Fingerprint, labels: Labels) -> float:
    return sum(fingerprint.shares[number] for number in _foreground(labels))


def _loss(fingerprint: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]) -> None:
    """Propose Dice with cross-entropy, and class weights as an alternative for imbalanced classes."""
    shares = dict(zip(labels.names, fingerprint.shares, strict=True))
    text = ", ".join(f"{name} {100 * share:.2g}" for name, share in shares.items())
    sections["loss"] = "dice_ce"
    reasons["loss"] = [
        f"class shares in % of the pixels: {_shortened(text)}",
        "Dice weights all classes equally regardless of their share, and cross-entropy is smooth: a robust default",
    ]
    if (
        labels.mode == "multiclass"
        and all(shares.values())
        and max(shares.values()) > IMBALANCED * min(shares.values())
    ):
        weights = class_weights("median_frequency", torch.tensor(fingerprint.class_counts), labels.names)
        named = ", ".join(f"{name} {weight:.2g}" for name, weight in zip(labels.names, weights.tolist(), strict=True))
        reasons["loss"] += [
            f"the shares differ by a factor of more than {IMBALANCED}; an alternative is cross-entropy with class "
            "weights, the median share divided by the share of the class in the cases that contain it:",
            "loss: [{name: cross_entropy, class_weights: median_frequency}, dice]",
            f"weights from these cases: {_shortened(named)}",
        ]
    reasons["loss"].append("`segkit compare` measures which loss is better on these data")


def _shortened(text: str) -> str:
    return f"{text[:200]}{' ...' if len(text) > 200 else ''}"


def _training(
    fingerprint: Fingerprint,
    labels: Labels,
    sides: tuple[float, ...],
    sections: dict[str, Any],
    reasons: dict[str, list[str]],
) -> None:
    """Propose optimizer, schedule, number of steps and augmentation. sides: median sides of the images."""
    patch, batch = sections["sampling"]["patch"], sections["loader"]["batch"]
    patches = min(max(1.0, math.prod(sides) / math.prod(patch)), 8)  # per image
    training_cases = max(1, round(0.8 * fingerprint.cases))
    steps = min(20_000, max(300, round(EPOCHS * training_cases * patches / batch / 100) * 100))
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
        f"{training_cases} training cases with about {patches:.2g} patches each, seen about {EPOCHS} times, in "
        f"batches of {batch}; at least 300 and at most 20000 steps"
    ]
    if fingerprint.dims == 2:
        affine = {"name": "affine", "rotate": 15, "scale": 0.2, "shift": 0.0, "p": 0.7}
        pairs, single = sided_pairs(labels.names)
        flips = [] if single else ["horizontal_flip"]
        sections["augment"] = {
            "engine": "albumentations",
            "transforms": [*flips, affine, "brightness_contrast"],
            **({"swap_on_flip": pairs} if pairs and flips else {}),
        }
        if single:
            reason = f"no horizontal_flip, since it would turn {single[0]} into its other side, which has no class"
        elif pairs:
            reason = "horizontal_flip turns left into right, so `swap_on_flip` exchanges the classes"
        else:
            reason = "horizontal_flip turns left into right: remove it if classes differ by side"
        reasons["augment"] = [reason]
    else:
        affine = {"name": "affine", "rotate": 15, "scale": 0.15, "shift": 0.0, "p": 0.5}
        reasons["augment"] = ["no flips, since organs differ by side"]
        thick = int(np.argmax(fingerprint.spacing))
        anisotropy = fingerprint.spacing[thick] / min(fingerprint.spacing)
        if fingerprint.spacing[thick] >= ANISOTROPIC * min(fingerprint.spacing):
            affine["axis"] = thick
            reasons["augment"].append(
                f"voxels are {anisotropy:.2g} times as thick as wide: rotation only within the slices"
            )
        sections["augment"] = {"engine": "monai", "transforms": [affine]}


def sided_pairs(names: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The pairs of left and right classes, and the sided classes without a counterpart."""
    lower = {name.lower(): name for name in names}
    pairs, single = [], []
    for name in names:
        match = SIDE.search(name.lower())
        if match is None:
            continue
        other = {"left": "right", "right": "left"}[match[1]]
        counterpart = lower.get(f"{name[: match.start()]}{other}{name[match.end() :]}".lower())
        if counterpart is None:
            single.append(name)
        elif match[1] == "left":
            pairs.append([name, counterpart])
    return pairs, single


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
