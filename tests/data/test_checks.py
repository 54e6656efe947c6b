"""The check of a data set: every mistake is found, named, and mended by what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from segkit import Labels
from segkit.config.schema import Augment, Named
from segkit.data import Case, PairsSource, RawCase
from segkit.data.inspection.checks import class_table, examine, examine_all, find, split_of
from segkit.data.splits import Split, kfold_split
from segkit.experiment.preflight import mirror_warnings
from segkit.utils.morphology import count_components

from support.command_line import tool

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", ""))
THREE = Labels(["background", "a", "b"], ignore_index=255)


@dataclass
class Arrays:
    """A source of arrays: (image, mask, spacing, group, part) by name."""

    content: dict

    @property
    def cases(self):
        return tuple(Case(name, one[3], one[4]) for name, one in sorted(self.content.items()))

    def read(self, case):
        image, mask, spacing, *_ = self.content[case.name]
        return RawCase(image, mask, spacing)


def case(number, *, value=None, part="train", group=None, sides=(8, 6), channels=1, spacing=None, classes=3):
    generator = np.random.default_rng(number)
    image = generator.normal(size=(channels, *sides)).astype(np.float32)
    mask = generator.integers(0, classes, sides).astype(np.uint8)
    image = image if value is None else np.full_like(image, value)
    return image, mask, spacing or (1.0,) * len(sides), group or f"g{number}", part


def findings(content, split=None):
    source = Arrays(content)
    by_part = {
        part: tuple(n for n, one in content.items() if one[4] == part) for part in ("train", "validation", "test")
    }
    facts = [examine(source, one, THREE) for one in source.cases]
    return find(facts, source.cases, split or Split(**by_part), THREE)


def good():
    return {f"c{n}": case(n, part=("train", "validation")[n % 2]) for n in range(4)}


def test_nothing_is_found_where_nothing_is_wrong():
    assert findings(good()) == []


IMAGE, MASK, SPACING, *_ = case(0)
VOID = np.full((8, 6), 255, np.uint8)
MISTAKES = {
    "channels": (case(9, channels=3), "error", "4 with 1, 1 with 3; train on those", ("x",)),
    "axes": (case(9, sides=(8, 6, 5)), "error", "4 with 2, 1 with 3", ("x",)),
    "leak": (
        (IMAGE, MASK, SPACING, "g9", "validation"),
        "error", "the same image is in train and validation: c0, x", ("c0", "x"),
    ),
    "twice": (case(0), "warning", "the same image and mask: c0, x; keep one", ("c0", "x")),
    "contradiction": (
        (IMAGE, case(5)[1], SPACING, "g9", "train"), "warning", "the same image with different masks", ("c0", "x"),
    ),
    "group": (case(9, group="g1"), "warning", "1 groups lie in more than one part of the split (g1)", ("c1", "x")),
    "constant": (case(9, value=3.0), "warning", "1 images have one and the same value", ("x",)),
    "ignored": ((case(9)[0], VOID, SPACING, "g9", "train"), "warning", "every pixel is to be ignored", ("x",)),
    "class in one part only": (case(9, part="test", classes=2), "warning", "the class b is not in test", ()),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_found_and_no_other(mistake):
    odd, level, text, names = MISTAKES[mistake]
    (found,) = findings({**good(), "x": odd})
    assert found.level == level
    assert text in found.text
    assert found.cases == names


def test_spacings_that_differ():
    content = {f"c{n}": case(n, sides=(6, 5, 4), spacing=(1.0, 1.0, 3.0)) for n in range(5)}
    content["x"] = case(9, sides=(6, 5, 4), spacing=(1.0, 1.0, 7.0))
    (found,) = findings(content)
    assert "usual one of 1, 1, 3 mm: x; write `spacing: median`" in found.text


def test_a_class_that_no_mask_has():
    content = {f"c{n}": case(n, classes=2) for n in range(4)}
    (found,) = findings(content)
    assert found.text.startswith("no mask has the class b")


def test_masks_that_lie_elsewhere(tmp_path):
    """By two voxels, in the same orientation: let pass when training, and told here."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        affine, image = np.eye(4), case(number, sides=(5, 5, 5))[0][0]
        nib.save(nib.Nifti1Image(image, affine), tmp_path / f"images/{number}.nii")
        affine[0, 3] = 2 * (number > 0)
        nib.save(
            nib.Nifti1Image(np.eye(5, dtype=np.uint8)[None].repeat(5, 0), affine), tmp_path / f"masks/{number}.nii"
        )
    labels = Labels(["background", "a"])
    source = PairsSource(labels=labels, images=tmp_path / "images", masks=tmp_path / "masks")
    facts = [examine(source, one, labels) for one in source.cases]
    (found,) = [one for one in find(facts, source.cases, None, labels) if "away" in one.text]
    assert "up to 2.0 mm away; save the mask with the affine of the image (1 more cases have the same)" in found.text
    assert found.cases == ("1", "2")


