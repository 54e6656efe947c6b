"""The page over several data sets: datasets.html, which holds everything and loads nothing, and datasets.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkit.report.comparison_figures import demsar_figure
from segkit.report.console import score_name
from segkit.report.html import Picture, png_of, write_both

ALPHA = 0.05


def write_datasets_pages(result: Mapping[str, Any], folders: Mapping[str, str], out: Path) -> None:
    """result: the contents of datasets.json. folders: the one of each data set's own report, from `out`."""
    order = sorted(result["mean_ranks"], key=result["mean_ranks"].__getitem__)
    shown = {
        "result": result,
        "pairs": best_first(result),
        "folders": folders,
        "order": order,
        "score": score_name(result),
        "basis": {name: basis_words(one) for name, one in result["basis"].items()},
        "sentences": sentences(result),
        "pictures": pictures(result),
    }
    write_both("datasets", shown, out, "datasets")


def basis_words(basis: Mapping[str, Any]) -> str:
    """On what the numbers of a data set rest."""
    fewest, most = min(basis["runs"].values()), max(basis["runs"].values())
    runs = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{basis['cases']} cases in {basis['groups']} groups, {runs} runs a loss"


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What the test over data sets says, and of which pairs."""
    number = len(result["datasets"])
    if result["test"] is None:
        return [f"Nothing is tested over data sets: {result['reason']}."]
    decided = result["p"] < ALPHA
    lead = "The losses differ" if decided else "No difference between the losses was found"
    found = [f"{lead} over {number} data sets ({result['test']})."]
    if not decided:
        return found
    found += [
        f"{pair['a']} ranks before {pair['b']}, by {-pair['rank_difference']:.2f} on average."
        for pair in best_first(result)
        if pair["p_adjusted"] < ALPHA
    ]
    if result["pairs"] and len(found) == 1:
        found.append("Which of them differ, the test of pairs does not say.")
    return found


def best_first(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs with the loss first that has the better mean rank, in the order of the ranks."""
    ranks = result["mean_ranks"]
    turned = [
        pair
        if pair["rank_difference"] <= 0
        else {**pair, "a": pair["b"], "b": pair["a"], "rank_difference": -pair["rank_difference"]}
        for pair in result["pairs"]
    ]
    return sorted(turned, key=lambda pair: (ranks[pair["a"]], ranks[pair["b"]]))


def pictures(result: Mapping[str, Any]) -> list[Picture]:
    """The critical-difference diagram, where pairs were tested."""
    if not result["pairs"]:
        return []
    words = (
        f"Mean ranks over {len(result['datasets'])} data sets; bars join losses that differ by less than the "
        "critical difference of Nemenyi's test at 0.05, which is drawn above (Demšar 2006)."
    )
    return [Picture("datasets", "Critical difference", words, png_of(demsar_figure(result, ALPHA)))]
