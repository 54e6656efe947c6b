"""Pictures of a case for a page: its image, and above it reference, prediction and errors as transparent layers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from segkit.labels import Labels
from segkit.report.html import data_url
from segkit.report.overlays import (
    CONFUSED,
    CORRECT,
    IGNORED,
    MAX_LEGEND,
    MISSED,
    SPURIOUS,
    View,
    choose_slice,
    class_colours,
    error_planes,
    foreground_pixels,
    ignored_stripes,
    rgb,
    view_of_plane,
)

MOST_PIXELS = 640  # along a side; of larger images every n-th pixel is shown
FILLED, OUTLINED = 0.35, 1.0  # opacity
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of a volume in RAS orientation
NARROWEST = 0.25  # width by height, and height by width, of a picture


@dataclass(frozen=True)
class Plane:
    """A picture of a case: a 2D image, or a slice of a volume. All pictures are data URLs of one size.

    caption: which slice it is; empty for a 2D image. ratio: width by height as it should appear.
    """

    caption: str
    ratio: float
    image: str
    reference: str
    prediction: str
    errors: str


@dataclass(frozen=True)
class CaseView:
    """A case with its pictures. rank: such as `worst`. score: in words."""

    rank: str
    name: str
    score: str
    planes: Sequence[Plane]


def case_view(
    rank: str,
    name: str,
    score: str,
    image: np.ndarray,
    mask: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    *,
    is_anatomical: bool = True,
) -> CaseView:
    """The pictures of a case: of a volume, the slices with the most foreground across each axis.

    image, mask, prediction: as for `overlay_figure`. spacing: [D].
    is_anatomical: whether the axes of a volume lead to the right, the front and the top, as those of medical formats
        do after reading. If not, slices are shown as they are stored.
    """
    planes = [
        _plane(caption, view_of_plane(*_thinned(arrays), labels), lengths, labels)
        for caption, arrays, lengths in _planes(image, mask, prediction, spacing, labels, is_anatomical)
    ]
    return CaseView(rank, name, score, planes)


def legend(labels: Labels) -> list[tuple[str, str]]:
    """What the colours mean, as names and colours; of many classes, the first ones."""
    classes = [labels.channel_names[channel] for channel in labels.foreground]
    shown = [*zip(classes, class_colours(labels), strict=True)][:MAX_LEGEND]
    more = [(f"and {len(classes) - len(shown)} more classes", "transparent")] if len(shown) < len(classes) else []
    errors = [("errors: correct", CORRECT), ("spurious", SPURIOUS), ("missed", MISSED)]
    errors += [("wrong class", CONFUSED)] if len(classes) > 1 else []
    errors += [("ignored (striped)", IGNORED[0])] if labels.ignore_index is not None else []
    return [*shown, *more, *errors]


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _planes(
    image: np.ndarray,
    mask: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    is_anatomical: bool,
) -> Iterator[tuple[str, Arrays, tuple[float, float]]]:
    """Captions, two-dimensional arrays and the lengths of their two sides, height and width."""
    if image.ndim == 3:
        rows, columns = image.shape[1:]
        yield "", (image, mask, prediction), (rows * spacing[0], columns * spacing[1])
        return
    reference, predicted = foreground_pixels(mask, prediction, labels)
    for axis, plane in enumerate(PLANES):
        number = choose_slice(np.moveaxis(reference, axis, -1)[None], np.moveaxis(predicted, axis, -1)[None])
        arrays = [np.take(array, number, axis - 3) for array in (image[:1], mask, prediction)]
        sides = [image.shape[other + 1] * spacing[other] for other in range(3) if other != axis]
        name = plane if is_anatomical else f"across axis {axis + 1}"
        if is_anatomical:
            arrays, sides = [_turned(array) for array in arrays], sides[::-1]
        caption = f"{name}, slice {number + 1} of {image.shape[axis + 1]}"
        yield caption, (arrays[0], arrays[1], arrays[2]), (sides[0], sides[1])


def _turned(array: np.ndarray) -> np.ndarray:
    """A slice with its first axis to the right and its second one upwards, as RAS volumes are looked at."""
    return np.flip(np.swapaxes(array, -1, -2), -2)


def _thinned(arrays: Arrays) -> Arrays:
    """Every n-th row and column, before anything is computed for each pixel."""
    step = max(1, -(-max(arrays[0].shape[-2:]) // MOST_PIXELS))
    image, mask, prediction = (array[..., ::step, ::step] for array in arrays)
    return image, mask, prediction


def _plane(caption: str, view: View, lengths: tuple[float, float], labels: Labels) -> Plane:
    ratio = min(max(lengths[1] / lengths[0], NARROWEST), 1 / NARROWEST)
    layers = [_class_layer(planes, view, labels) for planes in (view.reference, view.predicted)]
    image = _encoded(np.rint(255 * view.image).astype(np.uint8), "JPEG")
    return Plane(caption, ratio, image, *(_encoded(layer, "PNG") for layer in (*layers, _error_layer(view))))


def _class_layer(planes: np.ndarray, view: View, labels: Labels) -> np.ndarray:
    """The classes of a mask in their colours, filled and outlined, uint8 RGBA [H, W, 4]."""
    layer = np.zeros((*view.valid.shape, 4))
    shown = [(plane, colour) for plane, colour in zip(planes, class_colours(labels), strict=True) if plane.any()]
    for plane, colour in shown:
        _paint(layer, plane, colour, FILLED)
    for plane, colour in shown:  # above all fills, so that a class inside another one is seen
        _paint(layer, plane & np.logical_not(binary_erosion(plane, border_value=1)), colour, OUTLINED)
    return _finished(layer, view)


def _error_layer(view: View) -> np.ndarray:
    """The errors in their colours, see `error_planes`."""
    layer = np.zeros((*view.valid.shape, 4))
    for plane, colour in error_planes(view):
        _paint(layer, plane, colour, 0.7)
    return _finished(layer, view)


def _paint(layer: np.ndarray, plane: np.ndarray, colour: str, opacity: float) -> None:
    """Paint pixels of a layer over what is there."""
    below = layer[plane]
    alpha = opacity + below[:, 3:] * (1 - opacity)
    mixed = opacity * np.array(rgb(colour)) + below[:, 3:] * (1 - opacity) * below[:, :3]
    layer[plane] = np.concatenate([mixed / alpha, alpha], 1)


def _finished(layer: np.ndarray, view: View) -> np.ndarray:
    stripes = ignored_stripes(view.valid.shape)
    ignored = np.logical_not(view.valid)
    layer[ignored] = np.concatenate([stripes, np.ones((*view.valid.shape, 1))], -1)[ignored]
    return np.rint(255 * layer).astype(np.uint8)


def _encoded(array: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return data_url(file.getvalue(), kind.lower())
