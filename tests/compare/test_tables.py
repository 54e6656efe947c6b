"""Tables of scores from strangers: what is refused and how, names that look like formulas, and tables of many rows."""

import csv
import json
import math
import os
import random
import re
import subprocess
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from segkit.compare.aggregation import AGGREGATIONS, PerturbedGroups, run_scores
from segkit.compare.analysis import Analysis, TableError, compare_table
from segkit.compare.rankings import Draws, _draw, loss_means
from segkit.compare.score_table import read_rows, read_score_rows, read_scores
from segkit.compare.statistics import analyse
from segkit.compare.variance_models import group_values
from segkit.evaluation.results import CaseScores, write_results
from segkit.labels import Labels
from segkit.utils.csv_tables import FORMULA, neutral, original, read_table, write_table

from support.faults.tables import valid_table
from support.simulated_tables import long_table, simulated

pytestmark = pytest.mark.usefixtures("without_figures")

HEADER = "loss,seed,fold,case,group,class,tp,predicted,reference,dice,rules"
ROW = "a,0,0,c1,g1,organ,3,5,4,0.5,segkit-1"
NAMES = st.text(st.sampled_from("=+-@'\t\r\n＝a1 ,\"\\"), max_size=6).filter(lambda name: name.strip() != "")


@pytest.fixture
def _no_pages(monkeypatch):
    """Do not draw figures, which these tests do not look at."""
    monkeypatch.setattr("segkit.compare.analysis.write_pages", lambda *_: None)


def compare(folder, text, **settings_):
    """Compare the losses of a table given as text, and return comparison.json."""
    table = folder / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    compare_table(table, folder / "out", Analysis(**settings_), Console(quiet=True))
    return json.loads((folder / "out" / "comparison.json").read_text())


def changed(**cells):
    """Two rows, with some cells of the second one replaced."""
    second = dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | {"case": "c2", "group": "g2"} | cells
    return f"{HEADER}\n{ROW}\n{','.join(second.values())}\n"


@pytest.mark.usefixtures("_no_pages")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(predicted="text"), "expected a number in row 3, column predicted, got 'text'"),
        (changed(dice="x" * 100), r"row 3, column dice, got 'x{40}\.\.\.'"),
        (changed(dice="1_0"), "row 3, column dice, got '1_0'"),
        (changed(dice="9" * 400), "expected dice from 0 to 1, got 0.5 to inf"),
        (changed(dice="-1"), "from 0 to 1, got -1 to 0.5$"),
        (changed(dice="50"), "divide percentages by 100"),
        (changed(tp="-1"), "pixels from 0 to 2.53 in the column tp, got -1 for class organ of case c2"),
        (changed(reference="4.5"), "in the column reference, got 4.5"),
        (changed(predicted="9007199254740994"), "in the column predicted, got 9007199254740994"),
        (changed(predicted="9" * 400), "in the column predicted, got inf"),
        (changed(predicted="", dice=""), "in the column predicted, got a blank"),
        (changed(tp="6"), "at most predicted and reference, got 6, 5 and 4 for class organ of case c2"),
        (changed(seed=""), r"columns \['seed'\], found blanks"),
        (changed(loss=" "), r"columns \['loss'\], found blanks"),
        (changed(case="x" * 5000), "at most 4096 characters, got 5000 in the column case"),
        (changed(case='"x'), "commas and balanced quotes: unexpected end of data"),
        (changed(case="x,y"), "expected 11 columns in every row, as in the header, got 12 in row 3"),
        (changed()[:-10], "expected 11 columns in every row, as in the header, got 10 in row 3"),
        (changed(case="x\0"), "zero byte in line 3"),
        (changed(case="c1", group="g1"), "this one is repeated: .*'case': 'c1'"),
        (changed(**{"class": "other"}), "no row for c1 .other."),
        (HEADER, "at least one row below the header"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (changed().replace("rules", "dice"), "the header repeats dice"),
        (changed().replace(",", ";"), "expected commas between the columns, got ';' in the header"),
        (changed().encode("utf-16"), "UTF-16 text: save the table as CSV"),
        (changed(case="é").encode("latin-1"), "expected text in UTF-8, found other bytes"),
        (b"\x1f\x8b\x08 packed", "a gzip file: unpack it first"),
        (b"PK\x03\x04 sheet", "a spreadsheet or zip file"),
        (f"{HEADER}\n{'x' * 2**20}", "lines of fewer than 1048576 characters, got a longer one in line 2"),
        (f"{HEADER}\n" + "x\n" * 3, "got 1 in row 2"),
        ("task,case,algorithm,value\nt,c,a,0.5\n,c,b,0.5\n", r"columns \['task'\], found blanks"),
        ("task,case,algorithm,value\nt,c,a,x\n", "row 2, column value, got 'x'"),
        (
            "dataset," + changed().replace("\na", "\nd,a", 1).replace("\na", "\n,a", 1),
            "of the column dataset, found 1 blanks",
        ),
    ],
)
def test_refused_tables_say_where_and_what(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        compare(tmp_path, text)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "got a pipe or a device"), ("", "got a folder"), ("none", "does not exist")):
        with pytest.raises(TableError, match=message):
            compare_table(tmp_path / name, tmp_path / "out", Analysis(), Console(quiet=True))


