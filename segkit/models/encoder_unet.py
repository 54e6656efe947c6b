"""Encoders of timm with the decoders of segmentation_models_pytorch, for 2D images.

Both libraries are imported only when a network is built. It is built with random weights; its attribute
`initial_weights` says which pretrained weights belong into the encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from segkit.models.initial_weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InitialWeights,
    Published,
    Weights,
    blocks_of,
)
from segkit.models.options import Widths
from segkit.utils.optional import require
from segkit.utils.text import did_you_mean, listed

Decoder = Literal["unet", "unetplusplus", "fpn", "deeplabv3plus", "segformer", "upernet", "manet", "pan"]
CLASSES: dict[Decoder, str] = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "fpn": "FPN",
    "deeplabv3plus": "DeepLabV3Plus",
    "segformer": "Segformer",
    "upernet": "UPerNet",
    "manet": "MAnet",
    "pan": "PAN",
}
LEVELS = ("unet", "unetplusplus", "manet")  # decoders with a width for each of five resolutions
WIDTH = {  # the argument for the width of the others
    "fpn": "decoder_segmentation_channels",
    "deeplabv3plus": "decoder_channels",
    "segformer": "decoder_segmentation_channels",
    "upernet": "decoder_channels",
    "pan": "decoder_channels",
}
DILATED = ("deeplabv3plus", "pan")  # decoders that need an encoder with an output stride of 16
POOLED = {"pan": 8}  # how often decoders halve the coarsest features further


def encoder_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    encoder: str = "resnet34",
    decoder: Decoder = "unet",
    weights: Weights = "none",
    decoder_widths: Widths | None = None,
) -> nn.Module:
    """An encoder of timm with a decoder of segmentation_models_pytorch.

    The decoders: U-Net (Ronneberger et al., 2015), UNet++ (Zhou et al., 2018), FPN (Kirillov et al., 2019), DeepLabV3+
    (Chen et al., 2018), SegFormer (Xie et al., 2021), UPerNet (Xiao et al., 2018), MA-Net (Fan et al., 2020), PAN (Li
    et al., 2018).

    encoder: the name of a network of timm, such as `resnet50` or `convnext_tiny.fb_in22k`.
    weights: the pretrained weights of the encoder: `imagenet` (those that timm publishes), a file, `package:NAME` (the
        file in an installed package) or `none`. They are not loaded here, see `segkit.models.initial_weights`.
    decoder_widths: channels of the decoder: five numbers, finest first, for unet, unetplusplus and manet, one number
        for the others. None: as in the library.

    Raises ValueError for volumes, an unknown encoder, and an encoder that the decoder cannot use.
    """
    if dims != 2:
        raise ValueError(f"encoder_unet supports 2D images only, got {dims} dimensions; use unet or monai_unet")
    _check_encoder(encoder, weights)
    network = _build(encoder, decoder, in_channels, out_channels, _widths(decoder, decoder_widths))
    backbone = network.encoder.model
    network.multiple = network.encoder.output_stride * POOLED.get(decoder, 1)
    if _takes_one_size(backbone):
        network.fixed_size = tuple(backbone.pretrained_cfg["input_size"][1:])
    network.encoder_blocks = blocks_of(backbone, "encoder.model")
    network.initial_weights = _initial_weights(backbone, encoder, weights)
    return network


def _timm() -> Any:
    return require("timm", "encoders", "encoder_unet")


def _check_encoder(encoder: str, weights: str | Path) -> None:
    """Raise ValueError for a name that timm does not know, or for which it publishes no weights."""
    timm = _timm()
    architecture, _, tag = encoder.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            f"timm {timm.__version__} has no network {encoder!r} for an encoder"
            f"{did_you_mean(architecture, timm.list_models())}; timm.list_models() shows all names"
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and encoder not in tags:
        raise ValueError(
            f"timm {timm.__version__} has no weights {encoder!r}; it has {listed(tags) if tags else 'none'} for "
            f"{architecture}"
        )
    if weights == "imagenet" and not timm.models.is_model_pretrained(encoder):
        raise ValueError(
            f"weights: imagenet, but timm {timm.__version__} publishes no weights of {encoder}; give a file or none"
        )


def _widths(decoder: Decoder, widths: list[int] | None) -> dict[str, Any]:
    """The widths of a decoder as its class expects them. Raises ValueError for a wrong number of widths."""
    if widths is None:
        return {}
    expected = 5 if decoder in LEVELS else 1
    if len(widths) != expected:
        raise ValueError(f"expected {expected} decoder_widths for the decoder {decoder}, got {len(widths)}: {widths}")
    return {"decoder_channels": widths[::-1]} if decoder in LEVELS else {WIDTH[decoder]: widths[0]}


def _build(encoder: str, decoder: Decoder, in_channels: int, out_channels: int, widths: dict[str, Any]) -> Any:
    """The network of segmentation_models_pytorch. Raises ValueError if the decoder cannot use the encoder."""
    smp = require("segmentation_models_pytorch", "encoders", "encoder_unet")
    options = {"encoder_weights": None, "in_channels": in_channels, "classes": out_channels, **widths}
    # where an encoder is made for one size of images, but pads its windows itself
    any_size = {"strict_img_size": False} if _is_strict(encoder) else {}
    try:
        return getattr(smp, CLASSES[decoder])(f"tu-{encoder}", **options, **any_size)
    except (TypeError, ValueError, AssertionError, NotImplementedError, LookupError, AttributeError) as error:
        raise ValueError(_unusable(encoder, decoder, error)) from error


def _unusable(encoder: str, decoder: Decoder, error: Exception) -> str:
    """Why a decoder cannot use an encoder, and what to use."""
    others = [name for name in get_args(Decoder) if name not in DILATED]
    if decoder in DILATED and (isinstance(error, AssertionError) or "output_stride" in str(error)):
        return (
            f"the decoder {decoder} needs an encoder with dilated convolutions (output stride 16), and {encoder} has "
            f"none; use the decoder {', '.join(others[:-1])} or {others[-1]}, or an encoder such as resnet50"
        )
    if "downsampling pattern" in str(error) or isinstance(error, IndexError):  # the latter for fewer than five levels
        return (
            f"the encoder {encoder} does not halve its features from stage to stage, as decoders need it; use an "
            "encoder such as resnet50, convnext_tiny or swin_tiny_patch4_window7_224"
        )
    message = str(error) or type(error).__name__
    return f"segmentation_models_pytorch cannot build the decoder {decoder} on the encoder {encoder}: {message}"


def _is_strict(encoder: str) -> bool:
    """Whether timm builds an encoder for one size of images, but can be told to accept others."""
    config = _timm().get_pretrained_cfg(encoder)
    if config is None or not config.fixed_input_size:
        return False
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            _timm().create_model(encoder, features_only=True, strict_img_size=False)
    except TypeError:
        return False
    return True


def _takes_one_size(backbone: Any) -> bool:
    patches = next((part for part in backbone.modules() if hasattr(part, "strict_img_size")), None)
    return backbone.pretrained_cfg["fixed_input_size"] and (patches is None or patches.strict_img_size)


def _initial_weights(backbone: Any, encoder: str, weights: str | Path) -> InitialWeights:
    """Where the weights of the encoder come from, and on which images they were trained."""
    config = _timm().get_pretrained_cfg(encoder)
    published = None
    if weights == "imagenet":
        name = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
        published = Published("timm", name, config.hf_hub_id, config.hf_hub_filename, config.url)
    children = [name for name, _ in backbone.named_children()]
    inner = f".{children[0]}" if children in (["model"], ["body"]) else ""  # around the whole network of timm
    first = () if config is None else config.first_conv or ()
    return InitialWeights(
        source=weights,
        module=f"encoder.model{inner}",
        mean=IMAGENET_MEAN if config is None else tuple(config.mean),
        std=IMAGENET_STD if config is None else tuple(config.std),
        first_convolutions=tuple(f"{name}.weight" for name in ((first,) if isinstance(first, str) else first)),
        published=published,
    )
