"""Figures, overlays and console tables: cases, slices, colours, clipped text and printed numbers."""

import io
import math
import random

import kiwisolver
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from segkit import Labels
from segkit.compare.aggregation import class_scores
from segkit.compare.score_table import read_scores
from segkit.compare.statistics import analyse, analyse_scores
from segkit.metrics.case_table import cases_table
from segkit.metrics.summary import summarise
from segkit.report import overlays
from segkit.report.comparison_figures import (
    aggregations_figure,
    critical_difference_figure,
    forest_figure,
    ranks_figure,
    runs_figure,
)
from segkit.report.comparison_page import best_first, drawn_classes, drawn_part, limits_caption
from segkit.report.console import print_comparison, print_scores
from segkit.report.contact_sheet import contact_sheet
from segkit.report.evaluation_figures import confusion_figure, most_confused, reliability_figure
from segkit.report.html import markdown_cell
from segkit.report.overlays import choose_cases, choose_slice, error_map, overlay_figure

from support.simulated_tables import long_table

THREE = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary", ignore_index=255)
OVERLAPPING = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
REGIONS = Labels(["whole", "core"], mode="multilabel", ignore_index=255, regions={"whole": [1, 2], "core": [2]})


def cases_of(scores):
    """A table of {case: [Dice of a, Dice of b]} with a perfect background, which must be ignored."""
    rows = [(case, "background", 1.0) for case in scores]
    rows += [(case, name, dice) for case, pair in scores.items() for name, dice in zip("ab", pair, strict=True)]
    return pd.DataFrame(rows, columns=["case", "class", "dice"])


def test_worst_median_and_best_case_by_mean_foreground_dice():
    nan = math.nan
    scores = {"p": [0.9, 0.7], "q": [nan, nan], "r": [0.1, nan], "s": [0.2, 0.6], "t": [0.5, 0.5], "u": [0.9, 0.9]}
    expected = [("worst", "r", 0.1), ("median", "t", 0.5), ("best", "u", 0.9)]
    chosen = choose_cases(cases_of(scores), THREE)
    assert [(description, name) for description, name, _ in chosen] == [
        (description, name) for description, name, _ in expected
    ]
    assert [dice for *_, dice in chosen] == pytest.approx([dice for *_, dice in expected])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, []),
        ({"x": [math.nan, math.nan]}, []),
        ({"x": [0.5, 0.5]}, [("only case", "x")]),
        ({"x": [0.5, 0.5], "y": [0.4, 0.4]}, [("worst", "y"), ("best", "x")]),
        ({"x": [0.5, 0.5], "y": [0.5, 0.5], "z": [0.5, 0.5]}, [("worst", "x"), ("median", "y"), ("best", "z")]),
        (
            {name: [0.1 * place, 0.1] for place, name in enumerate("wxyz")},
            [("worst", "w"), ("median", "x"), ("best", "z")],
        ),
    ],
)
def test_choice_of_few_or_tied_cases(scores, expected):
    assert [(description, name) for description, name, _ in choose_cases(cases_of(scores), THREE)] == expected


def test_slice_with_most_reference_is_shown():
    reference, predicted = np.zeros((2, 6, 5, 9), dtype=bool), np.zeros((2, 6, 5, 9), dtype=bool)
    reference[0, :2, :2, 3] = reference[1, :2, :2, 5] = reference[0, 3:5, :2, 5] = True
    predicted[:, :, :, 7] = True
    assert choose_slice(reference, predicted) == 5
    assert choose_slice(np.zeros_like(reference), predicted) == 7
    assert choose_slice(np.zeros_like(reference), np.zeros_like(predicted)) == 4


def view_of(mask, prediction, labels, image=None):
    image = np.linspace(0, 1, mask[..., :].size)[: mask.shape[-2] * mask.shape[-1]] if image is None else image
    return overlays._view(("x", np.reshape(image, (1, *mask.shape[-2:])), mask, prediction), labels)


def test_error_map_colours():
    mask = np.array([[1, 1, 2, 0, 0, 255]], dtype=np.uint8).repeat(3, axis=0)
    prediction = np.array([[1, 0, 1, 2, 0, 1]], dtype=np.uint8).repeat(3, axis=0)
    view = view_of(mask, prediction, THREE, np.zeros(18))
    blended = overlays._striped(error_map(view), view.valid)[0]
    dark = blended[4]
    assert dark.std() == 0
    colours = [to_hex(np.clip((pixel - 0.2 * dark) / 0.8, 0, 1)) for pixel in blended[:4]]
    expected = [overlays.CORRECT, overlays.MISSED, overlays.CONFUSED, overlays.SPURIOUS]
    assert colours == [colour.lower() for colour in expected]
    assert to_hex(blended[5]) in [colour.lower() for colour in overlays.IGNORED]


