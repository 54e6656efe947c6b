"""The JSON Schema of configuration files, judged by the package jsonschema: what it accepts and what it refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from segkit.cli import app
from segkit.config import schema
from segkit.experiment.build import TABLES, load_config
from segkit.experiment.schema_file import COMMENT, NAME, schema_text

from support.command_line import TINY

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA = schema(TABLES)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
parse = YAML(typ="safe").load


def test_it_is_a_schema_without_loose_ends():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    assert [name for name in SCHEMA["$defs"] if f'"#/$defs/{name}"' not in text] == []
    assert "out_channels" not in SCHEMA["$defs"]["model.unet"]["properties"]  # which the program fills in


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configurations_are_accepted_and_name_it(file):
    assert list(VALIDATOR.iter_errors(parse(file))) == []
    assert f"# {COMMENT}" in file.read_text().splitlines()


def test_the_shipped_file_is_that_of_this_version():
    assert (CONFIGS / NAME).read_text() == schema_text(), f"run: segkit config schema --out configs/{NAME}"


def test_a_resolved_configuration_is_accepted(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert list(VALIDATOR.iter_errors(load_config(tmp_path / "tiny.yaml").to_dict())) == []


@pytest.mark.parametrize(
    "section",
    [
        "loss: [dice, {name: focal, gamma: 1.5, weight: {name: linear, start: 0, end: 1}, like: monai}]",
        "loss: {name: dice, per: image}",
        "loss: ce_then_lovasz",
        "logging:",
        "logging: {tensorboard: true, mlflow: runs.db, trackers: [wandb, {name: wandb, mode: offline}]}",
        "comparison: {losses: {plain: dice, both: [dice, {name: cross_entropy, weight: 2}]}, seeds: [1, 2]}",
        "comparison: {losses: [dice, dice_ce], folds: 5}",
        "augment: {engine: monai, preset: nnunet, swap_on_flip: [[a, b]]}",
        "train: {epochs: 5, validate_every: {fraction: 0.5}}",
    ],
)
def test_what_can_be_written_is_accepted(section):
    assert list(VALIDATOR.iter_errors({**parse(TINY), **parse(section)})) == []


@pytest.mark.parametrize(
    "section",
    [
        "loss: dicce",
        "loss: {name: dice, gama: 2}",
        "loss: []",
        "loss: {name: dice, weight: -1}",
        "model: {name: unet, widhts: [8, 16]}",
        "model: {widths: [8, 16]}",
        "train: {steps: many}",
        "train: {steps: 5, precision: fp8}",
        "logging: {trackers: [{name: mlflow}]}",
        "logging: {wandb: true}",
        "augment: {engine: monai, transforms: [{name: no_such_transform}]}",
        "augment: {engine: albumentation}",
        "comparison: {losses: {a: {name: dicce}}}",
        "evaluation: {threshold: 2}",
        "extra: 1",
    ],
)
def test_mistakes_are_refused(section):
    assert list(VALIDATOR.iter_errors({**parse(TINY), **parse(section)})) != []


def test_the_command_writes_it(tmp_path):
    done = CliRunner().invoke(app, ["config", "schema", "--out", str(tmp_path / "own.json")])
    assert done.exit_code == 0, done.output
    assert "$schema=own.json" in done.output
    assert json.loads((tmp_path / "own.json").read_text()) == SCHEMA
    assert json.loads(CliRunner().invoke(app, ["config", "schema"]).output) == SCHEMA
