"""`like: library` on a term: the options, and where needed a factor, with which a loss is that of another library.

Versions that this was tested against: torch 2.14, torchvision 0.29, MONAI 1.6, segmentation-models-pytorch (smp) 0.6,
kornia 0.9; nnU-Net v2 and mmsegmentation 1.2 by their definitions. Keys that are written out win over the table's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from segkit.labels import Labels
from segkit.losses.weighted_sum import Scale

Library = Literal["torch", "monai", "smp", "kornia", "nnunet", "mmseg"]
LIBRARIES: tuple[str, ...] = get_args(Library)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why there is no setting with which a loss is that of a library."""

    reason: str


def _as_it_is(_options: Options, _labels: Labels) -> Scale | Refusal:
    return Scale()


@dataclass(frozen=True)
class Preset:
    """What makes a loss that of a library.

    theirs: what the library calls it. options: options of ours.
    rescale: from the options, all filled in, and the labels to factor and offset, or why these options cannot be had.
    not_for: the modes in which the library has no such loss, or has it wrong. unweighted: those in which its loss knows
        no class weights.
    note: where the two still differ, or what to know.
    """

    theirs: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rescale: Callable[[Options, Labels], Scale | Refusal] = _as_it_is
    not_for: Mapping[str, Refusal] = field(default_factory=dict)
    note: str = ""
    unweighted: tuple[str, ...] = ()

    def scale(self, options: Options, labels: Labels) -> Scale:
        """Factor and offset; `options` are all filled in. Raises ValueError where the library's loss cannot be had."""
        found = self.not_for[labels.mode] if labels.mode in self.not_for else self.rescale(options, labels)
        if labels.mode in self.unweighted and _is_weighted(options):
            found = Refusal("it knows no class_weights; leave them or `like` out")
        if isinstance(found, Refusal):
            raise ValueError(f"like {self.theirs} is not possible here, in mode {labels.mode}: {found.reason}")
        return found


def _is_weighted(options: Options) -> bool:
    return options.get("class_weights") not in (None, "none")


def _weights_over_classes(options: Options, labels: Labels) -> Scale | Refusal:
    """For a library that divides the weighted sum over classes by their number, not by the sum of the weights."""
    weights = options.get("class_weights")
    if not _is_weighted(options):
        return Scale()
    if not isinstance(weights, (list, tuple)):
        return Refusal("it does not divide by the sum of the weights, so give class_weights as a list")
    if len(weights) != labels.channels or not all(isinstance(weight, (int, float)) for weight in weights):
        return Scale()  # the loss itself says what is wrong with the list
    counted = weights if options.get("background", True) else [weights[channel] for channel in labels.foreground]
    return Scale(sum(counted) / max(1, len(counted)))


def _takes_softmax(options: Options, labels: Labels) -> bool:
    return labels.mode == "multiclass" and options.get("activation") != "sigmoid"


def _softmax_over_classes(options: Options, labels: Labels) -> Scale | Refusal:
    """For a focal loss that with a softmax is a mean over the channels too, all but one of which are 0."""
    return Scale(1 / labels.channels if _takes_softmax(options, labels) else 1.0)


def _monai_focal(options: Options, labels: Labels) -> Scale | Refusal:
    if isinstance(options.get("alpha"), (list, tuple)) and not _takes_softmax(options, labels):
        return Refusal("with a list of alpha it leaves the absence of a class at 1, here it is 1 - alpha")
    if labels.ignore_index is None:
        return _softmax_over_classes(options, labels)
    if labels.mode == "multilabel":
        return Refusal(NO_CLASS_IGNORED)
    # told what to ignore, it divides the sum over channels by the pixels instead of by pixels times channels
    return Scale(1.0 if _takes_softmax(options, labels) else labels.channels)


def _monai_region(options: Options, labels: Labels) -> Scale | Refusal:
    if labels.mode == "multilabel" and labels.ignore_index is not None:
        return Refusal(NO_CLASS_IGNORED)
    return _weights_over_classes(options, labels)


def _nnunet_cross_entropy(options: Options, labels: Labels) -> Scale | Refusal:
    weighted = _weighted_over_pixels(options, labels)
    if weighted == Scale() and labels.mode == "multilabel" and labels.ignore_index is not None:
        return Scale(labels.channels)  # as soon as something may be ignored, it divides by pixels instead of entries
    return weighted


