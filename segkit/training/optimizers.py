"""Optimisers, parameter groups and learning-rate schedules by name.

Optimisers are torch's fused ones where the device has them: these can leave a step out by a flag on the device, so
that a gradient that is not finite is skipped without a look at it.

A schedule is a function step -> factor of the learning rate, so that a run continued at a step needs nothing but the
step; `plateau` alone also remembers what it saw. `steps` and `steps_per_epoch` come from the program.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Groups = Sequence[dict[str, Any]]
FUSED = ("cpu", "cuda", "mps", "xpu")
ENCODERS = ("encoder", "backbone", "convInit", "down_layers", "conv_0", "down_1", "down_2", "down_3", "down_4")


def _fused(groups: Groups) -> bool:
    return all(parameter.device.type in FUSED for group in groups for parameter in group["params"])


def adamw(
    parameters: Groups, *, lr: float = 1e-3, weight_decay: float = 1e-2, beta1: float = 0.9, beta2: float = 0.999
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=_fused(parameters)
    )


def adam(parameters: Groups, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999) -> Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(parameters, lr=lr, betas=(beta1, beta2), fused=_fused(parameters))


def sgd(
    parameters: Groups, *, lr: float = 1e-2, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0
) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=_fused(parameters)
    )
    if momentum:  # a first step that is skipped leaves torch's own buffers with whatever was in the memory
        for parameter in (one for group in parameters for one in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adam": adam, "sgd": sgd}


# --- parameter groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How parameters differ in rate and decay.

    encoder_lr: what the rate of the encoder is multiplied with. layer_decay: what that of each block of the encoder is
    multiplied with, going from its last block to the first. decay_norms_and_biases: whether these are decayed as well.
    """

    encoder_lr: float = 1.0
    layer_decay: float = 1.0
    decay_norms_and_biases: bool = False


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the gradient from all parameters whose name matches. Raises ValueError for a pattern that none does, and if
    nothing is left to be trained."""
    names = [name for name, _parameter in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"parameters.freeze: no parameter is called {pattern!r}; they are {_shown(names)}")
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"parameters.freeze: {', '.join(patterns)} leave nothing to be trained")


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The modules all of whose parameters, of which they have some, are frozen."""
    return [
        module
        for module in model.modules()
        if (parameters := list(module.parameters())) and not any(one.requires_grad for one in parameters)
    ]


def _shown(names: Sequence[str]) -> str:
    tops = dict.fromkeys(name.split(".")[0] + (".*" if "." in name else "") for name in names)
    return ", ".join(tops)


def parameter_groups(model: nn.Module, grouping: Grouping) -> list[dict[str, Any]]:
    """Groups of the trainable parameters by rate and decay; `lr_factor` is what a group's rate is multiplied with.

    Raises ValueError if a rate of the encoder is asked for and the network has no part that is called one.
    """
    blocks = _encoder_blocks(model)
    if (grouping.encoder_lr != 1 or grouping.layer_decay != 1) and not blocks:
        names = [name for name, _parameter in model.named_parameters()]
        raise ValueError(
            f"parameters.encoder_lr and layer_decay are for a network with a part called {', '.join(ENCODERS[:2])}; "
            f"this one has {_shown(names)}"
        )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 or grouping.decay_norms_and_biases
            groups.setdefault((_rate_factor(name, blocks, grouping), decayed), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, **({} if decayed else {"weight_decay": 0.0})}
        for (factor, decayed), parameters in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
    ]


def _encoder_blocks(model: nn.Module) -> list[str]:
    """The names of the blocks of the encoder, in the order in which they are passed."""
    names = [name for name, _parameter in model.named_parameters() if name.split(".")[0] in ENCODERS]
    return list(dict.fromkeys(_block(name) for name in names))


def _block(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in ENCODERS[:2] and rest else first


def _rate_factor(name: str, blocks: Sequence[str], grouping: Grouping) -> float:
    if _block(name) not in blocks:
        return 1.0
    return grouping.encoder_lr * grouping.layer_decay ** (len(blocks) - 1 - blocks.index(_block(name)))


def build_optimizer(
    name: str, model: nn.Module, arguments: Mapping[str, Any], grouping: Grouping | None = None
) -> Optimizer:
    """The named optimiser; `initial_lr` of each group is what a schedule's factor multiplies.

    Raises ValueError if the grouping does not fit the network.
    """
    optimizer = OPTIMIZERS[name](parameter_groups(model, grouping or Grouping()), **arguments)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] * group["lr_factor"]
    return optimizer


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take from a state what the optimiser has gathered; rates, decays and momenta stay as the optimiser has them."""
    chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, mine in zip(optimizer.param_groups, chosen, strict=True):
        group.update(mine)


# --- schedules ------------------------------------------------------------------------------------------------------
