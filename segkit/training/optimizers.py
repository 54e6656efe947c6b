"""Optimisers by name, and parameter groups.

The optimisers are PyTorch's fused implementations if the device supports them. A fused optimiser skips a step if a flag
on the device is set, so that the training loop can skip a non-finite gradient without a host synchronisation.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from segkit.models.initial_weights import blocks_of

Groups = Sequence[dict[str, Any]]
Rate = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
FUSED = ("cpu", "cuda", "mps", "xpu")  # device types for which PyTorch has fused optimisers
ENCODER = "encoder"  # the item of `parameters.freeze` that means all blocks of the encoder
# names of the encoder in networks without the attribute `encoder_blocks`, such as those of segmentation_models_pytorch,
# and names under which a wrapper holds a network
ENCODERS = ("encoder", "backbone")
WRAPPERS = ("network", "model", "module")
_EXPECTED = f"attribute encoder_blocks or module named {' or '.join(ENCODERS)}"


def _fused(groups: Groups) -> bool:
    return all(parameter.device.type in FUSED for group in groups for parameter in group["params"])


def adamw(
    parameters: Groups, *, lr: Rate = 1e-3, weight_decay: Rate = 1e-2, beta1: Beta = 0.9, beta2: Beta = 0.999
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=_fused(parameters)
    )


def adam(parameters: Groups, *, lr: Rate = 1e-3, beta1: Beta = 0.9, beta2: Beta = 0.999) -> Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(parameters, lr=lr, betas=(beta1, beta2), fused=_fused(parameters))


def sgd(
    parameters: Groups, *, lr: Rate = 1e-2, momentum: Rate = 0.9, nesterov: bool = True, weight_decay: Rate = 0.0
) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=_fused(parameters)
    )
    if momentum:  # if the first step is skipped, the buffers that PyTorch creates in it stay uninitialised
        for group in parameters:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adam": adam, "sgd": sgd}


# --- parameter groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How learning rate and weight decay differ between parameters.

    Args:
        encoder_lr: Factor on the learning rate of the encoder.
        layer_decay: Factor on the learning rate from one block of the encoder to the block before it. The last block
            has the rate of the encoder.
        decay_norms_and_biases: Whether weight decay also applies to normalisation layers and biases.
    """

    encoder_lr: float = 1.0
    layer_decay: float = 1.0
    decay_norms_and_biases: bool = False


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters whose name matches one of the patterns; `encoder` stands for all blocks of the encoder.

    Raises ValueError if a pattern matches no parameter, or if no trainable parameter is left.
    """
    names = [name for name, _parameter in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if pattern == ENCODER:
            blocks = encoder_blocks(model)
            matches += [name for name in names if _block_of(name, blocks) is not None]
        if not matches:
            hint = f", and the network has no {_EXPECTED}" if pattern == ENCODER else ""
            raise ValueError(
                f"parameters.freeze: no parameter name matches {pattern!r}{hint}; the names are {_top_level(names)}"
            )
        frozen.update(matches)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"parameters.freeze: {', '.join(patterns)} leaves no trainable parameter")


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The modules with parameters that are all frozen."""

    def is_frozen(module: nn.Module) -> bool:
        parameters = list(module.parameters())
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    return [module for module in model.modules() if is_frozen(module)]


def _top_level(names: Sequence[str]) -> str:
    """The names of the top-level modules, as patterns, and of the top-level parameters."""
    patterns = dict.fromkeys(name.split(".")[0] + (".*" if "." in name else "") for name in names)
    return ", ".join(patterns)


