"""Samples and batches: pure functions of seed, epoch and position, padded with void."""

import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.data import Case, RawCase, SyntheticSource
from segkit.data.augment import ALBUMENTATIONS, MONAI, NoAugment, build_augment
from segkit.data.loaders import CaseStore, EvaluationSet, TrainingSet, collate, training_loader
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Key

LABELS = Labels(["background", "a"], ignore_index=255)


class Shapes:
    """A source of cases of given shapes whose mask repeats the image, which tells where a pixel comes from."""

    def __init__(self, *shapes):
        self.shapes = dict(enumerate(shapes))
        self.cases = tuple(Case(str(number), str(number)) for number in self.shapes)
        self.reads = 0

    def read(self, case):
        self.reads += 1
        mask = np.random.default_rng(int(case.name)).integers(0, 2, self.shapes[int(case.name)]).astype(np.uint8)
        return RawCase(mask[None].astype(np.float32), mask, (1.0,) * mask.ndim)


def training_set(source, *, augment=None, patch=None, foreground=0.0, cache=True, intensity="none", labels=LABELS):
    store = CaseStore(source, cache=cache)
    cases = list(source.cases)
    preprocess = Preprocess.fit(((case, store.read(case)) for case in cases), intensity=intensity, multiple=4)
    return TrainingSet(
        cases, store, preprocess, labels, augment or NoAugment(), patch=patch, foreground=foreground, margin=1.5, seed=7
    )


def test_batches_are_padded_at_their_ends_with_void():
    dataset = training_set(Shapes((5, 6), (7, 3)))
    batch = collate([dataset[Key(0, 0, 0)], dataset[Key(0, 1, 1)]], void=255, multiple=4)
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
        counts = mask != 255
        assert counts.sum() == min(side, 12) ** dims
        assert torch.equal(image[counts].to(torch.uint8), mask[counts])


def test_foreground_share_centres_patches_on_foreground():
    class OnePixel(Shapes):
        def read(self, case):
            raw = super().read(case)
            raw.mask[:] = 0
            raw.mask[30, 5] = 1
            return raw

    shares = {}
    for foreground in (0.0, 0.5, 1.0):
        dataset = training_set(OnePixel((40, 40)), patch=[8, 8], foreground=foreground)
        shares[foreground] = np.mean([float((dataset[Key(0, p, 0)]["mask"] == 1).any()) for p in range(200)])
    assert shares[1.0] == 1
    assert shares[0.0] < 0.15
    assert 0.4 < shares[0.5] < 0.7


@pytest.mark.parametrize("engine", ["albumentations", "monai"])
def test_samples_are_pure_functions_of_their_key(engine):
    labels = LABELS
    transform = ALBUMENTATIONS["affine"](void=255) if engine == "albumentations" else MONAI["affine"]()
    augment = build_augment(engine, [transform], labels.void)
    source = SyntheticSource(labels=labels, size=[32, 32], train=4, validation=0, test=0)
    first = training_set(source, augment=augment, patch=[16, 16], intensity="zscore")
    again = training_set(source, augment=augment, patch=[16, 16], intensity="zscore", cache=False)
    keys = [Key(epoch, position, case) for epoch in (0, 1) for position in (0, 1) for case in (0, 1)]
    samples = {key: first[key] for key in keys}
    for key in reversed(keys):  # in another order, from a set that has read nothing before
        other = again[key]
        assert torch.equal(other["image"], samples[key]["image"])
        assert torch.equal(other["mask"], samples[key]["mask"])
    assert not torch.equal(samples[Key(0, 0, 0)]["image"], samples[Key(1, 0, 0)]["image"])
    assert not torch.equal(samples[Key(0, 0, 0)]["image"], samples[Key(0, 1, 0)]["image"])


def test_workers_change_nothing():
    source = SyntheticSource(labels=LABELS, size=[16, 16], train=6, validation=0, test=0)
    batches = []
    for workers in (0, 2):
        dataset = training_set(source, patch=[8, 8])
        loader = training_loader(dataset, batch=2, workers=workers, steps=5, seed=7, start=1, multiple=4, pin=False)
        batches.append(list(loader))
    assert len(batches[0]) == 4
    for one, other in zip(*batches, strict=True):
        assert one["case"] == other["case"]
        assert torch.equal(one["image"], other["image"])


def test_cached_cases_are_read_once():
    for cache, reads in ((True, 2), (False, 6)):
        source = Shapes((4, 4), (4, 4))
        dataset = training_set(source, cache=cache)
        for position in range(4):
            _ = dataset[Key(0, position, position % 2)]
        assert source.reads == reads


def test_evaluation_keeps_the_mask_on_its_own_grid():
    source = Shapes((12, 10))
    store = CaseStore(source, cache=False)
    preprocess = Preprocess.fit(
        ((case, store.read(case)) for case in source.cases), intensity="none", spacing=[2.0, 2.0], multiple=1
    )
    sample = EvaluationSet(list(source.cases), source, preprocess, cache=True)[0]
    assert sample["image"].shape == (1, 6, 5)
    assert sample["mask"].shape == (12, 10)


def test_a_patch_of_the_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match=r"sampling\.patch with 2 sides"):
        training_set(Shapes((8, 8)), patch=[4, 4, 4])
