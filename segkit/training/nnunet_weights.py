"""Weights of nnU-Net under the names of segkit's networks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
ALIASES = ("decoder.encoder.", ".all_modules.")  # of tensors that the state dict holds under another name, too
PARTS = {"conv": 0, "norm": 1}  # positions of the layers of a convolution; an activation follows

STEM = re.compile(r"encoder\.stem\.convs\.0\.(conv|norm)\.(\w+)")
BLOCK = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv([12])\.(conv|norm)\.(\w+)")
SKIP = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.\d+\.(conv|norm)\.(\w+)")
PLAIN = re.compile(r"encoder\.stages\.(\d+)\.\d+\.convs\.(\d+)\.(conv|norm)\.(\w+)")
DECODER = re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(\w+)")
UPSAMPLE = re.compile(r"decoder\.transpconvs\.(\d+)\.(\w+)")
HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.(\w+)")


def translated(state: Mapping[str, Tensor], network_state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights of nnU-Net's PlainConvUNet or ResidualEncoderUNet with the names of `unet` or
    `residual_encoder_unet`; None if they are not nnU-Net's.

    state: the entry `network_weights` of nnU-Net's checkpoint.
    network_state: the state dict of the network to load them into. Where it has biases of transposed convolutions and
        nnU-Net's network has none, they are 0. Tensors are not compared in shape.

    A tensor for which segkit's networks have no name keeps the one of nnU-Net.
    """
    state = {_unwrapped(name): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not any(alias in name for alias in ALIASES)}
    if not {"decoder.transpconvs.0.weight", "decoder.seg_layers.0.weight"} <= state.keys():
        return None
    stages = sum(UPSAMPLE.fullmatch(name) is not None and name.endswith(".weight") for name in state)
    renamed = {_name(name, stages): tensor for name, tensor in state.items()}
    for number in range(stages):
        bias = f"upsample.{number}.bias"
        if bias in network_state and bias not in renamed:
            renamed[bias] = torch.zeros_like(network_state[bias])
    return renamed


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _name(name: str, stages: int) -> str:
    """The name of a tensor in segkit's networks. stages: of the decoder, which nnU-Net counts from the coarsest on."""
    if match := STEM.fullmatch(name):
        return f"encoder.0.0.layers.{PARTS[match[1]]}.{match[2]}"
    if match := BLOCK.fullmatch(name):
        return f"{_block(match[1], match[2])}.layers.{3 * (int(match[3]) - 1) + PARTS[match[4]]}.{match[5]}"
    if match := SKIP.fullmatch(name):
        return f"{_block(match[1], match[2])}.shortcut.1.{PARTS[match[3]]}.{match[4]}"
    if match := PLAIN.fullmatch(name):
        return f"encoder.{match[1]}.layers.{3 * int(match[2]) + PARTS[match[3]]}.{match[4]}"
    if match := DECODER.fullmatch(name):
        level = stages - 1 - int(match[1])
        return f"decoder.{level}.layers.{3 * int(match[2]) + PARTS[match[3]]}.{match[4]}"
    if match := UPSAMPLE.fullmatch(name):
        return f"upsample.{stages - 1 - int(match[1])}.{match[2]}"
    if match := HEAD.fullmatch(name):
        level = stages - 1 - int(match[1])
        return f"coarser_heads.{level - 1}.{match[2]}" if level else f"head.{match[2]}"
    return name


def _block(stage: str, block: str) -> str:
    """The name of a residual block; at the finest resolution, it comes after the stem."""
    return f"encoder.{stage}.{int(block) + (stage == '0')}"


def model_section(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The section `model` of a network that takes these translated weights."""
    is_residual = "encoder.0.0.layers.0.weight" in weights
    name = "encoder.{0}.0.layers.0.weight" if is_residual else "encoder.{0}.layers.0.weight"
    levels = 1 + _count(weights, r"upsample\.\d+\.weight")
    first = [weights[name.format(level)].shape for level in range(levels)]
    convs = r"\.layers\.\d+\.weight"
    if is_residual:
        blocks = [_count(weights, rf"encoder\.{level}\.\d+\.layers\.0\.weight") for level in range(levels)]
        encoder = {"blocks_per_stage": [blocks[0] - 1, *blocks[1:]]}  # without the stem
    else:
        encoder = {"encoder_convs": [_convolutions(weights, rf"encoder\.{level}{convs}") for level in range(levels)]}
    return {
        "name": "residual_encoder_unet" if is_residual else "unet",
        "widths": [shape[0] for shape in first],
        "strides": [list(weights[f"upsample.{level}.weight"].shape[2:]) for level in range(levels - 1)],
        "kernels": [list(shape[2:]) for shape in first],
        **encoder,
        "decoder_convs": [_convolutions(weights, rf"decoder\.{level}{convs}") for level in range(levels - 1)],
        **({} if is_residual else {"norm": "instance", "bias": True, "init": "he"}),
    }


def _matching(weights: Mapping[str, Tensor], pattern: str) -> Iterable[Tensor]:
    return (tensor for name, tensor in weights.items() if re.fullmatch(pattern, name))


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(1 for _ in _matching(weights, pattern))


def _convolutions(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(tensor.ndim > 1 for tensor in _matching(weights, pattern))
