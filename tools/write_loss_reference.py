"""Writes docs/reference/losses.md from the code (formulas, options, presets) and the prose in this file.

python tools/write_loss_reference.py
"""

# ruff: noqa: E501 (lines of the page)

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import torch

from segkit import Labels
from segkit.losses import LOSSES, RECIPES, build_loss
from segkit.losses.build import INJECTED
from segkit.losses.class_weights import ClassWeights, equal_class_counts
from segkit.losses.library_presets import PRESETS, Preset
from segkit.losses.library_versions import SINCE, in_words
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES
from segkit.utils.signatures import describe

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "losses.md"

# When to use each loss, and its behaviour with several processes.
WHEN = {
    "cross_entropy": "The first choice, alone or together with a region loss: smooth, calibrated and easy to use. For rare classes, "
    "combine it with a region loss; `class_weights` raise their recall and cost Dice ([14 points on hippocampus](../results.md#artefacts)).",
    "poly_cross_entropy": "When the cross-entropy already works well and slightly more weight on confident pixels is wanted; "
    "otherwise it behaves like the cross-entropy.",
    "topk_cross_entropy": "For large images in which most pixels are easy, alone or together with `dice` (`dice_topk`). Wrongly "
    "labelled pixels count as hard pixels too. Not where a network errs on a large part of the `share`, since doubting every pixel then "
    "costs less than deciding: on vessels, `dice_topk` stayed at probabilities of one half ([Results](../results.md#chase_db1-300-steps)), and on membranes it was 12 points below `dice_ce`.",
    "ohem_cross_entropy": "Like `topk_cross_entropy`, but the number of pixels follows the state of the network: all pixels below the "
    "threshold while it is poor, and only the minimum once it is good. PIDNet uses it for street scenes.",
    "margin_label_smoothing": "For better calibrated probabilities than those of the cross-entropy: it limits how far the logits move apart "
    "instead of moving all of them together, as label smoothing does. In units of logits, so choose `margin` below the distances that the "
    "network reaches.",
    "focal": "For many easy pixels of one class. It reduces their weight gradually, whereas top-k leaves them out.",
    "dice": "When the score is Dice and the foreground is small. Its probabilities are overconfident, less so with "
    "`dice_ce`.",
    "jaccard": "When the score is IoU. For hard targets it ranks predictions for a class in the same order as `dice`.",
    "tversky": "When false positives and false negatives have different costs: raise `beta` for recall, `alpha` for precision.",
    "focal_tversky": "Like `tversky`, with more weight on classes that are nearly right (gamma below 1) or far from it (above 1).",
    "generalized_dice": "For a few classes of different size that are all present. On street scenes with eleven classes, of which the largest has 195 times the pixels of the smallest, it failed in short trainings ([Results](../results.md#camvid-300-steps)). If classes are often absent, use `dice`.",
    "log_cosh_dice": "Like `dice`, with less weight on classes that are nearly right, like `focal_tversky` with gamma 2. Its values are small (at most "
    "0.434 per class), so weigh it against other terms.",
    "dice_semimetric": "For soft labels, such as several annotators, soft labels of a teacher or label smoothing, when the score is Dice. For "
    "hard labels use `dice`, which it then equals.",
    "jaccard_metric": "For soft labels, such as several annotators, soft labels of a teacher or label smoothing, when the score is IoU. For hard "
    "labels use `jaccard`, which it then equals.",
    "mcc": "When correctly excluded pixels should count as well: unlike Dice, it is symmetric in foreground and background, so a class that covers "
    "most of the image is not nearly right from the start.",
    "unified_focal": "For a rare foreground, instead of the sum of a Tversky and a focal loss: one `delta` and one `gamma` for both. "
    "Start from the defaults, and raise `delta` for recall.",
    "exponential_log": "For many classes of very different sizes: the logarithm raises the gradient of classes with little overlap. With gamma below 1, "
    "pixels that are nearly right keep a large weight, so the loss is sensitive to wrong labels.",
    "lovasz_softmax": "To raise IoU after or together with the cross-entropy (`ce_then_lovasz`, `ce_lovasz`). Alone and from the "
    "start it is reported to train poorly; on hippocampus and membranes it had the highest mean of thirteen losses, on street scenes the fifth (by another rule about frames without a class, the eleventh), on vessels the sixth ([Results](../results.md)).",
    "lovasz_hinge": "Like `lovasz_softmax` for binary and overlapping classes, with a margin instead of probabilities.",
    "boundary": "Beside a region loss, for a foreground that is small and whose false positives lie far away: `dice_ce_boundary` raises its "
    "weight from 0 to 0.1 during the run; the authors raise it by 0.01 in every epoch. Alone it can be lowered by predicting nothing.",
    "hausdorff": "When large distances between boundaries matter more than overlap. Its values are squares of distances, so use `log: true` or a "
    "small weight beside another loss. The two-sided form computes distances on the host in every step.",
    "surface": "Like `hausdorff`, but relative to the largest possible error, so that its values lie in [0, 1] whatever the size of image and "
    "structure. Use it beside `dice_ce`.",
    "cldice": "For vessels, roads, nerves and other tubular structures whose connections matter, beside `dice_ce` (`dice_ce_cldice`). Every "
    "iteration costs time, see the benchmark; for structures that are not tubular it has no meaning.",
    "skeleton_recall": "For the same structures as `cldice`, without its cost in the training process: only the skeletons of the reference are "
    "needed, which the loader makes. It raises recall only, so use it beside `dice_ce` (`dice_ce_skeleton_recall`).",
    "component_dice": "For lesions of very different sizes, all of which should be found, beside `dice_ce` (`dice_ce_component_dice`). It tends "
    "to raise recall at the cost of false positives.",
    "border_cross_entropy": "For touching objects of one class that have to be separated, such as cells, whose number is read from the "
    "components of the mask.",
}
# What was reported of a loss, with the source.
REPORTED = {
    "boundary": "Kervadec et al. 2019 report up to 8 % higher Dice and up to 10 % lower Hausdorff distance than generalised Dice alone on stroke "
    "lesions and white matter hyperintensities, as the largest of their differences and without intervals in the abstract.",
    "hausdorff": "Karimi & Salcudean 2019 report Hausdorff distances lower by 18 to 45 % on four data sets of ultrasound, MR and CT, with Dice "
    "maintained; this range is over all their three losses.",
    "surface": "Celaya et al. 2023 report lower HD95 and surface distances with similar Dice on LiTS and BraTS with nnU-Net; the abstract gives no "
    "numbers.",
    "cldice": "Shit et al. 2021 report better connectivity and equal or better Dice on five public data sets; the abstract gives no numbers.",
    "skeleton_recall": "Kirchhoff et al. 2024 report better scores than clDice losses on five data sets with over 90 % less overhead. Arora et al. "
    "2025 ([arXiv 2508.11374](https://arxiv.org/abs/2508.11374)) found no gain over the usual losses on data sets of that study and others.",
    "component_dice": "Kofler et al. 2023 report 5 % higher F1 for MS lesions, 3 % for liver tumours and 2 % on average in microscopy, compared "
    "with Dice alone. For small cerebral lesions with nnU-Net, [arXiv 2511.17146](https://arxiv.org/abs/2511.17146) finds higher recall with "
    "slightly more false positives for a loss of regions (`of: region`) beside Dice and cross-entropy, which was generally better than the "
    "blob loss.",
    "border_cross_entropy": "Ronneberger et al. 2015 train the first U-Net with these weights, on ISBI 2012 among others; they report no result "
    "without them.",
    "unified_focal": "Yeung et al. 2022 compare it with six other losses on five data sets; the abstract names Dice of 0.948 (breast ultrasound, "
    "BUS2017), 0.800 (enhancing tumour, BraTS20) and 0.758 (kidney tumour, KiTS19) as the best results, without intervals.",
    "mcc": "Abhishek & Hamarneh 2021 report a mean Jaccard index 11.25, 4.87 and 0.76 % higher than with Dice on three data sets of skin lesions, "
    "without intervals in the abstract.",
    "dice_semimetric": "Wang et al. 2023 report higher Dice and better calibration with soft labels than with hard ones on QUBIQ, LiTS and KiTS; "
    "the abstract gives no numbers.",
    "exponential_log": "Wong et al. 2018 report a mean Dice of 0.82 for 20 brain structures, the smallest of which has 0.14 % of the size of the "
    "largest.",
}
GLOBAL, LOCAL = "whole batch", "each process alone"
PROCESSES = {
    **dict.fromkeys(LOSSES, GLOBAL),
    "topk_cross_entropy": LOCAL,
    "ohem_cross_entropy": LOCAL,
    "lovasz_softmax": "whole batch; `mode: exact` with `per: batch`: each process alone",
    "lovasz_hinge": "whole batch; `mode: exact` with `per: batch`: each process alone",
}
ADDS_UP = {
    **dict.fromkeys(LOSSES, "with `per: image`"),
    **dict.fromkeys(("cross_entropy", "poly_cross_entropy", "margin_label_smoothing", "focal"), "yes"),
    **dict.fromkeys(("topk_cross_entropy", "ohem_cross_entropy", "lovasz_softmax", "lovasz_hinge"), "no"),
    "border_cross_entropy": "yes; not with `normalize: weights`",
    "hausdorff": "with `per: image`, without `log`",
}
MODES = ("multiclass", "binary", "multilabel")

