"""The page of a run holds the numbers of its evaluation, shows its cases, and works in a browser."""

import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from segkit import Labels
from segkit.evaluation.results import CaseScores, scores_json
from segkit.evaluation.scoring import build_scoring
from segkit.metrics.case_table import cases_table
from segkit.report import case_views
from segkit.report.case_views import case_view, legend
from segkit.report.charts import Chart, Line, round_numbers, thinned, ticks, widened
from segkit.report.run_page import (
    RunMaterial,
    Setting,
    averaged_classes,
    case_rows,
    shown_classes,
    training_charts,
    write_run_page,
)

from support.browser import Visit, browser

NASTY = "<img src=x onerror=alert(1)>"
LABELS = Labels(["background", "a", NASTY], ignore_index=255)
CASES = 30


def scored(random):
    """Masks of cases and wrong predictions of them, as scores."""
    masks = random.integers(0, 3, (CASES, 16, 16))
    wrong = random.random(masks.shape) < random.uniform(0.02, 0.5, (CASES, 1, 1))
    predictions = np.where(wrong, random.integers(0, 3, masks.shape), masks)
    predictions[0][predictions[0] == 1] = 0  # the class a is missed
    predictions[:, :8] = masks[:, :8] = 0  # nearly all of the background is right: the darkest cell
    names = [f"case {number:02d}" for number in range(CASES)]
    counts = [
        [[((p == k) & (m == k)).sum(), (p == k).sum(), (m == k).sum()] for k in range(3)]
        for m, p in zip(masks, predictions, strict=True)
    ]
    scoring = build_scoring(LABELS, metrics=["dice", "iou"])
    table = cases_table(names, names, np.array(counts), LABELS).assign(ignored=0)
    matrix = np.array([[((masks == row) & (predictions == column)).sum() for column in range(3)] for row in range(3)])
    found = CaseScores(table, matrix, calibration())
    return found, scores_json(found, LABELS, scoring, split="test", origin=None)


def calibration():
    bins = {"pixels": [10, 0, 30], "confidence": [0.4, None, 0.9], "accuracy": [0.3, None, 0.8]}
    return {
        "toplabel": {"all": {"ece": 0.1}, "boundary": {"ece": None}},
        "rules": {"bins": 3},
        "reliability": {"all": {"a": bins}, "boundary": {"a": bins}},
        "regions": {"all": {"brier": 0.25, "nll": 0.5}, "boundary": {"brier": 0.5, "nll": None}},
    }


def views(random):
    colour = (random.random((3, 40, 50)), random.integers(0, 3, (40, 50)), random.integers(0, 3, (40, 50)))
    volume = (random.random((1, 20, 24, 16)), random.integers(0, 3, (20, 24, 16)), random.integers(0, 3, (20, 24, 16)))
    return [
        case_view("worst", NASTY, "Dice 0.1", *colour, (1.0, 1.0), LABELS),
        case_view("best", "volume", "Dice 0.9", *volume, (1.0, 1.0, 2.0), LABELS),
    ]


