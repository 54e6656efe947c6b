"""Writes docs/losses.md: what stands in the code (formulas, options, presets) and what has to be said beside it.

python docs/losses.py
"""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import torch

from segkit import Labels
from segkit.config.validation import describe
from segkit.losses import LOSSES, RECIPES, build_loss
from segkit.losses.build import INJECTED
from segkit.losses.class_weights import ClassWeights
from segkit.losses.library_presets import PRESETS, Preset
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES

PAGE = Path(__file__).with_suffix(".md")

# When to take which, and what two or more processes make of it: see "Several processes" for the words.
WHEN = {
    "cross_entropy": "The first choice, alone or beside a region term: smooth, calibrated, and hard to get wrong. With "
    "rare classes give it `class_weights` or a partner.",
    "poly_cross_entropy": "Where the cross-entropy is nearly right already and a little more stress on confident pixels is "
    "wanted; it behaves like it otherwise.",
    "topk_cross_entropy": "Large images in which most pixels are easy, alone or beside `dice` (`dice_topk`). Wrong labels "
    "are hard pixels too.",
    "focal": "Many easy pixels of one class. It lowers their weight gradually, where top-k leaves them out.",
    "dice": "When the score is Dice and the foreground is small. Its probabilities are over-confident; `dice_ce` is calmer.",
    "jaccard": "When the score is IoU. For hard targets it orders predictions as `dice` does, class by class.",
    "tversky": "When missing and inventing cost differently: raise `beta` for recall, `alpha` for precision.",
    "focal_tversky": "As `tversky`, with more stress on classes that are nearly right (gamma below 1) or still wrong (above).",
    "generalized_dice": "Classes of very different size that are all present. With classes that often are absent, `dice`.",
    "lovasz_softmax": "To raise IoU after, or beside, the cross-entropy (`ce_then_lovasz`, `ce_lovasz`). Alone and from the "
    "start it seldom trains a network.",
    "lovasz_hinge": "The same for binary and overlapping classes, with a margin instead of probabilities.",
}
GLOBAL, LOCAL = "whole batch", "each process alone"
PROCESSES = {
    **dict.fromkeys(LOSSES, GLOBAL),
    "topk_cross_entropy": LOCAL,
    "lovasz_softmax": "whole batch; `mode: exact` with `per: batch`: each process alone",
    "lovasz_hinge": "whole batch; `mode: exact` with `per: batch`: each process alone",
}
ADDS_UP = {
    **dict.fromkeys(LOSSES, "with `per: image`"),
    **dict.fromkeys(("cross_entropy", "poly_cross_entropy", "focal"), "yes"),
    **dict.fromkeys(("topk_cross_entropy", "lovasz_softmax", "lovasz_hinge"), "no"),
}
MODES = ("multiclass", "binary", "multilabel")

INTRODUCTION = """# Losses

*Written by `python docs/losses.py` from the code; a test compares the two.*

A loss is named in YAML: by name, as a mapping with options, or as a list whose weighted sum is taken.

```yaml
loss: dice_ce
loss: {name: dice, per: image}
loss:
  - {name: cross_entropy, class_weights: median_frequency}
  - {name: lovasz_softmax, weight: {name: linear, until: 0.5}}
  - {name: dice, like: monai, weight: 0.5}
```

Every loss takes **logits** `[B, K, *S]`, never probabilities, and integer masks `[B, *S]` of any width (or one-hot, or
soft where that makes sense). Arithmetic is at least float32, sums are float64. Ignored pixels are selected out once: what
the network says there, even NaN, changes neither value nor gradient. If everything is ignored, value and gradient are 0.

The probability p is a softmax over the channels in multiclass mode and a sigmoid of each channel in binary and multilabel
mode. Terms that need the same probabilities share one pass over the logits and one backward. Both go through the batch
piece by piece and keep nothing but the logits and the mask, so a loss takes little more memory than its gradient.

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
```

`valid` of each class, [B, K, *S] or [B, K, 1, ...] for whole images, is for losses in which every class has a sum of its own
(the column `valid [B, K]` below): all of them where classes stand alone, region and Lovász losses also under a softmax. A
cross-entropy under a softmax has one number a pixel, which cannot count for some classes only, and refuses it.
"""