INTRODUCTION = """# Losses

*Generated from the code by `python tools/write_loss_reference.py`; a test checks that it is current.*

In YAML, a loss is a name, a mapping with options, or a list of terms whose weighted sum is taken.

```yaml
loss: dice_ce
loss: {name: dice, per: image}
loss:
  - {name: cross_entropy, class_weights: median_frequency}
  - {name: lovasz_softmax, weight: {name: linear, until: 0.5}}
  - {name: dice, like: monai, weight: 0.5}
```

Every loss takes **logits** `[B, K, *S]`, never probabilities, and integer masks `[B, *S]` of any width (or one-hot masks, or
soft targets where the loss supports them). Arithmetic is in at least float32, sums are in float64. Ignored pixels are
selected out in one place: logits there change neither value nor gradient, even if they are NaN. If all pixels are ignored,
value and gradient are 0.

At all other pixels, every finite logit gives a finite loss and gradient, up to the largest numbers of each type: the loss of
a pixel counts as at most 2^64 (2^512 in float64), while its gradient stays as it is. A logit of -inf is probability 0, and
under a sigmoid inf is probability 1. NaN, and under a softmax inf, makes loss or gradient NaN; training skips such a step.

The probability p is a softmax over the channels in multiclass mode, and a sigmoid of each channel in binary and multilabel
mode. Terms that need the same probabilities share one pass over the logits and one backward. Both process the batch in
chunks and keep only the logits, the mask and the memory of the gradient, so that pixel and region losses need at most two
logit sizes of extra memory, the gradient included; [some others](../explanation/losses.md#little-memory) need more ([measured](../benchmarks/losses.md)). Every loss is checked
in value and gradient against a few lines of plain torch in `tests/support/reference_losses.py`.

```python
from segkit import Labels
from segkit.losses import build_loss

labels = Labels(["background", "a", "b"], ignore_index=255)
loss = build_loss([{"name": "dice"}, {"name": "cross_entropy", "weight": 0.5}], labels)
loss(logits, mask)  # scalar
loss.terms(logits, mask)  # {"dice": ..., "cross_entropy": ...}, unweighted
loss(logits, mask, pixel_weight=weight)  # [B, *S]
loss(logits, mask, valid=seen)  # bool [B, *S]
build_loss("dice", labels)(logits, mask, valid=annotated)  # bool [B, K, *S] where not every class was annotated
build_loss("dice_ce", labels, reduction="none")(logits, mask)  # [B], the loss of each case
```

With `reduction="none"`, each entry is exactly the loss of the batch that consists of this case alone, for every loss. The
mean of the entries is the loss of the batch only for means over cases. It is not an option of a configuration, since training
needs a scalar; `group` and a normaliser, which concern the loss of a batch, are refused.

The picture of each loss shows its gradient for one made image in binary mode, whose prediction has typical errors: a cut in a
vessel, a lost part of the rim of a lesion, a missed small lesion, a bulge at a lesion, and a distant false positive. Training
lowers the logit where it is red and raises it where it is blue; pale pixels do not matter to the loss.

`valid` per class, [B, K, *S], or [B, K, 1, ...] for whole images, works for losses with separate sums for each class (the
column `valid [B, K]` below): all losses in binary and multilabel mode, and region and Lovász losses also with a softmax. A
cross-entropy with a softmax has one value per pixel, which cannot count for some classes only, so it raises an error.
"""

