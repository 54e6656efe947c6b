"""The studies of docs/results.md: their configurations, the losses made for them, and their statistics."""

import contextlib
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from segkit import Labels
from segkit.compare.design import make_design
from segkit.experiment.build import load_config
from segkit.losses import build_loss

from support.plugin_tables import forget_plugins
from support.simulated_tables import SIMULATIONS
from support.tool_modules import TOOLS, tool_module

LABELS = Labels(["background", "a", "b"], ignore_index=255)
LOSSES, TRAININGS = tool_module("study_losses"), tool_module("study_trainings")
PLUGIN, NOISE = tool_module("study_plugin"), tool_module("study_noise")
RESULTS, STATISTICS = tool_module("write_results"), tool_module("results.statistics")


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, tmp_path):
    """Configurations name it; what it holds does not matter to them."""
    (tmp_path / "hippocampus" / "imagesTr").mkdir(parents=True)
    monkeypatch.setenv("SEGKIT_DATA", str(tmp_path))
    monkeypatch.setenv("SEGKIT_WRONG_LABELS", str(tmp_path))
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    forget_plugins()


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", LOSSES.STUDIES)
def test_a_comparison_is_a_valid_configuration(study, tmp_path):
    arguments = LOSSES.STUDIES[study].arguments(tmp_path, 2)
    path, overrides = arguments[arguments.index("--config") + 1], [text for text in arguments if "=" in text]
    design = make_design(load_config(path, overrides))
    assert len(design.seeds) >= 3
    for loss in design.losses:
        build_loss(design.losses[loss], LABELS, class_counts=counted())


def counted():
    """Class counts for losses with class weights."""
    from segkit.losses.class_weights import equal_class_counts

    return equal_class_counts(LABELS)


@pytest.mark.parametrize("study", TRAININGS.STUDIES)
def test_a_training_is_a_valid_configuration(study, tmp_path):
    trainings = list(TRAININGS.STUDIES[study]())
    assert len({training.name for training in trainings}) == len(trainings)
    for training in trainings:
        arguments, *evaluations = training.commands(tmp_path)
        assert len(evaluations) == len(training.splits) - 1
        load_config(arguments[arguments.index("--config") + 1], [text for text in arguments if "=" in text])


# --- losses ----------------------------------------------------------------------------------------------------------


