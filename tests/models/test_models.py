"""Tests of all networks, and of the U-Net of segkit."""

import pytest
import torch

from segkit.models import MODELS
from segkit.models.unet import UNet

TWO_DIMENSIONAL = {"fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet", "lraspp_mobilenet"}
CASES = [(name, dims) for name in MODELS for dims in (2, 3) if dims == 2 or name not in TWO_DIMENSIONAL]


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_logits_have_the_size_of_the_image(name, dims):
    network = MODELS[name](in_channels=2, out_channels=3, dims=dims)
    size = (64, 96) if dims == 2 else (32, 16, 48)
    assert all(side % network.multiple == 0 for side in size)
    logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    trained = [parameter for parameter in network.parameters() if parameter.grad is not None]
    assert len(trained) >= 0.9 * len(list(network.parameters()))


@pytest.mark.parametrize("name", sorted(TWO_DIMENSIONAL))
def test_torchvision_networks_reject_volumes(name):
    with pytest.raises(ValueError, match=r"2D images.* got 3"):
        MODELS[name](in_channels=1, out_channels=2, dims=3)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_memory_format_does_not_change_the_result(dims, residual, norm):
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=2, dims=dims, widths=[4, 8, 12], norm=norm, residual=residual).double()
    image = torch.randn(2, 1, *[16] * dims, dtype=torch.float64)
    expected = network(image)
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    torch.testing.assert_close(network.to(memory_format=last)(image.to(memory_format=last)), expected)


def test_unet_has_the_receptive_field_of_its_coarsest_resolution():
    """An input pixel must affect the output through the coarsest resolution, not only through the first skip."""
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=1, dims=2, widths=[4, 4, 4, 4]).eval()
    image = torch.zeros(1, 1, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, 0, 32, 32], image)
    reached = gradient[0, 0].abs().sum(0).nonzero()
    assert reached.min() <= 12
    assert reached.max() >= 52


def test_the_error_names_the_size_to_pad_to():
    network = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8, 16])
    with pytest.raises(ValueError, match=r"multiples of 4, got \[30, 32\]; pad to \[32, 32\]"):
        network(torch.zeros(1, 1, 30, 32))


def test_anisotropic_strides_set_sizes_and_multiple():
    strides = [[2, 2, 1], [2, 2, 2]]
    network = UNet(in_channels=1, out_channels=2, dims=3, widths=[4, 8, 12], strides=strides, deep_supervision=True)
    assert network.multiple == (4, 4, 2)
    heads = network(torch.zeros(1, 1, 16, 12, 6))
    assert [tuple(head.shape[2:]) for head in heads] == [(16, 12, 6), (8, 6, 6)]
    assert network.head_strides == ((1, 1, 1), (2, 2, 1))
    with pytest.raises(ValueError, match=r"multiples of \(4, 4, 2\), got \[16, 12, 5\]; pad to \[16, 12, 6\]"):
        network(torch.zeros(1, 1, 16, 12, 5))


@pytest.mark.parametrize("residual", [False, True])
def test_strides_of_two_are_the_default(residual):
    networks = []
    for strides in (None, [[2, 2], [2, 2]]):
        torch.manual_seed(0)
        networks.append(
            UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8, 12], strides=strides, residual=residual)
        )
    image = torch.randn(2, 1, 16, 8)
    torch.testing.assert_close(networks[0](image), networks[1](image), rtol=0, atol=0)
    assert networks[1].multiple == 4


@pytest.mark.parametrize("strides", [[[2, 2]], [[2, 2], [2]], [[2, 2], [1, 1]], [[2, 2], [0, 2]]])
def test_invalid_strides_raise(strides):
    with pytest.raises(ValueError, match="expected strides with 2 entries"):
        UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8, 12], strides=strides)


def test_a_single_width_raises():
    with pytest.raises(ValueError, match="at least two widths"):
        UNet(in_channels=1, out_channels=2, dims=2, widths=[8])
