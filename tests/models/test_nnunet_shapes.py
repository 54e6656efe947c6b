"""nnU-Net's planning, compared with what its own planners gave for the same data (nnunetv2 2.8.1)."""

import pytest
import torch
from torch import nn

from segkit.models import MODELS
from segkit.models.nnunet_shapes import nnunet_shapes, topology

ISOTROPIC = {"spacing": (1, 1, 1), "median": (250, 250, 250), "classes": 3, "pixels": 1e9}
THICK = {"spacing": (5, 0.8, 0.8), "median": (30, 512, 512), "classes": 3, "pixels": 5e8}
FEW = {"spacing": (7.2, 1.3, 1.3), "median": (12, 300, 300), "classes": 2, "pixels": 1e8}
SMALL = {"spacing": (1, 1, 1), "median": (36, 50, 35), "classes": 3, "pixels": 12.6e6}
SLICES = {"spacing": (0.8, 0.8), "median": (512, 512), "classes": 4, "pixels": 1e8}
STREETS = {"spacing": (0.5, 0.5), "median": (1024, 2048), "classes": 20, "pixels": 5e9}
RANDOM = {"spacing": (2.5, 0.5, 1.3), "median": (422, 433, 186), "classes": 5, "pixels": 1e9}


@pytest.mark.parametrize(
    ("kind", "data", "patch", "batch", "levels", "elements"),
    [
        ("plain", ISOTROPIC, (128, 128, 128), 2, 6, 452796416),
        ("M", ISOTROPIC, (128, 128, 128), 2, 6, 557420544),
        ("L", ISOTROPIC, (192, 192, 192), 2, 6, 1881294336),
        ("XL", ISOTROPIC, (256, 224, 224), 2, 6, 3414200832),
        ("plain", THICK, (16, 320, 320), 2, 7, 483315200),
        ("M", THICK, (16, 320, 256), 2, 7, 565068800),
        ("L", THICK, (24, 448, 448), 2, 7, 2076627840),
        ("XL", THICK, (28, 512, 512), 2, 8, 3165137920),
        ("M", FEW, (12, 320, 320), 3, 7, 536035200),
        ("XL", FEW, (12, 320, 320), 13, 7, 536035200),
        ("plain", SMALL, (40, 56, 40), 7, 4, 19174400),
        ("M", SMALL, (40, 56, 40), 58, 4, 23609600),
        ("M", SLICES, (512, 512), 12, 8, 129966080),
        ("XL", SLICES, (512, 512), 52, 8, 129966080),
        ("plain", STREETS, (896, 1536), 2, 9, 458723328),
        ("L", STREETS, (640, 1152), 12, 8, 377326080),
    ],
)
def test_patch_batch_and_depth(kind, data, patch, batch, levels, elements):
    shapes = nnunet_shapes(kind, **data)
    assert (shapes.patch, shapes.batch, len(shapes.widths), shapes.elements) == (patch, batch, levels, elements)


def test_thick_slices_get_flat_kernels_first():
    shapes = nnunet_shapes("M", **THICK)
    assert shapes.strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert shapes.kernels == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)
    assert shapes.widths == (32, 64, 128, 256, 320, 320, 320)
    assert shapes.blocks == (1, 3, 4, 6, 6, 6, 6)
    assert shapes.decoder_convs == (1,) * 6
    assert nnunet_shapes("plain", **STREETS).strides[-1] == (1, 2)
    assert nnunet_shapes("M", **SLICES).widths[-1] == 512


def test_less_memory_gives_smaller_patches():
    assert nnunet_shapes("M", **ISOTROPIC, memory_gb=4).patch == (112, 112, 96)
    with pytest.raises(ValueError, match="no patch of nnU-Net's network M fits into 1e-07 GB"):
        nnunet_shapes("M", **ISOTROPIC, memory_gb=1e-7)


@pytest.mark.parametrize("kind", ["plain", "L"])
@pytest.mark.parametrize("data", [THICK, SLICES], ids=["thick", "slices"])
def test_the_network_can_be_built_and_has_so_many_elements(kind, data):
    shapes = nnunet_shapes(kind, **data)
    options = {**shapes.model(), "deep_supervision": False}
    total = []
    with torch.device("meta"):
        network = MODELS[options.pop("name")](
            in_channels=1, out_channels=data["classes"], dims=len(shapes.patch), **options
        )
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                module.register_forward_hook(lambda _module, _inputs, output: total.append(output.numel()))
        network(torch.zeros(1, 1, *shapes.patch))
    # nnU-Net counts a shortcut at each resolution, also where it is only a pooling
    assert sum(total) == shapes.elements if kind == "plain" else 0.99 < sum(total) / shapes.elements <= 1


def test_rules_of_an_axis():
    """At least 4 pixels remain; an axis is halved alone only if 6 do; sides are rounded up."""
    strides, kernels, patch = topology((1, 1), (16, 9))
    assert strides == ((2, 2),)
    assert patch == (16, 10)
    assert topology((1, 1), (24, 9))[0] == ((2, 2), (2, 1))
    assert topology((1, 1), (7, 11))[0] == ()
    assert topology((1, 1), (7, 12))[0] == ((1, 2),)
    assert kernels[-1] == (3, 3)


def test_invalid_lengths_raise():
    with pytest.raises(ValueError, match="two or three positive numbers"):
        nnunet_shapes("M", spacing=(1, 0, 1), median=(9, 9, 9), classes=2, pixels=1e6)
