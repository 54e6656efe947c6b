"""Evaluation of a folder of predicted masks against a folder of reference masks, from any tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segkit.data.formats import case_name
from segkit.data.formats.geometry import ras_spacing
from segkit.data.mask_encoding import AS_STORED, MaskEncoding
from segkit.data.mask_validation import ordered_mapping
from segkit.data.readers import check_geometry, geometry_of, image_files, read_mask
from segkit.evaluation.results import CaseScores
from segkit.evaluation.scorer import Scorer
from segkit.evaluation.scoring import Scoring
from segkit.labels import Labels
from segkit.utils.errors import DataError, RunError
from segkit.utils.text import listed

Encodings = tuple[MaskEncoding, MaskEncoding]  # of predictions, and of references


def score_folder(
    predictions: Path,
    references: Path,
    labels: Labels,
    scoring: Scoring,
    *,
    group: str | None = None,
    encodings: Encodings = (AS_STORED, AS_STORED),
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> CaseScores:
    """Score every case. The files of prediction and reference have the same name; their extensions may differ.

    Distances are measured in mm for volumes, by the spacing of the reference, and in pixels for 2D images and arrays.

    group: regular expression whose first group matches the group of a case, such as the patient, in its name; if it is
        None, each case is a group of its own.
    encodings: how classes are encoded in the files of the predictions, and of the references.
    track: wraps the iterable of case numbers, for a progress bar.

    Raises DataError for a folder without masks, a case that is in only one folder, shapes or geometries that differ,
    values that are not a class, volumes and 2D images in the same folder, and a name that `group` does not match.
    """
    pairs = paired_files(predictions, references)
    kinds = {geometry_of(reference, f"case {case}") is not None for case, (_, reference) in pairs.items()}
    if len(kinds) > 1:
        raise DataError(
            f"expected one kind of files in {references}, got volumes with a spacing in mm and files without one"
        )
    groups = {case: _group_of(case, group) for case in pairs}
    scorer, names = Scorer(len(pairs), labels, scoring, torch.device("cpu")), list(pairs)
    for number in track(range(len(names))):
        case = names[number]
        *masks, spacing = read_case(case, *pairs[case], labels, encodings)
        prediction, reference = (torch.from_numpy(mask)[None] for mask in masks)
        scorer.add(case, groups[case], predicted_channels(prediction, labels), reference, spacing)
    return replace(scorer.result(), threshold=encodings[0].threshold)


def predicted_channels(prediction: Tensor, labels: Labels) -> Tensor:
    """A predicted mask [1, *S] as a predictor gives it: regions are the unions of predicted values, [1, K, *S]."""
    return prediction if labels.regions is None else labels.onehot(labels.target(prediction)).to(torch.uint8)


def paired_files(predictions: Path, references: Path) -> dict[str, tuple[Path, Path]]:
    """The files of each case, sorted by name.

    Raises DataError if a folder is missing or empty, or if a case is in only one of them.
    """
    for folder in (predictions, references):
        if not folder.is_dir():
            raise DataError(f"expected a folder of masks at {folder}, but there is none")
    predicted, reference = (
        {case_name(file): file for file in image_files(folder)} for folder in (predictions, references)
    )
    for missing, folder, other in (
        (sorted(reference.keys() - predicted.keys()), predictions, references),
        (sorted(predicted.keys() - reference.keys()), references, predictions),
    ):
        if missing:
            shown = listed(missing)
            raise DataError(
                f"{len(missing)} cases of {other} have no file in {folder}: {shown}; every case needs a "
                "prediction and a reference of the same name, since leaving cases out would change the means"
            )
    return {case: (predicted[case], reference[case]) for case in sorted(reference)}


def read_case(
    case: str,
    prediction: Path,
    reference: Path,
    labels: Labels,
    encodings: Encodings = (AS_STORED, AS_STORED),
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Read the predicted and the reference mask of a case, and the spacing of the reference.

    Raises DataError if the masks do not have the same grid, or contain values that are not a class.
    """
    reference_mask = read_mask(reference, labels, encodings[1], case, advice=_suggest_for_reference)
    # the prediction of ignored pixels does not matter, but it must be a class
    classes = Labels(labels.names, labels.mode, regions=labels.regions)
    predicted_mask = read_mask(prediction, classes, encodings[0], case, advice=_suggest_for_prediction)
    if predicted_mask.shape != reference_mask.shape:
        raise DataError(
            f"case {case}: expected a prediction of the size {list(reference_mask.shape)} of {reference}, got "
            f"{list(predicted_mask.shape)} in {prediction}; resample it to the reference with nearest-neighbour "
            "interpolation"
        )
    file_geometries = [geometry_of(file, f"case {case}, file {file}") for file in (prediction, reference)]
    geometries = [geometry for geometry in file_geometries if geometry is not None]
    if len(geometries) == 1:
        raise DataError(f"case {case}: expected either two volumes or none, got {prediction} and {reference}")
    if not geometries:
        return predicted_mask, reference_mask, (1.0,) * (reference_mask.ndim - labels.has_mask_channels)
    spacings = [ras_spacing(geometry, f"case {case}") for geometry in geometries]
    if not np.allclose(*spacings, rtol=0.01):
        shown = [" x ".join(f"{side:g}" for side in spacing) for spacing in spacings]
        raise DataError(
            f"case {case}: expected the spacing of {reference}, {shown[1]} mm, got {shown[0]} mm in {prediction}; "
            "copy the header of the reference if the grids are the same, otherwise resample the prediction"
        )
    check_geometry(reference, prediction, f"case {case}, file {prediction}", exactly=True)
    return predicted_mask, reference_mask, spacings[1]


def _suggest_for_reference(present: Sequence[int], offending: Sequence[int], labels: Labels, _file: Path) -> str:
    return _suggestion(present, offending, labels, f"; if it marks ignored pixels, add --ignore {offending[0]}")


def _suggest_for_prediction(present: Sequence[int], offending: Sequence[int], labels: Labels, _file: Path) -> str:
    return _suggestion(
        present, offending, labels, "; a prediction must be a class at every pixel, also at ignored ones"
    )


def _suggestion(present: Sequence[int], offending: Sequence[int], labels: Labels, last: str) -> str:
    """How to fix values that are not a class, with options of the command."""
    if set(present) <= {0, 255} and max(labels.values) == 1:
        return "it looks like a binary mask of 0 and 255: add --values 255:1"
    mapping = ordered_mapping(present, offending, labels)
    if mapping is not None:
        pairs = ",".join(f"{value}:{number}" for value, number in mapping.items())
        return f"if they are the classes in the order of --classes, add --values {pairs}{last}"
    option = "--classes" if labels.regions is None else "one of the unions of --regions"
    return (
        f"if {offending[0]} is a class, add it to {option}; if it stands for another class, add --values with that "
        f"class, such as --values {offending[0]}:{max(labels.values)}{last}"
    )


def _group_of(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    try:
        match = re.search(pattern, case)
    except re.error as error:
        raise RunError(f"--group {pattern!r} is not a valid regular expression: {error}") from error
    if match is None or not match.groups():
        raise DataError(f"case {case}: expected a name that --group {pattern!r} matches, with one (...) group")
    return match.group(1)
