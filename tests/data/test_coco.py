"""COCO annotations: what is drawn, and what is refused by name."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segkit import Labels
from segkit.data import SOURCES, DataError

LABELS = Labels(["background", "a", "b"], ignore_index=255)
SIZE = (20, 30)


def _box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def _object(number, category, outline, **more):
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": outline, **more}


def _content(*objects, **more):
    return {
        "images": [{"id": 1, "file_name": "x.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": list(objects),
        **more,
    }


def _source(tmp_path, content, labels=LABELS, **options):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "x.png")
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "a.json").write_bytes(text)
    return SOURCES["coco"](labels=labels, images=tmp_path, annotations=tmp_path / "a.json", **options)


def _mask(tmp_path, content, labels=LABELS, **options):
    source = _source(tmp_path, content, labels, **options)
    return source.read(source.cases[0]).mask


def _drawn(outline):
    """The pixels of polygons, by pycocotools."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, *SIZE))).astype(bool)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("areas", [{}, {"area": 0}, {"area": "wrong"}])
@pytest.mark.parametrize("order", [1, -1])
def test_small_objects_are_not_hidden_by_large_ones(tmp_path, order, areas):
    """Whatever `area` says: the large object may state none, the small one a large one."""
    large, small = _object(1, 1, _box(0, 0, 30, 20), **areas), _object(2, 2, _box(5, 5, 9, 9), area=10_000)
    mask = _mask(tmp_path, _content(*(large, small)[::order]))
    expected = np.where(_drawn(small["segmentation"]), 2, 1)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("outline", [[], None, [[1, 2, 3, 4]]])
def test_objects_with_a_box_and_no_outline(tmp_path, outline):
    rectangle = _object(7, 1, outline, bbox=[4, 2, 6, 8])
    other = _object(8, 2, _box(15, 1, 20, 5))
    with pytest.raises(DataError, match=r"1 of 2 objects have a bounding box but no outline: 7;.*boxes: draw"):
        _source(tmp_path, _content(rectangle, other))
    drawn = _mask(tmp_path, _content(rectangle, other), boxes="draw")
    np.testing.assert_array_equal(drawn == 1, _drawn(_box(4, 2, 10, 10)))
    ignored = _mask(tmp_path, _content(rectangle, other), boxes="ignore")
    np.testing.assert_array_equal(ignored == 255, _drawn(_box(4, 2, 10, 10)))
    np.testing.assert_array_equal(ignored == 2, _drawn(other["segmentation"]))
    with pytest.raises(DataError, match="ignore_index"):
        _source(tmp_path, _content(rectangle, other), Labels(["background", "a", "b"]), boxes="ignore")
    with pytest.raises(DataError, match=r"bounding boxes but no outlines \(1 objects\)"):
        _source(tmp_path, _content(rectangle))
    with pytest.raises(DataError, match="1 objects have neither an outline nor a bounding box: 7"):
        _source(tmp_path, _content({**rectangle, "bbox": None}), boxes="draw")


@pytest.mark.filterwarnings("ignore:__array__")
def test_identifiers_as_text_mean_the_same(tmp_path):
    as_numbers = _content(_object(1, 1, _box(0, 0, 5, 5)), _object(2, 2, _box(10, 10, 15, 15)))
    as_text = json.loads(json.dumps(as_numbers))
    for entry in as_text["annotations"]:
        entry["image_id"], entry["category_id"] = str(entry["image_id"]), str(entry["category_id"])
    expected = _mask(tmp_path, as_numbers)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(_mask(tmp_path, as_text), expected)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_json(tmp_path, encoding):
    content = _content(_object(1, 1, _box(0, 0, 5, 5)))
    np.testing.assert_array_equal(_mask(tmp_path, json.dumps(content).encode(encoding)), _mask(tmp_path, content))


@pytest.mark.filterwarnings("ignore:__array__")
def test_images_without_a_size_have_that_of_their_file(tmp_path):
    content = _content(_object(1, 1, _box(0, 0, 5, 5)), images=[{"id": 1, "file_name": "x.png"}])
    np.testing.assert_array_equal(_mask(tmp_path, content) == 1, _drawn(_box(0, 0, 5, 5)))


