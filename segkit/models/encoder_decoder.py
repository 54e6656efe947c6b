"""The decoder of the U-Nets, and the checks of options that they share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.models.sizes import described, downsampling
from segkit.models.unet_blocks import CONVOLUTIONS, DROPOUTS, TRANSPOSED, AttentionGate, Axes, Layers, Stage
from segkit.utils.padding import Multiple, padded


class EncoderDecoder(nn.Module):
    """The decoder of a U-Net with skip connections on an encoder: image [B, C, *S] -> logits [B, out_channels, *S].

    encoder: one module per resolution, finest first, the first of which keeps the size of the image.
    widths: channels of each resolution. steps: strides between them. kernels: of the convolutions of each resolution.
    convs: convolutions of the decoder at each resolution but the coarsest.
    residual: add the input of each stage of the decoder to its output. drops: see `Stage`; one number per stage, in the
        order of the forward pass.
    dropout: probability of dropping a channel of the coarsest features.
    deep_supervision, attention: see `segkit.models.unet.UNet`.

    Sets the attributes of a network that `segkit.models` describes.
    """

    multiple: Multiple
    minimum_pixels: int

    def __init__(
        self,
        layers: Layers,
        encoder: nn.ModuleList,
        out_channels: int,
        *,
        widths: Sequence[int],
        steps: Sequence[Axes],
        kernels: Sequence[Axes],
        convs: Sequence[int],
        residual: bool = False,
        drops: Sequence[float] | None = None,
        dropout: float = 0.0,
        deep_supervision: bool = False,
        attention: bool = False,
    ):
        super().__init__()
        dims = layers.dims
        self.encoder = encoder
        self.dropout = DROPOUTS[dims](dropout)
        pairs = list(itertools.pairwise(widths))
        self.upsample = nn.ModuleList(
            TRANSPOSED[dims](coarse, fine, step, stride=step)  # pyright: ignore[reportArgumentType]
            for (fine, coarse), step in zip(pairs, steps, strict=True)
        )
        rates = [0.0] * len(convs) if drops is None else list(reversed(drops))
        self.decoder = nn.ModuleList(
            Stage(
                layers, 2 * width, width, kernel=kernel, strides=layers.ones, convs=number, residual=residual, drop=drop
            )
            for width, kernel, number, drop in zip(widths[:-1], kernels[:-1], convs, rates, strict=True)
        )
        self.head = CONVOLUTIONS[dims](widths[0], out_channels, 1)
        coarser = widths[1:-1] if deep_supervision else []
        self.coarser_heads = nn.ModuleList(CONVOLUTIONS[dims](width, out_channels, 1) for width in coarser)
        described(
            self,
            downsampling(steps, dims),
            encoder=[f"encoder.{number}" for number in range(len(encoder))],
            least=layers.least_pixels(widths[-1]),
            heads=1 + len(coarser),
        )
        gated = zip(pairs, steps, strict=True) if attention else []
        self.gates = nn.ModuleList(AttentionGate(dims, fine, coarse, step) for (fine, coarse), step in gated)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        self._check_size(image)
        skips = []
        features = image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        features = self.dropout(skips.pop())
        decoded = []
        for level in reversed(range(len(self.decoder))):
            skip = skips.pop()
            if self.gates:
                skip = self.gates[level](skip, features)
            features = self.decoder[level](torch.cat([self.upsample[level](features), skip], dim=1))
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


# --- checks of options ----------------------------------------------------------------------------------------------


def check_levels(dims: int, widths: Sequence[int]) -> None:
    """Raise ValueError for images that are neither 2D nor 3D, and for fewer than two resolutions."""
    if dims not in CONVOLUTIONS:
        raise ValueError(f"expected images with 2 or 3 dimensions, got {dims}")
    if len(widths) < 2:
        raise ValueError(f"expected at least two widths, finest first, got {list(widths)}")


def per_level(name: str, number: int | Sequence[int], levels: int) -> list[int]:
    """One number for all resolutions, or one for each, as a list."""
    numbers = [number] * levels if isinstance(number, int) else list(number)
    if len(numbers) != levels or min(numbers) < 1:
        raise ValueError(f"expected {name} with one number of at least 1, or {levels} of them, got {number}")
    return numbers
