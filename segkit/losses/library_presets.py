"""`like: library` on a term: the options, and if needed a factor, with which a loss equals that of another library.

Tested against torch 2.14, torchvision 0.29, MONAI 1.6, segmentation-models-pytorch (smp) 0.6 and kornia 0.9, against
the definitions of nnU-Net v2 and mmsegmentation 1.2, and against the older versions in `library_versions`. Options that
the user sets override those of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from segkit.labels import Labels
from segkit.losses.weighted_sum import Scale
from segkit.utils.text import shown

Library = Literal["torch", "monai", "smp", "kornia", "nnunet", "mmseg"]
LIBRARIES: tuple[str, ...] = get_args(Library)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """The reason why no options make a loss equal to that of a library."""

    reason: str


def _unscaled(_options: Options, _labels: Labels) -> Scale | Refusal:
    return Scale()


@dataclass(frozen=True)
class Preset:
    """The settings that make a loss equal to that of a library.

    counterpart: the name of the loss in the library. options: the options of segkit's loss.
    rescale: a function of the complete options and the labels that returns factor and offset, or a refusal.
    not_for: the modes in which the library does not have the loss or implements it incorrectly, with the reason.
    note: remaining differences and equivalent options.
    forms: other calls of the library, each with the options that are equal to it beside `like`.
    unweighted: the modes in which the library's loss does not support class weights.
    """

    counterpart: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rescale: Callable[[Options, Labels], Scale | Refusal] = _unscaled
    not_for: Mapping[str, Refusal] = field(default_factory=dict)
    note: str = ""
    forms: Mapping[str, Options] = field(default_factory=dict)
    unweighted: tuple[str, ...] = ()

    def scale(self, options: Options, labels: Labels) -> Scale:
        """Factor and offset for the complete options. Raises ValueError if no options give the library's loss."""
        scale = self.not_for[labels.mode] if labels.mode in self.not_for else self.rescale(options, labels)
        if labels.mode in self.unweighted and _is_weighted(options):
            scale = Refusal("it does not support class_weights; leave them or `like` out")
        if isinstance(scale, Refusal):
            raise ValueError(f"like {self.counterpart} is not possible in mode {labels.mode}: {scale.reason}")
        return scale


def _is_weighted(options: Options) -> bool:
    return options.get("class_weights") not in (None, "none")


def _weights_over_classes(options: Options, labels: Labels) -> Scale | Refusal:
    """For a library that divides the weighted sum over classes by their number instead of by the sum of the weights."""
    weights = options.get("class_weights")
    if not _is_weighted(options):
        return Scale()
    if not isinstance(weights, (list, tuple)):
        return Refusal(
            "it does not divide by the sum of the weights, so a method is not possible; give class_weights as a list"
        )
    if len(weights) != labels.channels or not all(isinstance(weight, (int, float)) for weight in weights):
        return Scale()  # the loss itself raises the error
    counted = weights if options.get("background", True) else [weights[channel] for channel in labels.foreground]
    return Scale(sum(counted) / max(1, len(counted)))


def _takes_softmax(options: Options, labels: Labels) -> bool:
    return labels.mode == "multiclass" and options.get("activation") != "sigmoid"


def _softmax_over_classes(options: Options, labels: Labels) -> Scale | Refusal:
    """For a focal loss that with a softmax also averages over the channels, although all but one of them are 0."""
    return Scale(1 / labels.channels if _takes_softmax(options, labels) else 1.0)


def _monai_focal(options: Options, labels: Labels) -> Scale | Refusal:
    if isinstance(options.get("alpha"), (list, tuple)) and not _takes_softmax(options, labels):
        return Refusal("with a list of alpha, its factor for the absence of a class is 1 instead of 1 - alpha")
    if labels.ignore_index is None:
        return _softmax_over_classes(options, labels)
    if labels.mode == "multilabel":
        return Refusal(NO_CLASS_IGNORED)
    # with an ignore_index it divides the sum over channels by the number of pixels instead of by pixels times channels
    return Scale(1.0 if _takes_softmax(options, labels) else labels.channels)


def _monai_region(options: Options, labels: Labels) -> Scale | Refusal:
    if labels.mode == "multilabel" and labels.ignore_index is not None:
        return Refusal(NO_CLASS_IGNORED)
    return _weights_over_classes(options, labels)


