"""Order, placement and padding of samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit import Labels
from segkit.data.sampling import (
    BatchSampler,
    Key,
    cut,
    find_locations,
    foreground_locations,
    place_window,
    sample_seeds,
)


def keys(sampler):
    return [key for batch in sampler for key in batch]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 20), st.integers(0, 19))
def test_resuming_gives_the_remaining_batches(cases, batch, steps, start):
    all_batches = list(BatchSampler(cases, batch, steps, seed=3))
    assert list(BatchSampler(cases, batch, steps, seed=3, start=start)) == all_batches[start:]


@given(st.integers(4, 12), st.integers(1, 4))
def test_an_epoch_repeats_no_case(cases, batch):
    sampler = BatchSampler(cases, batch, steps=cases // batch, seed=0)
    seen = [key.case for key in keys(sampler)]
    assert len(set(seen)) == len(seen) == cases // batch * batch


def test_few_cases_fill_a_batch():
    (batch,) = list(BatchSampler(3, 8, steps=1, seed=0))
    assert len(batch) == 8
    assert sorted(key.case for key in batch[:3]) == [0, 1, 2]


def test_epochs_and_seeds_differ():
    first, second = (keys(BatchSampler(50, 50, 2, seed=0))[part] for part in (slice(0, 50), slice(50, 100)))
    other = keys(BatchSampler(50, 50, 1, seed=1))
    orders = [[key.case for key in part] for part in (first, second, other)]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_draws_depend_on_seed_epoch_and_position_alone():
    def draws(seed, *key):
        generator, augmenting = sample_seeds(seed, Key(*key))
        return generator.random(), augmenting

    assert draws(0, 1, 2, 7) == draws(0, 1, 2, 9)  # the case does not matter
    assert len({draws(0, 1, 2, 0), draws(1, 1, 2, 0), draws(0, 2, 2, 0), draws(0, 1, 3, 0)}) == 4


@given(st.data())
def test_window_and_cut_give_the_patch(data):
    """Cutting the patch from the region equals cutting it from the image."""
    size = tuple(data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=3)))
    patch = tuple(data.draw(st.integers(1, 20)) for _ in size)
    margin = data.draw(st.floats(1, 3))
    image = np.arange(1, np.prod(size) + 1).reshape(size)
    centre = np.array([data.draw(st.integers(0, side - 1)) for side in size]) if data.draw(st.booleans()) else None
    window = place_window(size, patch, margin, centre, np.random.default_rng(data.draw(st.integers(0, 99))))
    region = cut(image[window.slices], window.offset, patch, 0)
    assert region.shape == patch
    first = tuple(start + offset for start, offset in zip(window.start, window.offset, strict=True))
    np.testing.assert_array_equal(region, cut(image, first, patch, 0))
    for axis, (side, length) in enumerate(zip(size, patch, strict=True)):
        if side >= length:  # no unnecessary padding
            assert 0 <= first[axis] <= side - length
            if centre is not None and side > length:
                assert first[axis] <= centre[axis] < first[axis] + length
        else:  # the whole image is in the patch
            assert first[axis] <= 0
            assert first[axis] + length >= side


def test_patches_reach_every_position():
    random = np.random.default_rng(0)
    firsts = {place_window((10,), (4,), 1.0, None, random).start[0] for _ in range(200)}
    assert firsts == set(range(7))


@pytest.mark.parametrize("background", [0, None])
def test_foreground_locations(background):
    mask = np.array([[0, 1], [255, 2]], dtype=np.uint8)
    locations = foreground_locations(mask, background, padding_value=255, dims=2)
    expected = (mask != 255) if background is None else (mask == 1) | (mask == 2)
    np.testing.assert_array_equal(locations, np.argwhere(expected))


def test_foreground_locations_of_overlapping_classes():
    mask = np.zeros((2, 3, 3), dtype=np.uint8)
    mask[0, 0, 1] = mask[1, 2, 2] = 1
    mask[1, 1, 1] = 255
    assert foreground_locations(mask, None, padding_value=255, dims=2).tolist() == [[0, 1], [2, 2]]


KINDS = {
    "exclusive": (Labels(["background", "a", "b"], ignore_index=255), [1, 2]),
    "regions": (Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 2], "core": [2]}), [1, 2]),
    "overlapping": (Labels(["a", "b"], mode="multilabel"), [0, 1]),
    "binary": (Labels(["no", "a"], mode="binary"), [1]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_drawn_equally_often(kind):
    """A class of one pixel is drawn as often as a class of a thousand pixels."""
    labels, kinds = KINDS[kind]
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :30] = 1
    if len(kinds) == 2:
        mask[5, 5] = 2
    if labels.has_mask_channels:
        mask = np.stack([mask == 1, mask == 2]).astype(np.uint8)
    locations = find_locations(mask, labels, 2, "classes")
    random = np.random.default_rng(0)
    drawn = np.array([locations.draw(random) for _ in range(600)])
    rare = (drawn == 5).all(1).mean()
    assert rare == pytest.approx(0.5, abs=0.07) if len(kinds) == 2 else rare < 0.02
    assert (drawn[:, 1] < 30).all()
    by_pixels = find_locations(mask, labels, 2, "pixels")
    assert np.mean([(by_pixels.draw(random) == 5).all() for _ in range(600)]) < 0.02


def test_no_location_is_drawn_without_foreground():
    labels = KINDS["exclusive"][0]
    for balance in ("pixels", "classes"):
        locations = find_locations(np.zeros((4, 4), np.uint8), labels, 2, balance)
        assert locations.draw(np.random.default_rng(0)) is None


def test_many_foreground_locations_are_subsampled_evenly():
    mask = np.ones((300, 300), dtype=np.uint8)
    locations = foreground_locations(mask, 0, padding_value=255, dims=2)
    assert len(locations) == 10_000
    assert locations[0].tolist() == [0, 0]
    assert locations[-1].tolist() == [299, 299]


def test_foreground_of_regions_is_their_union():
    labels = Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 2], "core": [2]})
    mask = np.zeros((6, 7), np.uint8)
    mask[1, 2:4], mask[4, 5] = 1, 2
    locations = find_locations(mask, labels, 2, "pixels")
    assert sorted(map(tuple, locations.places.tolist())) == [(1, 2), (1, 3), (4, 5)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frequent_cases_are_drawn_more_often(share):
    """A tenth of the cases has foreground; `share` of the samples come from these alone."""
    frequent = [3, 17]
    sampler = BatchSampler(20, 4, 500, 0, frequent=frequent, frequent_share=share)
    drawn = np.array([key.case for batch in sampler for key in batch])
    assert np.isin(drawn, frequent).mean() == pytest.approx(share + (1 - share) / 10, abs=0.03)
    if share:
        assert abs((drawn == 3).mean() - (drawn == 17).mean()) < 0.03
    again = BatchSampler(20, 4, 500, 0, 100, frequent=frequent, frequent_share=share)
    assert list(again) == list(sampler)[100:]  # a resumed run continues with the same samples
    assert len({key.case for batch in list(sampler)[:5] for key in batch}) > (2 if share == 1 else 8) - 1
