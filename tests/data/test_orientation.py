"""Pictures are read as viewers show them: turned by their EXIF orientation, like OpenCV and Pillow do on request."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from segkit import Labels
from segkit.data import SOURCES, Case, DataError, MaskFile
from segkit.data.inspection.case_summaries import examine
from segkit.data.inspection.checks import find_problems
from segkit.data.readers import orientation, read_files, read_image, read_mask

from support.command_line import tool

LABELS = Labels(["background", "a", "b", "c"])
ORIENTATIONS = range(1, 9)


def _stored(height=24, width=40):
    """Four different quarters, so that every turn and flip can be told."""
    quarters = np.zeros((height, width), np.uint8)
    quarters[: height // 2, width // 2 :] = 1
    quarters[height // 2 :, : width // 2] = 2
    quarters[height // 2 :, width // 2 :] = 3
    return quarters


def _save(path, array, tag):
    picture = Image.fromarray(array)
    exif = picture.getexif()
    exif[0x0112] = tag
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(path.suffix, {})
    picture.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_an_image_is_turned_as_opencv_and_pillow_turn_it(tmp_path, ending, tag):
    colours = np.array([[10, 20, 200], [240, 30, 10], [20, 220, 20], [230, 230, 240]], np.uint8)[_stored()]
    path = _save(tmp_path / f"x.{ending}", colours, tag)
    image, _spacing = read_image(path)
    with Image.open(path) as picture:
        upright = np.moveaxis(np.asarray(ImageOps.exif_transpose(picture)), -1, 0) / 255
    np.testing.assert_allclose(image, upright, atol=0.02)
    if ending == "jpg":  # OpenCV follows the tag unless it is told to keep the pixels unchanged
        np.testing.assert_allclose(image, np.moveaxis(cv2.imread(str(path))[..., ::-1], -1, 0) / 255, atol=0.02)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_a_mask_is_turned_by_its_own_tag(tmp_path, ending, tag):
    path = _save(tmp_path / f"x.{ending}", _stored(), tag)
    # Pillow turns greyscale TIFF files wrongly, so its reading of a PNG file is the reference for both
    with Image.open(_save(tmp_path / "y.png", _stored(), tag)) as picture:
        np.testing.assert_array_equal(read_mask(path, LABELS), np.asarray(ImageOps.exif_transpose(picture)))


def test_every_page_of_a_tiff_is_turned(tmp_path):
    pages = np.stack([_stored(), _stored()[::-1]])
    tifffile.imwrite(tmp_path / "x.tif", pages, photometric="minisblack", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif", LABELS), np.rot90(pages, -1, axes=(1, 2)))


def _square(tmp_path, tag=6):
    """A photograph with an orientation, and the mask that was drawn on what a viewer shows."""
    stored = _stored(32, 32)
    image = _save(tmp_path / "photograph.jpg", np.repeat(stored[..., None] * np.uint8(80), 3, -1), tag)
    with Image.open(image) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))[..., 0]
    Image.fromarray((shown / 80).round().astype(np.uint8)).save(tmp_path / "mask.png")
    return Case("photograph", "photograph", images=(image,), masks=(MaskFile(tmp_path / "mask.png"),))


def test_an_image_fits_the_mask_that_was_drawn_on_what_a_viewer_shows(tmp_path):
    raw = read_files(_square(tmp_path), LABELS)
    np.testing.assert_array_equal((raw.image[0] * 255 / 80).round(), raw.mask)


def test_check_names_images_whose_masks_have_another_orientation(tmp_path):
    case = _square(tmp_path)

    class One:
        cases = (case,)

        def read(self, case):
            return read_files(case, LABELS)

    summary = examine(One(), case, LABELS)
    assert summary.orientations == (6, 1)
    (text,) = [finding.text for finding in find_problems([summary], [case], None, LABELS) if "EXIF" in finding.text]
    assert "photograph" in text


def test_a_mask_of_the_stored_pixels_is_refused_with_the_reason(tmp_path):
    image = _save(tmp_path / "x.jpg", np.repeat(_stored()[..., None], 3, -1), 6)
    Image.fromarray(_stored()).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"turned by its EXIF orientation 6"):
        read_files(Case("x", "x", images=(image,), masks=(MaskFile(tmp_path / "mask.png"),)), LABELS)


def test_coco_coordinates_follow_the_shown_picture(tmp_path):
    _save(tmp_path / "x.jpg", np.repeat(_stored()[..., None], 3, -1), 6)  # shown with 40 rows and 24 columns
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 30, 10, 30, 10, 40, 0, 40]]}
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 40, "width": 24}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [entry],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = {"images": tmp_path, "annotations": tmp_path / "a.json"}
    source = SOURCES["coco"](labels=Labels(["background", "a"]), **options)
    raw = source.read(source.cases[0])
    assert raw.image.shape[1:] == raw.mask.shape == (40, 24)
    assert raw.mask[30:, :10].all()
    assert raw.mask.sum() == 100


def test_a_prediction_has_the_size_of_the_shown_picture(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        _save(tmp_path / f"images/{number}.jpg", np.repeat(_stored()[..., None] * np.uint8(80), 3, -1), 6)
        Image.fromarray(np.rot90(_stored(), -1).copy()).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a, b, c]}\ndata: {name: pairs, images: images, masks: masks}\n"
        "split: {name: kfold, folds: 2}\nmodel: {name: unet, widths: [4, 8]}\nloss: dice\noptimizer: adamw\n"
        "loader: {batch: 2}\ntrain: {steps: 2}\nevaluation: {overlays: false}\nrun: {dir: run}\n"
    )
    tool("train", "--config", "x.yaml", folder=tmp_path)
    tool("predict", "--checkpoint", "run", "--input", "images/0.jpg", "--output", "out", folder=tmp_path)
    with Image.open(tmp_path / "out/0.png") as mask:
        assert mask.size == (24, 40)
        assert mask.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("value", [0, 9])
def test_values_that_are_no_orientation_turn_nothing(tmp_path, value):
    path = _save(tmp_path / "x.png", _stored(), value)
    np.testing.assert_array_equal(read_mask(path, LABELS), _stored())
    assert orientation(path) == 1