RECORDS = [
    {"kind": "step", "step": 10, "epoch": 0.5, "loss": 2.0, "time": {"images_per_second": 5.0, "memory_peak_mb": 900}},
    {"kind": "epoch", "step": 10, "epoch": 0.5, "validation": {"dice": 0.4}, "time": {"validation_seconds": 2.0}},
    {"kind": "step", "step": 20, "epoch": 1.0, "loss": None, "time": {"images_per_second": 7.0}},
    {"kind": "step", "step": 30, "epoch": 1.5, "loss": 1.0, "time": {}},
    {"kind": "epoch", "step": 30, "epoch": 1.5, "validation": {"dice": 0.6}, "validation_loss": 1.5, "time": {}},
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything, the scores, and the file."""
    random = np.random.default_rng(0)
    found, scores = scored(random)
    material = RunMaterial(
        confusion=(found.matrix, LABELS.names),
        views=views(random),
        legend=legend(LABELS),
        records=RECORDS,
        settings=[Setting("optimizer.lr", "0.01", "0.001"), Setting("data.root", NASTY, None)],
        config=f"name: {NASTY}\n",
        facts=[("data hash", "0123")],
        again=[("Train once more", "segkit train --config run/config.yaml")],
    )
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_run_page("run <1>", scores, found.cases, LABELS.names[1:], material, file)
    return file, scores, found


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


def tables(file):
    """The tables of the page, as an independent reader finds them, by their first column."""
    found = pd.read_html(io.StringIO(file.read_text()))
    return {table.columns[0]: table.set_index(table.columns[0]) for table in found}


def test_the_headline_is_the_mean_with_its_interval_and_rules(page):
    file, scores, _found = page
    text = file.read_text()
    low, high = scores["mean_intervals"]["dice"]["ci95"]
    score = f"Dice {scores['mean']['dice']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    assert f"{score}, 30 cases of test" in text
    for sentence in scores["rules_in_words"]:
        assert sentence[1:].replace("'", "&#39;") in text


def test_tables_hold_the_scores(page):
    file, scores, found = page
    read = tables(file)
    classes = read["class"]
    assert classes.index.tolist() == [*LABELS.names, "mean"]
    for name, score in scores["classes"].items():
        assert float(classes["Dice"][name]) == pytest.approx(score["dice"]["mean"], abs=5e-5)
        assert int(classes["missed"][name]) == score["dice"]["missed"]
    assert float(classes["IoU"]["mean"]) == pytest.approx(scores["mean"]["iou"], abs=5e-5)
    assert int(classes["missed"]["a"]) == 1
    cases = read["case"]
    dice = found.cases.pivot_table(index="case", columns="class", values="dice")
    assert len(cases) == CASES
    for name in LABELS.names[1:]:
        np.testing.assert_allclose(cases[name].astype(float), dice[name][cases.index], atol=5e-4)
    assert cases["mean"].is_monotonic_increasing, "the worst case first"
    shares = found.matrix / found.matrix.sum(1, keepdims=True)
    np.testing.assert_allclose(read["reference"].to_numpy(float), shares, atol=5e-4)
    assert read["setting"].loc["optimizer.lr"].tolist() == ["0.01", "0.001"]
    assert float(read["pixels"]["Brier score"]["boundary"]) == 0.5


def test_names_are_texts(page):
    file, *_others = page
    text = re.sub(r'src="data:[^"]*"', "", file.read_text())
    assert "<img src=x" not in text
    assert "onerror=alert(1)&gt;" in text


def test_a_page_of_masks_alone_has_scores_only(tmp_path):
    found, scores = scored(np.random.default_rng(1))
    write_run_page("masks", scores, found.cases, LABELS.names[1:], RunMaterial(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for heading in ("Training", "Pictures", "Confusion", "Cost", "Configuration", "Origin", "Again"):
        assert f"<h2>{heading}</h2>" not in text
    assert "<h2>Classes</h2>" in text


def test_cases_without_any_foreground_have_a_page(tmp_path):
    """Nothing is counted, so there is no score: the page says so."""
    counts, metrics = np.array([[[9, 9, 9], [0, 0, 0], [0, 0, 0]]]), ["dice", "iou", "generalized_dice"]
    table = cases_table(["x"], ["x"], counts, LABELS, metrics=metrics).assign(ignored=0)
    found = CaseScores(table, None, None)
    scores = scores_json(found, LABELS, build_scoring(LABELS, metrics=metrics), split="test", origin=None)
    write_run_page("empty", scores, table, LABELS.names[1:], RunMaterial(), tmp_path / "report.html")
    assert "No Dice for 1 case of test: " in (tmp_path / "report.html").read_text()


def test_the_classes_with_the_lowest_scores_are_shown(monkeypatch):
    monkeypatch.setattr("segkit.report.run_page.MOST_CLASSES", 2)
    means = {"bg": 0.0, "x": 0.9, "y": None, "z": 0.2, "w": 0.5}
    scores = {"rules": {"background": []}, "classes": {name: {"dice": {"mean": mean}} for name, mean in means.items()}}
    averaged = averaged_classes(scores, "dice", ["x", "y", "z", "w"])
    assert averaged == ["x", "y", "z", "w"]
    assert shown_classes(scores, "dice", averaged) == ["z", "w"]


def test_the_mean_of_a_case_is_over_all_classes_whatever_is_shown():
    rows = [("p", "x", 0.2), ("p", "y", 0.9), ("q", "x", 0.3), ("q", "y", 0.5)]
    cases = pd.DataFrame(rows, columns=["case", "class", "dice"])
    found = [[cell.text for cell in row] for row in case_rows(cases, "dice", ["x"], ["x", "y"])]
    assert found == [["q", "0.300", "0.400"], ["p", "0.200", "0.550"]]


# --- pictures ---------------------------------------------------------------------------------------------------------


def decoded(url):
    from base64 import b64decode

    return np.asarray(Image.open(io.BytesIO(b64decode(url.partition(",")[2]))))


def test_layers_are_opaque_where_their_class_is():
    mask = np.zeros((20, 30), int)
    mask[5:12, 8:20], mask[0, 0] = 1, 255
    prediction = np.zeros((20, 30), int)
    prediction[5:12, 14:26] = 1
    (plane,) = case_view("x", "x", "", np.zeros((1, 20, 30)), mask, prediction, (1.0, 2.0), LABELS).planes
    assert plane.ratio == 60 / 20, "pixels are twice as wide as high"
    reference, predicted, errors = (decoded(url) for url in (plane.reference, plane.prediction, plane.errors))
    valid = mask != 255
    np.testing.assert_array_equal(reference[..., 3] > 0, (mask == 1) | ~valid)
    np.testing.assert_array_equal(predicted[..., 3] > 0, (prediction == 1) | ~valid)
    np.testing.assert_array_equal(errors[..., 3] > 0, (mask == 1) | (prediction == 1) | ~valid)
    colours = {tuple(errors[8, column, :3]) for column in (9, 16, 24)}
    assert len(colours) == 3, "missed, correct, spurious"


def test_slices_of_a_volume_are_looked_at_from_three_sides_with_their_lengths():
    """A bar towards the front, top and right of a volume in RAS orientation: up and right in every picture."""
    mask = np.zeros((10, 20, 30), int)
    mask[8:, 17:, 26:] = 1
    image = mask[None].astype(float)
    planes = case_view("x", "x", "", image, mask, mask, (1.0, 2.0, 3.0), LABELS).planes
    assert [plane.caption for plane in planes] == [
        "sagittal, slice 9 of 10",
        "coronal, slice 18 of 20",
        "axial, slice 27 of 30",
    ]
    assert [plane.ratio for plane in planes] == [40 / 90, 0.25, 0.25], "narrow ones are widened"
    for plane in planes:
        rows, columns = np.nonzero(decoded(plane.reference)[..., 3])
        height, width = decoded(plane.reference).shape[:2]
        assert rows.max() < height / 2, "the top is up"
        assert columns.min() > width / 2, "right, or the front, is to the right"


def test_volumes_without_anatomy_are_shown_as_stored():
    mask = np.zeros((6, 8, 10), int)
    mask[1, 2, 3] = 1
    arrays = (mask[None].astype(float), mask, mask, (1, 1, 1))
    planes = case_view("x", "x", "", *arrays, LABELS, is_anatomical=False).planes
    captions = ["across axis 1, slice 2 of 6", "across axis 2, slice 3 of 8", "across axis 3, slice 4 of 10"]
    assert [plane.caption for plane in planes] == captions
    for plane, kept in zip(planes, ((2, 3), (1, 3), (1, 2)), strict=True):
        assert tuple(np.argwhere(decoded(plane.reference)[..., 3])[0]) == kept


def test_a_class_inside_another_one_is_seen():
    """Overlapping classes, the inner one first: the outer one is painted above it, but not over its outline."""
    labels = Labels(["core", "whole"], mode="multilabel")
    masks = np.zeros((2, 40, 40), int)
    masks[1, 5:35, 5:35] = masks[0, 15:25, 15:25] = 1
    (plane,) = case_view("x", "x", "", np.zeros((1, 40, 40)), masks, masks, (1, 1), labels).planes
    layer = decoded(plane.reference)
    inner, outer = layer[15, 20, :3], layer[5, 20, :3]
    assert (inner != outer).any(), "outlines in their own colours"
    assert (layer[20, 20, :3] != layer[10, 20, :3]).any(), "a mixture where both are"


def test_large_images_are_thinned_before_they_are_worked_on(monkeypatch):
    seen = []
    view = case_views.view_of_plane
    monkeypatch.setattr(case_views, "view_of_plane", lambda *args: (seen.append(args[0].shape), view(*args))[1])
    mask = np.zeros((2000, 1500), int)
    (plane,) = case_view("x", "x", "", np.zeros((3, 2000, 1500)), mask, mask, (1, 1), LABELS).planes
    assert seen == [(3, 500, 375)]
    assert decoded(plane.errors).shape[:2] == (500, 375)


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.82, 0.953), (-3e-7, 2e-7), (12, 98765), (5, 5), (-2, -2), (0, 0)])
def test_axes_end_at_round_numbers_outside_of_the_points(low, high):
    start, stop = widened(low, high)
    ticks = round_numbers(start, stop)
    assert start <= low
    assert stop >= high
    assert 3 <= len(ticks) <= 13
    assert start - 1e-9 * (stop - start) <= ticks[0]
    assert ticks[-1] <= stop + 1e-9 * (stop - start)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])
    assert float(f"{steps[0]:.2g}") == pytest.approx(steps[0])


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.8812, 0.8829), (0.9991, 0.9998), (12345.1, 12345.9), (0, 2000), (-0.5, 0.5), (1e-6, 3e-6), (0, 3e8)],
)
def test_texts_of_ticks_are_their_values(low, high):
    start, stop = widened(low, high)
    found = ticks(start, stop)
    values = [float(text.replace(",", "")) for _place, text in found]
    assert len(set(values)) == len(values)
    expected = [start + place * (stop - start) for place, _text in found]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-12)


def test_points_of_a_chart_are_placed_in_percent():
    chart = Chart("t", "x", "y", [Line("l", 0, [(0, 0), (50, 5), (100, 10)])])
    assert chart.places(chart.lines[0]) == [(0, 100), (50, 50), (100, 0)]
    assert [tick.text for tick in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert chart.summary == "t: y over x; l from 0 at 0 to 10 at 100"


def test_long_lines_are_thinned_and_keep_their_end():
    points = [(float(number), 0.0) for number in range(1001)]
    assert len(thinned(points)) <= 402
    assert thinned(points)[-1] == points[-1]
    assert thinned(points[:400]) == points[:400]


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page, chromium, width, scheme):
    """It fits the window, loads nothing, and has no fault that axe-core calls serious, light or dark."""
    file, *_others = page
    visit = Visit(chromium, file, width, scheme)
    visit.check()
    assert min(visit.page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")) > 0
    visit.page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    assert [found for found in visit.violations() if found[1] in ("serious", "critical")] == []
    visit.check()
    visit.page.close()


def test_tables_sort_by_number_and_by_name(page, chromium):
    file, scores, _found = page
    visit = Visit(chromium, file)
    names = "rows => rows.map(row => row.cells[0].textContent)"
    table = "table.sorts:has(button:text-is('missed')) "
    by_dice = sorted(LABELS.names, key=lambda name: -scores["classes"][name]["dice"]["mean"])
    button = visit.page.get_by_role("button", name="Dice", exact=True)
    button.click()
    assert visit.page.eval_on_selector_all(table + "tbody tr", names) == by_dice
    assert visit.page.get_attribute(table + "th:has(button:text-is('Dice'))", "aria-sort") == "descending"
    button.press("Enter")
    assert visit.page.eval_on_selector_all(table + "tbody tr", names) == by_dice[::-1]
    visit.page.get_by_role("button", name="class", exact=True).click()
    assert visit.page.eval_on_selector_all(table + "tbody tr", names) == sorted(LABELS.names, key=str.lower)
    visit.page.close()


def test_the_slider_leads_from_the_image_to_the_errors(page, chromium):
    file, *_others = page
    visit = Visit(chromium, file)
    viewer = visit.page.locator(".viewer").first
    slider, layers = viewer.get_by_role("slider"), viewer.locator("img[data-stop]")

    def opacities():
        return layers.evaluate_all("all => all.map(each => parseFloat(getComputedStyle(each).opacity))")

    assert opacities() == [0, 1, 0], "the prediction"
    slider.press("Home")
    assert opacities() == [0, 0, 0]
    viewer.get_by_role("button", name="reference").click()
    assert opacities() == [1, 0, 0]
    assert slider.get_attribute("aria-valuetext") == "reference"
    for _step in range(5):
        slider.press("ArrowRight")
    assert opacities() == pytest.approx([0.5, 0.5, 0])
    slider.press("End")
    assert opacities() == [0, 0, 1]
    visit.page.close()


def test_numbers_of_a_page_are_json_plain(page):
    """Sorting reads data-value as a number."""
    file, *_others = page
    values = re.findall(r'data-value="([^"]*)"', file.read_text())
    assert len(values) > 100
    for value in values:
        assert math.isfinite(json.loads(value))


def test_a_training_starts_without_what_draws():
    """matplotlib and jinja2 take a second to import, in every process of a comparison too."""
    code = "import sys, segkit.experiment.runner; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_scores_that_are_no_fractions_have_charts_of_their_own():
    records = [
        {"kind": "epoch", "step": step, "validation": {"dice": 0.5, "mcc": 0.1, "hd95": 30.0, "betti_error": 4}}
        for step in (10, 20)
    ]
    charts = {chart.title: [line.name for line in chart.lines] for chart in training_charts(records)}
    assert charts == {
        "Validation": ["Dice", "MCC"],
        "Validation: HD95": ["HD95"],
        "Validation: Betti error": ["Betti error"],
    }
