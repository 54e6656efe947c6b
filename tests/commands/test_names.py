"""The command `segkit list`."""

import json

import pytest

from segkit.commands.names import KINDS
from segkit.experiment.build import TABLES
from segkit.utils.metric_names import metric_facts

from support.command_line import tool


def test_the_kinds_are_counted():
    printed = tool("list")
    assert [line.split() for line in printed.splitlines()] == [
        [kind, str(len(names())), "names"] for kind, names in KINDS.items()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_has_its_meaning(kind, tmp_path):
    printed = tool("list", kind, "--json", tmp_path / "names.json")
    meanings = json.loads((tmp_path / "names.json").read_text())
    assert all(meanings.values())
    assert all(name in printed for name in meanings)


def test_names_are_those_of_the_configuration():
    for kind, keys in {"losses": ("loss", "recipe"), "models": ("model",), "data": ("data",)}.items():
        assert set(KINDS[kind]()) == {name for key in keys for name in TABLES[key].entries}
    assert all(metric_facts(name) for name in KINDS["metrics"]())
    losses = KINDS["losses"]()
    assert losses["ce_then_lovasz"] == "cross_entropy + lovasz_softmax (weight: {name: after, fraction: 0.5})"
    assert losses["lovasz_softmax"].endswith("(Berman et al. 2018).")


def test_an_unknown_kind_is_refused():
    assert "expected one of losses, models" in tool("list", "loss", code=2)
