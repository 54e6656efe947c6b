"""A U-Net (Ronneberger et al. 2015) for images and volumes in one class."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): lambda width: nn.InstanceNorm2d(width, affine=True),
    ("instance", 3): lambda width: nn.InstanceNorm3d(width, affine=True),
}

Norm = Literal["batch", "instance"]


class Stage(nn.Module):
    """Convolutions of one resolution, [B, inside, *S] -> [B, outside, *S / stride], with a shortcut if residual.

    Each 3x3 convolution is followed by a norm and a leaky ReLU; with `residual` the input is added before the last
    activation (He et al. 2016), through an average pool and a 1x1 convolution where shape or width differ.
    """

    def __init__(self, dims: int, inside: int, outside: int, *, stride: int, convs: int, norm: Norm, residual: bool):
        super().__init__()
        conv = CONVOLUTIONS[dims]
        layers: list[nn.Module] = []
        for number in range(convs):
            first = number == 0
            layers += [
                conv(inside if first else outside, outside, 3, stride=stride if first else 1, padding=1, bias=False),
                NORMS[norm, dims](outside),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.activation = layers.pop()
        self.layers = nn.Sequential(*layers)
        self.shortcut = _shortcut(dims, inside, outside, stride) if residual else None

    def forward(self, features: Tensor) -> Tensor:
        out = self.layers(features)
        if self.shortcut is not None:
            out = out + self.shortcut(features)
        return self.activation(out)


def _shortcut(dims: int, inside: int, outside: int, stride: int) -> nn.Module:
    pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](stride) if stride > 1 else nn.Identity()
    project = CONVOLUTIONS[dims](inside, outside, 1, bias=False) if inside != outside else nn.Identity()
    return nn.Sequential(pool, project)


class UNet(nn.Module):
    """Encoder, decoder and skips: image [B, in_channels, *S] -> logits [B, out_channels, *S].

    widths: channels of each resolution, finest first; each further one halves the image, so every side of the
        image must be a multiple of `multiple` = 2 ** (len(widths) - 1).
    encoder_convs, decoder_convs: 3x3 convolutions a resolution on the way down and on the way up.
    norm: `batch`, or `instance`, which does not depend on the batch and costs more on a CPU.
    residual: add each stage's input to its output.
    dropout: probability of dropping a channel of the coarsest features.
    deep_supervision: in `train()` mode return a list of logits, finest first: one for each resolution of the decoder
        (Lee et al. 2015). `strides` says how many times coarser each is.

    Raises ValueError for an image whose sides are no multiples, naming the size to pad to.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dims: int,
        widths: list[int] = [16, 32, 64, 128],  # noqa: B006  (read only; a list is what YAML holds)
        encoder_convs: int = 2,
        decoder_convs: int = 2,
        norm: Norm = "batch",
        residual: bool = False,
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ):
        super().__init__()
        if dims not in CONVOLUTIONS:
            raise ValueError(f"expected images of 2 or 3 dimensions, got {dims}")
        if len(widths) < 2:
            raise ValueError(f"expected at least two widths, finest first, got {list(widths)}")
        if min(widths) < 1 or min(encoder_convs, decoder_convs) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "expected widths, encoder_convs and decoder_convs of at least 1 and dropout from 0 to below 1, got "
                f"{list(widths)}, {encoder_convs}, {decoder_convs} and {dropout}"
            )
        kind = {"norm": norm, "residual": residual}
        inputs = [in_channels, *widths[:-1]]
        self.multiple = 2 ** (len(widths) - 1)
        self.encoder = nn.ModuleList(
            Stage(dims, inside, outside, stride=1 if level == 0 else 2, convs=encoder_convs, **kind)
            for level, (inside, outside) in enumerate(zip(inputs, widths, strict=True))
        )
        self.dropout = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims](dropout)
        self.upsample = nn.ModuleList(TRANSPOSED[dims](coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList(
            Stage(dims, 2 * width, width, stride=1, convs=decoder_convs, **kind) for width in widths[:-1]
        )
        self.head = CONVOLUTIONS[dims](widths[0], out_channels, 1)
        coarser = widths[1:-1] if deep_supervision else []
        self.coarser_heads = nn.ModuleList(CONVOLUTIONS[dims](width, out_channels, 1) for width in coarser)
        self.strides = tuple(2**level for level in range(1 + len(coarser)))

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
        return [logits, *(head(one) for head, one in zip(self.coarser_heads, decoded[1:], strict=True))]

    def _check_size(self, image: Tensor) -> None:
        size = image.shape[2:]
        if any(side % self.multiple for side in size):
            fitting = [-(-side // self.multiple) * self.multiple for side in size]
            raise ValueError(
                f"expected image sides that are multiples of {self.multiple}, got {list(size)}; pad to {fitting}"
            )
