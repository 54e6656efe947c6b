"""Configurations, overrides and checkpoints from strangers: everything ends in a ConfigError that names the place."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.config import ConfigError
from segkit.config.yaml_reader import YamlProblem, parse_text
from segkit.experiment.build import load_config, restore_config
from segkit.experiment.build_training import build_experiment

VALID: dict[str, Any] = {
    "labels": {"names": ["background", "a"]},
    "data": {"name": "synthetic", "size": [16, 16], "train": 4, "validation": 1, "test": 0},
    "model": {"name": "unet", "widths": [4, 4]},
    "loss": "dice",
    "optimizer": {"name": "adamw"},
    "train": {"steps": 2},
}
TEXT = yaml.safe_dump(VALID, sort_keys=False)
LAST = len(TEXT.splitlines()) + 1  # the line after the text


def message(source: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def nested(opening: str, closing: str, number: int) -> str:
    return opening * number + "1" + closing * number


BOMB = "x0: &x0 [1,1,1,1,1,1,1,1,1]\n" + "".join(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (BOMB, "expected at most 10000 values, counting every use of an alias"),
        ("x: " + nested("{a: ", "}", 250), "expected at most 32 mappings and lists inside each other"),
        ("x: " + nested("[", "]", 300), "expected at most 32 mappings and lists inside each other"),
        ("x: " + "[" * 50_000, "expected at most 32 mappings and lists inside each other"),
        ("x:\n  " + "? " * 400, "expected at most 32 mappings and lists inside each other"),
        ("x: [" + "1," * 21_000 + "]", "expected at most 10000 values"),
        ("x: &a [*a]", "an alias refers to a mapping or list that contains it"),
        ("x: &a {<<: *a}", "an alias refers to a mapping or list that contains it"),
        ("seed: " + "1" * 4301, "expected a number of at most 100 characters, got 4301"),
        ("seed: " + "9" * 30, "seed: expected a whole number between -2^63 and 2^63"),
        ("x: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("x: !!binary aGk=", "is not supported: write plain YAML without tags"),
        ("seed: !!int x", "expected a whole number after !!int, got 'x'"),
        ("? [a]\n: 1", "expected text or a whole number as a key, got a mapping or list"),
        ("~: 1", "expected text or a whole number as a key, got '~'"),
        ('name: "a\\0b"', "name: expected text without control characters, got '\\x00' at character 2"),
        ('name: "\\ud800"', "name: expected text without control characters, got '\\ud800' at character 1"),
        ("name: ../../x", "name: expected a name that stays inside the folder of the runs, without '..'"),
        ("name: /x", "name: expected a name that stays inside the folder of the runs"),
        ("name: " + "x" * 4000, "name: expected a name of at most 200 bytes, got 4000"),
        ("name: " + "x" * 5000, "name: expected text of at most 4096 characters, got 5000"),
        ("seed: 1\nseed: 2", 'found duplicate key "seed"'),
    ],
)
def test_a_hostile_file_is_refused_with_its_line_in_a_second(tmp_path, added, expected):
    path, start = write(tmp_path, f"{TEXT}{added}\n"), time.process_time()
    printed = message(path)
    assert time.process_time() - start < 2  # a fraction of it on an idle machine
    assert expected in printed
    assert re.match(rf"{re.escape(str(path))}:({'|'.join(str(LAST + n) for n in range(5))}): ", printed)
    assert len(printed) < 1000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TEXT.encode("utf-16"), "expected UTF-8 text, got the byte 0xff at position 0"),
        (TEXT.encode() + b"# \xe9", "expected UTF-8 text, got the byte 0xe9 at position"),
        (b"%YAML 1." + b"1" * 5000 + b"\n---\n", "x.yaml: Exceeds the limit"),
        (b'name: "\\UFFFFFFFF"', "x.yaml: "),
        (b"a: \x00", "special characters are not allowed"),
        (b"#" * (2**18 + 1), "expected a configuration of at most 256 KiB, got a larger file"),
        (b"", "expected a mapping with labels"),
    ],
)
def test_a_file_that_is_not_yaml(tmp_path, content, expected):
    assert expected in message(write(tmp_path, content))


def test_a_byte_order_mark_is_accepted(tmp_path):
    assert load_config(write(tmp_path, b"\xef\xbb\xbf" + TEXT.encode())).train.steps == 2


def test_a_folder_and_a_pipe_are_no_configuration(tmp_path):
    assert "expected a YAML file, got a folder" in message(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "expected a YAML file, got a pipe or device" in message(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "too long"), ("x\0.yaml", "null"), ("no.yaml", "No such")])
def test_a_path_that_cannot_be_opened(name, reason):
    assert re.search(f"cannot read the configuration: .*{reason}", message(name))


numbers = st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)
trees = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=25, deadline=None, database=None)
@given(trees)
def test_json_is_read_as_the_json_module_reads_it(tree):
    # without exponents such as 1e16, which YAML takes for text
    assert parse_text(json.dumps(tree, indent=1))[0] == tree


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1, c: [2, 3]}\nd: *x\n",
        "a: &x {b: 1}\nc: {<<: *x, b: 2, d: 3}\n",
        "a: &x {b: 1}\ne: &y {b: 4, f: 5}\nc:\n  <<: [*x, *y]\n  d: 3\n",
        "a: |\n  text\n  more\nb: >-\n  folded\n  text\n'c d': \"\\u00e9\"\n",
        "a: ~\nb:\nc: .5\nd: -3\ne: 0x1F\n",
    ],
)
def test_anchors_merges_and_scalars_are_read_as_pyyaml_reads_them(text):
    assert parse_text(text)[0] == yaml.safe_load(text)


def test_dates_stay_text_and_lines_are_those_of_the_keys():
    tree, lines = parse_text("a: 2025-31-12\nb:\n- 2025-01-02\n- {c: 1}\n")
    assert tree == {"a": "2025-31-12", "b": ["2025-01-02", {"c": 1}]}
    assert lines == {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4}


def test_a_problem_names_its_line():
    with pytest.raises(YamlProblem) as caught:
        parse_text("a: 1\nb: [\n\n")
    assert caught.value.line == 4


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss=!!int x", "the value is not valid YAML: expected a whole number after !!int, got 'x'"),
        ("loss=!!python/object/apply:os.system [ls]", "is not supported"),
        ("loss=" + "[" * 300, "expected at most 32 mappings and lists inside each other"),
        ("loss=&a [*a]", "an alias refers to a mapping or list that contains it"),
        ("seed=" + "1" * 4400, "expected a number of at most 100 characters, got 4400"),
        ("name=../x", "name: expected a name that stays inside the folder of the runs"),
        ('run.dir="a\\0b"', "expected text without control characters, got '\\x00'"),
        ("run.dir=" + "x" * 300, "run.dir: expected names of at most 255 bytes in a path"),
        ("x." * 40 + "a=1", "expected a path of at most 32 keys, got 41"),
        ("train.patience={epochs: 1e308}", "train.patience: expected at most 1000000000 epochs, got 1e+308"),
        ("model.widths=[1000000000, 1000000000]", "model.widths: expected a value less than or equal to 65536"),
        ("model.widths=[" + "4," * 40 + "4]", "model.widths: expected at most 16 items, got 41"),
        ("model.encoder_convs=100000", "model.encoder_convs: expected a value less than or equal to 64"),
        ("data.train=100000000000", "expected train, validation and test of at most 100000 cases, got 100000000000"),
        ("data.size=[100000, 100000]", "expected at most 2^27 values in an image"),
        ("sampling.patch=[60000, 60000]", "sampling: expected sampling.patch with at most 2^31 pixels"),
        ("sampling.patch=[8, 8, 8, 8]", "with one number per image axis, two or three"),
        ("loader.workers=1000000", "loader.workers: expected a value less than or equal to 1024"),
        ("comparison.seeds=100000000000", "comparison.seeds: expected a value less than or equal to 1000"),
        ("comparison={losses: [dice], seeds: 1000, folds: 1000}", "expected at most 10000 trainings, got 1000000"),
        ("comparison.losses={a: {name: dice, weight: .nan}}", "comparison.losses.a.weight: expected a number"),
        ("comparison.losses={" + "x" * 500 + ": dice}", "comparison.losses: expected a name of at most 200 bytes"),
        ("comparison.losses=[dice, dcie]", "comparison.losses.1: unknown name 'dcie'; did you mean 'dice'?"),
        ("labels.names=[a, " + "x" * 500 + "]", "labels.names: expected a name of at most 200 bytes"),
        ("loss={name: dice, weight: 1e30}", "loss: loss dice: expected weight as a number of 0 or more, at most 1e+12"),
        ("schedule={name: poly, power: -1}", "schedule: expected factors on the learning rate that are finite"),
        ("schedule={name: cosine, floor: -1}", "schedule: expected factors on the learning rate that are finite"),
        ("optimizer.lr=-1", "optimizer.lr: expected a value greater than or equal to 0"),
        ("checkpoints.best=hd0", "checkpoints: expected metrics among dice, iou"),
        ("checkpoints.best=volume_difference", "cannot select a checkpoint: neither larger nor smaller"),
        ("evaluation.size_strata=[3, 2]", "evaluation: expected size_strata to be a number from 2 to 20"),
        ("evaluation.lesion_penalty_mm=far", "evaluation.lesion_penalty_mm: expected"),
        ("augment={engine: albumentations, preset: [{}]}", "augment.preset: expected one of"),
        ("a\nb=1", "unknown key"),
    ],
)
def test_a_hostile_override_is_refused_by_its_name(override, expected):
    printed = message(VALID, override)
    assert expected in printed
    assert all(line.startswith(("override '", "experiment: ")) for line in printed.splitlines())
    assert max(map(len, printed.splitlines())) < 1500


def test_a_date_is_text_in_an_override_too():
    assert load_config(VALID, ["name=2025-31-12"]).name == "2025-31-12"


@pytest.mark.parametrize("length", ["train={steps: 50000}", "train={epochs: 30}", "train={max_epochs: 3}"])
def test_a_warm_up_is_compared_with_the_length_of_the_run(length):
    load_config(VALID, [length, "schedule={name: cosine, warmup: {steps: 9000}}"])
    printed = message(VALID, "train={steps: 50}", "schedule={name: cosine, warmup: {steps: 90}}")
    assert "expected a warmup shorter than the 50 steps of the run, got 90 steps" in printed


# --- checkpoints and Python ------------------------------------------------------------------------------------------


def recursive() -> Any:
    tree: dict[str, Any] = {}
    tree["labels"] = tree
    return tree


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected a mapping with labels, data, model, loss, optimizer, train; got None"),
        ([1], "expected a mapping with labels, data, model, loss, optimizer, train; got [1]"),
        (torch.zeros(2), "expected a mapping"),
        ({}, "missing required key 'labels'"),
        ({**VALID, "seed": torch.zeros(2)}, "seed: expected text, a number, true, false, null, a list or a mapping"),
        ({**VALID, "seed": np.int64(1)}, "got the type int64"),
        (
            {**VALID, "seed": 10**400},
            "seed: expected a whole number between -2^63 and 2^63, got a whole number of",
        ),
        ({**VALID, "seed": 1j}, "got the type complex"),
        ({**VALID, "loss": {(1, 2): 3}}, "loss: expected text or a whole number as a key, got (1, 2)"),
        ({**VALID, "loss": [[[]]]}, "loss.0: expected a mapping with a name, got [[]]"),
        ({**VALID, "train": "x"}, "train: expected a mapping, got 'x'"),
        ({**VALID, "model": {"name": []}}, "model.name: unknown name []"),
        ({**VALID, "data": {"name": "synthetic", "size": "x"}}, "data.size: expected a list, each item a whole number"),
        ({**VALID, "format": 2}, "format 2 cannot be read by this version"),
        (recursive(), "expected at most 32 mappings and lists inside each other"),
        ({**VALID, "x": ["x"] * 20_000}, "expected at most 10000 values in a configuration"),
    ],
)
def test_a_mistyped_configuration_in_a_checkpoint(content, expected):
    with pytest.raises(ConfigError) as caught:
        restore_config(content)
    lines = str(caught.value).splitlines()
    assert expected in lines[0]
    assert all(line.startswith("the configuration in the checkpoint: ") for line in lines)


def test_plain_data_with_tuples_and_paths_is_a_configuration(tmp_path):
    config = load_config({**VALID, "model": {"name": "unet", "widths": (4, 8)}, "run": {"dir": tmp_path}})
    assert config.model.args["widths"] == [4, 8]
    assert config.run.dir == tmp_path


# --- networks and batches --------------------------------------------------------------------------------------------


def parameters(width: int) -> int:
    """Of a U-Net with two widths, one channel and two classes: convolutions, norms, upsampling and head."""
    square = width * width
    encoder, decoder = 9 * (width + 3 * square), 9 * (2 * square + square)
    return encoder + decoder + 6 * 2 * width + (4 * square + width) + 2 * width + 2


def test_a_network_beyond_the_memory_is_refused_before_it_is_built():
    width = 2**16
    printed = message(VALID, f"model.widths=[{width}, {width}]")
    number = float(re.search(r"the network has (\S+) parameters", printed)[1])  # pyright: ignore[reportOptionalSubscript]
    assert number == pytest.approx(parameters(width), rel=0.01)
    assert 2 * 4 * parameters(width) > psutil.virtual_memory().total
    assert "model: the network has" in printed


def test_a_network_of_a_checkpoint_is_measured_before_it_is_built():
    from segkit.experiment.build import build_labels, build_model

    config = restore_config({**VALID, "model": {"name": "unet", "widths": [2**16] * 4}})
    with pytest.raises(ConfigError, match=r"model: the network has .* parameters: its weights need"):
        build_model(config, 1, build_labels(config), 2)


def test_measuring_a_network_does_not_change_its_weights():
    from segkit.experiment.build import build_labels, build_model
    from segkit.models.unet import UNet

    config = load_config(VALID)
    torch.manual_seed(3)
    built = build_model(config, 1, build_labels(config), 2)
    torch.manual_seed(3)
    expected = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 4])
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), expected.parameters(), strict=True))


DEEP = ("data.size=[8, 8]", "model.widths=[4, 4, 4, 4]", "device=cpu")  # one pixel at the coarsest resolution


@pytest.mark.parametrize("patch", ["null", "[8, 8]"])
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loader.batch=1", r"on batches \[1, 1, 8, 8\].*Expected more than 1 value per channel"),
        ("model.norm=instance", r"on batches \[4, 1, 8, 8\].*at least 128 pixels, got \[8, 8\]; pad to \[8, 16\]"),
        ("model={name: monai_unet}", r"on batches \[4, 1, 8, 8\].*Expected more than 1 spatial element"),
    ],
)
def test_a_batch_that_cannot_be_normalised_is_refused_with_its_size(override, expected, patch):
    config = load_config(VALID, [*DEEP, f"sampling.patch={patch}", override])
    with pytest.raises(ConfigError, match=expected):
        build_experiment(config)


def test_larger_batches_of_the_same_images_are_accepted():
    built = build_experiment(load_config(VALID, [*DEEP, "loader.batch=2"]))
    assert built.data.sizes == ((8, 8),) * 4


def test_the_batch_of_one_process_counts():
    from segkit.experiment.network_check import check_network
    from segkit.utils.distributed import Processes

    config = load_config(VALID, [*DEEP, "loader.batch=2"])
    data = build_experiment(config).data
    with pytest.raises(ConfigError, match=r"on batches \[1, 1, 8, 8\]"):
        check_network(config, data, Processes(rank=0, world_size=2))
    check_network(load_config(VALID, [*DEEP, "loader.batch=4"]), data, Processes(rank=1, world_size=2))
