"""Scores and comparisons as tables on the console, with the rules that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

METRICS_A_TABLE = 4
VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the contents of scores.json: a row a class, the mean over classes, and what they mean.

    Further metrics are in tables of their own, so that none is wider than 80 characters. The intervals of all but
    Dice, and the medians, are in scores.json only.
    """
    table = Table(title=f"{scores['cases']} cases of {escape(str(scores['split']))}", title_justify="left")
    table.add_column("class", min_width=12, overflow="fold")
    for column in ("Dice", "95 % CI", "IoU", "cases", "missed", "spurious"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, score in scores["classes"].items():
        dice, iou = score["dice"], score["iou"]
        shown = [_number(dice["mean"]), _interval(dice.get("ci95")), _number(iou["mean"])]
        table.add_row(escape(name), *shown, *(str(dice[column]) for column in ("cases", "missed", "spurious")))
    table.add_section()
    mean, name = scores["mean"], _averaged(scores, "dice")
    rests_on = [str(scores["mean_counts"]["dice"][column]) for column in ("pairs", "missed", "spurious")]
    interval = _interval(scores["mean_intervals"]["dice"]["ci95"])
    table.add_row(name, _number(mean["dice"]), interval, _number(mean["iou"]), *rests_on, style="bold")
    console.print(table)
    others = [metric for metric in scores["mean"] if metric not in ("dice", "iou")]
    for start in range(0, len(others), METRICS_A_TABLE):
        console.print(_further_table(scores, others[start : start + METRICS_A_TABLE]))
    if "of_cases" in scores:
        console.print(_case_table(scores["of_cases"]))
    for line in _score_notes(scores):
        console.print(f"  {escape(line)}", style="dim", highlight=False)


def _further_table(scores: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """Means of a few metrics, each with the number of cases, or of pairs of a case and a class, that count."""
    table = Table()
    table.add_column("class", min_width=12, overflow="fold")
    for metric in metrics:
        table.add_column(f"{heading(metric)} (cases)", justify="right")
    for name, score in scores["classes"].items():
        table.add_row(escape(name), *(f"{_number(score[m]['mean'])} ({score[m]['cases']})" for m in metrics))
    table.add_section()
    names = dict.fromkeys(_averaged(scores, metric) for metric in metrics)
    means = (f"{_number(scores['mean'][m])} ({scores['mean_counts'][m]['pairs']})" for m in metrics)
    table.add_row(" / ".join(names), *means, style="bold")
    return table


def _case_table(of_cases: Mapping[str, Mapping[str, Any]]) -> Table:
    """Metrics that a case has one value of."""
    table = Table()
    table.add_column("of a case", min_width=12, overflow="fold")
    for column in ("mean", "95 % CI", "median", "cases"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric, score in of_cases.items():
        numbers = [_number(score["mean"]), _interval(score.get("ci95")), _number(score.get("median"))]
        table.add_row(heading(metric), *numbers, str(score["cases"]))
    return table


def _averaged(scores: Mapping[str, Any], metric: str) -> str:
    return "all classes" if metric in scores["rules"]["background"] else "foreground"


def heading(metric: str) -> str:
    """How a column of this metric is called."""
    names = {
        "dice": "Dice",
        "iou": "IoU",
        "boundary_iou": "b. IoU",
        "volume_difference": "vol. diff.",
        "generalized_dice": "generalised Dice",
    }
    return names.get(metric, metric.upper() if metric in ("hd", "hd95", "assd", "nsd") else metric)


def print_side_by_side(results: Mapping[str, Mapping[str, Any]], console: Console) -> pd.DataFrame:
    """A table a metric: a row a class, a column a checkpoint. Returned as one table too, a row a checkpoint, metric and
    class, with the cases that count, missed and spurious ones. It says nothing of whether a difference is real."""
    for metric in dict.fromkeys(metric for result in results.values() for metric in result["metrics"]):
        per_class = any(metric in result["mean"] for result in results.values())
        full_names = dict.fromkeys(result["metrics"].get(metric, metric) for result in results.values())
        table = Table(title=f"{', '.join(full_names)}, side by side", title_justify="left")
        table.add_column("class", overflow="fold")
        for name in results:
            table.add_column(escape(name), justify="right", overflow="fold")
        for of_class in dict.fromkeys(name for result in results.values() for name in result["classes"] if per_class):
            cells = [result["classes"].get(of_class, {}).get(metric, {}).get("mean") for result in results.values()]
            table.add_row(escape(of_class), *map(_number, cells))
        table.add_section()
        table.add_row("mean", *(_number(_mean_of(result, metric)) for result in results.values()), style="bold")
        console.print(table)
    for line in _side_by_side_notes(results):
        console.print(f"  {escape(line)}", style="dim", highlight=False)
    return pd.DataFrame(
        [
            {"checkpoint": name, "metric": full_name, "class": of_class}
            | {"rules": result["rules"]["id"], "threshold": result["threshold"]}
            | {key: score[metric][key] for key in ("mean", "cases", "missed", "spurious")}
            for name, result in results.items()
            for metric, full_name in result["metrics"].items()
            for of_class, score in result["classes"].items()
            if metric in score
        ]
        + [
            {"checkpoint": name, "metric": result["metrics"][metric], "class": ""}
            | {"rules": result["rules"]["id"], "threshold": result["threshold"]}
            | {key: score[key] for key in ("mean", "cases", "missed", "spurious")}
            for name, result in results.items()
            for metric, score in result.get("of_cases", {}).items()
        ]
    )


def _mean_of(result: Mapping[str, Any], metric: str) -> float | None:
    """The one number of a metric; None if it was not asked for."""
    return result["mean"].get(metric, result.get("of_cases", {}).get(metric, {}).get("mean"))


def _side_by_side_notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the columns differ beside the networks."""
    chosen = {name: result["selected_on"] for name, result in results.items() if result["selected_on"]}
    notes = [f"{name}: selected on {part}" for name, part in chosen.items()]
    for what, of in (
        ("classes", lambda result: list(result["classes"])),
        ("rules", lambda result: result["rules"]["id"]),
        ("thresholds", lambda result: result["threshold"]),
        ("split", lambda result: result["split"]),
        ("number of cases", lambda result: result["cases"]),
    ):
        found = {name: of(result) for name, result in results.items()}
        if len({str(value) for value in found.values()}) > 1:
            shown = "; ".join(f"{name}: {value}" for name, value in found.items())
            notes.append(f"not of one kind, the {what} differ: {shown}")
    return [*notes, "these are single trained networks: whether their losses differ, segkit compare says"]


def _score_notes(scores: Mapping[str, Any]) -> list[str]:
    """What the table cannot say: checkpoint, rules, classes left out, why intervals are missing."""
    notes = []
    if scores["checkpoint"] is not None:
        selected = scores["selected_on"]
        chosen = f"selected on {selected}" if selected else "not selected by a score"
        notes.append(f"checkpoint: {scores['checkpoint']}, {chosen}")
        if selected and selected == scores["split"]:
            notes.append(f"it was chosen by its score on {selected}, so this score flatters it")
    notes += scores["rules_in_words"]
    if scores["threshold"] is not None:
        notes.append(f"a class is predicted where its probability exceeds {scores['threshold']:g}")
    for metric, names in scores["mean_left_out"].items():
        notes.append(f"not in the mean of {heading(metric)}, because no case counts them: {', '.join(names)}")
    reasons = scores["mean_reason"] | {
        metric: score["mean_reason"] for metric, score in scores.get("of_cases", {}).items() if "mean_reason" in score
    }
    notes += [f"no mean of {heading(metric)}: {reason}" for metric, reason in reasons.items()]
    first = next(iter(scores["metrics"]))
    counted = [score[first] for score in scores["classes"].values() if score[first]["mean"] is not None]
    notes += sorted({f"no interval: {score['ci95_reason']}" for score in counted if "ci95_reason" in score})
    notes += scores.get("interval_notes", [])
    whole = scores["global"]["mean"]
    notes.append(f"pooled over all pixels instead: Dice {_number(whole['dice'])}, IoU {_number(whole['iou'])}")
    if "calibration" in scores:
        notes.append(_calibration_note(scores["calibration"]))
    return notes


def _calibration_note(calibration: Mapping[str, Any]) -> str:
    kind = "toplabel" if "toplabel" in calibration else "classwise"
    parts = []
    for region, score in calibration[kind].items():
        ece = score["ece"]
        shown = (
            _number(ece)
            if not isinstance(ece, Mapping)
            else ", ".join(f"{name} {_number(one)}" for name, one in ece.items())
        )
        parts.append(f"{region} {shown}")
    return f"calibration error ({kind}, {calibration['rules']['bins']} bins): {'; '.join(parts)}"


def print_parts(seconds: Mapping[str, float], console: Console) -> None:
    """Where the time of a training step goes, in milliseconds and shares."""
    total = sum(seconds.values())
    table = Table(title=f"a step takes {1e3 * total:.1f} ms", title_justify="left")
    table.add_column("part")
    for heading in ("ms", "share"):
        table.add_column(heading, justify="right")
    for part, time in seconds.items():
        table.add_row(part, f"{1e3 * time:.2f}", f"{100 * time / total:.0f} %")
    console.print(table)


def print_class_weights(
    term: str, method: str, names: Sequence[str], share: Sequence[float], weights: Sequence[float], console: Console
) -> None:
    """The weight that each class got from the data, beside its share of the training pixels."""
    console.print(f"class weights of {term}: {method}", markup=False, highlight=False)
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("share of pixels", "weight"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, part, weight in zip(names, share, weights, strict=True):
        table.add_row(escape(name), f"{100 * part:.3g} %", f"{weight:.4g}")
    console.print(table)


def print_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Print the contents of comparison.json: losses by mean, then pairs with their verdicts, then the warnings.

    The unadjusted intervals and p are in comparison.json only.
    """
    console.print(_losses_table(result))
    if result["pairs"]:
        console.print(_pairs_table(result))
    if result.get("noise_floor"):
        console.print(f"  {escape(noise_words(result['noise_floor']))}", highlight=False)
    method = result["method"]
    margin = f"equivalent means within ±{result['margin']:g}, by the adjusted interval"
    told = any(method["speaks_of"] in warning for warning in result["warnings"])
    for line in (
        *([] if told else [f"the results speak of {method['speaks_of']}"]),
        f"{method['test']}; p adjusted by {method['p_adjusted']}; adjusted interval: {method['ci95_adjusted']}",
        f"{margin}; score: {method['score']}",
        *dict.fromkeys(pair["reason"] for pair in result["pairs"] if pair.get("reason")),
    ):
        console.print(f"  {escape(line)}", style="dim", highlight=False)
    for warning in result["warnings"]:
        console.print(f"  warning: {escape(warning)}", style="yellow", highlight=False)


def noise_words(noise: Mapping[str, Any]) -> str:
    """How far one loss is from itself."""
    return (
        f"The noise floor: {noise['a']} against {noise['b']}, one loss twice, differ by "
        f"{_number(noise['difference'], '+')} ({_interval(noise['ci95'], '+')}), verdict {noise['verdict'] or 'none'}; "
        f"{noise['cases']} cases in {noise['groups']} groups, runs: {' and '.join(map(str, noise['runs']))}"
    )


def print_datasets(result: Mapping[str, Any], console: Console) -> None:
    """Print the contents of datasets.json: mean ranks, then what the test over data sets says."""
    number = len(result["datasets"])
    table = Table(title=f"mean rank by {score_name(result)} over {number} data sets", title_justify="left")
    table.add_column("loss")
    table.add_column("mean rank", justify="right")
    for loss, rank in sorted(result["mean_ranks"].items(), key=lambda one: one[1]):
        table.add_row(escape(loss), f"{rank:.2f}")
    console.print(table)
    said = result.get("reason") or f"{result['test']}: p {_p(result['p'])}"
    console.print(f"  {escape(said)}", style="dim", highlight=False)
    for pair in result["pairs"]:
        words = f"{pair['a']} - {pair['b']}: ranks differ by {pair['rank_difference']:+.2f}, p {_p(pair['p_adjusted'])}"
        console.print(f"  {escape(words)}", highlight=False)


def score_name(result: Mapping[str, Any]) -> str:
    """The metric with its aggregation, as in dice/class_case."""
    return f"{result['metric']}/{result['aggregation']}"


def by_mean(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The losses of comparison.json, the best first, those without any run last."""
    sign = 1 if result["higher_is_better"] else -1
    return sorted(result["losses"], key=lambda loss: (not loss["runs"], -sign * (loss["mean"] or 0)))


def _losses_table(result: Mapping[str, Any]) -> Table:
    scale = f"{score_name(result)}, {result['cases']} cases in {result['groups']} groups"
    table = Table(title=f"losses by mean {scale}", title_justify="left")
    table.add_column("loss")
    for heading in ("mean", "95 % CI", "runs", "lowest", "highest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for loss in by_mean(result):
        means = [run["mean"] for run in loss["runs"]]
        if not means:
            table.add_row(escape(loss["name"]), "-", "-", "0", "-", "-")
            continue
        ends = (_number(min(means)), _number(max(means)))
        table.add_row(escape(loss["name"]), _number(loss["mean"]), _interval(loss["ci95"]), str(len(means)), *ends)
    return table


def _pairs_table(result: Mapping[str, Any]) -> Table:
    title = "differences between losses" if result["scope"] == "losses" else "differences between checkpoints"
    table = Table(title=title, title_justify="left")
    table.add_column("a", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("b", overflow="fold")
    difference = "a - b" if result["higher_is_better"] else "b - a"  # more is better for a
    for heading in (difference, "adjusted CI", "p adj."):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in result["pairs"]:
        verdict = pair["verdict"]
        numbers = [_number(pair["difference"], "+"), _interval(pair["ci95_adjusted"], "+"), _p(pair["p_adjusted"])]
        shown = f"[{VERDICT_STYLES[verdict]}]{verdict}[/]" if verdict else "-"
        table.add_row(escape(pair["a"]), shown, escape(pair["b"]), *numbers)
    return table


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def _interval(ends: list[float] | None, sign: str = "") -> str:
    return "-" if ends is None else " to ".join(f"{end:{sign}.3f}" for end in ends)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
