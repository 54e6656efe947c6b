"""A contact sheet of training samples: the network's input with the classes drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segkit.labels import Labels
from segkit.report.figure_text import plain_texts, shortened, without_glyph_warnings
from segkit.report.overlays import class_patches, draw_classes, panel_ratio, view_of
from segkit.utils.files import replaced

PANEL_INCHES = 2.2
BINS = 64

Sample = tuple[np.ndarray, np.ndarray]  # image, mask


Pixels = Sequence[np.ndarray]  # one array [C, N] per sample


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Sample]]],
    labels: Labels,
    path: Path,
    title: str,
    *,
    histograms: Sequence[tuple[Pixels, Pixels]],
) -> None:
    """Draw one row per case and save the sheet as an image.

    Volumes are shown by the slice with the most foreground. Ignored pixels are drawn with grey stripes. The last panel
    of a row shows what augmentation does to the intensities.

    Args:
        rows: For each case its name and samples: the image as stored, then augmented ones. Images are [C, *S], masks
            [*S] of class numbers or [K, *S].
        labels: The labels of the masks.
        path: The file to write.
        title: The title of the sheet.
        histograms: For each case its normalised pixels without and with augmentation.
    """
    views = [[view_of(name, image, mask, labels) for image, mask in samples] for name, samples in rows]
    heights = [max(map(panel_ratio, row)) * PANEL_INCHES + 0.35 for row in views]
    columns = max(map(len, views)) + 1
    figure = Figure(figsize=(PANEL_INCHES * columns, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row_axes, row_views, (name, samples), pixels in zip(axes, views, rows, histograms, strict=True):
        for axis in row_axes[:-1]:
            axis.set_axis_off()
        _draw_histograms(row_axes[-1], *pixels)
        for number, (axis, view, (image, _mask)) in enumerate(zip(row_axes, row_views, samples, strict=False)):
            draw_classes(axis, view, labels)
            size = " x ".join(map(str, image.shape[1:]))
            axis.set_title(f"{shortened(name)} ({size})" if number == 0 else size, fontsize=7, parse_math=False)
    patches = class_patches(labels, [view for row in views for view in row])
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    plain_texts(legend)
    path.parent.mkdir(parents=True, exist_ok=True)
    with without_glyph_warnings(), replaced(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_histograms(axis: Any, before: Pixels, after: Pixels) -> None:
    """Draw the distribution of normalised intensities without and with augmentation."""
    values = [np.concatenate([part[np.isfinite(part)] for part in parts]) for parts in (before, after)]
    edges = np.histogram_bin_edges(np.concatenate(values), bins=BINS)
    for pixels, colour, label in zip(values, ("0.6", "tab:red"), ("as stored", "augmented"), strict=True):
        axis.hist(pixels, bins=edges, density=True, histtype="step", color=colour, label=label)
    axis.set_title("normalised intensities", fontsize=7)
    axis.tick_params(labelsize=6, labelleft=False, left=False)
    axis.legend(fontsize=6, frameon=False)
