"""Splits: every case in exactly one part, no divided groups, and no dependence on anything but names and options."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.data import SPLITS, Case, DataError
from segkit.data.splits import Split, kfold_split, lists_split, source_split

TEN = [Case(f"c{number}", f"g{number}") for number in range(10)]
EYES = [Case(f"{child}{eye}", str(child)) for child in range(7) for eye in "LR"]


@st.composite
def folded(draw):
    groups = draw(st.lists(st.integers(1, 4), min_size=3, max_size=12))
    cases = [Case(f"{group}-{number}", f"g{group}") for group, count in enumerate(groups) for number in range(count)]
    folds = draw(st.integers(3, len(groups)))
    fold, test_fold = draw(st.lists(st.integers(0, folds - 1), min_size=2, max_size=2, unique=True))
    return cases, {"folds": folds, "fold": fold, "test_fold": draw(st.sampled_from([None, test_fold]))}


@given(folded(), st.integers(0, 5))
def test_kfold_divides_no_group(given_folds, seed):
    cases, options = given_folds
    split = kfold_split(cases, seed=seed, **options)
    parts = [split.train, split.validation, split.test]
    assert sorted(name for part in parts for name in part) == sorted(case.name for case in cases)
    group_of = {case.name: case.group for case in cases}
    groups = [{group_of[name] for name in part} for part in parts]
    assert sum(map(len, groups)) == len(set(group_of.values()))
    assert split.train
    assert bool(split.test) == (options["test_fold"] is not None)


@given(folded(), st.integers(0, 5))
def test_every_case_is_validated_once(given_folds, seed):
    cases, options = given_folds
    folds = options["folds"]
    validating = [kfold_split(cases, folds=folds, fold=fold, seed=seed).validation for fold in range(folds)]
    assert sorted(name for part in validating for name in part) == sorted(case.name for case in cases)
    group_of = {case.name: case.group for case in cases}
    sizes = [len({group_of[name] for name in part}) for part in validating]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_kfold_depends_on_names_and_seed_alone():
    assert kfold_split(TEN, seed=1) == kfold_split(TEN[::-1], seed=1)
    assert kfold_split(TEN, seed=1) != kfold_split(TEN, seed=2)
    assert kfold_split(TEN, fold=0).validation != kfold_split(TEN, fold=1).validation
    # a literal value, since the split of an existing run must not change
    assert kfold_split(EYES, folds=3, seed=0).validation == ("1L", "1R", "2L", "2R", "4L", "4R")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "expected at least 2 folds"),
        ({"folds": 2, "test_fold": 1}, "expected at least 3 folds"),
        ({"fold": 5}, "fold and test_fold from 0 to 4, got 5"),
        ({"test_fold": -1}, "from 0 to 4, got -1"),
        ({"fold": 2, "test_fold": 2}, "got 2 for both"),
        ({"folds": 11}, "at least 11 groups for 11 folds, got 10"),
        ({"holdout": 1.5}, "holdout between 0 and 1"),
        ({"holdout": 0.2, "test_fold": 1}, "holdout .*test_fold"),
        ({"holdout": 0.7}, "at least 5 groups for 5 folds, got 3"),
    ],
)
def test_invalid_folds(options, message):
    with pytest.raises(ValueError, match=message):
        kfold_split(TEN, **options)


def rare(number):
    """Cases, their class counts, and the few groups that contain class 2."""
    random = np.random.default_rng(number)
    cases = [Case(f"c{n:02}", f"g{n // 3}") for n in range(60)]
    has = set(random.choice(20, 5, replace=False).tolist())
    counts = {case.name: [100, int(random.integers(1, 50)), 7 * (int(case.group[1:]) in has)] for case in cases}
    return cases, counts, {f"g{group}" for group in has}


@pytest.mark.parametrize("number", range(8))
def test_stratified_folds_share_the_rarest_class(number):
    """Five groups contain the class, so each of the five folds gets one. By chance this happens in one of 26 splits."""
    cases, counts, groups = rare(number)
    group_of = {case.name: case.group for case in cases}
    for fold in range(5):
        split = kfold_split(cases, folds=5, fold=fold, stratify=True, counts=lambda: counts)
        assert len({group_of[name] for name in split.validation} & groups) == 1
        assert len(split.validation) == 12
    common = [
        sum(
            counts[name][1]
            for name in kfold_split(cases, folds=5, fold=fold, stratify=True, counts=lambda: counts).validation
        )
        for fold in range(5)
    ]
    assert max(common) < 1.5 * min(common)


def test_groups_stay_together_when_stratified():
    cases, counts, _groups = rare(0)
    split = kfold_split(cases, folds=4, fold=1, holdout=0.25, stratify=True, counts=lambda: counts)
    group_of = {case.name: case.group for case in cases}
    groups = [{group_of[name] for name in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, groups)) == 20
    assert len(groups[2]) == 5


@pytest.mark.parametrize("stratify", [False, True])
def test_the_holdout_is_the_same_for_all_folds_and_seeds(stratify):
    cases, counts, _groups = rare(1)
    options = {"folds": 4, "holdout": 0.2, "stratify": stratify, "counts": lambda: counts}
    splits = [kfold_split(cases, fold=fold, seed=seed, **options) for fold in range(4) for seed in range(3)]
    assert len({split.test for split in splits}) == 1
    assert len(splits[0].test) == 12
    validated = [name for split in splits[::3] for name in split.validation]
    assert sorted(validated) == sorted({case.name for case in cases} - set(splits[0].test))


def parts(cases, train, validation, test):
    names = {
        name: part for part, chosen in (("train", train), ("validation", validation), ("test", test)) for name in chosen
    }
    return [Case(case.name, case.group, names.get(case.name)) for case in cases]


def test_source_split():
    cases = parts(TEN[:4], ["c0", "c2"], ["c1"], ["c3"])
    assert source_split(cases) == Split(("c0", "c2"), ("c1",), ("c3",))
    with pytest.raises(DataError, match=r"2 cases(.|\n)*\n  c2\n  c3\n(.|\n)*kfold"):
        source_split(parts(TEN[:4], ["c0"], ["c1"], []))


def test_groups_in_two_parts_cause_a_warning():
    with pytest.warns(UserWarning, match="2 groups .*more than one part(.|\n)*0: train and validation\n  1: train"):
        source_split(parts(EYES[:4], ["0L", "1R"], ["0R"], ["1L"]))
    with pytest.warns(UserWarning, match="1 groups"):
        lists_split(EYES, train=["0L"], validation=["0R"])


def test_lists(tmp_path):
    lists = {"train": ["c3", "c1"], "validation": ["c2"]}
    expected = Split(("c3", "c1"), ("c2",))
    assert lists_split(TEN, train=["c3", "c1"], validation=["c2"]) == expected
    (tmp_path / "split.json").write_text(json.dumps(lists))
    assert lists_split(TEN, file=tmp_path / "split.json") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "both or neither"),
        ({"train": ["c1", "x"], "test": ["y"]}, r"2 names (.|\n)*\n  x\n  y"),
        ({"train": ["c1", "c2"], "test": ["c2"]}, "more than once:\n  c2"),
        ({"train": ["c1", "c1"]}, "more than once:\n  c1"),
        ({"train": [], "test": ["c2"]}, "at least one training case"),
        ({"train": [f"x{number}" for number in range(30)]}, "and 20 more"),
    ],
)
def test_invalid_lists(options, message):
    with pytest.raises(ValueError, match=message):
        lists_split(TEN, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('["c1"]', "expected a valid dictionary"),
        ('{"train": ["c1", {}]}', "train, 1: expected a valid"),
        ('{"val": ["c1"]}', "train, validation, test, got val"),
    ],
)
def test_invalid_split_files(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError, match=message):
        lists_split(TEN, file=tmp_path / "split.json")
    with pytest.raises(DataError, match="does not exist"):
        lists_split(TEN, file=tmp_path / "missing.json")


names = st.lists(st.text(max_size=5), max_size=5).map(tuple)


@given(names, names, names)
def test_json_and_hash(train, validation, test):
    split = Split(train, validation, test)
    again = Split.from_json(json.loads(json.dumps(split.to_json())))
    assert again == split
    assert again.content_hash == split.content_hash
    assert len(split.content_hash) == 16
    assert Split((*train, "more"), validation, test).content_hash != split.content_hash


def test_split_with_unknown_keys():
    with pytest.raises(ValueError, match="train, validation, test, got val"):
        Split.from_json({"val": []})


def test_names_of_splits():
    assert list(SPLITS) == ["source", "kfold", "lists"]
