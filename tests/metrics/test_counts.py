"""Counts against loops, torchmetrics and MONAI; scores and summaries against the definitions; no host sync."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_matthews_corrcoef,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)
from torchmetrics.functional.segmentation import dice_score

from segkit import Labels
from segkit.labels import INDEX_DTYPES
from segkit.metrics import count, dice, iou
from segkit.metrics.bootstrap import Bootstrap
from segkit.metrics.case_table import cases_table
from segkit.metrics.counts import pixel_counts
from segkit.metrics.overlap import accuracy, mcc
from segkit.metrics.rules import Rules
from segkit.metrics.summary import pooled, summarise

THREE = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary", ignore_index=255)
OVERLAPPING = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
REGIONS = Labels(["whole", "core"], mode="multilabel", ignore_index=255, regions={"whole": [1, 2], "core": [2]})
MANY = Labels([f"c{number}" for number in range(19)], ignore_index=255)
NAN = math.nan


def counted_by_hand(prediction, mask, void=255):
    """[B, K, 3] of bool planes [B, K, *S] and a mask of 0, 1 and the padding value, pixel by pixel."""
    counts = torch.zeros(*prediction.shape[:2], 3, dtype=torch.int64)
    for batch in range(prediction.shape[0]):
        for channel in range(prediction.shape[1]):
            flat = zip(prediction[batch, channel].flatten(), mask[batch, channel].flatten(), strict=True)
            for predicted, reference in flat:
                if reference != void:
                    both = int(predicted == 1 and reference == 1)
                    counts[batch, channel] += torch.tensor([both, int(predicted == 1), int(reference == 1)])
    return counts


def planes(index, numbers, void=255):
    """[B, K, *S] of 0, 1 and the padding value from class numbers [B, *S]."""
    return torch.stack([torch.where(index == void, void, (index == number).long()) for number in numbers], dim=1)


def batch(seed, values, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]


SIDES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), sides=SIDES, dtype=st.sampled_from(INDEX_DTYPES))
def test_exclusive_counts_match_a_loop_over_pixels(seed, sides, dtype):
    prediction = batch(seed, [0, 1, 2], (2, *sides)).to(dtype)
    mask = batch(seed + 1, [0, 1, 2, 255], (2, *sides))
    counts = count(prediction, mask.to(torch.uint8), THREE)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, counted_by_hand(planes(prediction, range(3)), planes(mask, range(3))))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), sides=SIDES, channels=st.tuples(st.booleans(), st.booleans()))
def test_binary_counts_match_a_loop_in_every_form(seed, sides, channels):
    prediction = batch(seed, [0, 1], (2, *sides))
    mask = batch(seed + 1, [0, 1, 255], (2, *sides))
    given_forms = [
        form[:, None] if channel else form for form, channel in zip((prediction, mask), channels, strict=True)
    ]
    assert torch.equal(count(*given_forms, BINARY), counted_by_hand(prediction[:, None], mask[:, None]))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), sides=SIDES)
def test_overlapping_counts_match_a_loop_over_pixels(seed, sides):
    prediction = batch(seed, [0, 1], (2, 2, *sides)).to(torch.uint8)
    mask = batch(seed + 1, [0, 1, 255], (2, 2, *sides)).to(torch.uint8)
    assert torch.equal(count(prediction, mask, OVERLAPPING), counted_by_hand(prediction, mask))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), sides=SIDES)
def test_regions_are_counted_from_class_numbers(seed, sides):
    prediction = batch(seed, [0, 1], (2, 2, *sides)).to(torch.uint8)
    mask = batch(seed + 1, [0, 1, 2, 255], (2, *sides)).to(torch.uint8)
    whole = torch.where(mask == 255, 255, ((mask == 1) | (mask == 2)).long())
    expected = counted_by_hand(prediction, torch.stack([whole, planes(mask, [2])[:, 0]], dim=1))
    assert torch.equal(count(prediction, mask, REGIONS), expected)


def test_predictions_at_ignored_pixels_do_not_matter():
    mask = batch(1, [0, 1, 2, 255], (2, 9, 7))
    prediction = batch(2, [0, 1, 2], (2, 9, 7))
    other = torch.where(mask == 255, batch(3, [0, 1, 2, 77], (2, 9, 7)), prediction)
    assert not torch.equal(prediction, other)
    assert torch.equal(count(prediction, mask, THREE), count(other, mask, THREE))
    nothing = count(prediction, torch.full_like(mask, 255), THREE)
    assert torch.equal(nothing, torch.zeros(2, 3, 3, dtype=torch.int64))


def test_inputs_are_not_modified():
    mask, prediction = batch(1, [0, 1, 2, 255], (2, 9, 7)), batch(2, [0, 1, 2], (2, 9, 7))
    before = mask.clone(), prediction.clone()
    count(prediction, mask, THREE)
    assert torch.equal(mask, before[0])
    assert torch.equal(prediction, before[1])


def test_counts_have_no_float_saturation():
    mask = torch.ones(1, 4096 * 4096 + 4096, dtype=torch.uint8)
    assert count(mask, mask, THREE)[0, 1].tolist() == [mask.numel()] * 3
    assert count(mask, mask, BINARY)[0, 0].tolist() == [mask.numel()] * 3


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_torchmetrics(seed):
    prediction, mask = batch(seed, list(range(19)), (3, 20, 31)), batch(seed + 9, [*range(19), 255], (3, 20, 31))
    counts = count(prediction, mask, MANY)
    for image in range(3):
        matrix = multiclass_confusion_matrix(prediction[image], mask[image], 19, ignore_index=255)
        assert torch.equal(counts[image], torch.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)], dim=-1))
    jaccard = multiclass_jaccard_index(prediction, mask, 19, average="none", ignore_index=255)
    torch.testing.assert_close(iou(counts.sum(0)).float(), jaccard)


def absent_classes(seed):
    """Class numbers [B, *S] of five classes; each image has only some of them."""
    generator = np.random.default_rng(seed)
    rows = [generator.choice(generator.choice(5, size=3, replace=False), size=(9, 8)) for _ in range(6)]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_torchmetrics_and_monai(seed):
    labels = Labels([f"c{number}" for number in range(5)])
    prediction, mask = absent_classes(seed), absent_classes(seed + 100)
    counts = count(prediction, mask, labels)
    reference = counts[..., 2] > 0
    assert bool(((counts[..., 1:] == 0).all(-1)).any())
    assert bool((~reference & (counts[..., 1] > 0)).any())
    ours = dice(counts)
    theirs = dice_score(prediction, mask, 5, average="none", aggregation_level="samplewise", input_format="index")
    torch.testing.assert_close(ours.float(), theirs, equal_nan=True)
    onehots = [planes(index, range(5)) for index in (prediction, mask)]
    for score, library in ((ours, compute_dice), (iou(counts), compute_iou)):
        only_present = torch.where(reference, score, NAN).float()
        torch.testing.assert_close(only_present, library(*onehots, ignore_empty=True), equal_nan=True)


def test_scores_of_empty_classes():
    counts = torch.tensor([[0, 0, 0], [0, 0, 5], [0, 5, 0], [5, 5, 5], [2, 4, 4]])
    torch.testing.assert_close(dice(counts), torch.tensor([NAN, 0, 0, 1, 0.5], dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(iou(counts), torch.tensor([NAN, 0, 0, 1, 1 / 3], dtype=torch.float64), equal_nan=True)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 10**12)] * 3), min_size=1))
def test_iou_is_a_function_of_dice(triples):
    counts = torch.tensor([[tp, tp + extra, tp + left] for tp, extra, left in triples])
    torch.testing.assert_close(iou(counts), dice(counts) / (2 - dice(counts)), equal_nan=True)


@pytest.mark.parametrize(
    ("prediction", "mask", "labels", "message"),
    [
        ((2, 4, 5), (2, 5, 4), THREE, r"\[2, 4, 5\].*got \[2, 5, 4\]"),
        ((2, 4, 5), (2, 1, 4, 5), THREE, r"\[2, 4, 5\].*got \[2, 1, 4, 5\]"),
        ((2, 4, 5), (1, 4, 5), THREE, r"\[2, 4, 5\].*got \[1, 4, 5\]"),
        ((2, 4, 5), (2, 4, 6), BINARY, r"\[2, 4, 5\].*got \[2, 4, 6\]"),
        ((2, 2, 4, 5), (2, 3, 4, 5), OVERLAPPING, r"\[2, 2, 4, 5\].*got \[2, 3, 4, 5\]"),
        ((2, 2, 4, 5), (2, 4, 5), OVERLAPPING, r"\[2, 2, 4, 5\].*got \[2, 4, 5\]"),
        ((2, 3, 4, 5), (2, 4, 5), REGIONS, r"prediction \[B, 2, \*S\].*got \[2, 3, 4, 5\]"),
        ((2, 2, 4, 5), (2, 4, 4), REGIONS, r"\[2, 4, 5\].*got \[2, 4, 4\]"),
    ],
)
def test_different_shapes_raise(prediction, mask, labels, message):
    with pytest.raises(ValueError, match=message):
        count(torch.zeros(prediction, dtype=torch.uint8), torch.zeros(mask, dtype=torch.uint8), labels)


def test_logits_and_invalid_values_raise():
    with pytest.raises(ValueError, match=r"labels\.decode"):
        count(torch.rand(2, 4, 5), torch.zeros(2, 4, 5, dtype=torch.uint8), THREE)
    with pytest.raises(RuntimeError, match="not 0 to 2"):
        count(torch.full((2, 4, 5), 3), torch.zeros(2, 4, 5, dtype=torch.uint8), THREE)
    with pytest.raises(RuntimeError, match="not 0 or 1"):
        count(torch.full((2, 4, 5), 2), torch.zeros(2, 4, 5, dtype=torch.uint8), BINARY)


class NoHostSync(TorchDispatchMode):
    """Raises an error for operations that synchronise with the device."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if name in self.forbidden:
            raise AssertionError(f"{name} synchronises")
        if name.startswith("index.") and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise AssertionError("indexing with a boolean synchronises")
        return func(*args, **(kwargs or {}))


