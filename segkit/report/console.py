"""Scores and comparisons as tables on the console, with notes on how they were computed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segkit.report.advice import advice
from segkit.report.figure_text import printable, shortened
from segkit.report.score_notes import basis, caveats, heading, number, score_in_words, thresholds
from segkit.report.size_table import size_tables
from segkit.utils.console import warn

METRICS_PER_TABLE = 4
MAX_ROWS = 200  # of a table
FACT_WIDTH = 9  # of the names before facts
VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the contents of scores.json: one row per class, the mean over classes, and notes.

    Metrics other than Dice and IoU are printed in separate tables, so that no table is wider than 80 characters.
    Medians, and intervals of metrics other than Dice, are in scores.json only.
    """
    table = Table(title=f"{scores['cases']} cases of {escape(str(scores['split']))}", title_justify="left")
    table.add_column("class", min_width=12, overflow="fold")
    for column in ("Dice", "95 % CI", "IoU", "cases", "missed", "spurious"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, score in _listed_classes(scores).items():
        dice, iou = score["dice"], score["iou"]
        cells = [number(dice["mean"]), _interval(dice.get("ci95")), number(iou["mean"])]
        table.add_row(_cell(name), *cells, *(str(dice[column]) for column in ("cases", "missed", "spurious")))
    table.add_section()
    mean, name = scores["mean"], _mean_row_name(scores, "dice")
    counts = [str(scores["mean_counts"]["dice"][column]) for column in ("pairs", "missed", "spurious")]
    interval = _interval(scores["mean_intervals"]["dice"]["ci95"])
    table.add_row(name, number(mean["dice"]), interval, number(mean["iou"]), *counts, style="bold")
    console.print(table)
    others = [metric for metric in scores["mean"] if metric not in ("dice", "iou")]
    for start in range(0, len(others), METRICS_PER_TABLE):
        console.print(_metrics_table(scores, others[start : start + METRICS_PER_TABLE]))
    for table in size_tables(scores, list(_listed_classes(scores))):
        console.print(table)
    if "of_cases" in scores:
        console.print(_case_table(scores["of_cases"]))
    for line in (*basis(scores), *_left_out(scores), *caveats(scores)):
        console.print(f"  {_line(line)}", style="dim", highlight=False)


def _metrics_table(scores: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """Means of a few metrics, each with the number of counted cases, or of counted (case, class) pairs in the mean."""
    table = Table()
    table.add_column("class", min_width=12, overflow="fold")
    for metric in metrics:
        table.add_column(f"{heading(metric)} (cases)", justify="right")
    for name, score in _listed_classes(scores).items():
        table.add_row(_cell(name), *(f"{number(score[m]['mean'])} ({score[m]['cases']})" for m in metrics))
    table.add_section()
    names = dict.fromkeys(_mean_row_name(scores, metric) for metric in metrics)
    means = (f"{number(scores['mean'][m])} ({scores['mean_counts'][m]['pairs']})" for m in metrics)
    table.add_row(" / ".join(names), *means, style="bold")
    return table


def _case_table(of_cases: Mapping[str, Mapping[str, Any]]) -> Table:
    """Metrics that have one value per case rather than one per class."""
    table = Table()
    table.add_column("per case", min_width=12, overflow="fold")
    for column in ("mean", "95 % CI", "median", "cases"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric, score in of_cases.items():
        numbers = [number(score["mean"]), _interval(score.get("ci95")), number(score.get("median"))]
        table.add_row(heading(metric), *numbers, str(score["cases"]))
    return table


def _mean_row_name(scores: Mapping[str, Any], metric: str) -> str:
    """The mean, with the classes over which it is taken; a class may be called foreground, too."""
    return f"mean ({'all classes' if metric in scores['rules']['background'] else 'foreground'})"


def print_side_by_side(results: Mapping[str, Mapping[str, Any]], console: Console) -> pd.DataFrame:
    """Print one table per metric, with one row per class and one column per checkpoint.

    The tables do not tell whether a difference is significant.

    Args:
        results: The contents of scores.json for each checkpoint.
        console: Receives the tables.

    Returns:
        One table with a row per checkpoint, metric and class, with the mean and the numbers of counted cases, missed
        structures and spurious structures.
    """
    for metric in dict.fromkeys(metric for result in results.values() for metric in result["metrics"]):
        per_class = any(metric in result["mean"] for result in results.values())
        full_names = dict.fromkeys(result["metrics"].get(metric, metric) for result in results.values())
        table = Table(title=f"{', '.join(full_names)}, side by side", title_justify="left")
        table.add_column("class", overflow="fold")
        for name in results:
            table.add_column(_cell(name), justify="right", overflow="fold")
        class_names = [name for result in results.values() for name in result["classes"] if per_class]
        for class_name in dict.fromkeys(class_names):
            cells = [result["classes"].get(class_name, {}).get(metric, {}).get("mean") for result in results.values()]
            table.add_row(_cell(class_name), *map(number, cells))
        table.add_section()
        table.add_row("mean", *(number(_mean_of(result, metric)) for result in results.values()), style="bold")
        console.print(table)
    for line in _side_by_side_notes(results):
        console.print(f"  {_line(line)}", style="dim", highlight=False)
    return pd.DataFrame(
        [
            {"checkpoint": name, "metric": full_name, "class": class_name}
            | {"rules": result["rules"]["id"], "threshold": _number_or_text(result)}
            | {key: score[metric][key] for key in ("mean", "cases", "missed", "spurious")}
            for name, result in results.items()
            for metric, full_name in result["metrics"].items()
            for class_name, score in result["classes"].items()
            if metric in score
        ]
        + [
            {"checkpoint": name, "metric": result["metrics"][metric], "class": ""}
            | {"rules": result["rules"]["id"], "threshold": _number_or_text(result)}
            | {key: score[key] for key in ("mean", "cases", "missed", "spurious")}
            for name, result in results.items()
            for metric, score in result.get("of_cases", {}).items()
        ]
    )


def _left_out(scores: Mapping[str, Any]) -> list[str]:
    """Which classes are not printed."""
    if len(scores["classes"]) <= MAX_ROWS:
        return []
    return [f"the {MAX_ROWS} of {len(scores['classes'])} classes with the lowest Dice; all are in scores.json"]


def _number_or_text(result: Mapping[str, Any]) -> Any:
    """The threshold for a table: a number, or a text with that of each class."""
    return thresholds(result) if isinstance(result["threshold"], Mapping) else result["threshold"]


def _mean_of(result: Mapping[str, Any], metric: str) -> float | None:
    """The overall mean of a metric; None if it was not computed."""
    return result["mean"].get(metric, result.get("of_cases", {}).get(metric, {}).get("mean"))


def _side_by_side_notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How each checkpoint was selected, and differences between the evaluations."""
    selected = {name: result["selected_on"] for name, result in results.items() if result["selected_on"]}
    notes = [f"{name}: selected on {part}" for name, part in selected.items()]
    for setting, value_of in (
        ("classes", lambda result: list(result["classes"])),
        ("rules", lambda result: result["rules"]["id"]),
        ("thresholds", lambda result: result["threshold"]),
        ("split", lambda result: result["split"]),
        ("number of cases", lambda result: result["cases"]),
    ):
        values = {name: value_of(result) for name, result in results.items()}
        if len({str(value) for value in values.values()}) > 1:
            listed = "; ".join(f"{name}: {value}" for name, value in values.items())
            notes.append(f"not directly comparable, different {setting}: {listed}")
    return [*notes, "these are single trained networks; use segkit compare to test whether their losses differ"]


def print_facts(rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Print names and values in two columns, the lines of a long value below each other."""
    for name, value in rows:
        indent = " " * FACT_WIDTH
        text = textwrap.fill(value, console.width, initial_indent=f"{name:<{FACT_WIDTH}}", subsequent_indent=indent)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_parts(seconds: Mapping[str, float], console: Console) -> None:
    """Print the time of each phase of a training step, in milliseconds and as a share of the step.

    Args:
        seconds: The mean time of each phase.
        console: Receives the table.
    """
    total = sum(seconds.values())
    table = Table(title=f"training step: {1e3 * total:.1f} ms", title_justify="left")
    table.add_column("phase")
    for column in ("ms", "share"):
        table.add_column(column, justify="right")
    for phase, time in seconds.items():
        table.add_row(phase, f"{1e3 * time:.2f}", f"{100 * time / total:.0f} %")
    console.print(table)


def print_class_weights(
    term: str, method: str, names: Sequence[str], share: Sequence[float], weights: Sequence[float], console: Console
) -> None:
    """Print the class weights computed from the data, with the share of training pixels of each class.

    Args:
        term: The term of the loss that the weights belong to.
        method: The method that computed them.
        names: The names of the classes.
        share: The share of the training pixels of each class.
        weights: The weight of each class.
        console: Receives the table.
    """
    console.print(f"class weights of {term}: {method}", markup=False, highlight=False)
    table = Table()
    table.add_column("class", overflow="fold")
    for column in ("share of pixels", "weight"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, pixel_share, weight in zip(names, share, weights, strict=True):
        table.add_row(_cell(name), f"{100 * pixel_share:.3g} %", f"{weight:.4g}")
    console.print(table)


def print_modules(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print how many initial weights of each module were loaded from a file.

    Args:
        rows: For each module its name, the numbers of weights loaded, not in the file and of another shape, and an
            example of another shape.
        console: Receives the table.
    """
    table = Table()
    table.add_column("module", overflow="fold")
    for column in ("loaded", "not in file", "other shape"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("shape in file", overflow="fold")
    for module, *cells in rows:
        table.add_row(_cell(module), *map(_cell, cells))
    console.print(table)


def print_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Print the contents of comparison.json: losses ordered by mean, pairs with their verdicts, warnings and,
    where the eye falls at the end of a long output, which loss to take.

    Unadjusted intervals and p-values are in comparison.json only.
    """
    console.print(_losses_table(result))
    if result["pairs"]:
        console.print(_pairs_table(result))
    if result.get("noise_floor"):
        console.print(f"  {_line(noise_sentence(result['noise_floor']))}", highlight=False)
    method = result["method"]
    in_warnings = any(method["speaks_of"] in warning for warning in result["warnings"])
    for line in (
        *([] if in_warnings else [f"the results apply to {method['speaks_of']}"]),
        f"test: {method['test']}; adjusted interval: {method['ci95_adjusted']}; adjusted p-value: "
        f"{method['p_adjusted']}",
        *([verdict_explanation(result["margin"])] if any(pair["verdict"] for pair in result["pairs"]) else []),
        f"score: {method['score']}",
        *dict.fromkeys(pair["reason"] for pair in result["pairs"] if pair.get("reason")),
    ):
        console.print(f"  {_line(line)}", style="dim", highlight=False)
    for warning in result["warnings"]:
        warn(printable(warning), console)
    for sentence in advice(best_first(result)):
        console.print(_line(sentence), style="bold", highlight=False)


def verdict_explanation(margin: float) -> str:
    """How verdicts are read from the adjusted interval."""
    return (
        f"verdicts are read from the adjusted interval: equivalent if it lies within ±{margin:g}, otherwise better or "
        "worse if it excludes 0, and undecided (inconclusive) if it includes 0"
    )


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """The noise floor: the difference between two sets of runs of one loss."""
    return (
        f"Noise floor: two sets of runs of the same loss, {noise['a']} and {noise['b']}, differ by "
        f"{number(noise['difference'], '+')} (95 % interval {_interval(noise['ci95'], '+')}; verdict "
        f"{noise['verdict'] or 'none'}). Based on {noise['cases']} cases in {noise['groups']} groups and "
        f"{' and '.join(map(str, noise['runs']))} runs."
    )


def print_datasets(result: Mapping[str, Any], console: Console) -> None:
    """Print the contents of datasets.json: mean ranks, and the results of the test across data sets."""
    number = len(result["datasets"])
    table = Table(title=f"mean ranks by {score_in_words(result)} over {number} data sets", title_justify="left")
    table.add_column("loss")
    table.add_column("mean rank", justify="right")
    for loss, rank in sorted(result["mean_ranks"].items(), key=lambda item: item[1]):
        table.add_row(_cell(loss), f"{rank:.2f}")
    console.print(table)
    outcome = f"no test: {result['reason']}" if result.get("reason") else f"{result['test']}: p {_p(result['p'])}"
    console.print(f"  {_line(outcome)}", style="dim", highlight=False)
    for pair in result["pairs"]:
        line = (
            f"{pair['a']} - {pair['b']}: difference of mean ranks {pair['rank_difference']:+.2f}, "
            f"adjusted p {_p(pair['p_adjusted'])}"
        )
        console.print(f"  {_line(line)}", highlight=False)


def best_first(result: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of comparison.json with losses ordered by their means, and pairs in the order of their losses."""
    losses = by_mean(result)
    position = {loss["name"]: number for number, loss in enumerate(losses)}

    def in_order(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return sorted(pairs, key=lambda pair: sorted((position[pair["a"]], position[pair["b"]])))

    ranks = {**result["ranks"], "pairs": in_order(result["ranks"]["pairs"])}
    return {**result, "losses": losses, "pairs": in_order(result["pairs"]), "ranks": ranks}


def by_mean(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The losses of comparison.json from best to worst; losses without a run come last."""
    sign = 1 if result["higher_is_better"] else -1
    return sorted(result["losses"], key=lambda loss: (not loss["runs"], -sign * (loss["mean"] or 0)))


def _losses_table(result: Mapping[str, Any]) -> Table:
    title = f"losses by {score_in_words(result)}, {result['cases']} cases in {result['groups']} groups"
    table = Table(title=title, title_justify="left")
    table.add_column("loss")
    for column in ("mean", "95 % CI", "runs", "lowest", "highest"):
        table.add_column(column, justify="right", no_wrap=True)
    for loss in by_mean(result):
        means = [run["mean"] for run in loss["runs"]]
        if not means:
            table.add_row(_cell(loss["name"]), "-", "-", "0", "-", "-")
            continue
        extremes = (number(min(means)), number(max(means)))
        table.add_row(_cell(loss["name"]), number(loss["mean"]), _interval(loss["ci95"]), str(len(means)), *extremes)
    return table


def _listed_pairs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pairs to print: of very many, those with the largest differences, in their order."""
    pairs = result["pairs"]
    largest = sorted(range(len(pairs)), key=lambda number: -abs(pairs[number]["difference"] or 0))[:MAX_ROWS]
    return [pairs[number] for number in sorted(largest)]


def _pairs_table(result: Mapping[str, Any]) -> Table:
    title = "differences between losses" if result["scope"] == "losses" else "differences between checkpoints"
    table = Table(title=title, title_justify="left")
    table.add_column("a", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("b", overflow="fold")
    difference = "a - b" if result["higher_is_better"] else "b - a"  # positive favours a
    for column in (difference, "adjusted CI", "p adj."):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in _listed_pairs(result):
        verdict = pair["verdict"]
        numbers = [number(pair["difference"], "+"), _interval(pair["ci95_adjusted"], "+"), _p(pair["p_adjusted"])]
        styled = f"[{VERDICT_STYLES[verdict]}]{verdict}[/]" if verdict else "-"
        table.add_row(_cell(pair["a"]), styled, _cell(pair["b"]), *numbers)
    if len(result["pairs"]) > MAX_ROWS:
        table.caption = f"{MAX_ROWS} of {len(result['pairs'])} pairs; all are in comparison.json"
    return table


def _cell(name: str) -> str:
    """A name for a cell of a table."""
    return escape(shortened(name))


def _line(text: str) -> str:
    """A line of text with names in it."""
    return escape(printable(text))


def _listed_classes(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The classes to print: of very many, those with the lowest Dice, in the order of the labels."""
    classes = scores["classes"]
    if len(classes) <= MAX_ROWS:
        return dict(classes)

    def dice(name: str) -> float:
        mean = classes[name]["dice"]["mean"]
        return math.inf if mean is None else mean

    lowest = set(sorted(classes, key=dice)[:MAX_ROWS])
    return {name: score for name, score in classes.items() if name in lowest}


def _interval(ends: list[float] | None, sign: str = "") -> str:
    return "-" if ends is None else " to ".join(f"{end:{sign}.3f}" for end in ends)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
