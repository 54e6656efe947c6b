"""Overlays of cases: image, reference, prediction and errors side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from segkit.labels import Labels
from segkit.report.figure_text import plain_texts, printable, shortened, without_glyph_warnings
from segkit.utils.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# classes: three colours of Okabe and Ito, then the muted colours of Tol; errors: other colours of Okabe and Ito
PALETTE = (
    *("#E69F00", "#56B4E9", "#0072B2"),
    *("#CC6677", "#117733", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933", "#332288"),
)
CORRECT, SPURIOUS, MISSED, CONFUSED = "#009E73", "#D55E00", "#CC79A7", "#F0E442"
IGNORED = ("#7F7F7F", "#BFBFBF")
PANELS = ("image", "reference", "prediction", "errors")
PANEL_INCHES, LINE_INCHES, BAND_INCHES, OPACITY = 3.0, 0.25, 0.45, 0.45
MAX_PIXELS = 1024  # along a side; of larger images, every n-th pixel is drawn
MAX_LEGEND = 36  # classes
MAX_OUTLINED = 24  # classes in a picture

Row = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def choose_cases(cases: pd.DataFrame, labels: Labels) -> list[tuple[str, str, float]]:
    """The cases with the worst, the median and the best mean foreground Dice.

    The mean is over the foreground classes that count for the case; cases without any are ignored. Of an even number of
    cases, the lower median is taken. Cases with equal scores are ordered by name.

    Args:
        cases: A table with the columns case, class and dice.
        labels: The labels of the experiment.

    Returns:
        Tuples (description, name, Dice) with the descriptions worst, median and best; worst and best for two cases;
        only case for one.
    """
    names = _foreground_names(labels)
    table: Any = cases  # the types of pandas are too vague for a type checker
    means = table[table["class"].isin(names)].groupby("case")["dice"].mean().dropna()
    ranked = sorted(zip(means.tolist(), means.index.tolist(), strict=True))
    indices = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    if len(ranked) < 3:
        indices = {0: {}, 1: {"only case": 0}, 2: {"worst": 0, "best": 1}}[len(ranked)]
    return [(description, ranked[index][1], ranked[index][0]) for description, index in indices.items()]


def overlay_figure(rows: Sequence[Row], labels: Labels, path: Path, title: str | None = None) -> None:
    """Draw one row of panels per case and save the figure.

    Volumes are shown in the slice along the last axis with the most foreground in the reference, or in the prediction
    if the reference is empty; the caption names the slice. Ignored pixels of the mask are striped grey.

    Args:
        rows: A tuple (caption, image, mask, prediction) for each case. The image is [C, *S]; a 2D image with three
            channels is shown as RGB, any other by its first channel, scaled from its 1st to its 99th percentile. Mask
            and prediction are class numbers [*S], or planes [K, *S] of 0 and 1.
        labels: The labels of the experiment.
        path: The PNG file to write.
        title: An optional title.

    Raises:
        ValueError: There are no rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with without_glyph_warnings(), replaced(path) as temporary:
        _figure(rows, labels, title).savefig(temporary, dpi=110)


