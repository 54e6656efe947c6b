"""Scoring predictions: folders of masks from any tool, surface metrics, calibration, several processes."""

import io
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from segkit import Labels
from segkit.cli import app, main
from segkit.data.mask_encoding import MaskEncoding
from segkit.evaluation.mask_folders import score_folder
from segkit.evaluation.results import Origin, scores_json, scores_match
from segkit.evaluation.scorer import Scorer, class_masks
from segkit.evaluation.scoring import Scoring, build_scoring
from segkit.metrics import count
from segkit.metrics.components import component_scores
from segkit.metrics.rules import PRESETS, Rules
from segkit.metrics.size_strata import SizeStrata
from segkit.metrics.surface import image_diagonal, surface_scores
from segkit.metrics.topology import betti_errors
from segkit.report.console import print_scores
from segkit.utils.errors import DataError, RunError

from support.processes import run_ranks
from support.synchronisation import NoWaiting

LABELS = Labels(["background", "a", "b"], ignore_index=255)
OVERLAPPING = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary", ignore_index=255)
CPU = torch.device("cpu")
MEASURED = ("hd", "hd95", "assd", "nsd", "hd90_from_reference", "betti_error", "lesion_f1", "lesion_hd95", "pq")
EVERYTHING = Scoring(
    ("dice", "iou", "specificity", "mcc", "accuracy", "boundary_iou", *MEASURED, "generalized_dice"),
    calibration=True,
    size_strata=SizeStrata(2),
)


def masks(seed, count=4, shape=(12, 14), void=0.1):
    generator = np.random.default_rng(seed)
    prediction, reference = (generator.integers(0, 3, (count, *shape)).astype(np.uint8) for _ in range(2))
    reference[generator.uniform(size=reference.shape) < void] = 255
    return prediction, reference


def sure_of(prediction):
    """Probabilities [1, 3, *S] that are largest for the predicted class."""
    logits = 3 * torch.nn.functional.one_hot(prediction.long().clamp(max=2), 3).movedim(-1, 1).float()
    return logits.softmax(1)


def scorer_of(prediction, reference, scoring=EVERYTHING, spacing=(2.0, 0.5)):
    scorer = Scorer(len(prediction), LABELS, scoring, CPU)
    for number, (guessed, known) in enumerate(zip(prediction, reference, strict=True)):
        guessed, known = torch.as_tensor(guessed)[None], torch.as_tensor(known)[None]
        scorer.add(f"case{number}", f"group{number % 2}", guessed, known, spacing, sure_of(guessed))
    return scorer


def test_the_table_agrees_with_each_measure_alone():
    prediction, reference = masks(0)
    scored = scorer_of(prediction, reference).result()
    for number, (guessed, known) in enumerate(zip(prediction, reference, strict=True)):
        counts = count(torch.as_tensor(guessed)[None], torch.as_tensor(known)[None], LABELS)[0]
        rows = scored.cases[scored.cases["case"] == f"case{number}"]
        assert rows[["tp", "predicted", "reference"]].to_numpy().tolist() == counts.tolist()
        assert rows["ignored"].tolist() == [(known == 255).sum()] * 3
        assert rows["pixels"].tolist() == [(known != 255).sum()] * 3
        for channel, row in enumerate(rows.to_dict("records")):
            planes = [(mask == channel) & (known != 255) for mask in (guessed, known)]
            expected = surface_scores(*planes, (2.0, 0.5), ["hd", "hd95", "assd", "nsd", "hd90_from_reference"])
            expected |= {"betti_error": betti_errors(*planes)["betti_error"]}
            expected |= component_scores(*planes, (2.0, 0.5), ["lesion_f1", "lesion_hd95", "pq"])
            assert {name: row[name] for name in expected} == pytest.approx(expected)
            assert row["diagonal_mm"] == image_diagonal((12, 14), (2.0, 0.5))
            assert row["reference_mm2"] == planes[1].sum() * 2.0 * 0.5
    valid = reference != 255
    pairs = list(zip(reference[valid], prediction[valid], strict=True))
    expected = [[pairs.count((row, column)) for column in range(3)] for row in range(3)]
    assert scored.matrix is not None
    assert scored.matrix.tolist() == expected


