"""One battery for all data layouts: the same small cases, written in each layout, are found and read."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES, DataError
from segkit.data.cases import data_digest

from support.layouts import LAYOUTS, classes, colours, save


@pytest.fixture(params=["manifest_csv", "manifest_json", "msd", "coco"])
def listing(request, tmp_path):
    return LAYOUTS[request.param](tmp_path)


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    return LAYOUTS[request.param](tmp_path)


def build_source(layout):
    return SOURCES[layout.name](labels=layout.labels, **layout.options)


def read_first(layout):
    source = build_source(layout)
    return source.read(source.cases[0])


def test_every_file_source_is_tested(tmp_path):
    written = {make(tmp_path / name).name for name, make in LAYOUTS.items() if not (tmp_path / name).mkdir()}
    assert written == set(SOURCES) - {"synthetic"}


def test_cases_are_found_and_read(layout):
    source = build_source(layout)
    assert {case.name for case in source.cases} == set(layout.masks)
    assert [case.name for case in source.cases] == sorted(layout.masks)
    assert {case.split for case in source.cases} == layout.splits
    if layout.name != "ade":
        assert {case.group for case in source.cases} == {name[0] for name in layout.masks}
    for case in source.cases:
        raw = source.read(case)
        np.testing.assert_array_equal(raw.mask, layout.masks[case.name])
        assert raw.image.shape[1:] == raw.mask.shape
        assert raw.image.dtype == np.float32
        pixels = colours(case.name).astype(np.float32)
        if layout.image.suffix == ".png":
            channels = pixels[..., : len(raw.image)] / 255
            np.testing.assert_allclose(raw.image, np.moveaxis(channels, -1, 0), atol=1e-6)
        elif layout.image.name.endswith(".nii.gz"):
            np.testing.assert_array_equal(raw.image[-1], pixels + (len(raw.image) - 1))
        else:
            with Image.open(case.images[0]) as picture:
                np.testing.assert_allclose(raw.image * 255, np.moveaxis(np.array(picture), -1, 0), atol=2)


def test_a_changed_image_changes_the_digest(layout):
    before = data_digest(build_source(layout).cases)
    assert data_digest(build_source(layout).cases) == before
    save(layout.image, (colours("z")[..., 0] if layout.name == "manifest" else colours("z")))
    assert data_digest(build_source(layout).cases) != before


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_damaged_files_are_named(layout, damage):
    """The error occurs when the source is built or when the case is read; other cases can still be read."""
    content = layout.image.read_bytes()
    layout.image.write_bytes({"empty": b"", "truncated": content[: len(content) // 2]}.get(damage, b"not an image"))
    if damage == "missing":
        layout.image.unlink()
    with pytest.raises(DataError, match="a_1"):
        read_first(layout)
    if damage == "missing":
        return
    source = build_source(layout)
    for case in source.cases[1:]:
        source.read(case)


def test_masks_of_other_sizes_are_named(layout):
    if layout.mask is None:
        pytest.skip("this layout has no mask files")
    small = classes("a_1")[:-1]
    save(layout.mask, np.stack([small] * 3, -1) if layout.mask.name.endswith(".nii.gz") else small)
    source = build_source(layout)
    with pytest.raises(DataError, match=r"a_1.*size"):
        source.read(source.cases[0])


@pytest.mark.parametrize("outside", ["../other.png", "/etc/hostname", "pictures/../../other.png"])
def test_listed_paths_do_not_leave_the_root(listing, outside):
    save(listing.listing.parent.parent / "other.png", colours("z"))
    entry = listing.image.relative_to(listing.listing.parent).as_posix()
    entry = entry.removeprefix("pictures/") if listing.name == "coco" else entry
    text = listing.listing.read_text()
    assert entry in text
    listing.listing.write_text(text.replace(f"./{entry}", entry).replace(entry, outside, 1))
    with pytest.raises(DataError, match=r"lies outside the folder|no such file"):
        build_source(listing)


def test_an_unreadable_listing_is_named(listing):
    listing.listing.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(DataError, match=listing.listing.name):
        build_source(listing)


FAULTS = {
    "0 and 255": lambda mask: (mask > 0) * np.uint8(255),
    "smoothed edges": lambda mask: np.clip(mask * 90 + np.arange(mask.size).reshape(mask.shape) % 9, 0, 250),
    "one above": lambda mask: np.where(mask == 0, 3, mask),
    "other values": lambda mask: mask * 7 + 100,
    "colours": lambda mask: np.stack([mask * 60 % 251, mask, 255 - mask], -1),
    "many colours": lambda mask: np.random.default_rng(0).integers(0, 256, (*mask.shape[:2], 3)),
}


def error_of_first(layout):
    """The message with which reading the first case fails; empty if it succeeds."""
    try:
        read_first(layout)
    except (DataError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("fault", FAULTS)
def test_advice_names_options_of_the_source_only(layout, fault):
    """Every `option: value` under `data` in a message is one that the source takes."""
    accepted = set(inspect.signature(SOURCES[layout.name]).parameters)
    if layout.mask is None or (layout.mask.name.endswith(".nii.gz") and "colours" in fault):
        pytest.skip("masks of this layout cannot have this fault")
    for labels in (layout.labels, Labels(["background", "a"], ignore_index=255)):
        save(layout.mask, FAULTS[fault](classes("a_1")).astype(np.uint8))
        layout.labels = labels
        assert set(re.findall(r"`(\w+): [^`]*` under `data`", error_of_first(layout))) <= accepted


@pytest.mark.filterwarnings("ignore:__array__")
def test_advice_on_missing_masks_fits_the_source(layout):
    if layout.mask is None or layout.name == "instances":
        pytest.skip("images of this layout need no mask files")
    layout.mask.unlink()
    advice = "`unpaired: skip`" in error_of_first(layout)
    assert not advice or "unpaired" in inspect.signature(SOURCES[layout.name]).parameters


@pytest.mark.filterwarnings("ignore:__array__")
def test_files_of_macos_are_no_cases(layout):
    """Archives packed on macOS hold a file `._name` beside each file."""
    names = [case.name for case in build_source(layout).cases]
    for path in (layout.image, layout.mask):
        if path is not None:
            (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert [case.name for case in build_source(layout).cases] == names
