"""Checking a data set: every problem is found and named, and the proposed fix removes it."""

import json
import os
import re
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
from segkit.data.inspection.case_summaries import examine, examine_all
from segkit.data.inspection.checks import class_table, find_problems, try_split
from segkit.data.inspection.group_names import groups_in_names
from segkit.data.sources.base import group_reader
from segkit.data.splits import Split, kfold_split
from segkit.experiment.preflight import mirror_warnings
from segkit.utils.morphology import count_components

from support.command_line import tool

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", ""))
THREE = Labels(["background", "a", "b"], ignore_index=255)


@dataclass
class Arrays:
    """A source of arrays. content: (image, mask, spacing, group, part) by case name."""

    content: dict

    @property
    def cases(self):
        return tuple(Case(name, group, part) for name, (*_, group, part) in sorted(self.content.items()))

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
        part: tuple(case.name for case in source.cases if case.split == part)
        for part in ("train", "validation", "test")
    }
    summaries = [examine(source, case, THREE) for case in source.cases]
    return find_problems(summaries, source.cases, split or Split(**by_part), THREE)


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (["p03_a", "p03_b", "p14_a", "p14_b", "p25_a", "p25_b"], 3),
        (["p1-a", "p1-b", "p10-a", "p10-b", "p10-c", "p2-a", "p2-b"], 3),
        (["p03_t1_a", "p03_t2_a", "p14_t1_a", "p14_t2_a", "p25_t1_a", "p25_t2_a"], 3),  # the patient, not the visit
        (["sub_1_x", "sub_1_y", "sub_2_x", "sub_2_y", "sub_3_x", "sub_3_y"], 3),
        (["BraTS19_001", "BraTS19_002", "BraTS20_001", "BraTS20_002"], 0),  # too few groups to be patients
        (["hippocampus_004", "hippocampus_017"], 0),  # a name of all, without a digit
        (["img_1_a", "img_2_a", "img_3_b"], 0),  # one case of each
        (["p03_a", "p03_b", "p14_a", "p14_b", "p25_a", "p25"], 0),  # a name of another form
        (["scan_2020_1", "scan_2020_2"], 0),  # one group would be all cases
    ],
)
def test_names_suggest_groups(names, number):
    cases = [Case(name, name) for name in names]
    assert groups_in_names(cases) == number
    assert groups_in_names([replace(case, split="train") for case in cases]) == 0, "a split of their own"
    assert groups_in_names([Case(name, name[:3]) for name in names]) == 0, "groups of their own"
    split = Split(train=tuple(names[::2]), validation=tuple(names[1::2]), test=())
    found = [finding for finding in find_problems([], cases, split, THREE) if "the names suggest" in finding.text]
    assert len(found) == (number > 0)
    if found:
        assert found[0].level == "warning"
        assert set(found[0].cases) == set(names)
        (pattern,) = re.findall("`group: '(.*)'`", found[0].text)
        groups = {group_reader(pattern)(name) for name in names}  # what it proposes makes these groups
        assert len(groups) == number
        first = sorted(groups)[0]
        apart = [name for name in names if group_reader(pattern)(name) == first]
        together = Split(train=tuple(name for name in names if name not in apart), validation=tuple(apart), test=())
        assert not any("the names suggest" in finding.text for finding in find_problems([], cases, together, THREE))


def good():
    return {f"c{n}": case(n, part=("train", "validation")[n % 2]) for n in range(4)}


def test_correct_data_has_no_findings():
    assert findings(good()) == []


