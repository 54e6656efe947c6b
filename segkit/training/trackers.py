"""Trackers: numbers, pictures, configuration and scores of a run in TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol
from uuid import uuid4

import numpy as np
from torch import Tensor

from segkit.config.schema import leaves
from segkit.data.datasets import EvaluationSet
from segkit.labels import Labels
from segkit.training.run_folder import Ended
from segkit.utils.files import replace_text
from segkit.utils.optional import require

SHOWN = 3  # number of validation cases in a picture
LONGEST = 6000  # characters of a parameter in MLflow; the whole configuration is an artifact


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run.

    Args:
        folder: The run folder, whose name is that of the run.
        config: The resolved configuration as plain data.
        first_step: The step from which it starts or is resumed. What was tracked after this step is repeated.
    """

    folder: Path
    config: Mapping[str, Any]
    first_step: int

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the configuration by their dotted keys."""
        return leaves(self.config)


class Tracker(Protocol):
    """Receives what a run logs. Built with `run`, a `TrackedRun`, and the options of the configuration."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record of log.jsonl; see `numbers`."""
        ...

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""
        ...

    def scores(self, scores: Mapping[str, Any], step: int) -> None:
        """Log the final scores, the content of scores.json."""
        ...

    def close(self, ended: Ended) -> None:
        """Write everything and record how the run ended."""
        ...


class TensorBoard:
    """Writes event files to the folder `tensorboard` in the run folder."""

    requires: ClassVar = ("tensorboard", "tensorboard")

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step + 1)
        lines = [f"    {key}: {json.dumps(value)}" for key, value in run.parameters.items()]  # a block of code
        self.writer.add_text("configuration", "\n".join(lines), run.first_step)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def scores(self, scores: Mapping[str, Any], step: int) -> None:
        for name, value in final_scores(scores).items():
            self.writer.add_scalar(name, value, step)

    def close(self, ended: Ended) -> None:  # noqa: ARG002  (event files have no status)
        self.writer.close()


class MLflow:
    """Logs to an MLflow run in the experiment `segkit`. A resumed run continues the same MLflow run.

    Args:
        run: The run.
        file: SQLite database, which is created if it does not exist.
    """

    requires: ClassVar = ("mlflow", "mlflow")

    def __init__(self, run: TrackedRun, file: Path):
        mlflow: Any = require(*self.requires, "the tracker mlflow")
        self.mlflow: Any = mlflow
        file.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{file.resolve()}")
        if mlflow.get_experiment_by_name("segkit") is None:  # store pictures next to the database
            artifacts = file.resolve().parent / f"{file.stem}-artifacts"
            mlflow.create_experiment("segkit", artifact_location=artifacts.as_uri())
        mlflow.set_experiment("segkit")
        id_file = run.folder / "mlflow-run"
        known = id_file.read_text() if id_file.exists() else None
        self.run: Any = mlflow.start_run(run_id=known, run_name=run.folder.name)
        if known is None:
            replace_text(id_file, self.run.info.run_id)
            mlflow.log_params({key: str(value)[:LONGEST] for key, value in run.parameters.items()})
            mlflow.log_dict(dict(run.config), "config.json")
        self.last_steps = self._last_steps()

    def log(self, record: Mapping[str, Any]) -> None:
        self._log(numbers(record), record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.mlflow.log_image(picture, f"{name}-{step:06d}.png")

    def scores(self, scores: Mapping[str, Any], step: int) -> None:
        self._log(final_scores(scores), step)
        self.mlflow.log_dict(dict(scores), "scores.json")

    def close(self, ended: Ended) -> None:
        self.mlflow.end_run(ended)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        new = {key: value for key, value in values.items() if step > self.last_steps.get(key, -1)}
        if new:
            self.mlflow.log_metrics(new, step=step)

    def _last_steps(self) -> dict[str, int]:
        """The last step of each metric that was logged before a resume."""
        client, run_id = self.mlflow.MlflowClient(), self.run.info.run_id
        return {
            key: max(metric.step for metric in client.get_metric_history(run_id, key))
            for key in client.get_run(run_id).data.metrics
        }


class WeightsAndBiases:
    """Logs to a run of Weights & Biases. A resumed run continues the same one.

    Args:
        run: The run.
        project: The project.
        entity: The user or team; the default of the account if it is None.
        mode: `offline` writes to the folder `wandb` in the run folder, from which `wandb sync` uploads it later.
    """

    requires: ClassVar = ("wandb", "wandb")
    exit_codes: ClassVar = {"FINISHED": 0, "FAILED": 1, "KILLED": 1}

    def __init__(
        self,
        run: TrackedRun,
        project: str = "segkit",
        entity: str | None = None,
        mode: Literal["online", "offline"] = "online",
    ):
        self.wandb: Any = require(*self.requires, "the tracker wandb")
        id_file = run.folder / "wandb-run"
        if not id_file.exists():
            replace_text(id_file, uuid4().hex[:8])
        self.run: Any = self.wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            dir=run.folder,
            name=run.folder.name,
            id=id_file.read_text(),
            resume="allow",
            config=dict(run.config),
            settings=self.wandb.Settings(silent=True, console="off"),
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self.run.log(numbers(record), step=record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def scores(self, scores: Mapping[str, Any], step: int) -> None:  # noqa: ARG002  (a summary has no step)
        self.run.summary.update(final_scores(scores))

    def close(self, ended: Ended) -> None:
        self.run.finish(exit_code=self.exit_codes[ended])


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


def numbers(record: Mapping[str, Any], name: str = "") -> dict[str, float]:
    """The numbers of a log record by their path, such as `train/terms/dice` or `validation/dice`.

    name: The path of a nested mapping.
    """
    result: dict[str, float] = {}
    prefix = name or {"step": "train"}.get(record.get("kind", ""), "")
    items = {key: value for key, value in record.items() if name or key not in ("kind", "step", "epoch")}
    for key, value in items.items():
        path = f"{prefix}/{key}".lstrip("/").replace(", ", "-")  # MLflow does not allow commas in names
        if isinstance(value, Mapping):
            result |= numbers(value, path)
        elif isinstance(value, (list, tuple)):
            result |= {f"{path}/{index}": item for index, item in enumerate(value) if isinstance(item, (int, float))}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            result[path] = value
    return result


def final_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """The mean scores of an evaluation, such as `test/dice`."""
    return numbers(scores["mean"], scores["split"])


class FirstMasks:
    """Keeps the predicted masks of the first few cases, by the index of the case."""

    def __init__(self) -> None:
        self.masks: dict[int, np.ndarray] = {}

    def keep(self, index: int, mask: Tensor) -> None:
        """Keep a mask unless there are enough already."""
        if len(self.masks) < SHOWN:
            self.masks[index] = mask.cpu().numpy()


def overlays_of(predictions: FirstMasks, cases: EvaluationSet, labels: Labels) -> np.ndarray:
    """A picture of image, reference, prediction and errors of each kept case, uint8 [H, W, 3]."""
    from segkit.report.overlays import overlay_picture

    rows = []
    for index, mask in predictions.masks.items():
        raw = cases.raw(index)
        rows.append((cases.cases[index].name, raw.image, raw.mask, mask))
    return overlay_picture(rows, labels)
