"""Evaluation shared by several processes: who takes which case, and how the parts become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from segkit.metrics.calibration import CalibrationCounts

# the confusion matrix of a case, and its histograms by name
Part = tuple[Tensor | None, dict[str, CalibrationCounts]]


def share_of(cases: int, group: ProcessGroup | None) -> range:
    """The cases that this process takes: every n-th of them, none twice, perhaps none at all."""
    if group is None:
        return range(cases)
    return range(dist.get_rank(group), cases, dist.get_world_size(group))


def gather_table(cases: pd.DataFrame, group: ProcessGroup | None) -> pd.DataFrame:
    """The tables of all processes as one, each case once, sorted by case; without a group, the table as it is.

    A case that several processes have, as where a sampler fills up its last batch, is kept once; it has to be the same.
    A process without cases takes part. Raises ValueError if two processes differ about a case.
    """
    if group is None:
        return cases
    tables = [table for table in _from_all(cases, group) if len(table)]
    return _without_duplicates(pd.concat(tables, ignore_index=True)) if tables else cases


def gather_parts(parts: Mapping[str, Part], group: ProcessGroup) -> Part:
    """The matrices and histograms of all cases of all processes added up, each case once; on the CPU."""
    on_host = {
        case: (None if matrix is None else matrix.cpu(), {name: _on_host(one) for name, one in counts.items()})
        for case, (matrix, counts) in parts.items()
    }
    merged: dict[str, Part] = {}
    for found in _from_all(on_host, group):
        merged = {**found, **merged}
    total: Part = (None, {})
    for case in sorted(merged):
        total = add_parts(total, merged[case])
    return total


def add_parts(total: Part, part: Part) -> Part:
    """Two parts together; a part of nothing is (None, {})."""
    matrices = [matrix for matrix in (total[0], part[0]) if matrix is not None]
    counts = {name: total[1][name] + new if name in total[1] else new for name, new in part[1].items()}
    return (sum(matrices[1:], matrices[0]) if matrices else None), counts or total[1]


def _from_all(mine: Any, group: ProcessGroup) -> list[Any]:
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, mine, group=group)
    return parts


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