IMAGES = [{"id": 1, "file_name": "x.png"}, {"id": 1, "file_name": "y.png"}]
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_content(images=IMAGES), r"a\.json: 1 ids are listed more than once under images: id 1 \(x\.png, y\.png\)"),
        (_content(categories=CATEGORIES), r"more than once under categories: id 1 \(a, b\)"),
        (
            _content({**_object(5, 1, _box(0, 0, 5, 5)), "image_id": 9}),
            r"1 objects belong to images that are not listed: object 5 of image_id 9",
        ),
        (_content(_object(5, 3, _box(0, 0, 5, 5))), r"categories that are not listed: object 5 of category_id 3"),
        (_content({"id": 4, "image_id": 1}), r"annotations, 0 \(id 4\), category_id: is missing"),
        (_content(images=[{"id": 1}]), r"images, 0 \(id 1\), file_name: is missing"),
        (_content(images={}), r"images: expected a valid list, got \{\}"),
        ({"images": [], "annotations": []}, r"categories: is missing"),
        (
            _content(_object(4, 1, "wrong")),
            r"annotations, 0 \(id 4\), segmentation: expected a valid list, got 'wrong'",
        ),
        ([], r"the file: expected"),
        (b"{", r"a\.json cannot be read as JSON: .*line 1"),
        (b"\xff\x00\x80", r"a\.json cannot be read: it is no text"),
        (
            _content(_object(4, 1, [[1, 2, 3, 4, 5, "x"]])),
            r"\(id 4\), segmentation, 0, 5: expected a valid number.*'x'",
        ),
        (
            _content(_object(4, 1, {"size": [3, 3], "counts": [600]})),
            r"object 4 cannot be drawn",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__")
def test_faults_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        _mask(tmp_path, content)


@pytest.mark.filterwarnings("ignore:__array__")
def test_objects_with_the_same_id_are_drawn_with_a_warning(tmp_path):
    content = _content(_object(3, 1, _box(0, 0, 5, 5)), _object(3, 2, _box(10, 10, 15, 15)))
    with pytest.warns(UserWarning, match=r"1 object ids occur more than once, such as 3"):
        assert set(np.unique(_mask(tmp_path, content))) == {0, 1, 2}


@pytest.mark.filterwarnings("ignore:__array__")
def test_the_same_category_may_be_listed_again(tmp_path):
    repeated = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 1, "name": "a"}]
    assert (_mask(tmp_path, _content(_object(1, 1, _box(0, 0, 5, 5)), categories=repeated)) == 1).sum() == 25


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_have_to_add_up(tmp_path, compressed):
    """pycocotools leaves the pixels after the last run uninitialised."""
    plane = np.asfortranarray(_drawn(_box(2, 3, 9, 11)).astype(np.uint8))
    encoded = coco_mask.encode(plane)
    runs = np.diff([0, *np.flatnonzero(np.diff(plane.ravel("F").astype(int))) + 1, plane.size]).tolist()
    outline = {"size": list(SIZE), "counts": encoded["counts"].decode() if compressed else runs}
    np.testing.assert_array_equal(_mask(tmp_path, _content(_object(1, 1, outline))) == 1, plane)
    cut = outline["counts"][:-3] if compressed else [10, 20]
    with pytest.raises(DataError, match=r"object 1 cannot be drawn \(its run lengths add up to \d+ pixels, not to 600"):
        _mask(tmp_path, _content(_object(1, 1, {**outline, "counts": cut})))


@pytest.mark.filterwarnings("ignore:__array__")
def test_objects_that_cover_nothing_are_told(tmp_path):
    with pytest.warns(UserWarning, match="case x: object 4 covers no pixel"):
        assert not _mask(tmp_path, _content(_object(4, 1, _box(100, 100, 110, 110)))).any()
    for bad, message in (
        (_object(4, 1, [[0, 0, float("nan"), 5, 5, 5]]), r"annotations, 0 \(id 4\), segmentation"),
        (_object(4, 1, [], bbox=[0, 0, -1, -1]), "1 objects have neither an outline nor a bounding box: 4"),
    ):
        with pytest.raises(DataError, match=message):
            _source(tmp_path, _content(bad), boxes="draw")


@pytest.mark.filterwarnings("ignore:__array__")
def test_a_polygon_as_a_flat_list(tmp_path):
    flat, nested = _box(2, 3, 9, 11)[0], _box(2, 3, 9, 11)
    np.testing.assert_array_equal(
        _mask(tmp_path, _content(_object(1, 1, flat))), _mask(tmp_path, _content(_object(1, 1, nested)))
    )


@pytest.mark.filterwarnings("ignore:__array__")
def test_ignored_boxes_lie_below_outlines(tmp_path):
    outlined, box = _object(1, 1, _box(0, 0, 12, 12)), _object(2, 2, [], bbox=[4, 4, 12, 12])
    inside, around = _drawn(outlined["segmentation"]), _drawn(_box(4, 4, 16, 16))
    mask = _mask(tmp_path, _content(outlined, box), boxes="ignore")
    np.testing.assert_array_equal(mask == 1, inside)
    np.testing.assert_array_equal(mask == 255, around & ~inside)
    overlapping = Labels(["a", "b"], mode="multilabel", ignore_index=255)
    first, second = _mask(tmp_path, _content(outlined, box), overlapping, boxes="ignore")
    np.testing.assert_array_equal(first, inside)
    np.testing.assert_array_equal(second, around * 255)


def test_a_category_for_the_background_is_the_background(tmp_path):
    from segkit.data.inspection import detect_layout

    categories = [{"id": 1, "name": "Background"}, {"id": 2, "name": "cell"}]
    content = _content(_object(1, 1, _box(0, 0, 5, 5)), _object(2, 2, _box(6, 6, 9, 9)), categories=categories)
    _source(tmp_path, content, Labels(["background", "cell"]), categories={"Background": "background"})
    layout = detect_layout(tmp_path)
    assert layout.labels["names"] == ["background", "cell"]
    assert layout.options["categories"] == {"Background": "background"}