def parameter_groups(model: nn.Module, grouping: Grouping) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by learning rate and weight decay.

    `lr_factor` of a group is the factor on the learning rate. Raises ValueError if the grouping sets a learning rate of
    the encoder and the network has no encoder, see `encoder_blocks`, or a frozen one.
    """
    blocks = encoder_blocks(model)
    _check_encoder(model, blocks, grouping)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 or grouping.decay_norms_and_biases
            groups.setdefault((_rate_factor(name, blocks, grouping), decayed), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, **({} if decayed else {"weight_decay": 0.0})}
        for (factor, decayed), parameters in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
    ]


def _check_encoder(model: nn.Module, blocks: Sequence[str], grouping: Grouping) -> None:
    """Raise ValueError if the grouping would have no effect on a network with these blocks of the encoder."""
    if grouping.encoder_lr == grouping.layer_decay == 1:
        return
    parameters = dict(model.named_parameters())
    if not blocks:
        raise ValueError(
            f"parameters.encoder_lr and layer_decay need a network with an {_EXPECTED}, but this network has "
            f"{_top_level(list(parameters))}"
        )
    trained = {_block_of(name, blocks) for name, parameter in parameters.items() if parameter.requires_grad} - {None}
    if not trained:
        raise ValueError("parameters.encoder_lr and layer_decay are for an encoder that is trained, but it is frozen")
    if grouping.layer_decay != 1 and len(blocks) == 1:
        raise ValueError(
            f"parameters.layer_decay is for an encoder of several blocks, but this network has one, {blocks[0]}; use "
            "encoder_lr"
        )


def encoder_blocks(model: nn.Module) -> list[str]:
    """The blocks of the encoder as prefixes of parameter names, in the order of the forward pass.

    They are the attribute `encoder_blocks` of the network, or of the network inside a wrapper; without it, the blocks
    of the module that is named as an encoder. The list is empty if there is no encoder. Raises ValueError if a block of
    the attribute has no parameter.
    """
    names = [name for name, _parameter in model.named_parameters()]
    for path, module in model.named_modules():
        stated = getattr(module, "encoder_blocks", None)
        if isinstance(stated, tuple | list):  # rather than modules of that name
            blocks = [f"{path}.{block}" if path else block for block in stated]
            empty = [block for block in blocks if not any(_block_of(name, [block]) for name in names)]
            if empty:
                raise ValueError(f"encoder_blocks of the network: no parameter belongs to {', '.join(empty)}")
            return blocks
    return next((list(blocks_of(module, path)) for path, module in model.named_modules() if _is_encoder(path)), [])


def _is_encoder(path: str) -> bool:
    """Whether a module is an encoder by its name, perhaps inside wrappers."""
    *outer, name = path.split(".")
    return name in ENCODERS and all(part in WRAPPERS for part in outer)


def _block_of(name: str, blocks: Sequence[str]) -> str | None:
    return next((block for block in blocks if name == block or name.startswith(f"{block}.")), None)


def _rate_factor(name: str, blocks: Sequence[str], grouping: Grouping) -> float:
    block = _block_of(name, blocks)
    if block is None:
        return 1.0
    return grouping.encoder_lr * grouping.layer_decay ** (len(blocks) - 1 - blocks.index(block))


def build_optimizer(
    name: str, model: nn.Module, arguments: Mapping[str, Any], grouping: Grouping | None = None
) -> Optimizer:
    """Build an optimiser by name.

    A learning-rate schedule multiplies the `initial_lr` of each parameter group. Raises ValueError if the grouping does
    not fit the network.
    """
    optimizer = OPTIMIZERS[name](parameter_groups(model, grouping or Grouping()), **arguments)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] * group["lr_factor"]
    return optimizer


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the moments from the state of an optimiser. The hyperparameters of `optimizer` stay as they are."""
    current = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, hyperparameters in zip(optimizer.param_groups, current, strict=True):
        group.update(hyperparameters)


# --- optimisers in the training loop --------------------------------------------------------------------------------


def prepare(optimizer: Optimizer) -> None:
    """Set `initial_lr` of each parameter group, if it is not set, to the learning rate of the group.

    Raises ValueError if the optimiser needs a closure, such as LBFGS: the training loop computes each gradient once.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} needs a closure that computes the loss repeatedly, but the training loop "
            "computes each gradient once; use an optimizer whose step() needs no closure"
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = float(group.get("initial_lr", group["lr"]))


def skips_by_flag(optimizer: Optimizer) -> bool:
    """Whether the optimiser skips its next step if the tensor `found_inf` on the device is 1.

    PyTorch's fused optimisers do. The exception is the first step of a fused SGD with momentum, in which the momentum
    buffers are created: skipping it would leave them uninitialised.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return all(
        group.get("fused", True) and not (isinstance(optimizer, torch.optim.SGD) and _lacks_buffers(optimizer, group))
        for group in optimizer.param_groups
    )


def _lacks_buffers(optimizer: torch.optim.SGD, group: Mapping[str, Any]) -> bool:
    states = [optimizer.state.get(parameter, {}) for parameter in group["params"] if parameter.grad is not None]
    return bool(group["momentum"]) and any(state.get("momentum_buffer") is None for state in states)
