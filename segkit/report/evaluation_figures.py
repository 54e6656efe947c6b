"""Figures over all cases of an evaluation: the confusion matrix and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segkit.report.figure_text import plain_texts, shortened, without_glyph_warnings
from segkit.utils.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ANNOTATED_CLASSES = 16  # with more classes the cells are too small for numbers
MAX_CLASSES = 40  # rows and columns of a confusion matrix, whose picture would otherwise grow with their square
MAX_CURVES = 10  # of a reliability diagram
MAX_REGIONS = 6


def confusion_figure(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix normalised by row; of many classes, those with the most wrongly predicted pixels.

    Args:
        matrix: Pixel counts [K, K], with the reference in rows and the prediction in columns. A class without reference
            pixels is left blank.
        names: The names of the K classes.
        path: The PNG file to write.

    Raises:
        ValueError: The shape of the matrix does not match the number of names.
    """
    classes = len(names)
    if matrix.shape != (classes, classes) or not classes:
        raise ValueError(f"expected a matrix of {classes} x {classes}, one row for each name, got {list(matrix.shape)}")
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    chosen = most_confused(matrix, MAX_CLASSES)
    shares, shown = shares[np.ix_(chosen, chosen)], [shortened(names[number], 40) for number in chosen]
    side = max(4.0, min(0.55, 12 / len(shown)) * len(shown) + 2.5)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axis, label="share of the pixels of the reference class", shrink=0.8)
    size = 10 if len(shown) <= MAX_ANNOTATED_CLASSES else 7
    axis.set_xticks(range(len(shown)), shown, rotation=45, ha="right", parse_math=False, fontsize=size)
    axis.set_yticks(range(len(shown)), shown, parse_math=False, fontsize=size)
    axis.set_xlabel("prediction")
    axis.set_ylabel("reference")
    if len(shown) < classes:
        axis.set_title(
            f"the {len(shown)} of {classes} classes with the most wrongly predicted pixels; all are in confusion.csv",
            fontsize=10,
        )
    if len(shown) <= MAX_ANNOTATED_CLASSES:
        _write_shares(axis, shares)
    _save(figure, path)


def most_confused(matrix: np.ndarray, number: int) -> list[int]:
    """The classes with the most pixels in wrong cells of their row or column, in the order of the matrix."""
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    return sorted(np.argsort(-wrong, kind="stable")[:number].tolist())


def _write_shares(axis: Axes, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(~np.isnan(shares)), strict=True):
        share = float(shares[row, column])
        colour = "white" if share > 0.5 else "black"
        axis.text(column, row, share_label(share), ha="center", va="center", fontsize=8, color=colour)


def share_label(share: float) -> str:
    """A share for a cell of the confusion matrix."""
    if 0 < share < 0.001:
        return "<0.001"
    return f"{share:.3f}"


def reliability_figure(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw a reliability diagram for each region, with the share of pixels in each bin below it.

    Of many classes, those with the most pixels are drawn.

    Args:
        calibration: The section `calibration` of scores.json.
        path: The PNG file to write.
    """
    regions = dict(list(calibration["reliability"].items())[:MAX_REGIONS])
    figure = Figure(figsize=(4.2 * len(regions), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(regions), sharex=True, height_ratios=(3, 1), squeeze=False)
    for (upper, lower), (region, rows) in zip(axes.T, regions.items(), strict=True):
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for name, row in _most_pixels(rows).items():
            confidence, accuracy = (np.array(row[key], dtype=float) for key in ("confidence", "accuracy"))
            upper.plot(confidence, accuracy, marker="o", markersize=3, label=shortened(name, 30))
            pixels = np.array(row["pixels"], dtype=float)
            edges = np.linspace(0, 1, len(pixels) + 1)
            lower.stairs(pixels / max(pixels.sum(), 1), edges)
        part = f", the {MAX_CURVES} of {len(rows)} classes with most" if len(rows) > MAX_CURVES else ""
        upper.set_title(f"{region} pixels{part}", fontsize=10)
        upper.set_ylim(0, 1)
        lower.set_xlim(0, 1)
        lower.set_yscale("log")
        lower.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of pixels")
    legend = axes[0, 0].legend(fontsize=8, frameon=False)
    plain_texts(legend)
    _save(figure, path)


def _most_pixels(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The rows with the most pixels, in the order given."""
    by_pixels = sorted(rows, key=lambda name: -sum(rows[name]["pixels"]))[:MAX_CURVES]
    return {name: row for name, row in rows.items() if name in by_pixels}


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with without_glyph_warnings(), replaced(path) as temporary:
        figure.savefig(temporary, dpi=110)
