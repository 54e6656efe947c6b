"""Convolutional networks of MONAI: image [B, in_channels, *S] -> logits [B, out_channels, *S].

MONAI is imported only when a network is built. The names of the parameters are those of MONAI. The most common options
are available, under the names that segkit uses. Image sides must be multiples of the attribute `multiple`, and an image
must have at least `minimum_pixels`: two pixels at the coarsest resolution, where instance norms need more than one.
Each function raises ValueError for options that do not fit together or do not fit the number of axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from torch import nn

from segkit.models.options import AxisStrides, DropRate, Norm, Repeats, Width, Widths
from segkit.models.sizes import checked_kernels, checked_strides, described, downsampling

Units = Annotated[int, Field(ge=0, le=64)]
Kernel = Literal[1, 3, 5, 7]  # side
Spacing = Annotated[float, Field(gt=0)]
HALVED = 2  # the largest stride
GROUPS = 8  # of a group norm
NORMS: dict[str, Any] = {
    "batch": "batch",
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": GROUPS}),
}
# blocks and expansion ratios of the encoder and the bottleneck of MedNeXt; the decoder mirrors the encoder
# (Roy et al., 2023, table 1)
MEDNEXT = {
    "S": ((2, 2, 2, 2), 2, (2, 2, 2, 2), 2),
    "B": ((2, 2, 2, 2), 2, (2, 3, 4, 4), 4),
    "M": ((3, 4, 4, 4), 4, (2, 3, 4, 4), 4),
    "L": ((3, 4, 8, 8), 8, (3, 4, 8, 8), 8),
}


def _check_levels(widths: Sequence[int], least: int, most: int | None = None) -> None:
    if len(widths) < least or (most is not None and len(widths) > most):
        number = f"at least {least}" if most is None else str(least)
        raise ValueError(f"expected {number} widths, finest first, got {len(widths)}: {list(widths)}")


def _check_groups(norm: Norm, widths: Sequence[int]) -> None:
    if norm == "group" and any(width % GROUPS for width in widths):
        raise ValueError(f"expected widths that are multiples of {GROUPS}, the groups of the norm, got {list(widths)}")


def _least_pixels(norm: Norm, width: int) -> int:
    """The number of pixels that a norm of so many channels needs in an image: more than one value per statistic."""
    return 2 if norm == "instance" or (norm == "group" and width == GROUPS) else 1


def _nested_blocks(levels: int) -> list[str]:
    """The encoder of networks in which each resolution contains the next coarser one."""
    outer = ["model" + ".1.submodule" * level for level in range(levels)]
    return [f"{name}.0" for name in outer[:-1]] + outer[-1:]


def monai_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    widths: Widths | None = None,
    residual_units: Units = 2,
    strides: AxisStrides | None = None,
) -> nn.Module:
    """MONAI's UNet with residual units (Kerfoot et al., 2019).

    widths: channels per resolution, finest first. residual_units: number of residual units. strides: downsampling
    between consecutive resolutions, 1 or 2 per axis; None halves all axes each time.
    """
    from monai.networks.nets.unet import UNet

    widths = [16, 32, 64, 128] if widths is None else widths
    _check_levels(widths, 2)
    steps: Any = checked_strides(strides, len(widths) - 1, dims, HALVED)
    network = UNet(dims, in_channels, out_channels, widths, steps, num_res_units=residual_units)
    return described(network, downsampling(steps, dims), encoder=_nested_blocks(len(widths)), least=2)


def monai_attention_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    widths: Widths | None = None,
    strides: AxisStrides | None = None,
    dropout: DropRate = 0.0,
) -> nn.Module:
    """MONAI's AttentionUnet: a U-Net with attention gates on its skip connections (Oktay et al., 2018).

    widths, strides: as for `monai_unet`. dropout: probability of dropping a value after each convolution.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    widths = [16, 32, 64, 128] if widths is None else widths
    _check_levels(widths, 2)
    if min(widths[:-1]) < 2:
        raise ValueError(f"expected widths of at least 2, since an attention gate has half of them, got {widths}")
    steps: Any = checked_strides(strides, len(widths) - 1, dims, HALVED)
    network = AttentionUnet(dims, in_channels, out_channels, widths, steps, dropout=dropout)
    return described(network, downsampling(steps, dims), encoder=_nested_blocks(len(widths)))