def test_many_folds_of_few_cases_are_refused_before_they_take_memory():
    number = 20_000
    rows = {"loss": "a", "seed": 0, "fold": range(number), "case": range(number), "class": "organ", "dice": 0.5}
    with pytest.raises(ValueError, match=r"at most 268435456 combinations .* got 20000 runs, 20000 cases"):
        read_scores(pd.DataFrame(rows), "dice")


@pytest.mark.usefixtures("_no_pages")
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["segkit-1", "segkit-1"], {"id": "segkit-1"}),
        (["segkit-1", ""], {"id": None, "reason": "some rows have no entry in the column `rules`, others segkit-1"}),
        (["b", "a"], {"id": None, "reason": "rows were scored by different rules: a, b"}),
        (["", ""], {"id": None, "reason": "the column `rules` of the table is empty"}),
    ],
)
def test_rules_of_a_table(tmp_path, rules, expected):
    first = ROW.replace("segkit-1", rules[0])
    assert compare(tmp_path, changed(rules=rules[1]).replace(ROW, first))["rules"] == expected


@pytest.mark.usefixtures("_no_pages")
@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (("1", "01"), [1]),
        (("10", "9"), [9, 10]),
        (("1.0", "2"), [1, 2]),
        (("0.5", "2"), [0.5, 2]),
        (("b", "10"), ["10", "b"]),
        (("9" * 400, "1"), ["1", "9" * 400]),
        ((str(2**59), str(2**59 + 1)), [2**59, 2**59 + 1]),
    ],
)
def test_seeds_are_numbers_or_names(tmp_path, seeds, expected):
    rows = [f"a,{seed},{case},organ,0.5" for seed in dict.fromkeys(seeds) for case in ("c1", "c2")]
    rows = rows if len(expected) > 1 else [f"a,{seeds[0]},c1,organ,0.5", f"a,{seeds[1]},c2,organ,0.5"]
    result = compare(tmp_path, "\n".join(["loss,seed,case,class,dice", *rows]))
    assert [run["seed"] for run in result["losses"][0]["runs"]] == expected


def test_numbers_and_names_are_read_as_python_reads_them(tmp_path):
    generator = random.Random(0)
    rows = valid_table(generator)
    rows[1][3], rows[1][4] = "None", "01"
    file = tmp_path / "table.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    table = read_rows(file)
    for number, name in enumerate(rows[0]):
        cells = [row[number] for row in rows[1:]]
        if name in ("tp", "predicted", "reference", "seed", "fold"):
            assert table[name].tolist() == [int(cell) for cell in cells]
        elif name == "dice":
            expected = [float(cell or "nan") for cell in cells]
            np.testing.assert_allclose(table[name], expected, rtol=1e-15)
        else:
            assert table[name].tolist() == cells