def _nnunet_topk(_options: Options, labels: Labels) -> Scale | Refusal:
    if labels.ignore_index is not None:
        return Refusal("it takes the share of all pixels, the ignored ones too, and these as pixels of loss 0")
    return Scale()


def _weighted_over_pixels(options: Options, labels: Labels) -> Scale | Refusal:
    """For a library that divides a weighted sum by the weights with a softmax, and by the pixels with a sigmoid."""
    if labels.mode != "multiclass" and _is_weighted(options) and options.get("normalize") == "weights":
        return Refusal("it divides binary cross-entropies by the number of pixels, so give normalize: valid")
    return Scale()


def _mmseg_cross_entropy(options: Options, labels: Labels) -> Scale | Refusal:
    if not _is_weighted(options):
        return Scale()
    if labels.mode == "multilabel":
        return Refusal("it lays class weights along the width of the image instead of the channels")
    if labels.mode == "multiclass" and options.get("normalize") == "numel":
        return Refusal("with class weights it divides by their sum, so give normalize: weights")
    return Scale()


def _negative(_options: Options, _labels: Labels) -> Scale | Refusal:
    return Scale(1.0, -1.0)


NO_CLASS_IGNORED = "with overlapping classes its ignore_index also leaves out the pixels of no class; leave `like` out"
MONAI_REGION = {"per": "image", "empty": "keep"}
SMP_REGION = {"per": "batch", "empty": "zero", "eps": 0.0}
KORNIA_REGION = {"per": "image", "empty": "present", "eps": [0.0, 1e-8]}
LOVASZ_OF_BATCH = {"per": "batch", "classes": "present", "mode": "exact"}
LOVASZ_OF_IMAGES = {"per": "image", "classes": "all", "mode": "exact"}
HINGE_OF_BATCH = {"per": "batch", "classes": "all", "mode": "exact"}

SOFTMAX = Refusal("it takes a softmax, for classes that exclude each other")
SOFTMAX_ONLY = {"binary": SOFTMAX, "multilabel": SOFTMAX}
ONE_SET = {"multilabel": Refusal("it puts the pixels of all channels into one set")}

EVERY_MODE = ("multiclass", "binary", "multilabel")
MONAI_WEIGHT_NOTE = (
    "class_weights are its weight (with background: false it wants one for each other class); power: 2 is its "
    "squared_pred"
)
MONAI_NOTE = (
    "per: batch is its batch; soft targets are as with its soft_label=True; an image that is ignored "
    "altogether counts as 0 in its mean; refused for overlapping classes with an ignore_index, where its own also "
    "leaves out the pixels of no class"
)
KORNIA_NOTE = "two spatial axes only; an image that is ignored altogether counts as 1 in its mean"

