"""The file of decisions beside a checkpoint: what was chosen on validation cases, for which checkpoints, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segkit.experiment.trained_model import TrainedModel
from segkit.inference.decisions import Decisions
from segkit.inference.post_processing import PostProcess
from segkit.labels import Labels
from segkit.training.init_file import digest
from segkit.utils.errors import RunError
from segkit.utils.files import replace_text

FORMAT = 1
LARGEST = 2**20  # bytes of a file that is read


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Chosen(_Section):
    """One choice: its value, what it gains, and whether that is more than chance, so that it is applied."""

    value: Any
    in_words: str
    kept: bool
    gain: float
    ci95: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    reason: str | None = None


class DecisionFile(_Section):
    """The contents of the file.

    checkpoints: the SHA-256 of each. orientations: of test-time augmentation; empty without.
    metric: by which thresholds and post-processing were chosen. settings: of the prediction, see `settings_of`.
    part, cases, groups: the cases on which they were chosen.
    thresholds, post_processing: by class.
    """

    format: Literal[1] = FORMAT
    checkpoints: list[str]
    orientations: list[str]
    metric: str
    rules: str
    settings: dict[str, Any]
    part: str
    cases: int
    groups: int
    temperature: Chosen
    thresholds: dict[str, Chosen]
    post_processing: dict[str, Chosen]

    def decisions(self) -> Decisions:
        """What is applied: the choices that are kept. Raises ValueError and TypeError for values of other kinds."""
        return Decisions(
            {name: float(choice.value) for name, choice in self.thresholds.items() if choice.kept},
            float(self.temperature.value) if self.temperature.kept else 1.0,
            {name: PostProcess(**choice.value) for name, choice in self.post_processing.items() if choice.kept},
        )


@dataclass(frozen=True)
class AppliedDecisions:
    """Decisions that are applied, with their file."""

    file: Path
    content: DecisionFile
    decisions: Decisions

    def to_json(self) -> dict[str, Any]:
        """The decisions for scores.json and the record of predictions."""
        return {
            "file": str(self.file),
            "metric": self.content.metric,
            "chosen_on": self.content.part,
            "in_words": self.decisions.in_words(),
        }


def default_file(checkpoint: Path) -> Path:
    """The file of decisions beside a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}.decisions.json")


def write_decisions(file: Path, content: DecisionFile) -> None:
    """Write a file of decisions."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(content.model_dump(), indent=2, allow_nan=False) + "\n")


def read_decisions(file: Path) -> DecisionFile:
    """Read a file of decisions. Raises RunError if it is missing or damaged."""
    try:
        with open(file, "rb") as opened:
            return DecisionFile.model_validate_json(opened.read(LARGEST))
    except OSError as error:
        raise RunError(f"the decisions {file} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise RunError(
            f"{file} is no file of decisions ({place}: {problem['msg']}); make it again with segkit tune, or leave it "
            "out with --decisions none"
        ) from error


def identity(members: Sequence[TrainedModel], orientations: Sequence[str]) -> tuple[list[str], list[str]]:
    """What decisions are valid for: the SHA-256 of the checkpoints, and the orientations of `Origin`."""
    return sorted(digest(Path(member.origin.checkpoint)) for member in members), list(orientations)


def settings_of(member: TrainedModel) -> dict[str, Any]:
    """The settings of a prediction on which decisions depend."""
    chosen = member.config.evaluation
    window = None if chosen.window is None else list(chosen.window)
    return {"window": window, "overlap": chosen.overlap, "threshold": chosen.threshold}


def differences(
    content: DecisionFile, checkpoints: Sequence[str], orientations: Sequence[str], settings: Mapping[str, Any]
) -> str | None:
    """Why decisions are not valid for these checkpoints, orientations and settings; None if they are."""
    other = [name for name, value in settings.items() if content.settings.get(name) != value]
    if sorted(content.checkpoints) != sorted(checkpoints):
        return "they were chosen for other checkpoints"
    if list(content.orientations) != list(orientations):
        return f"they were chosen {'with' if content.orientations else 'without'} --tta"
    if other:
        return f"they were chosen with another evaluation.{other[0]}, {content.settings.get(other[0])}"
    return None


def applied_decisions(content: DecisionFile, file: Path, labels: Labels) -> AppliedDecisions:
    """Decisions on the classes of the labels. Raises RunError for values of other kinds and for other classes."""
    try:
        decisions = content.decisions()
        decisions.check(labels)
    except (ValueError, TypeError) as error:
        raise RunError(f"the decisions {file} cannot be applied: {error}") from error
    return AppliedDecisions(file, content, decisions)