def test_a_missed_structure_stays_in_the_mean_of_distances():
    reference = np.zeros((2, 9, 9), np.uint8)
    reference[:, 2:5, 2:5] = 1
    prediction = reference.copy()
    prediction[1] = 0
    scored = scorer_of(prediction, reference, scoring=Scoring(("hd95", "assd", "nsd")), spacing=(1.0, 1.0)).result()
    rows = scored.cases[scored.cases["class"] == "a"]
    assert rows["hd95"].tolist() == pytest.approx([0, np.hypot(9, 9)])
    assert rows["assd"].tolist() == pytest.approx([0, np.hypot(9, 9)])
    assert rows["nsd"].tolist() == [1, 0]
    assert scored.cases[scored.cases["class"] == "b"]["hd95"].isna().all()


@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING, BINARY])
def test_class_masks_agree_with_the_counts(labels):
    generator = np.random.default_rng(0)
    shape = (2, 6, 7) if labels.mode == "multilabel" else (6, 7)
    top = 3 if labels.mode == "multiclass" else 2
    prediction, reference = (torch.from_numpy(generator.integers(0, top, shape).astype(np.uint8)) for _ in range(2))
    reference[..., 0, :] = 255
    planes = list(class_masks(prediction[None], reference[None], labels))
    counts = count(prediction[None], reference[None], labels)[0]
    assert len(planes) == labels.channels
    for (predicted, known), (tp, predicted_pixels, reference_pixels) in zip(planes, counts.tolist(), strict=True):
        assert predicted.dtype == known.dtype == bool
        assert ((predicted & known).sum(), predicted.sum(), known.sum()) == (tp, predicted_pixels, reference_pixels)


def test_counting_a_case_does_not_synchronise():
    prediction, reference = masks(1, count=1)
    scorer = Scorer(1, LABELS, Scoring(("dice", "boundary_iou"), calibration=True), CPU)
    probabilities = torch.rand(1, 3, 12, 14).softmax(1)
    with NoWaiting():
        scorer.add("x", "x", torch.as_tensor(prediction), torch.as_tensor(reference), (1.0, 1.0), probabilities)


def test_invalid_values_name_the_case():
    prediction, reference = masks(2)
    prediction[1, 3, 3] = 7
    reference[1, 3, 3] = 0
    with pytest.raises(DataError, match=r"case case1: expected the values 0 to 2, got .*1 pixels of the pred"):
        scorer_of(prediction, reference, scoring=Scoring()).result()


