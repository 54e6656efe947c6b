"""Where the pretrained weights of a network come from. Plain data: a network is always built with random weights.

`segkit.training.encoder_weights` finds, reads and loads the weights, once, when a training begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

Package = Annotated[str, Field(pattern=r"^package:[A-Za-z0-9][A-Za-z0-9._-]*$")]
Weights = Literal["imagenet", "none"] | Package | Path
SegmentationWeights = Literal["coco", "imagenet", "none"] | Package | Path

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue, in 0..1
# children of a backbone that hold its stages, as the libraries name them
CONTAINERS = ("blocks", "stages", "layers", "features", "model", "body")


@dataclass(frozen=True)
class Published:
    """Weights that a library publishes.

    Args:
        library: `timm` or `torchvision`.
        name: Their name there, such as `resnet50.a1_in1k`.
        hub: Their repository on the Hugging Face hub, with `@` and a revision if it is fixed; None if there is none.
        file: Their file in the repository; None for the usual names.
        url: Where else they are; None if nowhere.
    """

    library: Literal["timm", "torchvision"]
    name: str
    hub: str | None = None
    file: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class InitialWeights:
    """The pretrained weights that a network asks for.

    Args:
        source: `none`, the name of published weights (`imagenet`, `coco`), `package:NAME` or a file.
        module: Name of the part of the network that they are for, such as `encoder.model`.
        mean: Mean per channel of the images, scaled to 0..1, on which the weights were trained.
        std: Standard deviation of these images.
        first_convolutions: Names, within the part, of the convolutions that see the image. Their weights are adapted to
            the number of channels.
        published: What the name of published weights stands for; None if the source is no such name.
        head: Prefixes, within the part, of the weights that depend on the classes. They are left out where their shape
            differs.
        parts: Prefixes, within the part, of parts that a file may be for alone, such as a backbone.
    """

    source: str | Path
    module: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    first_convolutions: tuple[str, ...] = ()
    published: Published | None = None
    head: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def pretrained(self) -> bool:
        """Whether there are weights to load."""
        return self.source != "none"

    @property
    def part(self) -> str:
        """What the weights are for, in a word."""
        return "encoder" if "encoder" in self.module else "backbone" if "backbone" in self.module else "network"

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation for images with so many channels: repeated cyclically, averaged for one."""
        if channels == 1:
            return (sum(self.mean) / len(self.mean),), (sum(self.std) / len(self.std),)
        return tuple(
            tuple(numbers[channel % len(numbers)] for channel in range(channels)) for numbers in (self.mean, self.std)
        )  # pyright: ignore[reportReturnType]


def initial_weights(network: nn.Module) -> InitialWeights | None:
    """The pretrained weights that a network asks for; None for a network that knows none."""
    found = getattr(network, "initial_weights", None)
    return found if isinstance(found, InitialWeights) else None


def blocks_of(backbone: nn.Module, name: str) -> tuple[str, ...]:
    """The names of the blocks of a backbone in the order of the forward pass: stem, normalisation, stages.

    name: the name of the backbone in its network.
    """
    blocks = [f"{name}.{parameter}" for parameter, _ in backbone.named_parameters(recurse=False)]
    for child_name, child in backbone.named_children():
        if child_name in CONTAINERS and len(list(child.children())) > 1:
            blocks += blocks_of(child, f"{name}.{child_name}")
        elif any(True for _ in child.parameters()):
            blocks.append(f"{name}.{child_name}")
    return tuple(blocks)
