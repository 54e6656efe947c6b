"""Pictures of folders of masks: which cases are drawn, and on what."""

import re

import numpy as np
import pytest
from PIL import Image

from support.command_line import tool

WRONG = {"a": 0, "b": 40, "c": 90}  # pixels of 100 that are missed


@pytest.fixture
def folders(tmp_path):
    """Masks of one square in three cases, predicted with more and more errors, and their images."""
    for number, (name, missed) in enumerate(WRONG.items()):
        reference = np.zeros((24, 32), np.uint8)
        reference[5:15, 5:15] = 1
        predicted = reference.copy()
        predicted.flat[np.flatnonzero(reference)[:missed]] = 0
        image = (np.indices((24, 32))[number % 2] * 8).astype(np.uint8)
        for folder, array in (("references", reference), ("predictions", predicted), ("images", image)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def evaluated(folder, *options):
    """What is printed, the page, and the headings of its pictures."""
    where = ("--predictions", "predictions", "--references", "references", "--classes", "background,a", "--out", "out")
    printed = tool("evaluate", *where, *options, folder=folder)
    page = (folder / "out" / "report.html").read_text()
    return printed, page, re.findall(r'<section class="viewer">\s*<h3>(.*?)</h3>', page)


@pytest.mark.parametrize("options", [(), ("--images", "images")])
def test_the_worst_median_and_best_case_are_drawn(folders, options):
    _printed, _page, headings = evaluated(folders, *options)
    dice = {name: 2 * (100 - missed) / (200 - missed) for name, missed in WRONG.items()}
    ranks = {"worst": "c", "median": "b", "best": "a"}
    assert headings == [f"{rank}: {name}, Dice {dice[name]:.3f}" for rank, name in ranks.items()]
    assert (folders / "out" / "overlays.png").exists()


def test_images_are_shown_below_the_masks(folders):
    _printed, without, _ = evaluated(folders)
    _printed, page, _ = evaluated(folders, "--images", "images")
    assert page != without
    (folders / "images" / "c.png").rename(folders / "images" / "c_0000.png")  # as nnU-Net calls the only channel
    _printed, renamed, _ = evaluated(folders, "--images", "images")
    assert re.findall('src="data:[^"]*"', renamed) == re.findall('src="data:[^"]*"', page)


def test_an_image_of_another_size_costs_the_pictures_but_no_score(folders):
    Image.new("L", (5, 5)).save(folders / "images" / "b.png")
    printed, page, headings = evaluated(folders, "--images", "images")
    assert "overlays.png could not be drawn: DataError" in printed
    assert "expected the size [24, 32] of its masks" in printed
    assert headings == []
    assert "scores" in page


def test_a_case_without_an_image_costs_the_pictures(folders):
    (folders / "images" / "a.png").unlink()
    printed, _page, headings = evaluated(folders, "--images", "images")
    assert "images has no image of the case a" in printed
    assert headings == []


def test_images_need_masks(folders):
    printed = tool("evaluate", "--checkpoint", "run", "--images", "images", folder=folders, code=2)
    assert "--images can only be used with --predictions" in printed
