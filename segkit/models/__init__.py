"""Networks by name. Each entry builds a network, image [B, C, *S] -> logits [B, K, *S], from keyword arguments.

`in_channels`, `out_channels` and `dims` are set from the data. A network describes itself by attributes:

- `multiple`: what the sides of an image must be multiples of, one number for all axes or one per axis.
- `minimum_pixels` (1 if it is missing): how many pixels an image must have at least, in evaluation. In training, batch
  norms need more than one value per channel in the batch. `segkit.utils.padding.padded` gives the size to pad to.
- `fixed_size` (optional): the only size of an image that the network takes, one number per axis. It is the window of
  predictions, and smaller images are padded to it.
- `encoder_blocks` (optional): prefixes of the names of the encoder's parameters, one per block, in the order of the
  forward pass. `parameters.freeze: [encoder]`, `encoder_lr` and `layer_decay` go by it.
- `head_strides`: in `train()` mode, a network with deep supervision returns a list of logits, finest first; this is the
  downsampling factor of each, per axis. In `eval()` mode, a network returns one tensor.
- `initial_weights` (optional): where pretrained weights come from and into which module they go, see
  `segkit.models.initial_weights`. An entry never loads weights itself, because networks are also built for evaluation
  and for resuming a training.

An entry must also work on the meta device, so it reads no values of tensors.
"""

from collections.abc import Callable

from torch import nn

from segkit.models.encoder_unet import encoder_unet
from segkit.models.monai_networks import (
    monai_attention_unet,
    monai_basic_unet,
    monai_basic_unet_plusplus,
    monai_dynunet,
    monai_mednext,
    monai_segresnet,
    monai_segresnet_ds,
    monai_unet,
    monai_vnet,
)
from segkit.models.monai_transformers import monai_swin_unetr, monai_unetr
from segkit.models.residual_unet import ResidualEncoderUNet
from segkit.models.torchvision_networks import deeplabv3_mobilenet, deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet
from segkit.models.unet import UNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "residual_encoder_unet": ResidualEncoderUNet,
    "encoder_unet": encoder_unet,
    "monai_unet": monai_unet,
    "monai_attention_unet": monai_attention_unet,
    "monai_basic_unet": monai_basic_unet,
    "monai_basic_unet_plusplus": monai_basic_unet_plusplus,
    "monai_dynunet": monai_dynunet,
    "monai_segresnet": monai_segresnet,
    "monai_segresnet_ds": monai_segresnet_ds,
    "monai_vnet": monai_vnet,
    "monai_mednext": monai_mednext,
    "monai_swin_unetr": monai_swin_unetr,
    "monai_unetr": monai_unetr,
    "fcn_resnet50": fcn_resnet50,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "deeplabv3_mobilenet": deeplabv3_mobilenet,
    "lraspp_mobilenet": lraspp_mobilenet,
}

__all__ = ["MODELS", "ResidualEncoderUNet", "UNet"]
