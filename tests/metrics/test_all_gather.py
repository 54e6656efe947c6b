"""Merging the tables of several processes, tested in one process."""

import pandas as pd
import pytest

from segkit.metrics import all_gather


def table(*cases, tp=3):
    return pd.DataFrame({"case": [name for name in cases for _ in "ab"], "class": ["a", "b"] * len(cases), "tp": tp})


def test_a_repeated_case_is_kept_once():
    both = pd.concat([table("x", "z"), table("y", "x")], ignore_index=True)
    kept = all_gather._without_duplicates(both)
    assert kept["case"].tolist() == ["x", "x", "y", "y", "z", "z"]
    assert kept["class"].tolist() == ["a", "b"] * 3


def test_conflicting_counts_of_a_case_raise():
    both = pd.concat([table("x", "y"), table("y", tp=4)], ignore_index=True)
    with pytest.raises(ValueError, match="different ones for y"):
        all_gather._without_duplicates(both)


def test_a_single_process_changes_nothing():
    assert list(all_gather.cases_of_rank(5, None)) == [0, 1, 2, 3, 4]
    one = table("x")
    assert all_gather.gather_table(one, None) is one
    assert all_gather.add_totals((None, {}), (None, {})) == (None, {})