def overlay_picture(rows: Sequence[Row], labels: Labels) -> np.ndarray:
    """The figure of `overlay_figure` as an RGB array of bytes, [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_figure(rows, labels, None))
    with without_glyph_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(rows: Sequence[Row], labels: Labels, title: str | None) -> Figure:
    """The figure, whose parts are placed by plain arithmetic.

    Layouts that matplotlib solves for depend, in the last bits, on where the process has its variables in memory, which
    changes pixels by a grey level from process to process.
    """
    # imported here, because processes that only train import this module too
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("expected at least one case to draw, got none")
    views = [_view(row, labels) for row in rows]
    captions = [textwrap.fill(view.caption, 110) for view in views]
    panels = [PANEL_INCHES * panel_ratio(view) for view in views]
    heights = [panel + 0.2 * (1 + caption.count("\n")) for panel, caption in zip(panels, captions, strict=True)]
    legends = [class_patches(labels, views), _error_patches(labels, any(not view.valid.all() for view in views))]
    columns = [_legend_columns(patches) for patches in legends]
    legend_heights = [
        LINE_INCHES * (1 + -(-len(patches) // count)) for patches, count in zip(legends, columns, strict=True)
    ]
    width, top = len(PANELS) * PANEL_INCHES, 0.4 if title else 0.1
    height = top + sum(heights) + len(views) * BAND_INCHES + sum(legend_heights)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if title:
        figure.text(0.5, 1 - 0.1 / height, shortened(title, 100), ha="center", va="top", fontsize=13, parse_math=False)
    for view, caption, panel, band in zip(views, captions, panels, heights, strict=True):
        place = {"ha": "left", "va": "top", "fontsize": 11}
        figure.text(0.01, 1 - top / height, caption, parse_math=False, **place)  # pyright: ignore[reportArgumentType]
        bottom = height - top - band - 0.3
        _draw(figure, view, labels, (bottom / height, panel / height))
        top += band + BAND_INCHES
    for patches, count, band in zip(legends, columns, legend_heights, strict=True):
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - top / height), "borderaxespad": 0.0}
        legend = figure.legend(handles=patches, ncols=count, frameon=False, fontsize=9, **place)
        plain_texts(legend)
        top += band
    return figure


def panel_ratio(view: View) -> float:
    """The height of a panel by its width, within limits for images that are much higher or wider than usual."""
    return min(max(view.image.shape[0] / view.image.shape[1], 0.3), 2)


@dataclass(frozen=True)
class View:
    """The arrays that are drawn for one case.

    Args:
        caption: The text above the panels.
        image: [H, W, 3], from 0 to 1.
        reference: The foreground classes of the reference, bool [F, H, W]; false at ignored pixels.
        predicted: The foreground classes of the prediction, bool [F, H, W]; false at ignored pixels.
        valid: Bool [H, W]; false at pixels that are ignored for every class.
    """

    caption: str
    image: np.ndarray
    reference: np.ndarray
    predicted: np.ndarray
    valid: np.ndarray


def _view(row: Row, labels: Labels) -> View:
    caption, image, mask, prediction = row
    caption, image = printable(caption), np.asarray(image)
    mask, prediction = np.asarray(mask), np.asarray(prediction)
    steps = tuple(slice(None, None, max(1, size // MAX_PIXELS)) for size in image.shape[1:3])
    mask, prediction = (_thinned(array, steps, image.ndim - 1) for array in (mask, prediction))
    image = image[(slice(None), *steps)]
    if image.ndim == 4:
        number = choose_slice(*(planes[None] for planes in foreground_pixels(mask, prediction, labels)))
        caption = f"{caption}, slice {number + 1} of {image.shape[-1]}"
        image, mask, prediction = image[:1, ..., number], mask[..., number], prediction[..., number]
    return view_of_plane(image, mask, prediction, labels, caption)


def view_of_plane(
    image: np.ndarray, mask: np.ndarray, prediction: np.ndarray, labels: Labels, caption: str = ""
) -> View:
    """The view of a 2D image or of one slice of a volume; arrays as for `overlay_figure`."""
    reference, valid = _reference_planes(mask, labels, 2)
    predicted = _predicted_planes(prediction, labels) & valid
    return View(caption, _displayed(image), reference, predicted, np.asarray(valid.any(0)))


def _thinned(mask: np.ndarray, steps: tuple[slice, ...], spatial: int) -> np.ndarray:
    """Every n-th row and column of a mask [*S] or [K, *S]."""
    return mask[(*[slice(None)] * (mask.ndim - spatial), *steps)]


def foreground_pixels(mask: np.ndarray, prediction: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """The foreground of any class in the reference, and in the prediction where it is not ignored, bool [*S].

    Planes are made slice by slice, because those of a whole volume may not fit into memory.
    """
    present, predicted = [], []
    for number in range(mask.shape[-1]):
        reference, valid = _reference_planes(mask[..., number], labels, 2)
        present.append(reference.any(0))
        predicted.append((_predicted_planes(prediction[..., number], labels) & valid).any(0))
    return np.stack(present, -1), np.stack(predicted, -1)


def choose_slice(reference: np.ndarray, predicted: np.ndarray) -> int:
    """The index of the slice to show, along the last axis of planes [K, *S].

    This is the first slice with the most foreground in the reference, or in the prediction if the reference is empty.
    If both are empty, it is the middle slice.
    """
    for planes in (reference, predicted):
        if planes.any():
            return int(planes.any(0).sum(axis=(0, 1)).argmax())
    return reference.shape[-1] // 2


def _reference_planes(mask: np.ndarray, labels: Labels, spatial: int) -> tuple[np.ndarray, np.ndarray]:
    """The foreground classes of the reference, [F, *S], and their valid pixels, [1 or F, *S]."""
    target = labels.target(torch.from_numpy(np.ascontiguousarray(mask))[None], spatial=spatial)
    planes = labels.onehot(target)[0, list(labels.foreground)].bool()
    valid = torch.ones_like(planes) if target.valid_channels is None else target.valid_channels[0]
    return planes.numpy(), (valid if len(valid) == 1 else valid[list(labels.foreground)]).numpy()


def _predicted_planes(prediction: np.ndarray, labels: Labels) -> np.ndarray:
    """The foreground classes of a decoded prediction, [F, *S]."""
    prediction = np.asarray(prediction)
    if labels.mode == "multilabel":
        return prediction == 1
    numbers = [1] if labels.mode == "binary" else labels.foreground
    return np.stack([prediction == number for number in numbers])


def _displayed(image: np.ndarray) -> np.ndarray:
    """The image [C, H, W] as [H, W, 3], scaled to [0, 1] from its 1st to its 99th percentile."""
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    shown = np.nan_to_num(np.moveaxis(shown, 0, -1).astype(np.float64), posinf=0, neginf=0)
    low, high = np.percentile(shown, (1, 99))
    return np.clip((shown - low) / (high - low), 0, 1) if high > low else np.full_like(shown, 0.5)


def _draw(figure: Figure, view: View, labels: Labels, place: tuple[float, float]) -> None:
    """Draw the panels of a case; `place` is their bottom and their height, as shares of the figure."""
    bottom, height = place
    axes = [
        figure.add_axes((left + 0.005, bottom, 1 / len(PANELS) - 0.01, height))
        for left in np.arange(len(PANELS)) / len(PANELS)
    ]
    for axis, panel in zip(axes, PANELS, strict=True):
        axis.set_title(panel, fontsize=9)
        axis.set_axis_off()
    plain, reference, predicted, errors = axes
    show(plain, view.image)
    for axis, planes in ((reference, view.reference), (predicted, view.predicted)):
        _draw_planes(axis, view, planes, labels)
    show(errors, _striped(error_map(view), view.valid))


def show(axis: Axes, picture: np.ndarray) -> None:
    """Draw a picture [H, W, 3] from 0 to 1, in whole grey levels; matplotlib would cut the fraction of a level off."""
    axis.imshow(np.rint(255 * picture).astype(np.uint8), interpolation="nearest")


def view_of(caption: str, image: np.ndarray, mask: np.ndarray, labels: Labels) -> View:
    """The view of an image and its mask without a prediction; arrays as for `overlay_figure`."""
    return _view((caption, image, mask, np.zeros_like(mask)), labels)


def draw_classes(axis: Axes, view: View, labels: Labels) -> None:
    """Draw the image with the classes of the reference as an overlay."""
    _draw_planes(axis, view, view.reference, labels)


def _draw_planes(axis: Axes, view: View, planes: np.ndarray, labels: Labels) -> None:
    shown = np.array(view.image)
    for plane, colour in zip(planes, class_colours(labels), strict=True):
        _tint(shown, plane, colour, OPACITY)
    show(axis, _striped(shown, view.valid))
    _contours(axis, planes, labels)


def class_colours(labels: Labels) -> list[str]:
    """One colour for each foreground class, from a fixed palette that is repeated if necessary."""
    return [PALETTE[number % len(PALETTE)] for number in range(len(labels.foreground))]


def error_map(view: View) -> np.ndarray:
    """The darkened image with correct, spurious, missed and confused foreground in colour, [H, W, 3].

    A pixel is confused if one class is missed and another class is predicted in its place. If classes overlap, an error
    in one class hides a correct prediction of another.
    """
    shown = 0.6 * view.image.mean(-1, keepdims=True).repeat(3, axis=-1)
    for plane, colour in error_planes(view):
        _tint(shown, plane, colour, 0.8)
    return shown


def error_planes(view: View) -> list[tuple[np.ndarray, str]]:
    """Correct, spurious, missed and confused pixels, bool [H, W] each, with their colours, see `error_map`."""
    missed = (view.reference & ~view.predicted).any(0)
    spurious = (view.predicted & ~view.reference).any(0)
    correct = (view.reference & view.predicted).any(0) & ~missed & ~spurious
    planes = (correct, spurious & ~missed, missed & ~spurious, missed & spurious)
    colours = (CORRECT, SPURIOUS, MISSED, CONFUSED)
    return [(np.asarray(plane), colour) for plane, colour in zip(planes, colours, strict=True)]


def _tint(shown: np.ndarray, plane: np.ndarray, colour: str, opacity: float) -> None:
    shown[plane] = (1 - opacity) * shown[plane] + opacity * np.array(rgb(colour))


def rgb(colour: str) -> tuple[float, float, float]:
    """A colour such as #009E73 as three numbers from 0 to 1."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _striped(shown: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Cover ignored pixels with stripes."""
    return np.where(valid[..., None], shown, ignored_stripes(valid.shape))


