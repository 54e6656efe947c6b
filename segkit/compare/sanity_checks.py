"""Sanity checks: circumstances under which the verdicts of a comparison may mislead, as sentences for the report."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.compare.design import REPEATED_SUFFIX

if TYPE_CHECKING:
    import torch

    from segkit.labels import Labels

SAME_DIRECTION = 1 - 1e-9  # cosine of two float64 gradients above which they have the same direction
RANK_GAIN = 1.0  # difference from the median rank under other aggregations that is reported
SKIPPED_SHARE = 0.01  # share of skipped steps that is reported
BIAS = 0.15  # relative difference between predicted and reference pixels that is reported


def same_functions(losses: Mapping[str, Sequence[Mapping[str, Any]]], labels: Labels) -> list[str]:
    """Pairs of losses that are the same function up to a factor, judging by their gradients on random logits.

    Args:
        losses: The terms of each loss. The repeated baseline is ignored.
        labels: The labels of the experiment.
    """
    gradients = {
        label: _gradients(terms, labels) for label, terms in losses.items() if not label.endswith(REPEATED_SUFFIX)
    }
    return [
        f"{a} and {b} are the same function up to a constant factor: any difference between them is due to chance or "
        "to the learning rate"
        for a, b in itertools.combinations(gradients, 2)
        if all(_cosine(*pair) > SAME_DIRECTION for pair in zip(gradients[a], gradients[b], strict=True))
    ]


def _gradients(terms: Sequence[Mapping[str, Any]], labels: Labels) -> list[torch.Tensor]:
    """Gradients early and late in training, since the weights of terms may change, with unequal class counts."""
    import torch  # here, because the analysis of a table needs no torch, which takes half a gigabyte

    from segkit.losses import build_loss

    generator = torch.Generator().manual_seed(0)
    counts = np.arange(1, len(labels.names) + 1)[None] * 100
    class_counts = {"pixels": counts, "components": counts, "radius": counts // 50}
    loss = build_loss([dict(term) for term in terms], labels, class_counts).double()
    gradients = []
    for progress in (0.1, 0.9):
        logits = 2 * torch.randn(3, labels.channels, 16, 16, generator=generator, dtype=torch.float64)
        shape = (3, *((labels.channels,) if labels.has_mask_channels else ()), 16, 16)
        mask = torch.randint(0, 2 if len(shape) == 4 else max(2, len(labels.names)), shape, generator=generator)
        loss.set_progress(progress)
        logits.requires_grad_()
        loss(logits, mask.to(labels.mask_dtype)).backward()
        assert logits.grad is not None
        gradients.append(logits.grad.flatten())
    return gradients


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first @ second) / (first.norm() * second.norm()).clamp_min(1e-8))


def aggregation_warnings(result: Mapping[str, Any]) -> list[str]:
    """Conclusions that other aggregations contradict: the best loss, pairs with a verdict, and ranks.

    Most others have to contradict; for a verdict, it is enough that the one does which scores cases without a class in
    another way.

    Args:
        result: The contents of comparison.json.
    """
    aggregations = result["ranks"]["rules"]
    used, *others = aggregations
    ranks = aggregations[used]["ranks"]
    warnings = []
    best = [loss for loss, rank in ranks.items() if rank == 1]
    behind_best = [(best[0], loss) for loss in ranks if loss not in best] if len(best) == 1 else []
    pairs = [pair for pair in result["pairs"] if pair["verdict"] in ("better", "worse")]
    decided = [(pair["a"], pair["b"]) if pair["verdict"] == "better" else (pair["b"], pair["a"]) for pair in pairs]
    other_rule = "class_case" if used == "absent_perfect" else "absent_perfect"
    for ahead, behind in dict.fromkeys([*behind_best, *decided]):
        opposite = [name for name in others if _is_ahead(aggregations[name]["ranks"], behind, ahead)]
        if len(opposite) > len(others) / 2:
            warnings.append(
                f"{ahead} ranks before {behind} with the aggregation {used}, but after it with {len(opposite)} of "
                f"{len(others)} other aggregations: the order depends on the aggregation"
            )
        elif other_rule in opposite and (ahead, behind) in decided:
            warnings.append(
                f"{ahead} ranks before {behind} with the aggregation {used}, but after it with {other_rule}: the "
                "verdict depends on how a case counts for a class that it does not contain"
            )
    for loss, rank in ranks.items():
        other_ranks = [aggregations[name]["ranks"][loss] for name in others]
        other_ranks = [other for other in other_ranks if other is not None]
        if rank is None or not other_ranks:
            continue
        usual_rank = float(np.median(other_ranks))
        if abs(usual_rank - rank) > RANK_GAIN:
            direction = "better" if rank < usual_rank else "worse"
            warnings.append(
                f"{loss} ranks {direction} with the aggregation {used} ({rank:g}) than with most others "
                f"({usual_rank:g}): its rank depends on the aggregation"
            )
    return warnings


def _is_ahead(ranks: Mapping[str, float | None], a: str, b: str) -> bool:
    rank_a, rank_b = ranks.get(a), ranks.get(b)
    return rank_a is not None and rank_b is not None and rank_a < rank_b


def operating_point_warnings(table: Any, classes: Sequence[str]) -> list[str]:
    """Losses that predict many more or many fewer pixels of a class than the reference has.

    The threshold, or argmax, may then suit one loss better than another, and a tuned threshold could change the order.

    Args:
        table: The long table; without pixel counts there are no warnings.
        classes: The classes to check.
    """
    if not {"predicted", "reference"} <= set(table.columns):
        return []
    selected = table["class"].isin(list(classes))
    counted = table.loc[selected, ["loss", "class", "predicted", "reference"]]
    sums = counted.groupby(["loss", "class"], sort=False, observed=True)[["predicted", "reference"]].sum()
    sums = sums[sums["reference"] > 0]
    bias = sums["predicted"] / sums["reference"] - 1
    warnings = []
    for loss, missed in bias[bias == -1].groupby("loss", sort=False, observed=True):
        names = ", ".join(name for _, name in missed.index)
        warnings.append(
            f"no run of {loss} ever predicts {names}: the networks have not learned it; check the data, the learning "
            "rate and the length of training"
        )
    bias = bias[bias > -1]
    for loss, class_bias in bias[bias.abs() > BIAS].groupby("loss", sort=False, observed=True):
        amounts = ", ".join(
            f"{abs(share):.0%} {'more' if share > 0 else 'less'} {name}" for (_, name), share in class_bias.items()
        )
        warnings.append(
            f"{loss} predicts {amounts} than the reference contains, which affects its score; a threshold tuned on "
            "validation cases could change the result"
        )
    return warnings


def identical_runs(values: Mapping[str, np.ndarray]) -> list[str]:
    """Pairs of losses whose runs have identical scores on every case.

    Args:
        values: The scores of each loss, {loss: [runs, cases, classes]}.
    """
    warnings = []
    for (a, a_values), (b, b_values) in itertools.combinations(values.items(), 2):
        a_runs, b_runs = ({run.tobytes() for run in runs} for runs in (a_values, b_values))
        if a_runs <= b_runs or b_runs <= a_runs:
            warnings.append(
                f"the runs of {a} and {b} have the same scores on every case, to the last digit: they are probably "
                "the same training, or the networks learned nothing"
            )
    return warnings


def noise_warnings(result: Mapping[str, Any]) -> list[str]:
    """Verdicts on differences smaller than the noise floor, the difference between two sets of runs of one loss.

    Args:
        result: The contents of comparison.json.
    """
    noise = (result.get("noise_floor") or {}).get("difference")
    if noise is None:
        return []
    return [
        f"{pair['a']} and {pair['b']} differ by {abs(pair['difference']):.4f}, less than the noise floor, by which two "
        f"sets of runs of {result['noise_floor']['b']} differ ({abs(noise):.4f}): treat this verdict with caution"
        for pair in result["pairs"]
        if pair["verdict"] in ("better", "worse") and abs(pair["difference"]) < abs(noise)
    ]


def boundary_rates(chosen: Mapping[str, float], tried: Sequence[float]) -> list[str]:
    """Losses whose chosen learning rate is the smallest or largest of more than two that were tried."""
    return [
        f"the learning rate chosen for {loss}, {rate:g}, is the {'largest' if rate == max(tried) else 'smallest'} of "
        "those tried, and a better one may lie outside this range; widen comparison.sweep"
        for loss, rate in chosen.items()
        if len(tried) > 2 and rate in (min(tried), max(tried))
    ]


def unequal_steps(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Whether runs were trained for different numbers of steps.

    Args:
        logs: The log records of each run of each loss.
    """
    steps = {loss: [_last_step(records) for records in runs] for loss, runs in logs.items() if runs}
    all_steps = [number for numbers in steps.values() for number in numbers]
    if len(set(all_steps)) < 2:
        return []
    means = ", ".join(f"{loss} {sum(numbers) / len(numbers):.0f}" for loss, numbers in steps.items())
    return [
        f"runs were trained for {min(all_steps)} to {max(all_steps)} steps (mean by loss: {means}), so their budgets "
        "differ; train.patience, train.max_minutes or comparison.minutes stopped some of them"
    ]


