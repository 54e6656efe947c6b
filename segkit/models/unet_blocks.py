"""The parts of the U-Nets: stages of convolutions, residual blocks and attention gates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segkit.models.options import Norm

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
DROPOUTS = {2: nn.Dropout2d, 3: nn.Dropout3d}
BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
SLOPE = 0.01  # of the leaky ReLUs

Init = Literal["torch", "he"]
Axes = tuple[int, ...]  # one number per axis
Stride = Annotated[int, Field(ge=1, le=16)]
Kernel = Literal[1, 3]
Groups = Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True)
class Layers:
    """Builds the layers of a network for images with `dims` axes.

    norm_groups: groups of a group norm (Wu & He, 2018); a width that they do not divide gets the greatest common
        divisor of both.
    bias: whether the convolutions before norms have a bias.
    """

    dims: int
    norm: Norm = "batch"
    norm_groups: int = 8
    bias: bool = False

    def conv(self, in_channels: int, out_channels: int, kernel: Axes, strides: Axes) -> nn.Module:
        """A convolution before a norm, padded so that an image with strides of 1 keeps its size."""
        padding = [side // 2 for side in kernel]
        build = CONVOLUTIONS[self.dims]
        return build(in_channels, out_channels, kernel, stride=strides, padding=padding, bias=self.bias)  # pyright: ignore[reportArgumentType]

    def normalise(self, width: int) -> nn.Module:
        """The norm of `width` channels."""
        if self.norm == "batch":
            return BATCH_NORMS[self.dims](width)
        if self.norm == "instance":
            return INSTANCE_NORMS[self.dims](width, affine=True)
        return nn.GroupNorm(math.gcd(self.norm_groups, width), width)

    def least_pixels(self, width: int) -> int:
        """Pixels that the norm of `width` channels needs in an image: two where it takes each channel alone."""
        alone = self.norm == "instance" or (self.norm == "group" and math.gcd(self.norm_groups, width) == width)
        return 2 if alone else 1

    @property
    def ones(self) -> Axes:
        """A kernel or strides of 1."""
        return (1,) * self.dims


class Stage(nn.Module):
    """The convolutions of one resolution: [B, in_channels, *S] -> [B, out_channels, *S / strides].

    Each convolution is followed by a normalisation and a leaky ReLU; the first one has the strides. With `residual`,
    the input is added before the last activation (He et al., 2016), after average pooling and a 1x1 convolution if its
    size or number of channels differs. `drop` is the probability with which an image skips the convolutions of a
    residual stage in training (stochastic depth).
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Axes,
        strides: Axes,
        convs: int,
        residual: bool = False,
        drop: float = 0.0,
    ):
        super().__init__()
        modules: list[nn.Module] = []
        for number in range(convs):
            channels, steps = (in_channels, strides) if number == 0 else (out_channels, layers.ones)
            modules += [
                layers.conv(channels, out_channels, kernel, steps),
                layers.normalise(out_channels),
                nn.LeakyReLU(SLOPE, inplace=True),
            ]
        self.activation = modules.pop()
        self.layers = nn.Sequential(*modules)
        self.shortcut = _shortcut(layers.dims, in_channels, out_channels, strides) if residual else None
        self.drop = stochastic_depth(drop)

    def forward(self, features: Tensor) -> Tensor:
        out = self.layers(features)
        if self.shortcut is not None:
            out = self.drop(out) + self.shortcut(features)
        return self.activation(out)


def _shortcut(dims: int, in_channels: int, out_channels: int, strides: Axes) -> nn.Module:
    project = (
        CONVOLUTIONS[dims](in_channels, out_channels, 1, bias=False) if in_channels != out_channels else nn.Identity()
    )
    return nn.Sequential(_pool(dims, strides), project)


def _pool(dims: int, strides: Axes) -> nn.Module:
    if max(strides) == 1:
        return nn.Identity()
    return nn.AvgPool2d(strides) if dims == 2 else AveragePool3d(strides)  # pyright: ignore[reportArgumentType]


