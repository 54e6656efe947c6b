"""Judging a folder of predicted masks by a folder of references, whatever tool predicted them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from segkit.data.formats import case_name
from segkit.data.formats.geometry import ras_spacing
from segkit.data.mask_encoding import MaskCode
from segkit.data.readers import check_geometry, geometry_of, image_files, read_mask
from segkit.evaluation.results import EvaluationResult
from segkit.evaluation.scorer import Scorer
from segkit.evaluation.scoring import Scoring
from segkit.labels import Labels
from segkit.utils.errors import DataError, RunError


def score_folder(
    predictions: Path,
    references: Path,
    labels: Labels,
    scoring: Scoring,
    *,
    group: str | None = None,
    values: Mapping[int, int] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> EvaluationResult:
    """Count and measure every case; prediction and reference are files of one name, but for the ending.

    Volumes are compared in millimetres, by the spacing of the reference; pictures and arrays in pixels. group: a
    regular expression whose first group is the patient that a case is of; without it each case is its own. values:
    replaces values of the files by class numbers, in both folders.

    Raises DataError for a folder without masks, a case that only one folder has, shapes or places that differ, values
    that are no class, pixels and millimetres in one folder, and a `group` that does not match.
    """
    pairs = paired_files(predictions, references)
    kinds = {geometry_of(reference, f"case {case}") is not None for case, (_, reference) in pairs.items()}
    if len(kinds) > 1:
        raise DataError(f"expected one kind of files in {references}, got volumes in mm and others in pixels")
    groups = {case: _group(case, group) for case in pairs}
    scorer, names = Scorer(len(pairs), labels, scoring, torch.device("cpu")), list(pairs)
    for number in track(range(len(names))):
        case = names[number]
        *masks, spacing = read_case(case, *pairs[case], labels, values)
        prediction, reference = (torch.from_numpy(mask)[None] for mask in masks)
        if labels.regions is not None:  # which are unions of what is predicted, as they are of the reference
            prediction = labels.onehot(labels.target(prediction)).to(torch.uint8)
        scorer.add(case, groups[case], prediction, reference, spacing)
    return scorer.result()


def paired_files(predictions: Path, references: Path) -> dict[str, tuple[Path, Path]]:
    """The files of each case, sorted. Raises DataError if a folder is empty or a case is in one of them only."""
    for folder in (predictions, references):
        if not folder.is_dir():
            raise DataError(f"expected a folder of masks, found none at {folder}")
    predicted, wanted = (
        {case_name(file): file for file in image_files(folder)} for folder in (predictions, references)
    )
    for missing, where, there in (
        (sorted(wanted.keys() - predicted.keys()), predictions, references),
        (sorted(predicted.keys() - wanted.keys()), references, predictions),
    ):
        if missing:
            shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
            raise DataError(
                f"{len(missing)} cases of {there} have no file in {where}: {shown}; every case needs both, under one "
                "name, since a case that is left out would be missing from the means"
            )
    return {case: (predicted[case], wanted[case]) for case in sorted(wanted)}


def read_case(
    case: str, prediction: Path, reference: Path, labels: Labels, values: Mapping[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Both masks on one grid, and its spacing. Raises DataError if the masks do not lie on each other."""
    known = read_mask(reference, labels, MaskCode(values), case, way_out=_of_reference)
    # what a prediction says of ignored pixels does not matter, but it has to be a class
    classes = Labels(labels.names, labels.mode, regions=labels.regions)
    guessed = read_mask(prediction, classes, MaskCode(values), case, way_out=_of_prediction)
    if guessed.shape != known.shape:
        raise DataError(
            f"case {case}: expected a prediction of the size {list(known.shape)} of {reference}, got "
            f"{list(guessed.shape)} in {prediction}; resample it to the reference with nearest neighbours"
        )
    places = [geometry_of(file, f"case {case}, file {file}") for file in (prediction, reference)]
    found = [place for place in places if place is not None]
    if len(found) == 1:
        raise DataError(f"case {case}: expected two volumes or none, got {prediction} and {reference}")
    if not found:
        return guessed, known, (1.0,) * (known.ndim - labels.has_mask_channels)
    spacings = [ras_spacing(place, f"case {case}") for place in found]
    if not np.allclose(*spacings, rtol=0.01):
        shown = [" x ".join(f"{side:g}" for side in spacing) for spacing in spacings]
        raise DataError(
            f"case {case}: expected the voxels of {reference}, {shown[1]} mm, got {shown[0]} mm in {prediction}; "
            "copy the header of the reference if it is the same grid, else resample the prediction"
        )
    check_geometry(reference, prediction, f"case {case}, file {prediction}", exactly=True)
    return guessed, known, spacings[1]


def _of_reference(present: Sequence[int], offending: Sequence[int], labels: Labels, _file: Path) -> str:
    return _way_out(present, offending, labels, f"; if it marks pixels that count nowhere, --ignore {offending[0]}")


def _of_prediction(present: Sequence[int], offending: Sequence[int], labels: Labels, _file: Path) -> str:
    return _way_out(present, offending, labels, "; a prediction has to name a class everywhere, ignored pixels too")


def _way_out(present: Sequence[int], offending: Sequence[int], labels: Labels, last: str) -> str:
    """What may be wrong with values that are no class, in terms of the options of the command."""
    if set(present) <= {0, 255} and max(labels.values) == 1:
        return "it looks like a binary mask of 0 and 255: give --values 255:1"
    named = "--classes" if labels.regions is None else "one of the unions of --regions"
    return (
        f"if {offending[0]} is a class, name it in {named}; if it stands for another one, give for example "
        f"--values {offending[0]}:0{last}"
    )


def _group(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    try:
        found = re.search(pattern, case)
    except re.error as error:
        raise RunError(f"--group {pattern!r} is no regular expression: {error}") from error
    if found is None or not found.groups():
        raise DataError(f"case {case}: expected a name that --group {pattern!r} finds, with its first group in it")
    return found.group(1)