WEIGHTS = """## Class weights

`class_weights` is a list in the order of the classes (`[negative, positive]` in binary mode), the name of a method, or a
mapping with a method and options: `{method: median_frequency, cap: 10, mean_one: true}`. A method counts the training masks
once (the class counts is kept in `cache/` beside the run folders), prints a table, and is written into the run's `config.yaml` as numbers.

| method | weight of class c |
|---|---|
| `inverse` | N / (K n_c) |
| `sqrt_inverse` | its square root |
| `median_frequency` | median(q) / q_c, with q_c the share of c in the cases that contain it (Eigen & Fergus 2015) |
| `enet` | 1 / ln(1.02 + n_c / N) (Paszke et al. 2016) |
| `effective_number` | (1 - beta) / (1 - beta^m_c), m_c the images of c, or with `counts: components` its connected components; mean 1 (Cui et al. 2019) |

n_c is the number of pixels of c, N of all. `cap` is the largest weight there may be; then `mean_one` divides by the mean.
Effective numbers of pixels would be alike for all classes, so there is no such count.
"""

SHARED = """## Options that several losses have

- `per: batch` pools the sums of all images before the ratio is taken, which is closest to a score over the whole data set;
  `per: image` averages over the counted classes of an image, then over images, which is closest to a score per case.
- `empty` says what a class counts that is absent from the reference: `present` drops it from the mean, `keep` treats it like
  any other, `zero` counts it as 0. Libraries differ here, and their values with them.
- `eps` is one number or `[numerator, denominator]`. `background: false` drops the background class.
- `classes` (Lovász) counts those that the reference of the batch or image holds (`present`), every class (`all`), or a list.
- `normalize` is what a sum over pixels is divided by: the class weights of the valid pixels (`weights`), their number
  (`valid`), or the number of all pixels (`numel`).
"""

SCHEDULES = """## Weights that change during a run

`weight` is a number or one of these, as functions of the progress of the run from 0 to 1. They depend on the step alone, so
a run that is resumed goes on with the right one.

| schedule | meaning |
|---|---|
"""

PROCESSES_TEXT = """## Several processes, and accumulated gradients

Built with `build_loss(..., group=...)`, a loss sums over the processes what it is made of, and is that of the whole batch on
each of them: the mean of their gradients, which DDP takes, is the gradient of the whole batch even where they hold unequal
numbers of valid pixels. `loss.normaliser(masks)`, handed to the calls for the micro-batches of one step, makes their sum the
loss of one large batch where the column says so; for the others the mean over the micro-batches is taken.

| loss | two processes compute the loss of | micro-batches add up |
|---|---|---|
"""

LIKE_TEXT = """## Coming from another library

`like: torch`, `monai`, `smp`, `kornia`, `nnunet` or `mmseg` on a term sets the options, and where needed a factor, with
which value and gradient are that library's. Options that are written out win. Where a library has no such loss or has it
wrong, `like` is refused with the reason. Tested against the installed torch, torchvision, MONAI 1.6, smp 0.6 and kornia 0.9,
and for nnU-Net v2 and mmsegmentation 1.2 against their definitions.

| `like` | loss | theirs | options | to know |
|---|---|---|---|---|
"""