def batch(seed=0, size=(2, 3, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, size[1], (size[0], *size[2:]), generator=generator)


def test_lovasz_on_logits_sums_the_jaccard_losses_of_sorted_errors():
    """The Lovász extension: errors in decreasing order, times the increase of the Jaccard loss by each pixel."""
    logits, mask = batch()
    losses = []
    for channel in range(3):
        present = (mask == channel).flatten().numpy()
        errors = np.abs(present - logits[:, channel].flatten().numpy())
        wrong, before, total = np.zeros(len(present), bool), 0.0, 0.0
        for pixel in np.argsort(-errors):
            wrong[pixel] = True
            jaccard = 1 - (present & ~wrong).sum() / (present | wrong).sum()
            total += errors[pixel] * (jaccard - before)
            before = jaccard
        losses.append(total)
    loss = PLUGIN.LovaszOnLogits(labels=Labels(LABELS.names))
    target = Labels(LABELS.names).target(mask)
    torch.testing.assert_close(loss(logits, target).item(), float(np.mean(losses)), rtol=1e-5, atol=1e-5)  # in float32


def test_exploding_generalized_dice_has_no_gradient_for_classes_beside_an_absent_one():
    logits, mask = batch()
    labels = Labels(LABELS.names)
    loss = PLUGIN.ExplodingGeneralizedDice(labels=labels)
    all_present = logits.clone().requires_grad_()
    value = loss(all_present, labels.target(mask))
    expected = build_loss({"name": "generalized_dice", "per": "image"}, labels)(logits, mask)
    torch.testing.assert_close(value.item(), expected.item(), rtol=1e-4, atol=1e-4)  # eps is relative there
    value.backward()
    absent = logits.clone().requires_grad_()
    loss(absent, labels.target(mask.clamp(max=1))).backward()
    assert absent.grad.abs().max() < 1e-5 * all_present.grad.abs().max()


def test_wrong_labels_are_a_fixed_share_of_each_mask():
    mask = np.random.default_rng(0).integers(0, 3, (40, 50, 40))
    wrong = NOISE.with_wrong_labels(mask, 0.1, "case")
    assert (wrong != mask).mean() == pytest.approx(0.1, abs=0.005)
    assert set(np.unique(wrong)) == {0, 1, 2}
    assert (NOISE.with_wrong_labels(mask, 0.1, "case") == wrong).all()
    assert (NOISE.with_wrong_labels(mask, 0.1, "other") != wrong).any()
    assert (NOISE.with_wrong_labels(mask, 0.0, "case") == mask).all()
    changed = wrong != mask  # each other class is as likely
    assert (((wrong - mask) % 3)[changed] == 1).mean() == pytest.approx(0.5, abs=0.02)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_power_is_the_share_of_comparisons_that_find_the_difference():
    """Against simulated comparisons, tested by segkit."""
    spread = STATISTICS.Spread(run=0.004, interaction=0.01, residual=0.02)
    generator, found = np.random.default_rng(0), 0
    for _ in range(400):
        case = generator.normal(0.8, 0.05, 60)
        samples = {
            loss: case
            + shift
            + generator.normal(0, 0.004, (4, 1))
            + generator.normal(0, 0.01, 60)
            + generator.normal(0, 0.02, (4, 60))
            for loss, shift in (("a", 0.012), ("b", 0.0))
        }
        model = STATISTICS.TwoWay(samples)
        found += STATISTICS.pair_results([("a", "b")], model, 0.0, {})[0]["verdict"] == "better"
    interval = stats.binomtest(found, 400).proportion_ci(0.999)
    assert interval.low <= STATISTICS.power(0.012, spread, 4, 60) <= interval.high


def test_needs_fall_with_the_difference_and_never_end_where_cases_are_too_few():
    spread = STATISTICS.Spread(run=0.004, interaction=0.01, residual=0.02)
    needs = [STATISTICS.runs_needed(difference, spread, 100) for difference in (0.005, 0.01, 0.02)]
    assert needs == sorted(needs, reverse=True)
    assert STATISTICS.power(0.01, spread, needs[1], 100) >= 0.8 > STATISTICS.power(0.01, spread, needs[1] - 1, 100)
    assert STATISTICS.runs_needed(0.001, spread, 20) is None
    assert STATISTICS.runs_needed(0.01, spread, 100, pairs=12) > needs[1]
    assert STATISTICS.runs_needed(0.002, spread, 20, new_cases=False) is not None


def test_power_grows_with_the_difference_and_the_runs():
    """Also where scipy's noncentral t distribution is NaN."""
    spread = STATISTICS.Spread(run=0.0015, interaction=0.0027, residual=0.0078)
    by_difference = [STATISTICS.power(difference, spread, 3, 40) for difference in np.linspace(0.0005, 0.1, 40)]
    by_runs = [STATISTICS.power(0.003, spread, runs, 40) for runs in range(2, 100)]
    for values in (by_difference, by_runs):
        assert np.isfinite(values).all()
        assert np.diff(values).min() > -1e-6
    assert by_difference[-1] == pytest.approx(1)


def test_naive_verdicts_are_those_of_wilcoxon():
    generator = np.random.default_rng(0)
    case = generator.normal(0.8, 0.05, 40)
    a, b = (case + generator.normal(0, 0.01, (3, 1)) + generator.normal(0, 0.02, (3, 40)) for _ in range(2))
    verdicts = STATISTICS.naive_verdicts(a, b)
    assert verdicts.shape == (3, 3)
    assert np.abs(verdicts).max() == 1
    for (i, j), verdict in np.ndenumerate(verdicts):
        better = np.sign((a[i] - b[j]).mean())
        assert verdict == (better if stats.wilcoxon(a[i], b[j]).pvalue < 0.05 else 0)
    assert (STATISTICS.naive_verdicts(b, a) == -verdicts.T).all()
    assert STATISTICS.naive_verdict(case, case) == 0


def test_replication_compares_draws_that_share_no_run():
    table = np.array([[1, 1, 0], [1, -1, 0], [0, 0, 0]])
    found = STATISTICS.replication([table, np.zeros((2, 2), int)])
    # the draws that share no run with [0, 0] are [1, 1], [1, 2], [2, 1] and [2, 2], of which one has the other winner
    assert (found.announced, found.draws, found.contradictory) == (4, 13, 1)
    assert found.confirmed == pytest.approx(2 / 16)
    assert found.reversed_ == pytest.approx(2 / 16)
    assert found.silent == pytest.approx(12 / 16)


def test_what_seeds_share_is_a_variance_component_of_statsmodels():
    """The mean squares are those of statsmodels' table of a two-way analysis of variance."""
    generator = np.random.default_rng(4)
    scores = generator.normal(0, 2, 6) + generator.normal(0, 1, (5, 6)) + np.arange(5)[:, None]
    rows = pd.DataFrame([(value, loss, seed) for (loss, seed), value in np.ndenumerate(scores)], columns=list("yls"))
    table = anova_lm(ols("y ~ C(l) + C(s)", rows).fit())
    squares = table["mean_sq"]
    found = STATISTICS.shared_by_seeds(scores[None])
    assert found.rest == pytest.approx(np.sqrt(squares["Residual"]))
    assert found.seed == pytest.approx(np.sqrt((squares["C(s)"] - squares["Residual"]) / 5))
    assert found.p == pytest.approx(table.loc["C(s)", "PR(>F)"])
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in itertools.combinations(scores, 2)]
    assert found.correlation == pytest.approx(np.mean(pairs))
    ratios = []
    for a, b in itertools.combinations(scores, 2):  # the variance of a difference is that of a, plus b, minus both
        (var_a, covariance), (_, var_b) = np.cov(a, b)
        ratios.append(1 - 2 * covariance / (var_a + var_b))
    assert found.paired_variance == pytest.approx(np.median(ratios))
    assert found.wider == sum(covariance < 0 for covariance in np.cov(scores)[np.triu_indices(5, 1)])


