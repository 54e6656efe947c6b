"""Transformers of MONAI: image [B, in_channels, *S] -> logits [B, out_channels, *S].

They need the package einops. MONAI is imported only when a network is built. Each function raises ValueError for
options that do not fit together or do not fit the number of axes, and MissingExtra without einops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.overrides import TorchFunctionMode

from segkit.models.options import DropRate, Heads, Repeats, Side, Width
from segkit.models.sizes import described, downsampling
from segkit.utils.optional import require

PATCH = 16  # side of the pieces of an image that UNETR embeds
FourLayers = Annotated[list[Repeats], Field(min_length=4, max_length=4)]
FourHeads = Annotated[list[Heads], Field(min_length=4, max_length=4)]


class _NumbersOnCpu(TorchFunctionMode):
    """Runs `torch.linspace` on the CPU: MONAI reads numbers from its result, which the meta device does not have."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        return func(*args, **(options | {"device": "cpu"} if func is torch.linspace else options))


def monai_swin_unetr(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    width: Width = 24,
    depths: FourLayers = [2, 2, 2, 2],  # noqa: B006  (never modified; YAML has lists, not tuples)
    heads: FourHeads = [3, 6, 12, 24],  # noqa: B006
    window: Annotated[int, Field(ge=2, le=64)] = 7,
    version: Literal[1, 2] = 1,
    dropout: DropRate = 0.0,
    stochastic_depth: DropRate = 0.0,
) -> nn.Module:
    """MONAI's SwinUNETR (Hatamizadeh et al., 2022; version 2: He et al., 2023).

    width: channels of the finest resolution, a multiple of 12. depths, heads: blocks and attention heads of each of the
    four stages. window: side of the windows of attention, in tokens of 2 pixels. version: 2 adds a convolutional block
    before each stage. dropout: of tokens. stochastic_depth: probability of skipping the last block; it rises linearly.
    """
    require("einops", "unetr", "the network monai_swin_unetr")
    from monai.networks.nets.swin_unetr import SwinUNETR

    stages = [width * 2**stage for stage in range(4)]
    if width % 12 or any(channels % number for channels, number in zip(stages, heads, strict=True)):
        raise ValueError(
            "expected a width that is a multiple of 12, and heads that divide the widths of the four stages, which are "
            f"1, 2, 4 and 8 times as large, got width {width} and heads {heads}"
        )
    with _NumbersOnCpu():
        network = SwinUNETR(
            in_channels,
            out_channels,
            depths=depths,
            num_heads=heads,
            window_size=window,
            feature_size=width,
            drop_rate=dropout,
            dropout_path_rate=stochastic_depth,
            spatial_dims=dims,
            use_v2=version == 2,
        )
    names = [name for stage in range(1, 5) for name in (f"layers{stage}c", f"layers{stage}")[version == 1 :]]
    encoder = [f"swinViT.{name}" for name in ("patch_embed", *names)]
    return described(network, downsampling([(2,) * dims] * 5, dims), encoder=encoder, least=2)


def monai_unetr(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    image_size: list[Side],
    width: Width = 16,
    hidden_width: Width = 768,
    mlp_width: Width = 3072,
    heads: Heads = 12,
    dropout: DropRate = 0.0,
) -> nn.Module:
    """MONAI's UNETR (Hatamizadeh et al., 2022): a vision transformer with 12 blocks and a convolutional decoder.

    image_size: the only size of the images that it takes, which is also the size of its windows; multiples of 16, one
    number per axis. width: channels of the finest resolution of the decoder. hidden_width, mlp_width, heads: channels
    of the transformer's tokens and of its hidden layers, and its attention heads.
    """
    require("einops", "unetr", "the network monai_unetr")
    from segkit.models.monai_modules import UNETR

    if len(image_size) != dims or any(side % PATCH for side in image_size):
        raise ValueError(f"expected image_size with {dims} sides that are multiples of {PATCH}, got {image_size}")
    if hidden_width % heads:
        raise ValueError(f"expected heads that divide hidden_width, got {heads} and {hidden_width}")
    network = UNETR(
        in_channels,
        out_channels,
        tuple(image_size),
        feature_size=width,
        hidden_size=hidden_width,
        mlp_dim=mlp_width,
        num_heads=heads,
        dropout_rate=dropout,
    )
    encoder = ["vit.patch_embedding", *(f"vit.blocks.{number}" for number in range(12)), "vit.norm"]
    return described(network, [(1,) * dims, network.fixed_size], encoder=encoder)