WEIGHTS = """## Class weights

`class_weights` is a list in the order of the classes (`[negative, positive]` in binary mode), the name of a method, or a
mapping with a method and options: `{method: median_frequency, cap: 10, mean_one: true}`. A method requires the class counts of
the training masks, which are computed once and kept in `cache/` beside the run folders. The resulting weights are printed as
a table and written to the run's `config.yaml` as numbers.

| method | weight of class c |
|---|---|
| `inverse` | N / (K n_c) |
| `sqrt_inverse` | its square root |
| `median_frequency` | median(q) / q_c, with q_c the share of c in the cases that contain it (Eigen & Fergus 2015) |
| `enet` | 1 / ln(1.02 + n_c / N) (Paszke et al. 2016) |
| `effective_number` | (1 - beta) / (1 - beta^m_c), m_c the images of c, or with `counts: components` its connected components; mean 1 (Cui et al. 2019) |

n_c is the number of pixels of class c, N that of all pixels. `cap` limits the weights; `mean_one` then divides them by their
mean. Effective numbers of pixels would be equal for all classes, so pixels are not offered for `counts`.
"""

SHARED = """## Options that several losses have

- `per: batch` pools the sums of all images before the ratio is taken, which is closest to a score over the whole data set.
  `per: image` averages over the counted classes of each image, then over images, which is closest to a score per case.
- `empty` is the treatment of a class that is absent from the reference: `present` leaves it out of the mean, `keep` treats it
  like any other class, `zero` counts it with loss 0. Libraries differ here, and so do their values.
- `eps` is one number or `[numerator, denominator]`. `background: false` leaves out the background class.
- `average: macro` is the mean of the classes' losses, in which every class counts alike. `micro` adds up the sums of all
  classes, times their class weights, and takes one loss from them, in which a class counts by its size; `empty` then concerns
  a batch or image without any class, and a class that is absent counts by what is predicted for it.
- `activation: sigmoid` makes each of several exclusive classes a binary problem, as MONAI's `sigmoid=True` and the default of
  mmsegmentation's Dice. The probabilities of a pixel then do not sum to 1.
- `classes` (Lovász) counts the classes in the reference of the batch or image (`present`), every class (`all`), or a list.
- `normalize` is the divisor of a sum over pixels: the sum of the class weights of the valid pixels (`weights`), their number
  (`valid`), or the number of all pixels (`numel`).
"""

