"""Choosing on validation cases: the gain is not that of noise, and candidates are scored as plain loops score them."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from segkit import Labels
from segkit.evaluation.scoring import build_scoring
from segkit.evaluation.tuning import (
    FOLDS,
    TEMPERATURES,
    THRESHOLDS,
    Predicted,
    choose,
    log_likelihood,
    post_processes,
    post_processing_scores,
    temperature_scores,
    threshold_scores,
)
from segkit.inference.predictor import Predictor

MULTICLASS = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "a"], mode="binary")
OVERLAPPING = Labels(["a", "b"], mode="multilabel")


# --- choosing --------------------------------------------------------------------------------------------------------


def test_noise_is_not_kept():
    """Of 200 sets of 30 candidates that differ by noise alone, about one in forty may seem to gain."""
    random = np.random.default_rng(0)
    groups = [f"g{number}" for number in range(30)]
    kept, naive = 0, 0
    for _trial in range(200):
        values = random.normal(0, 0.05, (30, 30, 1))
        (choice,) = choose(values, groups)
        kept += choice.is_kept
        naive += values.mean(1).max() > values[0].mean() + 0.02
    assert kept <= 12  # 5 expected; more than 12 has a probability below 0.2 %
    assert naive > 50, "the best of thirty seems better on the cases on which it was chosen"


@pytest.mark.parametrize("number", [12, 30])
def test_many_decisions_on_few_groups_do_not_find_one_in_noise(number):
    """20 classes with 30 candidates each, 40 times: in at most a few tunings may any decision seem to gain."""
    random = np.random.default_rng(number)
    groups = [f"g{case:02}" for case in range(number)]
    wrong = 0
    for _tuning in range(40):
        choices = choose(random.normal(0, 0.05, (30, number, 20)), groups, decisions=20)
        wrong += any(choice.is_kept for choice in choices)
    assert wrong <= 4  # at most 2 expected


def test_the_interval_is_that_of_student_where_it_is_wider():
    """With one case per group and a fixed candidate, it is that of a paired test, as scipy computes it, 1.5 times as
    wide: the correction of Nadeau and Bengio for five folds, sqrt(1 + 5 / 4)."""
    gains = np.random.default_rng(3).normal(0.02, 0.02, 12)
    values = np.zeros((2, 12, 1))
    values[1, :, 0] = gains
    (choice,) = choose(values, [f"g{case:02}" for case in range(12)])
    expected = scipy.stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    half = 1.5 * (expected.high - expected.low) / 2
    assert choice.interval == pytest.approx((gains.mean() - half, gains.mean() + half))
    (strict,) = choose(values, [f"g{case:02}" for case in range(12)], decisions=10)
    low = scipy.stats.ttest_1samp(gains, 0).confidence_interval(0.995).low
    assert strict.interval[0] == pytest.approx(gains.mean() - 1.5 * (gains.mean() - low))


def test_a_true_gain_is_kept_with_an_honest_estimate():
    random = np.random.default_rng(1)
    groups = [f"g{number}" for number in range(40)]
    gains = []
    for _trial in range(50):
        case = random.normal(0.7, 0.1, (1, 40, 1))
        values = case + random.normal(0, 0.01, (20, 40, 1))
        values[7] += 0.02
        (choice,) = choose(values, groups)
        assert choice.candidate == 7
        assert choice.is_kept
        gains.append(choice.gain)
    assert np.mean(gains) == pytest.approx(0.02, abs=0.002)


def test_cases_of_a_group_are_never_on_both_sides():
    """Each group prefers its own candidate, which is useless for the others."""
    groups = [f"g{number}" for number in range(20) for _case in range(4)]
    values = np.zeros((21, 80, 1))
    for number in range(20):
        values[number + 1, 4 * number : 4 * number + 4] = 1.0
    (choice,) = choose(values, groups)
    assert choice.gain == pytest.approx(0.0)
    assert not choice.is_kept


def test_the_gain_is_that_of_a_loop_over_folds():
    """The same folds, but each case looked up by hand: its candidate is the best on all cases of the other folds."""
    random = np.random.default_rng(2)
    values = random.random((5, 23, 2))
    groups = [f"g{number}" for number in range(23)]
    names = sorted(groups)
    order = np.random.default_rng(0).permutation(23)
    fold = {names[group]: position % FOLDS for position, group in enumerate(order)}
    for column, choice in enumerate(choose(values, groups)):
        gains = []
        for case in range(23):
            others = [other for other in range(23) if fold[groups[other]] != fold[groups[case]]]
            best = max(range(5), key=lambda candidate: sum(values[candidate, other, column] for other in others))
            gains.append(values[best, case, column] - values[0, case, column])
        assert choice.gain == pytest.approx(np.mean(gains))


def test_few_cases_have_no_interval_and_nothing_is_kept():
    values = np.zeros((2, 6, 1))
    values[1] = 0.5
    (choice,) = choose(values, list("abcdef"))
    assert choice.candidate == 1
    assert choice.gain == 0.5
    assert choice.interval is None
    assert "fewer than 10" in choice.reason
    assert not choice.is_kept
    (alone,) = choose(values[:, :1], ["a"])
    assert not alone.is_kept


# --- the scores of candidates ----------------------------------------------------------------------------------------


class Cases:
    """Samples whose image is the logits."""

    def __init__(self, labels, number=6, size=(14, 17), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.samples = []
        for index in range(number):
            logits = 2 * torch.randn(labels.channels, *size, generator=generator)
            if labels.mode == "multilabel":
                mask = (torch.rand(labels.channels, *size, generator=generator) > 0.6).to(torch.uint8)
            else:
                mask = torch.randint(0, len(labels.names), size, generator=generator).to(torch.uint8)
            if labels.ignore_index is not None:
                mask[:3] = labels.ignore_index
            self.samples.append(
                {"image": logits, "mask": mask, "case": f"c{index}", "group": f"g{index}", "spacing": [1.0, 1.0]}
            )
        self.cases = []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        return self.samples[number]


def predicted(labels, cases, metric="dice"):
    predictor = Predictor(torch.nn.Identity(), labels, torch.device("cpu"))
    return Predicted(predictor, cases, build_scoring(labels, metrics=[metric]), metric, lambda numbers: numbers)


def overlap(found, truth, metric):
    """Dice or IoU of two bool arrays by sets; 1 if both are empty."""
    found, truth = set(np.flatnonzero(found)), set(np.flatnonzero(truth))
    if not found | truth:
        return 1.0
    both = len(found & truth)
    return 2 * both / (len(found) + len(truth)) if metric == "dice" else both / len(found | truth)


@pytest.mark.parametrize("metric", ["dice", "iou"])
@pytest.mark.parametrize("labels", [BINARY, OVERLAPPING], ids=["binary", "multilabel"])
def test_thresholds_are_scored_as_by_a_loop(labels, metric):
    cases = Cases(labels)
    found = threshold_scores(predicted(labels, cases, metric))
    assert found.shape == (1 + len(THRESHOLDS), len(cases), labels.channels)
    for (number, threshold), case in itertools.product(enumerate([0.5, *THRESHOLDS]), range(len(cases))):
        sample = cases[case]
        probabilities = sample["image"].double().sigmoid().numpy()
        masks = sample["mask"].numpy().reshape(labels.channels, 14, 17)
        for channel in range(labels.channels):
            expected = overlap(probabilities[channel] > threshold, masks[channel] == 1, metric)
            assert found[number, case, channel] == pytest.approx(expected, abs=1e-12)


def test_post_processing_is_scored_as_by_a_loop():
    """Ignored pixels count neither as errors nor as hits."""
    cases = Cases(MULTICLASS)
    found = post_processing_scores(predicted(MULTICLASS, cases))
    processes = post_processes()
    assert found.shape == (len(processes), len(cases), 2)
    for number in (0, 1, 4, 9):  # without filling, which takes from the background alone
        for case in range(len(cases)):
            sample = cases[case]
            mask, truth = sample["image"].argmax(0).numpy(), sample["mask"].numpy()
            valid = truth != 255
            for class_number in (1, 2):
                kept = processes[number].apply(mask == class_number) & valid
                expected = overlap(kept, truth == class_number, "dice")
                assert found[number, case, class_number - 1] == pytest.approx(expected, abs=1e-12)


def test_rules_by_which_missed_objects_do_not_count_are_refused():
    """Predicting nothing would be perfect."""
    cases = Cases(BINARY)
    cases.samples[0]["image"] = torch.full_like(cases.samples[0]["image"], -20.0)
    by_monai = build_scoring(BINARY, metrics=["hd95"], rules="monai")
    source = predicted(BINARY, cases, "hd95")
    with pytest.raises(ValueError, match="not counted"):
        threshold_scores(Predicted(source.predictor, cases, by_monai, "hd95", source.track))


def test_distances_are_lower_for_better_candidates():
    cases = Cases(BINARY, number=2)
    found = threshold_scores(predicted(BINARY, cases, "hd95"))
    assert (found <= 0).all()
    perfect = Cases(BINARY, number=2)
    for sample in perfect.samples:
        sample["image"] = 10.0 * (2 * sample["mask"][None].float() - 1)
    assert (threshold_scores(predicted(BINARY, perfect, "hd95"))[0] == 0).all()


# --- temperature -----------------------------------------------------------------------------------------------------


def test_the_log_likelihood_is_that_of_torch():
    logits = torch.randn(50, 3, dtype=torch.float64)
    numbers = torch.randint(0, 3, (50,))
    onehot = F.one_hot(numbers, 3).double()
    assert log_likelihood(logits, onehot, MULTICLASS) == pytest.approx(-float(F.cross_entropy(logits, numbers)))
    truth = torch.randint(0, 2, (50, 1)).double()
    single = torch.randn(50, 1, dtype=torch.float64)
    expected = -float(F.binary_cross_entropy(single.sigmoid(), truth))
    assert log_likelihood(single, truth, BINARY) == pytest.approx(expected)
    assert log_likelihood(single[:0], truth[:0], BINARY) == 0.0


@pytest.mark.parametrize("labels", [MULTICLASS, BINARY, OVERLAPPING], ids=lambda labels: labels.mode)
def test_certain_logits_on_another_grid_have_a_likelihood(labels):
    """float32 rounds probabilities of very large logits to 0 and 1 before they are resampled."""
    predictor = Predictor(torch.nn.Identity(), labels, torch.device("cpu"))
    image = 200 * (2 * torch.randint(0, 2, (labels.channels, 8, 9)).float() - 1)
    logits = predictor.predict(image, (16, 18), keep_logits=True).logits
    assert logits.isfinite().all()
    onehot = (torch.rand(50, labels.channels) > 0.5).double()
    assert np.isfinite(log_likelihood(logits.flatten(2)[0].T[:50].double(), onehot, labels))


@pytest.mark.parametrize("labels", [MULTICLASS, BINARY, OVERLAPPING], ids=lambda labels: labels.mode)
def test_the_temperature_of_overconfident_logits_is_found(labels):
    """References are drawn from the probabilities; the predictor's logits are three times as large."""
    cases = Cases(labels, number=12, size=(60, 60))
    generator = torch.Generator().manual_seed(5)
    for sample in cases.samples:
        logits = sample["image"]
        if labels.mode == "multiclass":
            flat = torch.multinomial(logits.softmax(0).reshape(3, -1).T, 1, generator=generator)
            sample["mask"] = flat.view(60, 60).to(torch.uint8)
        else:
            drawn = torch.rand(logits.shape, generator=generator) < logits.sigmoid()
            sample["mask"] = (drawn[0] if labels.mode == "binary" else drawn).to(torch.uint8)
        sample["mask"][..., :2, :] = 255
        sample["image"] = 3 * logits
    values = temperature_scores(predicted(labels, cases))
    assert values.shape == (1 + len(TEMPERATURES), 12, 1)
    (choice,) = choose(values, [sample["group"] for sample in cases.samples])
    assert (1.0, *TEMPERATURES)[choice.candidate] == pytest.approx(3, rel=0.13)  # two steps of the grid
    assert choice.is_kept
