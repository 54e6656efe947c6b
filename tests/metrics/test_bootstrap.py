"""Bootstrap intervals against resamples drawn in loops, SciPy's BCa interval, and simulated coverage."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from segkit.metrics import bootstrap as intervals
from segkit.metrics.bootstrap import (
    NO_CASE,
    Bootstrap,
    coverage_notes,
    mean_intervals,
    median_intervals,
    ratio_intervals,
    resampled_weights,
)

NAN, INF = math.nan, math.inf
SMALL = Bootstrap(resamples=300, seed=3)
EXACT = {"rtol": 0, "atol": 1e-12}


def scores(seed, cases=60, columns=3, absent=0.2):
    """Skewed scores [N, C], some NaN, of cases in 18 groups of very different sizes in mixed order."""
    generator = np.random.default_rng(seed)
    values = generator.beta(8, 2, size=(cases, columns))
    values[generator.uniform(size=values.shape) < absent] = NAN
    groups = generator.choice(18, size=cases, p=np.arange(1, 19) / 171)
    groups[:18] = generator.permutation(18)
    return values, np.array([f"patient {number:02}" for number in groups])


def counts(seed):
    """Numerators and denominators of pooled Dice, [60, 3] each, some classes absent, and the groups."""
    shares, groups = scores(seed)
    reference = np.random.default_rng(seed + 50).integers(1, 900, size=shares.shape)
    tp = np.nan_to_num(shares * reference).astype(np.int64)
    return 2 * tp, np.where(np.isnan(shares), 0, tp + reference), groups


def gathered(groups, bootstrap=SMALL):
    """The positions of the cases in every resample: all cases of a drawn group, as often as it is drawn."""
    names = sorted(set(groups))
    for row in resampled_weights(len(names), bootstrap.resamples, bootstrap.seed).numpy():
        times = np.array([int(row[names.index(name)]) for name in groups])
        yield np.repeat(np.arange(len(groups)), times)


def without_each_group(groups):
    return [np.flatnonzero(groups != name) for name in sorted(set(groups))]


def bca_by_hand(statistic, groups, bootstrap=SMALL):
    """The BCa interval of statistic(positions), from its definition."""
    estimate = statistic(np.arange(len(groups)))
    resampled = np.array([statistic(positions) for positions in gathered(groups, bootstrap)])
    left_out = np.array([statistic(positions) for positions in without_each_group(groups)])
    change = left_out.mean() - left_out
    acceleration = sum(change**3) / (6 * sum(change**2) ** 1.5)
    bias = stats.norm.ppf((resampled < estimate).mean() / 2 + (resampled <= estimate).mean() / 2)
    bounds = []
    for tail in ((1 - bootstrap.confidence) / 2, (1 + bootstrap.confidence) / 2):
        shifted = bias + stats.norm.ppf(tail)
        bounds.append(np.percentile(resampled, 100 * stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))))
    return bounds


def bca_of_scipy(statistic, groups, bootstrap=SMALL):
    """SciPy's BCa interval of statistic(positions) from the same resamples, with its own jackknife over groups."""
    members = [np.flatnonzero(groups == name) for name in sorted(set(groups))]
    resampled = np.array([statistic(positions) for positions in gathered(groups, bootstrap)])
    interval = stats.bootstrap(
        (np.arange(len(members)),),
        lambda drawn: statistic(np.concatenate([members[number] for number in drawn])),
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=resampled),  # pyright: ignore
        vectorized=False,
        confidence_level=bootstrap.confidence,
        method="BCa",
    ).confidence_interval
    return [interval.low, interval.high]


def bounds(result):
    return np.stack([result.low, result.high])


def means(values, groups, bootstrap=SMALL):
    return bounds(mean_intervals(torch.as_tensor(values), groups, bootstrap))


