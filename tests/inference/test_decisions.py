"""Post-processing against flood fills from pixel to pixel, and decisions against plain formulas."""

import itertools

import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.inference.decisions import Decisions, decided, post_processed
from segkit.inference.ensemble import Ensemble, FoldPredictors
from segkit.inference.post_processing import PostProcess, processed
from segkit.inference.predictor import Predictor

CPU = torch.device("cpu")
SHAPES = pytest.mark.parametrize("shape", [(40, 50), (12, 14, 16)])


def blobs(shape, seed, share=0.35):
    """A mask with objects of many sizes, with holes."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    return noise > np.quantile(noise, 1 - share)


def components(mask, *, corners):
    """The pixels of each connected component, by visiting neighbours. corners: whether pixels that share a corner are
    connected, not only those that share a side."""
    steps = [step for step in itertools.product((-1, 0, 1), repeat=mask.ndim) if corners or sum(map(abs, step)) == 1]
    unseen, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while unseen:
        waiting, component = [min(unseen)], set()
        unseen.discard(waiting[0])
        while waiting:
            place = waiting.pop()
            component.add(place)
            neighbours = {tuple(map(sum, zip(place, step, strict=True))) for step in steps} & unseen
            unseen -= neighbours
            waiting += neighbours
        found.append(component)
    return found


def drawn(shape, places):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def largest_of(mask):
    return drawn(
        mask.shape, max(components(mask, corners=True), key=lambda component: (len(component), -min(component)[0]))
    )


def without_holes(mask):
    """Background that does not reach the border of the image belongs to the object."""
    result = mask.copy()
    for component in components(~mask, corners=False):
        ends = [
            any(side in (0, length - 1) for side, length in zip(place, mask.shape, strict=True)) for place in component
        ]
        if not any(ends):
            result |= drawn(mask.shape, component)
    return result


@SHAPES
@pytest.mark.parametrize("seed", range(4))
def test_the_operations_are_those_of_a_flood_fill(shape, seed):
    mask = blobs(shape, seed)
    np.testing.assert_array_equal(PostProcess(largest=True).apply(mask), largest_of(mask))
    np.testing.assert_array_equal(PostProcess(fill=True).apply(mask), without_holes(mask))
    for size in (2, 5, 20, 10**6):
        large = [component for component in components(mask, corners=True) if len(component) >= size]
        expected = drawn(shape, itertools.chain(*large))
        np.testing.assert_array_equal(PostProcess(smallest=size).apply(mask), expected)
        np.testing.assert_array_equal(PostProcess(smallest=size, fill=True).apply(mask), without_holes(expected))
    both = without_holes(largest_of(mask))
    np.testing.assert_array_equal(PostProcess(largest=True, fill=True).apply(mask), both)
    assert mask.sum() > largest_of(mask).sum()


@SHAPES
def test_masks_without_objects_stay_empty(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    for process in (PostProcess(), PostProcess(9, largest=True, fill=True), PostProcess(fill=True)):
        assert not process.apply(empty).any()
        assert process.apply(full).all()


def test_an_exclusive_class_gives_pixels_to_the_background_and_takes_them_from_it_alone():
    mask = np.zeros((7, 9), int)
    mask[1:6, 1:6] = 1  # a square with a hole that holds class 2 and background
    mask[2:5, 2:5] = 0
    mask[3, 3] = 2
    mask[0, 8] = 1  # a second object of class 1
    found = processed(mask, {1: PostProcess(largest=True, fill=True)}, background=0)
    expected = mask.copy()
    expected[2:5, 2:5] = 1
    expected[3, 3] = 2
    expected[0, 8] = 0
    np.testing.assert_array_equal(found, expected)
    assert mask[0, 8] == 1, "the mask itself is not changed"


@pytest.mark.parametrize(
    "labels",
    [
        Labels(["background", "a", "b"]),
        Labels(["x", "background", "b"]),
        Labels(["no", "a"], mode="binary"),
        Labels(["a", "b"], mode="multilabel"),
    ],
    ids=lambda labels: "-".join(labels.names),
)
def test_classes_are_post_processed_by_name(labels):
    random = np.random.default_rng(0)
    if labels.mode == "multilabel":
        mask = np.stack([blobs((30, 30), 1), blobs((30, 30), 2)]).astype(np.uint8)
    else:
        mask = random.integers(0, len(labels.names), (30, 30)).astype(np.uint8)
    name = labels.channel_names[labels.foreground[-1]]
    found = post_processed(
        torch.from_numpy(mask)[None], Decisions(post_processing={name: PostProcess(largest=True)}), labels
    )[0].numpy()
    assert found.dtype == mask.dtype
    channel = labels.foreground[-1]
    planes, expected = list(labels.class_planes(mask)), list(labels.class_planes(found))
    number = channel + (labels.mode == "binary")
    largest = largest_of(planes[number])
    np.testing.assert_array_equal(expected[number], largest)
    assert largest.sum() < planes[number].sum()
    for other in set(range(len(planes))) - {number}:
        is_background = labels.mode != "multilabel" and labels.names[other] in ("background", "no")
        removed = planes[number] & ~largest
        np.testing.assert_array_equal(expected[other], planes[other] | removed if is_background else planes[other])


# --- thresholds and temperature --------------------------------------------------------------------------------------

OVERLAPPING = Labels(["a", "b"], mode="multilabel")


def constant(values):
    """A predictor whose logits are the image itself, of two channels."""
    return Predictor(torch.nn.Identity(), OVERLAPPING, CPU, **values)


def test_each_class_has_its_threshold_and_the_temperature_does_not_move_it():
    image = torch.randn(2, 8, 9)
    decisions = Decisions({"b": 0.8}, temperature=2.0)
    for predictor in (
        constant({}),
        Ensemble((constant({}), constant({})), (1.0, 1.0)),
        FoldPredictors((constant({}),)),
    ):
        seen = {Ensemble: (image, image), FoldPredictors: (0, image)}.get(type(predictor), image)
        found = decided(predictor, decisions).predict(seen, (8, 9), keep_logits=True)
        probabilities = image.double().sigmoid()
        assert torch.equal(found.mask[0, 0] == 1, probabilities[0] > 0.5)
        assert torch.equal(found.mask[0, 1] == 1, probabilities[1] > 0.8)
        torch.testing.assert_close(found.logits[0], image / 2, rtol=1e-4, atol=1e-5)
    assert decided(constant({}), decisions).threshold == (0.5, 0.8)
    assert decided(constant({"threshold": 0.3}), Decisions()).threshold == 0.3


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (Decisions({"c": 0.5}), "a, b, got c"),
        (Decisions({"a": 1.0}), "between 0 and 1"),
        (Decisions(temperature=0.0), "positive temperature"),
        (Decisions(post_processing={"x": PostProcess()}), "got x"),
    ],
)
def test_decisions_that_make_no_sense(decisions, message):
    with pytest.raises(ValueError, match=message):
        decided(constant({}), decisions)


def test_exclusive_classes_have_no_thresholds():
    with pytest.raises(ValueError, match="most probable"):
        Decisions({"a": 0.4}).check(Labels(["background", "a", "b"]))


@pytest.mark.parametrize("value", [-1, 2.5, True, "3"])
def test_post_processing_of_other_kinds(value):
    with pytest.raises(ValueError, match="number of pixels"):
        PostProcess(smallest=value)
    with pytest.raises(ValueError, match="true or false"):
        PostProcess(fill=1)


def test_the_words_say_what_is_done():
    decisions = Decisions({"a": 0.42}, 1.3, {"a": PostProcess(64, fill=True), "b": PostProcess()})
    assert decisions.in_words() == [
        "threshold of a 0.42",
        "temperature 1.3",
        "a: objects of fewer than 64 pixels removed, holes filled",
    ]
    assert Decisions().in_words() == []