SCHEDULES = """## Weights that change during a run

`weight` is a number or one of the following functions of the progress of the run, which goes from 0 to 1. They depend on the
step alone, so a resumed run continues with the correct weight.

| schedule | meaning |
|---|---|
"""

PROCESSES_TEXT = """## Several processes, and accumulated gradients

A loss that is built with `build_loss(..., group=...)` adds up its sums over the processes, so every process gets the loss of
the whole batch. DDP takes the mean of the processes' gradients, which is then the gradient of the whole batch, even if the
processes hold different numbers of valid pixels. `loss.normaliser(masks)`, passed to the calls for the micro-batches of one
step, makes their losses add up to the loss of one large batch where the table says so; other losses are averaged over the
micro-batches.

| loss | with several processes, the loss of | micro-batches add up |
|---|---|---|
"""

LIKE_TEXT = """## Coming from another library

`like: torch`, `monai`, `smp`, `kornia`, `nnunet` or `mmseg` on a term sets the options, and if needed a factor, such that value
and gradient equal those of that library. Options that you set override these. If a library lacks a loss or implements it
incorrectly, `like` is refused with the reason. Tested against the installed torch, torchvision, MONAI 1.6, smp 0.6 and
kornia 0.9, and against the definitions of nnU-Net v2 and mmsegmentation 1.2.

*Since* is the oldest version of the library for which the row was found to hold, and the oldest one for a mode, an option, or
with ignored pixels if that is another; torchvision's for `focal` of torch. [All versions that were
measured](library_versions.md). A row that begins with *also* is another call of the library, with the options to set beside
`like`.

| `like` | loss | in the library | options | since | notes |
|---|---|---|---|---|---|
"""

