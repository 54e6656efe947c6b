"""The choice of a network by data and memory, or by the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from segkit.config import ConfigError
from segkit.experiment.planning.memory import GPU_GB, Task
from segkit.experiment.planning.networks import NetworkPlan
from segkit.experiment.planning.pretrained_encoder import (
    has_libraries,
    plan_pretrained_encoder,
    takes_pretrained_encoder,
)
from segkit.experiment.planning.residual_encoder import plan_residual_encoder
from segkit.experiment.planning.small_unet import plan_small_unet

PlannedNetwork = Literal["unet", "residual_encoder_unet", "encoder_unet"]
PLANS: dict[PlannedNetwork, Callable[[Task], NetworkPlan | None]] = {
    "unet": plan_small_unet,
    "residual_encoder_unet": plan_residual_encoder,
    "encoder_unet": plan_pretrained_encoder,
}
EXTRA = "the extra `encoders`: pip install 'segkit-trainer[encoders]', then plan again"


def choose_network(task: Task, network: PlannedNetwork | None = None) -> NetworkPlan:
    """The plan of a network; without a name, a pretrained encoder for colour images, nnU-Net's residual encoder for
    other images where a GPU has the memory, and a small U-Net otherwise.

    Raises ConfigError if the named network is not for these images or does not fit into the memory.
    """
    return _chosen(task) if network is None else _named(task, network)


def _named(task: Task, network: PlannedNetwork) -> NetworkPlan:
    if network == "encoder_unet" and not takes_pretrained_encoder(task):
        raise ConfigError(
            "--network encoder_unet is planned for 2D images with three channels of 0..1 and at least 64 pixels per "
            "side, as those of ImageNet; leave --network out"
        )
    if network == "encoder_unet" and not has_libraries():
        raise ConfigError(f"--network encoder_unet needs {EXTRA}")
    plan = PLANS[network](task)
    if plan is None:
        raise ConfigError(
            f"--network {network}: no patch of these images fits into {task.limit.gb:.3g} GB; give more --memory, or "
            "leave --network out"
        )
    plan.reasons["model"] = ["as asked for with --network", *plan.reasons.get("model", [])]
    return plan


def _chosen(task: Task) -> NetworkPlan:
    if takes_pretrained_encoder(task):
        plan = plan_pretrained_encoder(task) if has_libraries() else None
        why = (
            f"no pretrained encoder fits into {task.limit.gb:.3g} GB"
            if has_libraries()
            else f"for colour images like these, an encoder trained on ImageNet is usually better; it needs {EXTRA}"
        )
    else:
        plan = plan_residual_encoder(task) if task.limit.gpu and task.limit.gb >= GPU_GB else None
        why = _no_residual_encoder(task)
    if plan is None:
        plan = plan_small_unet(task)
        plan.reasons["model"] = [f"a small U-Net: {why}"]
    return plan


def _no_residual_encoder(task: Task) -> str:
    """Why nnU-Net's residual encoder is not planned."""
    if not task.limit.gpu:
        return "nnU-Net's residual encoder is too slow on a CPU"
    if task.limit.gb < GPU_GB:
        return f"nnU-Net's residual encoder is made for GPUs with {GPU_GB:g} GB and more, not {task.limit.gb:.3g}"
    return f"no plan of nnU-Net's residual encoder fits these images and {task.limit.gb:.3g} GB"