def monai_basic_unet(*, in_channels: int, out_channels: int, dims: int, widths: Widths | None = None) -> nn.Module:
    """MONAI's BasicUNet. `widths` has six entries, the last one for the final upsampling."""
    from monai.networks.nets.basic_unet import BasicUNet

    widths = [32, 32, 64, 128, 256, 32] if widths is None else widths
    _check_levels(widths, 6, 6)
    factors = downsampling([(2,) * dims] * 4, dims)
    encoder = ["conv_0", *(f"down_{level}" for level in range(1, 5))]
    return described(BasicUNet(dims, in_channels, out_channels, widths), factors, encoder=encoder, least=2)


def monai_basic_unet_plusplus(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    widths: Widths | None = None,
    dropout: DropRate = 0.0,
    deep_supervision: bool = False,
) -> nn.Module:
    """MONAI's BasicUNetPlusPlus (U-Net++, Zhou et al., 2018).

    widths: six numbers, as for `monai_basic_unet`. deep_supervision: in `train()` mode, return the logits of the four
    nested decoders, deepest first, all at the resolution of the image.
    """
    from segkit.models.monai_modules import BasicUNetPlusPlus

    widths = [32, 32, 64, 128, 256, 32] if widths is None else widths
    _check_levels(widths, 6, 6)
    network = BasicUNetPlusPlus(
        dims, in_channels, out_channels, widths, dropout=dropout, deep_supervision=deep_supervision
    )
    encoder = [f"conv_{level}_0" for level in range(5)]
    described(network, downsampling([(2,) * dims] * 4, dims), encoder=encoder, least=2)
    network.head_strides = ((1,) * dims,) * (4 if deep_supervision else 1)  # pyright: ignore[reportArgumentType]
    return network


def monai_dynunet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    widths: Widths | None = None,
    strides: AxisStrides | None = None,
    kernels: list[list[Kernel]] | None = None,
    norm: Norm = "instance",
    residual: bool = False,
    dropout: DropRate = 0.0,
    deep_supervision: bool = False,
) -> nn.Module:
    """MONAI's DynUNet, the network of nnU-Net (Isensee et al., 2021).

    widths, strides: as for `monai_unet`. kernels: sides of the convolutions at each resolution, one number per axis,
    such as [1, 3, 3]; None takes 3. norm: `group` has 8 groups. residual: residual blocks in the encoder. dropout:
    probability of dropping a value after each convolution. deep_supervision: in `train()` mode, return a list of
    logits, finest first, of all resolutions but the coarsest one.
    """
    from segkit.models.monai_modules import DynUNet

    widths = [32, 64, 128, 256] if widths is None else widths
    _check_levels(widths, 3)
    _check_groups(norm, widths)
    levels = len(widths)
    steps = checked_strides(strides, len(widths) - 1, dims, HALVED)
    network = DynUNet(
        dims,
        in_channels,
        out_channels,
        checked_kernels(kernels, levels, dims, get_args(Kernel)),
        [(1,) * dims, *steps],
        steps,
        filters=widths,
        dropout=dropout or None,
        norm_name=NORMS[norm],
        deep_supervision=deep_supervision,
        deep_supr_num=levels - 2,
        res_block=residual,
    )
    encoder = ["input_block", *(f"downsamples.{level}" for level in range(levels - 2)), "bottleneck"]
    heads, least = levels - 1 if deep_supervision else 1, _least_pixels(norm, widths[-1])
    return described(network, downsampling(steps, dims), encoder=encoder, least=least, heads=heads)


def monai_segresnet(*, in_channels: int, out_channels: int, dims: int, width: Width = 16) -> nn.Module:
    """MONAI's SegResNet (Myronenko, 2018), without the variational branch."""
    from monai.networks.nets.segresnet import SegResNet

    _check_groups("group", [width])
    network = SegResNet(spatial_dims=dims, init_filters=width, in_channels=in_channels, out_channels=out_channels)
    encoder = ["convInit", *(f"down_layers.{level}" for level in range(4))]
    return described(network, downsampling([(2,) * dims] * 3, dims), encoder=encoder)


