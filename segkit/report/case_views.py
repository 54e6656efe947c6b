"""Pictures of a case for a page: its image, and above it reference, prediction and errors as transparent layers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from segkit.labels import Labels
from segkit.report.overlays import (
    CONFUSED,
    CORRECT,
    MISSED,
    SPURIOUS,
    View,
    choose_slice,
    class_colours,
    foreground_pixels,
    ignored_stripes,
    rgb,
    view_of_plane,
)

MOST_PIXELS = 640  # along a side; of larger images every n-th pixel is shown
FILLED, OUTLINED = 0.35, 1.0  # opacity
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of a volume in RAS orientation


@dataclass(frozen=True)
class Plane:
    """A picture of a case: a 2D image, or a slice of a volume. All pictures are data URLs of one size.

    caption: which slice it is; empty for a 2D image. width, height: as it should appear, in the ratio of the lengths.
    """

    caption: str
    width: float
    height: float
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
) -> CaseView:
    """The pictures of a case: of a volume, the slices with the most foreground across each axis.

    image, mask, prediction: as for `overlay_figure`. spacing: [D].
    """
    planes = [
        _plane(caption, view_of_plane(*arrays, labels), lengths, labels)
        for caption, arrays, lengths in _planes(image, mask, prediction, spacing, labels)
    ]
    return CaseView(rank, name, score, planes)


def legend(labels: Labels) -> list[tuple[str, str]]:
    """What the colours mean, as names and colours."""
    classes = [labels.channel_names[channel] for channel in labels.foreground]
    errors = [("errors: correct", CORRECT), ("spurious", SPURIOUS), ("missed", MISSED)]
    errors += [("wrong class", CONFUSED)] if len(classes) > 1 else []
    return [*zip(classes, class_colours(labels), strict=True), *errors]


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _planes(
    image: np.ndarray, mask: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], labels: Labels
) -> Iterator[tuple[str, Arrays, tuple[float, float]]]:
    """Captions, two-dimensional arrays and the lengths of their two sides."""
    if image.ndim == 3:
        rows, columns = image.shape[1:]
        yield "", (image, mask, prediction), (rows * spacing[0], columns * spacing[1])
        return
    reference, predicted = foreground_pixels(mask, prediction, labels)
    for axis, plane in enumerate(PLANES):
        number = choose_slice(np.moveaxis(reference, axis, -1)[None], np.moveaxis(predicted, axis, -1)[None])
        arrays = [_turned(np.take(array, number, axis - 3)) for array in (image[:1], mask, prediction)]
        across, up = (image.shape[other + 1] * spacing[other] for other in range(3) if other != axis)
        caption = f"{plane}, slice {number + 1} of {image.shape[axis + 1]}"
        yield caption, (arrays[0], arrays[1], arrays[2]), (up, across)


def _turned(array: np.ndarray) -> np.ndarray:
    """A slice with its first axis to the right and its second one upwards, as RAS volumes are looked at."""
    return np.flip(np.swapaxes(array, -1, -2), -2)


def _plane(caption: str, view: View, lengths: tuple[float, float], labels: Labels) -> Plane:
    step = max(1, -(-max(view.image.shape[:2]) // MOST_PIXELS))
    thin = (slice(None, None, step),) * 2
    view = View(
        view.caption,
        view.image[thin],
        view.reference[(slice(None), *thin)],
        view.predicted[(slice(None), *thin)],
        view.valid[thin],
    )
    height, width = lengths
    layers = [_class_layer(planes, view, labels) for planes in (view.reference, view.predicted)]
    image = _data_url(np.rint(255 * view.image).astype(np.uint8), "JPEG")
    return Plane(caption, width, height, image, *(_data_url(layer, "PNG") for layer in (*layers, _error_layer(view))))


def _class_layer(planes: np.ndarray, view: View, labels: Labels) -> np.ndarray:
    """The classes of a mask in their colours, filled and outlined, uint8 RGBA [H, W, 4]."""
    layer = np.zeros((*view.valid.shape, 4))
    for plane, colour in zip(planes, class_colours(labels), strict=True):
        outline = plane & np.logical_not(binary_erosion(plane, border_value=1))
        _paint(layer, plane, colour, FILLED)
        _paint(layer, outline, colour, OUTLINED)
    return _finished(layer, view)


def _error_layer(view: View) -> np.ndarray:
    """Correct, spurious, missed and confused foreground, see `error_map`."""
    layer = np.zeros((*view.valid.shape, 4))
    missed = (view.reference & ~view.predicted).any(0)
    spurious = (view.predicted & ~view.reference).any(0)
    correct = (view.reference & view.predicted).any(0)
    for plane, colour in ((correct, CORRECT), (spurious, SPURIOUS), (missed, MISSED), (missed & spurious, CONFUSED)):
        _paint(layer, np.asarray(plane), colour, 0.7)
    return _finished(layer, view)


def _paint(layer: np.ndarray, plane: np.ndarray, colour: str, opacity: float) -> None:
    layer[plane] = (*rgb(colour), opacity)


def _finished(layer: np.ndarray, view: View) -> np.ndarray:
    stripes = ignored_stripes(view.valid.shape)
    ignored = np.logical_not(view.valid)
    layer[ignored] = np.concatenate([stripes, np.ones((*view.valid.shape, 1))], -1)[ignored]
    return np.rint(255 * layer).astype(np.uint8)


def _data_url(array: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
