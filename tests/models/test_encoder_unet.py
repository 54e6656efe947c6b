"""Encoders of timm with decoders of segmentation_models_pytorch, and the backbones of torchvision's networks."""

from typing import get_args

import pytest
import torch

from segkit.models import MODELS
from segkit.models.encoder_unet import Decoder, encoder_unet
from segkit.utils.padding import padded

ANY_SIZE = ("test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224", "vgg11")


def outline(in_channels=3, **options):
    """A network on the meta device, which costs neither memory nor time."""
    with torch.device("meta"):
        return encoder_unet(in_channels=in_channels, out_channels=4, dims=2, **options)


def logits(network, *size, channels=3, batch=2):
    with torch.device("meta"):
        return network(torch.zeros(batch, channels, *size))


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_decoder_takes_an_image_of_any_size_after_padding(decoder):
    network = outline(encoder="test_resnet", decoder=decoder, in_channels=2)
    size = padded((75, 141), network.multiple)
    assert logits(network.train(), *size, channels=2).shape == (2, 4, *size)
    smallest = (network.multiple,) * 2
    assert logits(network.eval(), *smallest, channels=2, batch=1).shape == (1, 4, *smallest)


@pytest.mark.parametrize(
    ("encoder", "decoder"), list(zip(ANY_SIZE, ("fpn", "unet", "segformer", "unet", "manet"), strict=True))
)
def test_kinds_of_encoders(encoder, decoder):
    network = outline(encoder=encoder, decoder=decoder)
    size = (network.multiple * 2, network.multiple * 3)
    assert logits(network, *size).shape == (2, 4, *size)
    assert not hasattr(network, "fixed_size")


def test_the_only_size_of_an_encoder_is_stated():
    network = outline(encoder="hiera_tiny_224")
    assert network.fixed_size == (224, 224)
    assert logits(network, 224, 224).shape == (2, 4, 224, 224)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_convnext", "vgg11", "hiera_tiny_224"])
def test_blocks_cover_the_encoder_in_the_order_of_its_layers(encoder):
    network = outline(encoder=encoder)
    names = [name for name, _ in network.named_parameters() if name.startswith("encoder.")]
    owners = [[block for block in network.encoder_blocks if f"{name}.".startswith(f"{block}.")] for name in names]
    assert {len(found) for found in owners} == {1}
    in_order = list(dict.fromkeys(found[0] for found in owners))
    assert in_order == list(network.encoder_blocks)
    assert len(in_order) >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet5"}, r"no network 'resnet5' for an encoder; did you mean resnet\d+\w*\?"),
        ({"encoder": "hf-hub:timm/resnet18"}, "no network 'hf-hub:timm/resnet18'"),
        ({"encoder": "resnet18.mine"}, r"no weights 'resnet18\.mine'; it has resnet18\."),
        ({"encoder": "vit_tiny_patch16_224"}, "does not halve its features"),
        ({"encoder": "vgg11", "decoder": "deeplabv3plus"}, r"needs an encoder with dilated.* use the decoder unet,"),
        ({"encoder": "test_resnet", "decoder_widths": [8, 8]}, "expected 5 decoder_widths for the decoder unet, got 2"),
        ({"encoder": "test_resnet", "decoder": "fpn", "decoder_widths": [8, 8]}, "expected 1 decoder_widths .* fpn"),
        ({"encoder": "resnet18d.ra2_in1k", "weights": "imagenet", "dims": 3}, "2D images only, got 3 dimensions"),
        ({"encoder": "cs3darknet_s", "weights": "imagenet"}, "publishes no weights of cs3darknet_s"),
    ],
)
def test_what_cannot_be_built_says_what_to_use(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        encoder_unet(**({"in_channels": 3, "out_channels": 2, "dims": 2} | options))


def test_widths_of_the_decoder_begin_with_the_finest():
    network = outline(encoder="test_resnet", decoder_widths=[8, 12, 16, 24, 32])
    assert network.segmentation_head[0].in_channels == 8
    assert outline(encoder="test_resnet", decoder="fpn", decoder_widths=[64]).segmentation_head[0].in_channels == 64


def test_building_takes_nothing_from_the_network_or_a_file(monkeypatch):
    """`imagenet` and a file that does not exist are only noted down: checkpoints are loaded without them."""
    monkeypatch.setattr("socket.socket.connect", lambda *_args: pytest.fail("a connection was opened"))
    for weights in ("imagenet", "package:nowhere", "/nowhere.pth"):
        known = outline(encoder="test_resnet", weights=weights).initial_weights
        assert (known.source, known.pretrained) == (weights, True)
    assert not outline(encoder="test_resnet").initial_weights.pretrained


def test_mean_and_deviation_are_those_of_timm_for_the_channels_of_the_image():
    known = outline(encoder="tf_efficientnet_lite0").initial_weights
    assert known.normalisation(3) == ((0.5,) * 3, (0.5,) * 3)
    known = outline(encoder="resnet18").initial_weights
    assert known.normalisation(5)[0] == (0.485, 0.456, 0.406, 0.485, 0.456)
    mean, deviation = known.normalisation(1)
    assert mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert deviation == pytest.approx(((0.229 + 0.224 + 0.225) / 3,))


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet", "lraspp_mobilenet"])
def test_blocks_of_torchvision_cover_the_backbone(name):
    with torch.device("meta"):
        network = MODELS[name](in_channels=5, out_channels=2, dims=2)
    backbone = [parameter for parameter, _ in network.named_parameters() if parameter.startswith("network.backbone.")]
    owners = [[block for block in network.encoder_blocks if f"{name}.".startswith(f"{block}.")] for name in backbone]
    assert {len(found) for found in owners} == {1}
    assert len({found[0] for found in owners}) == len(network.encoder_blocks)