def ignored_stripes(size: Sequence[int]) -> np.ndarray:
    """Diagonal grey stripes, [H, W, 3] from 0 to 1."""
    rows, columns = np.indices(tuple(size))
    width = max(2, min(size) // 32)
    return np.array([rgb(colour) for colour in IGNORED])[(rows + columns) // width % 2]


def _contours(axis: Axes, planes: np.ndarray, labels: Labels) -> None:
    """Draw the outlines of planes [F, H, W]; constant planes have none, and neither have lines of pixels.

    With many classes in one picture, outlines would hide it, and take gigabytes.
    """
    if min(planes.shape[1:]) < 2 or planes.any((1, 2)).sum() > MAX_OUTLINED:
        return
    for plane, colour in zip(planes, class_colours(labels), strict=True):
        if plane.any() and not plane.all():
            axis.contour(plane, levels=[0.5], colors=[colour], linewidths=1.2)


def _foreground_names(labels: Labels) -> list[str]:
    return [labels.channel_names[channel] for channel in labels.foreground]


def class_patches(labels: Labels, views: Sequence[View]) -> list[Patch]:
    """The legend entries of the foreground classes; of many, those with most pixels in the views."""
    from matplotlib.patches import Patch

    names, colours = _foreground_names(labels), class_colours(labels)
    shown = list(range(len(names)))
    if len(names) > MAX_LEGEND:
        pixels = sum((view.reference | view.predicted).sum((1, 2)) for view in views)
        shown = sorted(np.argsort(-np.asarray(pixels), kind="stable")[:MAX_LEGEND].tolist())
    patches = [Patch(facecolor=colours[number], label=shortened(names[number])) for number in shown]
    left_out = len(names) - len(shown)
    return [*patches, Patch(facecolor="white", label=f"and {left_out} more classes")] if left_out else patches


def _error_patches(labels: Labels, ignored: bool) -> list[Patch]:
    from matplotlib.patches import Patch

    entries = [("errors: correct", CORRECT), ("spurious", SPURIOUS), ("missed", MISSED)]
    entries += [("wrong class", CONFUSED)] if len(labels.foreground) > 1 else []
    patches = [Patch(facecolor=colour, label=name) for name, colour in entries]
    stripes = Patch(facecolor=IGNORED[1], edgecolor=IGNORED[0], hatch="////", label="ignored")
    return [*patches, stripes] if ignored else patches


def _legend_columns(patches: Sequence[Patch]) -> int:
    """The number of legend columns, at most six, that fits the longest label."""
    longest = max((len(str(patch.get_label())) for patch in patches), default=0)
    return max(1, min(6, len(patches), 150 // (longest + 8)))
