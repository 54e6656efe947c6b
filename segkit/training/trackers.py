"""Trackers: the log and the pictures of a run in TensorBoard or MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segkit.data.datasets import EvaluationSet
from segkit.labels import Labels
from segkit.training.run_folder import Ended
from segkit.utils.files import replace_text
from segkit.utils.optional import require

SHOWN = 3  # number of validation cases in a picture


class Tracker(Protocol):
    """Receives all records of the log, and pictures (uint8 [H, W, 3])."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record."""
        ...

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a picture."""
        ...

    def close(self, ended: Ended) -> None:
        """Write everything and record how the run ended."""
        ...


class TensorBoard:
    """Writes event files to the folder `tensorboard` in the run folder.

    first_step: The step from which the run starts or is resumed. Events after this step are discarded.
    """

    def __init__(self, folder: Path, first_step: int):
        require("tensorboard", "tensorboard", "logging.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self, ended: Ended) -> None:  # noqa: ARG002  (event files have no status)
        self.writer.close()


class MLflow:
    """Logs to an MLflow run in the experiment `segkit`. A resumed run continues the same MLflow run.

    Args:
        file: SQLite database, which is created if it does not exist.
        folder: The run folder, which stores the identifier of the MLflow run.
        name: Name of the MLflow run.
        parameters: Parameters of the MLflow run.
    """

    def __init__(self, file: Path, folder: Path, name: str, parameters: Mapping[str, Any]):
        mlflow: Any = require("mlflow", "mlflow", "logging.mlflow")
        self.mlflow: Any = mlflow
        file.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{file.resolve()}")
        if mlflow.get_experiment_by_name("segkit") is None:  # store pictures next to the database
            artifacts = file.resolve().parent / f"{file.stem}-artifacts"
            mlflow.create_experiment("segkit", artifact_location=artifacts.as_uri())
        mlflow.set_experiment("segkit")
        id_file = folder / "mlflow-run"
        self.run: Any = mlflow.start_run(run_id=id_file.read_text() if id_file.exists() else None, run_name=name)
        if not id_file.exists():
            replace_text(id_file, self.run.info.run_id)
            mlflow.log_params({key: str(value)[:500] for key, value in parameters.items()})
        self.last_steps = self._last_steps()

    def log(self, record: Mapping[str, Any]) -> None:
        new = {key: value for key, value in numbers(record).items() if record["step"] > self.last_steps.get(key, -1)}
        if new:
            self.mlflow.log_metrics(new, step=record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.mlflow.log_image(picture, f"{name}-{step:06d}.png")

    def close(self, ended: Ended) -> None:
        self.mlflow.end_run(ended)

    def _last_steps(self) -> dict[str, int]:
        """The last step of each metric that was logged before a resume."""
        client, run_id = self.mlflow.MlflowClient(), self.run.info.run_id
        return {
            key: max(metric.step for metric in client.get_metric_history(run_id, key))
            for key in client.get_run(run_id).data.metrics
        }


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