class AveragePool3d(nn.AvgPool3d):
    """Average of blocks of voxels, [B, C, *S] -> [B, C, *S / strides], also with deterministic operations alone.

    The backward pass of torch's own pooling is not deterministic on CUDA, and raises an error there.
    """

    def __init__(self, strides: Axes):
        super().__init__(strides)  # pyright: ignore[reportArgumentType]
        self.strides = strides

    def forward(self, features: Tensor) -> Tensor:
        if features.is_cuda and torch.are_deterministic_algorithms_enabled():
            return mean_of_blocks(features, self.strides)
        return super().forward(features)


def mean_of_blocks(features: Tensor, sides: Axes) -> Tensor:
    """The mean of each block of so many voxels along the last axes, which its sides divide."""
    first = features.ndim - len(sides)
    for axis, side in reversed(list(enumerate(sides, first))):
        features = features.unflatten(axis, (-1, side))
    return features.mean([first + 2 * number + 1 for number in range(len(sides))])


def stochastic_depth(probability: float) -> nn.Module:
    """Drop the branch of an image with a probability in training, and scale the others up (Huang et al., 2016)."""
    if probability == 0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(probability, "row")


def drop_rates(probability: float, blocks: int) -> list[float]:
    """The probability of each block: it rises linearly from 0 before the first block to `probability` at the last."""
    return [probability * (number + 1) / blocks for number in range(blocks)]


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: [B, in_channels, *S] -> [B, out_channels, *S / strides].

    The block D of He et al. (2019), as in the residual encoder of nnU-Net: the first convolution has the strides; the
    shortcut is average pooling if there are strides, then a 1x1 convolution with a norm if the number of channels
    changes.
    """

    def __init__(
        self, layers: Layers, in_channels: int, out_channels: int, *, kernel: Axes, strides: Axes, drop: float = 0.0
    ):
        super().__init__()
        self.layers = nn.Sequential(
            layers.conv(in_channels, out_channels, kernel, strides),
            layers.normalise(out_channels),
            nn.LeakyReLU(SLOPE, inplace=True),
            layers.conv(out_channels, out_channels, kernel, layers.ones),
            layers.normalise(out_channels),
        )
        project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            conv = CONVOLUTIONS[layers.dims](in_channels, out_channels, 1, bias=False)
            project = nn.Sequential(conv, layers.normalise(out_channels))
        self.shortcut = nn.Sequential(_pool(layers.dims, strides), project)
        self.drop = stochastic_depth(drop)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the sum."""
        return self.layers[4]

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.drop(self.layers(features)) + self.shortcut(features))


class AttentionGate(nn.Module):
    """Additive attention on a skip connection (Oktay et al., 2018).

    a = sigmoid(psi(relu(theta(skip) + phi(gate)))) is one number per pixel of the coarser features, upsampled linearly
    to the size of the skip. The result is a * skip: with a = 1, the network is the plain U-Net.

    skip [B, fine, *S], gate [B, coarse, *S / strides] -> [B, fine, *S].
    """

    def __init__(self, dims: int, fine: int, coarse: int, strides: Axes):
        super().__init__()
        conv, between = CONVOLUTIONS[dims], max(1, fine // 2)
        self.theta = conv(fine, between, strides, stride=strides, bias=False)  # pyright: ignore[reportArgumentType]
        self.phi = conv(coarse, between, 1)
        self.psi = conv(between, 1, 1)
        self.mode = LINEAR[dims]

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        attention = torch.sigmoid(self.psi(torch.relu(self.theta(skip) + self.phi(gate))))
        return skip * interpolate(attention, size=skip.shape[2:], mode=self.mode)


def initialise(network: nn.Module) -> None:
    """He's initialisation (He et al., 2015), as in nnU-Net: the weights of convolutions are normal with the standard
    deviation sqrt(2 / (1 + SLOPE**2) / fan_in), and their biases are 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
