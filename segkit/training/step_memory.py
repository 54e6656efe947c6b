"""The memory and the arithmetic of a training step, found without memory: its tensors have sizes but no values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from segkit.training.precision import AUTOCAST, Precision
from segkit.utils.live_bytes import LiveBytes

Logits = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Args:
        weights: Parameters and buffers, and their moving average if there is one.
        gradients: Gradients of the parameters.
        moments: State of the optimiser.
        activations: Tensors that the forward pass keeps for the backward pass, those of the loss included.
        peak: The largest sum of all tensors that exist at the same time.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    peak: int


@dataclass(frozen=True)
class Layout:
    """How a step is computed.

    Args:
        precision: Type in which the network runs.
        channels_last: Whether image and network have the channels last in memory.
        micro_batches: Batches per optimiser step.
        averaged: Whether a moving average of the weights is kept.
    """

    precision: Precision = "fp32"
    channels_last: bool = False
    micro_batches: int = 1
    averaged: bool = False


def step_memory(
    network: nn.Module,
    image: Sequence[int],
    mask: tuple[Sequence[int], torch.dtype],
    loss: Callable[[Logits, Tensor], Tensor],
    optimizer: Callable[[nn.Module], Optimizer],
    layout: Layout = Layout(),
    held: Iterable[Tensor] = (),
) -> StepMemory:
    """The memory of a training step.

    Args:
        network: On the meta device; frozen parameters do not require gradients. It is changed and must not be used
            afterwards.
        image: Shape of a batch of images, [B, C, *S].
        mask: Shape and type of their masks.
        loss: From logits and mask to a scalar.
        optimizer: From the network to its optimiser.
        layout: How the step is computed.
        held: Further tensors of the batch, which exist throughout the step.

    The sum over all tensors is what a CUDA device reports as allocated, except for the temporary memory of its
    libraries. A process on a CPU holds more, since its allocator keeps freed blocks.
    """
    last = torch.channels_last if len(image) == 4 else torch.channels_last_3d
    form = last if layout.channels_last else torch.contiguous_format
    if layout.channels_last:
        network = network.to(memory_format=last)  # pyright: ignore[reportCallIssue]
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _materialised(network).train()
        images = torch.zeros(tuple(image)).to(memory_format=form)
        masks = torch.zeros(tuple(mask[0]), dtype=mask[1])
        weights = [*network.parameters(), *network.buffers()]
        activations = 0
        with LiveBytes([*weights, images, masks]) as counter:
            # gradients of the first micro-batch exist during the second; further ones need no more
            for _ in range(min(layout.micro_batches, 2)):
                with _autocast(layout.precision):
                    logits = network(images)
                value = loss(logits, masks)
                activations = max(activations, counter.current())
                del logits
                value.backward()
        steps = optimizer(network)
        steps.step()
        moments = _bytes(entry for state in steps.state.values() for entry in state.values())
        fixed = (2 if layout.averaged else 1) * _bytes(weights)
        gradients = _bytes(parameter.grad for parameter in network.parameters())
        peak = counter.peak + fixed + moments + _bytes([images, masks, *held])
    return StepMemory(fixed, gradients, moments, activations, peak)


def multiply_adds(network: nn.Module, image: Sequence[int]) -> dict[str, int]:
    """Multiplications with an addition of a prediction, by the names of the modules; the whole network is "".

    Convolutions, matrix products and attention count. network: on the meta device; see `step_memory`. image: shape.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        network = _materialised(network).eval()
        network(torch.zeros(tuple(image)))
    root = type(network).__name__
    counts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    total = {"": counter.get_total_flops() // 2}
    return total | {name.removeprefix(f"{root}."): count for name, count in counts.items() if name.startswith(root)}


def _materialised(network: nn.Module) -> nn.Module:
    """The network with weights on a CPU that holds no values, where automatic precision works, unlike on meta.

    Parameters and modules that occur several times stay the same.
    """
    made: dict[Tensor, Tensor] = {}  # by identity
    for module in network.modules():
        for entries in (module._parameters, module._buffers):
            for name, tensor in entries.items():
                if tensor is not None:
                    made[tensor] = made[tensor] if tensor in made else _on_cpu(tensor)
                    entries[name] = made[tensor]  # pyright: ignore[reportArgumentType]
    return network


def _on_cpu(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _autocast(precision: Precision) -> AbstractContextManager[object]:
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", AUTOCAST[precision])


def _bytes(tensors: Iterable[object]) -> int:
    """The bytes of the tensors among the values."""
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
