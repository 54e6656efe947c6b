"""The residual encoder U-Net of nnU-Net (Isensee et al., 2024)."""

from __future__ import annotations

from typing import get_args

from torch import nn

from segkit.models.encoder_decoder import EncoderDecoder, check_levels, per_level
from segkit.models.nnunet_shapes import residual_blocks, widths_of
from segkit.models.options import Convs, DropRate, Widths
from segkit.models.sizes import checked_kernels, checked_strides
from segkit.models.unet_blocks import (
    Axes,
    Kernel,
    Layers,
    ResidualBlock,
    Stage,
    Stride,
    drop_rates,
    initialise,
)

STAGES = {2: 8, 3: 6}  # of nnU-Net for a patch of 512 x 512 or 128 x 128 x 128


class ResidualEncoderUNet(EncoderDecoder):
    """U-Net with a deep residual encoder and a light decoder: image [B, in_channels, *S] -> logits [B, K, *S].

    The layers are those of nnU-Net's ResEnc networks, so that their weights fit one by one: a convolution as stem,
    residual blocks at each resolution, transposed convolutions and plain convolutions in the decoder; instance norms,
    leaky ReLUs of slope 0.01, convolutions with bias. Isensee et al., "nnU-Net Revisited", 2024.

    widths: channels per resolution, finest first; None: nnU-Net's, which double from 32 up to 512 (2D, eight
        resolutions) or 320 (3D, six).
    blocks_per_stage: residual blocks at each resolution; None: nnU-Net's 1, 3, 4, and 6 at all further ones.
    strides, kernels, deep_supervision: see `segkit.models.unet.UNet`.
    decoder_convs: convolutions per resolution in the decoder: one number, or one per resolution, finest first.
    stochastic_depth: probability with which an image skips the last block of the encoder in training (Huang et al.,
        2016); it rises linearly from the first block on.

    The weights start as in nnU-Net: He's normal initialisation, biases 0, and weight 0 in the last norm of each block,
    so that the block starts as its shortcut.

    Raises ValueError for invalid arguments, and for images as `UNet` does.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dims: int,
        widths: Widths | None = None,
        blocks_per_stage: Convs | None = None,
        strides: list[list[Stride]] | None = None,
        kernels: list[list[Kernel]] | None = None,
        decoder_convs: Convs = 1,
        stochastic_depth: DropRate = 0.0,
        deep_supervision: bool = False,
    ):
        widths = widths_of(STAGES.get(dims, 2), dims) if widths is None else widths
        check_levels(dims, widths)
        layers, levels = Layers(dims, norm="instance", bias=True), len(widths)
        steps = checked_strides(strides, levels - 1, dims)
        sizes = checked_kernels(kernels, levels, dims, get_args(Kernel))
        blocks = residual_blocks(levels) if blocks_per_stage is None else blocks_per_stage
        numbers = per_level("blocks_per_stage", blocks, levels)
        drops = iter(drop_rates(stochastic_depth, sum(numbers)))
        stem = Stage(layers, in_channels, widths[0], kernel=sizes[0], strides=layers.ones, convs=1)
        stages: list[list[nn.Module]] = []
        inputs, strides_in = [widths[0], *widths[:-1]], [layers.ones, *steps]
        for width_in, width, size, step, number in zip(inputs, widths, sizes, strides_in, numbers, strict=True):
            rates = [next(drops) for _ in range(number)]
            stages.append(_blocks(layers, width_in, width, size, step, rates))
        stages[0].insert(0, stem)
        super().__init__(
            layers,
            nn.ModuleList(nn.Sequential(*stage) for stage in stages),
            out_channels,
            widths=widths,
            steps=steps,
            kernels=sizes,
            convs=per_level("decoder_convs", decoder_convs, levels - 1),
            deep_supervision=deep_supervision,
        )
        initialise(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.last_norm.weight)  # pyright: ignore[reportArgumentType]


def _blocks(
    layers: Layers, width_in: int, width: int, kernel: Axes, strides: Axes, rates: list[float]
) -> list[nn.Module]:
    """The residual blocks of one resolution, one per rate of stochastic depth; the first has the strides."""
    first, *others = rates
    return [
        ResidualBlock(layers, width_in, width, kernel=kernel, strides=strides, drop=first),
        *(ResidualBlock(layers, width, width, kernel=kernel, strides=layers.ones, drop=rate) for rate in others),
    ]
