"""The images of a prediction: which files are written for each, which exist, and which process predicts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from segkit.data.cases import Case
from segkit.data.mask_writer import file_name, mask_files
from segkit.data.value_writer import value_file
from segkit.experiment.trained_ensemble import TrainedEnsemble
from segkit.utils.errors import DataError, RunError
from segkit.utils.leases import LEASE_SECONDS, Leases, lease_file
from segkit.utils.text import listed

Error = DataError | MemoryError
# how often, and how long, jobs of other processes are looked at: until the lease of a dead one on another machine ends
LOOK_SECONDS, WAIT_SECONDS = 2.0, LEASE_SECONDS + 10


@dataclass(frozen=True)
class PredictOptions:
    """What is predicted, with which checkpoints, and what is written.

    checkpoints, loss: see `checkpoint_files`. source: see `unlabelled_cases`.
    tta: whether flips and turns of each image are averaged. decisions: see `chosen_decisions`.
    probabilities, uncertainty, overlays: what is written beside the masks, each in a folder of its own.
    skip_existing, overwrite: what happens to images whose masks exist; neither refuses to start.
    """

    checkpoints: Sequence[Path]
    source: Path
    output: Path
    loss: str | None = None
    overrides: Sequence[str] = ()
    device: str | None = None
    tta: bool = False
    decisions: str | None = None
    probabilities: bool = False
    uncertainty: bool = False
    overlays: bool = False
    skip_existing: bool = False
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """An image to predict, with the files that are written for it by what they hold. The masks are written last, so
    that an image whose masks exist is finished."""

    case: Case
    masks: tuple[Path, ...]
    others: Mapping[str, Path]

    @property
    def files(self) -> list[Path]:
        return [*self.others.values(), *self.masks]

    @property
    def is_finished(self) -> bool:
        return all(file.exists() for file in self.files)

    @property
    def where(self) -> str:
        return f"case {self.case.name}, file {self.case.images[0]}"


def planned(
    cases: Sequence[Case], ensemble: TrainedEnsemble, options: PredictOptions
) -> tuple[list[Job], dict[Case, Error]]:
    """The jobs, and the errors of images whose format cannot be read."""
    jobs: list[Job] = []
    failures: dict[Case, Error] = {}
    for case in cases:
        try:
            jobs.append(_job(case, ensemble, options))
        except DataError as error:
            failures[case] = error
    return jobs, failures


def _job(case: Case, ensemble: TrainedEnsemble, options: PredictOptions) -> Job:
    image, output = case.images[0], options.output
    masks = tuple(mask_files(image, output, ensemble.labels, case.name))
    kinds = {
        "probabilities": options.probabilities,
        "entropy": options.uncertainty,
        "disagreement": options.uncertainty and ensemble.predictions > 1,
    }
    others = {kind: value_file(image, output / kind, case.name) for kind, wanted in kinds.items() if wanted}
    if options.overlays:
        others["overlays"] = output / "overlays" / f"{file_name(case.name)}.png"
    return Job(case, masks, others)


def check_files(jobs: Sequence[Job]) -> None:
    """Raise an error if a file would replace an image, or the file of another image."""
    images = {image.resolve() for job in jobs for image in job.case.images}
    first: dict[Path, Job] = {}
    for job in jobs:
        for file in job.files:
            if file.resolve() in images:
                raise RunError(
                    f"the mask of {job.case.images[0]} would overwrite the image {file}: choose another --output"
                )
            other = first.setdefault(file, job)
            if other is not job:
                raise DataError(
                    f"{other.case.images[0]} and {job.case.images[0]} would have the same mask {file}; rename one of "
                    "them"
                )


def remaining(jobs: Sequence[Job], options: PredictOptions) -> list[Job]:
    """The jobs that are not finished. Raises RunError if some are and neither of the two options is given."""
    if options.overwrite:
        return list(jobs)
    existing = [file for job in jobs for file in job.files if file.exists()]
    if existing and not options.skip_existing:
        raise RunError(
            f"{len(existing)} files exist in {options.output} already ({listed([file.name for file in existing])}): "
            "give --skip-existing to keep them and predict the other images, --overwrite to predict them again, or "
            "another --output"
        )
    return [job for job in jobs if not job.is_finished]


def remove_files(jobs: Sequence[Job]) -> None:
    """Remove the files that are predicted again. Otherwise nobody could tell the old ones from the new ones if the
    command is interrupted."""
    for job in jobs:
        for file in job.files:
            file.unlink(missing_ok=True)


class Claims:
    """The images that this process has taken, so that several processes can share a folder."""

    def __init__(self, output: Path):
        self.output = output
        self.leases = Leases(on_lost=lambda _lost: None)  # both processes would write the same mask
        self.held: dict[Job, ExitStack] = {}
        self.seen: set[Job] = set()  # taken at some time, so that a job that fails is not taken again

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for stack in self.held.values():
            stack.close()

    def taken(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Take the jobs that are neither finished nor taken by another process, one after another."""
        for job in jobs:
            stack = ExitStack()
            is_taken = stack.enter_context(self.leases.acquire(self._place(job)))
            if is_taken and not job.is_finished:
                self.held[job] = stack
                self.seen.add(job)
                yield job
            else:
                stack.close()

    def of_others(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that another process has taken and not finished yet."""
        return [job for job in jobs if job not in self.seen and not job.is_finished]

    def tidy(self, jobs: Sequence[Job]) -> None:
        """Remove the leases on finished jobs that a killed process left behind."""
        for job in jobs:
            if job.is_finished and lease_file(self._place(job)).exists():
                with self.leases.acquire(self._place(job)):
                    pass

    def _place(self, job: Job) -> Path:
        return self.output / f".{job.masks[0].name}"

    def release(self, job: Job) -> None:
        """Let others take a job."""
        self.held.pop(job).close()
