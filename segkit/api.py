"""The Python interface: train, load, evaluate and compare, like the commands of the same names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from rich.console import Console
from torch import Tensor

from segkit.commands.checkpoints import checkpoint_files
from segkit.commands.compare import CompareOptions
from segkit.commands.compare import compare as run_comparison
from segkit.commands.decisions import NONE, chosen_decisions
from segkit.commands.evaluate import evaluate_checkpoint, evaluate_ensemble
from segkit.commands.train import train as run_training
from segkit.compare.score_table import read_rows
from segkit.data.cases import RawCase, check_finite
from segkit.data.mask_validation import check_mask
from segkit.evaluation.results import scores_json
from segkit.evaluation.scorer import Scorer
from segkit.evaluation.scoring import build_scoring
from segkit.experiment.build import MODES, ConfigSource
from segkit.experiment.decision_file import AppliedDecisions
from segkit.experiment.trained_ensemble import TrainedEnsemble, load_members, together
from segkit.experiment.trained_model import TrainedModel
from segkit.inference.decisions import decided
from segkit.inference.prediction import Prediction
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    scores: the contents of scores.json.
    folder: the run folder.
    """

    scores: dict[str, Any] = field(repr=False)
    folder: Path

    @cached_property
    def model(self) -> Model:
        """The trained model, loaded from the last checkpoint on first use."""
        return load(self.folder)