def stopped_by_max_steps(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether `train.max_steps` or `train.max_epochs` ended trainings before the end of their learning rate schedule.

    Args:
        results: The contents of scores.json of each run.
    """
    stopped = [result for result in results if result.get("finished") == "max_steps"]
    if not stopped:
        return []
    steps, planned = (max(result[key] for result in stopped) for key in ("step", "steps"))
    return [
        f"train.max_steps or train.max_epochs ended {len(stopped)} of {len(results)} runs after {steps} of {planned} "
        "planned steps, which cuts off the schedule of the learning rate; train.steps and train.epochs shorten it"
    ]


def _last_step(records: Sequence[Mapping[str, Any]]) -> int:
    return max((record["step"] for record in records if record["kind"] == "step"), default=0)


def log_warnings(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Warnings of the trainings themselves, and skipped steps.

    Args:
        logs: The log records of each run of each loss.
    """
    warnings = []
    for loss, runs in logs.items():
        messages = [str(record["message"]) for records in runs for record in records if record["kind"] == "warning"]
        for message, number in Counter(messages).items():
            warnings.append(f"{loss}, {number} of {len(runs)} runs: {message}")
        steps = sum(_last_step(records) for records in runs)
        skipped = sum(record["skipped"]["steps"] for records in runs for record in records if "skipped" in record)
        if skipped > SKIPPED_SHARE * max(1, steps):
            warnings.append(f"{loss}: {skipped} of {steps} steps were skipped because loss or gradient was not finite")
    return warnings
