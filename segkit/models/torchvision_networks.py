"""Segmentation networks of torchvision, for 2D images.

torchvision is imported only when a network is built. It is built with random weights; its attribute `initial_weights`
says which pretrained weights belong into it: `coco` for the whole network, `imagenet` for its backbone, or a file of
either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit.models.initial_weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InitialWeights,
    Published,
    SegmentationWeights,
    blocks_of,
)


class MainOutput(nn.Module):
    """A torchvision network that returns only its main logits: image [B, in_channels, H, W] -> logits [B, K, H, W].

    For images without three channels, the first convolution is replaced; pretrained weights are adapted to it.
    """

    multiple = 1

    def __init__(self, network: nn.Module, in_channels: int):
        super().__init__()
        self.network = network
        self.first_convolution = _first_convolution(network)
        if in_channels != 3:
            _widen(network, self.first_convolution, in_channels)
        self.encoder_blocks = blocks_of(network.get_submodule("backbone"), "network.backbone")

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)["out"]


def _first_convolution(network: nn.Module) -> str:
    return next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))


def _widen(network: nn.Module, name: str, in_channels: int) -> None:
    """Replace a convolution by a newly initialised one for `in_channels` channels."""
    first: Any = network.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    padding = (int(first.padding[0]), int(first.padding[1]))
    size, stride = (first.kernel_size[0], first.kernel_size[1]), (first.stride[0], first.stride[1])
    new = nn.Conv2d(in_channels, first.out_channels, size, stride, padding, bias=first.bias is not None)
    setattr(network.get_submodule(parent), attribute, new)


def _build(name: str, in_channels: int, out_channels: int, dims: int, weights: str | Path) -> nn.Module:
    import torchvision.models.segmentation as networks

    if dims != 2:
        raise ValueError(f"torchvision's {name} supports 2D images only, got {dims} dimensions; use unet or monai_unet")
    build = getattr(networks, name)
    network = MainOutput(build(weights=None, weights_backbone=None, num_classes=out_channels), in_channels)
    network.initial_weights = _initial_weights(name, network, weights)  # pyright: ignore[reportArgumentType]
    return network


def _initial_weights(name: str, network: MainOutput, weights: str | Path) -> InitialWeights:
    """Where the weights come from: `imagenet` are those of the backbone, `coco` those of the whole network, and a file
    may hold either."""
    first = f"{network.first_convolution}.weight"
    backbone = weights == "imagenet"
    return InitialWeights(
        source=weights,
        module="network.backbone" if backbone else "network",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        first_convolutions=(first.removeprefix("backbone."),) if backbone else (first,),
        published=_published(name, weights) if weights in ("imagenet", "coco") else None,
        head=() if backbone else ("classifier.",),
        parts=() if backbone or weights == "coco" else ("backbone.",),
    )


def _published(name: str, weights: str | Path) -> Published:
    """The weights that torchvision itself uses by default, for the network or its backbone."""
    from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights, get_model_weights

    if weights == "coco":
        chosen: Any = get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    else:
        chosen = ResNet50_Weights.IMAGENET1K_V1 if "resnet50" in name else MobileNet_V3_Large_Weights.IMAGENET1K_V1
    return Published("torchvision", str(chosen), url=chosen.url)


def fcn_resnet50(*, in_channels: int, out_channels: int, dims: int, weights: SegmentationWeights = "none") -> nn.Module:
    """Fully convolutional network with a ResNet-50 backbone (Long et al., 2015)."""
    return _build("fcn_resnet50", in_channels, out_channels, dims, weights)


def deeplabv3_resnet50(
    *, in_channels: int, out_channels: int, dims: int, weights: SegmentationWeights = "none"
) -> nn.Module:
    """DeepLabV3 with a ResNet-50 backbone (Chen et al., 2017)."""
    return _build("deeplabv3_resnet50", in_channels, out_channels, dims, weights)


def deeplabv3_mobilenet(
    *, in_channels: int, out_channels: int, dims: int, weights: SegmentationWeights = "none"
) -> nn.Module:
    """DeepLabV3 with a MobileNetV3-Large backbone."""
    return _build("deeplabv3_mobilenet_v3_large", in_channels, out_channels, dims, weights)


def lraspp_mobilenet(
    *, in_channels: int, out_channels: int, dims: int, weights: SegmentationWeights = "none"
) -> nn.Module:
    """Lite R-ASPP with a MobileNetV3-Large backbone (Howard et al., 2019)."""
    return _build("lraspp_mobilenet_v3_large", in_channels, out_channels, dims, weights)
