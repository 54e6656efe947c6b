"""The options of the U-Net and the residual encoder U-Net."""

import math

import pytest
import torch
from torch import nn

from segkit.models.residual_unet import ResidualEncoderUNet
from segkit.models.unet import UNet
from segkit.models.unet_blocks import AttentionGate, AveragePool3d, Layers, ResidualBlock, Stage, mean_of_blocks

BUILDS = {"unet": UNet, "residual_encoder_unet": ResidualEncoderUNet}


def small(**options):
    torch.manual_seed(0)
    return UNet(in_channels=1, out_channels=2, dims=2, widths=[8, 12, 16], **options)


@pytest.mark.parametrize("strides", [None, [[2, 1], [2, 2]]])
def test_attention_of_one_is_the_plain_network(strides):
    plain, gated = small(strides=strides).double().eval(), small(strides=strides, attention=True).double().eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(2, 1, 16, 24, dtype=torch.float64)
    assert not torch.allclose(gated(image), plain(image))
    for gate in gated.gates:
        nn.init.zeros_(gate.psi.weight)
        nn.init.constant_(gate.psi.bias, 50)
    torch.testing.assert_close(gated(image), plain(image), rtol=0, atol=1e-12)


def test_attention_on_constant_features_is_the_formula():
    torch.manual_seed(0)
    gate = AttentionGate(2, 4, 6, (2, 2)).double()
    skip, coarse = torch.randn(4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    between = gate.theta.weight.sum((2, 3)) @ skip + gate.phi.weight[:, :, 0, 0] @ coarse + gate.phi.bias
    attention = torch.sigmoid(gate.psi.weight[0, :, 0, 0] @ between.clamp(min=0) + gate.psi.bias)
    gated = gate(skip.reshape(1, 4, 1, 1).expand(1, 4, 8, 8), coarse.reshape(1, 6, 1, 1).expand(1, 6, 4, 4))
    torch.testing.assert_close(gated, (attention * skip).reshape(1, 4, 1, 1).expand(1, 4, 8, 8))


def test_group_norms_divide_each_width():
    network = small(norm="group")
    groups = [module.num_groups for module in network.encoder.modules() if isinstance(module, nn.GroupNorm)]
    assert groups == [8, 8, 4, 4, 8, 8]
    assert network.minimum_pixels == 16
    assert network.eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 2, 4, 4)


def test_group_norms_of_single_channels_need_two_pixels():
    network = small(norm="group", norm_groups=16).eval()
    assert network.minimum_pixels == 32
    with pytest.raises(ValueError, match=r"at least 32 pixels, got \[4, 4\]; pad to \[4, 8\]"):
        network(torch.zeros(1, 1, 4, 4))
    assert network(torch.zeros(1, 1, 4, 8)).shape == (1, 2, 4, 8)


@pytest.mark.parametrize("name", BUILDS)
def test_kernels_of_one_keep_slices_apart(name):
    torch.manual_seed(0)
    options = {"widths": [4, 4, 4], "strides": [[1, 2, 2], [1, 2, 2]], "kernels": [[1, 3, 3]] * 3}
    network = BUILDS[name](in_channels=1, out_channels=1, dims=3, **options)
    for norm in [module for module in network.modules() if isinstance(module, (nn.BatchNorm3d, nn.InstanceNorm3d))]:
        norm.forward = lambda features: features  # which would mix the slices
    image = torch.randn(1, 1, 5, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, 0, 2].sum(), image)
    assert gradient[0, 0].abs().sum((1, 2)).nonzero().flatten().tolist() == [2]


def test_a_number_of_convolutions_per_resolution():
    network = small(encoder_convs=[1, 2, 3], decoder_convs=[3, 1])
    convs = [[isinstance(module, nn.Conv2d) for module in stage.layers].count(True) for stage in network.encoder]
    assert convs == [1, 2, 3]
    assert [sum(isinstance(module, nn.Conv2d) for module in stage.layers) for stage in network.decoder] == [3, 1]


def test_a_bias_before_a_norm():
    assert not any("encoder" in name and name.endswith("layers.0.bias") for name, _ in small().named_parameters())
    assert small(bias=True).encoder[0].layers[0].bias.shape == (8,)


def test_stochastic_depth_drops_whole_images():
    torch.manual_seed(0)
    layers = Layers(2, norm="instance")
    stage = Stage(layers, 4, 4, kernel=(3, 3), strides=(1, 1), convs=2, residual=True, drop=0.25).train()
    features = torch.randn(1, 4, 4, 4).expand(400, 4, 4, 4)
    with torch.no_grad():
        out = stage(features)
        branch, shortcut = stage.layers(features[:1]), features[:1]
        skipped = nn.functional.leaky_relu(shortcut, 0.01)
        kept = nn.functional.leaky_relu(branch / 0.75 + shortcut, 0.01)
    is_skipped = torch.isclose(out, skipped, atol=1e-5).flatten(1).all(1)
    torch.testing.assert_close(out[~is_skipped], kept.expand_as(out)[~is_skipped], rtol=1e-4, atol=1e-5)
    assert 0.15 < is_skipped.float().mean() < 0.35  # 4.6 standard deviations


