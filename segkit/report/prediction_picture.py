"""A picture of one prediction: the image, and the image with the predicted classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.labels import Labels
from segkit.report.figure_text import plain_texts, without_glyph_warnings
from segkit.report.overlays import PANEL_INCHES, class_patches, draw_classes, panel_ratio, show, view_of
from segkit.utils.files import replaced

WIDTH, LINE_INCHES, MARGIN = 2 * PANEL_INCHES, 0.25, 0.02


def write_prediction_picture(caption: str, image: np.ndarray, mask: np.ndarray, labels: Labels, path: Path) -> None:
    """Draw a prediction as a PNG file. Of a volume, the slice with the most foreground is shown.

    image: [C, *S], see `overlay_figure`. mask: the decoded prediction, [*S] or [K, *S].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    view = view_of(caption, image, mask, labels)
    patches = class_patches(labels, [view])
    columns = min(4, max(1, len(patches)))
    legend = LINE_INCHES * (1 + -(-len(patches) // columns))
    panel = PANEL_INCHES * panel_ratio(view)
    height = 0.4 + panel + legend
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.1 / height, view.caption, va="top", fontsize=10, parse_math=False)
    axes = [figure.add_axes((left + MARGIN / 2, legend / height, 0.5 - MARGIN, panel / height)) for left in (0.0, 0.5)]
    for axis in axes:
        axis.set_axis_off()
    show(axes[0], view.image)
    draw_classes(axes[1], view, labels)
    shown = figure.legend(
        handles=patches,
        ncols=columns,
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, legend / height),
        borderaxespad=0.0,
    )
    plain_texts(shown)
    with without_glyph_warnings(), replaced(path) as temporary:
        figure.savefig(temporary, dpi=110)
