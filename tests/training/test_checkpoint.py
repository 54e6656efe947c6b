"""Reading checkpoints: as torch reads them, and no damage, no lie about sizes and no code gets through."""

import math
import os
import resource
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from segkit.data.cases import Case, RawCase
from segkit.data.preprocess import Preprocess
from segkit.training import checkpoint, tensor_file
from segkit.training.checkpoint import CheckpointError

from support.faults.checkpoints import _saved, archived, honest, hostile_files, trained


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.pt"


def assert_equal(first, second):
    """Equality of nested data, tensors bit by bit and with their strides."""
    if isinstance(first, torch.Tensor):
        assert (first.dtype, first.stride()) == (second.dtype, second.stride())
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key, value in first.items():
            assert_equal(value, second[key])
    elif isinstance(first, (list, tuple)):
        assert type(first) is type(second)
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second
        assert type(first) is type(second)


def test_a_checkpoint_is_read_as_torch_reads_it(path):
    path.write_bytes(trained())
    expected = torch.load(path, weights_only=True)
    assert_equal(expected, checkpoint.load(path))
    versions = {name: entry["version"] for name, entry in expected["model"]._metadata.items()}
    assert {name: entry["version"] for name, entry in checkpoint.load(path)["model"]._metadata.items()} == versions


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_are_read_as_torch_reads_them(path, zipped):
    shared = torch.arange(24.0)
    content = {
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.bfloat16, torch.bool, torch.int64)},
        **({"uint16": torch.ones(3, dtype=torch.uint16)} if zipped else {}),
        "views": [shared[2:8], shared.view(4, 6).t(), shared[::3], shared.view(2, 3, 4)[:, 1]],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.ones(2)).data,
        "last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_equal(torch.load(path, weights_only=True), tensor_file.read_weights(path))


def test_a_file_without_checksums_is_read(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal({"a": torch.ones(3)}, tensor_file.read_archive(path))


def test_a_flipped_bit_in_a_weight_is_noticed(path):
    """torch itself returns the other number."""
    torch.save({"format": 1, "model": {"w": torch.full((4,), 1.0)}}, path)
    content = path.read_bytes()
    path.write_bytes(
        content.replace(np.float32(1).tobytes() * 4, np.float32(1).tobytes() * 3 + np.float32(2).tobytes())
    )
    assert torch.load(path, weights_only=True)["model"]["w"].tolist() == [1, 1, 1, 2]
    with pytest.raises(CheckpointError, match=r"last\.pt .*damaged.*data/0 .*checksum"):
        checkpoint.load(path)


def test_hostile_files_name_the_file_execute_nothing_and_take_no_memory(tmp_path, path, monkeypatch):
    """Bombs, declared sizes, code, and pickles that allocate before they read."""
    monkeypatch.setattr("segkit.training.tensor_pickle.PLAIN_OBJECTS", 200_000)
    files = hostile_files(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in files.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.pt") as error:
            checkpoint.load(path)
        assert len(str(error.value)) < 600, name
        assert "weights_only" not in str(error.value), name
        assert ("holds code, not weights: refused" in str(error.value)) or not name.startswith("code"), name
    assert not (tmp_path / "canary").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300 * 1024  # KiB


def test_the_memory_for_a_large_file_is_that_of_the_file(path):
    torch.save({"format": 1, "model": {"w": torch.ones(50 << 18)}}, path)  # 50 MiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert checkpoint.load(path)["model"]["w"].numel() == 50 << 18
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 * 1024


def test_folders_pipes_and_devices_are_no_checkpoints(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to("/dev/zero")
    for name, reason in (("folder.pt", "folder"), ("pipe.pt", "neither"), ("loop.pt", "neither")):
        with pytest.raises(CheckpointError, match=rf"{name} .*{reason}"):
            checkpoint.load(tmp_path / name)


def test_the_table_at_the_end_decides_and_nothing_else_reads_the_file(path):
    """Readers of zip files differ in which table they believe; here one reader checks and reads."""
    path.write_bytes(_saved(honest() | {"step": 2}) + _saved(honest() | {"step": 1}))
    assert checkpoint.load(path)["step"] == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "1", r"format: expected a whole number"),
        ("format", True, r"format: expected a whole number"),
        ("format", 0, r"format: expected a whole number"),
        ("format", 2**40, r"checkpoint format 1099511627776.*upgrade"),
        ("config", [1], r"config: expected a valid dictionary, got \[1\]"),
        ("config", {"a": torch.ones(1)}, r"config: expected plain data in a, got a tensor of torch.float32"),
        ("config", {"a": {"b": [{None: 1}]}}, r"config: expected text or numbers as keys of a\.b\.0, got None"),
        ("config", {1: 2}, r"config"),
        ("preprocess", {}, r"preprocess: .*channels"),
        ("preprocess", {"channels": 10**12, "dims": 2}, r"preprocess: "),
        ("split", {"train": "abc"}, r"split: expected train to be a list of case names, got 'abc'"),
        ("split", {"trian": []}, r"split: .*trian"),
        ("steps", "9", r"steps: expected a valid integer, got '9'"),
        ("steps", 0, r"steps: expected greater than or equal to 1, got 0"),
        ("step", -1, r"step: .*-1"),
        ("step", 2.0, r"step: .*2\.0"),
        ("finished", "yes", r"finished: .*'yes'"),
        ("best", math.nan, r"best: .*nan"),
        ("model", None, r"model: .*None"),
        ("model", {"w": [1.0]}, r"model: expected the weights w to be a tensor, got \[1\.0\]"),
        ("model", {"w": torch.ones(1).expand(1000)}, r"model: expected the numbers of w in the file"),
        ("training", None, r"training: expected a mapping, got None"),
        ("training", {"model": {}}, r"training\.optimizer: is missing; training\.schedule: is missing"),
        ("time", {"training_seconds": math.inf}, r"time\.training_seconds: .*inf"),
        ("plugins", ["os"], r"plugins: expected a valid dictionary"),
        ("integers_scaled", 1, r"integers_scaled: expected a valid boolean, got 1"),
    ],
)
def test_a_field_of_another_type_is_named(path, field, value, message):
    path.write_bytes(_saved(honest() | {field: value}))
    with pytest.raises(CheckpointError, match=rf"last\.pt.*{message}") as error:
        checkpoint.load(path)
    assert len(str(error.value)) < 600


