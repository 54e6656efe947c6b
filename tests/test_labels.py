"""Labels: names, padding value, targets and one-hot round trips."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segkit import Labels
from segkit.labels import INDEX_DTYPES

THREE = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary")
OVERLAPPING = Labels(["whole", "core"], mode="multilabel")
REGIONS = Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 2], "core": [2]})


def masks(values, dims=2):
    """Small batches of masks with the given values, as nested lists made into a tensor."""
    sides = st.tuples(*[st.integers(1, 4)] * (dims + 1))
    return sides.flatmap(
        lambda size: st.lists(
            st.sampled_from(values), min_size=torch.Size(size).numel(), max_size=torch.Size(size).numel()
        ).map(lambda flat: torch.tensor(flat, dtype=torch.uint8).view(size))
    )


@given(masks([0, 1, 2, 255], dims=3))
def test_onehot_round_trip(mask):
    onehot = THREE.onehot(THREE.target(mask))
    valid = mask != 255
    assert torch.equal(onehot.sum(1), valid.long())
    assert torch.equal(onehot.long().argmax(1)[valid], mask.long()[valid])


@given(masks([0, 1, 2, 255]))
def test_onehot_column_of_zeros_is_ignored(mask):
    target = THREE.target(THREE.onehot(mask), spatial=2)
    assert torch.equal(target.valid, mask != 255)
    assert torch.equal(THREE.onehot(target), THREE.onehot(mask))


@given(masks([0, 1, 255]))
def test_binary_forms_agree(mask):
    with_channel = BINARY.target(mask[:, None], spatial=2)
    without = BINARY.target(mask, spatial=2)
    assert torch.equal(with_channel.index, without.index)
    assert torch.equal(with_channel.valid, mask != 255)
    assert torch.equal(BINARY.onehot(without)[:, 0], mask == 1)


@given(masks([0, 1, 2, 255]))
def test_regions_are_unions_of_values(mask):
    target = REGIONS.target(mask)
    expected = torch.stack([(mask == 1) | (mask == 2), mask == 2], dim=1)
    assert torch.equal(target.onehot, expected)
    assert torch.equal(target.valid, mask != 255)


def test_overlapping_masks_are_ignored_per_class():
    mask = torch.tensor([[[[1, 255]], [[0, 1]]]], dtype=torch.uint8)
    target = OVERLAPPING.target(mask)
    assert torch.equal(target.valid, mask != 255)
    assert torch.equal(OVERLAPPING.onehot(target), mask == 1)


@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_all_integer_types_give_the_same_target(dtype):
    labels = Labels(["background", "a", "b"], ignore_index=100)
    mask = torch.tensor([[[0, 1], [2, 100]]], dtype=dtype)
    target = labels.target(mask)
    assert torch.equal(target.index.long(), mask.long())
    assert target.valid.tolist() == [[[True, True], [True, False]]]


@given(masks([0, 1, 2]))
def test_decode_undoes_onehot(mask):
    logits = THREE.onehot(mask).float() * 2 - 1
    assert torch.equal(THREE.decode(logits), mask)
    assert THREE.decode(logits).dtype == torch.uint8


def test_decode_uses_the_threshold():
    logits = torch.logit(torch.tensor([[[[0.2, 0.4, 0.6]]]]))
    assert BINARY.decode(logits).tolist() == [[[0, 0, 1]]]
    assert BINARY.decode(logits, threshold=0.3).tolist() == [[[0, 1, 1]]]
    with pytest.raises(ValueError, match="between 0 and 1"):
        BINARY.decode(logits, threshold=1)


def test_an_invalid_value_fails_on_the_device():
    with pytest.raises(RuntimeError, match="neither 0 to 2 nor 255"):
        THREE.target(torch.tensor([[[3]]], dtype=torch.uint8))


def test_padding_value_is_not_a_class():
    assert Labels(["a", "b"]).padding_value == 255
    assert Labels(["a", "b"], ignore_index=11).padding_value == 11
    many = Labels([f"class {number}" for number in range(300)])
    assert many.padding_value == 65535
    assert many.mask_dtype == torch.int32


def test_a_thousand_classes_fit_into_their_masks():
    labels = Labels([f"class {number}" for number in range(1000)], ignore_index=-1)
    mask = torch.tensor([[0, 255, 999, -1]], dtype=labels.mask_dtype)
    target = labels.target(mask)
    assert target.index.tolist() == [[0, 255, 999, -1]]
    assert target.valid.tolist() == [[True, True, True, False]]
    assert labels.decode(labels.onehot(mask).float()).tolist() == [[0, 255, 999, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 2**31}, "integers from -2147483647 to 2147483647, got 2147483648"),
        ({"ignore_index": 1.5}, "got 1.5"),
        ({"regions": {"a": [1], "b": [2**31]}}, "integers from 0 to 2147483647, got 2147483648"),
        ({"regions": {"a": [1], "b": [-1]}}, "got -1"),
        ({"regions": {"a": [1], "b": ["2"]}}, "got '2'"),
        ({"regions": {"a": [1], "b": [65535]}}, "65535 of a class is also that of padding; set ignore_index"),
    ],
)
def test_numbers_that_masks_cannot_hold(options, message):
    with pytest.raises(ValueError, match=message):
        Labels(["a", "b"], mode="multilabel", **options)


def test_more_classes_than_the_padding_value_allows():
    names = [f"class {number}" for number in range(65536)]
    with pytest.raises(ValueError, match="65535 of a class is also that of padding"):
        Labels(names)
    assert Labels(names, ignore_index=-1).padding_value == -1


@pytest.mark.parametrize(
    "name",
    ["background", "Background", "BG", "bg", "_background_", "0_background", "back ground", "unlabeled", "no_label"],
)
def test_the_first_class_with_a_usual_name_is_the_background(name):
    labels = Labels([name, "a", "b"])
    assert labels.background_channel == 0
    assert labels.foreground == (1, 2)


def test_which_classes_are_not_taken_for_background():
    assert Labels(["a", "Background", "b"]).background_channel is None  # not the first class
    assert Labels(["a", "background"]).background_channel == 1  # the usual name itself, wherever it is
    assert Labels(["bg", "background"]).background_channel == 1
    assert Labels(["Background", "a"], background="").background_channel is None
    assert Labels(["Background", "a"], background="a").background_channel == 1
    assert Labels(["backdrop", "a"]).background_channel is None
    with pytest.raises(ValueError, match="expected background to be one of Background, a, or an empty text"):
        Labels(["Background", "a"], background="typo")
    assert Labels(["Background", "a"], mode="multilabel").background_channel is None


def test_foreground_excludes_only_the_background():
    assert THREE.foreground == (1, 2)
    assert THREE.background_channel == 0
    assert Labels(["sky", "road"]).foreground == (0, 1)
    assert BINARY.foreground == (0,)
    assert BINARY.channel_names == ("yes",)
    assert OVERLAPPING.foreground == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["a", "a"]}, "unique class names"),
        ({"names": ["a"], "mode": "multiclass"}, "at least two names"),
        ({"names": ["a", "b", "c"], "mode": "binary"}, "two names"),
        ({"names": ["a", "b"], "mode": "soft"}, "multiclass, binary or multilabel"),
        ({"names": ["a", "b"], "ignore_index": 1}, "the number of the class 'b'"),
        ({"names": ["a", "b"], "regions": {"a": [1], "b": [2]}}, "mode multilabel"),
        ({"names": ["a", "b"], "mode": "multilabel", "regions": {"a": [1]}}, "one region per name"),
    ],
)
def test_invalid_labels_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Labels(**arguments)


def test_targets_of_unexpected_shape_raise():
    with pytest.raises(ValueError, match=r"\[B, 3, \*S\] one-hot"):
        THREE.target(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="`regions`"):
        OVERLAPPING.target(torch.zeros(1, 4, 4, dtype=torch.uint8), spatial=2)
    with pytest.raises(ValueError, match="integer mask"):
        THREE.target(torch.zeros(1, 4, 4), spatial=2)


@pytest.mark.parametrize(("dtype", "ignore_index"), [(torch.uint8, -1), (torch.int8, 255), (torch.uint8, 300)])
def test_narrow_types_do_not_wrap(dtype, ignore_index):
    """255 must not be read as -1, -1 not as 255, and 44 not as 300."""
    labels = Labels(["background", *"abc"], ignore_index=ignore_index)
    wrapped = torch.tensor([ignore_index]).to(dtype)
    with pytest.raises(RuntimeError, match="neither 0 to 3"):
        labels.target(wrapped.view(1, 1, 1))


def test_many_classes_need_a_wide_mask_only_for_padding():
    labels = Labels([f"class {number}" for number in range(300)])
    target = labels.target(torch.tensor([[[255]]], dtype=torch.uint8))
    assert target.valid.all()


def test_onehot_values_are_checked_on_the_device():
    with pytest.raises(RuntimeError, match="other than 0, 1 and 255"):
        OVERLAPPING.target(torch.full((1, 2, 1, 1), 7, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="more than one class"):
        THREE.target(torch.ones(1, 3, 1, 1, dtype=torch.uint8), spatial=2)
