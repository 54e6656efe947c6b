"""Networks of MONAI: image [B, in_channels, *S] -> logits [B, out_channels, *S].

MONAI is imported only when a network is built. The networks are used unchanged; only the most common options are
available, under the names that segkit uses. Image sides must be multiples of the attribute `multiple`.
"""

from __future__ import annotations

from torch import nn


def _with_multiple(network: nn.Module, multiple: int) -> nn.Module:
    network.multiple = multiple  # pyright: ignore[reportArgumentType]
    return network


def monai_unet(
    *, in_channels: int, out_channels: int, dims: int, widths: list[int] | None = None, residual_units: int = 2
) -> nn.Module:
    """MONAI's UNet with residual units (Kerfoot et al., 2019).

    widths: channels per resolution, finest first. residual_units: number of residual units.
    """
    from monai.networks.nets.unet import UNet

    widths = widths or [16, 32, 64, 128]
    network = UNet(dims, in_channels, out_channels, widths, [2] * (len(widths) - 1), num_res_units=residual_units)
    return _with_multiple(network, 2 ** (len(widths) - 1))


def monai_basic_unet(*, in_channels: int, out_channels: int, dims: int, widths: list[int] | None = None) -> nn.Module:
    """MONAI's BasicUNet. `widths` has six entries, the last one for the final upsampling."""
    from monai.networks.nets.basic_unet import BasicUNet

    return _with_multiple(BasicUNet(dims, in_channels, out_channels, widths or [32, 32, 64, 128, 256, 32]), 16)


def monai_dynunet(*, in_channels: int, out_channels: int, dims: int, widths: list[int] | None = None) -> nn.Module:
    """MONAI's DynUNet, the network of nnU-Net (Isensee et al., 2021), without deep supervision."""
    from monai.networks.nets.dynunet import DynUNet

    widths = widths or [32, 64, 128, 256]
    levels = len(widths)
    network = DynUNet(
        dims, in_channels, out_channels, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1), filters=widths
    )
    return _with_multiple(network, 2 ** (levels - 1))


def monai_segresnet(*, in_channels: int, out_channels: int, dims: int, width: int = 16) -> nn.Module:
    """MONAI's SegResNet (Myronenko, 2018), without the variational branch."""
    from monai.networks.nets.segresnet import SegResNet

    network = SegResNet(spatial_dims=dims, init_filters=width, in_channels=in_channels, out_channels=out_channels)
    return _with_multiple(network, 8)