def test_fields_within_the_training_are_named(path):
    changes = {
        "training.random.0.cpu": lambda state: state["random"][0].update(cpu=torch.zeros(3, dtype=torch.uint8)),
        "training.meter.scalars": lambda state: state["meter"].update(scalars=[{"loss": torch.ones(2)}]),
        "training.optimizer.state": lambda state: state["optimizer"].update(state=[1]),
        "training.scaler.scale": lambda state: state["scaler"].update(scale="x"),
    }
    for field, change in changes.items():
        content = honest()
        change(content["training"])
        path.write_bytes(_saved(content))
        with pytest.raises(CheckpointError, match=rf"last\.pt: {field}"):
            checkpoint.load(path)


def test_weights_that_do_not_fit_are_one_message(path):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = network.state_dict()
    checkpoint.check_weights(path, "model", state, network)
    changed = {name: value for name, value in state.items() if name != "0.bias"}
    changed |= {"0.weight": torch.ones(2, 2), "1.bias": torch.ones(3, dtype=torch.complex64), "x": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.check_weights(path, "model", changed, network)
    for text in (
        "missing: 0.bias",
        "not in the network: x",
        "0.weight (file [2, 2], network [3, 2])",
        "1.bias (file torch.complex64, network torch.float32)",
    ):
        assert text in str(error.value)


def test_weights_that_are_not_finite_are_named(path):
    network = nn.Linear(2, 3)
    state = network.state_dict() | {"bias": torch.tensor([1.0, math.nan, -math.inf])}
    with pytest.raises(CheckpointError, match=r"last\.pt: expected finite weights in model.*bias \(2 of 3 numbers\)"):
        checkpoint.check_weights(path, "model", state, network)


def test_moments_must_fit_the_parameters(path):
    network = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = honest()
    content["model"] = content["training"]["model"] = network.state_dict()
    content["training"]["optimizer"] = optimizer.state_dict()
    checkpoint.check_resumable(path, content, network, optimizer)
    content["training"]["optimizer"]["state"][0]["exp_avg"] = torch.ones(7)
    with pytest.raises(CheckpointError, match=r"training\.optimizer\.state\.0\.exp_avg.*\[7\]"):
        checkpoint.check_resumable(path, content, network, optimizer)
    content["training"]["optimizer"]["param_groups"] = []
    with pytest.raises(CheckpointError, match=r"param_groups"):
        checkpoint.check_resumable(path, content, network, optimizer)


def test_a_field_that_is_needed_is_named(path):
    with pytest.raises(CheckpointError, match=r"last\.pt is no complete checkpoint: it has no config, split"):
        checkpoint.check_complete(path, {"preprocess": {}}, ("config", "preprocess", "split"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": "1"}, "channels"),
        ({"intensity": "other"}, "intensity"),
        ({"scale": [1.0]}, "scale"),
        ({"low": []}, "low"),
        ({"high": [math.nan]}, "finite"),
        ({"spacing": [0.0, 1.0]}, "spacing"),
        ({"spacing": [1.0]}, "spacing"),
        ({"multiple": 0}, "multiple"),
        ({"multiple": 10**9}, "multiple"),
        ({"extra": 1}, "extra"),
        ({"dims": None}, "dims"),
        ({"shift": {"a": object()}}, "JSON"),
    ],
)
def test_preprocessing_is_restored_from_what_fit_makes_only(change, message):
    case = RawCase(np.zeros((1, 4, 4), np.float32), None, (1.0, 1.0))
    plain = Preprocess.fit([(Case("a", "a"), case)], multiple=4).to_dict()
    assert Preprocess.from_dict(plain).to_dict() == plain
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict(plain | change)


def test_a_compressed_archive_is_refused_before_anything_is_unpacked(path, monkeypatch):
    records = {"archive/data.pkl": b"\x80\x02}."}
    path.write_bytes(archived(records | {"archive/data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 5000
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(CheckpointError, match=r"last\.pt .*compressed"):
        checkpoint.load(path)