def save(folder, name, mask, spacing=None):
    folder.mkdir(exist_ok=True, parents=True)
    if spacing is None:
        Image.fromarray(mask).save(folder / f"{name}.png")
    else:
        nib.save(nib.Nifti1Image(mask, np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")


@pytest.fixture
def folders(tmp_path):
    prediction, reference = masks(3)
    for number in range(4):
        save(tmp_path / "predictions", f"p{number}_{number % 2}", prediction[number])
        save(tmp_path / "references", f"p{number}_{number % 2}", reference[number])
    return tmp_path / "predictions", tmp_path / "references"


def test_a_folder_of_predictions(folders, tmp_path):
    """The scores equal those of the masks, and the command writes all files of an evaluation."""
    prediction, reference = masks(3)
    alone = scorer_of(prediction, reference, scoring=Scoring(("dice", "hd95")), spacing=(1.0, 1.0)).result()
    arguments = ["--classes", "background,a,b", "--ignore", "255", "--metrics", "dice,hd95", "--group", r"_(\d)"]
    out = tmp_path / "out"
    command = ["evaluate", "--predictions", str(folders[0]), "--references", str(folders[1]), "--out", str(out)]
    printed = CliRunner().invoke(app, [*command, *arguments])
    assert printed.exit_code == 0, printed.output
    cases = pd.read_csv(out / "cases.csv")
    assert cases["dice"].tolist() == pytest.approx(alone.cases["dice"].tolist(), nan_ok=True)
    assert cases["hd95"].tolist() == pytest.approx(alone.cases["hd95"].tolist(), nan_ok=True)
    assert set(cases["group"].astype(str)) == {"0", "1"}
    scores_json = json.loads((out / "scores.json").read_text())
    assert (scores_json["checkpoint"], scores_json["selected_on"], scores_json["cases"]) == (None, None, 4)
    assert scores_json["ignored_pixels"] == (reference == 255).sum()
    written = {"cases.csv", "scores.json", "confusion.csv", "confusion.png", "overlays.png", "report.html"}
    assert {path.name for path in out.iterdir()} == written


def test_volumes_are_measured_in_millimetres(tmp_path):
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[2:5, 2:6, 2:6] = 1
    prediction = np.roll(reference, 1, axis=0)
    for where, mask in (("p", prediction), ("r", reference)):
        save(tmp_path / where, "x", mask, spacing=(5.0, 1.0, 1.0))
    scored = score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring(("hd",)))
    assert scored.cases["hd"].tolist()[1] == pytest.approx(5.0)


def filled(value, shape=(12, 14)):
    return np.full(shape, value, np.uint8)


@pytest.mark.parametrize(
    ("where", "mask", "message"),
    [
        ("predictions", None, r"1 cases of .*references have no file in .*predictions: p1_1"),
        ("references", None, r"1 cases of .*predictions have no file in .*references: p1_1"),
        ("predictions", filled(0, (5, 6)), r"p1_1.*size \[12, 14\].*got \[5, 6\]"),
        ("predictions", filled(9), r"p1_1.*expected the mask values 0 to 2.*got 9"),
        ("references", filled(9), r"p1_1.*expected the mask values 0 to 2, or 255.*got 9"),
        ("predictions", filled(255), r"p1_1.*expected the mask values 0 to 2, got 255"),
    ],
)
def test_errors_of_folders_name_the_case_and_the_fix(folders, where, mask, message, tmp_path, capsys):
    (tmp_path / where / "p1_1.png").unlink()
    if mask is not None:
        save(tmp_path / where, "p1_1", mask)
    with pytest.raises(DataError, match=message):
        score_folder(*folders, LABELS, Scoring())
    command = ["evaluate", "--predictions", str(folders[0]), "--references", str(folders[1]), "--classes"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "background,a,b", "--ignore", "255", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 3
    assert not (tmp_path / "out").exists()
    assert "error: " in capsys.readouterr().err


def test_an_empty_folder(folders):
    for file in folders[0].iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"expected images in .*predictions"):
        score_folder(*folders, LABELS, Scoring())


def test_volumes_with_different_spacing_raise(tmp_path):
    mask = np.zeros((4, 4, 4), np.uint8)
    save(tmp_path / "p", "x", mask, spacing=(1.0, 1.0, 2.0))
    save(tmp_path / "r", "x", mask, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"case x: .*spacing of .*1 x 1 x 1 mm, got 1 x 1 x 2 mm"):
        score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring())
    save(tmp_path / "p", "x", mask, spacing=(1.0, 1.0, 1.0))
    for where in ("p", "r"):
        save(tmp_path / where, "y", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="expected one kind of files"):
        score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring())
    with pytest.raises(DataError, match=r"folder of masks at .*nowhere"):
        score_folder(tmp_path / "p", tmp_path / "nowhere", LABELS, Scoring())


def test_groups_that_do_not_match(folders):
    for group, kind, message in (
        ("(x)", DataError, "--group"),
        ("(", RunError, "regular expression"),
    ):
        with pytest.raises(kind, match=message):
            score_folder(*folders, LABELS, Scoring(), group=group)


