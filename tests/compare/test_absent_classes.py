"""Classes that are in neither reference nor prediction of a case: what counts, and what a report says about it."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from segkit.compare.aggregation import check_aggregation, effective_groups, run_scores
from segkit.compare.analysis import Analysis, ReportContext, compare_table, no_material, write_comparison
from segkit.compare.sanity_checks import aggregation_warnings
from segkit.compare.score_table import read_scores
from segkit.compare.statistics import analyse
from segkit.labels import Labels
from segkit.metrics.case_table import cases_table
from segkit.metrics.rules import Rules
from segkit.metrics.summary import summarise

from support.simulated_tables import folded, long_table

pytestmark = pytest.mark.usefixtures("without_figures")
QUIET = Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("aggregation", ["class_case", "case_class", "global", "micro"])
@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_runs_are_scored_as_in_their_evaluation(aggregation, metric):
    """Classes are missing, missed and falsely predicted; each run is evaluated alone."""
    labels, table = Labels(["background", "x", "y"]), table_with_absent_classes(np.random.default_rng(4))
    scores = read_scores(table, metric, aggregation=aggregation)
    evaluated = [
        summarise(rows, labels, Rules(aggregation={metric: aggregation}), metrics=(metric,), intervals=False)["mean"]
        for _run, rows in table.groupby(["loss", "seed"])
    ]
    assert run_scores(scores).tolist() == pytest.approx([mean[metric] for mean in evaluated])


def table_with_absent_classes(generator, cases=12):
    """Three losses with two runs each; the long table of each run is made as by an evaluation."""
    labels, parts = Labels(["background", "x", "y"]), []
    reference = generator.integers(0, 40, (cases, 3)) * (generator.uniform(size=(cases, 3)) < 0.5)
    for loss, seed in itertools.product("abc", range(2)):
        predicted = generator.integers(0, 40, (cases, 3)) * (generator.uniform(size=(cases, 3)) < 0.5)
        tp = generator.integers(0, np.minimum(predicted, reference) + 1)
        names = [f"c{number}" for number in range(cases)]
        rows = cases_table(names, names, np.stack([tp, predicted, reference], 2), labels)
        parts.append(rows.assign(loss=loss, seed=seed))
    return pd.concat(parts, ignore_index=True)


def test_cases_that_count_in_every_run():
    table = table_with_absent_classes(np.random.default_rng(5))
    scores = read_scores(table, "dice")
    counted = table[table["class"] != "background"].groupby(["case", "class"])["dice"].apply(lambda d: d.notna().all())
    for (case, name), expected in counted.items():
        assert scores.always_counted[scores.cases.index(case), scores.classes.index(name)] == expected


def test_classes_that_count_in_some_runs_of_a_fold_are_named():
    """In the second fold no case has the class y, and one run predicts it."""
    table = folded(np.random.default_rng(6), folds=3)
    both = pd.concat([table.assign(**{"class": "x"}), table.assign(**{"class": "y"})], ignore_index=True)
    absent = (both["class"] == "y") & (both["fold"] == 1)
    both.loc[absent, "dice"] = np.nan
    caveat = "y: neither in the reference nor predicted in all cases of some runs"
    assert not any(words.startswith(caveat) for words in analyse(both)["warnings"])
    one = both[absent].index[0]
    both.loc[one, "dice"] = 0.0
    assert any(words.startswith(caveat) for words in analyse(both)["warnings"])


def test_missing_values_that_are_said_to_be_absent(tmp_path):
    values = {loss: np.random.default_rng(7).uniform(0.4, 0.6, (2, 30)) for loss in "ab"}
    values["b"][:, :5] = np.nan
    long_table(values).to_csv(tmp_path / "table.csv", index=False)
    result = compare_table(tmp_path / "table.csv", tmp_path / "out", Analysis(missing="absent"), QUIET)
    assert result["losses"][1]["mean"] == pytest.approx(np.nanmean(values["b"]))
    assert result["missing"] == "absent"
    assert any("10 values are missing" in words and "do not count" in words for words in result["warnings"])
    exported = pd.read_csv(tmp_path / "out" / "challenger.csv")
    assert exported.loc[exported["algorithm"] == "b", "value"].eq(1.0).sum() == 5


def test_a_loss_with_a_run_without_a_score_is_undecided(tmp_path):
    values = {loss: np.random.default_rng(8).uniform(0.4, 0.6, (3, 30)) for loss in "abc"}
    values["b"][1] = np.nan
    table = long_table(values).assign(tp=0, predicted=0, reference=0)
    has_value = table["dice"].notna()
    table.loc[has_value, "dice"], table.loc[has_value, "predicted"] = 0.0, 3
    result = write_comparison(table, tmp_path, Analysis(), ReportContext(), no_material, QUIET)
    verdicts = {(pair["a"], pair["b"]): pair["verdict"] for pair in result["pairs"]}
    assert verdicts == {("a", "c"): "equivalent", ("a", "b"): "undecided", ("c", "b"): "undecided"}
    assert list(result["failed"]) == ["b, seed 1, fold 0"]


def test_a_verdict_that_rests_on_absent_classes_has_a_caveat():
    """A rare class is in 10 of 60 cases. One loss finds a little of it and predicts it everywhere, the other never."""
    generator = np.random.default_rng(9)
    common, rare = generator.uniform(0.78, 0.82, (2, 5, 60)), np.full((2, 5, 60), np.nan)
    rare[:, :, :10] = 0.0
    rare[0] = np.where(np.arange(60) < 10, generator.uniform(0.5, 0.7, (5, 60)), 0.0)
    names = ["eager", "never"]
    parts = [
        long_table(dict(zip(names, values, strict=True)), (name,)) for name, values in (("x", common), ("y", rare))
    ]
    result = analyse(pd.concat(parts, ignore_index=True))
    (pair,) = result["pairs"]
    assert pair["verdict"] == "better"
    assert any("the verdict depends on how a case counts" in words for words in aggregation_warnings(result))


def test_a_former_aggregation_is_explained():
    with pytest.raises(ValueError, match="got present, which is now the same as class_case"):
        check_aggregation("present", "dice")


def test_correctly_predicted_absence_has_distance_zero():
    table = long_table({"a": [[2.0, np.nan]], "b": [[2.0, 40.0]]}).rename(columns={"dice": "hd95"})
    result = analyse(table, metric="hd95", aggregation="absent_perfect")
    assert [loss["mean"] for loss in result["losses"]] == [1.0, 21.0]
    assert [loss["mean"] for loss in analyse(table, metric="hd95", missing="perfect")["losses"]] == [1.0, 21.0]
    assert [loss["mean"] for loss in analyse(table, metric="hd95")["losses"]] == [2.0, 21.0]  # as in an evaluation


def test_the_score_of_a_run_does_not_depend_on_other_losses():
    """A loss that predicts a rare class everywhere does not make the others, which never do, any better."""
    table = table_with_absent_classes(np.random.default_rng(11), cases=24)
    eager = table[table["loss"] == "c"]
    eager = eager.assign(predicted=eager["predicted"].clip(lower=1), dice=eager["dice"].fillna(0.0))
    table = pd.concat([table[table["loss"] != "c"], eager])

    def difference(rows, aggregation):
        pairs = analyse(rows, resamples=0, aggregation=aggregation)["pairs"]
        return next(pair["difference"] for pair in pairs if pair["b"] == "b")

    two = table[table["loss"] != "c"]
    for rule in ("class_case", "case_class", "groups", "global", "micro"):
        assert difference(table, rule) == pytest.approx(difference(two, rule), abs=1e-15)
    filled = [difference(rows, "absent_perfect") for rows in (table, two)]
    assert abs(filled[0] - filled[1]) > 1e-4


def test_a_run_without_a_score_is_an_error():
    """Its cases hold no class, and it predicts none; the other runs predict some."""
    table = long_table({"a": [[np.nan, np.nan]], "b": [[0.0, 0.0]]})
    with pytest.raises(ValueError, match=r"expected a score of every run, but loss a, seed 0.* absent_perfect"):
        analyse(table)
    assert [loss["mean"] for loss in analyse(table, aggregation="absent_perfect")["losses"]] == [1.0, 0.0]


def test_few_groups_of_most_runs_count_and_not_the_many_of_one():
    """One run predicts a rare class in every case; for the others, three cases are behind its score."""
    common, rare = np.full((3, 30), 0.8), np.full((3, 30), np.nan)
    rare[:, :3] = 0.4
    eager = np.where(np.isnan(rare), 0.0, rare)
    tables = [long_table({"a": values, "b": other}) for values, other in ((common, common), (rare, eager))]
    table = pd.concat([part.assign(**{"class": name}) for part, name in zip(tables, ("common", "rare"), strict=True)])
    scores = read_scores(table, "dice")
    assert effective_groups(scores, *scores.blocks[0]) == (3, "rare")
    assert effective_groups(replace(scores, aggregation="absent_perfect"), *scores.blocks[0]) == (30, "common")


def test_a_correct_prediction_of_nothing_does_not_count_unless_asked_for():
    nan = np.nan
    spurious = {"a": [[0.5, nan]], "b": [[0.5, 0.0]]}
    assert [loss["mean"] for loss in analyse(long_table(spurious))["losses"]] == [0.5, 0.25]
    filled = analyse(long_table(spurious), aggregation="absent_perfect")
    assert [loss["mean"] for loss in filled["losses"]] == [0.75, 0.25]
    never = {"a": [[0.5, nan]], "b": [[0.7, nan]]}
    assert [loss["mean"] for loss in analyse(long_table(never))["losses"]] == pytest.approx([0.5, 0.7])
