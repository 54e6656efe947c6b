"""Proposed values of a configuration, with the arithmetic behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segkit.experiment.planning.choice import PlannedNetwork, choose_network
from segkit.experiment.planning.fingerprint import FINE_PERCENTILE, Fingerprint, foreground
from segkit.experiment.planning.memory import LOSS, MemoryLimit, Task, prediction_bytes
from segkit.experiment.planning.networks import NetworkPlan, times
from segkit.experiment.preflight import SIDE
from segkit.labels import Labels
from segkit.losses.class_weights import class_weights

# sections in the order in which they are written
ORDER = (
    *("preprocess", "augment", "sampling", "loader", "model", "loss", "optimizer", "parameters", "schedule", "train"),
    "evaluation",
)
ANISOTROPIC = 3  # ratio of the coarsest to the finest spacing from which volumes are rotated in-plane only (nnU-Net)
ALIKE = 0.3  # share of the variance between images up to which they are normalised together
FEW = 0.5  # share of cases with foreground below which such cases are drawn more often
RARE = 0.05  # share of foreground pixels below which patches are sampled around the foreground
IMBALANCED = 10  # ratio of the largest to the smallest class share from which class weights are suggested
EPOCHS = 250  # approximate number of times that each training pixel is seen


@dataclass(frozen=True)
class Proposal:
    """A proposed configuration.

    Attributes:
        sections: Sections of the configuration.
        reasons: Comment lines for a section or for a `section.key`.
    """

    sections: dict[str, Any]
    reasons: dict[str, list[str]]


def propose(
    fingerprint: Fingerprint, labels: Labels, limit: MemoryLimit, network: PlannedNetwork | None = None
) -> Proposal:
    """Propose patch, spacing, normalisation, batch, network, loss and number of steps for a data set.

    Args:
        fingerprint: Fingerprint of the data set.
        labels: Labels of the data set.
        limit: Memory that a training step may use.
        network: The network to plan; None to choose one.

    Raises ConfigError if a named network does not fit.
    """
    sections: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    plan = _network(Task(fingerprint, labels, limit), network, sections, reasons)
    _preprocess(fingerprint, plan, sections, reasons)
    _sampling(fingerprint, labels, sections, reasons)
    _loss(fingerprint, labels, sections, reasons)
    _training(fingerprint, plan, limit, sections, reasons)
    _augmentation(fingerprint, labels, sections, reasons)
    return Proposal({key: sections[key] for key in ORDER if sections.get(key)}, reasons)


def _preprocess(
    fingerprint: Fingerprint, plan: NetworkPlan, sections: dict[str, Any], reasons: dict[str, list[str]]
) -> None:
    """Propose intensity normalisation and spacing."""
    preprocess: dict[str, Any] = {}
    if not plan.has_own_intensity:
        preprocess["intensity"], reasons["preprocess.intensity"] = _intensity(fingerprint)
    if fingerprint.is_resampled:
        is_median = fingerprint.target == fingerprint.spacing
        preprocess["spacing"] = "median" if is_median else list(fingerprint.target)
        reasons["preprocess.spacing"] = [
            f"spacings differ by factors up to {fingerprint.spacing_ratio:.2g}, from {fingerprint.finest} to "
            f"{fingerprint.coarsest} mm; all images are resampled to {fingerprint.target}",
            *(
                []
                if is_median
                else [
                    f"thick slices: across them the {FINE_PERCENTILE}th percentile, which loses fewer "
                    "of them than the median (nnU-Net)"
                ]
            ),
        ]
    sections["preprocess"] = preprocess


def _intensity(fingerprint: Fingerprint) -> tuple[str, list[str]]:
    """The normalisation, and why."""
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
    return intensity, [percentiles, reason]


def _network(
    task: Task, network: PlannedNetwork | None, sections: dict[str, Any], reasons: dict[str, list[str]]
) -> NetworkPlan:
    """Propose network, patch and batch."""
    plan = choose_network(task, network)
    sections["sampling"] = {"patch": plan.patch}
    sections["loader"] = {"batch": plan.batch}
    sections["model"] = plan.model
    reasons.update(plan.reasons)
    if task.fingerprint.dims == 2:
        _window(task, plan, sections, reasons)
    return plan


def _window(task: Task, plan: NetworkPlan, sections: dict[str, Any], reasons: dict[str, list[str]]) -> None:
    """Propose windows for prediction if the largest image does not fit into the memory as a whole."""
    fingerprint = task.fingerprint
    bytes_needed = prediction_bytes(task.network(plan.model), fingerprint.channels, fingerprint.largest)
    needed = bytes_needed / task.limit.unit
    if needed > task.limit.gb:
        sections["evaluation"] = {"window": plan.patch}
        reasons["evaluation.window"] = [
            f"to predict {times(fingerprint.largest)} pixels as a whole takes about {needed:.3g} GB: images are "
            "predicted in windows"
        ]


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
    return sum(fingerprint.shares[number] for number in foreground(labels))


def _loss(fingerprint: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]) -> None:
    """Propose Dice with cross-entropy, and class weights as an alternative for imbalanced classes."""
    shares = dict(zip(labels.names, fingerprint.shares, strict=True))
    text = ", ".join(f"{name} {100 * share:.2g}" for name, share in shares.items())
    sections["loss"] = LOSS
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
    plan: NetworkPlan,
    limit: MemoryLimit,
    sections: dict[str, Any],
    reasons: dict[str, list[str]],
) -> None:
    """Propose optimizer, schedule and number of steps."""
    patches = min(max(1.0, math.prod(fingerprint.sides) / math.prod(plan.patch)), 8)  # per image
    training_cases, least = max(1, round(0.8 * fingerprint.cases)), plan.recipe.least_steps
    steps = min(20_000, max(least, round(EPOCHS * training_cases * patches / plan.batch / 100) * 100))
    sections["optimizer"] = dict(plan.recipe.optimizer)
    sections["schedule"] = dict(plan.recipe.schedule)
    sections["parameters"] = dict(plan.recipe.parameters)
    precision, reasons["train.precision"] = _precision(limit)
    sections["train"] = {"steps": steps, **precision, **plan.recipe.train, "validate_every": {"fraction": 0.1}}
    reasons["train.steps"] = [
        f"{training_cases} training cases with about {patches:.2g} patches each, seen about {EPOCHS} times, in "
        f"batches of {plan.batch}; at least {least} and at most 20000 steps"
    ]


def _precision(limit: MemoryLimit) -> tuple[dict[str, str], list[str]]:
    """The setting for the precision that the memory is counted in, and why."""
    if limit.precision == "fp32":
        return {}, []
    if limit.precision == "fp16":
        return {"precision": "fp16"}, ["fp16 halves the memory of the activations on a GPU that has no bf16"]
    return {"precision": "auto"}, [
        "bf16 on the GPU of the plan, which halves the memory of the activations; fp32 on hardware without bf16"
    ]


def _augmentation(
    fingerprint: Fingerprint, labels: Labels, sections: dict[str, Any], reasons: dict[str, list[str]]
) -> None:
    """Propose augmentation."""
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
        spacing = fingerprint.spacing_of_network
        thick = int(np.argmax(spacing))
        anisotropy = spacing[thick] / min(spacing)
        if spacing[thick] >= ANISOTROPIC * min(spacing):
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
