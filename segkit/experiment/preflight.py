"""Warnings at the start of a run, for what can be seen before it has cost anything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from segkit.losses.library_presets import preset

SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
POOLING = ("dice", "jaccard", "tversky", "focal_tversky", "generalized_dice", "lovasz_softmax", "lovasz_hinge")


def mirror_warnings(names: Sequence[str], augment: Any, dims: int) -> list[str]:
    """Classes of one side that a mirror of left and right moves to the other, where they keep their name.

    augment: the section `augment`. dims: spatial axes of the images.
    """
    swapped = {name for pair in augment.swap_on_flip for name in pair}
    sided = [name for name in names if SIDE.search(name.lower()) and name not in swapped]
    lateral = 0 if dims == 3 else 1
    mirrored = any(
        one.name == "horizontal_flip" or (one.name == "flip" and lateral in [axis % dims for axis in one.args["axes"]])
        for one in augment.transforms
    )
    if not sided or not mirrored:
        return []
    return [
        f"a mirror turns left into right, but the classes {', '.join(sided)} keep their names: name those that change "
        "places, `swap_on_flip: [[left ..., right ...]]` under `augment`, or leave the mirror out"
    ]


def loss_warnings(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is known to go wrong with a loss, from its resolved terms."""
    names = [term["name"] for term in terms]
    if all(name.startswith("lovasz") for name in names):
        return [
            f"{' and '.join(names)} alone seldom trains a network from scratch: its gradient favours few pixels before "
            "the prediction is roughly right. loss=ce_lovasz adds the cross-entropy, loss=ce_then_lovasz begins with it"
        ]
    return []


def loss_notes(terms: Sequence[Mapping[str, Any]], *, pooled: bool = False) -> list[str]:
    """Which score a loss stands for, where that is not the one that the run reports.

    pooled: whether the rules of the evaluation add up counts over cases.
    """
    per = "image" if pooled else "batch"
    other = [term["name"] for term in terms if term["name"] in POOLING and _per(term) == per]
    if not other:
        return []
    stands_for = ("scores pooled over all pixels", "per: batch"), ("mean over cases", "per: image")
    (theirs, _), (headline, way) = stands_for[::-1] if pooled else stands_for
    return [
        f"{', '.join(other)} per: {per} is closest to the {theirs}; the headline of this run is the {headline}, to "
        f"which {way} is closest"
    ]


def _per(term: Mapping[str, Any]) -> str:
    """Over what a term pools, which a library named by `like` may say."""
    options = preset(term["like"], term["name"]).options if term.get("like") else {}
    return term.get("per") or options.get("per", "batch")
