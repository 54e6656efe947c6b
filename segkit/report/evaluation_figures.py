"""Figures over all cases of an evaluation: the confusion matrix and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_ANNOTATED_CLASSES = 16  # with more classes the cells are too small for numbers


def confusion_figure(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix normalised by row.

    Args:
        matrix: Pixel counts [K, K], with the reference in rows and the prediction in columns. A class without reference
            pixels is left blank.
        names: The names of the K classes.
        path: The PNG file to write.

    Raises:
        ValueError: The shape of the matrix does not match the number of names.
    """
    classes = len(names)
    if matrix.shape != (classes, classes):
        raise ValueError(f"expected a matrix of {classes} x {classes}, one row for each name, got {list(matrix.shape)}")
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = max(4.0, 0.55 * classes + 2.5)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axis, label="share of the pixels of the reference class", shrink=0.8)
    axis.set_xticks(range(classes), list(names), rotation=45, ha="right", parse_math=False)
    axis.set_yticks(range(classes), list(names), parse_math=False)
    axis.set_xlabel("prediction")
    axis.set_ylabel("reference")
    if classes <= MAX_ANNOTATED_CLASSES:
        for row, column in zip(*np.nonzero(~np.isnan(shares)), strict=True):
            share = float(shares[row, column])
            axis.text(
                column,
                row,
                _share_label(share),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.5 else "black",
            )
    _save(figure, path)


def _share_label(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.001"
    return f"{share:.3f}"


def reliability_figure(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw a reliability diagram for each region, with the share of pixels in each bin below it.

    Args:
        calibration: The section `calibration` of scores.json.
        path: The PNG file to write.
    """
    regions = calibration["reliability"]
    figure = Figure(figsize=(4.2 * len(regions), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(regions), sharex=True, height_ratios=(3, 1), squeeze=False)
    for (upper, lower), (region, rows) in zip(axes.T, regions.items(), strict=True):
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for name, row in rows.items():
            confidence, accuracy = (np.array(row[key], dtype=float) for key in ("confidence", "accuracy"))
            upper.plot(confidence, accuracy, marker="o", markersize=3, label=name)
            pixels = np.array(row["pixels"], dtype=float)
            edges = np.linspace(0, 1, len(pixels) + 1)
            lower.stairs(pixels / max(pixels.sum(), 1), edges)
        upper.set_title(f"{region} pixels" if region != "all" else "all pixels", fontsize=10)
        upper.set_ylim(0, 1)
        lower.set_xlim(0, 1)
        lower.set_yscale("log")
        lower.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of pixels")
    legend = axes[0, 0].legend(fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