def test_what_seeds_share_is_measured_within_folds():
    """Seeds of their own in each fold: statsmodels' analysis of variance with an effect of each seed of each fold."""
    generator = np.random.default_rng(6)
    scores = generator.normal(0, 2, (3, 1, 6)) + generator.normal(0, 1, (3, 4, 6)) + np.arange(12).reshape(3, 4, 1)
    rows = [(value, *key) for key, value in np.ndenumerate(scores)]
    table = anova_lm(ols("y ~ C(f) * C(l) + C(f) : C(s)", pd.DataFrame(rows, columns=list("yfls"))).fit())
    found = STATISTICS.shared_by_seeds(scores)
    of_seeds, rest = table.loc["C(f):C(s)", "mean_sq"], table.loc["Residual", "mean_sq"]
    assert (table.loc["C(f):C(s)", "df"], table.loc["Residual", "df"]) == (3 * 5, 3 * 3 * 5)
    assert found.rest == pytest.approx(np.sqrt(rest))
    assert found.seed == pytest.approx(np.sqrt((of_seeds - rest) / 4))
    assert found.p == pytest.approx(table.loc["C(f):C(s)", "PR(>F)"])


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_simulated_runs_share_that_part_of_their_variance(shared):
    """Correlations of the run means over 400 seeds; the residual of 2000 cases makes 1 % of their variance."""
    samples = SIMULATIONS.simulated(np.random.default_rng(5), [SIMULATIONS.RUN] * 4, 400, 2000, shared=shared)
    found = STATISTICS.shared_by_seeds(np.array([[values.mean(1) for values in samples.values()]]))
    assert found.correlation == pytest.approx(shared, abs=0.05)


def test_halves_are_all_divisions_of_the_runs():
    assert len(STATISTICS.halves(5)) == 10
    assert len(STATISTICS.halves(4)) == 3  # two parts of equal size are one division, whichever comes first
    assert all(sorted(first + second) == list(range(5)) for first, second in STATISTICS.halves(5))


def test_a_loss_against_itself_has_no_more_false_verdicts_than_nominal():
    """Independent runs of equal losses; every division of every loss, with the variance of all losses."""
    generator, rates = np.random.default_rng(0), []
    for _ in range(20):
        case = generator.normal(0.8, 0.05, 30)
        samples = {
            loss: case + generator.normal(0, 0.004, (4, 1)) + generator.normal(0, 0.02, (4, 30)) for loss in "abcdef"
        }
        table = STATISTICS.self_comparisons(list(samples), 0.0, STATISTICS.TwoWay, samples)
        assert len(table) == 6 * 3
        rates.append(table["verdict"].isin(["better", "worse"]).mean())
    assert np.mean(rates) < 0.08
    shifted = {"a": np.concatenate([np.full((2, 30), 0.9), np.full((2, 30), 0.1)]) + generator.normal(0, 0.01, (4, 30))}
    calm = {loss: 0.5 + generator.normal(0, 0.01, (4, 30)) for loss in "bcdefgh"}
    samples = shifted | calm
    table = STATISTICS.self_comparisons(list(samples), 0.0, STATISTICS.TwoWay, samples)
    assert set(table.loc[table["loss"] != "a", "verdict"]) <= {"undecided"}


