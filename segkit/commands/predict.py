"""The command `predict`: write masks for images, and what else is known about each pixel."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from segkit.commands import prediction_jobs
from segkit.commands.checkpoints import checkpoint_files
from segkit.commands.decisions import chosen_decisions
from segkit.commands.prediction_jobs import (
    Claims,
    Error,
    Job,
    PredictOptions,
    check_files,
    planned,
    remaining,
    remove_files,
)
from segkit.commands.prediction_record import check_record, record_of, write_record
from segkit.data.cases import Case, RawCase
from segkit.data.mask_writer import write_mask
from segkit.data.pieces import ArrayPieces, thinned
from segkit.data.readers import is_read_in_pieces, large_image, read_image
from segkit.data.sources.unlabelled import unlabelled_cases
from segkit.data.value_writer import write_values
from segkit.experiment.trained_ensemble import PreparedImage, TrainedEnsemble, load_members, together
from segkit.inference.averaged_network import entropy
from segkit.inference.decisions import decided
from segkit.inference.memory import PredictionMemoryError
from segkit.inference.prediction import Prediction, Progress
from segkit.inference.windows import Slab
from segkit.labels import Labels
from segkit.utils.console import warn
from segkit.utils.errors import DataError, RunError, is_out_of_memory, kept
from segkit.utils.files import remove_leftovers
from segkit.utils.pipeline import overlapped
from segkit.utils.progress import ProgressDisplay
from segkit.utils.text import listed_lines

CHANGEABLE = ("evaluation.window", "evaluation.overlap", "evaluation.threshold")
SHOWN = 100  # failures that the message lists


class PredictionsFailed(DataError):
    """Some images have no mask. The exit code is 3, or 4 if memory was the only reason.

    results: what `predict` returns otherwise.
    """

    def __init__(self, message: str, code: int, results: dict[str, Any]):
        super().__init__(message)
        self.exit_code, self.results = code, results


def predict(options: PredictOptions, console: Console) -> dict[str, Any]:
    """Write the predicted mask of every image. An image that cannot be predicted does not stop the others.

    Several processes can share the work: each takes the images that no other one has taken.

    Returns the folder, the numbers of masks that were written, that existed, and that are left to other processes, and
    the reason for each case without a mask.

    Raises PredictionsFailed at the end, with the reason for each image without a mask; before anything is written,
    DataError if there are no images or two masks would have the same name, and RunError if a mask would overwrite an
    image or a mask that exists; and RunError if a mask cannot be written.
    """
    _check_overrides(options.overrides)
    if options.skip_existing and options.overwrite:
        raise RunError("give either --skip-existing or --overwrite, not both")
    files = checkpoint_files(options.checkpoints, options.loss)
    members = load_members(files, options.device, options.overrides)
    ensemble = together(members, tta=options.tta, disagreement=options.uncertainty)
    applied = chosen_decisions(options.decisions, members, ensemble.origin.orientations, console)
    if applied is not None:
        ensemble = replace(ensemble, predictor=decided(ensemble.predictor, applied.decisions))
    data = ensemble.config.data
    cases = unlabelled_cases(options.source, ensemble.labels, members[0].preprocess.channels, data.name, data.args)
    jobs, failures = planned(cases, ensemble, options)
    check_files(jobs)
    _prepare(options.output)
    left = remaining(jobs, options)
    record = record_of(ensemble, applied)
    check_record(options.output, record, keeps_masks=len(left) < len(jobs), replaced=_replaced(jobs, options))
    if options.overwrite:
        remove_files(jobs)
    write_record(options.output, record)
    Claims(options.output).tidy(jobs)
    work = _Work(ensemble, options, {})
    done = _predict_all(left, work, console)
    skipped, others = len(jobs) - len(left), len(left) - done - len(work.failures)
    _tell(done, skipped, others, options, console)
    failures |= work.failures
    results = {
        "output": str(options.output),
        "written": done,
        "skipped": skipped,
        "left_to_others": others,
        "failed": {case.name: str(error) for case, error in failures.items()},
    }
    if failures:
        raise _failed(failures, len(cases), results)
    return results


def _check_overrides(overrides: Sequence[str]) -> None:
    other = [text for text in overrides if text.partition("=")[0] not in CHANGEABLE]
    if other:
        raise RunError(f"expected changes of {', '.join(CHANGEABLE)}, got {other[0]}; all else is part of the network")


def _prepare(output: Path) -> None:
    """Make the folder, and remove what a killed process left in it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {output} cannot be made ({error.strerror}): choose another --output") from error
    for folder in (output, *(path for path in output.iterdir() if path.is_dir())):
        remove_leftovers(folder)


