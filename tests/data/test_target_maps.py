"""Maps that losses need, from the loader to the trainer: the same with any workers, after augmentation, in mm."""

import json

import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.data import Case, RawCase
from segkit.data.augment import ALBUMENTATIONS, build_augment
from segkit.data.case_store import CaseStore
from segkit.data.class_counts import class_radii
from segkit.data.datasets import TrainingSet
from segkit.data.loaders import collate, training_loader
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Key
from segkit.experiment.build import load_config
from segkit.experiment.build_training import build_experiment
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.target_maps import maps_of_mask, maps_of_target

from support.command_line import tool
from support.loss_oracle import batch, labels_of, maps_of

LABELS = Labels(["background", "a", "b"], ignore_index=255)
SPEC = [{"name": "dice"}, {"name": "boundary", "distance": "mm"}, {"name": "component_dice"}]


class Blocks:
    """Three cases of blocks, whose pixels are 2 x 0.5 mm."""

    cases = tuple(Case(name, name) for name in "abc")

    def read(self, case):
        random = np.random.default_rng(ord(case.name))
        mask = np.kron(random.integers(0, 3, (5, 6)), np.ones((4, 4))).astype(np.uint8)
        return RawCase(random.random((1, 20, 24)).astype(np.float32), mask, (2.0, 0.5))


def training_set(loss, patch=None, transforms=(), keep="memory"):
    source = Blocks()
    store = CaseStore(source, keep)
    fitted = Preprocess.fit(((case, source.read(case)) for case in source.cases), multiple=4)
    augment = build_augment("albumentations" if transforms else "none", list(transforms), 255)
    calls = []

    def maps(mask, spacing):
        calls.append(mask)
        return maps_of_mask(loss.maps, LABELS, mask, spacing)

    options = {"patch": patch, "foreground": 0.0, "margin": 1.0, "seed": 1, "maps": maps}
    return TrainingSet(list(source.cases), store, fitted, LABELS, augment, **options), calls


@pytest.mark.parametrize("patch", [None, [14, 28]])
def test_maps_are_those_of_the_augmented_mask_in_mm(patch):
    loss = build_loss(SPEC, LABELS)
    flips = [ALBUMENTATIONS["horizontal_flip"](p=0.5), ALBUMENTATIONS["vertical_flip"](p=0.5)]
    samples, _ = training_set(loss, patch, flips)
    for position in range(4):
        sample = samples[Key(0, position, position % 3)]
        expected = maps_of_mask(loss.maps, LABELS, sample["mask"].numpy(), (2.0, 0.5))
        assert sample["maps"].keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(sample["maps"][name], array)