def _nnunet_cross_entropy(options: Options, labels: Labels) -> Scale | Refusal:
    weighted = _weighted_over_pixels(options, labels)
    if weighted == Scale() and labels.mode == "multilabel" and labels.ignore_index is not None:
        return Scale(labels.channels)  # with an ignore label it divides by pixels, not entries
    return weighted


def _nnunet_topk(_options: Options, labels: Labels) -> Scale | Refusal:
    if labels.ignore_index is not None:
        return Refusal("its share is of all pixels, including the ignored ones, which it treats as pixels with loss 0")
    return Scale()


def _weighted_over_pixels(options: Options, labels: Labels) -> Scale | Refusal:
    """For a library that divides a weighted sum by the weights with a softmax, but by the pixels with a sigmoid."""
    if labels.mode != "multiclass" and _is_weighted(options) and options.get("normalize") == "weights":
        return Refusal("it divides binary cross-entropies by the number of pixels; set normalize: valid")
    return Scale()


def _mmseg_cross_entropy(options: Options, labels: Labels) -> Scale | Refusal:
    if not _is_weighted(options):
        return Scale()
    if labels.mode == "multilabel":
        return Refusal("it applies class weights along the width of the image instead of the channels")
    if labels.mode == "multiclass" and options.get("normalize") == "numel":
        return Refusal("with class weights it divides by their sum; set normalize: weights")
    return Scale()


def _mmseg_dice(_options: Options, labels: Labels) -> Scale | Refusal:
    if labels.ignore_index is not None:
        return Refusal(
            "it counts what is predicted at ignored pixels; to leave them out, replace `like` by its options "
            "per: image, empty: keep, average: micro, activation: sigmoid, power: 2, eps: [0.0, 0.002]"
        )
    return Scale()


def _negative(_options: Options, _labels: Labels) -> Scale | Refusal:
    return Scale(1.0, -1.0)


NO_CLASS_IGNORED = "with overlapping classes its ignore_index also excludes pixels without any class; leave `like` out"
MONAI_REGION = {"per": "image", "empty": "keep"}
SMP_REGION = {"per": "batch", "empty": "zero", "eps": 0.0}
KORNIA_REGION = {"per": "image", "empty": "present", "eps": [0.0, 1e-8]}
MMSEG_DICE = {"per": "image", "empty": "keep", "average": "micro"}
SIGMOID = {"activation": "sigmoid"}
LOVASZ_OF_BATCH = {"per": "batch", "classes": "present", "mode": "exact"}
LOVASZ_OF_IMAGES = {"per": "image", "classes": "all", "mode": "exact"}
HINGE_OF_BATCH = {"per": "batch", "classes": "all", "mode": "exact"}

SOFTMAX = Refusal("it applies a softmax, which is for mutually exclusive classes")
SOFTMAX_ONLY = {"binary": SOFTMAX, "multilabel": SOFTMAX}
ONE_SET = {"multilabel": Refusal("it pools the pixels of all channels into one set")}

EVERY_MODE = ("multiclass", "binary", "multilabel")
MONAI_WEIGHT_NOTE = (
    "class_weights is its weight (with background: false it takes one weight for each remaining class); power: 2 is "
    "its squared_pred"
)
MONAI_NOTE = (
    "per: batch is its batch; soft targets correspond to its soft_label=True; it counts an entirely ignored image as 0 "
    "in the mean; refused for overlapping classes with an ignore_index, where it also excludes pixels without any class"
)
KORNIA_NOTE = "2D only; it counts an entirely ignored image as 1 in the mean"

