"""Weights to start from: files of other tools, of segkit, and of strangers."""

import math
import pickle
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segkit import Labels
from segkit.data.preprocess import Preprocess
from segkit.training import checkpoint
from segkit.training.checkpoint import CheckpointError
from segkit.training.init_weights import load_weights
from segkit.training.tensor_file import read_weights

from support.faults.checkpoints import honest


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def preprocess(**changes):
    plain = {"channels": 1, "dims": 2, "intensity": "zscore", "shift": [], "scale": [], "spacing": None, "multiple": 2}
    return Preprocess.from_dict(plain | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("kind", ["archive", "before 1.6", "parameters", "lightning", "safetensors", "expanded"])
def test_state_dicts_of_other_tools(tmp_path, kind):
    model, other = network(), network()
    state = {name: value + 1 for name, value in other.state_dict().items()}
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.ckpt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "lightning":  # with hooks, schedulers and callbacks beside the weights
        content = {
            "state_dict": {f"model.{name}": value for name, value in state.items()},
            "epoch": 3,
            "loops": {"a": []},
        }
        torch.save(content | {"lr_schedulers": [{"milestones": {1, 2}}], "size": torch.Size([2])}, path)
    elif kind == "parameters":
        torch.save({name: nn.Parameter(value, value.is_floating_point()) for name, value in state.items()}, path)
    elif kind == "expanded":
        state["1.weight"] = torch.ones(1).expand(2)
        torch.save(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "archive")
    loaded = load_weights(model, path)
    assert set(loaded.taken) == set(state)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_weights_of_another_kind_of_numbers_are_refused(path, dtype):
    model = network()
    torch.save(model.state_dict() | {"0.bias": torch.ones(2).to(dtype)}, path)
    with pytest.raises(CheckpointError, match=re.escape("weights.pt: ") + rf".*0\.bias \(file {dtype}, network"):
        load_weights(model, path)


def test_weights_that_are_not_finite_are_refused_where_they_would_be_used(path):
    model = network()
    torch.save(model.state_dict() | {"unused": torch.full((3,), math.nan)}, path)
    assert load_weights(model, path).unexpected == ("unused",)
    torch.save(model.state_dict() | {"0.bias": torch.tensor([0, math.inf])}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: .*finite.*0\.bias \(1 of 2 numbers\)"):
        load_weights(model, path)


class Stranger:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("write", ["torch", "pickle", "old"])
def test_code_is_refused_without_the_advice_of_torch(path, write, capsys):
    content = {"state_dict": network().state_dict(), "optimizer": Stranger()}
    if write == "pickle":
        path.write_bytes(pickle.dumps(Stranger(), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(CheckpointError, match=r"weights\.pt.* holds code, not weights: refused \(.*print\)") as error:
        load_weights(network(), path)
    assert "weights_only" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"expected a checkpoint or a mapping from names to tensors, got \{\}"),
        ([torch.ones(1)], r"expected a checkpoint or a mapping"),
        ({1: torch.ones(1)}, r"got \{1: "),
        ({"model": {"model": {"state_dict": {"x": 1}}}}, r"expected a checkpoint or a mapping"),
    ],
)
def test_other_content_is_described(path, content, message):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"weights\.pt: .*{message}"):
        load_weights(network(), path)


def test_plain_objects_of_other_tools_are_read_as_numbers(path):
    """Of the log of nnU-Net, for example. The values are those that NumPy gives."""
    values = [np.float64(1.25), np.float32(-0.5), np.float16(2), np.int64(-3), np.uint8(200), np.bool_(True)]
    content = {"log": values, "steps": defaultdict(list, {"a": [1]}), "folder": Path("a"), "weights": torch.ones(1)}
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read = read_weights(path)
        assert read["log"] == [value.item() for value in values]
        assert [type(value) for value in read["log"]] == [float, float, float, int, int, bool]
        assert read["steps"] == {"a": [1]}


@pytest.mark.parametrize("value", [np.datetime64("2020-01-01"), np.complex64(1), np.str_("a"), np.dtype(">f8")])
def test_other_numpy_types_are_refused(path, value):
    torch.save({"log": value, "weights": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: .*(plain data|little-endian)"):
        load_weights(network(), path)


def test_what_the_weights_were_trained_for_is_told(path):
    """A checkpoint of two classes, zscore, one channel; "all weights loaded" would sound as if they fitted."""
    model = network()
    content = honest() | {"model": model.state_dict()}
    checkpoint.save(path, {key: value for key, value in content.items() if key != "format"})
    origin = load_weights(model, path).origin
    assert origin.differences(Labels(["background", "a"]), preprocess()) == []
    channels = preprocess(channels=3, intensity="none")
    told = "\n".join(origin.differences(Labels(["background", "liver"]), channels))
    assert "the classes background, a there, background, liver here" in told
    assert "intensity zscore there, none here" in told
    assert "channels 1 there, 3 here" in told
    torch.save(model.state_dict(), path)
    assert load_weights(model, path).origin is None


def test_a_damaged_checkpoint_of_segkit_names_the_field(path):
    torch.save(honest() | {"model": network().state_dict(), "preprocess": {"channels": "x"}}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: preprocess: "):
        load_weights(network(), path)


def test_safetensors_that_are_none_name_the_file(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: .*damaged"):
        load_weights(network(), tmp_path / "weights.safetensors")
