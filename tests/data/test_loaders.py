"""Samples and batches: pure functions of seed, epoch and position, padded with the padding value."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.data import Case, DataError, RawCase, SyntheticSource
from segkit.data.augment import ALBUMENTATIONS, MONAI, TRANSFORMS, NoAugment, build_augment
from segkit.data.case_store import CachedSource, CaseStore
from segkit.data.datasets import EvaluationSet, TrainingSet
from segkit.data.disk_cache import CacheError, DiskCache
from segkit.data.loaders import _start_worker, collate, training_loader
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Key
from segkit.utils.files import temporary_folder

from support.command_line import TINY, tool
from support.limits import limited_file_size
from support.processes import FORKS

LABELS = Labels(["background", "a"], ignore_index=255)


class Shapes:
    """A source of random images of given shapes whose masks equal the images."""

    def __init__(self, *shapes):
        self.shapes = dict(enumerate(shapes))
        self.cases = tuple(Case(str(number), str(number)) for number in self.shapes)
        self.reads = 0

    def read(self, case):
        self.reads += 1
        mask = np.random.default_rng(int(case.name)).integers(0, 2, self.shapes[int(case.name)]).astype(np.uint8)
        return RawCase(mask[None].astype(np.float32), mask, (1.0,) * mask.ndim)


def training_set(
    source, *, augment=None, patch=None, foreground=0.0, keep="memory", intensity="none", spacing=None, labels=LABELS
):
    store = CaseStore(source, keep)
    cases = list(source.cases)
    read = ((case, store.read(case)) for case in cases)
    preprocess = Preprocess.fit(read, intensity=intensity, spacing=spacing, multiple=4)
    return TrainingSet(
        cases, store, preprocess, labels, augment or NoAugment(), patch=patch, foreground=foreground, margin=1.5, seed=7
    )


def test_batches_are_padded_at_their_ends():
    dataset = training_set(Shapes((5, 6), (7, 3)))
    batch = collate([dataset[Key(0, 0, 0)], dataset[Key(0, 1, 1)]], padding_value=255, multiple=4)
    assert batch["image"].shape == (2, 1, 8, 8)
    assert batch["mask"].dtype == torch.uint8
    assert batch["case"] == ["0", "1"]
    for number, (height, width) in enumerate(((5, 6), (7, 3))):
        mask = batch["mask"][number]
        inside = mask[:height, :width]
        assert torch.equal(inside, batch["image"][number, 0, :height, :width].to(torch.uint8))
        assert (inside != 255).all()
        assert (mask == 255).sum() == 64 - height * width
        assert batch["image"][number].sum() == inside.sum()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("side", [4, 20])
def test_patches_keep_image_and_mask_together(dims, side):
    dataset = training_set(Shapes((12,) * dims), patch=[side] * dims)
    for position in range(5):
        sample = dataset[Key(0, position, 0)]
        image, mask = sample["image"][0], sample["mask"]
        assert mask.shape == (side,) * dims
        valid = mask != 255
        assert valid.sum() == min(side, 12) ** dims
        assert torch.equal(image[valid].to(torch.uint8), mask[valid])


def test_the_foreground_fraction_of_patches_is_centred_on_foreground():
    class OnePixel(Shapes):
        def read(self, case):
            raw = super().read(case)
            raw.mask[:] = 0
            raw.mask[30, 5] = 1
            return raw

    fractions = {}
    for foreground in (0.0, 0.5, 1.0):
        dataset = training_set(OnePixel((40, 40)), patch=[8, 8], foreground=foreground)
        fractions[foreground] = np.mean([float((dataset[Key(0, p, 0)]["mask"] == 1).any()) for p in range(200)])
    assert fractions[1.0] == 1
    assert fractions[0.0] < 0.15
    assert 0.4 < fractions[0.5] < 0.7


@pytest.mark.parametrize("engine", ["albumentations", "monai"])
def test_samples_are_pure_functions_of_their_key(engine):
    labels = LABELS
    transform = ALBUMENTATIONS["affine"](padding_value=255) if engine == "albumentations" else MONAI["affine"]()
    augment = build_augment(engine, [transform], labels.padding_value)
    source = SyntheticSource(labels=labels, size=[32, 32], train=4, validation=0, test=0)
    first = training_set(source, augment=augment, patch=[16, 16], intensity="zscore")
    again = training_set(source, augment=augment, patch=[16, 16], intensity="zscore", keep="none")
    keys = [Key(epoch, position, case) for epoch in (0, 1) for position in (0, 1) for case in (0, 1)]
    samples = {key: first[key] for key in keys}
    for key in reversed(keys):  # in another order, from a data set without cached cases
        other = again[key]
        assert torch.equal(other["image"], samples[key]["image"])
        assert torch.equal(other["mask"], samples[key]["mask"])
    assert not torch.equal(samples[Key(0, 0, 0)]["image"], samples[Key(1, 0, 0)]["image"])
    assert not torch.equal(samples[Key(0, 0, 0)]["image"], samples[Key(0, 1, 0)]["image"])


def test_the_number_of_workers_changes_nothing():
    source = SyntheticSource(labels=LABELS, size=[16, 16], train=6, validation=0, test=0)
    batches = []
    for workers in (0, 2):
        dataset = training_set(source, patch=[8, 8])
        loader = training_loader(dataset, batch=2, workers=workers, steps=5, seed=7, start=1, multiple=4, pin=False)
        batches.append(list(loader))
    assert len(batches[0]) == 4
    for batch, other in zip(*batches, strict=True):
        assert batch["case"] == other["case"]
        assert torch.equal(batch["image"], other["image"])


def test_cached_cases_are_read_once():
    for keep, reads in (("memory", 2), ("none", 6)):
        source = Shapes((4, 4), (4, 4))
        dataset = training_set(source, keep=keep)
        for position in range(4):
            _ = dataset[Key(0, position, position % 2)]
        assert source.reads == reads


def test_evaluation_keeps_the_mask_on_the_original_grid():
    source = Shapes((12, 10))
    store = CaseStore(source)
    preprocess = Preprocess.fit(
        ((case, store.read(case)) for case in source.cases), intensity="none", spacing=[2.0, 2.0], multiple=1
    )
    sample = EvaluationSet(list(source.cases), source, preprocess, keep=True)[0]
    assert sample["image"].shape == (1, 6, 5)
    assert sample["mask"].shape == (12, 10)


def test_a_patch_of_the_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match=r"sampling\.patch with 2 sides"):
        training_set(Shapes((8, 8)), patch=[4, 4, 4])


def cached(source, folder, **identity):
    return CachedSource(source, DiskCache(folder, identity))


@pytest.mark.parametrize("spacing", [None, [2.0, 0.5]])
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_disk_cache_gives_the_same_samples_and_reads_every_file_once(tmp_path, keep, spacing):
    options = {"patch": [8, 8], "foreground": 0.5, "intensity": "percentile", "spacing": spacing}
    source = Shapes((12, 30), (20, 9))
    plain = training_set(source, **options)
    source.reads = 0
    for _run in range(2):
        dataset = training_set(cached(source, tmp_path), keep=keep, **options)
        loader = training_loader(dataset, batch=2, workers=2, steps=4, seed=7, start=0, multiple=4, pin=False)
        expected = training_loader(plain, batch=2, workers=0, steps=4, seed=7, start=0, multiple=4, pin=False)
        for batch, other in zip(loader, expected, strict=True):
            assert torch.equal(batch["image"], other["image"])
            assert torch.equal(batch["mask"], other["mask"])
            assert batch["spacing"] == other["spacing"]
    assert source.reads == 2
    raw = cached(source, tmp_path).read(source.cases[1])
    assert np.array_equal(raw.image, source.read(source.cases[1]).image)
    assert raw.spacing == (1.0, 1.0)


def test_only_the_required_blocks_are_read(tmp_path):
    """A patch can be read from a stored volume although blocks outside the patch are damaged."""
    volume = np.random.default_rng(0).random((1, 300, 200, 100), dtype=np.float32)
    entry = DiskCache(tmp_path, {}).entry({"case": "a"}, lambda: ({"image": volume}, {}))
    stored = entry.arrays["image"]
    content, quarter = bytearray(stored.path.read_bytes()), stored.path.stat().st_size // 4
    content[2 * quarter : 3 * quarter] = bytes(quarter)
    stored.path.write_bytes(content)
    assert np.array_equal(stored[..., :32, :32, :32], volume[..., :32, :32, :32])
    with pytest.raises(CacheError, match=r"image\.b2nd: wrong checksum.*delete"):
        stored[...]


def test_changed_files_and_identities_get_new_entries(tmp_path):
    file = tmp_path / "image.bin"
    file.write_bytes(b"one")
    source = Shapes((4, 4))
    source.cases = (Case("0", "0", images=(file,)),)
    for identity in ({}, {"labels": 1}):
        cached(source, tmp_path / "cache", **identity).read(source.cases[0])
    assert source.reads == 2
    for _again in range(2):
        cached(source, tmp_path / "cache").read(source.cases[0])
    assert source.reads == 2
    file.write_bytes(b"two")
    cached(source, tmp_path / "cache").read(source.cases[0])
    assert source.reads == 3


def test_entries_are_written_atomically(tmp_path):
    cache = DiskCache(tmp_path / "cache", {})
    with pytest.raises(KeyboardInterrupt):
        cache.entry({}, interrupted)
    calls = []
    for _again in range(2):
        assert cache.entry({}, lambda: calls.append(1) or ({}, {"a": np.ones(2)})).numbers["a"].tolist() == [1, 1]
    assert calls == [1]
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "numbers.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"numbers\.npz cannot be read.* made again"):
        assert cache.entry({}, lambda: ({}, {"a": np.zeros(1)})).numbers["a"].tolist() == [0]
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"loader\.cache_dir .*loader\.cache: none"):
        DiskCache(tmp_path / "file", {}).entry({}, lambda: ({}, {}))


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("array", [np.zeros((64, 64), np.uint8), np.full((9, 300, 300), 3.5)])
def test_arrays_of_one_value_are_not_taken_for_damaged(tmp_path, array):
    """The compressor stores them without any data, such as the mask of a case without foreground."""
    cache = DiskCache(tmp_path, {})
    for _ in range(2):
        assert np.array_equal(cache.entry({}, lambda: ({"mask": array}, {})).arrays["mask"][...], array)


@pytest.mark.parametrize("damage", ["missing", "truncated", "numbers"])
def test_damaged_entries_are_computed_again(tmp_path, damage):
    cache, calls = DiskCache(tmp_path, {}), []

    def compute():
        calls.append(1)
        return {"image": np.arange(6000, dtype=np.float32).reshape(3, 2000)}, {"n": np.array([7])}

    cache.entry({"case": "a"}, compute)
    (folder,) = tmp_path.iterdir()
    image = folder / "image.b2nd"
    if damage == "missing":
        image.unlink()
    elif damage == "truncated":
        image.write_bytes(image.read_bytes()[:-100])
    else:
        (folder / "numbers.npz").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged .* made again"):
        entry = cache.entry({"case": "a"}, compute)
    np.testing.assert_array_equal(entry.arrays["image"][...], compute()[0]["image"])
    assert {name: number.tolist() for name, number in entry.numbers.items()} == {"n": [7]}
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore:.*is made again")
def test_concurrent_repairs_of_damaged_entries(tmp_path):
    cache = DiskCache(tmp_path, {})
    content = {"image": np.full((2, 50, 50), 3, np.float32)}, {"n": np.array([3])}
    for key in range(8):
        cache.entry({"case": key}, lambda: content)
    for folder in tmp_path.iterdir():
        (folder / "numbers.npz").write_bytes(b"x")
    with ThreadPoolExecutor(6) as pool:
        entries = list(pool.map(lambda number: cache.entry({"case": number % 8}, lambda: content), range(48)))
    assert all((entry.arrays["image"][...] == 3).all() for entry in entries)


SPAWN = "import multiprocessing; multiprocessing.set_start_method('spawn'); from segkit.cli import main; "


def test_workers_started_by_spawn_make_the_same_batches(tmp_path):
    """macOS and Windows start workers by spawn: the data set and its augmentation are pickled."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--config", "tiny.yaml", "train.steps=2", "train.log_every.steps=1", "evaluation.overlays=false"]
    tool("train", *arguments, "run.dir=alone", folder=tmp_path)
    code = f"{SPAWN} main({['train', *arguments, 'run.dir=spawned', 'loader.workers=1']!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("alone", "spawned")]
    steps = [[record for record in map(json.loads, log) if record["kind"] == "step"] for log in logs]
    alone, spawned = ([record["loss"] for record in records] for records in steps)
    assert len(alone) == 2
    assert alone == pytest.approx(spawned, rel=1e-6)  # another number of threads may sum in another order