def examples(device="cpu"):
    """A prediction, a mask and labels of every mode, 2D and 3D."""
    for sides in ((8, 7), (4, 5, 6)):
        numbers = batch(1, [0, 1, 2], (2, *sides)).to(device, torch.uint8)
        bits = batch(2, [0, 1], (2, 2, *sides)).to(device, torch.uint8)
        yield numbers, numbers, THREE
        yield bits[:, 0], bits[:, 1], BINARY
        yield bits, bits, OVERLAPPING
        yield bits, numbers, REGIONS


def test_counting_does_not_synchronise():
    for prediction, mask, labels in examples():
        with NoHostSync():
            counts = count(prediction, mask, labels)
            dice(counts), iou(counts)


@pytest.mark.parametrize(
    "reads",
    [torch.bincount, torch.nonzero, torch.unique, lambda t: t[t > 1], lambda t: t.sum().item(), lambda t: t[t].sum()],
)
def test_the_guard_itself_raises(reads):
    with NoHostSync(), pytest.raises(AssertionError, match="synchronises"):
        reads(torch.tensor([0, 1, 2], dtype=torch.uint8))


def test_counting_runs_on_meta():
    for prediction, mask, labels in examples("meta"):
        counts = count(prediction, mask, labels)
        assert (counts.device.type, counts.dtype) == ("meta", torch.int64)
        assert counts.shape == (2, labels.channels, 3)
        assert dice(counts).shape == (2, labels.channels)