def test_the_rule_for_several_data_sets():
    outcome = tool_module("results.comparison_tables").outcome
    assert outcome(["better", "undecided", "better"], "better") == "replicated"
    assert outcome(["better", "worse", "better"], "better") == "mixed"
    assert outcome(["worse", "undecided", "worse"], "better") == "contradicted"
    assert outcome(["better", "undecided"], "better") == "open"
    assert outcome(["equivalent", "equivalent"], "equivalent") == "replicated"
    assert outcome(["better", "worse"], "equivalent") == "contradicted"


def test_differences_are_written_in_their_own_unit():
    tables = tool_module("results.comparison_tables")
    pair = {"difference": 0.5, "ci95_adjusted": [0.2, 0.8], "verdict": "better"}  # larger is better in the model
    assert tables.natural_difference(pair, 1, 2) == "+0.50 ± 0.30 *"
    assert tables.natural_difference(pair, -1, 2) == "-0.50 ± 0.30 *", "a distance that is smaller"
    assert tables.natural_difference({**pair, "ci95_adjusted": [-0.1, 1.1]}, 1, 3) == "+0.500 ± 0.600"
    assert tables.natural_difference(None, 1, 2) == "-"
    assert tables.natural_difference({**pair, "difference": 0.001}, -1, 2) == "0.00 ± 0.30 *"
    assert not tables.could_be_equivalent({"ci95_adjusted": [-0.02, 0.0]})
    assert tables.could_be_equivalent({"ci95_adjusted": [0.02, 0.029]})
    assert [
        tables.seeds_needed({"verdict": verdict, **more})
        for verdict, more in (
            ("better", {}),
            ("undecided", {}),
            ("undecided", {"seeds_needed": 9}),
            ("undecided", {"seeds_needed": None}),
        )
    ] == ["-", "-", "9", "> 200"]


def test_pairs_are_listed_that_several_data_sets_decide_alike(monkeypatch):
    tables = tool_module("results.comparison_tables")
    decided = {  # on a and b, a and c, a and the poor loss, b and c, ...
        "hippocampus": ("better", "worse", "better", "undecided", "better", "better"),
        "chase_db1": ("better", "better", "better", "undecided", "better", "better"),
        "phantoms": ("undecided", "undecided", "undecided", "worse", "better", "better"),
    }

    def verdicts(name, pairs):
        both = zip(pairs, decided[name], strict=True)
        return [
            {"a": a, "b": b, "verdict": v, "difference": -0.1 if v == "worse" else 0.1, "ci95_adjusted": [0, 0.2]}
            for (a, b), v in both
        ]

    monkeypatch.setattr(tables, "measured", lambda: list(decided))
    monkeypatch.setattr(tables, "means_of", lambda _name: dict.fromkeys(["a", "b", "c", "poor"], 0.9))
    monkeypatch.setattr(tables, "verdicts", verdicts)
    page = tables.decided_pairs_table().replace("\xa0", " ")
    same, opposite = page.split("Decided in opposite directions, 1:")
    assert same.startswith("Decided in the same direction on two data sets or more (\\* the interval excludes 0), 4:")
    assert "| a | b | +10.00 ± 10.00 * | +10.00 ± 10.00 * | +10.00 ± 10.00 |" in same
    assert "| a | poor | +10.00 ± 10.00 * | +10.00 ± 10.00 * | +10.00 ± 10.00 |" in same
    assert "| a | c | -10.00 ± 10.00 * | +10.00 ± 10.00 * | +10.00 ± 10.00 |" in opposite
    assert opposite.endswith("Of 6 pairs, 1 are decided on one data set only.")


def test_folds_share_the_effect_of_their_training_cases():
    """Two of k training sets share k - 2 of their k - 1 parts, which is the correlation of their effects."""
    generator, folds, scores = np.random.default_rng(0), 5, []
    for _ in range(500):
        samples = SIMULATIONS.simulated_folds(generator, folds, 1, 1, training_sd=1.0)
        scores.append([runs[0] for runs in samples["a"]])
    correlations = np.corrcoef(np.array(scores).T)[np.triu_indices(folds, 1)]
    assert correlations.mean() == pytest.approx((folds - 2) / (folds - 1), abs=0.05)