def test_foreground_planes_in_every_mode():
    numbers = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    both = np.array([[[0, 1], [1, 255]], [[0, 0], [1, 255]]], dtype=np.uint8)
    exclusive = view_of(numbers, numbers, THREE)
    assert exclusive.reference.tolist() == [[[False, True], [False, False]], [[False, False], [True, False]]]
    assert exclusive.valid.tolist() == [[True, True], [True, False]]
    for view in (view_of(both, both, OVERLAPPING), view_of(numbers, both, REGIONS)):
        assert view.reference.tolist() == [[[False, True], [True, False]], [[False, False], [True, False]]]
        assert np.array_equal(view.predicted, view.reference)
        assert np.array_equal(view.valid, exclusive.valid)
    binary = view_of(both[0], both[0], BINARY)
    assert binary.reference.tolist() == binary.predicted.tolist() == [[[False, True], [True, False]]]


def test_images_are_scaled_between_percentiles():
    image = np.arange(1000, dtype=np.float32).reshape(1, 20, 50)
    image[0, 0, 0], image[0, -1, -1] = -1e9, 1e9
    shown = overlays._displayed(image)
    assert (shown.min(), shown.max()) == (0, 1)
    assert shown[10, 0, 0] == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(shown[..., 0], shown[..., 2])
    colours = np.stack([image[0] * share for share in (0.2, 0.5, 1)])
    assert overlays._displayed(colours)[10, 25, 0] < overlays._displayed(colours)[10, 25, 2]
    assert np.all(overlays._displayed(np.full((2, 4, 4), 7.0)) == 0.5)
    assert np.isfinite(overlays._displayed(np.full((1, 4, 4), np.nan))).all()


def test_classes_and_errors_have_distinct_colours():
    errors = {overlays.CORRECT, overlays.SPURIOUS, overlays.MISSED, overlays.CONFUSED}
    assert len(errors | set(overlays.PALETTE)) == 4 + len(overlays.PALETTE)
    many = Labels([f"c{number}" for number in range(30)])
    assert overlays.class_colours(many)[:11] == overlays.class_colours(many)[11:22] == list(overlays.PALETTE)


def two_dimensional(channels):
    generator = np.random.default_rng(channels)
    mask = generator.integers(0, 3, size=(40, 60)).astype(np.uint8)
    mask[:5] = 255
    return generator.uniform(size=(channels, 40, 60)), mask, np.where(mask == 255, 1, mask)


def volume():
    mask = np.zeros((30, 20, 12), dtype=np.uint8)
    mask[5:20, 5:15, 7] = 1
    return np.random.default_rng(0).normal(size=(1, 30, 20, 12)), mask, np.roll(mask, 2, axis=0)


def long_names():
    long = [f"{letter} class whose name is far too long for six columns of a legend" for letter in "cdef"]
    return Labels(["background", "b", *long], ignore_index=255)


@pytest.mark.parametrize(
    ("cases", "labels"),
    [
        ([two_dimensional(1), two_dimensional(3), two_dimensional(4)], THREE),
        ([volume(), volume()], long_names()),
        ([(np.zeros((1, 20, 20)), np.full((20, 20), 255, np.uint8), np.zeros((20, 20), np.uint8))], BINARY),
        ([(np.ones((1, 16, 90)), np.ones((2, 16, 90), np.uint8), np.zeros((2, 16, 90), np.uint8))], OVERLAPPING),
    ],
)
def test_overlays_are_drawn_without_clipped_text(tmp_path, monkeypatch, cases, labels):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    rows = [(f"worst: {'$patient-' * 12}{number}, Dice 0.500", *case) for number, case in enumerate(cases)]
    overlay_figure(rows, labels, tmp_path / "new" / "overlays.png", "the split and the run")
    (figure,) = figures
    width, height = figure.bbox.size
    texts = visible_texts(figure)
    for name in (*(labels.channel_names[channel] for channel in labels.foreground), "missed", "prediction"):
        assert any(name in text.get_text() for text in texts)
    for text in texts:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    with Image.open(tmp_path / "new" / "overlays.png") as picture:
        assert np.ptp(np.asarray(picture.convert("RGB"))[..., 0]) > 100


