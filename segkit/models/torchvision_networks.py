"""Segmentation networks of torchvision, for 2D images, without pretrained weights.

torchvision is imported only when a network is built.
"""

from __future__ import annotations

from torch import Tensor, nn


class MainOutput(nn.Module):
    """A torchvision network that returns only its main logits: image [B, in_channels, H, W] -> logits [B, K, H, W].

    For images without three channels, the first convolution is replaced.
    """

    multiple = 1

    def __init__(self, network: nn.Module, in_channels: int):
        super().__init__()
        self.network = network
        if in_channels != 3:
            _widen_first_convolution(network, in_channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)["out"]


def _widen_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by a newly initialised one for `in_channels` channels."""
    name, first = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    parent, _, attribute = name.rpartition(".")
    padding = (int(first.padding[0]), int(first.padding[1]))
    size, stride = (first.kernel_size[0], first.kernel_size[1]), (first.stride[0], first.stride[1])
    new = nn.Conv2d(in_channels, first.out_channels, size, stride, padding, bias=first.bias is not None)
    setattr(network.get_submodule(parent), attribute, new)


def _build(name: str, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    import torchvision.models.segmentation as networks

    if dims != 2:
        raise ValueError(f"torchvision's {name} supports 2D images only, got {dims} dimensions; use unet or monai_unet")
    build = getattr(networks, name)
    return MainOutput(build(weights=None, weights_backbone=None, num_classes=out_channels), in_channels)


def fcn_resnet50(*, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """Fully convolutional network with a ResNet-50 backbone (Long et al., 2015)."""
    return _build("fcn_resnet50", in_channels, out_channels, dims)


def deeplabv3_resnet50(*, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """DeepLabV3 with a ResNet-50 backbone (Chen et al., 2017)."""
    return _build("deeplabv3_resnet50", in_channels, out_channels, dims)


def deeplabv3_mobilenet(*, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """DeepLabV3 with a MobileNetV3-Large backbone."""
    return _build("deeplabv3_mobilenet_v3_large", in_channels, out_channels, dims)


def lraspp_mobilenet(*, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """Lite R-ASPP with a MobileNetV3-Large backbone (Howard et al., 2019)."""
    return _build("lraspp_mobilenet_v3_large", in_channels, out_channels, dims)