def train(
    config: ConfigSource,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
    verbose: bool = True,
) -> TrainResult:
    """Train an experiment and evaluate its last checkpoint, as `segkit train` does.

    Args:
        config: a YAML file, the name of a shipped configuration, or the same content as a mapping. Paths in a mapping
            are relative to the current directory.
        overrides: changes as on the command line, such as `["train.steps=100", "run.dir=runs/mine"]`.
        resume: continue a run that was interrupted, to the same weights and scores as without the interruption.
        allow: configuration keys in which a resumed run may differ from its start.
        verbose: print the header, progress and scores.

    A finished run is not trained again; its scores are returned. Raises ConfigError for a configuration with errors,
    DataError for bad data and RunError for a folder that holds another run.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    console = Console(quiet=not verbose)
    scores, folder = run_training(config, overrides, resume=resume, allow=allow, console=console)
    return TrainResult(scores, folder)


class Model:
    """A trained model with its labels, preprocessing and way of predicting, as stored in a checkpoint; or the average
    of several."""

    def __init__(self, ensemble: TrainedEnsemble, sources: Sequence[Path], tta: bool, applied: AppliedDecisions | None):
        self._ensemble, self._sources, self._tta, self._applied = ensemble, sources, tta, applied

    @property
    def _trained(self) -> TrainedModel:
        return self._ensemble.members[0]

    @property
    def labels(self) -> Labels:
        """The classes and their meaning."""
        return self._ensemble.labels

    @property
    def network(self) -> torch.nn.Module:
        """The network, in evaluation mode: image [B, C, *S], preprocessed and padded -> logits [B, K, *S]; of several
        checkpoints the first one's."""
        return self._trained.predictor.model

    @property
    def decisions(self) -> list[str]:
        """The decisions of `segkit tune` that predictions follow, in words."""
        return [] if self._applied is None else self._applied.decisions.in_words()

    def __repr__(self) -> str:
        classes = ", ".join(self.labels.names)
        sources = listed([str(source) for source in self._sources])
        return f"<segkit model {self._trained.config.model.name} from {sources}: {self.labels.mode}, {classes}>"

    def predict(self, image: ArrayLike | Tensor | str | Path, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Segment one image: the class numbers [*S] on its own grid, or 0 and 1 [K, *S] for overlapping classes.

        Args:
            image: a file in any format that segkit reads, or an array [*S] or [C, *S] with the values of such a file.
                For a model trained on image files such as PNG, uint8 and uint16 arrays are scaled to 0..1 as the files
                were, and floating-point arrays must lie between 0 and 1. For a model trained on NPY files or volumes,
                values are taken as they are.
            spacing: the pixel size in mm of each axis of an array; needed where the model resamples to a fixed
                spacing. Image files contain their spacing.

        Raises DataError for an image with other channels or axes than those in training, or with NaN, and for a network
        whose output is NaN or infinite.
        """
        return self._prediction(image, spacing).mask[0].cpu().numpy()

    def probabilities(
        self, image: ArrayLike | Tensor | str | Path, spacing: Sequence[float] | None = None
    ) -> np.ndarray:
        """The probability of each class, float32 [K, *S] on the image's own grid; [1, *S], of the positive class, in
        binary mode. Arguments and errors as for `predict`."""
        logits = self._prediction(image, spacing, keep_logits=True).logits
        assert logits is not None
        return self.labels.probabilities(logits)[0].cpu().numpy()

    def _prediction(
        self,
        image: ArrayLike | Tensor | str | Path,
        spacing: Sequence[float] | None,
        *,
        keep_logits: bool = False,
    ) -> Prediction:
        return self._ensemble.predict(self._raw(image, spacing), _where(image), keep_logits=keep_logits)

    def evaluate(
        self,
        split: str | None = None,
        *,
        data: str | Path | None = None,
        out: str | Path | None = None,
        overrides: Sequence[str] = (),
        verbose: bool = False,
    ) -> dict[str, Any]:
        """Evaluate the checkpoint as `segkit evaluate` does, several of them as one model. Returns the contents of
        scores.json.

        Args:
            split: `train`, `validation` or `test`; default: the part that was evaluated after training.
            data: another folder with the layout of the training data; all of its cases are evaluated.
            out: the folder for the tables; default: the run folder, to which decisions are not applied. Needed with
                `data`, `overrides`, `tta`, and a model that was loaded from a file, or from several.
            overrides: settings of the evaluation, such as `["evaluation.metrics=[dice, hd95]"]`.
        """
        options: Any = {
            "split": split,
            "data": None if data is None else Path(data),
            "out": None if out is None else Path(out),
            "device": str(self._trained.predictor.device),
            "tta": self._tta,
            "decisions": NONE if self._applied is None or out is None else str(self._applied.file),
            "console": Console(quiet=not verbose),
        }
        if len(self._sources) == 1:
            return evaluate_checkpoint(self._sources[0], overrides, **options)
        return evaluate_ensemble(self._sources, overrides, loss=None, **options)

    def _raw(self, image: ArrayLike | Tensor | str | Path, spacing: Sequence[float] | None) -> RawCase:
        if isinstance(image, (str, Path)):
            from segkit.data.readers import read_image

            if spacing is not None:
                raise ValueError(f"{image}: spacing is for arrays only; image files contain their spacing")
            array, own_spacing = read_image(Path(image))
            return RawCase(array, None, own_spacing)
        return self._raw_from_array(image, spacing)

    def _raw_from_array(self, image: ArrayLike | Tensor, spacing: Sequence[float] | None) -> RawCase:
        preprocess = self._trained.preprocess
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        array = array[None] if array.ndim == preprocess.dims else array
        if array.ndim != preprocess.dims + 1 or array.shape[0] != preprocess.channels:
            axes = "H, W" if preprocess.dims == 2 else "D, H, W"
            hint = (
                "; move the channels to the front with np.moveaxis(image, -1, 0)"
                if array.ndim == preprocess.dims + 1 and array.shape[-1] == preprocess.channels
                else ""
            )
            raise DataError(f"expected an image [{preprocess.channels}, {axes}], got {list(array.shape)}{hint}")
        array = self._as_read(array)
        array = np.ascontiguousarray(array, dtype=np.float32)
        check_finite(array, "image")
        if spacing is None and preprocess.spacing is not None:
            raise ValueError(
                f"this model resamples images to {list(preprocess.spacing)} mm: give spacing=, the pixel size of the "
                "image in mm for each axis"
            )
        spacing = (1.0,) * preprocess.dims if spacing is None else tuple(float(length) for length in spacing)
        if len(spacing) != preprocess.dims or not all(0 < length < float("inf") for length in spacing):
            raise ValueError(f"expected spacing= with {preprocess.dims} positive lengths, got {list(spacing)}")
        return RawCase(array, None, spacing)

    def _as_read(self, array: np.ndarray) -> np.ndarray:
        """Integers as segkit reads them from files like those of the training: scaled to 0..1 for raster files."""
        if not np.issubdtype(array.dtype, np.integer) or self._trained.integers_scaled is False:
            return array
        if self._trained.integers_scaled is None and self._trained.preprocess.intensity in ("dataset", "none"):
            raise DataError(
                f"this checkpoint does not record how the integers of the training images were read, so {array.dtype} "
                "values are ambiguous: give floating-point values, between 0 and 1 for image files such as PNG"
            )
        if array.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"expected uint8 or uint16, as in image files, or floating-point values from 0 to 1, got {array.dtype}"
            )
        from segkit.data.formats.raster import scaled

        return scaled(array)


def _where(image: Any) -> str:
    """The name of an image in messages."""
    return f"file {image}" if isinstance(image, (str, Path)) else "image"


def load(
    run: str | Path | Sequence[str | Path],
    *,
    loss: str | None = None,
    tta: bool = False,
    decisions: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Model:
    """Load a trained model from a run folder (its last.pt) or a checkpoint file; several predict together.

    Args:
        run: a run folder or a `.pt` file; or a list of them, whose probabilities are averaged. They are read without
            executing code; a run with plugins imports them by name.
        loss: with the folder of a comparison as `run`: the average of all its runs with this loss.
        tta: average over the flips and right-angle turns that the training allowed.
        decisions: a file of `segkit tune` to apply, or "none"; default: the one beside a single checkpoint.
        device: `auto`, `cpu`, `cuda` or `mps`; default: as in the configuration of the run.
        overrides: changes in the sections data, evaluation and loader, such as `["data.root=/elsewhere"]`.

    Raises CheckpointError for a file that is missing, damaged or too new, ConfigError for a missing plugin, and
    RunError for checkpoints that cannot be averaged.
    """
    sources = [Path(run)] if isinstance(run, (str, Path)) else [Path(path) for path in run]
    files = checkpoint_files(sources, loss)
    members = load_members(files, device, overrides)
    ensemble = together(members, tta=tta)
    given = None if decisions is None else str(decisions)
    applied = chosen_decisions(given, members, ensemble.origin.orientations, Console(quiet=True))
    if applied is not None:
        ensemble = replace(ensemble, predictor=decided(ensemble.predictor, applied.decisions))
    return Model(ensemble, files if loss is not None else sources, tta, applied)


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of predictions.

    scores: rules, per-class and mean scores, as in scores.json.
    cases: one row per case and class, as in cases.csv.
    """

    scores: dict[str, Any] = field(repr=False)
    cases: pd.DataFrame = field(repr=False)


def evaluate(
    predictions: Sequence[ArrayLike | Tensor],
    references: Sequence[ArrayLike | Tensor],
    labels: Labels | Sequence[str],
    *,
    metrics: Sequence[str] = ("dice", "iou"),
    rules: str = "segkit",
    options: Mapping[str, Any] | None = None,
    size_strata: int | Sequence[float] | None = None,
    spacing: Sequence[float] | Sequence[Sequence[float]] | None = None,
    cases: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> EvaluationResult:
    """Score predicted masks from any source against reference masks.

    Args:
        predictions: one mask per case, class numbers [*S], or 0 and 1 [K, *S] for overlapping classes; arrays or
            tensors. Cases may differ in size.
        references: the reference masks in the same order and shapes. Pixels with `labels.ignore_index` do not count.
        labels: a `Labels`, or the class names in the order of their numbers.
        metrics: names, such as `["dice", "iou", "hd95", "nsd"]`; Dice and IoU are always included.
        rules: how empty classes are scored and how scores are averaged: `segkit`, `nnunet`, `monai`, `torchmetrics`,
            `mmseg`, `smp`, `metrics_reloaded` or `brats2023`.
        options: definitions that replace those of the rules, by the names of the section `evaluation` of a
            configuration, such as `{"lesion_matching": "iou", "tolerance_mm": 2.0}`.
        size_strata: scores by size in the reference: a number of strata with equally many cases, or the bounds of
            strata in ml (3D) or mm² (2D).
        spacing: the pixel size in mm of each axis, for all cases or per case, for distances; default: 1.
        cases, groups: a name per case, and the group (such as the patient) that it belongs to; default: numbers, and
            every case its own group.

    Raises ValueError for unknown metrics, rules or options and lists of different lengths, and DataError, which names
    the case, for shapes that differ and values that are not a class.
    """
    labels = labels if isinstance(labels, Labels) else Labels(labels)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = sorted(set(options or {}) - set(MODES))
    if unknown:
        raise ValueError(f"expected options to be some of {', '.join(MODES)}, got {', '.join(unknown)}")
    scoring = build_scoring(
        labels, metrics=metrics or ["dice", "iou"], rules=rules, size_strata=size_strata, modes=options
    )
    if isinstance(predictions, (str, Path)) or isinstance(references, (str, Path)):
        raise TypeError("expected lists of masks; `segkit evaluate --predictions` scores folders of mask files")
    names = [str(number) for number in range(len(predictions))] if cases is None else [str(case) for case in cases]
    group_names = names if groups is None else [str(group) for group in groups]
    lengths = {"predictions": len(predictions), "references": len(references)}
    lengths |= {"cases": len(names), "groups": len(group_names)}
    if len(predictions) == 0 or len(set(lengths.values())) > 1:
        raise ValueError(f"expected lists of the same length, at least 1, got {lengths}")
    if len(set(names)) < len(names):
        raise ValueError("expected a different name for each case")
    scorer = Scorer(len(names), labels, scoring, torch.device("cpu"))
    for name, group, predicted, reference, lengths_mm in zip(
        names, group_names, predictions, references, _spacings(spacing, len(names)), strict=True
    ):
        prediction, mask = _mask(predicted, "prediction", name), _mask(reference, "reference", name)
        if prediction.shape != mask.shape:
            raise DataError(
                f"case {name}: expected masks of one shape, got a prediction {list(prediction.shape)} and a reference "
                f"{list(mask.shape)}"
            )
        dims = mask.ndim - labels.has_mask_channels
        if dims not in (2, 3):
            raise DataError(
                f"case {name}: expected a mask with 2 or 3 spatial axes, got {list(mask.shape)}; predictions and "
                "references are lists with one mask per case, also for a single case: [mask]"
            )
        check_mask(prediction, labels, name, "prediction")
        check_mask(mask, labels, name, "reference")
        lengths_mm = (1.0,) * dims if lengths_mm is None else lengths_mm
        if len(lengths_mm) != dims:
            raise ValueError(f"case {name}: expected spacing with {dims} lengths, got {list(lengths_mm)}")
        scorer.add(name, group, torch.from_numpy(prediction)[None], torch.from_numpy(mask)[None], lengths_mm)
    scored = scorer.result()
    return EvaluationResult(scores_json(scored, labels, scoring, split="arrays", origin=None), scored.cases)


def _spacings(spacing: Any, number: int) -> Sequence[Sequence[float] | None]:
    """The spacing of each case."""
    if spacing is None:
        return [None] * number
    try:
        values = [np.asarray(value, dtype=float) for value in spacing]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected spacing as one number per axis, for all cases or per case, got {spacing!r}"
        ) from error
    if all(value.ndim == 0 for value in values):
        values = [np.stack(values)] * number
    if len(values) != number:
        raise ValueError(f"expected one spacing for all {number} cases or one per case, got {len(values)}")
    for value in values:
        if value.ndim != 1 or not np.isfinite(value).all() or (value <= 0).any():
            raise ValueError(f"expected spacing as positive lengths, got {value.tolist()}")
    return [tuple(value.tolist()) for value in values]


def _mask(mask: ArrayLike | Tensor, kind: str, case: str) -> np.ndarray:
    """A mask as an integer array that torch supports; floating values must be whole numbers."""
    array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if array.dtype.kind not in "buif":
        raise DataError(f"case {case}: expected a {kind} of class numbers, got {type(mask).__name__} of {array.dtype}")
    if array.dtype == np.uint8 or array.dtype == bool:
        return np.array(array, dtype=np.uint8)  # contiguous and writable, as torch needs it
    whole = np.array(array, dtype=np.int64)
    if not np.array_equal(whole, array):
        raise DataError(
            f"case {case}: expected a {kind} of class numbers, got {array.dtype} values that are not whole numbers; "
            "turn probabilities into classes first, with argmax or a threshold"
        )
    return whole


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison of losses.

    result: the contents of comparison.json: losses with their means, pairs with their verdicts, caveats.
    table: the scores that it is based on, with one row per run, case and class, as in cases.csv.
    folder: holds both, the report (report.html and report.md), and the runs.
    """

    result: dict[str, Any] = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    folder: Path

    @property
    def verdicts(self) -> pd.DataFrame:
        """One row per pair: the verdict on a compared with b, the difference of their means and its interval."""
        columns = ["a", "b", "difference", "ci95", "p", "p_adjusted", "verdict"]
        return pd.DataFrame(self.result["pairs"], columns=None if self.result["pairs"] else columns)


def compare_losses(
    config: str | Path,
    losses: Sequence[str] | Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 3,
    folds: int | None = None,
    baseline: str | None = None,
    metric: str = "dice",
    margin: float = 0.005,
    out: str | Path = "comparison",
    overrides: Sequence[str] = (),
    parallel: int | None = None,
    verbose: bool = True,
) -> ComparisonResult:
    """Train each loss with several seeds under equal conditions and test which differences are real.

    Args:
        config: the experiment, a YAML file or the name of a shipped configuration; runs differ from it only in loss,
            seed and fold.
        losses: names of losses or recipes, or a mapping from labels to anything that `loss` may be.
        seeds: the number of runs per loss, or the seeds. Conclusions about losses need at least 3.
        folds: number of cross-validation folds; default: the split of the configuration.
        baseline: compare every loss with this one only; default: all pairs.
        metric, margin: the score to compare, and the difference below which losses count as equivalent.
        out: the folder of the comparison. Runs that are finished there are not trained again.
        overrides: further changes as on the command line, for example of the section `comparison`.
        parallel: the number of runs that are trained at the same time; default: the number of GPUs, or a quarter of the
            cores.

    Raises UnitsFailed if some runs failed, after all others have finished; the message gives the reasons.
    """
    if isinstance(config, Mapping):
        raise TypeError("compare_losses needs a YAML file, which the processes that train read; got a mapping")
    losses = [losses] if isinstance(losses, str) else losses
    overrides = [overrides] if isinstance(overrides, str) else overrides
    chosen = {
        "losses": losses if isinstance(losses, Mapping) else list(losses),
        "seeds": seeds if isinstance(seeds, int) else list(seeds),
        "folds": folds,
        "baseline": baseline,
        "metric": metric,
        "margin": margin,
    }
    section = [f"comparison.{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    folder = Path(out)
    options = CompareOptions(folder, parallel=parallel)
    run_comparison(Path(config), [*section, *overrides], options, Console(quiet=not verbose))
    result = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return ComparisonResult(result, read_rows(folder / "cases.csv"), folder)