def visible_texts(figure):
    texts = [*figure.texts, *(axis.title for axis in figure.axes)]
    return texts + [text for legend in figure.legends for text in legend.get_texts()]


def test_caption_of_a_volume_names_the_slice():
    view = overlays._view(("worst: x", *volume()), THREE)
    assert view.caption == "worst: x, slice 8 of 12"
    assert view.reference[0].sum() == 150


def test_overlays_need_a_case(tmp_path):
    with pytest.raises(ValueError, match="at least one case"):
        overlay_figure([], THREE, tmp_path / "x.png")


def printed(print_function, *args):
    console = Console(file=io.StringIO(), width=160)
    print_function(*args, console)
    return console.file.getvalue()


def scores(cases, missing=False):
    counts = np.random.default_rng(0).integers(1, 9, size=(cases, 3, 3))
    counts[..., 0], counts[..., 1:] = counts.min(-1), counts[..., 1:] + 8
    if missing:
        counts[:, 2] = 0
    names = [f"c{number}" for number in range(cases)]
    summary = summarise(cases_table(names, names, counts, THREE), THREE)
    return {"split": "test", "checkpoint": "last.pt", "selected_on": None, "threshold": None, "cases": cases, **summary}


def test_scores_are_printed_with_their_rules():
    result = scores(12)
    text = printed(print_scores, result)
    for name in THREE.names:
        (line,) = [line for line in text.splitlines() if f" {name} " in line and "│" in line]
        low, high = result["classes"][name]["dice"]["ci95"]
        assert f"{result['classes'][name]['dice']['mean']:.4f}" in line
        assert f"{result['classes'][name]['iou']['mean']:.4f}" in line
        assert f"{low:.3f} to {high:.3f}" in line
    assert f"{result['mean']['dice']:.4f}" in text
    assert "12 cases of test" in text
    assert "checkpoint: last.pt, not selected by a score" in text
    assert "rules segkit: " in text
    assert "no interval" not in text


def test_missing_scores_are_printed_with_their_reasons():
    text = printed(print_scores, scores(9, missing=True) | {"selected_on": "validation"})
    assert "selected on validation" in text
    assert "no interval: 0 groups" not in text
    assert "no interval: 9 groups of cases, fewer than 10" in text
    assert "excluded from the mean of Dice, because no case is counted for them: b" in text
    assert "nan" not in text.lower()


def comparison(runs, shift=0.1):
    generator = np.random.default_rng(0)
    rows = []
    for loss, add in (("dice", shift), ("focal [x]", 0.0)):
        for seed in range(runs):
            values = 0.5 + add + generator.normal(0, 0.01, 60)
            rows += [(loss, seed, 0, f"c{n}", f"c{n}", "organ", value) for n, value in enumerate(values)]
    return analyse(pd.DataFrame(rows, columns=["loss", "seed", "fold", "case", "group", "class", "dice"]))


def test_comparisons_are_printed_with_verdicts():
    result = comparison(8)
    text = printed(print_comparison, result)
    (pair,) = result["pairs"]
    (line,) = [line for line in text.splitlines() if "better" in line and "│" in line]
    assert line.index("dice") < line.index("better") < line.index("focal [x]")
    assert f"{pair['difference']:+.4f}" in line
    low, high = pair["ci95_adjusted"]
    assert f"{low:+.3f} to {high:+.3f}" in line
    assert "<0.001" in line
    assert "±0.005" in text
    assert "apply to the losses, for new runs and new cases" in text
    assert "warning" not in text
    assert text.index(f"{result['losses'][0]['mean']:.4f}") < text.index(f"{result['losses'][1]['mean']:.4f}")


def test_single_runs_are_called_checkpoints():
    text = printed(print_comparison, comparison(1))
    assert "differences between checkpoints" in text
    assert "better" not in "".join(line for line in text.splitlines() if "│" in line)
    assert "only one run of dice and focal [x]" in text
    assert "warning: fewer than 3 runs (dice 1, focal [x] 1)" in text


# --- sizes that a stranger's data may have ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (2, 2), (1, 40, 3), (3000, 2)])
def test_images_of_any_shape_are_drawn(tmp_path, size):
    mask = np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
    overlay_figure([("x", mask[None].astype(float), mask, mask)], THREE, tmp_path / "overlays.png")
    contact_sheet(
        [("x", [(mask[None].astype(float), mask)] * 2)],
        THREE,
        tmp_path / "sheet.png",
        "",
        histograms=[([mask], [mask])],
    )
    for name in ("overlays.png", "sheet.png"):
        with Image.open(tmp_path / name) as picture:
            assert max(picture.size) <= 1600


