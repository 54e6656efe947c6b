"""The command `export`: a network that runs without segkit, with its description and a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segkit.commands.checkpoints import checkpoint_files
from segkit.commands.decisions import chosen_decisions
from segkit.data.cases import RawCase
from segkit.data.readers import image_files, read_image
from segkit.experiment.exported_network import (
    FILES,
    ExportedNetwork,
    Format,
    description,
    export_network,
    with_network,
    with_size,
)
from segkit.experiment.trained_ensemble import TrainedEnsemble, load_members, together
from segkit.experiment.trained_model import TrainedModel
from segkit.experiment.validate import fixed_size
from segkit.report.model_card import model_card
from segkit.training.init_file import digest
from segkit.utils.errors import RunError
from segkit.utils.files import read_json, temporary_folder
from segkit.utils.progress import tracked

CHECKED = 3  # validation images
TOLERANCE = 1e-4  # of logits, relative to the largest one
EQUAL_PIXELS = 0.9999


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to.

    checkpoints, loss: see `checkpoint_files`. kind: of the file. out: the folder.
    size: see `export_network`. images: to compare on; None for some of the validation cases.
    tta, decisions: see `together` and `chosen_decisions`.
    """

    checkpoints: Sequence[Path]
    kind: Format
    out: Path
    loss: str | None = None
    overrides: Sequence[str] = ()
    size: Sequence[int] | None = None
    images: Path | None = None
    tta: bool = False
    decisions: str | None = None


def export(options: ExportOptions, console: Console) -> dict[str, Any]:
    """Export checkpoints, compare the file with the trained model on real images, and write it if they agree.

    Returns the content of model.json.

    Raises RunError if the network cannot be exported, if its predictions differ from those of the trained model, and
    without images to compare on.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise RunError(f"{options.out} is not empty: choose another --out")
    files = checkpoint_files(options.checkpoints, options.loss)
    members = load_members(files, "cpu", options.overrides)
    ensemble = with_size(together(members, tta=options.tta), options.size)
    any_size = options.size is None and fixed_size(members[0].predictor.model) is None
    applied = chosen_decisions(options.decisions, members, ensemble.origin.orientations, console)
    decisions = None if applied is None else applied.decisions
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(options.out.parent) as folder:
        console.print(f"exporting {members[0].config.model.name} to {FILES[options.kind]}", highlight=False)
        export_network(ensemble, options.kind, folder / FILES[options.kind], any_size=any_size)
        content = description(ensemble, options.kind, decisions, any_size=any_size)
        content["checkpoints"] = [digest(file) for file in files]
        content["check"] = _checked(ensemble, folder / FILES[options.kind], options, console)
        (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        scored_alone = decisions is None and ensemble.predictions == 1
        card = model_card(
            members[0].config.name, content, _training(ensemble), _scores(files), scored_alone=scored_alone
        )
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        _move(folder, options.out)
    console.print(
        f"written to {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}", markup=False
    )
    return content


def _move(folder: Path, out: Path) -> None:
    """Move the complete export to its place."""
    if out.exists():
        out.rmdir()
    folder.replace(out)


def _images(ensemble: TrainedEnsemble, images: Path | None) -> Iterator[tuple[str, RawCase]]:
    """The images to compare on, with their names."""
    if images is not None:
        for file in image_files(images)[:CHECKED]:
            image, spacing = read_image(file)
            yield file.name, RawCase(image, None, spacing)
        return
    member = ensemble.members[0]
    part = next((part for part in ("validation", "test", "train") if getattr(member.split, part)), "train")
    data = member.data()
    for case in data.cases(part)[:CHECKED]:
        yield case.name, data.source.read(case)


def _checked(ensemble: TrainedEnsemble, file: Path, options: ExportOptions, console: Console) -> dict[str, Any]:
    """Predict images with the trained model and with the exported file. Raises RunError if they differ."""
    exported = with_network(ensemble, ExportedNetwork(file, options.kind))
    names, largest, equal, pixels = [], 0.0, 0, 0
    for name, raw in tracked(_images(ensemble, options.images), "comparing", CHECKED, console):
        ours, theirs = (model.predict(raw, name, keep_logits=True) for model in (ensemble, exported))
        assert ours.logits is not None
        assert theirs.logits is not None
        scale = max(1.0, float(ours.logits.abs().max()))
        difference = float((ours.logits - theirs.logits).abs().max()) / scale
        largest = max(largest, difference if math.isfinite(difference) else math.inf)
        equal += int(torch.eq(ours.mask, theirs.mask).sum())
        pixels += ours.mask.numel()
        names.append(name)
    if largest > TOLERANCE or equal < EQUAL_PIXELS * pixels:
        raise RunError(
            f"the exported file predicts otherwise than the trained model: logits differ by {largest:.2g} of the "
            f"largest one (at most {TOLERANCE:g}), {100 * equal / pixels:.4f} % of the pixels are equal (at least "
            f"{100 * EQUAL_PIXELS:.2f} %); nothing was written: try the other --format, or --size"
        )
    return {"images": names, "largest_difference": largest, "equal_pixels": equal / pixels}


def _training(ensemble: TrainedEnsemble) -> dict[str, str]:
    """Facts about the training, without paths; of several checkpoints, what they have in common or all they have."""
    facts = [_facts(member) for member in ensemble.members]
    common = {name: "; or ".join(dict.fromkeys(fact[name] for fact in facts)) for name in facts[0]}
    number = {"checkpoints": f"{len(facts)}, of which the probabilities are averaged"} if len(facts) > 1 else {}
    return number | common


def _facts(member: TrainedModel) -> dict[str, str]:
    config, origin, split = member.config, member.origin, member.split
    sizes = [f"{len(getattr(split, part))} {part} cases" for part in ("train", "validation", "test")]
    return {
        "data": f"source `{config.data.name}`; {', '.join(sizes)}",
        "split": f"SHA-256 {split.content_hash} of the case names",
        "network": f"`{config.model.name}`",
        "loss": " + ".join(f"{loss['weight']:g} {loss['name']}" for loss in config.loss),
        "steps": f"{origin.step} of {origin.steps}",
    }


def _scores(files: Sequence[Path]) -> dict[str, Any]:
    """The scores in the run folder of a single checkpoint, by part."""
    if len(files) > 1 or files[0].name != "last.pt":
        return {}
    folder = files[0].parent.parent / "evaluation"
    parts = ("test", "validation", "train")
    found = {part: read_json(folder / part / "scores.json", dict, None) for part in parts}
    return {part: scores for part, scores in found.items() if scores is not None}