def test_a_prediction_at_another_position_raises(tmp_path):
    mask = np.zeros((6, 6, 6), np.uint8)
    save(tmp_path / "r", "x", mask, spacing=(1.0, 1.0, 1.0))
    (tmp_path / "p").mkdir()
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    for shift, refused in ((0.2, False), (50.0, True)):
        moved[0, 3] = shift
        nib.save(nib.Nifti1Image(mask, moved), tmp_path / "p" / "x.nii.gz")
        if refused:
            with pytest.raises(DataError, match=r"up to 50.0 mm away; save the mask"):
                score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring())
        else:
            score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring())


def test_mapped_values_and_suggestions(tmp_path):
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3] = 255
    for where in ("p", "r"):
        save(tmp_path / where, "x", mask)
    labels = Labels(["no", "yes"])
    with pytest.raises(DataError, match=r"binary mask.*--values 255:1"):
        score_folder(tmp_path / "p", tmp_path / "r", labels, Scoring())
    scored = score_folder(tmp_path / "p", tmp_path / "r", labels, Scoring(), encodings=(MaskEncoding({255: 1}),) * 2)
    assert scored.cases["dice"].tolist() == [1, 1]
    with pytest.raises(DataError, match=r"a prediction must be a class"):
        score_folder(tmp_path / "p", tmp_path / "r", LABELS, Scoring())
    command = ["evaluate", "--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "r")]
    options = ["--classes", "no, yes", "--values", "255:1", "--metrics", "dice, nsd", "--tolerance", "2"]
    printed = CliRunner().invoke(app, [*command, *options, "--out", str(tmp_path / "out")])
    assert printed.exit_code == 0, printed.output
    assert set(pd.read_csv(tmp_path / "out" / "cases.csv")["rules"].str.split("+").str[0]) == {"segkit"}
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["rules"]["surface"]["tolerance_mm"] == 2.0
    with pytest.raises(SystemExit) as stopped:
        main([*command, *options, "--out", str(tmp_path / "p")])
    assert stopped.value.code == 2


def test_building_a_scoring_from_names():
    modes = {"tolerance_mm": 2.0, "hd95": None}
    scoring = build_scoring(LABELS, metrics=["nsd"], rules="mmseg", exclude_classes=["b"], modes=modes)
    assert scoring.metrics == ("dice", "iou", "nsd")
    assert scoring.rules.hd95 == "directed"
    assert scoring.rules.aggregation == PRESETS["mmseg"].aggregation
    assert (scoring.rules.exclude_classes, scoring.rules.tolerance_mm) == (("b",), 2.0)
    with pytest.raises(ValueError, match="exclude_classes to be some of background, a, b, got c"):
        build_scoring(LABELS, metrics=["dice"], exclude_classes=["c"])


def work_in_a_process(rank, world, cases, folder):
    """Score every `world`-th case, and case 0 in every process; save the merged result."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    prediction, reference = masks(4, count=cases)
    mine = sorted({*range(rank, cases, world), *([0] if cases > 1 else [])})
    scorer = Scorer(len(mine), LABELS, EVERYTHING, CPU, shared=True)
    for number in mine:
        guessed, known = torch.as_tensor(prediction[number])[None], torch.as_tensor(reference[number])[None]
        scorer.add(f"case{number}", f"group{number % 2}", guessed, known, (2.0, 0.5), sure_of(guessed))
    scored = scorer.result(dist.group.WORLD)
    torch.save((scored.cases.to_dict("list"), scored.matrix, scored.calibration), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("cases", [5, 1], ids=["unequal shares, one case twice", "a process without cases"])
def test_two_processes_give_the_same_result_as_one(cases, tmp_path):
    whole = scorer_of(*masks(4, count=cases)).result()
    run_ranks(work_in_a_process, (2, cases, str(tmp_path)), 2)
    for rank in range(2):
        table, matrix, calibration = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        pd.testing.assert_frame_equal(pd.DataFrame(table), whole.cases)
        assert np.array_equal(matrix, whole.matrix)
        assert calibration["toplabel"] == whole.calibration["toplabel"]


def test_a_folder_of_binary_masks_and_its_confusion_matrix(tmp_path):
    prediction, reference = (mask[:3] == 1 for mask in masks(5))
    for number in range(3):
        save(tmp_path / "p", f"c{number}", 255 * prediction[number].astype(np.uint8))
        save(tmp_path / "r", f"c{number}", 255 * reference[number].astype(np.uint8))
    command = ["evaluate", "--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "r")]
    options = ["--classes", "no,yes", "--mode", "binary", "--values", "255:1", "--out", str(tmp_path / "out")]
    printed = CliRunner().invoke(app, [*command, *options])
    assert printed.exit_code == 0, printed.output
    matrix = pd.read_csv(tmp_path / "out" / "confusion.csv", index_col=0)
    assert matrix.index.tolist() == matrix.columns.tolist() == ["no", "yes"]
    expected = [
        [(~reference & ~prediction).sum(), (~reference & prediction).sum()],
        [(reference & ~prediction).sum(), (reference & prediction).sum()],
    ]
    assert matrix.to_numpy().tolist() == expected
    assert (tmp_path / "out" / "confusion.png").exists()
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["threshold"] is None


@pytest.mark.parametrize(
    ("options", "recorded", "ignored"),
    [
        (["--prediction-threshold", "0.3", "--values", "7:255,4:1", "--ignore", "255"], 0.3, 9),
        (["--prediction-threshold", "0.3", "--values", "4:1,7:1"], 0.3, 0),
        (["--threshold", "0.3"], 0.3, 0),
    ],
)
def test_probabilities_against_masks_of_other_values(tmp_path, options, recorded, ignored):
    """Probabilities from 0.3 on are the second class, the references have values of their own."""
    random = np.random.default_rng(8)
    probability = random.random((3, 8, 9)).astype(np.float32)
    probability[0, 0, 0] = 0.3
    stored = np.where(random.random((3, 8, 9)) < 0.5, 4, 0).astype(np.uint8)
    stored[1, 2] = 7
    for number in range(3):
        for folder, mask in (("p", probability), ("r", stored)):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"c{number}.npy", mask[number])
    command = ["evaluate", "--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "r")]
    more = ["--classes", "no,yes", "--mode", "binary", "--out", str(tmp_path / "out")]
    printed = CliRunner().invoke(app, [*command, *more, *options])
    assert printed.exit_code == 0, printed.output
    table = pd.read_csv(tmp_path / "out" / "cases.csv")
    counted = stored != (7 if ignored else 99)
    expected = ((probability >= np.float32(0.3)) & (stored > 0) & counted).sum((1, 2))
    assert table["tp"].tolist() == expected.tolist()
    assert table["ignored"].sum() == ignored
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["threshold"], scores["checkpoint"]) == (recorded, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "no,yes", "--threshold", "1", "--ignore", "255"], "--prediction-threshold"),
        (["--classes", "no,yes", "--threshold", "1", "--values", "255:1"], "one of value_map"),
        (["--classes", "a,b,c", "--prediction-threshold", "0.5"], "two classes"),
    ],
)
def test_encodings_that_do_not_fit_are_refused(folders, tmp_path, options, message, capsys):
    command = ["evaluate", "--predictions", str(folders[0]), "--references", str(folders[1])]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *options, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_folder_of_regions(tmp_path):
    """Prediction and reference are class numbers, of which regions are unions."""
    prediction, reference = (mask[:3] for mask in masks(6))
    for number in range(3):
        save(tmp_path / "p", f"c{number}", prediction[number])
        save(tmp_path / "r", f"c{number}", reference[number])
    command = ["evaluate", "--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "r")]
    options = [
        "--regions",
        "whole:1+2,core:2",
        "--ignore",
        "255",
        "--metrics",
        "dice,hd",
        "--out",
        str(tmp_path / "out"),
    ]
    printed = CliRunner().invoke(app, [*command, *options])
    assert printed.exit_code == 0, printed.output
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    known = reference != 255
    for name, union in (("whole", (1, 2)), ("core", (2,))):
        of_class = cases[cases["class"] == name]
        a, b = (np.isin(mask, union) & known for mask in (prediction, reference))
        assert of_class["tp"].tolist() == (a & b).sum((1, 2)).tolist()
        assert of_class["predicted"].tolist() == a.sum((1, 2)).tolist()
    refused = CliRunner().invoke(app, [*command, *options, "--classes", "a,b"])
    assert refused.exit_code == 2
    assert CliRunner().invoke(app, [*command, "--regions", "whole", "--out", "x"]).exit_code == 2


def test_a_folder_of_overlapping_planes(tmp_path):
    rng = np.random.default_rng(0)
    planes = {where: rng.integers(0, 2, (2, 6, 7)).astype(np.uint8) for where in ("p", "r")}
    for where, mask in planes.items():
        (tmp_path / where).mkdir()
        np.save(tmp_path / where / "x.npy", mask)
    labels = Labels(["a", "b"], "multilabel")
    scored = score_folder(tmp_path / "p", tmp_path / "r", labels, Scoring())
    assert scored.cases["tp"].tolist() == (planes["p"] & planes["r"]).sum((1, 2)).tolist()
    assert scored.matrix is None


def test_excluded_classes_are_not_in_the_table(folders, tmp_path):
    command = [
        "evaluate",
        "--predictions",
        str(folders[0]),
        "--references",
        str(folders[1]),
        "--out",
        str(tmp_path / "out"),
    ]
    arguments = ["--classes", "background,a,b", "--ignore", "255", "--exclude", "b", "--metrics", "generalized_dice"]
    printed = CliRunner().invoke(app, [*command, *arguments])
    assert printed.exit_code == 0, printed.output
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert set(cases["class"]) == {"background", "a"}
    # of one foreground class alone it is the Dice score
    foreground = cases[cases["class"] == "a"]
    assert foreground["generalized_dice"].tolist() == pytest.approx(foreground["dice"].tolist(), nan_ok=True)
    assert "generalised Dice" in printed.output


def test_a_process_group_needs_a_shared_scorer():
    with pytest.raises(ValueError, match="shared=True"):
        Scorer(1, LABELS, Scoring(), CPU).result(group=object())  # pyright: ignore[reportArgumentType]


def test_the_threshold_is_recorded_and_compared():
    labels = Labels(["no", "yes"], "binary")
    prediction, reference = (mask == 1 for mask in masks(5))
    scorer, scoring = Scorer(4, labels, Scoring(), CPU), Scoring()
    for number in range(4):
        guessed, known = (torch.from_numpy(mask[number][None].astype(np.uint8)) for mask in (prediction, reference))
        scorer.add(f"c{number}", f"c{number}", guessed, known, (1.0, 1.0))
    origin = Origin("last.pt", 5, 5, "steps", None, "0123")
    scores = replace(scorer.result(), threshold=0.3)
    result = scores_json(scores, labels, scoring, split="test", origin=origin)
    assert result["threshold"] == 0.3
    assert scores_match(result, scoring, 5, threshold=0.3)
    assert not scores_match(result, scoring, 5, threshold=0.4)
    before = {key: value for key, value in result.items() if key != "mean_intervals"}
    assert not scores_match(before, scoring, 5, threshold=0.3)
    console = Console(width=80, record=True, file=io.StringIO())
    print_scores(result, console)
    assert "probability exceeds 0.3" in " ".join(console.export_text().split())


def test_scores_of_earlier_versions_stay_valid():
    """What was added since is recorded only with the metrics that it concerns, and another definition is noticed."""
    scored = scorer_of(*masks(6), scoring=Scoring(("hd95", "pq"))).result()
    origin = Origin("last.pt", 5, 5, "steps", None, "0123")

    def result(scoring):
        return json.loads(json.dumps(scores_json(scored, LABELS, scoring, split="test", origin=origin)))

    of_distances, of_components = Scoring(("hd95",)), Scoring(("pq",))
    first = "dice iou boundary_iou nsd precision recall volume_difference hd hd95 assd"
    assert " ".join(result(of_distances)["rules"]["empty"]) == first
    assert "components" not in result(of_distances)["rules"]
    assert result(of_components)["rules"]["components"]["iou"] == 0.5
    for scoring in (of_distances, of_components):
        assert scores_match(result(scoring), scoring, 5, 0.5)
    assert not scores_match(result(of_components), replace(of_components, rules=Rules(component_iou=0.4)), 5, 0.5)
    assert not scores_match(result(of_components), replace(of_components, size_strata=SizeStrata(2)), 5, 0.5)


def test_ids_of_changed_rules_are_those_of_earlier_versions():
    """`tolerance_mm: 2` had this id before metrics of components were added."""
    assert replace(PRESETS["segkit"], tolerance_mm=2.0).id == "segkit+d57fddf9"
    assert replace(PRESETS["segkit"], component_iou=0.4).id not in ("segkit", PRESETS["segkit"].id)


def test_scores_by_size_are_printed_and_saved(folders, tmp_path):
    out = tmp_path / "out"
    command = ["evaluate", "--predictions", str(folders[0]), "--references", str(folders[1]), "--out", str(out)]
    options = ["--classes", "background,a,b", "--ignore", "255", "--metrics", "lesion_f1,hd90", "--size-strata", "2"]
    result = CliRunner().invoke(app, [*command, *options, "--lesion-matching", "brats", "--connectivity", "direct"])
    assert result.exit_code == 0, result.output
    assert "by size in the reference (mm²)" in result.output
    assert "lesions are pixels sharing a side, joined if they touch after 3" in " ".join(result.output.split())
    scores = json.loads((out / "scores.json").read_text())
    strata = scores["by_size"]["classes"]["a"]["strata"]
    assert [stratum["cases"] for stratum in strata] == [2, 2]
    assert set(strata[0]) == {"above", "up_to", "cases", "missed", "dice", "iou", "lesion_f1", "hd90"}
    assert scores["rules"]["components"]["matching"] == "brats"
    assert "reference_mm2" in pd.read_csv(out / "cases.csv").columns
    page = (out / "report.html").read_text()
    assert "scores by size" in page
    assert f"up to {strata[0]['up_to']:.3g}" in page


def test_sizes_of_images_and_volumes_have_no_common_unit():
    scorer = Scorer(2, BINARY, Scoring(size_strata=SizeStrata(2)), CPU)
    for dims in (2, 3):
        mask = torch.ones((1, *[3] * dims), dtype=torch.uint8)
        scorer.add(f"c{dims}", "g", mask, mask, (1.0,) * dims)
    with pytest.raises(DataError, match="2D images and volumes"):
        scorer.result()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "background,a,b", "--exclude", "a,b"], "leave no foreground class"),
        (["--classes", "background,a,b", "--size-strata", "1"], "a number from 2 to 20, or increasing bounds"),
        (["--classes", "background,a,b", "--size-strata", "small"], "--size-strata as 3 or 1,10"),
        (["--classes", "background,a,b", "--lesion-matching", "touch"], "overlap, iou, brats"),
        (["--classes", "background,a,b", "--metrics", "hd100"], "hd90 (any percentile)"),
        (["--classes", "background,a,b", "--values", "2:1,2:0"], "each value once"),
        (["--regions", "whole:1+2,whole:2"], "each name once"),
    ],
)
def test_invalid_options_of_a_folder_exit(folders, tmp_path, options, message, capsys):
    command = ["evaluate", "--predictions", str(folders[0]), "--references", str(folders[1])]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
