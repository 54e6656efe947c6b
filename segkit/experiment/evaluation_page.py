"""The page of an evaluation, report.html, and that of the run which it belongs to."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import Config, dump
from segkit.config.changed_settings import changed_settings
from segkit.evaluation.results import CaseScores
from segkit.experiment.build import TABLES
from segkit.labels import Labels
from segkit.training.run_folder import Run
from segkit.utils.environment import environment
from segkit.utils.files import read_json

PAGE = "report.html"


@dataclass(frozen=True)
class DrawnCase:
    """A case that is drawn. rank: such as `worst`. image, mask, predicted: as for `overlay_figure`. spacing: [D].

    is_anatomical: see `case_view`.
    """

    rank: str
    name: str
    dice: float
    image: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, ...]
    is_anatomical: bool

    @property
    def caption(self) -> str:
        return f"{self.rank}: {self.name}, Dice {self.dice:.3f}"


def write_pages(
    pages: Mapping[Path, str],
    scored: CaseScores,
    labels: Labels,
    result: Mapping[str, Any],
    drawn: Sequence[DrawnCase] = (),
    config: Config | None = None,
    run: Run | None = None,
    *,
    is_of_run: bool = False,
) -> None:
    """Write the page of an evaluation to each of some files, with a title each.

    result: contents of scores.json. drawn: the cases of which pictures are shown. config: of the evaluated checkpoint,
        or of the first of several.
    run: the run folder that it belongs to, whose log is shown. is_of_run: whether this is the evaluation of the run.
    """
    # imported here, with all that draws, because processes that only train import this module too
    from segkit.report.case_views import case_view, legend
    from segkit.report.run_page import RunMaterial, Setting, write_run_page

    excluded = result["rules"]["exclude_classes"]
    names = [labels.channel_names[channel] for channel in labels.foreground]
    views = [
        case_view(
            *(case.rank, case.name, f"Dice {case.dice:.3f}", case.image, case.mask, case.predicted, case.spacing),
            labels,
            is_anatomical=case.is_anatomical,
        )
        for case in drawn
    ]
    material = RunMaterial(
        confusion=None if scored.matrix is None else (scored.matrix, labels.names),
        views=views,
        legend=legend(labels) if views else (),
        records=[] if run is None else run.records(),
        settings=[]
        if config is None
        else [
            Setting(changed.key, _words(changed.value), _words(changed.default) if changed.has_default else None)
            for changed in changed_settings(config, TABLES)
        ],
        config=None if config is None else _yaml(config),
        facts=facts(result, run),
        again=again(run, is_of_run=is_of_run),
    )
    cases: Any = scored.cases
    reported, foreground = cases[~cases["class"].isin(excluded)], [name for name in names if name not in excluded]
    for path, title in pages.items():
        write_run_page(title, result, reported, foreground, material, path)


def _words(value: Any) -> str:
    """A value of a configuration on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _yaml(config: Config) -> str:
    file = io.StringIO()
    dump(config, file)
    return file.getvalue()


def facts(result: Mapping[str, Any], run: Run | None) -> list[tuple[str, str]]:
    """Where the scores come from: checkpoints, data, code and machine, of the training where there is a run."""
    recorded = environment() if run is None else read_json(run.folder / "environment.json", dict, {})
    training = "of the training: " if run is not None else ""
    found: list[tuple[str, Any]] = [
        ("checkpoint", result.get("checkpoint")),
        ("step", result.get("step")),
        ("ended by", result.get("finished")),
        ("averaged", ", ".join(member["checkpoint"] for member in result.get("members", []))),
        ("orientations", ", ".join(result.get("orientations", []))),
        ("threshold", result.get("threshold")),
        ("scoring rules", result["rules"]["id"]),
        ("hash of the training data", result.get("data_hash")),
        ("hash of the split", result.get("split_hash")),
        (f"{training}started", recorded.get("started")),
        (f"{training}command", shlex.join(map(str, recorded.get("command", [])))),
        (f"{training}code", recorded.get("revision")),
        (
            f"{training}packages",
            ", ".join(f"{name} {version}" for name, version in recorded.get("packages", {}).items()),
        ),
        (f"{training}Python", recorded.get("python")),
        (f"{training}system", recorded.get("platform")),
        (f"{training}threads", recorded.get("threads")),
        (f"{training}GPU", recorded.get("cuda")),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", {})]


def again(run: Run | None, *, is_of_run: bool) -> list[tuple[str, str]]:
    """Commands that repeat a run, and this evaluation: the command that was given, if it is not that of the run."""
    found = []
    if run is not None:
        config, other = run.folder / "config.yaml", f"run.dir={run.folder}-again"
        command = shlex.join(["segkit", "train", "--config", str(config), other])
        found.append(("Train once more, in another folder", command))
    if not is_of_run:
        program, *arguments = sys.argv or [""]
        found.append(("Evaluate once more", shlex.join([Path(program).name, *arguments])))
    return found
