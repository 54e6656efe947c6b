"""`segkit model summary` on small configurations."""

import json

import pytest
import torch

from segkit.experiment.build import TABLES, load_config
from segkit.experiment.model_summary import summarise_model

from support.command_line import TINY, tool

CHECKED = {  # networks that are cheap to build, with options
    "unet": {"widths": [4, 8], "attention": True},
    "residual_encoder_unet": {"widths": [4, 8], "deep_supervision": True},
    "monai_dynunet": {"widths": [4, 8, 8]},
}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def test_the_table_and_the_file(config, tmp_path):
    printed = tool("model", "summary", "--config", config, "sampling.patch=[30, 32]", "--json", tmp_path / "out.json")
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["patch"] == [30, 32]
    assert [stage["name"] for stage in summary["stages"]] == [
        "encoder.0",
        "encoder.1",
        "upsample.0",
        "decoder.0",
        "head",
    ]
    assert summary["stages"][1]["shape"] == [16, 15, 16]
    assert sum(stage["parameters"] for stage in summary["stages"]) == summary["parameters"] == summary["trained"]
    assert sum(stage["multiply_adds"] for stage in summary["stages"]) == summary["multiply_adds"]
    assert f"{summary['parameters']:,} parameters" in printed
    assert "multiply-adds per patch" in printed
    assert "a training step on a batch of 4 in fp32 needs" in printed


@pytest.mark.parametrize("name", CHECKED)
def test_networks_of_the_table(name):
    options = {"name": name, **CHECKED[name]}
    content = {
        "labels": {"names": ["background", "a", "b"]},
        "data": {"name": "synthetic", "size": [64, 64], "train": 4, "validation": 2, "test": 2},
        "sampling": {"patch": [64, 64]},
        "loader": {"batch": 2},
        "model": options,
        "loss": "dice_ce",
        "optimizer": {"name": "adamw"},
        "train": {"steps": 8},
    }
    summary = summarise_model(load_config(content), channels=3)
    network = TABLES["model"].entries[name](in_channels=3, out_channels=3, dims=2, **CHECKED[name])
    assert summary.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert sum(stage.parameters for stage in summary.stages) == summary.parameters
    assert summary.multiply_adds > 0.9 * sum(stage.multiply_adds for stage in summary.stages) > 0
    assert summary.memory.peak > summary.memory.activations > 0
    assert summary.memory.moments >= 2 * summary.memory.gradients


def test_channels_without_reading(config, monkeypatch):
    """Nor does the random state change, nor is there memory for the network."""

    def refuse(*_):
        raise AssertionError("a case was read")

    monkeypatch.setattr("segkit.data.sources.synthetic.SyntheticSource.read", refuse)
    before = torch.get_rng_state()
    wide = "model={name: unet, widths: [64, 128], encoder_convs: 1, decoder_convs: 1}"
    huge = load_config(config, ["sampling.patch=[512, 512]", "loader.batch=64", wide])
    summary = summarise_model(huge, channels=5)
    assert summary.channels == 5
    assert summary.stages[0].shape == [64, 512, 512]
    assert summary.memory.peak > 10e9
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_patch_the_first_case_gives_the_size(config):
    summary = summarise_model(load_config(config))
    assert (summary.channels, summary.patch) == (1, [32, 32])


def test_frozen_parameters_are_named(config):
    printed = tool("model", "summary", "--config", config, "parameters.freeze=[encoder.*]")
    assert "of them frozen" in printed


def test_a_network_that_cannot_train_is_an_error(config):
    printed = tool(
        "model", "summary", "--config", config, "loader.batch=1", "sampling.patch=[2, 2]", "model.norm=batch", code=2
    )
    assert "cannot train on patches of [2, 2] with 1 channels" in printed


def test_presets_stand_for_their_options(config):
    short = load_config(config, ["model={name: unet, preset: medium}"])
    written = load_config(config, ["model={name: unet, widths: [32, 64, 128, 256, 320]}"])
    assert short.model == written.model
    assert short.digest() == written.digest()
    other = load_config(config, ["model={name: unet, preset: medium, widths: [8, 16], encoder_convs: 1}"])
    assert (other.model.args["widths"], other.model.args["encoder_convs"]) == ([8, 16], 1)
    with pytest.raises(ValueError, match=r"model\.preset: expected one of small, medium, large, got 'huge'"):
        load_config(config, ["model={name: unet, preset: huge}"])
    with pytest.raises(ValueError, match=r"model\.preset: unknown key"):
        load_config(config, ["model={name: monai_unet, preset: small}"])


def test_new_options_with_their_defaults_are_no_other_experiment(config):
    explicit = "attention: false, kernels: null, bias: false, stochastic_depth: 0, init: torch, norm_groups: 8"
    with_defaults = load_config(config, [f"model={{name: unet, widths: [8, 16], {explicit}}}"])
    assert with_defaults.digest() == load_config(config).digest()
    assert "attention" not in with_defaults.experiment()["model"]
    assert load_config(config, ["model.attention=true"]).digest() != load_config(config).digest()