def test_stochastic_depth_rises_linearly_and_ends_with_training():
    network, plain = small(residual=True, stochastic_depth=0.5), small(residual=True)
    rates = [stage.drop.p for stage in [*network.encoder, *reversed(network.decoder)]]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    image = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(network.eval()(image), plain.eval()(image))
    encoder = ResidualEncoderUNet(
        in_channels=1, out_channels=2, dims=2, widths=[4, 4], blocks_per_stage=[1, 3], stochastic_depth=0.2
    )
    blocks = [module.drop.p for module in encoder.modules() if isinstance(module, ResidualBlock)]
    assert blocks == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_he_initialisation():
    network = small(init="he", bias=True)
    convs = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    assert not any(conv.bias.any() for conv in convs)
    conv = network.encoder[2].layers[3]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 1.0001 / (16 * 9)), rel=0.05)


def test_torch_initialisation_is_bounded_by_the_fan_in():
    weight = small().encoder[2].layers[3].weight
    bound = 1 / math.sqrt(16 * 9)
    assert 0.99 * bound < weight.abs().max() <= bound


def test_residual_blocks_start_as_their_shortcut():
    torch.manual_seed(0)
    network = ResidualEncoderUNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8])
    block = network.encoder[1][0]
    features = torch.randn(2, 4, 8, 8)
    expected = nn.functional.leaky_relu(block.shortcut(features), 0.01)
    torch.testing.assert_close(block(features), expected)
    assert expected.shape == (2, 8, 4, 4)


@pytest.mark.parametrize(("dims", "parameters"), [(2, 140019061), (3, 102350575)])
def test_the_default_residual_encoder_is_that_of_nnunet(dims, parameters):
    """Number of parameters of nnU-Net's network with one channel, three classes and all heads."""
    with torch.device("meta"):
        network = ResidualEncoderUNet(in_channels=1, out_channels=3, dims=dims, deep_supervision=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("preset", "dims", "millions"),
    [("small", 2, 0.482), ("small", 3, 1.40), ("medium", 2, 5.69), ("medium", 3, 16.54), ("large", 2, 30.7)],
)
def test_presets_have_the_documented_sizes(preset, dims, millions):
    with torch.device("meta"):
        network = UNet(in_channels=1, out_channels=2, dims=dims, **UNet.presets[preset])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", BUILDS)
def test_the_blocks_of_the_encoder_hold_all_that_comes_before_the_decoder(name):
    network = BUILDS[name](in_channels=1, out_channels=2, dims=2, widths=[4, 8, 8])
    assert network.encoder_blocks == ("encoder.0", "encoder.1", "encoder.2")
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        features, coarsest = image, []
        for block in network.encoder_blocks:
            features = network.get_submodule(block)(features)
        network.dropout.register_forward_pre_hook(lambda _module, inputs: coarsest.append(inputs[0]))
        for norm in network.modules():
            norm.momentum = 0.0 if isinstance(norm, nn.BatchNorm2d) else None
        network(image)
    torch.testing.assert_close(coarsest[0], features)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"kernels": [[3, 3]]}, "expected kernels with 3 entries, as many as widths"),
        ("unet", {"kernels": [[3, 3], [3, 2], [3, 3]]}, "each with 2 numbers among 1, 3"),
        ("unet", {"encoder_convs": [1, 2]}, "expected encoder_convs with one number of at least 1, or 3 of them"),
        ("unet", {"decoder_convs": [1, 2, 3]}, "expected decoder_convs .* or 2 of them"),
        ("unet", {"encoder_convs": 0}, "expected encoder_convs"),
        ("unet", {"stochastic_depth": 0.1}, "set residual: true"),
        ("unet", {"stochastic_depth": 1.0, "residual": True}, "0 <= stochastic_depth < 1"),
        ("residual_encoder_unet", {"blocks_per_stage": [1, 2]}, "expected blocks_per_stage .* or 3 of them"),
        ("residual_encoder_unet", {"widths": [4]}, "at least two widths"),
    ],
)
def test_invalid_options_raise(name, options, message):
    options = {"widths": [4, 4, 4], **options}
    with pytest.raises(ValueError, match=message):
        BUILDS[name](in_channels=1, out_channels=2, dims=2, **options)


@pytest.mark.parametrize("sides", [(2, 2, 2), (1, 2, 2), (1, 3, 2)])
def test_the_deterministic_average_of_blocks_is_that_of_the_pooling(sides):
    """On CUDA, with deterministic operations alone, it takes the place of torch's pooling."""
    features = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    pooled, mean = AveragePool3d(sides)(features), mean_of_blocks(features, sides)
    torch.testing.assert_close(mean, pooled)
    weight = torch.randn_like(pooled)
    gradients = [torch.autograd.grad((result * weight).sum(), features)[0] for result in (pooled, mean)]
    torch.testing.assert_close(*gradients)
