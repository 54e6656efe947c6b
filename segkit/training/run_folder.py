"""The run folder: configuration, environment, log, checkpoints and evaluations of a run."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from segkit.training import checkpoint
from segkit.utils.environment import environment
from segkit.utils.errors import RunError
from segkit.utils.files import remove_leftovers, replace_text

Ended = Literal["FINISHED", "FAILED", "KILLED"]  # the names that MLflow uses


class Run:
    """A run folder: config.yaml, environment.json, split.json, log.jsonl, checkpoints/, evaluation/<split>/.

    Args:
        folder: The run folder.
        writes: Whether this process writes to the folder. In distributed training, only rank 0 does.

    `trackers` receive all log records, pictures and the final scores in addition to the log file.
    """

    def __init__(self, folder: Path, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.trackers: list[Any] = []
        self._last_content: dict[str, Any] | None = None

    @property
    def last(self) -> Path:
        """The checkpoint from which a run is resumed."""
        return self.folder / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.folder / "checkpoints" / "best.pt"

    def load_last(self, *, keep: bool = False) -> dict[str, Any] | None:
        """The contents of `last.pt`; None if the file does not exist.

        keep: Keep the contents in memory for the next call, so that a resumed run reads the file only once. A call
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
        """The numbered checkpoint of a step, which is kept in addition to `last.pt`."""
        return self.folder / "checkpoints" / f"step-{step:08d}.pt"

    def prune(self, keep: int) -> None:
        """Delete all numbered checkpoints except the last `keep`."""
        numbered = self._numbered() if self.writes else []
        for file in numbered[: max(0, len(numbered) - keep)]:
            file.unlink()

    def _numbered(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*.pt"))

    def records(self) -> list[dict[str, Any]]:
        """The records of the log. A line that was cut short by a crash, or damaged, is left out."""
        lines = self.log_file.read_bytes().splitlines() if self.log_file.exists() else []
        return [record for record in map(_record, lines) if record is not None]

    @property
    def has_steps(self) -> bool:
        """Whether the log contains a training step."""
        return any(record["kind"] == "step" for record in self.records())

    def evaluation(self, split: str) -> Path:
        """The folder with the evaluation of a part of the split."""
        return self.folder / "evaluation" / split

    def check_free(self, *, resume: bool) -> None:
        """Raise RunError if the folder contains a run and `resume` is False."""
        if self.last.exists() and not resume:
            raise RunError(
                f"{self.folder} already contains a run; continue it with --resume, or choose another folder with "
                "run.dir="
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other training processes.

        The lock is released when the process ends, even if it is killed. Raises RunError if another process holds it.
        """
        if not self.writes:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is training in {self.folder}; wait until it ends, or choose another folder with "
                "run.dir="
            ) from error
        try:
            yield
        finally:
            lock.release()
            if [file.name for file in self.folder.iterdir()] == ["lock"]:  # nothing was written
                (self.folder / "lock").unlink()
                self.folder.rmdir()

    def start(self) -> None:
        """Prepare the folder for a new or a resumed run."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        if not self.last.exists():  # remove the files of an earlier run whose last.pt was deleted
            for file in (
                *self._numbered(),
                self.log_file,
                self.best,
                *map(self.folder.joinpath, ("mlflow-run", "wandb-run", "initial_weights.json", "report.html")),
            ):
                file.unlink(missing_ok=True)
            for name in ("evaluation", "profile", "tensorboard", "wandb"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self.write_json("environment.json", environment())

    def _remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed; the lock keeps other processes away."""
        for folder in (self.folder, self.folder / "checkpoints", *self.folder.glob("evaluation/*")):
            remove_leftovers(folder, locked=True)
            for temporary in folder.glob("*.tmp"):  # of earlier versions
                temporary.unlink()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, given by its path in the run folder."""
        if not self.writes:
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=2) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the log, and pass it to the trackers.

        NaN and infinity are written as null. Fields that differ between two otherwise identical runs, such as
        durations, belong under the key `time`.
        """
        if not self.writes:
            return
        with open(self.log_file, "a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._tell_trackers(lambda tracker: tracker.log(record))

    @property
    def takes_pictures(self) -> bool:
        """Whether pictures of the validation are used by a tracker."""
        return bool(self.trackers)

    def show_picture(self, name: str, picture: Any, step: int) -> None:
        """Pass a picture, uint8 [H, W, 3], to the trackers."""
        self._tell_trackers(lambda tracker: tracker.show(name, picture, step))

    def pass_scores(self, scores: Mapping[str, Any], step: int) -> None:
        """Pass the final scores, the content of scores.json, to the trackers."""
        self._tell_trackers(lambda tracker: tracker.scores(scores, step))

    def close(self, ended: Ended) -> None:
        """Close the trackers and tell them how the run ended."""
        self._tell_trackers(lambda tracker: tracker.close(ended))
        self.trackers = []

    def _tell_trackers(self, tell: Callable[[Any], object]) -> None:
        """Tell all trackers something. One that fails is left out from then on, so that the training is not lost."""
        for tracker in [*self.trackers]:
            try:
                tell(tracker)
            except Exception as error:  # of any type, such as of a server that cannot be reached
                warnings.warn(
                    f"the tracker {type(tracker).__name__} failed ({type(error).__name__}: {error}); it is left out "
                    "from now on, and the training goes on",
                    stacklevel=2,
                )
                self.trackers.remove(tracker)
                with contextlib.suppress(Exception):  # its run would stay open, and the next one could not start
                    tracker.close("FAILED")

    def cut_log(self, step: int, *, validation_pending: bool = False) -> None:
        """Remove the records after `step`, the step of the checkpoint from which a run is resumed.

        validation_pending: Whether the validation of that step is to be repeated, whose record is removed too.
        """
        if not self.writes or not self.log_file.exists():
            return
        records = [record for record in self.records() if record["step"] <= step]
        if validation_pending:
            records = [record for record in records if record["step"] < step or record["kind"] != "epoch"]
        replace_text(self.log_file, "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records))


def _finite(value: Any) -> Any:
    """Nested plain data with None in place of NaN and infinity, which JSON does not support."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a log line; None for a line that was cut short by a crash, or damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also for bytes that are no text
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
    return record if is_record else None
