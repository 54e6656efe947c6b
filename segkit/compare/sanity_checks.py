"""What could make a comparison say something that is not so, in plain words."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from segkit.compare.design import AGAIN
from segkit.labels import Labels
from segkit.losses import build_loss

ALIKE = 1 - 1e-9  # cosine of two gradients in float64 from which on they are one direction
FAVOURED = 1.0  # ranks better than under the other rules
SKIPPED = 0.01  # share of steps without effect that is worth telling
BIAS = 0.15  # share by which all predicted foreground is more or less than the reference


def same_functions(losses: Mapping[str, Sequence[Mapping[str, Any]]], labels: Labels) -> list[str]:
    """Pairs of labels whose losses have one gradient, up to a factor, on random logits: comparing them compares
    nothing. losses: the terms of each label. The baseline that is there twice on purpose is left out."""
    gradients = {label: _gradients(terms, labels) for label, terms in losses.items() if not label.endswith(AGAIN)}
    found = []
    for a, b in itertools.combinations(gradients, 2):
        if all(_cosine(one, other) > ALIKE for one, other in zip(gradients[a], gradients[b], strict=True)):
            found.append(
                f"{a} and {b} are the same function up to a factor: every difference between them is chance or the "
                "learning rate"
            )
    return found


def _gradients(terms: Sequence[Mapping[str, Any]], labels: Labels) -> list[torch.Tensor]:
    """At two moments of the training, in which term weights may differ, with class counts of unequal classes."""
    generator = torch.Generator().manual_seed(0)
    counts = np.arange(1, len(labels.names) + 1)[None] * 100
    loss = build_loss(
        [dict(term) for term in terms], labels, class_counts={"pixels": counts, "components": counts}
    ).double()
    found = []
    for progress in (0.1, 0.9):
        logits = 2 * torch.randn(3, labels.channels, 16, 16, generator=generator, dtype=torch.float64)
        shape = (3, *((labels.channels,) if labels.has_mask_channels else ()), 16, 16)
        mask = torch.randint(0, 2 if len(shape) == 4 else max(2, len(labels.names)), shape, generator=generator)
        loss.set_progress(progress)
        logits.requires_grad_()
        loss(logits, mask.to(labels.mask_dtype)).backward()
        assert logits.grad is not None
        found.append(logits.grad.flatten())
    return found


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def rule_warnings(result: Mapping[str, Any]) -> list[str]:
    """Where most other rules say otherwise than that of the verdicts: of the best loss, of a pair that has a verdict,
    and of the rank of a loss. result: the contents of comparison.json."""
    rules = result["ranks"]["rules"]
    first, *others = rules
    found = []
    best = [loss for loss, rank in rules[first]["ranks"].items() if rank == 1]
    pairs = [(best[0], loss) for loss in rules[first]["ranks"] if loss not in best] if len(best) == 1 else []
    told = [pair for pair in result["pairs"] if pair["verdict"] in ("better", "worse")]
    pairs += [(pair["a"], pair["b"]) if pair["verdict"] == "better" else (pair["b"], pair["a"]) for pair in told]
    for ahead, behind in dict.fromkeys(pairs):
        turned = [name for name in others if _is_ahead(rules[name]["ranks"], behind, ahead)]
        if len(turned) > len(others) / 2:
            found.append(
                f"the rule of the verdicts places {ahead} before {behind}, {len(turned)} of {len(others)} other rules "
                "the other way round: the choice of the rule decides here"
            )
    for loss, rank in rules[first]["ranks"].items():
        elsewhere = [rules[name]["ranks"][loss] for name in others if rules[name]["ranks"][loss] is not None]
        if rank is None or not elsewhere:
            continue
        usual = float(np.median(elsewhere))
        if abs(usual - rank) > FAVOURED:
            words = "better" if rank < usual else "worse"
            found.append(
                f"the rule of the verdicts places {loss} {words} ({rank:g}) than most other rules do ({usual:g}): the "
                "choice of the rule decides here"
            )
    return found


def _is_ahead(ranks: Mapping[str, float | None], a: str, b: str) -> bool:
    first, second = ranks.get(a), ranks.get(b)
    return first is not None and second is not None and first < second


def operating_point_warnings(table: Any, classes: Sequence[str]) -> list[str]:
    """Losses that predict much more or much less of a class than there is: the threshold, or argmax, may suit one loss
    and not another, and another threshold would turn the order round."""
    if not {"predicted", "reference"} <= set(table.columns):
        return []
    counted = table[table["class"].isin(list(classes))]
    sums = counted.groupby(["loss", "class"], sort=False)[["predicted", "reference"]].sum()
    sums = sums[sums["reference"] > 0]
    shares = sums["predicted"] / sums["reference"] - 1
    found = []
    for loss, of_loss in shares[shares.abs() > BIAS].groupby("loss", sort=False):
        words = ", ".join(
            f"{abs(share):.0%} {'more' if share > 0 else 'less'} {name}" for (_, name), share in of_loss.items()
        )
        found.append(
            f"{loss} predicts {words} than there is: its operating point counts into its score, and a threshold chosen "
            "on validation cases could change it"
        )
    return found


def identical_runs(values: Mapping[str, np.ndarray]) -> list[str]:
    """Pairs of losses of which each run of the one has the very scores of a run of the other, case by case; values:
    [runs, cases, classes] of each loss."""
    found = []
    for (a, first), (b, second) in itertools.combinations(values.items(), 2):
        one, other = ({run.tobytes() for run in runs} for runs in (first, second))
        if one <= other or other <= one:
            found.append(
                f"the runs of {a} and {b} have the same scores on every case, to the last digit: they predict the "
                "same, so they are one training, or have learnt nothing"
            )
    return found


def noise_warnings(result: Mapping[str, Any]) -> list[str]:
    """Verdicts on differences smaller than that of one loss from itself. result: the contents of comparison.json."""
    noise = (result.get("noise_floor") or {}).get("difference")
    if noise is None:
        return []
    return [
        f"{result['noise_floor']['b']} differs from itself by {abs(noise):.4f}, more than {pair['a']} and {pair['b']} "
        f"do ({abs(pair['difference']):.4f}): be slow to believe that verdict"
        for pair in result["pairs"]
        if pair["verdict"] in ("better", "worse") and abs(pair["difference"]) < abs(noise)
    ]


def rates_at_the_end(chosen: Mapping[str, float], tried: Sequence[float]) -> list[str]:
    """Learning rates beyond which nothing was tried, of more than two."""
    return [
        f"the learning rate chosen for {loss}, {rate:g}, is the {'largest' if rate == max(tried) else 'smallest'} of "
        "those tried: a better one may lie beyond; widen comparison.sweep"
        for loss, rate in chosen.items()
        if len(tried) > 2 and rate in (min(tried), max(tried))
    ]


def unequal_steps(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Whether some runs had more steps than others, as patience and minutes make it; logs: as in `log_warnings`."""
    steps = {loss: [_last_step(lines) for lines in runs] for loss, runs in logs.items() if runs}
    every = [number for found in steps.values() for number in found]
    if len(set(every)) < 2:
        return []
    means = ", ".join(f"{loss} {sum(found) / len(found):.0f}" for loss, found in steps.items())
    return [
        f"runs had {min(every)} to {max(every)} steps (mean by loss: {means}): their budgets were not equal, since "
        "train.patience, train.max_minutes or comparison.minutes ended some of them"
    ]


def _last_step(lines: Sequence[Mapping[str, Any]]) -> int:
    return max((line["step"] for line in lines if line["kind"] == "step"), default=0)


def log_warnings(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[str]:
    """What the trainings themselves warned of, and steps without effect; logs: the records of the runs of each loss."""
    found = []
    for loss, runs in logs.items():
        texts = [str(line["message"]) for lines in runs for line in lines if line["kind"] == "warning"]
        for text, number in Counter(texts).items():
            found.append(f"{loss}, {number} of {len(runs)} runs: {text}")
        steps = [_last_step(lines) for lines in runs]
        skipped = [line["skipped"]["steps"] for lines in runs for line in lines if "skipped" in line]
        if sum(skipped) > SKIPPED * max(1, sum(steps)):
            found.append(f"{loss}: {sum(skipped)} of {sum(steps)} steps had a loss or gradient that is not finite")
    return found
