"""The command `predict`: write masks for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from segkit.data.cases import Case, RawCase
from segkit.data.mask_writer import mask_files, write_mask
from segkit.data.readers import read_image
from segkit.data.sources.unlabelled import unlabelled_cases
from segkit.experiment.evaluate_run import checkpoint_file
from segkit.experiment.trained_model import TrainedModel, load_trained
from segkit.inference.memory import PredictionMemoryError
from segkit.labels import Labels
from segkit.utils.errors import DataError, RunError, is_out_of_memory
from segkit.utils.files import remove_leftovers
from segkit.utils.progress import tracked
from segkit.utils.text import listed_lines

CHANGEABLE = ("evaluation.window", "evaluation.overlap", "evaluation.threshold")
SHOWN = 100  # failures that the message lists


class PredictionsFailed(DataError):
    """Some images have no mask. The exit code is 3, or 4 if memory was the only reason."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


def predict(
    checkpoint: Path, source: Path, output: Path, overrides: Sequence[str] = (), *, device: str | None, console: Console
) -> None:
    """Write the predicted mask of every image. An image that cannot be predicted does not stop the others.

    source: see `unlabelled_cases`.
    overrides: `key=value` for one of CHANGEABLE.

    Raises PredictionsFailed at the end, with the reason for each image without a mask; before anything is written,
    DataError if there are no images or two masks would have the same name, and RunError if a mask would overwrite an
    image; and RunError if a mask cannot be written.
    """
    _check_overrides(overrides)
    trained = load_trained(checkpoint_file(checkpoint), device, overrides)
    data = trained.config.data
    cases = unlabelled_cases(source, trained.labels, trained.preprocess.channels, data.name, data.args)
    files, failures = _mask_files(cases, output, trained.labels)
    _check_files(files)
    _prepare(output)
    for case in tracked(files, "predicting", len(files), console):
        try:
            mask = _predicted(trained, case)
        except (DataError, MemoryError) as error:
            failures[case] = error
            continue
        _write(mask, case, output, trained)
    console.print(f"{len(cases) - len(failures)} masks written to {output}", markup=False)
    if failures:
        raise _failed(failures, files, len(cases))


def _check_overrides(overrides: Sequence[str]) -> None:
    other = [text for text in overrides if text.partition("=")[0] not in CHANGEABLE]
    if other:
        raise RunError(f"expected changes of {', '.join(CHANGEABLE)}, got {other[0]}; all else is part of the network")


def _mask_files(
    cases: Sequence[Case], output: Path, labels: Labels
) -> tuple[dict[Case, list[Path]], dict[Case, DataError | MemoryError]]:
    """The files of the masks, and the errors of images whose format cannot be read."""
    files: dict[Case, list[Path]] = {}
    failures: dict[Case, DataError | MemoryError] = {}
    for case in cases:
        try:
            files[case] = mask_files(case.images[0], output, labels, case.name)
        except DataError as error:
            failures[case] = error
    return files, failures


def _check_files(files: Mapping[Case, Sequence[Path]]) -> None:
    """Raise an error if a mask would replace an image, or the mask of another image."""
    images = {image.resolve() for case in files for image in case.images}
    first: dict[Path, Case] = {}
    for case, masks in files.items():
        for mask in masks:
            if mask.resolve() in images:
                raise RunError(
                    f"the mask of {case.images[0]} would overwrite the image {mask}: choose another --output"
                )
            other = first.setdefault(mask, case)
            if other is not case:
                raise DataError(
                    f"{other.images[0]} and {case.images[0]} would have the same mask {mask}; rename one of them"
                )


def _prepare(output: Path) -> None:
    """Make the folder, and remove what a killed process left in it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {output} cannot be made ({error.strerror}): choose another --output") from error
    remove_leftovers(output)


def _predicted(trained: TrainedModel, case: Case) -> np.ndarray:
    """The mask of a case. Raises DataError and MemoryError, which name the file."""
    where = f"case {case.name}, file {case.images[0]}"
    try:
        image, spacing = read_image(case.images, case.name)
        return trained.predict(RawCase(image, None, spacing), where)
    except PredictionMemoryError as error:
        raise PredictionMemoryError(f"{where}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{where}: out of memory while reading it, before the prediction") from error


def _write(mask: np.ndarray, case: Case, output: Path, trained: TrainedModel) -> None:
    """Write a mask. Raises RunError if that is impossible, as on a full disk."""
    try:
        write_mask(mask, case.images[0], output, trained.labels, case.name)
    except OSError as error:
        raise RunError(
            f"the mask of {case.images[0]} cannot be written to {output} ({error.strerror or error}); the masks before "
            "it are complete: make room or choose another --output, and run the same command again"
        ) from error


def _failed(
    failures: Mapping[Case, DataError | MemoryError], files: Mapping[Case, Sequence[Path]], cases: int
) -> DataError:
    """The error that lists all images without a mask."""
    lines = [f"{error}{_stale(files.get(case, []))}" for case, error in failures.items()]
    is_memory = all(isinstance(error, MemoryError) for error in failures.values())
    return PredictionsFailed(
        f"{len(failures)} of {cases} images have no mask:{listed_lines(lines, limit=SHOWN)}",
        4 if is_memory else 3,
    )


def _stale(masks: Sequence[Path]) -> str:
    """What to say about a mask that an earlier command wrote for an image without a new one."""
    existing = [mask for mask in masks if mask.exists()]
    return f"; {existing[0]} is the mask of an earlier command" if existing else ""
