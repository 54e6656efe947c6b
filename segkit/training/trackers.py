"""The log of a run elsewhere than in its file: TensorBoard, MLflow; and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segkit.data.datasets import EvaluationSet
from segkit.labels import Labels
from segkit.training.run_folder import Ended

SHOWN = 3  # validation cases in a picture


class Tracker(Protocol):
    """Gets what the log file gets, and pictures [H, W, 3] of bytes."""

    def log(self, record: Mapping[str, Any]) -> None: ...

    def show(self, name: str, picture: np.ndarray, step: int) -> None: ...

    def close(self, ended: Ended) -> None: ...


class TensorBoard:
    """Event files under `tensorboard` in the run folder. A run that is resumed takes back what came after its step."""

    def __init__(self, folder: Path, first_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "logging.tensorboard needs the package tensorboard: pip install 'segkit-trainer[tensorboard]'"
            ) from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self, ended: Ended) -> None:  # noqa: ARG002  (events have no place for it)
        self.writer.close()


class MLflow:
    """An MLflow run, `name` in the experiment `segkit`, in a SQLite file. A run that is resumed goes on in it.

    file: the data base; created if it is not there.
    """

    def __init__(self, file: Path, folder: Path, name: str, parameters: Mapping[str, Any]):
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("logging.mlflow needs the package mlflow: pip install 'segkit-trainer[mlflow]'") from error
        self.mlflow: Any = mlflow
        file.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{file.resolve()}")
        if mlflow.get_experiment_by_name("segkit") is None:  # pictures lie beside the data base
            pictures = file.resolve().parent / f"{file.stem}-artifacts"
            mlflow.create_experiment("segkit", artifact_location=pictures.as_uri())
        mlflow.set_experiment("segkit")
        known = folder / "mlflow-run"
        self.run: Any = mlflow.start_run(run_id=known.read_text() if known.exists() else None, run_name=name)
        if not known.exists():
            known.write_text(self.run.info.run_id)
            mlflow.log_params({key: str(value)[:500] for key, value in parameters.items()})
        self.logged = self._last_steps()

    def log(self, record: Mapping[str, Any]) -> None:
        new = {key: value for key, value in numbers(record).items() if record["step"] > self.logged.get(key, -1)}
        if new:
            self.mlflow.log_metrics(new, step=record["step"])

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.mlflow.log_image(picture, f"{name}-{step:06d}.png")

    def close(self, ended: Ended) -> None:
        self.mlflow.end_run(ended)

    def _last_steps(self) -> dict[str, int]:
        """The last step of each number that an earlier part of the run has logged."""
        client = self.mlflow.MlflowClient()
        identity = self.run.info.run_id
        return {
            key: max(one.step for one in client.get_metric_history(identity, key))
            for key in client.get_run(identity).data.metrics
        }


def numbers(record: Mapping[str, Any], name: str = "") -> dict[str, float]:
    """The numbers of a log line by their path: `train/terms/dice`, `validation/dice`."""
    found: dict[str, float] = {}
    start = name or {"step": "train"}.get(record.get("kind", ""), "")
    items = {key: value for key, value in record.items() if name or key not in ("kind", "step", "epoch")}
    for key, value in items.items():
        path = f"{start}/{key}".lstrip("/").replace(", ", "-")  # a comma is no character of a name in MLflow
        if isinstance(value, Mapping):
            found |= numbers(value, path)
        elif isinstance(value, (list, tuple)):
            found |= {f"{path}/{place}": one for place, one in enumerate(value) if isinstance(one, (int, float))}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[path] = value
    return found


class FirstMasks:
    """Keeps the predicted masks of the first few cases that come, by their numbers."""

    def __init__(self) -> None:
        self.masks: dict[int, np.ndarray] = {}

    def keep(self, number: int, mask: Tensor) -> None:
        if len(self.masks) < SHOWN:
            self.masks[number] = mask.cpu().numpy()


def overlays_of(first: FirstMasks, cases: EvaluationSet, labels: Labels) -> np.ndarray:
    """Image, reference, prediction and errors of each kept case, [H, W, 3] of bytes."""
    from segkit.report.overlays import overlay_picture

    rows = []
    for number, mask in first.masks.items():
        raw = cases.raw(number)
        rows.append((cases.cases[number].name, raw.image, raw.mask, mask))
    return overlay_picture(rows, labels)
