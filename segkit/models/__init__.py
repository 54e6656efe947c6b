"""Networks by name. Each entry builds a network, image [B, C, *S] -> logits [B, K, *S], from keyword arguments.

`in_channels`, `out_channels` and `dims` are set from the data. The attribute `multiple` of a network states what the
sides of an image must be multiples of, and `minimum_pixels` (1 if it is missing) how many pixels an image must have at
least; `segkit.utils.padding.padded` gives the size to pad to.
"""

from collections.abc import Callable

from torch import nn

from segkit.models.monai_networks import monai_basic_unet, monai_dynunet, monai_segresnet, monai_unet
from segkit.models.residual_unet import ResidualEncoderUNet
from segkit.models.torchvision_networks import deeplabv3_mobilenet, deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet
from segkit.models.unet import UNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "residual_encoder_unet": ResidualEncoderUNet,
    "monai_unet": monai_unet,
    "monai_basic_unet": monai_basic_unet,
    "monai_dynunet": monai_dynunet,
    "monai_segresnet": monai_segresnet,
    "fcn_resnet50": fcn_resnet50,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "deeplabv3_mobilenet": deeplabv3_mobilenet,
    "lraspp_mobilenet": lraspp_mobilenet,
}

__all__ = ["MODELS", "ResidualEncoderUNet", "UNet"]