# --- formulas --------------------------------------------------------------------------------------------------------


@given(NAMES)
def test_no_name_begins_like_a_formula_and_every_name_is_read_back(name):
    assert neutral(name)[0] not in "=+-@\t\r\n＝"
    assert original(neutral(name)) == name
    assert (neutral(name) == name) == (FORMULA.match(name) is None)


@settings(max_examples=60, database=None)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_written_tables_are_read_back(tmp_path_factory, names):
    file = tmp_path_factory.mktemp("tables") / "table.csv"
    table = pd.DataFrame({"case": names, "value": np.arange(len(names)) - 1.5})
    write_table(file, table)
    with file.open(newline="") as opened:
        assert all(row[0][0] not in "=+-@\t\r\n＝" for row in csv.reader(opened))
    back = read_table(file, ("case",))
    assert back["case"].tolist() == names
    assert back["value"].tolist() == table["value"].tolist()  # negative numbers stay numbers


def test_no_results_of_an_evaluation_hold_formulas(tmp_path):
    labels = Labels(["=cmd|'/C calc'!A0", "+b"])
    rows = [{"case": "@c", "group": "-g", "class": name, "dice": 0.5} for name in labels.names]
    result = {"rules": {"id": "segkit-1", "exclude_classes": []}}
    write_results(tmp_path, CaseScores(pd.DataFrame(rows), np.eye(2, dtype=int), None), labels, result)
    for file in ("cases.csv", "confusion.csv"):
        with (tmp_path / file).open(newline="") as opened:
            cells = [cell for row in csv.reader(opened) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert read_rows(tmp_path / "cases.csv")["class"].tolist() == list(labels.names)


def test_a_report_holds_no_formulas_links_or_markup(tmp_path):
    table = long_table(simulated(np.random.default_rng(0), 2, 3, 12))
    names = {"loss0": "=cmd|calc", "loss1": "[x](http://evil.org) <img src=x> https://evil.org www.evil.org"}
    table["loss"] = table["loss"].replace(names)
    table["case"] = table["case"].replace({"case3": "![y](http://evil.org/y.png)", "case4": "@SUM(A1)"})
    file = tmp_path / "table.csv"
    write_table(file, table)
    compare_table(file, tmp_path, Analysis(), Console(quiet=True))
    losses = json.loads((tmp_path / "comparison.json").read_text())["losses"]
    assert {loss["name"] for loss in losses} == set(names.values())
    text = (tmp_path / "report.md").read_text()
    for markup in (r"(?<!\\)\]\(http", r"(?<!\\)<img", "https://", r"www\.evil"):
        assert not re.search(markup, text)
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page
    assert 'href="http' not in page
    with (tmp_path / "challenger.csv").open(newline="") as opened:
        assert not [cell for row in csv.reader(opened) for cell in row if cell.startswith(("=", "@"))]
    compare_table(tmp_path / "challenger.csv", tmp_path / "again", Analysis(), Console(quiet=True))
    again = json.loads((tmp_path / "again" / "comparison.json").read_text())["losses"]
    assert {loss["name"] for loss in again} == set(names.values())


# --- many rows and large numbers -------------------------------------------------------------------------------------


def test_pixel_counts_above_two_to_the_31_are_summed_exactly():
    generator = np.random.default_rng(0)
    rows, sums = [], [0, 0]
    for case in range(1000):
        predicted, reference = (int(number) for number in generator.integers(2**33, 2**34, size=2))
        tp = int(generator.integers(0, min(predicted, reference)))
        sums = [sums[0] + 2 * tp, sums[1] + predicted + reference]
        rows.append(("a", 0, f"c{case}", "organ", tp, predicted, reference, 2 * tp / (predicted + reference)))
    table = pd.DataFrame(rows, columns=["loss", "seed", "case", "class", "tp", "predicted", "reference", "dice"])
    result = analyse(table, aggregation="global", resamples=0)
    assert result["losses"][0]["mean"] == float(Fraction(*sums))


def test_derivatives_for_groups_are_those_of_the_full_matrix():
    """The matrix of weights, with one perturbed row per group, is what a hundred thousand cases have no memory for."""
    table = long_table(simulated(np.random.default_rng(1), 2, 2, 12), groups=[number // 3 for number in range(12)])
    scores = read_scores(table, "dice")
    weights = np.ones((4, 12), complex)
    weights[scores.group, np.arange(12)] += 1e-20j
    for name in ("class_case", "case_class", "groups", "absent_perfect"):
        expected = AGGREGATIONS[name].score(scores, weights) if name != "groups" else None
        perturbed = AGGREGATIONS[name].score(scores, PerturbedGroups(np.ones(12), scores.group, 4))
        np.testing.assert_allclose(np.real(perturbed), np.broadcast_to(run_scores_by(scores, name), (4, 4)))
        if expected is not None:
            np.testing.assert_allclose(np.imag(perturbed), np.imag(expected), atol=1e-34)


def run_scores_by(scores, name):
    return AGGREGATIONS[name].score(scores, np.ones((1, len(scores.cases))))[0]


def test_medians_of_resamples_are_those_of_repeated_values():
    generator = np.random.default_rng(2)
    scores = read_scores(long_table(simulated(generator, 2, 2, 37)), "dice")
    weights = generator.integers(0, 4, size=(50, 37)).astype(float)
    found = AGGREGATIONS["median"].score(scores, weights)
    for row, counts in zip(found, weights.astype(int), strict=True):
        expected = [np.median(np.repeat(values, counts)) for values in scores.values[..., 0]]
        assert row.tolist() == pytest.approx(expected, abs=0)


def test_chunks_of_resamples_change_no_result(monkeypatch):
    scores = read_scores(long_table(simulated(np.random.default_rng(3), 2, 2, 30)), "dice")

    def means():
        drawn = _draw(scores, 100, np.random.default_rng(4))
        return np.concatenate([loss_means(scores, "class_case", chunk) for chunk in drawn.chunks()])

    whole = means()
    monkeypatch.setattr("segkit.compare.rankings.CHUNK", 60)
    assert len(list(Draws(np.ones((9, 4)), np.ones((9, 30))).chunks())) == 5
    np.testing.assert_allclose(means(), whole, rtol=1e-14)


def test_a_hundred_thousand_cases_and_a_thousand_classes():
    """Arrays of groups by cases would take 160 GB here."""
    generator, cases = np.random.default_rng(5), 100_000
    table = pd.DataFrame({"loss": "a", "seed": 0, "case": np.arange(cases), "class": "organ"})
    values = group_values(read_scores(table.assign(dice=generator.uniform(size=cases)), "dice"))
    assert values.shape == (1, cases)
    classes = long_table({"a": np.full((2, 2, 1000), 0.5)}, classes=[f"class{number}" for number in range(1000)])
    assert run_scores(read_scores(classes, "dice")).tolist() == [0.5, 0.5]


def test_a_table_is_analysed_without_torch():
    """Importing torch takes half a gigabyte, more than the largest tables."""
    program = "import segkit.compare.analysis, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_memory_of_a_long_table(tmp_path):
    """A row of this table has 80 characters of text, and takes little more than its numbers, 8 bytes each."""
    shape = (8, 5, 250, 5)
    keys = np.indices(shape).reshape(4, -1)
    columns = {
        "loss": [f"loss{number}" for number in keys[0]],
        "seed": keys[1],
        "case": [f"patient_{number:05d}_of_a_hospital_with_a_long_name" for number in keys[2]],
        "group": [f"patient_{number // 2:05d}" for number in keys[2]],
        "class": [f"class_{number}" for number in keys[3]],
        "dice": np.random.default_rng(6).uniform(size=math.prod(shape)),
    }
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    tracemalloc.start()
    scores = read_scores(read_score_rows(tmp_path / "table.csv", "dice"), "dice")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.values.shape == (40, 250, 5)
    assert peak < 25e6  # 500 bytes for each of 50,000 rows, mostly for the text of the first 32,768