def monai_segresnet_ds(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    width: Width = 32,
    blocks: Annotated[list[Repeats], Field(min_length=2, max_length=8)] = [1, 2, 2, 4],  # noqa: B006  (never modified)
    norm: Norm = "batch",
    spacing: list[Spacing] | None = None,
    deep_supervision: bool = True,
) -> nn.Module:
    """MONAI's SegResNetDS (Myronenko, 2018), with transposed convolutions and deep supervision.

    width: channels of the finest resolution; each further one has twice as many. blocks: residual blocks per
    resolution of the encoder. norm: `group` has 8 groups. spacing: the spacing of the images, one number per axis; axes
    with thick slices are downsampled and convolved only where the others have become as coarse. deep_supervision: in
    `train()` mode, return a list of logits, finest first, of all resolutions but the coarsest one.
    """
    from monai.networks.nets.segresnet_ds import SegResNetDS

    _check_groups(norm, [width])
    if spacing is not None and len(spacing) != dims:
        raise ValueError(f"expected model.spacing with {dims} numbers, one per axis, got {spacing}")
    levels = len(blocks)
    network = SegResNetDS(
        dims,
        width,
        in_channels,
        out_channels,
        norm=NORMS[norm],
        blocks_down=tuple(blocks),
        dsdepth=levels - 1 if deep_supervision else 1,
        resolution=None if spacing is None else tuple(spacing),
    )
    scales = [(2,) * dims] * levels if network.anisotropic_scales is None else network.anisotropic_scales
    steps = [tuple(int(side) for side in scale) for scale in scales[: levels - 1]]
    encoder = ["encoder.conv_init", *(f"encoder.layers.{level}" for level in range(levels))]
    heads, least = levels - 1 if deep_supervision else 1, _least_pixels(norm, width * 2 ** (levels - 1))
    network.spacing = spacing  # pyright: ignore[reportArgumentType]
    return described(network, downsampling(steps, dims), encoder=encoder, least=least, heads=heads)


def monai_vnet(*, in_channels: int, out_channels: int, dims: int, dropout: DropRate = 0.5) -> nn.Module:
    """MONAI's VNet (Milletari et al., 2016).

    Its first block repeats the channels of the image to 16. Numbers of channels that do not divide 16 are first mapped
    to the next number that does, by a 1x1 convolution. dropout: probability of dropping a channel at the coarser
    resolutions and in the skip connections.
    """
    from segkit.models.monai_modules import VNet

    network = VNet(dims, in_channels, out_channels, dropout)
    encoder = ["in_tr", *(f"down_tr{width}" for width in (32, 64, 128, 256))]
    encoder = ["input_projection", *encoder] if network.is_projected else encoder
    return described(network, downsampling([(2,) * dims] * 4, dims), encoder=encoder)


def monai_mednext(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    size: Literal["S", "B", "M", "L"] = "S",
    kernel: Literal[3, 5, 7] = 3,
    width: Width = 32,
    deep_supervision: bool = False,
) -> nn.Module:
    """MONAI's MedNeXt (Roy et al., 2023): a U-Net of ConvNeXt blocks.

    size: number and expansion of the blocks. kernel: side of their depthwise convolutions. width: channels of the
    finest resolution, 32 in the paper; each further one has twice as many. deep_supervision: in `train()` mode, return
    a list of logits of all five resolutions, finest first.
    """
    from segkit.models.monai_modules import MedNeXt

    blocks, bottleneck_blocks, expansions, bottleneck_expansion = MEDNEXT[size]
    network = MedNeXt(
        dims,
        width,
        in_channels,
        out_channels,
        expansions,
        expansions[::-1],
        bottleneck_expansion,
        kernel,
        deep_supervision,
        use_residual_connection=True,
        blocks_down=blocks,
        blocks_bottleneck=bottleneck_blocks,
        blocks_up=blocks[::-1],
    )
    stages = [name for level in range(4) for name in (f"enc_stages.{level}", f"down_blocks.{level}")]
    factors = downsampling([(2,) * dims] * 4, dims)
    heads = 5 if deep_supervision else 1
    return described(network, factors, encoder=["stem", *stages, "bottleneck"], least=2, heads=heads)
