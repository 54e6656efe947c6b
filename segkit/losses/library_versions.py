"""From which version of a library on `like` gives its values and gradients, as `tools/library_versions.py` measures it.

Of torch, only the version that the tests run with is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from packaging.version import Version

IGNORED_PIXELS = "ignored pixels"
# The oldest version by what it holds for: "" for the loss, a mode, an option beside `like`, or ignored pixels.
Since = Mapping[str, str]

MONAI_REGION: Since = {"": "1.0.1", "class_weights": "1.3.0", IGNORED_PIXELS: "1.6.1"}
SMP_REGION: Since = {"": "0.3.0", "class_weights": "0.6.0"}

SINCE: dict[str, dict[str, Since]] = {
    "torch": {"cross_entropy": {"": "2.14"}, "focal": {"": "0.29"}},
    "monai": {
        "cross_entropy": {"": "1.0.1", "binary": "1.3.0", "class_weights": "1.3.0"},
        "dice": MONAI_REGION,
        "jaccard": MONAI_REGION,
        "tversky": {"": "1.0.1", IGNORED_PIXELS: "1.6.1"},
        "generalized_dice": {"": "1.3.0"},
        "boundary": {"": "1.6.1"},
        "hausdorff": {"": "1.3.0"},
        "focal": {"": "1.0.1", "alpha": "1.2.0", "list of alpha": "1.6.0", IGNORED_PIXELS: "1.6.1"},
    },
    "smp": {
        "cross_entropy": {"": "0.3.0"},
        "dice": {**SMP_REGION, "eps": "0.4.0"},
        "jaccard": {**SMP_REGION, IGNORED_PIXELS: "0.6.0"},
        "tversky": SMP_REGION,
        "focal_tversky": SMP_REGION,
        "focal": {**SMP_REGION, "multiclass": "0.6.0"},
        "lovasz_softmax": {"": "0.3.0"},
        "lovasz_hinge": {"": "0.3.0"},
        "mcc": {"": "0.3.0"},
    },
    "kornia": {
        "dice": {"": "0.9.0"},
        "tversky": {"": "0.9.0"},
        "focal": {"": "0.7.4", "multiclass": "0.9.0"},
        "lovasz_softmax": {"": "0.9.0"},
        "lovasz_hinge": {"": "0.9.0"},
    },
    "nnunet": {
        "cross_entropy": {"": "2.0"},
        "topk_cross_entropy": {"": "2.0"},
        "dice": {"": "2.0"},
    },
    "mmseg": {
        "cross_entropy": {"": "1.0.0", "class_weights": "1.2.2"},
        "dice": {"": "1.1.0", "multiclass": "1.1.2"},
        "tversky": {"": "1.0.0"},
        "focal": {"": "1.0.0"},
        "lovasz_softmax": {"": "1.0.0"},
        "lovasz_hinge": {"": "1.0.0"},
    },
}


def holds(since: Since, version: str, mode: str, options: Iterable[str], ignored: bool) -> bool:
    """Whether `like` gives the loss of a version in a mode, with these options beside `like`.

    ignored: whether pixels are ignored.
    """
    keys = ["", mode, *options, *([IGNORED_PIXELS] if ignored else [])]
    return all(Version(version) >= Version(since[key]) for key in keys if key in since)


def in_words(since: Since) -> str:
    """The versions as text: `1.0.1; class_weights 1.3.0`."""
    return "; ".join(f"{key} {version}".strip() for key, version in since.items())
