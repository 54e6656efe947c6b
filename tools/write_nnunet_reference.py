"""Write tests/training/nnunet_reference.json: names, shapes and logits of nnU-Net's own networks.

    pip install --no-deps --target DIR dynamic-network-architectures
    PYTHONPATH=DIR python tools/write_nnunet_reference.py

Only names, shapes and logits are kept. Weights and image are functions of the name and the position of a number, so
that a test can fill the same values in without the package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = Path(__file__).parents[1] / "tests" / "training" / "nnunet_reference.json"
WIDTHS, CLASSES, CHANNELS = [4, 6, 8], 3, 2
SIZES = {2: [16, 24], 3: [4, 16, 8]}
STRIDES = {2: [[2, 2], [2, 1]], 3: [[1, 2, 2], [2, 2, 2]]}
KERNELS = {2: [[3, 3]] * 3, 3: [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
BLOCKS, DECODER = [1, 3, 2], [2, 1]  # finest first
SAMPLES = 12  # logits of each head


def filled(name: str, shape: list[int]) -> Tensor:
    """Values between -0.5 and 0.5 that depend on the name."""
    offset = sum(map(ord, name))
    return torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + offset).reshape(shape) / 2


def samples(logits: Tensor) -> list[float]:
    """Evenly spaced values."""
    flat = logits.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].tolist()


def network(kind: str, dims: int) -> nn.Module:
    """A network of nnU-Net."""
    from dynamic_network_architectures.architectures.unet import (  # pyright: ignore[reportMissingImports]
        PlainConvUNet,
        ResidualEncoderUNet,
    )

    options: dict[str, Any] = {
        "input_channels": CHANNELS,
        "n_stages": len(WIDTHS),
        "features_per_stage": WIDTHS,
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dims],
        "kernel_sizes": KERNELS[dims],
        "strides": [[1] * dims, *STRIDES[dims]],
        "num_classes": CLASSES,
        "n_conv_per_stage_decoder": DECODER[::-1],
        "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    if kind == "plain":
        return PlainConvUNet(n_conv_per_stage=BLOCKS, **options)
    return ResidualEncoderUNet(n_blocks_per_stage=BLOCKS, **options)


def model(kind: str, dims: int) -> dict[str, Any]:
    """The options of segkit's network of the same shape."""
    shapes = {"widths": WIDTHS, "strides": STRIDES[dims], "kernels": KERNELS[dims], "decoder_convs": DECODER}
    if kind == "plain":
        return {"name": "unet", **shapes, "encoder_convs": BLOCKS, "norm": "instance", "bias": True}
    return {"name": "residual_encoder_unet", **shapes, "blocks_per_stage": BLOCKS}


def reference(kind: str, dims: int) -> dict[str, Any]:
    """Names, shapes and logits of a network."""
    original = network(kind, dims).double()
    with torch.no_grad():
        for name, parameter in original.named_parameters():  # each tensor once, under its first name
            parameter.copy_(filled(name, list(parameter.shape)))
        logits = original(filled("image", [2, CHANNELS, *SIZES[dims]]))
    first = {id(parameter): name for name, parameter in original.named_parameters()}
    tensors = {
        name: [first[id(parameter)], list(parameter.shape)]
        for name, parameter in original.named_parameters(remove_duplicate=False)
    }
    return {
        "model": model(kind, dims),
        "channels": CHANNELS,
        "classes": CLASSES,
        "size": SIZES[dims],
        "tensors": tensors,
        "logits": [samples(head) for head in logits],
    }


if __name__ == "__main__":
    content = {f"{kind}_{dims}d": reference(kind, dims) for kind in ("plain", "residual") for dims in (2, 3)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
