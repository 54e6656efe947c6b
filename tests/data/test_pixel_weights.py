"""Weights of pixels: from a column of a table through augmentation and caches to the loss."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES, Case, DataError, RawCase
from segkit.data.augment import TRANSFORMS, Swap, build_augment
from segkit.data.case_store import CachedSource, CaseStore
from segkit.data.datasets import TrainingSet
from segkit.data.disk_cache import DiskCache
from segkit.data.loaders import collate
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Key
from segkit.experiment.build import load_config
from segkit.experiment.build_training import build_experiment
from segkit.training.trainer import Trainer

from support.command_line import tool

LABELS = Labels(["background", "a", "b"], ignore_index=255)
MOVING = {
    "albumentations": ["horizontal_flip", "vertical_flip", "rotate90", "affine", "elastic"],
    "torchvision": ["horizontal_flip", "vertical_flip", "affine", "elastic"],
    "monai": ["flip", "affine"],
}
CASES = [(engine, name, 2) for engine, names in MOVING.items() for name in names] + [
    ("monai", "flip", 3),
    ("monai", "affine", 3),
]


@pytest.mark.parametrize(("engine", "name", "dims"), CASES)
@pytest.mark.parametrize("swapped", [False, True])
def test_weights_move_with_the_mask(engine, name, dims, swapped):
    """Weights that equal the class numbers still do afterwards, unless a flip exchanges the classes."""
    build = TRANSFORMS[engine][name]
    options = {"p": 1.0}
    for key, value in {"padding_value": 255, "swap": Swap(((1, 2),), channels=False) if swapped else None}.items():
        options |= {key: value} if key in build.__kwdefaults__ or key in build.__code__.co_varnames else {}
    options |= {"axes": "all"} if name == "flip" else {}
    augment = build_augment(engine, [build(**options)], LABELS.padding_value)
    random = np.random.default_rng(0)
    mask = random.integers(0, 3, (41 if dims == 2 else 17,) * dims).astype(np.uint8)
    image = random.random((1, *mask.shape)).astype(np.float32)
    for seed in range(3):
        out_image, out_mask, weight = augment.apply(image, mask, mask.astype(np.float32), seed)
        alone = augment(image, mask, seed)
        np.testing.assert_array_equal(out_image, alone[0])
        np.testing.assert_array_equal(out_mask, alone[1])
        assert weight.dtype == np.float32
        inside = out_mask != 255
        exchanges = swapped and name in ("horizontal_flip", "flip") and (dims == 2 or name == "flip")
        expected = np.array([0, 2, 1])[out_mask[inside]] if exchanges else out_mask[inside]
        np.testing.assert_array_equal(weight[inside], expected)


class Weighted:
    """Two cases, the first of which has weights."""

    def __init__(self, tmp_path):
        np.save(tmp_path / "w.npy", np.zeros(1))
        self.cases = (Case("a", "a", weight=tmp_path / "w.npy"), Case("b", "b"))

    def read(self, case):
        random = np.random.default_rng(ord(case.name))
        mask = random.integers(0, 3, (10, 12)).astype(np.uint8)
        weight = None if case.weight is None else random.random((10, 12)).astype(np.float32)
        return RawCase(random.random((1, 10, 12)).astype(np.float32), mask, (1.0, 1.0), weight)


@pytest.mark.parametrize("keep", ["none", "memory", "disk"])
def test_every_cache_keeps_the_weights(tmp_path, keep):
    source = Weighted(tmp_path)
    read_from = CachedSource(source, DiskCache(tmp_path / "cache", {})) if keep == "disk" else source
    store = CaseStore(read_from, keep)
    fitted = Preprocess.fit(((case, source.read(case)) for case in source.cases), multiple=1)
    augment = build_augment("none", [], 255)
    options = {"patch": [14, 8], "foreground": 0.0, "margin": 1.0, "seed": 1}
    training = TrainingSet(list(source.cases), store, fitted, LABELS, augment, **options)
    samples = [training[Key(0, position, position)] for position in range(2)]
    for sample, case in zip(samples, source.cases, strict=True):
        raw = source.read(case)
        inside = sample["mask"] != 255
        assert inside.sum() == 10 * 8
        assert not sample["weight"][~inside].any()
        expected = raw.weight if raw.weight is not None else np.ones((10, 12))
        columns = [
            start
            for start in range(5)
            if np.array_equal(raw.mask[:, start : start + 8].ravel(), sample["mask"][inside])
        ]
        np.testing.assert_array_equal(sample["weight"][inside], expected[:, columns[0] : columns[0] + 8].ravel())
    batch = collate(samples, padding_value=255, multiple=16)
    assert batch["weight"].shape == batch["mask"].shape == (2, 16, 16)
    assert batch["weight"].dtype == torch.float32


def test_weights_are_resampled_with_the_image():
    weight = np.repeat(np.arange(4, dtype=np.float32), 2)[None].repeat(4, 0)
    raw = RawCase(weight[None], weight.astype(np.uint8), (1.0, 1.0), weight)
    fitted = Preprocess.fit([(Case("a", "a"), raw)], intensity="none", spacing=[1.0, 2.0], multiple=1)
    resampled = fitted.resample(raw)
    np.testing.assert_array_equal(resampled.weight, resampled.image[0])
    assert resampled.weight.shape == (4, 4)


def write_table(folder, weights):
    rows = ["case,image,mask,weight"]
    for number in range(6):
        random = np.random.default_rng(number)
        image, mask = random.integers(0, 256, (16, 16)), np.kron(random.integers(0, 2, (4, 4)), np.ones((4, 4)))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{number}_mask.png")
        np.save(folder / f"{number}_weight.npy", weights(mask).astype(np.float32))
        rows.append(f"c{number},{number}.png,{number}_mask.png,{number}_weight.npy")
    (folder / "cases.csv").write_text("\n".join(rows))
    (folder / "x.yaml").write_text(
        "labels: {names: [background, a]}\ndata: {name: manifest, file: cases.csv}\nsplit: {name: kfold, folds: 3}\n"
        "model: {name: unet, widths: [4, 8]}\nloss: [cross_entropy, dice]\noptimizer: {name: adamw, lr: 1e-2}\n"
        "loader: {batch: 2}\ntrain: {steps: 2, accumulate: 2, gradients_every: {steps: 1}}\nrun: {dir: run}\n"
        "evaluation: {overlays: false}\n"
    )


def first_loss(folder, *overrides):
    tool("train", "--config", "x.yaml", *overrides, folder=folder)
    (log,) = folder.glob("run/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return next(line["loss"] for line in lines if line["kind"] == "step")


def test_a_batch_brings_its_weights_to_the_loss(tmp_path):
    write_table(tmp_path, lambda mask: 1 + 3 * mask)
    built = build_experiment(load_config(tmp_path / "x.yaml", ["train.accumulate=1"]))
    batch = next(iter(built.experiment.batches(0)))
    assert set(batch["weight"].unique().tolist()) == {1.0, 4.0}
    np.testing.assert_array_equal(batch["weight"], 1 + 3 * batch["mask"])
    trainer = Trainer(built.experiment)
    with torch.no_grad():
        logits = trainer.model.train()(batch["image"])
    pixels = torch.nn.functional.cross_entropy(logits, batch["mask"].long(), reduction="none")
    expected = (pixels * batch["weight"]).sum() / batch["weight"].sum()
    torch.testing.assert_close(trainer.step([batch])["cross_entropy"], expected)


def test_weights_of_1_change_nothing_and_others_do(tmp_path):
    """With accumulation, and with the gradients of the terms in the log."""
    losses = {}
    for name, weights in (("ones", np.ones_like), ("more", lambda mask: 1 + 9 * mask), ("none", None)):
        folder = tmp_path / name
        folder.mkdir()
        write_table(folder, weights or np.ones_like)
        if weights is None:
            rows = (folder / "cases.csv").read_text().splitlines()
            (folder / "cases.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
        losses[name] = first_loss(folder)
    assert losses["ones"] == pytest.approx(losses["none"], rel=1e-6)
    assert losses["more"] != pytest.approx(losses["none"], rel=1e-2)


def test_losses_that_rank_pixels_refuse_weights_before_training(tmp_path):
    write_table(tmp_path, np.ones_like)
    printed = tool("train", "--config", "x.yaml", "loss=topk_cross_entropy", folder=tmp_path, code=2)
    assert "loss: the data have weights of pixels, but topk_cross_entropy" in printed


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full((4, 4), -1.0, np.float32), r"expected weights of 0 or more, got -1"),
        (np.ones((4, 5), np.float32), r"one weight per pixel of the image, \[4, 4\], got \[1, 4, 5\]"),
        (np.full((4, 4), np.nan, np.float32), r"finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, weight, message):
    for name in ("image", "mask"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "w.npy", weight)
    (tmp_path / "t.csv").write_text("image,mask,weight\nimage.png,mask.png,w.npy\n")
    source = SOURCES["manifest"](labels=LABELS, file=tmp_path / "t.csv")
    with pytest.raises(DataError, match=rf"case image, file .*w\.npy: .*{message}"):
        source.read(source.cases[0])