def test_weights_are_integers_and_reproducible():
    weights = resampled_weights(30, 4000, seed=5)
    assert (weights.dtype, weights.shape, weights.device.type) == (torch.float64, (4000, 30), "cpu")
    assert torch.equal(weights, weights.round())
    assert torch.equal(weights.sum(1), torch.full((4000,), 30.0, dtype=torch.float64))
    state = torch.get_rng_state()
    assert torch.equal(weights, resampled_weights(30, 4000, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(weights, resampled_weights(30, 4000, seed=6))
    assert resampled_weights(0, 7, seed=0).shape == (7, 0)


def test_weights_are_multinomial():
    weights = resampled_weights(20, 20_000, seed=0)
    torch.testing.assert_close(weights.mean(0), torch.ones(20).double(), rtol=0, atol=0.04)
    expected = (torch.eye(20) - 1 / 20).double()
    torch.testing.assert_close(weights.T.cov(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("oracle", [bca_by_hand, bca_of_scipy])
@pytest.mark.parametrize(("seed", "confidence"), [(0, 0.95), (1, 0.8)])
def test_mean_is_the_bca_of_gathered_resamples(oracle, seed, confidence):
    values, groups = scores(seed)
    bootstrap = Bootstrap(confidence=confidence, resamples=300, seed=seed)
    expected = [oracle(lambda at, c=c: np.nanmean(values[at, c]), groups, bootstrap) for c in range(3)]
    np.testing.assert_allclose(means(values, groups, bootstrap), np.transpose(expected), **EXACT)


@pytest.mark.parametrize("oracle", [bca_by_hand, bca_of_scipy])
@pytest.mark.parametrize("seed", [0, 1])
def test_ratio_is_the_bca_of_gathered_resamples(oracle, seed):
    above, below, groups = counts(seed)
    result = ratio_intervals(torch.from_numpy(above), torch.from_numpy(below), groups, SMALL)
    expected = [oracle(lambda at, c=c: above[at, c].sum() / below[at, c].sum(), groups) for c in range(3)]
    np.testing.assert_allclose(bounds(result), np.transpose(expected), **EXACT)
    assert result.reasons == [None] * 3


@pytest.mark.parametrize("room", [1, 1000, 2**22])
@pytest.mark.parametrize("seed", [0, 1])
def test_median_is_the_percentile_of_gathered_resamples(seed, room, monkeypatch):
    monkeypatch.setattr(intervals, "MAX_ELEMENTS", room)
    values, groups = scores(seed)
    result = median_intervals(torch.from_numpy(values), groups, SMALL)
    resampled = [np.nanmedian(values[at], axis=0) for at in gathered(groups)]
    np.testing.assert_allclose(bounds(result), np.percentile(resampled, [2.5, 97.5], axis=0), **EXACT)


def test_intervals_are_near_those_of_scipy_with_its_own_resamples():
    values = np.random.default_rng(4).beta(8, 2, size=80)
    many = Bootstrap(resamples=40_000)
    for statistic, method, ours in (
        (np.mean, "BCa", mean_intervals),
        (np.median, "percentile", median_intervals),
    ):
        theirs = stats.bootstrap((values,), statistic, n_resamples=40_000, method=method, rng=1).confidence_interval
        result = bounds(ours(torch.from_numpy(values)[:, None], np.arange(80), many))
        np.testing.assert_allclose(result[:, 0], list(theirs), rtol=0, atol=0.03 * (theirs.high - theirs.low))


def test_ratio_with_unit_denominators_is_the_mean():
    values, groups = scores(2)
    values = torch.from_numpy(values)
    ratio = ratio_intervals(values, torch.ones_like(values), groups, SMALL)
    assert np.array_equal(bounds(ratio), means(values, groups))
    blank = torch.where(values.isnan(), NAN, 1.0)
    ratio = ratio_intervals(values.nan_to_num(), blank, groups, SMALL)
    assert np.array_equal(bounds(ratio), means(values, groups))


@pytest.mark.parametrize("function", [mean_intervals, median_intervals])
def test_order_of_cases_and_kind_of_labels_do_not_matter(function):
    values, names = scores(3)
    numbers = np.unique(names, return_inverse=True)[1]
    expected = bounds(function(torch.from_numpy(values), names, SMALL))
    for labels in (names.tolist(), names.astype(object), numbers, numbers - 7.5, torch.from_numpy(numbers)):
        np.testing.assert_allclose(bounds(function(torch.from_numpy(values), labels, SMALL)), expected, **EXACT)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = function(torch.from_numpy(values[order]), names[order], SMALL)
    np.testing.assert_allclose(bounds(shuffled), expected, **EXACT)


@pytest.mark.parametrize("function", [mean_intervals, median_intervals])
def test_cases_of_a_group_are_drawn_together(function):
    """Copies of a case within its group add no information; as separate groups they would narrow the interval."""
    values = torch.from_numpy(scores(4, absent=0)[0])
    single = bounds(function(values, np.arange(60), SMALL))
    copied = values.repeat(4, 1)
    together = bounds(function(copied, np.arange(240) % 60, SMALL))
    np.testing.assert_allclose(together, single, **EXACT)
    apart = bounds(function(copied, np.arange(240), SMALL))
    assert ((apart[1] - apart[0]) < 0.75 * (single[1] - single[0])).all()


@pytest.mark.parametrize("function", [mean_intervals, median_intervals])
def test_nan_is_not_counted_and_columns_are_independent(function):
    values, groups = scores(5)
    result = function(torch.from_numpy(values), groups, SMALL)
    blank = np.full((7, 3), NAN)
    padded = function(torch.from_numpy(np.vstack([values, blank])), np.append(groups, groups[:7]), SMALL)
    assert np.array_equal(bounds(padded), bounds(result))
    beside = np.column_stack([np.full(60, NAN), values[:, 1], np.full(60, INF)])
    alone = function(torch.from_numpy(beside), groups, SMALL)
    np.testing.assert_allclose(bounds(alone)[:, 1], bounds(result)[:, 1], **EXACT)
    assert [reason is None for reason in alone.reasons] == [False, True, False]


def test_integers_and_single_precision_are_accepted():
    values, groups = torch.randint(0, 90, (60, 2), generator=torch.Generator().manual_seed(0)), scores(0)[1]
    expected = means(values.double(), groups)
    for dtype in (torch.int64, torch.int32, torch.float32):
        assert np.array_equal(means(values.to(dtype), groups), expected)


def test_rounding_does_not_decide_ties():
    """Tenths are not exact in floating point, so sums that are equal for integers differ by rounding."""
    whole = torch.randint(0, 4, (40, 30), generator=torch.Generator().manual_seed(1)).double()
    np.testing.assert_allclose(means(whole * 0.1, np.arange(40)), 0.1 * means(whole, np.arange(40)), **EXACT)
    groups = np.arange(40)
    hand = bca_by_hand(lambda at: whole[at, 0].sum().item() / len(at), groups)
    np.testing.assert_allclose(means(whole, groups)[:, 0], hand, **EXACT)


def test_mirrored_scores_have_mirrored_intervals():
    values, groups = scores(6)
    np.testing.assert_allclose(means(1 - values, groups), 1 - means(values, groups)[::-1], **EXACT)
    np.testing.assert_allclose(means(1e6 * values, groups), 1e6 * means(values, groups), rtol=1e-12)


def test_columns_without_an_interval_have_a_reason():
    generator = np.random.default_rng(7)
    groups = np.repeat(np.arange(20), generator.integers(1, 5, size=20))
    good = generator.uniform(size=len(groups))
    columns = {
        "20 groups": good,
        "all groups of cases have the same mean": np.full(len(groups), 0.7),
        "0 groups of cases, fewer than 10": np.full(len(groups), NAN),
        "9 groups of cases, fewer than 10": np.where(groups < 9, good, NAN),
        "a value is infinite": np.where(groups == 3, INF, good),
        "10 groups": np.where(groups < 10, good, NAN),
    }
    result = mean_intervals(torch.from_numpy(np.column_stack(list(columns.values()))), groups, SMALL)
    assert result.reasons == [None if name in ("20 groups", "10 groups") else name for name in columns]
    assert np.isnan(bounds(result)).tolist() == [[reason is not None for reason in result.reasons]] * 2
    zeros = mean_intervals(torch.zeros(20, 1), np.arange(20), SMALL)
    assert zeros.reasons == ["all groups of cases have the same mean"]


def test_no_interval_if_a_resample_has_no_counted_case():
    values = torch.full((30, 1), NAN)
    values[:2, 0] = torch.tensor([0.2, 0.9])
    for function in (mean_intervals, median_intervals):
        result = function(values, np.arange(30), Bootstrap(min_groups=2))
        assert result.reasons == [NO_CASE]
        assert np.isnan(bounds(result)).all()
    counted = values.nan_to_num()
    result = ratio_intervals(counted, (counted > 0).double(), np.arange(30), Bootstrap(min_groups=2))
    assert result.reasons == [NO_CASE]


def test_ratios_without_an_interval_have_a_reason():
    groups = np.arange(12)
    below = torch.arange(1, 13).double()[:, None].repeat(1, 3)
    below[:3, 1] = 0
    above = below * torch.tensor([0.3, 0.5, 1.0])
    above[5, 2] = INF
    result = ratio_intervals(above, below, groups, SMALL)
    same, few = "all groups of cases have the same ratio", "9 groups of cases, fewer than 10"
    assert result.reasons == [same, few, "a value is infinite"]


def test_no_interval_if_all_resamples_are_on_one_side_of_the_estimate():
    values = torch.arange(12.0)[:, None] ** 2
    found = [mean_intervals(values, np.arange(12), Bootstrap(0.5, 4, seed)) for seed in range(40)]
    lacking = [result for result in found if result.reasons != [None]]
    assert 0 < len(lacking) < 20
    for result in lacking:
        assert result.reasons == ["the bootstrap is degenerate: its BCa correction is undefined"]
        assert np.isnan(bounds(result)).all()


def test_medians_accept_infinite_values():
    ends = np.array([INF] * 12 + [-INF] * 13)
    columns = [np.r_[np.arange(20.0), [INF] * 5], np.full(25, INF), ends, np.r_[np.arange(11.0), [INF] * 14]]
    result = median_intervals(torch.from_numpy(np.column_stack(columns)), np.arange(25), SMALL)
    between = "a median or bound is between two infinite values"
    assert result.reasons[:2] == [None, "all resamples have the same median"]
    assert np.isfinite(bounds(result)[:, 0]).all()
    assert (result.reasons[2], *bounds(result)[:, 2]) == (None, -INF, INF)
    assert (result.reasons[3], result.high[3]) == (None, INF)
    assert np.isfinite(result.low[3])
    even = median_intervals(torch.from_numpy(np.repeat([[INF], [-INF]], 12, axis=0)), np.arange(24), SMALL)
    assert even.reasons == [between]


def test_quantiles_without_interpolation_are_exact():
    cases = torch.tensor([0.9] * 13 + [0.1] * 12, dtype=torch.float64)[:, None]
    for confidence in np.linspace(0.5, 0.95, 20):
        result = median_intervals(cases, np.arange(25), Bootstrap(float(confidence), 500))
        assert {result.low[0], result.high[0]} == {0.1, 0.9}
    cases = torch.tensor([INF] * 12 + [1.0] * 13)[:, None]
    five = [median_intervals(cases, np.arange(25), Bootstrap(0.5, 5, seed)) for seed in range(20)]
    kept = [(result.low[0], result.high[0]) for result in five if result.reasons == [None]]
    assert set(kept) == {(1, 1), (1, INF), (INF, INF)}
    assert {result.reasons[0] for result in five} <= {None, "all resamples have the same median"}


def test_no_bounds_if_the_bca_correction_passes_its_pole():
    """With this much bias and acceleration, the upper level would be below the lower one."""
    resampled = torch.linspace(0, 1, 1000, dtype=torch.float64)[:, None]
    jackknife = torch.tensor([-1.0] + [0.0] * 999, dtype=torch.float64)[:, None]
    nothing, estimate = torch.zeros(1, dtype=torch.float64), torch.tensor([0.9905], dtype=torch.float64)
    ratio = intervals._Ratio(estimate, resampled, jackknife, nothing, nothing, nothing)
    assert intervals._bca(ratio, Bootstrap(0.9, 1000)).isfinite().all()
    assert intervals._bca(ratio, Bootstrap(0.9999, 20_000)).isnan().tolist() == [[False], [True]]


def test_no_cases_and_no_columns():
    for function in (mean_intervals, median_intervals):
        nothing = function(torch.zeros(0, 2), [], SMALL)
        assert nothing.reasons == ["0 groups of cases, fewer than 10"] * 2
        assert np.isnan(bounds(nothing)).all()
        bare = function(torch.zeros(12, 0), np.arange(12), SMALL)
        assert (bare.low.shape, bare.high.shape, bare.reasons, bare.notes) == ((0,), (0,), [], [])


def test_few_groups_are_noted():
    partly = torch.from_numpy(scores(8, absent=0)[0])
    assert mean_intervals(partly[:50], np.arange(50), SMALL).notes == coverage_notes(50) == []
    (words,) = mean_intervals(partly[:49], np.arange(49), SMALL).notes
    assert "49 groups of cases, fewer than 50" in words
    partly[15:, 1], partly[5:, 2] = NAN, NAN
    assert mean_intervals(partly, np.arange(60), SMALL).notes == coverage_notes(15)
    assert mean_intervals(partly[:, 2:], np.arange(60), SMALL).notes == []
    assert median_intervals(partly, np.arange(60), SMALL).notes == []


def test_invalid_arguments_raise():
    values = torch.rand(12, 2)
    with pytest.raises(ValueError, match=r"\[N, C\].*got \[12\]"):
        mean_intervals(values[:, 0], range(12))
    with pytest.raises(ValueError, match=r"got \[12, 2\] and \[11\]"):
        median_intervals(values, range(11))
    with pytest.raises(ValueError, match=r"got \[12, 2\] and \[12, 1\]"):
        ratio_intervals(values, values[:, :1], range(12))
    with pytest.raises(ValueError, match="negative"):
        ratio_intervals(values, -values, range(12))
    for blank in ([None, *"abcdefghijk"], [NAN, *range(11)]):
        with pytest.raises(ValueError, match="group label"):
            mean_intervals(values, blank)


@pytest.mark.parametrize(("confidence", "resamples"), [(0.0, 99), (1.0, 99), (NAN, 99), (0.95, 39), (0.9, 19)])
def test_bootstrap_parameters_are_validated(confidence, resamples):
    with pytest.raises(ValueError, match="resamples, got"):
        Bootstrap(confidence, resamples)


def test_the_minimum_number_of_resamples_is_enough():
    values, groups = scores(9)
    for bootstrap in (Bootstrap(0.95, 40), Bootstrap(0.9, 20), Bootstrap(0.8, 10)):
        assert mean_intervals(torch.from_numpy(values), groups, bootstrap).reasons == [None] * 3


@pytest.mark.cuda
def test_intervals_are_the_same_on_a_gpu():
    values, groups = scores(10)
    for function in (mean_intervals, median_intervals):
        here, there = (function(torch.from_numpy(values).to(device), groups, SMALL) for device in ("cpu", "cuda"))
        np.testing.assert_allclose(bounds(there), bounds(here), **EXACT)


def skewed(generator, groups, columns):
    """Dice-like scores with 8 % failures, [groups, columns]; each column is an independent study."""
    failed = generator.uniform(size=(groups, columns)) < 0.08
    good = generator.beta(12, 2, size=failed.shape)
    return np.where(failed, generator.uniform(0, 0.3, size=failed.shape), good)


def covered(result, truth):
    return ((result.low <= truth) & (truth <= result.high)).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "least", "most"), [(10, 0.72, 0.80), (25, 0.86, 0.91), (50, 0.925, 0.955)])
def test_coverage_of_means_is_as_noted(groups, least, most):
    generator = np.random.default_rng(groups)
    truth = 0.92 * 12 / 14 + 0.08 * 0.15
    values = torch.from_numpy(skewed(generator, groups, 4000))
    assert least < covered(mean_intervals(values, np.arange(groups)), truth) < most


@pytest.mark.slow
@pytest.mark.parametrize("groups", [10, 25, 50, 100])
def test_coverage_of_medians_is_nominal(groups):
    generator = np.random.default_rng(groups)
    truth = np.median(skewed(generator, 2000, 2000))
    values = torch.from_numpy(skewed(generator, groups, 1000))
    assert 0.92 < covered(median_intervals(values, np.arange(groups)), truth) < 0.975


@pytest.mark.slow
def test_only_intervals_over_groups_have_coverage_for_correlated_cases():
    generator = np.random.default_rng(0)
    patients = np.repeat(generator.normal(size=(60, 2000)), 5, axis=0)
    values = torch.from_numpy(patients + 0.3 * generator.normal(size=patients.shape))
    assert 0.93 < covered(mean_intervals(values, np.repeat(np.arange(60), 5)), 0) < 0.97
    assert covered(mean_intervals(values, np.arange(300)), 0) < 0.75