def test_a_batch_with_the_maps_of_the_loader_has_the_loss_of_its_masks():
    loss = build_loss(SPEC, LABELS)
    samples, _ = training_set(loss, [14, 28])
    whole = collate([samples[Key(0, position, position % 3)] for position in range(3)], 255, 16)
    assert whole["maps"]["distance-signed-mm-1-2"].shape == (3, 3, 16, 32)
    logits = torch.randn(3, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    given = loss(logits, whole["mask"], maps=whole["maps"])
    made = loss(logits, whole["mask"], spacing=whole["spacing"])
    torch.testing.assert_close(given, made)


def test_maps_of_whole_images_without_augmentation_are_made_once():
    loss = build_loss(SPEC, LABELS)
    for patch, keep, expected in ((None, "memory", 3), ([8, 8], "memory", 6), (None, "none", 6)):
        samples, calls = training_set(loss, patch, keep=keep)
        for epoch in range(2):
            for number in range(3):
                assert samples[Key(epoch, number, number)]["maps"]
        assert len(calls) == expected


def test_workers_make_the_same_maps():
    loss = build_loss(SPEC, LABELS)
    batches = []
    for workers in (0, 2):
        samples, _ = training_set(loss, [8, 12], [ALBUMENTATIONS["rotate90"](p=0.5)])
        samples.maps = MapMaker(loss.maps)
        options = {"batch": 2, "steps": 2, "seed": 1, "start": 0, "multiple": 4, "pin": False}
        batches.append(list(training_loader(samples, workers=workers, **options)))
    for alone, shared in zip(*batches, strict=True):
        for name, values in alone["maps"].items():
            assert torch.equal(values, shared["maps"][name])


class MapMaker:
    """What a worker process receives."""

    def __init__(self, maps):
        self.maps = maps

    def __call__(self, mask, spacing):
        return maps_of_mask(self.maps, LABELS, mask, spacing)


def test_heads_of_deep_supervision_get_the_maps_at_their_size():
    labels = labels_of("multiclass")
    loss = build_loss(["dice", "boundary", "skeleton_recall", "component_dice", "border_cross_entropy"], labels)
    logits, mask = batch("multiclass", (16, 24))
    heads = [logits, logits[..., ::2, ::2]]
    given = maps_of(loss, mask, 2)
    terms = DeepSupervision(loss).terms(heads, mask, **given)
    coarse = {name: values[..., 1::2, 1::2] if values.ndim == 4 else values for name, values in given["maps"].items()}
    skeletons = next(name for name in coarse if name.startswith("skeleton"))
    thin = given["maps"][skeletons].unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    coarse[skeletons] = thin
    finest = loss.terms(logits, mask, maps=given["maps"])
    second = loss.terms(heads[1], mask[..., 1::2, 1::2], maps=coarse)
    for name, value in terms.items():
        torch.testing.assert_close(value, 2 / 3 * finest[name] + 1 / 3 * second[name])


def test_the_spacing_of_a_head_is_that_of_its_pixels():
    labels = labels_of("multiclass")
    loss = build_loss({"name": "hausdorff", "one_sided": False, "distance": "mm"}, labels)
    logits, mask = batch("multiclass", (8, 12))
    given = maps_of_target(loss.maps, labels, labels.target(mask, 2), [[2.0, 0.5]] * 2, torch.float64)
    coarse = DeepSupervision(loss)._maps_at_size(given, (8, 12), (4, 4))
    assert coarse["spacing"].tolist() == [[4.0, 1.5]] * 2
    assert DeepSupervision(loss)([logits, logits[..., ::2, ::3]], mask, maps=given).isfinite()


def test_radii_of_classes():
    mask = np.zeros((12, 20), np.uint8)
    mask[3:8, 4:16] = 1  # 5 rows: the middle is 3 steps from the outside
    mask[9:11, 2:4] = 2
    mask[0, 0] = 255
    # the background is 8 steps from a class at the corner (11, 19)
    assert class_radii([mask], LABELS).tolist() == [[8, 3, 1]]
    assert class_radii([np.full((4, 4), 1, np.uint8)], LABELS).tolist() == [[0, 0, 0]]


TEXT = """
labels: {names: [background, a]}
data: {name: synthetic, size: [32, 32], train: 4, validation: 2, test: 0}
split: source
model: {name: unet, widths: [8, 16]}
loss: dice_ce_cldice
optimizer: {name: adamw, lr: 1e-3}
train: {steps: 2}
"""


def test_measured_iterations_become_a_number_of_the_run(tmp_path):
    file = tmp_path / "vessels.yaml"
    file.write_text(TEXT)
    built = build_experiment(load_config(str(file)), tmp_path / "cache")
    (term,) = [term for term in built.config.loss if term["name"] == "cldice"]
    masks = [built.data.store.read(case).mask for case in built.data.cases("train")]
    radius = class_radii(masks, built.data.labels)[:, 1].max()
    assert term["iterations"] == radius - 1
    assert built.experiment.loss.members[2].iterations == radius - 1
    assert any(f"radius of {radius} pixels" in note for note in built.notes)
    (tmp_path / "one.yaml").write_text(
        TEXT.replace("[background, a]", "[background, a, b]").replace(
            "dice_ce_cldice", "[dice, {name: cldice, class_weights: [0, 0, 1]}]"
        )
    )
    built = build_experiment(load_config(str(tmp_path / "one.yaml")))
    masks = [built.data.store.read(case).mask for case in built.data.cases("train")]
    assert built.config.loss[1]["iterations"] == class_radii(masks, built.data.labels)[:, 2].max() - 1
    (kept,) = (tmp_path / "cache").glob("radii-*.json")
    assert np.array(json.loads(kept.read_text())).shape == (4, 2)


@pytest.mark.parametrize("loss", ["dice_ce_boundary", "dice_ce_cldice", "dice_ce_component_dice"])
def test_training_with_maps(tmp_path, loss):
    (tmp_path / "maps.yaml").write_text(TEXT.replace("dice_ce_cldice", loss))
    options = ["loader.workers=1", "train.validation_loss=true", f"run.dir={tmp_path / 'run'}"]
    tool("train", "--config", tmp_path / "maps.yaml", *options)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("validation" in json.dumps(record) for record in records)
