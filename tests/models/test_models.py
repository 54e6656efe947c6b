"""Tests of all networks, and of the U-Net of segkit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.models import MODELS
from segkit.models.unet import UNet
from segkit.utils.padding import padded

TWO_DIMENSIONAL = {"fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet", "lraspp_mobilenet"}
CASES = [(name, dims) for name in MODELS for dims in (2, 3) if dims == 2 or name not in TWO_DIMENSIONAL]


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_logits_have_the_size_of_the_image(name, dims):
    options = {"widths": [4, 8, 8]} if name == "residual_encoder_unet" else {}  # it has 100 million weights
    network = MODELS[name](in_channels=2, out_channels=3, dims=dims, **options)
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


SMALL = {
    "unet": {"widths": [4, 4, 4, 4]},
    "monai_unet": {"widths": [4, 4, 4, 4]},
    "monai_basic_unet": {"widths": [4] * 6},
    "monai_dynunet": {"widths": [4, 4, 4]},
    "monai_segresnet": {"width": 8},
    "lraspp_mobilenet": {},
}
ONE_PIXEL = ("monai_unet", "monai_basic_unet", "monai_dynunet")  # networks whose instance norms refuse one pixel


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_image_is_padded_to_a_size_that_the_network_takes(name):
    """One feature pixel remains of an image with the sides `multiple`, two of one with `minimum_pixels`."""
    network = MODELS[name](in_channels=1, out_channels=2, dims=2, **SMALL[name]).eval()
    multiple, minimum = network.multiple, getattr(network, "minimum_pixels", 1)
    size = padded((1, 1), multiple, minimum)
    with torch.no_grad():
        assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)
        if name in ONE_PIXEL:
            assert size == (multiple, 2 * multiple)
            with pytest.raises(ValueError, match="more than 1 spatial element"):
                network(torch.randn(1, 1, multiple, multiple))
        else:
            assert size == (multiple, multiple)


@pytest.mark.parametrize(("dims", "multiple"), [(2, 8), (3, 8)])
def test_unet_with_instance_norms_names_the_smallest_size(dims, multiple):
    network = UNet(in_channels=1, out_channels=2, dims=dims, widths=[4, 4, 4, 4], norm="instance").eval()
    assert network.multiple == multiple
    assert network.minimum_pixels == 2 * multiple**dims
    with pytest.raises(ValueError, match=rf"at least {2 * multiple**dims} pixels, got .*; pad to .*, {2 * multiple}\]"):
        network(torch.zeros(1, 1, *[multiple] * dims))
    sides = [multiple] * (dims - 1) + [2 * multiple]
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *sides)).shape == (1, 2, *sides)


@given(
    sides=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    multiple=st.integers(1, 16),
    pixels=st.integers(1, 5000),
)
@settings(max_examples=50, deadline=None, database=None)
def test_padding_is_the_least_that_lengthens_the_last_side(sides, multiple, pixels):
    size = padded(sides, multiple, pixels)
    assert all(side % multiple == 0 for side in size)
    assert all(0 <= new - old < multiple for new, old in zip(size[:-1], sides[:-1], strict=True))
    assert math.prod(size) >= pixels
    shorter = size[-1] - multiple
    assert shorter < sides[-1] or math.prod(size[:-1]) * shorter < pixels


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("monai_unet", {"widths": [4]}, "at least 2 widths.*got 1"),
        ("monai_basic_unet", {"widths": [4, 8]}, "expected 6 widths.*got 2"),
        ("monai_dynunet", {"widths": []}, "at least 3 widths.*got 0"),
    ],
)
def test_a_wrong_number_of_widths_raises(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](in_channels=1, out_channels=2, dims=2, **options)
