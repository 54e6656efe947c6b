"""The page of an evaluation, report.html, and that of the run which it belongs to."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import Config, dump
from segkit.config.changed_settings import ChangedSetting, changed_settings
from segkit.evaluation.results import CaseScores
from segkit.experiment.build import TABLES
from segkit.labels import Labels
from segkit.report.run_page import RunMaterial, Setting, write_run_page
from segkit.training.run_folder import Run
from segkit.utils.environment import environment
from segkit.utils.files import read_json

PAGE = "report.html"


@dataclass(frozen=True)
class DrawnCase:
    """A case that is drawn. rank: such as `worst`. image, mask, predicted: as for `overlay_figure`. spacing: [D]."""

    rank: str
    name: str
    dice: float
    image: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, ...]

    @property
    def caption(self) -> str:
        return f"{self.rank}: {self.name}, Dice {self.dice:.3f}"


def write_page(
    path: Path,
    title: str,
    scored: CaseScores,
    labels: Labels,
    result: Mapping[str, Any],
    drawn: Sequence[DrawnCase] = (),
    config: Config | None = None,
    run: Run | None = None,
) -> None:
    """Write the page of an evaluation.

    result: contents of scores.json. drawn: the cases of which pictures are shown. config: of the evaluated checkpoint.
    run: the run folder that it belongs to, whose log and environment are shown.
    """
    from segkit.report.case_views import case_view, legend

    excluded = result["rules"]["exclude_classes"]
    names = [labels.channel_names[channel] for channel in labels.foreground]
    views = [
        case_view(
            case.rank, case.name, f"Dice {case.dice:.3f}", case.image, case.mask, case.predicted, case.spacing, labels
        )
        for case in drawn
    ]
    material = RunMaterial(
        confusion=None if scored.matrix is None else (scored.matrix, labels.names),
        views=views,
        legend=legend(labels) if views else (),
        records=[] if run is None else run.records(),
        settings=[] if config is None else [_setting(setting) for setting in changed_settings(config, TABLES)],
        config=None if config is None else _yaml(config),
        facts=facts(result, run),
        again=[] if run is None else again(run.folder, result["split"]),
    )
    cases: Any = scored.cases
    foreground = [name for name in names if name not in excluded]
    write_run_page(title, result, cases[~cases["class"].isin(excluded)], foreground, material, path)


def _setting(changed: ChangedSetting) -> Setting:
    return Setting(changed.key, _words(changed.value), _words(changed.default) if changed.has_default else None)


def _words(value: Any) -> str:
    """A value of a configuration on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def _yaml(config: Config) -> str:
    file = io.StringIO()
    dump(config, file)
    return file.getvalue()


def facts(result: Mapping[str, Any], run: Run | None) -> list[tuple[str, str]]:
    """Where the scores come from: checkpoints, data, code and machine."""
    recorded = environment() if run is None else read_json(run.folder / "environment.json", dict, {})
    found: list[tuple[str, Any]] = [
        ("checkpoint", result.get("checkpoint")),
        ("step", result.get("step")),
        ("ended by", result.get("finished")),
        ("averaged", ", ".join(member["checkpoint"] for member in result.get("members", []))),
        ("orientations", ", ".join(result.get("orientations", []))),
        ("threshold", result.get("threshold")),
        ("scoring rules", result["rules"]["id"]),
        ("data hash", result.get("data_hash")),
        ("split hash", result.get("split_hash")),
        ("started" if run is not None else "evaluated", recorded.get("started")),
        ("command", shlex.join(map(str, recorded.get("command", [])))),
        ("code", recorded.get("revision")),
        ("packages", ", ".join(f"{name} {version}" for name, version in recorded.get("packages", {}).items())),
        ("Python", recorded.get("python")),
        ("system", recorded.get("platform")),
        ("threads", recorded.get("threads")),
        ("GPU", recorded.get("cuda")),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", {})]


def again(folder: Path, part: str) -> list[tuple[str, str]]:
    """Commands that repeat a run and its evaluation."""
    run, config = (shlex.quote(str(path)) for path in (folder, folder / "config.yaml"))
    other, scores = (shlex.quote(f"{folder}-{ending}") for ending in ("again", "scores"))
    return [
        ("Train once more, in another folder", f"segkit train --config {config} run.dir={other}"),
        ("Score the checkpoint once more", f"segkit evaluate --checkpoint {run} --split {part} --out {scores}"),
    ]