def _replaced(jobs: Sequence[Job], options: PredictOptions) -> set[Path]:
    """The files that are predicted again."""
    return {file for job in jobs for file in job.files} if options.overwrite else set()


# --- predicting ------------------------------------------------------------------------------------------------------


def _predict_all(jobs: Sequence[Job], work: _Work, console: Console) -> int:
    """Predict all jobs that no other process takes, also those of a process that dies meanwhile.

    Returns how many of them have a mask now.
    """
    start = idle_since = time.monotonic()
    with Claims(work.options.output) as claims, ProgressDisplay("predicting", len(jobs), console) as display:

        def finished() -> int:
            return len(claims.seen) - len(claims.held)

        def compute(job: Job, contents: _Contents | None) -> _Result | None:
            # the image before this one may still be written
            return work.compute(job, contents, lambda share: display.update(max(display.completed, finished() + share)))

        left = list(jobs)
        while left and time.monotonic() - idle_since <= prediction_jobs.WAIT_SECONDS:
            before = len(claims.seen)
            for job in overlapped(claims.taken(left), work.read, compute, work.write, _close):
                claims.release(job)
                if job.case in work.failures:
                    warn(f"case {job.case.name}", console, "failed")
                display.update(finished(), _rate(finished(), time.monotonic() - start))
            left = claims.of_others(jobs)
            if len(claims.seen) > before:
                idle_since = time.monotonic()
            elif left:
                time.sleep(prediction_jobs.LOOK_SECONDS)
        return len(claims.seen) - len(work.failures)


def _rate(images: int, seconds: float) -> str:
    rate = images / max(seconds, 1e-9)
    return f"{rate:.1f} images/s" if rate >= 1 else f"{60 * rate:.1f} images/min"


@dataclass(frozen=True)
class _Contents:
    """What was read of an image.

    network: what the predictor needs. size: of the image, [D].
    image, step: every n-th pixel, if a picture is drawn. files: temporary ones, needed until the image is predicted.
    """

    network: PreparedImage
    size: tuple[int, ...]
    image: np.ndarray | None
    step: int = 1
    files: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True)
class _Result:
    """What is written for an image.

    mask: [*S] or [K, *S]. values: what is written beside it, [K, *S] or [1, *S]. image, step: see `_Contents`.
    """

    mask: np.ndarray
    values: Mapping[str, np.ndarray]
    image: np.ndarray | None
    step: int