MAPS_TEXT = """## Maps of the mask

`boundary`, `hausdorff`, `surface`, `skeleton_recall`, `component_dice` and `border_cross_entropy` need more of a mask than its
classes: distances to boundaries, skeletons, components, or distances between objects. In a training, the workers of the loader
make these maps from each augmented mask, with the spacing of the image, so the training process does not wait for them; those
of whole images without augmentation are kept in memory with the case. In Python, `loss(logits, mask, spacing=...)` makes them
on the host, which waits for the device and cannot be compiled; `maps=` takes maps that exist:

```python
from segkit.losses.target_maps import maps_of_mask

loss = build_loss(["dice", "boundary"], labels)
maps_of_mask(loss.maps, labels, mask, spacing=(1.0, 0.5, 0.5))  # numpy arrays of one image; stack them for maps=
```

Distances are exact and Euclidean, between pixel centres. No boundary lies at ignored pixels or at the border of the image, so
a mask with an ignored margin has the maps of the mask without it. Augmentation by scaling does not change the spacing. The
masks of coarser heads of deep supervision get the middle pixels of the maps of the finest, and skeletons any pixel. Distances
to the boundary of the prediction (`hausdorff` with `one_sided: false`) are made on the host in every step.
"""

GUARDS = """## Diagnostics during a run

At its start, a run warns about a term that contributes no gradient on the first batch and about a Lovász loss without another
term, and it notes which score `per` matches most closely. Every `train.gradients_every` steps, `log.jsonl` records under
`gradients` the share of each term in the gradient of the logits, and the cosine between the gradients of each pair of terms;
the term weights alone say little about either.

## Deep supervision

`segkit.losses.deep_supervision.DeepSupervision(loss)` takes a list of logits, finest first. The weights of the heads halve from
head to head and sum to 1; the masks of coarser heads are the nearest pixels of the mask.

## Speed, memory, accuracy

See [the benchmark](../benchmarks/losses.md), written by `python tools/benchmark.py losses --markdown docs/benchmarks/losses.md`.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, overview(), *(section(name) for name in LOSSES), recipes(), SHARED, WEIGHTS, schedules()]
    return "\n".join([*parts, MAPS_TEXT, processes(), like(), GUARDS])


def overview() -> str:
    rows = ["## Overview", "", "| name | formula | modes | soft targets | valid [B, K] |", "|---|---|---|---|---|"]
    for name, cls in LOSSES.items():
        formula = _paragraphs(cls)[0].rstrip(".").replace("|", "\\|")
        modes = [mode for mode in MODES if _builds(name, mode)]
        soft = "yes" if _takes_soft(name) else "no"
        modes_cell = "all" if len(modes) == 3 else ", ".join(modes)
        rows.append(f"| [`{name}`](#{name}) | {formula} | {modes_cell} | {soft} | {_valid_in(name, modes)} |")
    return "\n".join([*rows, ""])


def section(name: str) -> str:
    """The section of one loss: docstring, options with defaults, when to use it, and its names in other libraries."""
    first, *others = _paragraphs(LOSSES[name])
    picture = f"![The gradient of {name} for an image with typical errors](loss_pictures/{name}.png)"
    lines = [f"## {name}", "", first, "", WHEN[name], "", picture, ""]
    lines += [f"*Reported:* {REPORTED[name]}", ""] if name in REPORTED else []
    options = _options(LOSSES[name])
    if options:
        lines += ["| option | default | values |", "|---|---|---|", *options, ""]
    for paragraph in others:
        lines += [*_as_list(paragraph), ""]
    counterparts = [
        f"{library}: {entry.counterpart}" for library, table in PRESETS.items() for entry in _presets(table, name)
    ]
    if counterparts:
        lines += [f"In other libraries: {'; '.join(counterparts)}.", ""]
    return "\n".join(lines)


def recipes() -> str:
    rows = [
        "## Recipes",
        "",
        "Sums of losses with a name of their own; they take no options.",
        "",
        "| recipe | terms |",
        "|---|---|",
    ]
    return "\n".join(
        [*rows, *(f"| `{name}` | {' + '.join(map(_term, terms))} |" for name, terms in RECIPES.items()), ""]
    )


def _term(term: dict[str, typing.Any]) -> str:
    if len(term) == 1:
        return f"`{term['name']}`"
    return "`{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in term.items()) + "}`"


def _yaml(value: typing.Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def schedules() -> str:
    rows = [
        f"| `{{name: {name}, {', '.join(f'{key}: {option.default:g}' for key, option in inspect.signature(entry).parameters.items())}}}` "
        f"| {' '.join((entry.__doc__ or '').split())} |"
        for name, entry in WEIGHT_SCHEDULES.items()
    ]
    return SCHEDULES + "\n".join([*rows, ""])


def processes() -> str:
    rows = [f"| `{name}` | {PROCESSES[name]} | {ADDS_UP[name]} |" for name in LOSSES]
    return PROCESSES_TEXT + "\n".join([*rows, ""])


def like() -> str:
    rows = []
    for library, table in PRESETS.items():
        for name, entry in table.items():
            if isinstance(entry, Preset):
                without = [f"not for {', '.join(entry.not_for)}"] if entry.not_for else []
                note = "; ".join([*([entry.note] if entry.note else []), *without])
                since = in_words(SINCE[library][name])
                rows.append((library, f"`{name}`", f"`{entry.counterpart}`", _written(entry.options), since, note))
                rows += [
                    (library, f"`{name}`", f"also `{call}`", _written(options), "", "")
                    for call, options in entry.forms.items()
                ]
            else:
                rows.append((library, f"`{name}`", "refused", "", "", entry.reason))
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return LIKE_TEXT + "\n".join([*lines, ""])


def _written(options: typing.Mapping[str, typing.Any]) -> str:
    text = ", ".join(f"{key}: {_yaml(value)}" for key, value in options.items())
    return f"`{text}`" if text else "defaults"


def _presets(table: dict[str, typing.Any], name: str) -> list[Preset]:
    return [table[name]] if isinstance(table.get(name), Preset) else []


def _paragraphs(cls: type) -> list[str]:
    """The paragraphs of a class docstring, the first one on a single line."""
    first, *others = (inspect.getdoc(cls) or "").split("\n\n")
    return [" ".join(first.split()), *others]


def _as_list(paragraph: str) -> list[str]:
    """A paragraph as a Markdown list if its lines describe options (`name: ...`), otherwise as text."""
    entry = re.compile(r"^([a-z_0-9]+(?:, [a-z_0-9]+)*): ")
    text = re.sub(r"\n +", " ", paragraph)
    lines = text.split("\n")
    if not entry.match(lines[0]):
        return [" ".join(lines)]
    named = [entry.sub(lambda match: f"`{match[1]}`: ", line) for line in lines]
    shared = re.compile(r"see `(?:PixelMean|ClassMean|ChosenMean)`")
    return [f"- {shared.sub('see [below](#options-that-several-losses-have)', line)}" for line in named]


def _options(cls: type) -> list[str]:
    hints = typing.get_type_hints(cls.__init__)
    return [
        f"| `{name}` | {_yaml(parameter.default)} | {_values(hints[name])} |"
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in INJECTED
    ]


def _values(annotation: typing.Any) -> str:
    if annotation == ClassWeights:
        return "see [class weights](#class-weights)"
    return describe(annotation).replace("|", "\\|")


def _builds(name: str, mode: str) -> bool:
    try:
        build_loss(name, _labels(mode), equal_class_counts(_labels(mode)))
    except ValueError:
        return False
    return True


def _valid_in(name: str, modes: typing.Sequence[str]) -> str:
    """The modes in which a loss supports `valid` per class."""
    supported = []
    for mode in modes:
        labels = _labels(mode)
        logits = torch.zeros(1, labels.channels, 2, 2)
        mask = torch.zeros(logits.shape if mode == "multilabel" else (1, 2, 2), dtype=torch.uint8)
        try:
            build_loss(name, labels, equal_class_counts(labels))(
                logits, mask, valid=torch.ones_like(logits, dtype=torch.bool)
            )
        except ValueError:
            continue
        supported.append(mode)
    return "all modes" if len(supported) == 3 else ", ".join(supported)


def _labels(mode: str) -> Labels:
    return Labels(["background", "a"] if mode == "binary" else ["background", "a", "b"], mode=mode)  # pyright: ignore


def _takes_soft(name: str) -> bool:
    mode = next(mode for mode in MODES if _builds(name, mode))
    labels = _labels(mode)
    try:
        build_loss(name, labels, equal_class_counts(labels))(
            torch.zeros(1, labels.channels, 2, 2), torch.full((1, labels.channels, 2, 2), 0.3)
        )
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
