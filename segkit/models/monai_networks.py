"""Networks of MONAI: image [B, in_channels, *S] -> logits [B, out_channels, *S].

MONAI is imported only when a network is built. The networks are used unchanged; only the most common options are
available, under the names that segkit uses. Image sides must be multiples of the attribute `multiple`, and an image
must have at least `minimum_pixels`: two pixels at the coarsest resolution, where instance norms need more than one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from segkit.models.options import Width, Widths

Units = Annotated[int, Field(ge=0, le=64)]


def _with_sizes(network: nn.Module, multiple: int, minimum_pixels: int) -> nn.Module:
    network.multiple = multiple  # pyright: ignore[reportArgumentType]
    network.minimum_pixels = minimum_pixels  # pyright: ignore[reportArgumentType]
    return network


def _check_levels(widths: list[int], least: int, most: int | None = None) -> None:
    if len(widths) < least or (most is not None and len(widths) > most):
        number = f"at least {least}" if most is None else str(least)
        raise ValueError(f"expected {number} widths, finest first, got {len(widths)}: {widths}")


def monai_unet(
    *, in_channels: int, out_channels: int, dims: int, widths: Widths | None = None, residual_units: Units = 2
) -> nn.Module:
    """MONAI's UNet with residual units (Kerfoot et al., 2019).

    widths: channels per resolution, finest first. residual_units: number of residual units.
    """
    from monai.networks.nets.unet import UNet

    widths = [16, 32, 64, 128] if widths is None else widths
    _check_levels(widths, 2)
    multiple = 2 ** (len(widths) - 1)
    network = UNet(dims, in_channels, out_channels, widths, [2] * (len(widths) - 1), num_res_units=residual_units)
    return _with_sizes(network, multiple, 2 * multiple**dims)


def monai_basic_unet(*, in_channels: int, out_channels: int, dims: int, widths: Widths | None = None) -> nn.Module:
    """MONAI's BasicUNet. `widths` has six entries, the last one for the final upsampling."""
    from monai.networks.nets.basic_unet import BasicUNet

    widths = [32, 32, 64, 128, 256, 32] if widths is None else widths
    _check_levels(widths, 6, 6)
    return _with_sizes(BasicUNet(dims, in_channels, out_channels, widths), 16, 2 * 16**dims)


def monai_dynunet(*, in_channels: int, out_channels: int, dims: int, widths: Widths | None = None) -> nn.Module:
    """MONAI's DynUNet, the network of nnU-Net (Isensee et al., 2021), without deep supervision."""
    from monai.networks.nets.dynunet import DynUNet

    widths = [32, 64, 128, 256] if widths is None else widths
    _check_levels(widths, 3)
    levels = len(widths)
    multiple = 2 ** (levels - 1)
    network = DynUNet(
        dims, in_channels, out_channels, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1), filters=widths
    )
    return _with_sizes(network, multiple, 2 * multiple**dims)


def monai_segresnet(*, in_channels: int, out_channels: int, dims: int, width: Width = 16) -> nn.Module:
    """MONAI's SegResNet (Myronenko, 2018), without the variational branch."""
    from monai.networks.nets.segresnet import SegResNet

    network = SegResNet(spatial_dims=dims, init_filters=width, in_channels=in_channels, out_channels=out_channels)
    return _with_sizes(network, 8, 1)