GUARDS = """## What a run says of its loss

At its start a run warns of a term whose gradient on the first batch is nothing, and of a Lovász loss alone; and it notes which
score `per` is closest to. Every `train.gradients_every` steps `log.jsonl` holds, under `gradients`, the share of each
term in the gradient of the logits, and the cosine between the gradients of each two terms: weights say little about either.

## Deep supervision

`segkit.losses.deep_supervision.DeepSupervision(loss)` takes a list of logits, finest first, with weights that halve from head to
head and sum to 1; masks of coarser heads are the nearest pixels of the mask.

## Speed, memory, accuracy

[benchmark_losses.md](benchmark_losses.md), by `python tools/benchmark.py losses --markdown docs/benchmark_losses.md`.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, overview(), *(section(name) for name in LOSSES), recipes(), SHARED, WEIGHTS, schedules()]
    return "\n".join([*parts, processes(), like(), GUARDS])


def overview() -> str:
    rows = ["## All of them", "", "| name | formula | modes | soft targets | valid [B, K] |", "|---|---|---|---|---|"]
    for name, cls in LOSSES.items():
        formula = _paragraphs(cls)[0].rstrip(".").replace("|", "\\|")
        modes = [mode for mode in MODES if _builds(name, mode)]
        soft = "yes" if _takes_soft(name) else "no"
        shown = "all" if len(modes) == 3 else ", ".join(modes)
        rows.append(f"| [`{name}`](#{name}) | {formula} | {shown} | {soft} | {_valid_in(name, modes)} |")
    return "\n".join([*rows, ""])


def section(name: str) -> str:
    """One loss: the docstring, the options with their defaults, when to take it, and what others call it."""
    first, *others = _paragraphs(LOSSES[name])
    lines = [f"## {name}", "", first, "", WHEN[name], ""]
    options = _options(LOSSES[name])
    if options:
        lines += ["| option | default | values |", "|---|---|---|", *options, ""]
    for paragraph in others:
        lines += [*_as_list(paragraph), ""]
    known = [f"{library}: {entry.theirs}" for library, table in PRESETS.items() for entry in _presets(table, name)]
    if known:
        lines += [f"Elsewhere: {'; '.join(known)}.", ""]
    return "\n".join(lines)


def recipes() -> str:
    rows = ["## Recipes", "", "Sums that are used by name alone.", "", "| recipe | terms |", "|---|---|"]
    return "\n".join(
        [*rows, *(f"| `{name}` | {' + '.join(map(_term, terms))} |" for name, terms in RECIPES.items()), ""]
    )


def _term(term: dict[str, typing.Any]) -> str:
    if len(term) == 1:
        return f"`{term['name']}`"
    return "`{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in term.items()) + "}`"


def _yaml(value: typing.Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def schedules() -> str:
    rows = [
        f"| `{{name: {name}, {', '.join(f'{key}: {one.default:g}' for key, one in inspect.signature(entry).parameters.items())}}}` "
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
                options = ", ".join(f"{key}: {_yaml(value)}" for key, value in entry.options.items())
                without = [f"not for {', '.join(entry.not_for)}"] if entry.not_for else []
                note = "; ".join([*([entry.note] if entry.note else []), *without])
                cells = [f"`{name}`", f"`{entry.theirs}`", f"`{options}`" if options else "ours", note]
            else:
                cells = [f"`{name}`", "refused", "", entry.reason]
            rows.append(f"| {library} | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return LIKE_TEXT + "\n".join([*rows, ""])


def _presets(table: dict[str, typing.Any], name: str) -> list[Preset]:
    return [table[name]] if isinstance(table.get(name), Preset) else []


def _paragraphs(cls: type) -> list[str]:
    """The docstring's paragraphs, the first as one line."""
    first, *others = (inspect.getdoc(cls) or "").split("\n\n")
    return [" ".join(first.split()), *others]


def _as_list(paragraph: str) -> list[str]:
    """A paragraph whose lines describe options (`name: ...`) as a list, else as text."""
    entry = re.compile(r"^([a-z_]+(?:, [a-z_]+)*): ")
    text = re.sub(r"\n +", " ", paragraph)
    lines = text.split("\n")
    if not entry.match(lines[0]):
        return [" ".join(lines)]
    named = [entry.sub(lambda found: f"`{found[1]}`: ", line) for line in lines]
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
        build_loss(name, _labels(mode))
    except ValueError:
        return False
    return True


def _valid_in(name: str, modes: typing.Sequence[str]) -> str:
    """The modes in which a loss takes validity of each class."""
    taking = []
    for mode in modes:
        labels = _labels(mode)
        logits = torch.zeros(1, labels.channels, 2, 2)
        mask = torch.zeros(logits.shape if mode == "multilabel" else (1, 2, 2), dtype=torch.uint8)
        try:
            build_loss(name, labels)(logits, mask, valid=torch.ones_like(logits, dtype=torch.bool))
        except ValueError:
            continue
        taking.append(mode)
    return "all modes" if len(taking) == 3 else ", ".join(taking)


def _labels(mode: str) -> Labels:
    return Labels(["background", "a"] if mode == "binary" else ["background", "a", "b"], mode=mode)  # pyright: ignore


def _takes_soft(name: str) -> bool:
    import torch

    mode = next(mode for mode in MODES if _builds(name, mode))
    labels = _labels(mode)
    try:
        build_loss(name, labels)(torch.zeros(1, labels.channels, 2, 2), torch.full((1, labels.channels, 2, 2), 0.3))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