def test_the_class_table_is_a_count():
    content = good()
    facts = [examine(Arrays(content), one, THREE) for one in Arrays(content).cases]
    masks = np.stack([one[1] for one in content.values()])
    for number, row in enumerate(class_table(facts, THREE)):
        assert row["pixels"] == (masks == number).sum()
        assert row["share"] == pytest.approx((masks == number).mean())
        assert row["cases"] == 4
        assert row["components"] == sum(ndimage.label(mask == number, np.ones((3, 3)))[1] for mask in masks)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_are_those_of_scipy(mask):
    assert count_components(mask) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert count_components(mask[None]) == count_components(mask)


def test_a_split_that_cannot_be_is_a_finding():
    split, (found,) = split_of(lambda: kfold_split(Arrays(good()).cases, folds=9))
    assert split is None
    assert "at least 9 groups" in found.text


# --- in several processes --------------------------------------------------------------------------------------------


class Deadly(Arrays):
    """Some of its cases kill the process that reads them."""

    def read(self, case):
        if case.name in ("c3", "c17"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(case)


@pytest.mark.parametrize("workers", [1, 3])
def test_cases_that_kill_their_process_are_found_out(workers):
    source = Deadly({f"c{n}": case(n) for n in range(40)})
    facts = {one.case: one for one in examine_all(source, THREE, workers)}
    assert facts.keys() == source.content.keys()
    assert {name for name, one in facts.items() if one.errors} == {"c3", "c17"}
    assert "the process that read it died" in facts["c3"].errors[0]
    assert facts["c5"] == examine(source, source.cases[sorted(source.content).index("c5")], THREE)


# --- the command -----------------------------------------------------------------------------------------------------

YAML = """
name: x
labels: {names: [background, vessel]}
data: {name: pairs, images: images, masks: masks}
split: {name: kfold, folds: 3}
model: {name: unet, widths: [4, 8]}
loss: dice
optimizer: {name: adamw, lr: 0.001}
schedule: constant
train: {steps: 2}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x.yaml").write_text(YAML)
    for number in range(6):
        image, mask, *_ = case(number, classes=2)
        for kind, array in (("images", (40 * image[0] + 128).clip(0, 255).astype(np.uint8)), ("masks", mask * 255)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{number}.png")
    return tmp_path


def checked(folder, *arguments, code=0):
    printed = tool("data", "check", "--config", "x.yaml", "--json", "check.json", *arguments, code=code, folder=folder)
    return " ".join(printed.split()), json.loads((folder / "check.json").read_text())


def test_the_line_that_is_proposed_mends(folder):
    """A mask of 0 and 255, in all cases: one finding, with the line of YAML."""
    printed, result = checked(folder, code=3)
    (found,) = [one for one in result["findings"] if one["level"] == "error"]
    assert "write `value_map: {255: 1}` under `data` (5 more cases have the same)" in found["text"]
    assert len(found["cases"]) == 6
    assert "1 errors" in printed
    printed, result = checked(folder, "data.value_map={255: 1}")
    assert result["findings"] == []
    assert "nothing was found wrong" in printed
    assert result["parts"] == {"train": 4, "validation": 2, "test": 0}


def test_strays_and_damaged_files_stop_nothing(folder):
    (folder / "images/stray.png").write_bytes((folder / "images/0.png").read_bytes())
    (folder / "images/1.png").write_bytes(b"")
    (folder / "masks/2.png").write_bytes((folder / "masks/2.png").read_bytes()[:-20])
    _printed, result = checked(folder, "data.value_map={255: 1}", code=3)
    texts = [one["text"] for one in result["findings"]]
    assert any("1 files have no partner" in text and "stray.png" in text for text in texts)
    assert any("images/1.png: the file is empty" in text for text in texts)
    assert any("masks/2.png" in text and "truncated" in text for text in texts)
    assert (result["cases"], result["read"]) == (6, 4)


def test_what_is_wrong_with_image_and_mask_is_told_at_once(folder):
    for kind in ("images", "masks"):
        (folder / f"{kind}/1.png").write_bytes(b"")
    _printed, result = checked(folder, "data.value_map={255: 1}", code=3)
    texts = [one["text"] for one in result["findings"]]
    for kind in ("images", "masks"):
        assert any(f"{kind}/1.png: the file is empty" in text for text in texts)
    assert result["read"] == 5


def test_numbers_that_are_stored_otherwise(folder):
    """16-bit among 8-bit pictures, and a mask of floating numbers."""
    Image.fromarray((np.arange(48).reshape(8, 6) * 80).astype(np.uint16)).save(folder / "images/2.png")
    mask = np.array(Image.open(folder / "masks/3.png")).astype(np.float32)
    (folder / "masks/3.png").unlink()
    Image.fromarray(mask).save(folder / "masks/3.tif")
    _printed, result = checked(folder, "data.value_map={255: 1}")
    images, masks = sorted(result["findings"], key=lambda one: one["cases"])
    assert "1 of uint16, 5 of uint8" in images["text"]
    assert (images["cases"], images["level"]) == (["2"], "warning")
    assert "1 masks store their classes as fractions: 3;" in masks["text"]
    assert masks["cases"] == ["3"]


def test_a_mirror_that_moves_classes_to_the_other_side(folder):
    (folder / "x.yaml").write_text(YAML.replace("vessel", "left kidney"))
    mirror = ("data.value_map={255: 1}", "augment.engine=albumentations", "augment.transforms=[horizontal_flip]")
    _printed, result = checked(folder, *mirror)
    (found,) = result["findings"]
    assert found["text"].startswith("a mirror turns left into right, but the classes left kidney keep their names")
    assert checked(folder, mirror[0])[1]["findings"] == []
    across, along = (Augment("monai", (Named("flip", {"axes": axes}),)) for axes in ([-3], [1, 2]))
    assert mirror_warnings(["Left lung", "right_lung"], across, 3)
    assert mirror_warnings(["Left lung", "right_lung"], along, 3) == []
    assert mirror_warnings(["upright", "bright"], across, 3) == []
    swapping = replace(across, swap_on_flip=(("Left lung", "right_lung"),))
    assert mirror_warnings(["Left lung", "right_lung"], swapping, 3) == []


@pytest.mark.slow
def test_ten_thousand_files_take_bounded_memory(tmp_path):
    """Of all processes together, over what two hundred of them take."""
    peaks = {}
    for number in (200, 5000):  # of images and of masks each
        root = tmp_path / str(number)
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        for place in range(number):
            image, mask, *_ = case(place, sides=(32, 32), classes=2)
            Image.fromarray((40 * image[0] + 128).clip(0, 255).astype(np.uint8)).save(root / f"images/{place}.png")
            Image.fromarray(mask).save(root / f"masks/{place}.png")
        (root / "x.yaml").write_text(YAML)
        peaks[number] = _peak_megabytes([sys.executable, "-m", "segkit.cli", "data", "check", "-c", "x.yaml"], root)
    assert peaks[5000] - peaks[200] < 60  # 5,000 records of a few hundred bytes


def _peak_megabytes(command, folder):
    """Of a command and its processes, looked at every 50 ms; what they share is counted once."""
    peak = 0.0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            try:
                family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
                peak = max(peak, sum(process.memory_full_info().uss for process in family) / 1e6)
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
    assert running.returncode == 0
    return peak


@needs_data
def test_real_strays(tmp_path):
    source = f"data.root={DATA / 'hippocampus'}"
    (tmp_path / "x.yaml").write_text((Path(__file__).parents[2] / "configs/hippocampus.yaml").read_text())
    tool("data", "check", "--config", "x.yaml", source, "--json", "check.json", folder=tmp_path)
    result = json.loads((tmp_path / "check.json").read_text())
    (found,) = result["findings"]
    assert found["text"].startswith("1 masks store their classes as fractions")  # one of the 200 is float32 indeed
    shares = {row["class"]: row["share"] for row in result["classes"]}
    assert shares == pytest.approx({"background": 0.9475, "anterior": 0.0273, "posterior": 0.0252}, abs=1e-3)