def test_counting_is_deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        for prediction, mask, labels in examples():
            assert torch.equal(count(prediction, mask, labels), count(prediction, mask, labels))
    finally:
        torch.use_deterministic_algorithms(False)


def golden():
    """A small published example: two images of 2 x 2 pixels with three classes."""
    mask = torch.tensor([[[0, 0], [1, 1]], [[0, 2], [2, 1]]])
    prediction = torch.tensor([[[0, 1], [1, 1]], [[0, 2], [1, 1]]])
    counts = count(prediction, mask, THREE)
    return cases_table(["x", "y"], ["x", "y"], counts.numpy(), THREE)


def test_the_published_disagreement_is_reproduced():
    cases = golden()
    assert cases["iou"].tolist() == pytest.approx([0.5, 2 / 3, NAN, 1, 0.5, 0.5], nan_ok=True)
    summary = summarise(cases, THREE, intervals=False)
    assert summary["mean"]["iou"] == pytest.approx(0.5417, abs=5e-5)
    renamed = cases.replace({"class": {"background": "first"}})
    whole = pooled(renamed, Labels(["first", "a", "b"]))
    assert whole["mean"] == pytest.approx({"iou": 0.5889, "dice": 0.7389}, abs=5e-5)


def test_cases_table_has_one_row_per_case_and_class():
    table = golden()
    assert list(table.columns) == ["case", "group", "class", "tp", "predicted", "reference", "dice", "iou"]
    assert table["case"].tolist() == ["x"] * 3 + ["y"] * 3
    assert table["class"].tolist() == ["background", "a", "b"] * 2
    assert table[["tp", "predicted", "reference"]].to_numpy().tolist()[1] == [2, 3, 2]
    with pytest.raises(ValueError, match=r"counts \[2, 3, 3\].*got counts \[2, 2, 3\]"):
        cases_table(["x", "y"], ["x", "y"], np.zeros((2, 2, 3), dtype=np.int64), THREE)