PRESETS: dict[str, dict[str, Preset | Refusal]] = {
    "torch": {
        "cross_entropy": Preset(
            "F.cross_entropy or F.binary_cross_entropy_with_logits",
            {"normalize": "weights"},
            _weighted_over_pixels,
            note="if all pixels are ignored, it returns NaN, segkit 0; with one-hot targets it divides by all pixels, "
            "which is normalize: numel; pos_weight=w is positive_weights: w",
        ),
        "focal": Preset(
            "torchvision.ops.sigmoid_focal_loss(reduction='mean')",
            {"activation": "sigmoid", "alpha": 0.25, "gamma": 2.0, "normalize": "valid"},
            note="its alpha=-1 is alpha: null; it does not support class_weights",
            unweighted=EVERY_MODE,
        ),
    },
    "monai": {
        "cross_entropy": Preset(
            "the cross-entropy of monai.losses.DiceCELoss",
            {"normalize": "weights"},
            _weighted_over_pixels,
            {"multilabel": Refusal("it applies a softmax to classes that overlap")},
            "with one-hot targets it divides by all pixels, which is normalize: numel",
        ),
        "dice": Preset(
            "monai.losses.DiceLoss",
            {**MONAI_REGION, "eps": 1e-5},
            _monai_region,
            note=f"{MONAI_WEIGHT_NOTE}; {MONAI_NOTE}",
            forms={"monai.losses.DiceLoss(sigmoid=True)": SIGMOID},
        ),
        "jaccard": Preset(
            "monai.losses.DiceLoss(jaccard=True)",
            {**MONAI_REGION, "eps": 0.5e-5},
            _monai_region,
            note=f"smooth_nr=smooth_dr=s is eps: s / 2; {MONAI_WEIGHT_NOTE}; {MONAI_NOTE}",
            forms={"monai.losses.DiceLoss(jaccard=True, sigmoid=True)": SIGMOID},
        ),
        "tversky": Preset(
            "monai.losses.TverskyLoss",
            {**MONAI_REGION, "eps": 1e-5, "alpha": 0.5, "beta": 0.5},
            _monai_region,
            note=f"it does not support class_weights; {MONAI_NOTE}",
            forms={"monai.losses.TverskyLoss(sigmoid=True)": SIGMOID},
            unweighted=EVERY_MODE,
        ),
        "mcc": Refusal(
            "its MCCLoss adds 1e-5 to the product of the four sums instead of eps to each count; for classes that are "
            "present it is per: image with a small eps such as 1e-12"
        ),
        "unified_focal": Refusal(
            "its AsymmetricUnifiedFocalLoss applies neither softmax nor sigmoid, averages the focal part over two "
            "channels as well, which halves it, and gives `weight` to that part instead of the Tversky part"
        ),
        "focal_tversky": Refusal(
            "its AsymmetricFocalTverskyLoss takes the power of only one of two classes, and applies neither softmax "
            "nor sigmoid"
        ),
        "generalized_dice": Preset(
            "monai.losses.GeneralizedDiceLoss",
            {"per": "image", "weight_by": "square", "absent": "max", "relative": False, "eps": 1e-5},
            note="it counts an image without any class as 0 in the mean, segkit leaves it out; it has no ignore value",
            forms={"monai.losses.GeneralizedDiceLoss(sigmoid=True)": SIGMOID},
        ),
        "boundary": Preset(
            "monai.losses.BoundaryLoss",
            {"distance": "mm", "offset": False, "per": "image", "empty": "keep", "background": True},
            note="include_background=False is background: false; it has neither ignore value nor spacing",
            unweighted=EVERY_MODE,
        ),
        "hausdorff": Preset(
            "monai.losses.HausdorffDTLoss",
            {"distance": "mm", "one_sided": False, "alpha": 2.0, "per": "image", "empty": "keep"},
            note="LogHausdorffDTLoss is log: true; include_background=True is background: true; it has neither ignore "
            "value nor spacing",
            forms={"monai.losses.LogHausdorffDTLoss": {"log": True}},
            unweighted=EVERY_MODE,
        ),
        "focal": Preset(
            "monai.losses.FocalLoss",
            {"activation": "sigmoid", "gamma": 2.0, "normalize": "valid"},
            _monai_focal,
            note="use_softmax=True is activation: softmax, where a single alpha weighs class 0 against the others; an "
            "ignore_index multiplies it by the number of channels, which `like` reproduces; refused for overlapping "
            "classes with an ignore_index, where it also excludes pixels without any class",
        ),
    },
    "smp": {
        "cross_entropy": Preset(
            "smp.losses.SoftCrossEntropyLoss or SoftBCEWithLogitsLoss",
            {"normalize": "numel"},
            note="its mean includes ignored pixels; smooth_factor=s is label_smoothing: s, and 2 s in binary and "
            "multilabel mode; pos_weight=w is positive_weights: w; it does not support class_weights in multiclass "
            "mode",
            unweighted=("multiclass",),
        ),
        "dice": Preset("smp.losses.DiceLoss", SMP_REGION, note="smooth=s is eps: 2 s, before 0.4 eps: s"),
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
            note="one binary problem per class, in multiclass mode too, where it adds up the classes before 0.6, which "
            "is the number of classes as weight; if all pixels are ignored, it returns NaN, segkit 0; in multilabel "
            "mode it fails with ignored pixels",
        ),
        "lovasz_softmax": Preset(
            "smp.losses.LovaszLoss('multiclass')",
            LOVASZ_OF_BATCH,
            not_for={
                "binary": Refusal("it uses the hinge of the logits in this mode; use lovasz_hinge"),
                "multilabel": Refusal("it uses the hinge of the logits in this mode, with all channels in one set"),
            },
            note="its gradient loses digits as the number of pixels grows; if all pixels are ignored, it fails, segkit "
            "returns 0",
        ),
        "lovasz_hinge": Preset(
            "smp.losses.LovaszLoss('binary')",
            HINGE_OF_BATCH,
            not_for=ONE_SET,
            note="its gradient loses digits as the number of pixels grows",
        ),
        "mcc": Preset(
            "smp.losses.MCCLoss",
            {"eps": 1e-5, "empty": "keep"},
            not_for={mode: Refusal("it supports binary mode only") for mode in ("multiclass", "multilabel")},
            note="it takes probabilities, and does not support ignored pixels",
        ),
    },
    "kornia": {
        "dice": Preset(
            "kornia.losses.dice_loss(average='macro')",
            KORNIA_REGION,
            not_for=SOFTMAX_ONLY,
            note=f"class_weights is its weight; {KORNIA_NOTE}; before 0.9 it adds 1e-6 to the masks, which changes the "
            "sixth digit, and counts absent classes (empty: keep)",
            forms={"kornia.losses.dice_loss(average='micro'), its default": {"average": "micro"}},
        ),
        "tversky": Preset(
            "kornia.losses.tversky_loss(alpha=0.5, beta=0.5)",
            {**KORNIA_REGION, "alpha": 0.5, "beta": 0.5},
            not_for=SOFTMAX_ONLY,
            note=f"it does not support class_weights; {KORNIA_NOTE}; before 0.9 it is average: micro, but for the "
            "sixth digit",
            unweighted=EVERY_MODE,
        ),
        "focal": Preset(
            "kornia.losses.focal_loss or binary_focal_loss_with_logits, alpha=None, reduction='mean'",
            {"activation": "softmax", "gamma": 2.0, "normalize": "numel"},
            _softmax_over_classes,
            note="its mean includes ignored pixels; with a softmax, alpha weighs class 0 against the others, and "
            "before 0.9 it adds 1e-6 to the masks, which changes the sixth digit",
        ),
        "lovasz_softmax": Preset(
            "kornia.losses.lovasz_softmax_loss",
            LOVASZ_OF_IMAGES,
            not_for=SOFTMAX_ONLY,
            note="before 0.9 it takes the number of a class for its presence",
        ),
        "lovasz_hinge": Preset(
            "kornia.losses.lovasz_hinge_loss",
            LOVASZ_OF_IMAGES,
            not_for={"multilabel": Refusal("it supports one channel only")},
        ),
    },
    "nnunet": {
        "cross_entropy": Preset(
            "nnU-Net's RobustCrossEntropyLoss, or the BCEWithLogitsLoss of DC_and_BCE_loss for regions",
            {"normalize": "weights"},
            _nnunet_cross_entropy,
            note="for regions, an ignore label multiplies it by the number of regions, which `like` reproduces",
        ),
        "topk_cross_entropy": Preset(
            "nnU-Net's TopKLoss(k=10)",
            {"share": 0.1, "rounding": "down"},
            _nnunet_topk,
            SOFTMAX_ONLY,
            "refused with an ignore_index, since its share is of all pixels, including the ignored ones",
        ),
        "dice": Preset(
            "nnU-Net's MemoryEfficientSoftDiceLoss(do_bg=False, smooth=1e-5)",
            {"per": "image", "empty": "keep", "eps": 1e-5, "background": False},
            _negative,
            note="its value is that of segkit's dice minus 1, which `like` reproduces; batch_dice=True, the default of "
            "its 2D plans, is per: batch; for regions (binary, multilabel) it is do_bg=True; it counts an entirely "
            "ignored image as -1 in the mean; it does not support class_weights; smooth=s is eps: s; with smooth=0 the "
            "denominator is at least 1e-8 instead of having 1e-8 added",
            forms={"MemoryEfficientSoftDiceLoss(smooth=0) of nnUNetTrainerDiceCELoss_noSmooth": {"eps": [0.0, 1e-8]}},
            unweighted=EVERY_MODE,
        ),
    },
    "mmseg": {
        "cross_entropy": Preset(
            "mmseg's CrossEntropyLoss, with use_sigmoid=True in binary and multilabel mode",
            {"normalize": "numel"},
            _mmseg_cross_entropy,
            note="avg_non_ignore=True is normalize: valid; class_weight=[w] is class_weights: [1, w] in binary mode; "
            "with class weights it fails if pixels are ignored, in 1.2.0 and 1.2.1 always; before, normalize: numel is "
            "equal to it, without `like`",
        ),
        "topk_cross_entropy": Refusal(
            "its OhemCrossEntropy selects all pixels below a probability, not a share of the pixels; see "
            "ohem_cross_entropy"
        ),
        "ohem_cross_entropy": Refusal(
            "if no more than min_kept pixels are valid, its OhemCrossEntropy leaves out the one with the largest "
            "probability; otherwise it is threshold: 0.7, min_share: 0, min_pixels: 100000"
        ),
        "dice": Preset(
            "mmseg's DiceLoss",
            {**MMSEG_DICE, "activation": "sigmoid", "power": 2, "eps": [0.0, 0.002]},
            _mmseg_dice,
            note="it sums over all channels of an image, so that a frequent class hides the others; eps=e is eps: "
            "[0.0, 2 e]; ignore_index=0 is background: false; refused with an ignore_index, since it counts what is "
            "predicted at ignored pixels; in binary mode its masks need a channel, [B, 1, H, W], without which it "
            "takes the negative class for the positive one; it does not support class_weights; before 1.1 it is the "
            "mean over classes: average: macro, activation: softmax, power: 2, eps: 1.0",
            forms={
                "mmseg's DiceLoss(naive_dice=True)": {"power": 1, "eps": 0.001},
                "mmseg's DiceLoss(use_sigmoid=False)": {"activation": "softmax"},
            },
            unweighted=EVERY_MODE,
        ),
        "tversky": Preset(
            "mmseg's TverskyLoss",
            {"per": "image", "empty": "keep", "eps": 1.0, "alpha": 0.3, "beta": 0.7},
            _weights_over_classes,
            SOFTMAX_ONLY,
            "smooth=s is eps: s; it counts an entirely ignored image as 0 in the mean",
        ),
        "focal": Preset(
            "mmseg's FocalLoss",
            {"activation": "sigmoid", "gamma": 2.0, "alpha": 0.5, "normalize": "numel"},
            not_for={"multilabel": Refusal("on a GPU it keeps only one of the classes that overlap at a pixel")},
            note="its mean includes ignored pixels; on a CPU it fails for class numbers and ignores none",
        ),
        "lovasz_softmax": Preset(
            "mmseg's LovaszLoss(reduction='none')",
            LOVASZ_OF_BATCH,
            not_for=SOFTMAX_ONLY,
            note="its gradient loses digits as the number of pixels grows",
        ),
        "lovasz_hinge": Preset(
            "mmseg's LovaszLoss('binary', reduction='none')",
            HINGE_OF_BATCH,
            not_for=ONE_SET,
            note="its gradient loses digits as the number of pixels grows",
        ),
    },
}


def preset(library: str, loss: str) -> Preset:
    """The entry of the table.

    Raises ValueError for an unknown library, and for a loss that the library does not have or implements incorrectly.
    """
    if not isinstance(library, str) or library not in PRESETS:
        raise ValueError(f"expected like as one of {', '.join(LIBRARIES)}, got {shown(library)}")
    entry = PRESETS[library].get(loss, Refusal("it has no such loss; leave `like` out"))
    if isinstance(entry, Refusal):
        raise ValueError(f"like: {library} is not possible for {loss}: {entry.reason}")
    return entry
