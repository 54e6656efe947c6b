"""Networks of MONAI whose forward pass needs a change. The names of their parameters are those of MONAI.

This module imports MONAI, which takes seconds, so it is imported only when one of these networks is built.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets import basic_unetplusplus, dynunet, mednext, unetr, vnet
from torch import Tensor, nn

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
DROPOUTS = {2: nn.Dropout2d, 3: nn.Dropout3d}
VNET_INPUTS = (1, 2, 4, 8, 16)  # channels that the first block of VNet takes: it repeats them to 16


class DynUNet(dynunet.DynUNet):
    """DynUNet that returns the logits of its heads at their own resolutions, as nnU-Net does.

    In `train()` mode with `deep_supervision`: a list, finest first. MONAI resizes them to the finest and stacks them.
    Dropout does not apply to the logits.
    """

    def get_output_block(self, idx: int) -> nn.Module:
        return UnetOutBlock(self.spatial_dims, self.filters[idx], self.out_channels)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for block in (self.input_block, *self.downsamples):
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        decoded = []
        for upsample, skip in zip(self.upsamples, reversed(skips), strict=True):
            x = upsample(x, skip)
            decoded.insert(0, x)
        logits = self.output_block(x)
        if not (self.training and self.deep_supervision):
            return logits
        coarser = zip(self.deep_supervision_heads, decoded[1:], strict=False)  # pyright: ignore[reportArgumentType]
        return [logits, *(head(features) for head, features in coarser)]


class BasicUNetPlusPlus(basic_unetplusplus.BasicUNetPlusPlus):
    """BasicUNetPlusPlus that returns a list of logits in `train()` mode with `deep_supervision` alone, deepest first.

    Without it, the outputs of the shallower decoders are removed, since they would never be trained.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, widths: Sequence[int], **options: object):
        super().__init__(dims, in_channels, out_channels, widths, **options)  # pyright: ignore[reportArgumentType]
        if not self.deep_supervision:
            self.final_conv_0_1 = self.final_conv_0_2 = self.final_conv_0_3 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)[::-1]
        return outputs if self.training and self.deep_supervision else outputs[0]


class VNet(vnet.VNet):
    """VNet for any number of channels: a 1x1 convolution maps those that do not divide 16 to the next that do.

    dropout: probability in all places. MONAI uses 3D dropout for 2D images too, which drops whole images of a batch.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, dropout: float):
        inputs = next((channels for channels in VNET_INPUTS if channels >= in_channels), VNET_INPUTS[-1])
        super().__init__(dims, inputs, out_channels)
        for block in self.children():
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Dropout3d):
                    setattr(block, name, DROPOUTS[dims](dropout))
        self.is_projected = inputs != in_channels
        self.input_projection = CONVOLUTIONS[dims](in_channels, inputs, 1) if self.is_projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.input_projection(x))


class MedNeXt(mednext.MedNeXt):
    """MedNeXt that returns a list of logits, finest first, in `train()` mode with `deep_supervision`."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = super().forward(x)
        return outputs if isinstance(outputs, Tensor) else list(outputs)


class UNETR(unetr.UNETR):
    """UNETR that says which image size it takes. It has no parameters without a use."""

    def __init__(self, in_channels: int, out_channels: int, image_size: tuple[int, ...], **options: object):
        super().__init__(in_channels, out_channels, image_size, spatial_dims=len(image_size), **options)  # pyright: ignore[reportArgumentType]
        self.fixed_size = image_size
        for block in self.vit.blocks:
            block.norm_cross_attn = nn.Identity()  # of a cross attention that the block does not have

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.fixed_size:
            raise ValueError(
                f"expected images of {list(self.fixed_size)} pixels, the size in model.image_size, got "
                f"{list(x.shape[2:])}"
            )
        return super().forward(x)
