"""The run folder: what was asked for, where it ran, what happened."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from segkit.training import checkpoint
from segkit.utils.environment import environment
from segkit.utils.errors import RunError
from segkit.utils.files import replace_text

Ended = Literal["FINISHED", "FAILED", "KILLED"]  # as MLflow calls it


class Run:
    """One folder: config.yaml, environment.json, split.json, log.jsonl, checkpoints/, evaluation/<split>/.

    writes: whether this process writes there; of several that train together, one does. trackers: who else gets what is
    logged, and the pictures.
    """

    def __init__(self, folder: Path, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.trackers: list[Any] = []
        self._last_content: dict[str, Any] | None = None

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"

    def load_last(self, *, keep: bool = False) -> dict[str, Any] | None:
        """The contents of `last.pt`, None if the file does not exist.

        keep: hold the contents in memory for the next call, so that a resumed run reads the file only once. A call
        without `keep` releases them.
        """
        content = self._last_content
        if content is None and self.last.exists():
            content = checkpoint.load(self.last)
        self._last_content = content if keep else None
        return content

    def remove_last(self) -> None:
        """Delete `last.pt`."""
        self._last_content = None
        self.last.unlink()

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"

    def numbered(self, step: int) -> Path:
        """A checkpoint that is kept beside the last one."""
        return self.folder / "checkpoints" / f"step-{step:08d}.pt"

    def prune(self, keep: int) -> None:
        """Remove all numbered checkpoints but the last few."""
        numbered = self._numbered() if self.writes else []
        for file in numbered[: max(0, len(numbered) - keep)]:
            file.unlink()

    def _numbered(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*.pt"))

    def records(self) -> list[dict[str, Any]]:
        """The lines of the log, but for one that a crash cut short."""
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [json.loads(line) for line in lines if _logged_step(line) < float("inf")]

    @property
    def has_steps(self) -> bool:
        """Whether a step was logged."""
        return any(record["kind"] == "step" for record in self.records())

    def evaluation(self, split: str) -> Path:
        return self.folder / "evaluation" / split

    def check_free(self, *, resume: bool) -> None:
        """Raise RunError if the folder holds a run and `resume` was not asked for."""
        if self.last.exists() and not resume:
            raise RunError(
                f"{self.folder} already holds a run; continue it with --resume, or choose another folder with run.dir="
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training into this folder meanwhile; the end of the process, however it comes,
        lets go of it. Raises RunError if another one is at it."""
        if not self.writes:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is training into {self.folder}; wait for it, or choose another folder with run.dir="
            ) from error
        try:
            yield
        finally:
            lock.release()
            if [file.name for file in self.folder.iterdir()] == ["lock"]:  # nothing has come of it
                (self.folder / "lock").unlink()
                self.folder.rmdir()

    def start(self) -> None:
        """Prepare the folder for a new or a resumed run."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (self.folder / "checkpoints").glob("*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        if not self.last.exists():  # whatever there is, is of a run that is no more
            for left in (self.log_file, self.best, self.folder / "mlflow-run", *self._numbered()):
                left.unlink(missing_ok=True)
            for left in ("evaluation", "profile", "tensorboard"):
                shutil.rmtree(self.folder / left, ignore_errors=True)
        self.write_json("environment.json", environment())

    def write_json(self, name: str, content: Any) -> None:
        if not self.writes:
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append one line, NaN and inf as null. Fields that differ between two equal runs belong under `time`."""
        if not self.writes:
            return
        with open(self.log_file, "a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        for tracker in self.trackers:
            tracker.log(record)

    @property
    def takes_pictures(self) -> bool:
        """Whether anyone wants pictures of the validation."""
        return bool(self.trackers)

    def show_picture(self, name: str, picture: Any, step: int) -> None:
        """Hand a picture, bytes [H, W, 3], to the trackers."""
        for tracker in self.trackers:
            tracker.show(name, picture, step)

    def close(self, ended: Ended) -> None:
        """Let the trackers write what they still hold, and how the run ended."""
        for tracker in self.trackers:
            tracker.close(ended)
        self.trackers = []

    def cut_log(self, step: int) -> None:
        """Drop what was logged after `step`, the step of the checkpoint that a run continues from."""
        if not self.writes or not self.log_file.exists():
            return
        lines = [line for line in self.log_file.read_text().splitlines() if _logged_step(line) <= step]
        replace_text(self.log_file, "".join(f"{line}\n" for line in lines))


def _finite(value: Any) -> Any:
    """The same plain data with None for NaN and infinities, which JSON has no form for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _logged_step(line: str) -> float:
    """The step of a log line; a line that a crash cut short counts as too late."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
