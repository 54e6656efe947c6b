"""What a reader should know about scores, in words: for the console and for pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segkit.utils.metric_names import surface_name
from segkit.utils.text import listed

LISTED = 20  # classes in a note
SCORES = {  # by aggregation
    "class_case": "mean {} over cases, then classes",
    "case_class": "mean {} over classes, then cases",
    "groups": "mean {} over groups of cases, then classes",
    "absent_perfect": "mean {} over cases, then classes, correct predictions of nothing perfect",
    "median": "median {} of the cases, mean over classes",
    "global": "{} of all pixels, mean over classes",
    "micro": "{} of all pixels and classes",
}


HEADINGS = {
    "dice": "Dice",
    "iou": "IoU",
    "mcc": "MCC",
    "nsd": "NSD",
    "boundary_iou": "b. IoU",
    "volume_difference": "vol. diff.",
    "generalized_dice": "generalised Dice",
    "cldice": "clDice",
    "betti_error": "Betti error",
    "betti0_error": "Betti 0 error",
    "betti1_error": "Betti 1 error",
    "betti2_error": "Betti 2 error",
    "lesion_f1": "lesion F1",
    "lesion_dice": "lesion Dice",
    "lesion_hd95": "lesion HD95",
    "pq": "PQ",
    "rq": "RQ",
    "sq": "SQ",
}


def heading(metric: str) -> str:
    """The name of a metric for the head of a column."""
    if metric in HEADINGS:
        return HEADINGS[metric]
    if surface_name(metric) is None:
        return metric
    name, _, direction = metric.partition("_from_")
    return name.upper() + (f" from {direction}" if direction else "")


def score_in_words(result: Mapping[str, Any]) -> str:
    """A metric and its aggregation, such as `mean Dice over cases, then classes`."""
    return SCORES[result["aggregation"]].format(heading(result["metric"]))


def basis(scores: Mapping[str, Any]) -> list[str]:
    """How the scores were computed: the checkpoint, decisions, rules and thresholds, and the pooled scores."""
    notes = []
    if scores["checkpoint"] is not None:
        selected = scores["selected_on"]
        chosen = f"selected on {selected}" if selected else "not selected by a score"
        early = scores.get("step") is not None and scores["finished"] is None
        place = f", step {scores['step']} of {scores['steps']}" if early else ""
        notes.append(f"checkpoint: {scores['checkpoint']}{place}, {chosen}")
    if decisions := scores.get("decisions"):
        words = "; ".join(decisions["in_words"])
        notes.append(f"decided on {decisions['chosen_on']} by {decisions['metric']}: {words}")
    notes += scores["rules_in_words"]
    if scores["threshold"] is not None:
        verb = "is predicted where its probability exceeds"
        verb = verb if scores["checkpoint"] is not None else "is predicted where the value of the mask is at least"
        notes.append(f"a class {verb} {thresholds(scores)}")
    pooled = scores["global"]["mean"]
    notes.append(f"pooled over the pixels of all cases: Dice {number(pooled['dice'])}, IoU {number(pooled['iou'])}")
    if "calibration" in scores:
        notes.append(_calibration_note(scores["calibration"]))
    return notes


def caveats(scores: Mapping[str, Any]) -> list[str]:
    """Why scores are optimistic or missing, and how far intervals can be trusted."""
    notes = []
    if scores["checkpoint"] is not None and scores["split"] == "train":
        notes.append("the network was trained on these cases, so the scores say nothing about new images")
    if scores["checkpoint"] is not None and scores["selected_on"] == scores["split"]:
        notes.append(f"the checkpoint was selected by its score on {scores['split']}, so this score is optimistic")
    if scores.get("decisions") and scores["decisions"]["chosen_on"] == scores["split"]:
        notes.append(f"the decisions were chosen on {scores['split']}, so this score is optimistic")
    for metric, names in scores["mean_left_out"].items():
        notes.append(
            f"excluded from the mean of {heading(metric)}, because no case is counted for them: "
            f"{listed(names, limit=LISTED)}"
        )
    reasons = scores["mean_reason"] | {
        metric: score["mean_reason"] for metric, score in scores.get("of_cases", {}).items() if "mean_reason" in score
    }
    notes += [f"no mean of {heading(metric)}: {reason}" for metric, reason in reasons.items()]
    first = next(iter(scores["metrics"]))
    counted = [score[first] for score in scores["classes"].values() if score.get(first, {}).get("mean") is not None]
    notes += sorted({f"no interval: {score['ci95_reason']}" for score in counted if "ci95_reason" in score})
    return notes + scores.get("interval_notes", [])


def thresholds(scores: Mapping[str, Any]) -> str:
    """The threshold of all classes, or that of each."""
    threshold = scores["threshold"]
    if isinstance(threshold, Mapping):
        return ", ".join(f"{value:g} ({name})" for name, value in threshold.items())
    return f"{threshold:g}"


def _calibration_note(calibration: Mapping[str, Any]) -> str:
    kind = "toplabel" if "toplabel" in calibration else "classwise"
    regions = []
    for region, score in calibration[kind].items():
        ece = score["ece"]
        value = (
            number(ece)
            if not isinstance(ece, Mapping)
            else ", ".join(f"{name} {number(value)}" for name, value in ece.items())
        )
        regions.append(f"{region} {value}")
    return f"expected calibration error ({kind}, {calibration['rules']['bins']} bins): {'; '.join(regions)}"


def number(value: float | None, sign: str = "") -> str:
    """A number with four digits, or a dash for None."""
    return "-" if value is None else f"{value:{sign}.4f}"