def random_cases(seed, cases=24, groups=12, labels=THREE):
    generator = np.random.default_rng(seed)
    tp = generator.integers(0, 50, size=(cases, labels.channels))
    counts = np.stack([tp, tp + generator.integers(0, 30, tp.shape), tp + generator.integers(0, 30, tp.shape)], axis=-1)
    counts[generator.uniform(size=tp.shape) < 0.2] = 0
    counts[0, :, :] = [0, 0, 9]
    counts[1, :, :] = [0, 9, 0]
    names = [f"case{number}" for number in range(cases)]
    return cases_table(names, [f"g{number % groups}" for number in range(cases)], counts, labels)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_summary_equals_the_rules_in_loops(metric):
    cases = random_cases(0)
    summary = summarise(cases, THREE)
    means = {}
    for name in THREE.names:
        rows = [row for row in cases.to_dict("records") if row["class"] == name]
        counted = [row[metric] for row in rows if row["predicted"] + row["reference"] > 0]
        means[name] = sum(counted) / len(counted)
        score = summary["classes"][name][metric]
        assert score["mean"] == pytest.approx(means[name])
        assert score["cases"] == len(counted) < 24
        assert score["missed"] == sum(row["predicted"] == 0 < row["reference"] for row in rows) >= 1
        assert score["spurious"] == sum(row["reference"] == 0 < row["predicted"] for row in rows) >= 1
        assert score["ci95"][0] < score["mean"] < score["ci95"][1]
    assert summary["mean"][metric] == pytest.approx((means["a"] + means["b"]) / 2)
    assert summary["rules"] == Rules().to_dict(["dice", "iou"])
    json.dumps(summary, allow_nan=False)