IMAGE, MASK, SPACING, *_ = case(0)
IGNORED = np.full((8, 6), 255, np.uint8)
PROBLEMS = {  # a case, and the level, the key words and the cases of its finding
    "channels": (case(9, channels=3), "error", "4 with 1, 1 with 3", ("x",)),
    "axes": (case(9, sides=(8, 6, 5)), "error", "4 with 2, 1 with 3", ("x",)),
    "leak": (
        (IMAGE, MASK, SPACING, "g9", "validation"),
        "error", "the same image is in train and validation: c0, x", ("c0", "x"),
    ),
    "twice": (case(0), "warning", "the same image and mask: c0, x", ("c0", "x")),
    "contradiction": (
        (IMAGE, case(5)[1], SPACING, "g9", "train"), "warning", "the same image with different masks", ("c0", "x"),
    ),
    "group": (case(9, group="g1"), "warning", "1 groups are in more than one part of the split (g1)", ("c1", "x")),
    "constant": (case(9, value=3.0), "warning", "1 images have the same value everywhere", ("x",)),
    "ignored": ((case(9)[0], IGNORED, SPACING, "g9", "train"), "warning", "every pixel is ignored", ("x",)),
    "class missing from a part": (case(9, part="test", classes=2), "warning", "the class b is missing from test", ()),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_found_and_no_other(problem):
    wrong_case, level, text, names = PROBLEMS[problem]
    (finding,) = findings({**good(), "x": wrong_case})
    assert finding.level == level
    assert text in finding.text
    assert finding.cases == names


def test_unusual_spacing():
    content = {f"c{n}": case(n, sides=(6, 5, 4), spacing=(1.0, 1.0, 3.0)) for n in range(5)}
    content["x"] = case(9, sides=(6, 5, 4), spacing=(1.0, 1.0, 7.0))
    (finding,) = findings(content)
    assert "1, 1, 3 mm: x; write `spacing: median`" in finding.text


def test_class_that_is_absent_from_all_masks():
    content = {f"c{n}": case(n, classes=2) for n in range(4)}
    (finding,) = findings(content)
    assert finding.text.startswith("no mask contains the class b")


def test_masks_at_another_position(tmp_path):
    """Two voxels away, in the same orientation: accepted in training, but reported by the check."""
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
    summaries = [examine(source, case, labels) for case in source.cases]
    problems = find_problems(summaries, source.cases, None, labels)
    (finding,) = [finding for finding in problems if "away" in finding.text]
    assert "2.0 mm away" in finding.text
    assert "(and the same in 1 more cases)" in finding.text
    assert finding.cases == ("1", "2")


def test_class_table_counts_pixels_cases_and_components():
    content = good()
    summaries = [examine(Arrays(content), case, THREE) for case in Arrays(content).cases]
    masks = np.stack([mask for _image, mask, *_ in content.values()])
    for number, row in enumerate(class_table(summaries, THREE)):
        assert row["pixels"] == (masks == number).sum()
        assert row["share"] == pytest.approx((masks == number).mean())
        assert row["cases"] == 4
        assert row["components"] == sum(ndimage.label(mask == number, np.ones((3, 3)))[1] for mask in masks)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_component_counts_match_scipy(mask):
    assert count_components(mask) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert count_components(mask[None]) == count_components(mask)


def test_an_impossible_split_is_a_finding():
    split, (finding,) = try_split(lambda: kfold_split(Arrays(good()).cases, folds=9))
    assert split is None
    assert "9 groups" in finding.text


# --- reading in several processes ------------------------------------------------------------------------------------


class KillingSource(Arrays):
    """A source with cases that kill the process that reads them."""

    def read(self, case):
        if case.name in ("c3", "c17"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(case)


@pytest.mark.parametrize("workers", [1, 3])
def test_cases_that_kill_their_process_are_identified(workers):
    source = KillingSource({f"c{n}": case(n) for n in range(40)})
    summaries = {summary.name: summary for summary in examine_all(source, THREE, workers)}
    assert summaries.keys() == source.content.keys()
    assert {name for name, summary in summaries.items() if summary.errors} == {"c3", "c17"}
    assert "died" in summaries["c3"].errors[0]
    assert summaries["c5"] == examine(source, source.cases[sorted(source.content).index("c5")], THREE)


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


def test_the_proposed_yaml_line_fixes_the_problem(folder):
    """Masks of 0 and 255 in all cases: one finding with the YAML line."""
    printed, result = checked(folder, code=3)
    (finding,) = [finding for finding in result["findings"] if finding["level"] == "error"]
    assert "`value_map: {255: 1}`" in finding["text"]
    assert "5 more cases" in finding["text"]
    assert len(finding["cases"]) == 6
    assert "1 error, " in printed
    printed, result = checked(folder, "data.value_map={255: 1}")
    assert result["findings"] == []
    assert "no problems found" in printed
    assert result["parts"] == {"train": 4, "validation": 2, "test": 0}


def test_unpaired_and_damaged_files_do_not_stop_the_check(folder):
    (folder / "images/stray.png").write_bytes((folder / "images/0.png").read_bytes())
    (folder / "images/1.png").write_bytes(b"")
    (folder / "masks/2.png").write_bytes((folder / "masks/2.png").read_bytes()[:-20])
    _printed, result = checked(folder, "data.value_map={255: 1}", code=3)
    texts = [finding["text"] for finding in result["findings"]]
    assert any(text.startswith("1 files") and "stray.png" in text for text in texts)
    assert any("images/1.png: the file is empty" in text for text in texts)
    assert any("masks/2.png" in text and "truncated" in text for text in texts)
    assert (result["cases"], result["read"]) == (6, 4)


def test_problems_of_image_and_mask_are_reported_together(folder):
    for kind in ("images", "masks"):
        (folder / f"{kind}/1.png").write_bytes(b"")
    _printed, result = checked(folder, "data.value_map={255: 1}", code=3)
    texts = [finding["text"] for finding in result["findings"]]
    for kind in ("images", "masks"):
        assert any(f"{kind}/1.png: the file is empty" in text for text in texts)
    assert result["read"] == 5


def test_mixed_number_types(folder):
    """One 16-bit image among 8-bit images, and a mask of floating-point numbers."""
    Image.fromarray((np.arange(48).reshape(8, 6) * 80).astype(np.uint16)).save(folder / "images/2.png")
    mask = np.array(Image.open(folder / "masks/3.png")).astype(np.float32)
    (folder / "masks/3.png").unlink()
    Image.fromarray(mask).save(folder / "masks/3.tif")
    _printed, result = checked(folder, "data.value_map={255: 1}")
    images, masks = sorted(result["findings"], key=lambda finding: finding["cases"])
    assert "1 of uint16, 5 of uint8" in images["text"]
    assert (images["cases"], images["level"]) == (["2"], "warning")
    assert "1 masks store floating-point numbers: 3;" in masks["text"]
    assert masks["cases"] == ["3"]


def test_flips_that_swap_left_and_right_classes(folder):
    (folder / "x.yaml").write_text(YAML.replace("vessel", "left kidney"))
    mirror = ("data.value_map={255: 1}", "augment.engine=albumentations", "augment.transforms=[horizontal_flip]")
    _printed, result = checked(folder, *mirror)
    (finding,) = result["findings"]
    assert "left kidney" in finding["text"]
    assert checked(folder, mirror[0])[1]["findings"] == []
    across, along = (Augment("monai", (Named("flip", {"axes": axes}),)) for axes in ([-3], [1, 2]))
    assert mirror_warnings(["Left lung", "right_lung"], across, 3)
    assert mirror_warnings(["Left lung", "right_lung"], along, 3) == []
    assert mirror_warnings(["upright", "bright"], across, 3) == []
    swapping = replace(across, swap_on_flip=(("Left lung", "right_lung"),))
    assert mirror_warnings(["Left lung", "right_lung"], swapping, 3) == []


@pytest.mark.slow
def test_memory_is_bounded_for_ten_thousand_files(tmp_path):
    """The memory of all processes, compared with that for two hundred cases."""
    peaks = {}
    for number in (200, 5000):  # of cases
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
    """Peak memory of a command and its child processes, sampled every 50 ms; shared memory is counted once."""
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
def test_real_data(tmp_path):
    source = f"data.root={DATA / 'hippocampus'}"
    (tmp_path / "x.yaml").write_text((Path(__file__).parents[2] / "configs/hippocampus.yaml").read_text())
    tool("data", "check", "--config", "x.yaml", source, "--json", "check.json", folder=tmp_path)
    result = json.loads((tmp_path / "check.json").read_text())
    (finding,) = result["findings"]
    assert finding["text"].startswith("1 masks store floating-point numbers")  # one of the 200 is indeed float32
    shares = {row["class"]: row["share"] for row in result["classes"]}
    assert shares == pytest.approx({"background": 0.9475, "anterior": 0.0273, "posterior": 0.0252}, abs=1e-3)
