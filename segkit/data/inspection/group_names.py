"""Patients or series that the names of cases suggest."""

from __future__ import annotations

import re
from collections.abc import Sequence

from segkit.data.cases import Case

GROUP_IN_NAME = r"^(.*?\d[^_.-]*)[_.-]"  # the parts of a name up to the first one with a digit, if others follow
MIN_GROUPS = 3


def groups_in_names(cases: Sequence[Case]) -> int:
    """How many patients or series the names of cases without groups suggest, such as `p03_a` and `p03_b`; 0 for none.

    The parts of all names up to the first one with a digit must be followed by another part, and stand for two cases or
    more on average. Data with a split of their own are left alone.
    """
    if any(case.group != case.name or case.split for case in cases):
        return 0
    groups = [group_in_name(case) for case in cases]
    distinct = len(set(groups))
    return distinct if None not in groups and MIN_GROUPS <= distinct <= len(cases) / 2 else 0


def group_in_name(case: Case) -> str | None:
    """The part of the name of a case that is the same for its patient or series; None if there is no such part."""
    match = re.match(GROUP_IN_NAME, case.name)
    return None if match is None else match[1]
