"""Evaluation shared by several processes: who takes which case, and how the parts become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch.distributed as dist
from torch.distributed import ProcessGroup

from segkit.metrics.calibration import CalibrationCounts

Parts = tuple[pd.DataFrame, np.ndarray | None, dict[str, CalibrationCounts]]


def share_of(cases: int, group: ProcessGroup | None) -> range:
    """The cases that this process takes: every n-th of them, none twice, perhaps none at all."""
    if group is None:
        return range(cases)
    return range(dist.get_rank(group), cases, dist.get_world_size(group))


def gather_cases(
    cases: pd.DataFrame,
    matrix: np.ndarray | None,
    calibration: Mapping[str, CalibrationCounts],
    group: ProcessGroup | None,
) -> Parts:
    """The tables of all processes as one, a case a time, sorted by case; matrices and histograms added up.

    A case that several processes have, as where a sampler fills up its last batch, is kept once; it has to be the same.
    Matrices and histograms know no cases, so each process may only add what `share_of` gives it. A process without
    cases takes part. Without a group, everything as it is. Raises ValueError if two processes differ about a case.
    """
    if group is None:
        return cases, matrix, dict(calibration)
    parts: list[Any] = [None] * dist.get_world_size(group)
    on_host = {name: _on_host(counts) for name, counts in calibration.items()}
    dist.all_gather_object(parts, (cases, matrix, on_host), group=group)
    tables = [table for table, _, _ in parts if len(table)]
    matrices = [one for _, one, _ in parts if one is not None]
    histograms = [one for _, _, one in parts if one]
    return (
        _without_duplicates(pd.concat(tables, ignore_index=True)) if tables else cases,
        np.sum(matrices, 0) if matrices else None,
        {name: _added([one[name] for one in histograms]) for name in (histograms[0] if histograms else {})},
    )


def _without_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Each case once, in the order of names; rows of a case keep the order of classes."""
    once = table.drop_duplicates(ignore_index=True)
    again = once.duplicated(["case", "class"])
    if again.any():
        names = ", ".join(sorted(set(once["case"][again])))
        raise ValueError(f"expected the same counts of a case from every process, got different ones for {names}")
    return once.sort_values("case", kind="stable", ignore_index=True)


def _on_host(counts: CalibrationCounts) -> CalibrationCounts:
    return CalibrationCounts(**{name: tensor.cpu() for name, tensor in vars(counts).items()})


def _added(parts: list[CalibrationCounts]) -> CalibrationCounts:
    first, *rest = parts
    return sum(rest, first)
