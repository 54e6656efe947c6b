"""Evaluation with several processes: distributing the cases, and merging the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from segkit.metrics.calibration import CalibrationCounts

# confusion matrix and calibration counts by name, of one case or summed over cases
PixelTotals = tuple[Tensor | None, dict[str, CalibrationCounts]]


def cases_of_rank(cases: int, group: ProcessGroup | None) -> range:
    """The numbers of the cases that this process evaluates: every n-th case for n processes.

    The processes have no case in common. With fewer cases than processes, some processes have none.
    """
    if group is None:
        return range(cases)
    return range(dist.get_rank(group), cases, dist.get_world_size(group))


def gather_table(cases: pd.DataFrame, group: ProcessGroup | None) -> pd.DataFrame:
    """Merge the tables of all processes into one table with each case once, sorted by case.

    Without a group, the table is returned unchanged. A case that several processes have, for instance because a sampler
    filled up its last batch, must have the same values in each of them. Processes without cases must call this as well.

    Raises ValueError if two processes have different values for a case.
    """
    if group is None:
        return cases
    tables = [table for table in _all_gather(cases, group) if len(table)]
    return _without_duplicates(pd.concat(tables, ignore_index=True)) if tables else cases


def gather_totals(totals_by_case: Mapping[str, PixelTotals], group: ProcessGroup) -> PixelTotals:
    """Sum confusion matrices and calibration counts over the cases of all processes, each case once; on the CPU."""
    on_cpu = {
        case: (None if matrix is None else matrix.cpu(), {name: _to_cpu(part) for name, part in counts.items()})
        for case, (matrix, counts) in totals_by_case.items()
    }
    merged: dict[str, PixelTotals] = {}
    for totals in _all_gather(on_cpu, group):
        merged = {**totals, **merged}
    total: PixelTotals = (None, {})
    for case in sorted(merged):
        total = add_totals(total, merged[case])
    return total


def add_totals(total: PixelTotals, other: PixelTotals) -> PixelTotals:
    """The sum of two totals. The empty total is (None, {})."""
    matrices = [matrix for matrix in (total[0], other[0]) if matrix is not None]
    counts = {name: total[1][name] + new if name in total[1] else new for name, new in other[1].items()}
    return (sum(matrices[1:], matrices[0]) if matrices else None), counts or total[1]


def _all_gather(value: Any, group: ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _without_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each case once, sorted by case; the order of the classes within a case is kept."""
    unique = table.drop_duplicates(ignore_index=True)
    conflicting = unique.duplicated(["case", "class"])
    if conflicting.any():
        names = ", ".join(sorted(set(unique["case"][conflicting])))
        raise ValueError(f"expected the same counts of a case from every process, got different ones for {names}")
    return unique.sort_values("case", kind="stable", ignore_index=True)


def _to_cpu(counts: CalibrationCounts) -> CalibrationCounts:
    return CalibrationCounts(**{name: tensor.cpu() for name, tensor in vars(counts).items()})
