"""Predict every case, count on the device, and derive tables, scores and pictures from the counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from segkit.data.loaders import EvaluationSet
from segkit.labels import Labels
from segkit.metrics import count
from segkit.metrics.policies import cases_table, summarise
from segkit.predict import Predictor, to_device

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """Where scores come from.

    checkpoint: its file. step, steps: how far it was trained, and how far that training was to go. selected_on: the
    part of the split that it was chosen by, None if it was not chosen by a score.
    """

    checkpoint: str
    step: int
    steps: int
    selected_on: str | None


def score_cases(
    predictor: Predictor,
    cases: EvaluationSet,
    labels: Labels,
    threshold: float = 0.5,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> pd.DataFrame:
    """Predict and count every case on its own grid: one row a case and class, with tp, predicted, reference, dice, iou.

    The counts stay on the device and are read back once. `track` wraps the case numbers, for a progress bar.
    """
    counts = torch.zeros(len(cases), labels.channels, 3, dtype=torch.int64, device=predictor.device)
    names, groups = [], []
    for number in track(range(len(cases))):
        sample = cases[number]
        counts[number] = _count_case(predictor, sample, labels, threshold)
        names.append(sample["case"])
        groups.append(sample["group"])
    return cases_table(names, groups, counts.cpu().numpy(), labels)


def _count_case(predictor: Predictor, sample: dict[str, Any], labels: Labels, threshold: float) -> Tensor:
    mask = to_device(sample["mask"][None], predictor.device)
    logits = predictor(sample["image"], size=spatial_size(sample["mask"], labels))
    return count(labels.decode(logits, threshold), mask, labels)[0]


def spatial_size(mask: Tensor, labels: Labels) -> tuple[int, ...]:
    """The sides of a mask [*S] or [K, *S]."""
    return tuple(mask.shape[1:] if labels.has_mask_channels else mask.shape)


def predict_case(predictor: Predictor, sample: dict[str, Any], labels: Labels, threshold: float = 0.5) -> Tensor:
    """The predicted mask of one case on its own grid, on the CPU, in the form that masks are stored in."""
    logits = predictor(sample["image"], size=spatial_size(sample["mask"], labels))
    return labels.decode(logits, threshold)[0].cpu()


def foreground_means(cases: pd.DataFrame, labels: Labels) -> dict[str, float | None]:
    """Mean Dice and IoU over the foreground classes of the per-class means over cases; None where nothing counted."""
    return summarise(cases, labels, intervals=False)["mean"]


def scores(cases: pd.DataFrame, labels: Labels, *, split: str, origin: Origin) -> dict[str, Any]:
    """The contents of scores.json."""
    return {
        "format": FORMAT,
        "split": split,
        **asdict(origin),
        "cases": len(set(cases["case"])),
        **summarise(cases, labels),
    }


def write(folder: Path, cases: pd.DataFrame, result: dict[str, Any]) -> None:
    """Write cases.csv, and then scores.json, whose presence says that the evaluation is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    cases.to_csv(folder / "cases.csv", index=False)
    temporary = folder / "scores.json.tmp"
    temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    temporary.replace(folder / "scores.json")
