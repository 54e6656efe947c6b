"""Warnings before a run starts, about problems that are already visible in its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from segkit.config import Config
from segkit.labels import Labels
from segkit.losses.library_presets import preset
from segkit.utils.text import listed

SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
POOLING = (
    *("dice", "jaccard", "tversky", "focal_tversky", "generalized_dice", "log_cosh_dice", "dice_semimetric"),
    *("jaccard_metric", "mcc", "unified_focal", "exponential_log", "lovasz_softmax", "lovasz_hinge"),
    *("boundary", "hausdorff", "surface", "cldice", "skeleton_recall"),
)
# what is missing from a loss that is used without another one
INCOMPLETE = {
    "boundary": "says nothing of pixels at the boundary and can be lowered by predicting nothing",
    "skeleton_recall": "says nothing of false positives",
    "component_dice": "says nothing of images without the class",
}


def mirror_warnings(names: Sequence[str], augment: Any, dims: int) -> list[str]:
    """Warn about left and right classes that a flip moves to the other side without renaming them.

    augment: the section `augment`. dims: the number of spatial axes.
    """
    swapped = {name for pair in augment.swap_on_flip for name in pair}
    sided = [name for name in names if SIDE.search(name.lower()) and name not in swapped]
    lateral = 0 if dims == 3 else 1
    mirrored = any(
        transform.name == "horizontal_flip"
        or (transform.name == "flip" and _flips(transform.args["axes"], lateral, dims))
        for transform in augment.transforms
    )
    if not sided or not mirrored:
        return []
    return [
        f"the flip turns left into right, but the classes {', '.join(sided)} keep their names: list the pairs to swap "
        "under `augment`, `swap_on_flip: [[left ..., right ...]]`, or remove the flip"
    ]


def absent_class_warnings(labels: Labels, absent: Sequence[str]) -> list[str]:
    """Warn about classes that no training case contains."""
    foreground = [labels.channel_names[channel] for channel in labels.foreground]
    absent = [name for name in absent if name in foreground]
    if set(foreground) <= set(absent):
        return ["no training case contains foreground: the network can only learn the background; check the masks"]
    if not absent:
        return []
    return [
        f"no training case contains {listed(absent)}: the network cannot learn these classes; check labels.names "
        "and the split"
    ]


def unscored_validation_warnings(config: Config) -> list[str]:
    """Warn that no validation case contains foreground, and what follows from it."""
    without = ["train.patience"] if config.train.patience is not None else []
    without += ["schedule: plateau"] if config.schedule.name == "plateau" else []
    effect = f", and {' and '.join(without)} without effect" if without else ""
    return [
        "no validation case contains foreground, so that validations say nothing about it: there will be no best.pt"
        f"{effect}; use a split whose validation part has foreground"
    ]


def _flips(axes: Any, axis: int, dims: int) -> bool:
    """Whether the option `axes` of a flip contains an axis."""
    return axes == "all" or axis in [one % dims for one in axes]


def loss_warnings(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Known problems of a loss, from its resolved terms."""
    names = [term["name"] for term in terms]
    if all(name.startswith("lovasz") for name in names):
        return [
            f"{' and '.join(names)} alone is reported to train poorly from scratch, though not on all data (it did "
            "best on hippocampus): compare it with loss=ce_lovasz (cross-entropy added) and loss=ce_then_lovasz "
            "(cross-entropy first)"
        ]
    if all(name in INCOMPLETE for name in names):
        reasons = " and ".join(f"{name} {INCOMPLETE[name]}" for name in dict.fromkeys(names))
        return [f"{reasons}; use it beside another loss, such as loss=dice_ce_{names[0]}"]
    return []


def loss_notes(terms: Sequence[Mapping[str, Any]], *, pooled: bool = False) -> list[str]:
    """A note on the score that a loss corresponds to, if it is not the reported one.

    pooled: whether the scoring rules add up counts over cases.
    """
    per = "image" if pooled else "batch"
    other = [term["name"] for term in terms if term["name"] in POOLING and _per(term) == per]
    if not other:
        return []
    averages = {"batch": "averages over the batch", "image": "averages over images"}
    reported, better = ("pools all pixels", "per: batch") if pooled else ("averages over cases", "per: image")
    return [
        f"Note: {', '.join(other)} {averages[per]} (per: {per}), while the reported score {reported}; `{better}` "
        "matches it more closely."
    ]


def _per(term: Mapping[str, Any]) -> str:
    """Whether a term averages over the batch or over images; `like` may determine it."""
    options = preset(term["like"], term["name"]).options if term.get("like") else {}
    return term.get("per") or options.get("per", "batch")