def test_an_overlay_does_not_depend_on_where_variables_are_in_memory():
    """Matplotlib's own layouts do: their solver orders variables by address, which changes the last bits."""
    generator = random.Random(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16], mask[16:, 16:] = 1, 2
    rows = [(f"case {n}", np.arange(1024.0).reshape(1, 32, 32), mask, np.roll(mask, n, 1)) for n in range(3)]
    pictures = set()
    for _ in range(3):
        scattered = [[kiwisolver.Variable(str(n)), bytearray(generator.randrange(16, 300))] for n in range(2000)]
        generator.shuffle(scattered)
        del scattered[::2]
        pictures.add(overlays.overlay_picture(rows, THREE).tobytes())
    assert len(pictures) == 1


def test_pictures_of_many_classes_stay_small(tmp_path):
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 2**40, (60, 60))
    matrix[7, 9] = 2**50
    names = [f"class {number} " + "with a long name " * 10 for number in range(60)]
    confusion_figure(matrix, names, tmp_path / "confusion.png")
    assert most_confused(matrix, 2) == [7, 9]
    rows = {name: {"confidence": [0.5], "accuracy": [0.5], "pixels": [n]} for n, name in enumerate(names)}
    reliability_figure({"reliability": {"all": rows}}, tmp_path / "reliability.png")
    labels = Labels(["background", *names], ignore_index=255)
    mask = generator.integers(0, 61, (20, 30)).astype(np.uint8)
    overlay_figure([("x", mask[None].astype(float), mask, mask)], labels, tmp_path / "overlays.png")
    for name in ("confusion.png", "reliability.png", "overlays.png"):
        with Image.open(tmp_path / name) as picture:
            assert max(picture.size) < 2000


def test_of_very_many_classes_the_lowest_are_printed(monkeypatch):
    monkeypatch.setattr("segkit.report.console.MAX_ROWS", 2)
    result = scores(12)
    lowest = sorted(THREE.names, key=lambda name: result["classes"][name]["dice"]["mean"])[:2]
    text = printed(print_scores, result)
    assert [name for name in THREE.names if f"│ {name} " in text] == [name for name in THREE.names if name in lowest]
    assert "the 2 of 3 classes with the lowest Dice; all are in scores.json" in text


def test_of_many_losses_pairs_and_classes_the_most_telling_are_drawn_and_printed():
    values = {f"{'very ' * 30}long {loss}\x1b[31m": np.full((2, 3, 40), 1 / (loss + 2)) for loss in range(40)}
    for array in values.values():
        array[0] += 0.01
        array[:, :, 7] = 0.5
    table = long_table(values, classes=[f"class{number}" for number in range(40)])
    all_scores = read_scores(table, "dice")
    result = best_first(analyse_scores(all_scores, resamples=20))
    text = printed(print_comparison, result)
    assert "200 of 780 pairs; all are in comparison.json" in text
    assert "\x1b[31m" not in text
    drawn = drawn_part(result)
    assert [loss["name"] for loss in drawn["losses"]] == list(values)[:30]
    assert len(drawn["pairs"]) == 60
    assert 7 not in drawn_classes(class_scores(all_scores))  # equal for all losses
    assert "the best 30 of 40 losses" in limits_caption(result, all_scores)
    for draw in (forest_figure, runs_figure, ranks_figure, aggregations_figure, critical_difference_figure):
        figure = draw(drawn)
        assert figure.bbox.size.max() < 4000
        assert sum(len(axis.texts) for axis in figure.axes) <= 600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[x](http://e.org)", r"\[x\](http\://e.org)"),
        ("https://e.org", r"https\://e.org"),
        ("www.e.org", r"www\.e.org"),
        ("![x](y)", r"\!\[x\](y)"),
        ("<img src=x>", r"\<img src=x\>"),
        ("&lt;b", r"\&lt;b"),
        ("- x", r"\- x"),
        ("1. x", r"1\. x"),
        ("# x", r"\# x"),
        ("a|b", r"a\|b"),
        ("a\nb\x1b", r"a b\\x1b"),
        ("p: 0.05, a & b", "p: 0.05, a & b"),
        (1.5, "1.5"),
    ],
)
def test_markup_is_escaped(text, expected):
    assert markdown_cell(text) == expected
