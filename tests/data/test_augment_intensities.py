"""Augmentation of intensities: in units of the images' own range, whatever their number type or unit."""

import cv2
import numpy as np
import pytest
import torch

import segkit
from segkit import Labels
from segkit.data import Case, RawCase
from segkit.data.augment import TRANSFORMS, NoAugment, build_augment
from segkit.data.augment.presets import IMAGES_2D, VOLUMES
from segkit.data.case_store import CaseStore
from segkit.data.datasets import EvaluationSet, TrainingSet
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Key

LABELS = Labels(["background", "a"], ignore_index=255)
DISC = (np.indices((32, 32)) - 16 + 0.5).__pow__(2).sum(0) < 64
OF_INTENSITY = {
    "albumentations": ["brightness_contrast", "gamma", "hue_saturation", "gaussian_noise", "gaussian_blur"],
    "torchvision": ["brightness_contrast", "hue_saturation", "gaussian_noise", "gaussian_blur"],
    "monai": [
        "gaussian_noise", "gaussian_smooth", "scale_intensity", "shift_intensity", "contrast", "low_resolution",
        "gamma",
    ],
}  # fmt: skip
PAIRS = [(engine, name) for engine, names in OF_INTENSITY.items() for name in names]


def _scene(random, channels=3):
    image = 300 + 10 * random.standard_normal((channels, 32, 32)) + random.uniform(-20, 20)
    return image + DISC * random.uniform(150, 500, (channels, 1, 1))


def _with_outliers(image, random):
    image[:, random.random((32, 32)) < 0.0035] *= 60
    return image


KINDS = {
    "8 bit": lambda random: np.clip(_scene(random) / 4, 0, 255).astype(np.uint8) / 255,
    "10 bit in 16": lambda random: _scene(random).astype(np.uint16) / 65535,
    "12 bit in 16": lambda random: (4 * _scene(random)).astype(np.uint16) / 65535,
    "16 bit": lambda random: np.clip(60 * _scene(random), 0, 65535).astype(np.uint16) / 65535,
    "float with outliers": lambda random: _with_outliers(_scene(random), random),
    "signed CT": lambda random: np.clip(4 * (_scene(random) - 550), -1024, 3071),
}


class Scenes:
    """A source of scenes of one kind, in units that are `factor` times smaller and start at `offset`."""

    def __init__(self, kind, factor=1.0, offset=0.0):
        self.kind, self.factor, self.offset = kind, factor, offset
        self.cases = tuple(Case(str(number), str(number)) for number in range(6))

    def read(self, case):
        image = KINDS[self.kind](np.random.default_rng(int(case.name))) * self.factor + self.offset
        return RawCase(image.astype(np.float32), DISC.astype(np.uint8), (1.0, 1.0))


def _training_set(source, intensity, augment):
    store = CaseStore(source)
    fitted = Preprocess.fit(((case, store.read(case)) for case in source.cases), intensity=intensity, multiple=1)
    options = {"patch": None, "foreground": 0.0, "margin": 1.0, "seed": 1}
    return TrainingSet(list(source.cases), store, fitted, LABELS, augment, **options), fitted


@pytest.fixture(autouse=True)
def _no_other_randomness():
    torch.manual_seed(0)


