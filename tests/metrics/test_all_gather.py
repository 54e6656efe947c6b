"""Putting the tables of processes together, without processes."""

import pandas as pd
import pytest

from segkit.metrics import all_gather


def table(*cases, tp=3):
    return pd.DataFrame({"case": [name for name in cases for _ in "ab"], "class": ["a", "b"] * len(cases), "tp": tp})


def test_a_case_that_a_padded_sampler_repeats_is_kept_once():
    both = pd.concat([table("x", "z"), table("y", "x")], ignore_index=True)
    kept = all_gather._without_duplicates(both)
    assert kept["case"].tolist() == ["x", "x", "y", "y", "z", "z"]
    assert kept["class"].tolist() == ["a", "b"] * 3


def test_processes_that_differ_about_a_case_are_refused():
    both = pd.concat([table("x", "y"), table("y", tp=4)], ignore_index=True)
    with pytest.raises(ValueError, match="different ones for y"):
        all_gather._without_duplicates(both)


def test_alone_everything_stays_as_it_is():
    assert list(all_gather.share_of(5, None)) == [0, 1, 2, 3, 4]
    one = table("x")
    assert all_gather.gather_table(one, None) is one
    assert all_gather.add_parts((None, {}), (None, {})) == (None, {})
