"""U-Net (Ronneberger et al., 2015) for images and volumes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segkit.models.options import Layers, Widths
from segkit.utils.padding import Multiple, padded

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): lambda width: nn.InstanceNorm2d(width, affine=True),
    ("instance", 3): lambda width: nn.InstanceNorm3d(width, affine=True),
}

Norm = Literal["batch", "instance"]
Strides = tuple[int, ...]  # one number per axis
Stride = Annotated[int, Field(ge=1, le=16)]


class Stage(nn.Module):
    """The convolutions of one resolution: [B, in_channels, *S] -> [B, out_channels, *S / strides].

    Each 3x3 convolution is followed by a normalisation and a leaky ReLU; the first one has the strides. With
    `residual`, the input is added before the last activation (He et al., 2016), after average pooling and a 1x1
    convolution if its size or number of channels differs.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        strides: Strides,
        convs: int,
        norm: Norm,
        residual: bool,
    ):
        super().__init__()
        conv = CONVOLUTIONS[dims]
        layers: list[nn.Module] = []
        for number in range(convs):
            channels, steps = (in_channels, strides) if number == 0 else (out_channels, (1,) * dims)
            layers += [
                conv(channels, out_channels, 3, stride=steps, padding=1, bias=False),
                NORMS[norm, dims](out_channels),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.activation = layers.pop()
        self.layers = nn.Sequential(*layers)
        self.shortcut = _shortcut(dims, in_channels, out_channels, strides) if residual else None

    def forward(self, features: Tensor) -> Tensor:
        out = self.layers(features)
        if self.shortcut is not None:
            out = out + self.shortcut(features)
        return self.activation(out)


def _shortcut(dims: int, in_channels: int, out_channels: int, strides: Strides) -> nn.Module:
    pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](strides) if max(strides) > 1 else nn.Identity()
    project = (
        CONVOLUTIONS[dims](in_channels, out_channels, 1, bias=False) if in_channels != out_channels else nn.Identity()
    )
    return nn.Sequential(pool, project)


class UNet(nn.Module):
    """U-Net with encoder, decoder and skip connections: image [B, in_channels, *S] -> logits [B, out_channels, *S].

    widths: channels per resolution, finest first.
    strides: downsampling factors between consecutive resolutions, one number per axis, such as [[2, 2, 1], [2, 2, 2]]
        for three widths and volumes with thick slices; None halves all axes each time. Each side of the image must be
        a multiple of the product of its strides, which is the attribute `multiple`: 2 ** (len(widths) - 1), or one
        number per axis if they differ.
    encoder_convs, decoder_convs: 3x3 convolutions per resolution in the encoder and the decoder.
    norm: `batch`, or `instance`, which is independent of the batch and slower on a CPU.
    residual: add the input of each stage to its output.
    dropout: probability of dropping a channel of the coarsest features.
    deep_supervision: in `train()` mode, return a list of logits, finest first, one per resolution of the decoder (Lee
        et al., 2015). The attribute `head_strides` holds the downsampling factor of each, per axis.

    The attribute `minimum_pixels` is the smallest number of pixels of an image that leaves enough for the norm at the
    coarsest resolution.

    Raises ValueError for invalid arguments, and for an image whose sides are not multiples of `multiple` or that has
    fewer pixels than `minimum_pixels`; the message names the size to pad to.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dims: int,
        widths: Widths = [16, 32, 64, 128],  # noqa: B006  (never modified; YAML has lists, not tuples)
        strides: list[list[Stride]] | None = None,
        encoder_convs: Layers = 2,
        decoder_convs: Layers = 2,
        norm: Norm = "batch",
        residual: bool = False,
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ):
        super().__init__()
        if dims not in CONVOLUTIONS:
            raise ValueError(f"expected images with 2 or 3 dimensions, got {dims}")
        if len(widths) < 2:
            raise ValueError(f"expected at least two widths, finest first, got {list(widths)}")
        if min(widths) < 1 or min(encoder_convs, decoder_convs) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "expected widths, encoder_convs and decoder_convs of at least 1 and 0 <= dropout < 1, got "
                f"{list(widths)}, {encoder_convs}, {decoder_convs} and {dropout}"
            )
        steps = _checked_strides(strides, len(widths) - 1, dims)
        options = {"norm": norm, "residual": residual}
        input_widths = [in_channels, *widths[:-1]]
        downsampling = list(itertools.accumulate([(1,) * dims, *steps], _product))
        self.multiple: Multiple = downsampling[-1] if len(set(downsampling[-1])) > 1 else downsampling[-1][0]
        # an instance norm needs more than one pixel at the coarsest resolution
        self.minimum_pixels = (2 if norm == "instance" else 1) * math.prod(downsampling[-1])
        self.encoder = nn.ModuleList(
            Stage(dims, width_in, width_out, strides=step, convs=encoder_convs, **options)
            for width_in, width_out, step in zip(input_widths, widths, [(1,) * dims, *steps], strict=True)
        )
        self.encoder_blocks = tuple(f"encoder.{level}" for level in range(len(widths)))
        self.dropout = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims](dropout)
        self.upsample = nn.ModuleList(
            TRANSPOSED[dims](coarse, fine, step, stride=step)
            for (fine, coarse), step in zip(itertools.pairwise(widths), steps, strict=True)
        )
        self.decoder = nn.ModuleList(
            Stage(dims, 2 * width, width, strides=(1,) * dims, convs=decoder_convs, **options) for width in widths[:-1]
        )
        self.head = CONVOLUTIONS[dims](widths[0], out_channels, 1)
        coarser = widths[1:-1] if deep_supervision else []
        self.coarser_heads = nn.ModuleList(CONVOLUTIONS[dims](width, out_channels, 1) for width in coarser)
        self.head_strides = tuple(downsampling[: 1 + len(coarser)])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        self._check_size(image)
        skips = []
        features = image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        features = self.dropout(skips.pop())
        decoded = []
        for upsample, stage in zip(reversed(self.upsample), reversed(self.decoder), strict=True):
            features = stage(torch.cat([upsample(features), skips.pop()], dim=1))
            decoded.insert(0, features)
        logits = self.head(features)
        if not self.training or not self.coarser_heads:
            return logits
        return [logits, *(head(features) for head, features in zip(self.coarser_heads, decoded[1:], strict=True))]

    def _check_size(self, image: Tensor) -> None:
        size = tuple(image.shape[2:])
        padded_size = padded(size, self.multiple, self.minimum_pixels)
        if padded_size == size:
            return
        few = "" if padded(size, self.multiple) != size else f" and at least {self.minimum_pixels} pixels"
        raise ValueError(
            f"expected image sides that are multiples of {self.multiple}{few}, got {list(size)}; pad to "
            f"{list(padded_size)}"
        )


def _checked_strides(strides: Sequence[Sequence[int]] | None, levels: int, dims: int) -> list[Strides]:
    if strides is None:
        return [(2,) * dims] * levels
    if len(strides) != levels or any(len(step) != dims or min(step) < 1 or max(step) < 2 for step in strides):
        raise ValueError(
            f"expected strides with {levels} entries, one fewer than widths, each with {dims} numbers of at least 1 "
            f"that are not all 1, such as {[[2] * dims] * levels}, got {[list(step) for step in strides]}"
        )
    return [tuple(step) for step in strides]


def _product(first: Strides, second: Strides) -> Strides:
    return tuple(a * b for a, b in zip(first, second, strict=True))