def test_the_correction_for_folds_makes_false_verdicts_rarer():
    rates = SIMULATIONS.fold_rates(5, 1, training_sd=0.004, comparisons=200)
    assert rates["corrected"] < rates["plain"]


# --- page ------------------------------------------------------------------------------------------------------------


def score_rows(training, split, fold, means):
    """The tables of runs and cases of trainings with one mean each, for twelve cases."""
    cases = [
        {"training": training, "split": split, "fold": fold, "seed": seed, "group": f"{split}{fold}-{number}"}
        | {"case": f"{split}{fold}-{number}", "class": "a", "dice": mean + number / 1000}
        for seed, mean in enumerate(means)
        for number in range(12)
    ]
    runs = [
        {"group": training, "config": training.split()[0], "split": split, "fold": fold, "seed": seed}
        | {"mean_dice": mean, "steps": 100, "minutes": 30, "threads": 1}
        for seed, mean in enumerate(means)
    ]
    return runs, cases


def test_transforms_are_judged_on_the_same_validation_cases(monkeypatch, tmp_path):
    tables = tool_module("results.training_tables")
    for module in (tables, tool_module("results.data")):
        monkeypatch.setattr(module, "TABLES", tmp_path)
    studies = {
        "transforms": [
            ("isbi2012 without", "validation", 1, (0.5, 0.51, 0.52)),
            ("camvid without", "validation", None, (0.4, 0.41, 0.42)),
        ],
        "isbi2012": [("isbi2012", "validation", fold, (fold, fold, fold)) for fold in (0, 2)]
        + [("isbi2012", "validation", 1, (0.6, 0.61, 0.62))],
        "camvid": [("camvid", "test", None, (0.9, 0.9, 0.9)), ("camvid", "validation", None, (0.3, 0.31, 0.32))],
    }
    for study, parts in studies.items():
        both = [score_rows(*part) for part in parts]
        for index, kind in enumerate(("runs", "cases")):
            table = pd.DataFrame([row for part in both for row in part[index]])
            table.to_csv(tmp_path / f"trainings-{study}-{kind}.csv", index=False)
    table = tables.transforms_table()
    assert "| `isbi2012` | 0.6000, 0.6100, 0.6200 | 0.5000, 0.5100, 0.5200 | -10.00" in table
    assert "| `camvid` | 0.3000, 0.3100, 0.3200 | 0.4000, 0.4100, 0.4200 | +10.00" in table
    # 6, 9 and 3 trainings of half an hour in one of two threads
    assert "| trainings-transforms | 6 | 1.5 |" in tables.spent_table()
    assert "| trainings-camvid | 3 | 0.8 |" in tables.spent_table()


@pytest.mark.parametrize("page", [RESULTS.PAGE, RESULTS.README], ids=["results", "README"])
def test_a_page_has_the_tables_of_its_data(page):
    text = page.read_text(encoding="utf-8")
    assert text == RESULTS.filled(text), "run python tools/write_results.py"


def test_pages_have_every_table_that_is_measured():
    page, missing = "".join(path.read_text(encoding="utf-8") for path in (RESULTS.PAGE, RESULTS.README)), []
    for name, make in RESULTS.page_tables().items():
        if f"<!-- table: {name} -->" in page:
            continue
        with contextlib.suppress(RESULTS.NotMeasured):
            make()
            missing.append(name)
    assert missing == []
    assert set(re.findall("<!-- table: (.*) -->", page)) <= set(RESULTS.page_tables())


@pytest.mark.parametrize("name", ["LovaszOnLogits", "ExplodingGeneralizedDice"])
def test_artefacts_have_true_gradients(name):
    """They harm by their formula, not by a wrong gradient."""
    logits, mask = batch(size=(1, 3, 3, 3))
    labels = Labels(LABELS.names)
    loss, target = getattr(PLUGIN, name)(labels=labels), labels.target(mask)
    leaf = logits.float().requires_grad_()
    loss(leaf, target).backward()
    for position in itertools.islice(itertools.product(*map(range, leaf.shape)), 0, None, 5):
        step = torch.zeros_like(leaf)
        step[position] = 1e-2
        slope = (loss(leaf.detach() + step, target) - loss(leaf.detach() - step, target)) / 2e-2
        torch.testing.assert_close(leaf.grad[position], slope, rtol=0.02, atol=1e-3)  # in float32