def test_interval_is_the_bootstrap_of_group_means():
    cases = random_cases(1).assign(dice=np.random.default_rng(2).beta(8, 2, size=72))
    by_group = cases[cases["class"] == "a"].groupby("group")["dice"].mean().to_numpy()
    expected = stats.bootstrap(
        (by_group,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    found = summarise(cases, THREE, Rules(bootstrap=Bootstrap(resamples=20_000)))["classes"]["a"]["dice"]["ci95"]
    # other draws: both ends are known to about a hundredth of the width from so many
    assert found == pytest.approx([expected.low, expected.high], abs=0.03 * (expected.high - expected.low))
    assert summarise(cases, THREE) == summarise(cases, THREE)


def test_interval_is_for_the_mean_over_cases_if_groups_differ_in_size():
    cases = random_cases(3, cases=200, groups=200)
    good = np.arange(200) < 120
    cases["group"] = np.repeat(np.where(good, "g" + pd.Series(np.arange(200) % 4).astype(str), np.arange(200)), 3)
    cases["dice"] = np.repeat(np.where(good, 0.9, 0.3) + np.linspace(0, 0.05, 200), 3)
    score = summarise(cases, THREE)["classes"]["a"]["dice"]
    assert cases.groupby("group")["dice"].mean().mean() < 0.4
    assert score["ci95"][0] < score["mean"] < score["ci95"][1]


def test_missing_intervals_and_means_have_reasons():
    few = summarise(random_cases(4, groups=9), THREE)["classes"]["a"]["dice"]
    assert few["ci95"] is None
    assert "9 groups of cases, fewer than 10" in few["ci95_reason"]
    same = random_cases(5).assign(dice=1.0)
    assert summarise(same, THREE)["classes"]["a"]["dice"]["ci95_reason"] == "all groups of cases have the same mean"
    counts = np.zeros((12, 3, 3), dtype=np.int64)
    counts[:, :2] = 4
    cases = cases_table([f"c{number}" for number in range(12)], [f"c{number}" for number in range(12)], counts, THREE)
    summary = summarise(cases, THREE)
    absent = summary["classes"]["b"]["dice"]
    assert (absent["mean"], absent["ci95"], absent["cases"]) == (None, None, 0)
    assert "absent" in absent["mean_reason"]
    assert summary["mean_left_out"] == {"dice": ["b"], "iou": ["b"]}
    assert summary["mean"] == {"dice": 1.0, "iou": 1.0}
    assert summary["global"]["classes"]["b"]["dice"] is None
    json.dumps(summary, allow_nan=False)
    nothing = summarise(cases[cases["class"] == "b"], THREE)
    assert nothing["mean"] == {"dice": None, "iou": None}
    assert "no case" in nothing["mean_reason"]["dice"]


def test_without_a_background_all_classes_are_foreground():
    labels = Labels(["sky", "road", "tree"])
    summary = summarise(random_cases(6, labels=labels), labels, intervals=False)
    assert summary["mean"]["dice"] == pytest.approx(np.mean([c["dice"]["mean"] for c in summary["classes"].values()]))


def test_pooled_scores_are_computed_from_summed_counts():
    cases = random_cases(7)
    result = pooled(cases, THREE)
    for name in THREE.names:
        tp, predicted, reference = cases[cases["class"] == name][["tp", "predicted", "reference"]].sum()
        assert result["classes"][name]["dice"] == pytest.approx(2 * tp / (predicted + reference))
        assert result["classes"][name]["iou"] == pytest.approx(tp / (predicted + reference - tp))
    assert result["mean"]["iou"] == pytest.approx((result["classes"]["a"]["iou"] + result["classes"]["b"]["iou"]) / 2)


def test_rules_are_frozen_plain_data():
    rules = Rules()
    with pytest.raises(AttributeError):
        rules.seed = 1  # pyright: ignore
    assert json.loads(json.dumps(rules.to_dict())) == rules.to_dict()
    stricter = summarise(random_cases(8), THREE, Rules(bootstrap=Bootstrap(min_groups=50)))
    assert stricter["classes"]["a"]["dice"]["ci95"] is None


@pytest.mark.parametrize("seed", range(6))
def test_mcc_and_accuracy_equal_torchmetrics(seed):
    prediction, mask = batch(seed, [0, 1, 2], (3, 9, 8)), batch(seed + 100, [0, 1, 1, 2, 255], (3, 9, 8))
    mask = torch.where(batch(seed + 200, [0, 0, 1], mask.shape) == 1, mask, torch.where(mask == 255, 255, prediction))
    pixels = pixel_counts(prediction, mask, THREE)
    ours = mcc(pixels.counts, pixels.valid), accuracy(pixels.counts, pixels.valid)
    for case in range(3):
        valid = mask[case] != 255
        for number in range(3):
            pair = (prediction[case][valid] == number).int(), (mask[case][valid] == number).int()
            assert ours[0][case, number].item() == pytest.approx(binary_matthews_corrcoef(*pair).item(), abs=1e-6)
            assert ours[1][case, number].item() == pytest.approx(binary_accuracy(*pair).item(), abs=1e-6)
    assert (ours[0] > 0.1).all()


def test_mcc_of_constant_masks_and_opposites():
    """Counts tp, predicted, reference of 10 pixels."""
    rows = {
        (0, 0, 0): NAN,
        (10, 10, 10): NAN,
        (0, 4, 0): 0,  # spurious
        (0, 0, 4): 0,  # missed
        (4, 10, 4): 0,
        (4, 4, 4): 1,
        (0, 6, 4): -1,
    }
    counts, pixels = torch.tensor(list(rows)), torch.full((len(rows),), 10)
    assert mcc(counts, pixels).tolist() == pytest.approx(list(rows.values()), nan_ok=True)
    assert accuracy(counts, pixels).tolist() == pytest.approx([1, 1, 0.6, 0.6, 0.4, 1, 0])
    assert accuracy(torch.tensor([0, 0, 0]), torch.tensor(0)).isnan()
