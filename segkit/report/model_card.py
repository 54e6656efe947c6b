"""A model card in Markdown, from what a run recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FILL_IN = "_To be filled in._"


def model_card(
    name: str,
    description: Mapping[str, Any],
    training: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    *,
    scored_alone: bool,
) -> str:
    """The text of a model card.

    name: of the model. description: of the exported file, see `segkit.experiment.exported_network.description`.
    training: facts by heading, in the order in which they are listed.
    scores: the contents of scores.json by part of the split.
    scored_alone: whether the scores are of what was exported: one network without augmentation and decisions.
    """
    sections = [
        f"# {name}",
        f"A segmentation model exported by segkit {description['segkit']}. `model.json` says how to predict with it.",
        "## Intended use\n\n"
        + FILL_IN
        + " Who should use it, on which images, for which decisions, and for which not?",
        "## Input and output\n\n" + _list(_interface(description)),
        "## Training\n\n" + _list(training),
        "## Scores\n\n" + _scores(scores, scored_alone),
        "## The exported file\n\n" + _list(_check(description["check"])),
        "## Limitations\n\n" + FILL_IN + " Scores hold for images like those of the evaluation. Of which scanners, "
        "sites, patients or scenes are there none in the data?",
        "## Licence and contact\n\n" + FILL_IN,
    ]
    return "\n\n".join(sections) + "\n"


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _interface(description: Mapping[str, Any]) -> dict[str, str]:
    averaged = description["averaged"]
    given, reading = description["input"], description["preprocessing"]
    spacing = reading["resample"]["spacing"]
    return {
        "image": f"{given['channels']} channel(s), axes {' x '.join(given['axes'][2:])}",
        "pixel size": "any" if spacing is None else f"resampled to {' x '.join(f'{side:g}' for side in spacing)} mm",
        "intensities": f"`{reading['normalise']['name']}`: {reading['normalise']['rule']}",
        "classes": ", ".join(description["output"]["classes"]) + f" ({description['labels']['mode']})",
        "mask": _decoding(description["decoding"]),
        "averaged": f"{averaged['checkpoints']} checkpoint(s) over {len(averaged['orientations'])} orientation(s)",
    }


def _decoding(decoding: Mapping[str, Any]) -> str:
    parts = [decoding["rule"]]
    parts += [f"threshold of {name} {value:g}" for name, value in decoding["thresholds"].items()]
    parts += [f"{name}: {process['in_words']}" for name, process in decoding["post_processing"].items()]
    parts += [f"temperature {decoding['temperature']:.3g} for probabilities"] if decoding["temperature"] != 1 else []
    return "; ".join(parts)


def _scores(scores: Mapping[str, Mapping[str, Any]], scored_alone: bool) -> str:
    if not scores:
        return "None were recorded beside the checkpoint."
    tables = [_table(part, content) for part, content in scores.items()]
    note = "These are scores of the network alone, without the averaging and the decisions that were exported with it; "
    return "\n\n".join([*([] if scored_alone else [note + "`segkit evaluate` gives those."]), *tables])


def _table(part: str, scores: Mapping[str, Any]) -> str:
    metrics = list(scores["metrics"])
    lines = [f"{part.capitalize()}, {scores['cases']} cases:", ""]
    lines.append("| class | " + " | ".join(scores["metrics"][metric] for metric in metrics) + " |")
    lines.append("|---" * (len(metrics) + 1) + "|")
    for name, by_metric in scores["classes"].items():
        cells = [_cell(by_metric.get(metric)) for metric in metrics]
        lines.append(f"| {name.replace('|', '/')} | " + " | ".join(cells) + " |")
    means = [_number(scores["mean"].get(metric)) for metric in metrics]
    lines.append("| mean | " + " | ".join(means) + " |")
    lines += [
        "",
        "Mean over cases with 95 % intervals over groups of cases. " + "; ".join(scores["rules_in_words"]) + ".",
    ]
    if scores.get("selected_on") == part:
        lines.append(f"The checkpoint was selected on {part}, so these scores are optimistic.")
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    interval = score.get("ci95")
    return _number(score["mean"]) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _check(check: Mapping[str, Any]) -> dict[str, str]:
    images: Sequence[str] = check["images"]
    return {
        "compared on": f"{len(images)} images with the trained model: {', '.join(images)}",
        "largest difference of logits": f"{check['largest_difference']:.2g}",
        "equal pixels of the masks": f"{100 * check['equal_pixels']:.4f} %",
    }
