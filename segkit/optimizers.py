"""Optimisers and learning-rate schedules by name.

A schedule is a pure function step -> factor of the learning rate, so that a run continued at a step needs nothing
but the step. `steps`, the length of the run, comes from the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

Schedule = Callable[[int], float]


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2))


def adam(
    parameters: Iterable[nn.Parameter], *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999
) -> Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(parameters, lr=lr, betas=(beta1, beta2))


def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def constant(*, steps: int, warmup: float = 0.0) -> Schedule:
    """1 throughout, after a linear rise over the first `warmup` of the run (a fraction of its steps)."""
    return _with_warmup(lambda _progress: 1.0, steps, warmup)


def poly(*, steps: int, power: float = 0.9, warmup: float = 0.0) -> Schedule:
    """(1 - progress) ** power, after a linear rise over the first `warmup` of the run (a fraction of its steps)."""
    return _with_warmup(lambda progress: (1 - progress) ** power, steps, warmup)


def cosine(*, steps: int, floor: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor`, after a linear rise over the first `warmup` of the run (a fraction of it)."""
    return _with_warmup(lambda progress: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2, steps, warmup)


def _with_warmup(factor: Callable[[float], float], steps: int, warmup: float) -> Schedule:
    """factor(progress) with progress from 0 to 1 over the steps that follow the warm-up."""
    if not 0 <= warmup < 1:
        raise ValueError(f"expected a warmup of at least 0 and less than 1 (a fraction of the steps), got {warmup}")
    rising = round(warmup * steps)

    def schedule(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return factor(min(1.0, (step - rising) / max(1, steps - rising)))

    return schedule


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adam": adam, "sgd": sgd}
SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "poly": poly, "cosine": cosine}


def build_optimizer(name: str, model: nn.Module, arguments: dict[str, float]) -> Optimizer:
    """The named optimiser; `initial_lr` is what a schedule's factor multiplies. Norms and biases are not decayed."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, **arguments)  # pyright: ignore[reportArgumentType]
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
