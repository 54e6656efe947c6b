"""The report across data sets: datasets.html, a self-contained page, and datasets.md."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from segkit.report.comparison_figures import NARROW, WIDTH, demsar_figure, drawn
from segkit.report.html import Picture, figure_picture, write_both
from segkit.report.score_notes import score_in_words

ALPHA = 0.05


def write_datasets_pages(result: Mapping[str, Any], folders: Mapping[str, str], out: Path) -> None:
    """Write datasets.html and datasets.md.

    Args:
        result: The contents of datasets.json.
        folders: The folder of the report of each data set, relative to `out`.
        out: The output folder.
    """
    order = sorted(result["mean_ranks"], key=result["mean_ranks"].__getitem__)
    values = {
        "result": result,
        "pairs": best_first(result),
        "folders": folders,
        "order": order,
        "score": score_in_words(result),
        "basis": {name: basis_of(numbers) for name, numbers in result["basis"].items()},
        "sentences": sentences(result),
        "pictures": pictures(result),
    }
    write_both("datasets", values, out, "datasets")


def basis_of(basis: Mapping[str, Any]) -> str:
    """The cases, groups and runs on which the numbers of a data set are based."""
    fewest, most = min(basis["runs"].values()), max(basis["runs"].values())
    runs = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{basis['cases']} cases in {basis['groups']} groups, {runs} runs per loss"


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The conclusions of the test across data sets, and of its pairs."""
    number = len(result["datasets"])
    if result["test"] is None:
        return [f"No test across data sets was made: {result['reason']}."]
    significant = result["p"] < ALPHA
    lead = "The losses differ" if significant else "No difference between the losses was found"
    conclusions = [f"{lead} across {number} data sets ({result['test']})."]
    if not significant:
        return conclusions
    conclusions += [
        f"{pair['a']} ranks before {pair['b']}, by {-pair['rank_difference']:.2f} ranks on average."
        for pair in best_first(result)
        if pair["p_adjusted"] < ALPHA
    ]
    if result["pairs"] and len(conclusions) == 1:
        conclusions.append("The test of pairs does not show which of them differ.")
    return conclusions


def best_first(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs in the order of the ranks, each with the loss first that has the better mean rank."""
    ranks = result["mean_ranks"]
    oriented = [
        pair
        if pair["rank_difference"] <= 0
        else {**pair, "a": pair["b"], "b": pair["a"], "rank_difference": -pair["rank_difference"]}
        for pair in result["pairs"]
    ]
    return sorted(oriented, key=lambda pair: (ranks[pair["a"]], ranks[pair["b"]]))


def pictures(result: Mapping[str, Any]) -> list[Picture]:
    """The critical-difference diagram, if pairs were tested."""
    if not result["pairs"]:
        return []
    caption = (
        f"Mean ranks over {len(result['datasets'])} data sets. Bars join losses whose mean ranks differ by less than "
        "the critical difference of Nemenyi's test at the level 0.05, which is drawn at the top (Demšar 2006)."
    )
    make = partial(drawn, lambda: demsar_figure(result, ALPHA))
    return [figure_picture("datasets", "Critical difference", caption, make, (WIDTH, NARROW))]
