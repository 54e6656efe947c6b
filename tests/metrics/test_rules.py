"""Presets against the libraries that they reproduce, on random masks with classes removed; descriptions of rules."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch.metrics as smp
import torch
from monai.metrics.generalized_dice import compute_generalized_dice
from monai.metrics.hausdorff_distance import HausdorffDistanceMetric
from monai.metrics.meandice import DiceMetric
from monai.metrics.meaniou import MeanIoU as MonaiIoU
from monai.metrics.surface_dice import SurfaceDiceMetric
from torchmetrics.segmentation import DiceScore, MeanIoU

from segkit import Labels
from segkit.evaluation.scorer import Scorer
from segkit.evaluation.scoring import Scoring
from segkit.metrics.case_table import METRICS, add_scores, cases_table
from segkit.metrics.components import COMPONENT_METRICS
from segkit.metrics.counts import pixel_counts
from segkit.metrics.measured import MEASURED_METRICS
from segkit.metrics.rules import AGGREGATIONS, EMPTY, PER_CASE_METRICS, PRESETS, EmptyClassRule, Rules, rules_by_name
from segkit.metrics.summary import summarise
from segkit.metrics.topology import BETTI_METRICS

NAMES = ["background", "a", "b", "c"]
LABELS = Labels(NAMES, ignore_index=255)
TRIALS = range(12)


def random_masks(seed, images=6, side=7):
    """Prediction and reference [B, H, W] in which classes are missing, missed and spurious."""
    generator = np.random.default_rng(seed)
    masks = []
    for _ in range(images):
        for _which in range(2):
            present = np.flatnonzero(generator.uniform(size=4) < 0.6)
            masks.append(generator.choice(present if len(present) else [0], size=(side, side)))
    stacked = torch.from_numpy(np.stack(masks)).to(torch.uint8)
    return stacked[::2], stacked[1::2]


def table_of(prediction, reference, rules, metrics=("dice", "iou"), labels=LABELS):
    names = [f"case{number}" for number in range(len(prediction))]
    found = pixel_counts(prediction, reference, labels)
    columns = {"pixels": found.valid.numpy(), "ignored": found.ignored.numpy()}
    return cases_table(names, names, found.counts.numpy(), labels, columns=columns, metrics=metrics, rules=rules)


def means_of(prediction, reference, preset):
    rules = rules_by_name(preset)
    return summarise(table_of(prediction, reference, rules), LABELS, rules, intervals=False)["mean"]


def one_hot(masks):
    return torch.nn.functional.one_hot(masks.long(), len(NAMES)).movedim(-1, 1)


@pytest.mark.parametrize("seed", TRIALS)
def test_monai(seed):
    prediction, reference = random_masks(seed)
    ours = means_of(prediction, reference, "monai")
    for name, metric in (("dice", DiceMetric()), ("iou", MonaiIoU())):
        metric(one_hot(prediction), one_hot(reference))
        assert ours[name] == pytest.approx(metric.aggregate().item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:the .* of class")  # MONAI's own, of empty classes
@pytest.mark.parametrize("seed", TRIALS)
def test_monai_surfaces(seed):
    """With the defaults of MONAI: no mean includes the background, and HD95 of a missed structure is not counted."""
    prediction, reference = random_masks(seed, images=3, side=9)
    scoring = Scoring(("hd95", "nsd"), replace(PRESETS["monai"], tolerance_mm=1.0))
    scorer = Scorer(3, LABELS, scoring, torch.device("cpu"))
    for number in range(3):
        one = slice(number, number + 1)
        scorer.add(f"case{number}", "x", prediction[one], reference[one], (1.0, 1.0))
    found = summarise(scorer.result().cases, LABELS, scoring.rules, metrics=scoring.metrics, intervals=False)["mean"]
    for name, metric in (
        ("hd95", HausdorffDistanceMetric(percentile=95)),
        ("nsd", SurfaceDiceMetric(class_thresholds=[1.0] * 3)),
    ):
        metric(one_hot(prediction), one_hot(reference))
        assert found[name] == pytest.approx(metric.aggregate().item(), abs=1e-6)


@pytest.mark.parametrize("seed", TRIALS)
def test_torchmetrics(seed):
    prediction, reference = random_masks(seed)
    ours = means_of(prediction, reference, "torchmetrics")
    for name, metric in (
        ("dice", DiceScore(num_classes=4, input_format="index", average="macro")),
        ("iou", MeanIoU(num_classes=4, input_format="index")),
    ):
        metric.update(prediction.long(), reference.long())
        assert ours[name] == pytest.approx(metric.compute().item(), abs=1e-6)


@pytest.mark.parametrize("seed", TRIALS)
def test_smp(seed):
    prediction, reference = random_masks(seed)
    ours = means_of(prediction, reference, "smp")
    counted = smp.get_stats(prediction.long(), reference.long(), mode="multiclass", num_classes=4)
    assert ours["iou"] == pytest.approx(smp.iou_score(*counted, reduction="macro").item(), abs=1e-6)
    assert ours["dice"] == pytest.approx(smp.f1_score(*counted, reduction="macro").item(), abs=1e-6)


def planes_by_hand(masks):
    return [[mask == number for number in range(4)] for mask in masks.numpy()]


@pytest.mark.parametrize("seed", TRIALS)
def test_mmseg_sums_areas_over_the_dataset(seed):
    """IoUMetric: areas of intersection, prediction and label summed over images, nanmean over classes."""
    prediction, reference = random_masks(seed)
    both, predicted, label = np.zeros(4), np.zeros(4), np.zeros(4)
    for guessed, known in zip(planes_by_hand(prediction), planes_by_hand(reference), strict=True):
        for number in range(4):
            both[number] += (guessed[number] & known[number]).sum()
            predicted[number] += guessed[number].sum()
            label[number] += known[number].sum()
    with np.errstate(invalid="ignore"):
        expected = {"iou": both / (predicted + label - both), "dice": 2 * both / (predicted + label)}
    ours = means_of(prediction, reference, "mmseg")
    assert ours == pytest.approx({name: np.nanmean(values) for name, values in expected.items()})


@pytest.mark.parametrize("seed", TRIALS)
def test_nnunet_averages_over_cases_and_then_over_labels(seed):
    """compute_metrics_on_folder: NaN if TP + FP + FN = 0, nanmean over cases per label, np.mean over labels but 0."""
    prediction, reference = random_masks(seed, images=2)
    values = np.full((2, 4), np.nan)
    for case, (guessed, known) in enumerate(zip(planes_by_hand(prediction), planes_by_hand(reference), strict=True)):
        for number in range(4):
            tp = (guessed[number] & known[number]).sum()
            fp, fn = (guessed[number] & ~known[number]).sum(), (~guessed[number] & known[number]).sum()
            if tp + fp + fn:
                values[case, number] = 2 * tp / (2 * tp + fp + fn)
    counted = [column[~np.isnan(column)] for column in values.T[1:]]
    expected = np.mean([column.mean() if len(column) else math.nan for column in counted])
    ours = means_of(prediction, reference, "nnunet")["dice"]
    assert ours == (None if math.isnan(expected) else pytest.approx(expected))


def test_metrics_reloaded_and_brats_of_empty_classes():
    """The first case has a missed, the second one a spurious class; in the third one it is in neither."""
    prediction, reference = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    reference[0, 2:10, 2:10], prediction[1, 2:10, 2:10] = 1, 1  # above the 50 mm³ of BraTS
    metrics = ["dice", "iou", "boundary_iou", "nsd", "hd95", "mcc", "recall", "precision", "accuracy", "lesion_hd95"]
    diagonal, right = math.hypot(12, 12), 80 / 144
    expected = {  # missed, spurious, neither: as printed by BinaryPairwiseMeasures and by the code of BraTS 2023
        "metrics_reloaded": {
            **{name: [0, 0, 1] for name in ("dice", "boundary_iou", "nsd")},
            **{name: [0, 0, math.nan] for name in ("iou", "precision")},
            "hd95": [diagonal, diagonal, 0],  # NaN there, to be replaced by the worst value
            "mcc": [math.nan] * 3,
            "recall": [0, math.nan, math.nan],
            "accuracy": [right, right, 1],
        },
        "brats2023": {"dice": [0, 0, 1], "hd95": [374, 374, 0], "lesion_hd95": [374, 374, 0]},
    }
    for name, rows in expected.items():
        scorer = Scorer(3, LABELS, Scoring(tuple(metrics), PRESETS[name]), torch.device("cpu"))
        for case in range(3):
            scorer.add(str(case), str(case), prediction[case : case + 1], reference[case : case + 1], (1.0, 1.0))
        table = scorer.result().cases
        of_class = table[table["class"] == "a"]
        for metric, values in rows.items():
            assert of_class[metric].tolist() == pytest.approx(values, nan_ok=True), (name, metric)


def test_the_random_masks_contain_what_the_rules_differ_in():
    """Classes absent from whole datasets, and missed and spurious ones: without them, all rules would agree."""
    tables = [table_of(*random_masks(seed, images=2), PRESETS["segkit"]) for seed in TRIALS]
    every = pd.concat(tables)
    assert ((every["predicted"] > 0) & (every["reference"] == 0)).any()
    assert ((every["predicted"] == 0) & (every["reference"] > 0)).any()
    assert any((table.groupby("class")[["predicted", "reference"]].sum() == 0).all(axis=1).any() for table in tables)
    means = [{name: means_of(*random_masks(seed, images=2), name) for name in PRESETS} for seed in TRIALS]
    for first, second in itertools.combinations(PRESETS, 2):
        if {first, second} == {"metrics_reloaded", "brats2023"}:
            continue  # they differ in distances and lesions
        metric = "dice" if {first, second} & {"metrics_reloaded", "brats2023"} else "iou"
        different = [mean[first][metric] != pytest.approx(mean[second][metric], abs=1e-6) for mean in means]
        assert any(different), (first, second)


GOLDEN = {
    "pairs": 0.6333,
    "case_class": 0.6250,
    "class_case": 0.6111,
    "micro": 0.6000,
    "global": 0.5889,
}


@pytest.mark.parametrize(("way", "expected"), GOLDEN.items())
def test_one_prediction_has_five_mean_ious(way, expected):
    """Eight pixels; the values are those of torchmetrics, MONAI (two reductions), smp micro and mmseg."""
    labels = Labels(["first", "a", "b"])
    reference = torch.tensor([[[0, 0], [1, 1]], [[0, 2], [2, 1]]])
    prediction = torch.tensor([[[0, 1], [1, 1]], [[0, 2], [1, 1]]])
    rules = Rules(aggregation={"iou": way}, background=("iou",))
    table = table_of(prediction, reference, rules, labels=labels)
    assert summarise(table, labels, rules, intervals=False)["mean"]["iou"] == pytest.approx(expected, abs=5e-5)
    assert set(GOLDEN) == set(AGGREGATIONS)


@pytest.mark.parametrize("seed", TRIALS)
def test_generalized_dice_equals_monai(seed):
    prediction, reference = random_masks(seed)
    rules = PRESETS["segkit"]
    table = table_of(prediction, reference, rules, ("dice", "iou", "generalized_dice"))
    summary = summarise(table, LABELS, rules, metrics=("dice", "generalized_dice"))
    ours = summary["of_cases"]["generalized_dice"]
    assert list(summary["classes"]["background"]) == ["dice"]
    assert summary["metrics"] == {"dice": "dice/class_case", "generalized_dice": "generalized_dice/case"}
    # MONAI counts a case with no foreground in prediction and reference as 1
    planes = one_hot(prediction), one_hot(reference)
    theirs = compute_generalized_dice(*planes, include_background=False, sum_over_classes=True).flatten()
    empty = ((prediction == 0) & (reference == 0)).flatten(1).all(1)
    assert ours["mean"] == pytest.approx(theirs[~empty].mean().item(), abs=1e-6)
    assert ours["cases"] == int((~empty).sum())
    assert ours["median"] == pytest.approx(theirs[~empty].double().quantile(0.5).item(), abs=1e-6)
    by_case = table.drop_duplicates("case")["generalized_dice"].to_numpy()
    assert by_case[~empty.numpy()] == pytest.approx(theirs[~empty].tolist(), abs=1e-6)
    assert np.isnan(by_case[empty.numpy()]).all()


@pytest.mark.parametrize("seed", TRIALS)
def test_generalized_dice_by_the_rules_of_monai(seed):
    prediction, reference = random_masks(seed)
    rules = PRESETS["monai"]
    table = table_of(prediction, reference, rules, ("generalized_dice",))
    score = summarise(table, LABELS, rules, metrics=["generalized_dice"], intervals=False)["of_cases"]
    theirs = compute_generalized_dice(one_hot(prediction), one_hot(reference), sum_over_classes=True).flatten()
    assert score["generalized_dice"]["mean"] == pytest.approx(theirs.mean().item(), abs=1e-6)
    assert score["generalized_dice"]["classes"] == list(LABELS.channel_names)


@pytest.mark.parametrize("preset", ["segkit", "monai", "torchmetrics", "mmseg"])
def test_the_interval_of_a_mean_over_classes_is_close_to_resampled_tables(preset):
    """Compared with percentiles of the means of explicitly resampled tables."""
    rng, rules, names = np.random.default_rng(3), PRESETS[preset], [f"case{number:02d}" for number in range(60)]
    tp = rng.integers(0, 50, (60, 4))
    counts = np.stack([tp, tp + rng.integers(0, 30, (60, 4)), tp + rng.integers(0, 30, (60, 4))], -1)
    counts[rng.uniform(size=(60, 4)) < 0.2] = 0
    summary = summarise(cases_table(names, names, counts, LABELS, rules=rules), LABELS, rules)
    means = []
    for _resample in range(200):
        again = cases_table(names, names, counts[rng.integers(0, 60, 60)], LABELS, rules=rules)
        means.append(summarise(again, LABELS, rules, intervals=False)["mean"]["dice"])
    low, high = summary["mean_intervals"]["dice"]["ci95"]
    width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert low < summary["mean"]["dice"] < high
    # 200 resamples tell a bound to some tenths of the width
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.25 * width)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.25 * width)


def test_pixels_of_excluded_classes_are_not_ignored():
    """Class 1 covers half an image and is also predicted elsewhere: excluding class 0 keeps its IoU of 1/3."""
    labels = Labels(["road", "sky"])
    reference, prediction = torch.zeros(1, 10, 20, dtype=torch.uint8), torch.zeros(1, 10, 20, dtype=torch.uint8)
    reference[..., 10:] = 1
    prediction[..., :5] = 1
    prediction[..., 15:] = 1
    rules = Rules(exclude_classes=("road",))
    summary = summarise(table_of(prediction, reference, rules, labels=labels), labels, rules, intervals=False)
    assert list(summary["classes"]) == ["sky"]
    assert summary["mean"]["iou"] == pytest.approx(1 / 3)
    assert list(summary["global"]["classes"]) == ["sky"]


FORMULA = (*COMPONENT_METRICS, *BETTI_METRICS)  # whose spurious and missed classes have the value of the formula
ROWS = [("neither", 0, 0), ("spurious", 5, 0), ("missed", 0, 5)]


@pytest.mark.parametrize(("cell", "predicted", "reference"), ROWS)
@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric not in PER_CASE_METRICS])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_empty_class_rule_of_every_preset(preset, metric, cell, predicted, reference):
    rules = PRESETS[preset]
    row = {"tp": 0, "predicted": predicted, "reference": reference, "pixels": 20, "diagonal_mm": 7.5}
    row |= {f"boundary_{name}": row[name] for name in ("tp", "predicted", "reference")}
    row |= dict.fromkeys(MEASURED_METRICS, 0.0) | dict.fromkeys(("hd", "hd95", "assd"), math.inf)
    row |= dict.fromkeys(FORMULA, 3.5)
    value = add_scores(pd.DataFrame([row]), [metric], rules)[metric].item()
    table = rules.empty.get(metric)
    if table is None:
        expected = {"specificity": (1.0, 0.75, 1.0), "accuracy": (1.0, 0.75, 0.75)}[metric]
        assert value == expected[["neither", "spurious", "missed"].index(cell)]
    else:
        numbers = {"worst": 7.5, None: math.nan, "formula": 0.0 if metric == "dice" else 3.5}
        expected = numbers.get(getattr(table, cell), getattr(table, cell))
        assert value == pytest.approx(expected, nan_ok=True)


def test_a_missed_class_always_counts():
    """By the rules of segkit it gets the worst score; some presets of other tools do not count it."""
    for metric, table in EMPTY.items():
        assert table.missed is not None, metric
    assert PRESETS["monai"].empty["hd95"] == EmptyClassRule(None, None, None)


def test_the_description_of_rules_names_the_differences():
    words = " ".join(PRESETS["monai"].describe(["dice", "hd95"]))
    assert "mean over classes for each case, then over cases" in words
    assert "all classes" in words
    assert "a spurious class is not counted, a missed class counts as 0" in words
    ours = " ".join(Rules(exclude_classes=("a",)).describe(["hd95", "specificity"]))
    assert "a missed class counts as the image diagonal" in ours
    assert "foreground classes without a" in ours
    assert "the value of the formula" in ours
    assert PRESETS["torchmetrics"].full_name("iou") == "iou/pairs"


def test_changed_rules_have_another_id():
    assert PRESETS["monai"].id == "monai"
    changed = replace(PRESETS["monai"], tolerance_mm=2.0)
    assert changed.id.startswith("monai+")
    assert changed.id == replace(PRESETS["monai"], tolerance_mm=2.0).id != replace(changed, tolerance_mm=3.0).id
    assert changed.to_dict()["id"] == changed.id


def test_classes_left_out_are_listed_for_each_metric():
    """A class that is always spurious counts as 0 for Dice, and is not counted for recall."""
    counts = np.zeros((2, 4, 3), np.int64)
    counts[:, 0] = 9
    counts[:, 1] = [0, 4, 0]
    counts[:, 2] = [3, 4, 5]
    metrics = ("dice", "iou", "recall")
    table = cases_table(["x", "y"], ["x", "y"], counts, LABELS, metrics=metrics)
    summary = summarise(table, LABELS, metrics=metrics, intervals=False)
    assert summary["mean_left_out"] == {"dice": ["c"], "iou": ["c"], "recall": ["a", "c"]}
    assert "absent" in summary["classes"]["c"]["recall"]["mean_reason"]
    assert "spurious" in summary["classes"]["a"]["recall"]["mean_reason"]
    assert summary["mean"]["dice"] == pytest.approx((0 + 2 / 3) / 2)
    assert summary["mean"]["recall"] == pytest.approx(3 / 5)


def test_errors_for_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"segkit, nnunet, monai.*got 'nnunett'"):
        rules_by_name("nnunett")
    with pytest.raises(ValueError, match=r"metrics among dice, iou.*got dize; did you mean dice"):
        add_scores(pd.DataFrame({"tp": []}), ["dize"], Rules())
    with pytest.raises(ValueError, match=r"hd95 .*no hd95, diagonal_mm"):
        add_scores(pd.DataFrame({"tp": [1], "predicted": [1], "reference": [1]}), ["hd95"], Rules())


def test_generalized_dice_has_an_interval_by_groups():
    prediction, reference = random_masks(1)
    rules = PRESETS["segkit"]
    names = [f"case{number}" for number in range(len(prediction))]
    times = 60 // len(names) + 1
    counts = np.tile(pixel_counts(prediction, reference, LABELS).counts.numpy(), (times, 1, 1))
    cases = [f"{name}_{time}" for time in range(times) for name in names]
    table = cases_table(cases, cases, counts, LABELS, metrics=["generalized_dice"], rules=rules)
    score = summarise(table, LABELS, rules, metrics=["generalized_dice"])["of_cases"]["generalized_dice"]
    assert score["ci95"][0] < score["mean"] < score["ci95"][1]
    assert score["median_ci95"][0] <= score["median"] <= score["median_ci95"][1]
    nothing = cases_table(["x"], ["x"], np.zeros((1, 4, 3), np.int64), LABELS, metrics=["generalized_dice"])
    empty = summarise(nothing, LABELS, rules, metrics=["generalized_dice"])["of_cases"]["generalized_dice"]
    assert (empty["mean"], empty["cases"]) == (None, 0)
    assert "no case has" in empty["mean_reason"]


def test_mean_counts_state_what_a_mean_is_based_on():
    """In one case a class is missed, in the other one a class is spurious; a third class is absent from both."""
    counts = np.zeros((2, 4, 3), np.int64)
    counts[:, 0] = 50
    counts[0, 1], counts[1, 1] = (5, 5, 5), (0, 0, 5)
    counts[1, 2] = 0, 5, 0
    summary = summarise(cases_table(["x", "y"], ["x", "y"], counts, LABELS), LABELS, intervals=False)
    assert summary["mean_counts"]["dice"] == {"classes": 2, "pairs": 3, "missed": 1, "spurious": 1}
    pooled = summary["global"]["classes"]
    by_name = {
        name: [pooled[name][key] for key in ("cases", "missed", "spurious")] for name in LABELS.channel_names[1:]
    }
    assert list(by_name.values()) == [[2, 1, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("way", ["global", "micro", "mean"])
def test_unsupported_aggregations_raise(way):
    with pytest.raises(ValueError, match=r"hd95"):
        Rules(aggregation={"hd95": way})


@pytest.mark.parametrize(
    ("dtype", "classes", "ignored"), [(torch.int8, 127, -1), (torch.int8, 128, -1), (torch.int16, 300, -7)]
)
def test_narrow_and_signed_masks(dtype, classes, ignored):
    labels = Labels([f"c{number}" for number in range(classes)], ignore_index=ignored)
    reference = torch.arange(classes).repeat(3)[None, None]
    prediction = reference.roll(1, -1).to(dtype)
    reference = torch.where(torch.arange(3 * classes) % 7 == 0, ignored, reference).to(dtype)
    found = pixel_counts(prediction, reference, labels)
    wide = pixel_counts(prediction.long(), reference.long(), labels)
    assert all(torch.equal(getattr(found, name), getattr(wide, name)) for name in ("counts", "ignored", "invalid"))
    assert int(found.invalid.sum()) == 0
    assert int(found.ignored[0, 0]) == len(range(0, 3 * classes, 7))
