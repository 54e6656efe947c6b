"""Scores and comparisons as tables on the console, with the rules that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the contents of scores.json: a row a class, the mean over foreground classes, and what they mean.

    The intervals of IoU are in scores.json only.
    """
    table = Table(title=f"{scores['cases']} cases of {escape(str(scores['split']))}", title_justify="left")
    table.add_column("class", min_width=12, overflow="fold")  # 80 characters in all, the usual terminal
    for heading in ("Dice", "95 % CI", "IoU", "cases", "missed", "spurious"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, score in scores["classes"].items():
        dice, iou = score["dice"], score["iou"]
        shown = [_number(dice["mean"]), _interval(dice.get("ci95")), _number(iou["mean"])]
        table.add_row(escape(name), *shown, *(str(dice[column]) for column in ("cases", "missed", "spurious")))
    table.add_section()
    mean = scores["mean"]
    table.add_row("foreground", _number(mean["dice"]), "", _number(mean["iou"]), "", "", "", style="bold")
    console.print(table)
    for line in _score_notes(scores):
        console.print(f"  {escape(line)}", style="dim", highlight=False)


def _score_notes(scores: Mapping[str, Any]) -> list[str]:
    """What the table cannot say: checkpoint, rules, classes left out, why intervals are missing."""
    selected = scores.get("selected_on")
    chosen = f"selected on {selected}" if selected else "not selected by a score"
    rules = scores["rules"]
    notes = [
        f"checkpoint: {scores['checkpoint']}, {chosen}",
        f"rules {rules['name']}: {rules['overlap']}; {rules['neither']}; {rules['mean']}",
    ]
    if scores.get("mean_left_out"):
        notes.append(f"not in the mean, because no case has them: {', '.join(scores['mean_left_out'])}")
    counted = [score["dice"] for score in scores["classes"].values() if score["dice"]["mean"] is not None]
    notes += sorted({f"no interval: {score['ci95_reason']}" for score in counted if "ci95_reason" in score})
    whole = scores.get("global", {}).get("mean")
    if whole is not None:
        notes.append(f"pooled over all pixels instead: Dice {_number(whole['dice'])}, IoU {_number(whole['iou'])}")
    return notes


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


def _losses_table(result: Mapping[str, Any]) -> Table:
    scale = f"{result['metric']}, {result['cases']} cases in {result['groups']} groups"
    table = Table(title=f"losses by mean {scale}", title_justify="left")
    table.add_column("loss")
    for heading in ("mean", "95 % CI", "runs", "lowest", "highest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for loss in sorted(result["losses"], key=lambda loss: -loss["mean"]):
        means = [run["mean"] for run in loss["runs"]]
        ends = (_number(min(means)), _number(max(means)))
        table.add_row(escape(loss["name"]), _number(loss["mean"]), _interval(loss["ci95"]), str(len(means)), *ends)
    return table


def _pairs_table(result: Mapping[str, Any]) -> Table:
    title = "differences between losses" if result["scope"] == "losses" else "differences between checkpoints"
    table = Table(title=title, title_justify="left")
    table.add_column("a", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("b", overflow="fold")
    for heading in ("a - b", "adjusted CI", "p adj."):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in result["pairs"]:
        verdict = pair["verdict"]
        numbers = [f"{pair['difference']:+.4f}", _interval(pair["ci95_adjusted"], "+"), _p(pair["p_adjusted"])]
        shown = f"[{VERDICT_STYLES[verdict]}]{verdict}[/]" if verdict else "-"
        table.add_row(escape(pair["a"]), shown, escape(pair["b"]), *numbers)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: list[float] | None, sign: str = "") -> str:
    return "-" if ends is None else " to ".join(f"{end:{sign}.3f}" for end in ends)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
