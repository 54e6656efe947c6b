"""Weights of nnU-Net's own networks, whose names, shapes and logits tools/write_nnunet_reference.py recorded."""

import json
import math
from pathlib import Path

import pytest
import torch

from segkit.models import MODELS
from segkit.training.checkpoint import CheckpointError
from segkit.training.init_weights import load_weights
from segkit.training.nnunet_weights import model_section, translated

REFERENCE = json.loads((Path(__file__).parent / "nnunet_reference.json").read_text())


def filled(name, shape):
    """The values that were filled in when the logits were recorded."""
    offset = sum(map(ord, name))
    return torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + offset).reshape(shape) / 2


def original_state(case):
    """The state dict of nnU-Net's network, with a tensor under each of its names."""
    return {name: filled(first, shape) for name, (first, shape) in REFERENCE[case]["tensors"].items()}


def ours(case, **options):
    reference = REFERENCE[case]
    model = {**reference["model"], **options}
    build = MODELS[model.pop("name")]
    dims = len(reference["size"])
    return build(in_channels=reference["channels"], out_channels=reference["classes"], dims=dims, **model).double()


def image_of(case):
    return filled("image", [2, REFERENCE[case]["channels"], *REFERENCE[case]["size"]])


def check_logits(case, heads):
    reference = REFERENCE[case]
    recorded = reference["logits"]
    for head, expected in zip(heads, recorded[: len(heads)], strict=True):
        flat = head.detach().flatten()
        sampled = flat[:: max(1, len(flat) // len(expected))][: len(expected)]
        torch.testing.assert_close(sampled, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", REFERENCE)
def test_the_logits_are_those_of_nnunet(case):
    network = ours(case, deep_supervision=True).train()
    weights = translated(original_state(case), network.state_dict())
    network.load_state_dict(weights)  # strictly: each name and each shape
    heads = network(image_of(case))
    assert len(heads) == len(REFERENCE[case]["logits"])
    check_logits(case, heads)


@pytest.mark.parametrize("case", ["plain_2d", "residual_3d"])
def test_coarser_heads_are_left_over_without_deep_supervision(case):
    network = ours(case).eval()
    state = {f"module._orig_mod.{name}": tensor for name, tensor in original_state(case).items()}
    loaded = network.load_state_dict(translated(state, network.state_dict()), strict=False)
    assert not loaded.missing_keys
    assert loaded.unexpected_keys == ["coarser_heads.0.weight", "coarser_heads.0.bias"]
    check_logits(case, [network(image_of(case))])


def test_a_checkpoint_file_of_nnunet_initialises_the_network(tmp_path):
    """The file holds more than weights."""
    content = {"network_weights": original_state("residual_3d"), "init_args": {"fold": 0}, "trainer_name": "x"}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    network = ours("residual_3d", deep_supervision=True).train()
    assert not load_weights(network, tmp_path / "checkpoint_final.pth").missing
    check_logits("residual_3d", network(image_of("residual_3d")))


@pytest.mark.parametrize("case", REFERENCE)
def test_the_section_of_its_network_is_read_from_the_shapes(case):
    """The recorded plan of nnU-Net has the same widths, strides, kernels and numbers of convolutions."""
    section = model_section(translated(original_state(case), {}))
    expected = REFERENCE[case]["model"]
    assert {key: section[key] for key in expected} == expected
    options = {key: value for key, value in section.items() if key != "name"}
    sizes = {"in_channels": REFERENCE[case]["channels"], "out_channels": REFERENCE[case]["classes"]}
    network = MODELS[section["name"]](**sizes, dims=len(REFERENCE[case]["size"]), deep_supervision=True, **options)
    network.load_state_dict(translated(original_state(case), network.state_dict()))


@pytest.mark.parametrize("case", REFERENCE)
def test_a_checkpoint_of_another_network_is_refused_with_its_own(tmp_path, case):
    torch.save({"network_weights": original_state(case)}, tmp_path / "checkpoint_final.pth")
    network = MODELS["unet"](in_channels=1, out_channels=7, dims=2, widths=[4, 6])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="is a checkpoint of nnU-Net, but less than half") as raised:
        load_weights(network, tmp_path / "checkpoint_final.pth")
    section = json.loads(str(raised.value).rpartition("model: ")[2])
    assert section == model_section(translated(original_state(case), {}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_missing_biases_of_transposed_convolutions_are_zero():
    """nnU-Net with conv_bias false has none."""
    state = {name: tensor for name, tensor in original_state("plain_2d").items() if ".conv.bias" not in name}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.transpconvs.0.b")}
    network = ours("plain_2d", deep_supervision=True)
    weights = translated(state, network.state_dict())
    assert not weights["upsample.1.bias"].any()
    assert weights["upsample.0.bias"].any()


def test_other_weights_are_not_translated():
    network = ours("plain_2d")
    assert translated(network.state_dict(), network.state_dict()) is None
    assert translated({}, network.state_dict()) is None


def test_a_tensor_of_no_known_name_keeps_it():
    state = {**original_state("plain_2d"), "decoder.extra.weight": torch.zeros(2)}
    assert "decoder.extra.weight" in translated(state, ours("plain_2d").state_dict())