@dataclass(frozen=True)
class _Work:
    """The three steps of predicting an image. An image that cannot be predicted goes to `failures`, with the reason."""

    ensemble: TrainedEnsemble
    options: PredictOptions
    failures: dict[Case, Error]

    def read(self, job: Job) -> _Contents | None:
        """Read and prepare an image."""
        with self._noting_failure(job, "reading it, before the prediction"):
            if is_read_in_pieces(job.case.images, job.case.name):
                return self._read_in_pieces(job)
            image, spacing = read_image(job.case.images, job.case.name)
            if self.ensemble.is_large(image.shape, spacing):
                images = self.ensemble.pieces(ArrayPieces(image, lambda piece: piece, job.where), spacing, job.where)
            else:
                images = self.ensemble.images(RawCase(image, None, spacing), job.where)
            return _Contents(images, image.shape[1:], image if self.options.overlays else None)

    def _read_in_pieces(self, job: Job) -> _Contents:
        """Prepare an image that is read while it is predicted."""
        with ExitStack() as files:
            source = large_image(job.case.images[0], self.options.output, job.case.name)
            pieces, spacing = files.enter_context(source)
            prepared = self.ensemble.pieces(pieces, spacing, job.where)
            image, step = thinned(pieces) if self.options.overlays else (None, 1)
            return _Contents(prepared, pieces.shape[1:], image, step, files.pop_all())

    def compute(self, job: Job, contents: _Contents | None, progress: Progress) -> _Result | None:
        """Predict an image. progress: see `Predictor.predict`."""
        if contents is None:
            return None
        with contents.files, self._noting_failure(job, "keeping its prediction"):
            keep_logits = self.options.probabilities or self.options.uncertainty
            prediction = self.ensemble.prediction(
                contents.network, contents.size, job.where, keep_logits=keep_logits, progress=progress
            )
            values = {kind: value[0].cpu().numpy() for kind, value in self._values(prediction, job).items()}
            return _Result(prediction.mask[0].cpu().numpy(), values, contents.image, contents.step)

    def write(self, job: Job, result: _Result | None) -> None:
        """Write all files of an image, the masks last. Raises RunError if that is impossible, as on a full disk."""
        if result is None:
            return
        labels, output, image = self.ensemble.labels, self.options.output, job.case.images[0]
        try:
            for file in job.others.values():
                file.parent.mkdir(exist_ok=True)
            for kind, values in result.values.items():
                names = labels.channel_names if len(values) == labels.channels else (kind,)
                write_values(values, image, job.others[kind], names, _largest(kind, labels))
            if result.image is not None:
                thin = (..., *[slice(None, None, result.step)] * (result.image.ndim - 1))
                self._draw(job, result.image, result.mask[thin])
            write_mask(result.mask, image, output, labels, job.case.name)
        except DataError as error:  # the image was needed once more, and is not what it was
            self.failures[job.case] = kept(error)
        except MemoryError:
            self.failures[job.case] = MemoryError(f"{job.where}: out of memory while writing its files")
        except OSError as error:
            raise RunError(
                f"the mask of {image} cannot be written to {output} ({error.strerror or error}); the masks before it "
                "are complete: make room or choose another --output, and run the same command again with "
                "--skip-existing"
            ) from error

    def _draw(self, job: Job, image: np.ndarray, mask: np.ndarray) -> None:
        """Draw the picture of an image. If that fails, warn: the mask does not depend on it."""
        from segkit.report.prediction_picture import write_prediction_picture

        try:
            write_prediction_picture(job.case.name, image, mask, self.ensemble.labels, job.others["overlays"])
        except OSError:
            raise
        except Exception as error:
            warnings.warn(f"{job.where}: no picture ({type(error).__name__}: {error})", stacklevel=2)

    @contextmanager
    def _noting_failure(self, job: Job, doing: str) -> Iterator[None]:
        """Note that an image cannot be predicted, with its file. doing: what memory may not have sufficed for."""
        try:
            yield
        except DataError as error:
            self.failures[job.case] = kept(error)
        except PredictionMemoryError as error:
            self.failures[job.case] = PredictionMemoryError(f"{job.where}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.failures[job.case] = MemoryError(f"{job.where}: out of memory while {doing}")

    def _values(self, prediction: Prediction, job: Job) -> dict[str, Tensor]:
        """What is written beside the mask, [1, K, *S] or [1, 1, *S] each."""
        labels, values = self.ensemble.labels, {}
        if prediction.logits is not None:
            # in pieces and in place: of a large image, a copy would not fit into memory
            pieces = [piece.logits for piece in Slab(0, prediction.logits, axis=0).pieces()]
            with torch.inference_mode():
                for piece in pieces:
                    piece.copy_(labels.probabilities(piece))
            values["probabilities"] = prediction.logits
            if "entropy" in job.others:
                values["entropy"] = torch.cat([entropy(piece, labels) for piece in pieces], 2)
        if prediction.disagreement is not None:
            values["disagreement"] = prediction.disagreement
        return {kind: value for kind, value in values.items() if kind in job.others}


def _close(contents: _Contents | None) -> None:
    """Remove the temporary files of an image that was read, but will not be predicted."""
    if contents is not None:
        contents.files.close()


def _largest(kind: str, labels: Labels) -> float:
    """The largest value of what is written beside masks."""
    if kind == "probabilities":
        return 1.0
    return math.log(labels.channels if labels.mode == "multiclass" else 2)


# --- what is told ----------------------------------------------------------------------------------------------------


def _tell(done: int, skipped: int, others: int, options: PredictOptions, console: Console) -> None:
    console.print(f"{done} masks written to {options.output}", markup=False, highlight=False)
    if skipped:
        console.print(f"{skipped} images had their masks already", markup=False, highlight=False)
    if others > 0:
        console.print(f"{others} images are left to other processes", markup=False, highlight=False)


def _failed(failures: Mapping[Case, Error], cases: int, results: dict[str, Any]) -> DataError:
    """The error that lists all images without a mask."""
    is_memory = all(isinstance(error, MemoryError) for error in failures.values())
    lines = listed_lines([str(error) for error in failures.values()], limit=SHOWN)
    return PredictionsFailed(f"{len(failures)} of {cases} images have no mask:{lines}", 4 if is_memory else 3, results)