@pytest.mark.parametrize("intensity", ["zscore", "dataset", "percentile", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_augmentation_training_and_evaluation_see_the_same_image(kind, intensity):
    source = Scenes(kind)
    training, fitted = _training_set(source, intensity, NoAugment())
    evaluated = EvaluationSet(list(source.cases), source, fitted, keep=False)
    for number in range(len(source.cases)):
        assert torch.equal(training[Key(0, number, number)]["image"], evaluated[number]["image"])


@pytest.mark.parametrize("intensity", ["zscore", "dataset", "percentile", "none"])
@pytest.mark.parametrize(("engine", "name"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_augmented_images_are_finite_and_stay_near_the_usual_range(kind, engine, name, intensity):
    augment = build_augment(engine, [TRANSFORMS[engine][name](p=1.0)], LABELS.padding_value)
    training, fitted = _training_set(Scenes(kind), intensity, augment)
    plain, _fitted = _training_set(Scenes(kind), intensity, NoAugment())
    low, high = (np.array(ends).reshape(-1, 1, 1) for ends in (fitted.low, fitted.high))
    for number in range(6):
        image, before = (one[Key(0, number, number)]["image"].numpy() for one in (training, plain))
        assert np.isfinite(image).all()
        # the usual range and, where the image itself exceeds it, its own extremes, each widened by the usual range
        assert (image >= np.minimum(before.min((1, 2), keepdims=True), low) * 1.3 - (high - low)).all()
        assert (image <= np.maximum(before.max((1, 2), keepdims=True), high) * 1.3 + (high - low)).all()
        # the disc remains visible: its contrast to the background keeps its sign and at least a third of its size
        contrasts = [np.median(one[:, DISC], 1) - np.median(one[:, ~DISC], 1) for one in (image, before)]
        assert (contrasts[0] > contrasts[1] / 3).all()


@pytest.mark.parametrize("intensity", ["zscore", "dataset", "percentile"])
@pytest.mark.parametrize(("engine", "name"), PAIRS)
@pytest.mark.parametrize("kind", ["8 bit", "float with outliers"])
def test_the_unit_in_which_images_are_stored_does_not_change_what_training_sees(kind, engine, name, intensity):
    augment = build_augment(engine, [TRANSFORMS[engine][name](p=1.0)], LABELS.padding_value)
    one, other = (
        _training_set(Scenes(kind, *units), intensity, augment)[0] for units in ((1.0, 0.0), (1024.0, -4096.0))
    )
    for number in range(3):
        images = [training[Key(0, number, number)]["image"] for training in (one, other)]
        scale = float(images[0].abs().max())
        # 12 of the 24 bits of a float32 are left beside the offset
        torch.testing.assert_close(images[0] / scale, images[1] / scale, rtol=0, atol=2e-3)


def test_the_usual_range_is_that_of_the_normalised_training_images():
    source = Scenes("float with outliers")
    _training, fitted = _training_set(source, "zscore", NoAugment())
    images = [source.read(case).image.reshape(3, -1).astype(np.float64) for case in source.cases]
    normalised = np.concatenate([(image - image.mean(1)[:, None]) / image.std(1)[:, None] for image in images], 1)
    np.testing.assert_allclose(fitted.low, np.percentile(normalised, 0.5, axis=1), atol=0.02)
    np.testing.assert_allclose(fitted.high, np.percentile(normalised, 99.5, axis=1), atol=0.2)


@pytest.mark.parametrize("engine", ["albumentations", "torchvision"])
def test_values_beyond_the_usual_range_stay_distinct(engine):
    options = {"brightness": 0.0, "contrast": 0.0} if engine == "albumentations" else {"brightness": 0, "contrast": 0}
    augment = build_augment(engine, [TRANSFORMS[engine]["brightness_contrast"](**options, p=1.0)], 255)
    image = np.linspace(-2, 5, 256, dtype=np.float32).reshape(1, 16, 16)
    out, _mask = augment(image, np.zeros((16, 16), np.uint8), 0)
    np.testing.assert_allclose(out, image, atol=1e-6)


DISCS = {  # 12 bits in 16, and floating-point numbers with 0.35 % outliers
    "uint16": lambda image, random: image.astype(np.uint16),  # noqa: ARG005
    "float": lambda image, random: np.where(random.random(image.shape) < 0.0035, image * 30, image).astype(np.float32),
}
CASES = [
    (kind, engine, preset)
    for kind in DISCS
    for engine, presets in (("albumentations", IMAGES_2D), ("torchvision", IMAGES_2D), ("monai", VOLUMES))
    for preset in presets
]


def _write_discs(folder, kind):
    """24 images of a background of 300 with two discs of 450 and 800, and their masks."""
    random = np.random.default_rng(0)
    rows, columns = np.indices((64, 64))
    for number in range(24):
        image, mask = 300 + random.normal(0, 8, (64, 64)), np.zeros((64, 64), np.uint8)
        for value, brightness in ((1, 450), (2, 800)):
            row, column = random.integers(16, 48), random.integers(14, 18) + 32 * (value - 1)
            disc = (rows - row) ** 2 + (columns - column) ** 2 < random.integers(8, 13) ** 2
            image[disc] += brightness - 300
            mask[disc] = value
        for name, array in (("images", DISCS[kind](image, random)), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            if array.dtype == np.float32:
                np.save(folder / name / f"{number:02d}.npy", array)
            else:
                cv2.imwrite(str(folder / name / f"{number:02d}.png"), array)


@pytest.mark.slow  # each takes 9 s
@pytest.mark.parametrize(("kind", "engine", "preset"), CASES)
def test_a_network_learns_discs_with_every_preset(tmp_path, kind, engine, preset):
    _write_discs(tmp_path, kind)
    config = {
        "labels": {"names": ["background", "a", "b"]},
        "data": {"name": "pairs", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")},
        "split": {"name": "kfold", "folds": 4},
        "model": {"name": "unet", "widths": [8, 16, 32], "norm": "batch"},
        "loss": "dice_ce",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "cosine"},
        "augment": {"engine": engine, "preset": preset},
        "sampling": {"patch": [64, 64]},
        "loader": {"batch": 6},
        "train": {"steps": 150, "ema": 0.9},
        "evaluation": {"overlays": False},
        "run": {"dir": str(tmp_path / "run")},
    }
    assert segkit.train(config, verbose=False).scores["mean"]["dice"] > 0.95