@pytest.mark.parametrize("engine", ["albumentations", "torchvision", "monai"])
def test_a_pickled_augmentation_draws_the_same(engine):
    names = {"albumentations": "horizontal_flip", "torchvision": "horizontal_flip", "monai": "flip"}
    options = {"axes": [0, 1], "padding_value": 255} if engine == "monai" else {}
    augment = build_augment(engine, [TRANSFORMS[engine][names[engine]](**options)], LABELS.padding_value)
    image = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    mask = (image[0] > 0.5).astype(np.uint8)
    copied = pickle.loads(pickle.dumps(augment))
    for seed in range(4):
        for expected, found in zip(augment(image, mask, seed), copied(image, mask, seed), strict=True):
            np.testing.assert_array_equal(found, expected)


class Failing(Shapes):
    """A source whose cases cannot be read."""

    error: Exception

    def read(self, case):
        raise self.error from KeyError(case.name)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("error", "is_known"), [(DataError("case 0: bad"), True), (ZeroDivisionError("x"), False)])
def test_a_known_error_in_a_worker_is_its_message_alone(workers, error, is_known, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds to wait for a worker's end
    dataset = training_set(Shapes((4, 4)), keep="none")
    dataset.store.source = Failing((4, 4))
    dataset.store.source.error = error
    loader = training_loader(dataset, batch=1, workers=workers, steps=2, seed=7, start=0, multiple=4, pin=False)
    with pytest.raises(type(error)) as caught:
        next(iter(loader))
    assert (str(caught.value) == str(error)) is (is_known or not workers)


def _leave_with_open_loader():
    source = SyntheticSource(labels=LABELS, size=[16, 16], train=6, validation=0, test=0)
    dataset = training_set(source, patch=[8, 8])
    loader = training_loader(dataset, batch=2, workers=2, steps=90, seed=7, start=1, multiple=4, pin=False)
    opened.append(iter(loader))  # as an error keeps it, whose traceback refers to it
    next(opened[0])
    sys.exit(3)


opened = []


def test_a_process_with_loader_workers_that_another_one_started_can_end():
    """multiprocessing asks the loader workers to end and waits for them; functions of atexit do not run there."""
    process = FORKS.Process(target=_leave_with_open_loader)
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "all"])
def test_an_entry_damaged_during_training_is_made_again(tmp_path, damage):
    options = {"patch": [8, 8], "foreground": 0.5}
    dataset = training_set(cached(Shapes((40, 30)), tmp_path), keep="disk", **options)
    expected = training_set(Shapes((40, 30)), **options)
    assert torch.equal(dataset[Key(0, 0, 0)]["image"], expected[Key(0, 0, 0)]["image"])
    (file,) = tmp_path.glob("*/image.b2nd")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "all":
        shutil.rmtree(tmp_path)
    elif damage == "delete":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match="damaged .* made again"):
        sample = dataset[Key(0, 1, 0)]
    for key in (Key(0, 1, 0), Key(3, 5, 0)):
        assert torch.equal(dataset[key]["image"], expected[key]["image"])
    assert torch.equal(sample["image"], expected[Key(0, 1, 0)]["image"])
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_named_with_the_option(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    volume = np.random.default_rng(0).random((1, 100, 100), dtype=np.float32)
    message = r"cache .*written \(File too large\); free space.*loader\.cache_dir"
    with limited_file_size(10_000), pytest.raises(CacheError, match=message) as caught:
        DiskCache(tmp_path, {}).entry({}, lambda: ({"image": volume}, {}))
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed_at_the_next_start(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from segkit.data import disk_cache\n"
        "disk_cache._written = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "disk_cache.DiskCache(Path(sys.argv[1]), {}).entry({}, lambda: ({'image': None}, {}))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    with temporary_folder(tmp_path) as kept:
        assert len(list(tmp_path.iterdir())) == 2
        DiskCache(tmp_path, {})
        assert list(tmp_path.iterdir()) == [kept]


def test_entries_of_a_cache_have_the_permissions_of_new_files(tmp_path):
    """So that the users of a group can share it."""
    DiskCache(tmp_path, {}).entry({}, lambda: ({"image": np.zeros((2, 2))}, {}))
    (tmp_path / "new").mkdir()
    (entry,) = (path for path in tmp_path.iterdir() if path.name != "new")
    assert entry.stat().st_mode == (tmp_path / "new").stat().st_mode


def _start_and_go_on(flag):
    _start_worker(0, flag)
    sys.exit(3)


@pytest.mark.parametrize(("exiting", "code"), [(1, 0), (0, 3)])
def test_a_loader_worker_ends_if_it_was_asked_to_before_it_could_listen(exiting, code):
    """The signal is lost between the start of a process and the line that sets its handler."""
    process = FORKS.Process(target=_start_and_go_on, args=(FORKS.RawValue("b", exiting),))
    process.start()
    process.join(60)
    assert process.exitcode == code