PRESETS: dict[str, dict[str, Preset | Refusal]] = {
    "torch": {
        "cross_entropy": Preset(
            "F.cross_entropy or F.binary_cross_entropy_with_logits",
            {"normalize": "weights"},
            _weighted_over_pixels,
            note="all ignored is 0 here and NaN there; with one-hot targets it divides by all pixels, which is "
            "normalize: numel; pos_weight=w is class_weights: [1, w] in mode binary",
        ),
        "focal": Preset(
            "torchvision.ops.sigmoid_focal_loss(reduction='mean')",
            {"activation": "sigmoid", "alpha": 0.25, "gamma": 2.0, "normalize": "valid"},
            note="its alpha=-1 is alpha: null; it knows no class_weights",
            unweighted=EVERY_MODE,
        ),
    },
    "monai": {
        "cross_entropy": Preset(
            "the cross-entropy of monai.losses.DiceCELoss",
            {"normalize": "weights"},
            _weighted_over_pixels,
            {"multilabel": Refusal("it takes a softmax over classes that overlap")},
            "with one-hot targets it divides by all pixels: normalize: numel",
        ),
        "dice": Preset(
            "monai.losses.DiceLoss",
            {**MONAI_REGION, "eps": 1e-5},
            _monai_region,
            note=f"{MONAI_WEIGHT_NOTE}; {MONAI_NOTE}",
        ),
        "jaccard": Preset(
            "monai.losses.DiceLoss(jaccard=True)",
            {**MONAI_REGION, "eps": 0.5e-5},
            _monai_region,
            note=f"smooth_nr=smooth_dr=s is eps: s / 2; {MONAI_WEIGHT_NOTE}; {MONAI_NOTE}",
        ),
        "tversky": Preset(
            "monai.losses.TverskyLoss",
            {**MONAI_REGION, "eps": 1e-5, "alpha": 0.5, "beta": 0.5},
            _monai_region,
            note=f"it knows no class_weights; {MONAI_NOTE}",
            unweighted=EVERY_MODE,
        ),
        "focal_tversky": Refusal(
            "its AsymmetricFocalTverskyLoss takes the power of one of two classes only, and the values as "
            "probabilities without a softmax or sigmoid"
        ),
        "generalized_dice": Preset(
            "monai.losses.GeneralizedDiceLoss",
            {"per": "image", "weight_by": "square", "absent": "max", "relative": False, "eps": 1e-5},
            note="an image without any of the classes counts as 0 in its mean, here not at all; it ignores nothing",
        ),
        "focal": Preset(
            "monai.losses.FocalLoss",
            {"activation": "sigmoid", "gamma": 2.0, "normalize": "valid"},
            _monai_focal,
            note="use_softmax=True is activation: softmax, where a single alpha sets class 0 against the others; with "
            "an "
            "ignore_index it is larger by the number of channels than without, as it is here; refused for overlapping "
            "classes with one, where its own also leaves out the pixels of no class",
        ),
    },
    "smp": {
        "cross_entropy": Preset(
            "smp.losses.SoftCrossEntropyLoss or SoftBCEWithLogitsLoss",
            {"normalize": "numel"},
            note="ignored pixels count in the mean; smooth_factor=s is label_smoothing: s, and 2 s where channels "
            "stand alone; pos_weight=w is class_weights: [1, w] in mode binary; it knows none in multiclass",
            unweighted=("multiclass",),
        ),
        "dice": Preset("smp.losses.DiceLoss", SMP_REGION, note="smooth=s is eps: 2 s"),
        "jaccard": Preset("smp.losses.JaccardLoss", SMP_REGION, note="smooth=s is eps: s"),
        "tversky": Preset(
            "smp.losses.TverskyLoss", {**SMP_REGION, "alpha": 0.5, "beta": 0.5}, note="smooth=s is eps: s"
        ),
        "focal_tversky": Preset(
            "smp.losses.TverskyLoss(gamma=0.75)",
            {**SMP_REGION, "alpha": 0.5, "beta": 0.5, "gamma": 0.75, "of": "mean"},
            note="smooth=s is eps: s; for gamma below 1 its gradient is NaN where the loss is 0",
        ),
        "focal": Preset(
            "smp.losses.FocalLoss",
            {"activation": "sigmoid", "gamma": 2.0, "normalize": "weights"},
            note="one against the rest for each class, in multiclass too; all ignored is 0 here and NaN there; in "
            "multilabel it fails with ignored pixels",
        ),
        "lovasz_softmax": Preset(
            "smp.losses.LovaszLoss('multiclass')",
            LOVASZ_OF_BATCH,
            not_for={
                "binary": Refusal("it takes the hinge of the logits there; use lovasz_hinge"),
                "multilabel": Refusal("it takes the hinge of the logits there, with all channels in one set"),
            },
            note="its gradient loses digits with the number of pixels; all ignored is 0 here and fails there",
        ),
        "lovasz_hinge": Preset(
            "smp.losses.LovaszLoss('binary')",
            HINGE_OF_BATCH,
            not_for=ONE_SET,
            note="its gradient loses digits with the number of pixels",
        ),
    },
    "kornia": {
        "dice": Preset(
            "kornia.losses.dice_loss(average='macro')",
            KORNIA_REGION,
            not_for=SOFTMAX_ONLY,
            note="class_weights are its weight; its default average='micro' is no Dice: it is the mean of 1 - p over "
            f"the pixels of an image, p being the probability of the truth; {KORNIA_NOTE}",
        ),
        "tversky": Preset(
            "kornia.losses.tversky_loss(alpha=0.5, beta=0.5)",
            {**KORNIA_REGION, "alpha": 0.5, "beta": 0.5},
            not_for=SOFTMAX_ONLY,
            note=f"it knows no class_weights; {KORNIA_NOTE}",
            unweighted=EVERY_MODE,
        ),
        "focal": Preset(
            "kornia.losses.focal_loss or binary_focal_loss_with_logits, alpha=None, reduction='mean'",
            {"activation": "softmax", "gamma": 2.0, "normalize": "numel"},
            _softmax_over_classes,
            note="ignored pixels count in the mean; with a softmax alpha sets class 0 against the others",
        ),
        "lovasz_softmax": Preset("kornia.losses.lovasz_softmax_loss", LOVASZ_OF_IMAGES, not_for=SOFTMAX_ONLY),
        "lovasz_hinge": Preset(
            "kornia.losses.lovasz_hinge_loss",
            LOVASZ_OF_IMAGES,
            not_for={"multilabel": Refusal("it takes one channel")},
        ),
    },
    "nnunet": {
        "cross_entropy": Preset(
            "nnU-Net's RobustCrossEntropyLoss, or the BCEWithLogitsLoss of DC_and_BCE_loss for regions",
            {"normalize": "weights"},
            _nnunet_cross_entropy,
            note="with an ignore label that of regions is larger by their number than without, as it is here",
        ),
        "topk_cross_entropy": Preset(
            "nnU-Net's TopKLoss(k=10)",
            {"share": 0.1, "rounding": "down"},
            _nnunet_topk,
            SOFTMAX_ONLY,
            "refused with an ignore_index: its share is of all pixels, the ignored ones too",
        ),
        "dice": Preset(
            "nnU-Net's MemoryEfficientSoftDiceLoss(do_bg=False, smooth=1e-5)",
            {"per": "image", "empty": "keep", "eps": 1e-5, "background": False},
            _negative,
            note="its value is that here less 1; batch_dice=True, which its 2D plans have, is per: batch; for regions "
            "(binary, multilabel) it is do_bg=True; an image that is ignored altogether counts as -1 in its mean; it "
            "knows no class_weights",
            unweighted=EVERY_MODE,
        ),
    },
    "mmseg": {
        "cross_entropy": Preset(
            "mmseg's CrossEntropyLoss, with use_sigmoid=True where channels stand alone",
            {"normalize": "numel"},
            _mmseg_cross_entropy,
            note="avg_non_ignore=True is normalize: valid; class_weight=[w] is class_weights: [1, w] in mode binary; "
            "with class weights it fails where pixels are ignored",
        ),
        "topk_cross_entropy": Refusal(
            "its OhemCrossEntropy takes all pixels below a probability, and no share of them"
        ),
        "dice": Refusal(
            "its DiceLoss puts all channels of an image into one sum, so that a frequent class hides the others, and "
            "takes a sigmoid of exclusive classes by default; use like: monai or leave `like` out"
        ),
        "tversky": Preset(
            "mmseg's TverskyLoss",
            {"per": "image", "empty": "keep", "eps": 1.0, "alpha": 0.3, "beta": 0.7},
            _weights_over_classes,
            SOFTMAX_ONLY,
            "smooth=s is eps: s; an image that is ignored altogether counts as 0 in its mean",
        ),
        "focal": Preset(
            "mmseg's FocalLoss",
            {"activation": "sigmoid", "gamma": 2.0, "alpha": 0.5, "normalize": "numel"},
            not_for={"multilabel": Refusal("on a GPU it keeps one of the classes that overlap in a pixel")},
            note="ignored pixels count in the mean; on a CPU it fails for class numbers",
        ),
        "lovasz_softmax": Preset(
            "mmseg's LovaszLoss(reduction='none')",
            LOVASZ_OF_BATCH,
            not_for=SOFTMAX_ONLY,
            note="its gradient loses digits with the number of pixels",
        ),
        "lovasz_hinge": Preset(
            "mmseg's LovaszLoss('binary', reduction='none')",
            HINGE_OF_BATCH,
            not_for=ONE_SET,
            note="its gradient loses digits with the number of pixels",
        ),
    },
}


def preset(library: str, loss: str) -> Preset:
    """The entry of the table. Raises ValueError for an unknown library and for losses that it has not or has wrong."""
    if not isinstance(library, str) or library not in PRESETS:
        raise ValueError(f"expected like as one of {', '.join(LIBRARIES)}, got {library!r}")
    found = PRESETS[library].get(loss, Refusal("it has no such loss; leave `like` out"))
    if isinstance(found, Refusal):
        raise ValueError(f"like: {library} is not possible for {loss}: {found.reason}")
    return found
