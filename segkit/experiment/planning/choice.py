"""The choice of a network by data and memory."""

from __future__ import annotations

from segkit.experiment.planning.memory import GPU_GB, Task
from segkit.experiment.planning.networks import NetworkPlan
from segkit.experiment.planning.pretrained_encoder import (
    has_libraries,
    plan_pretrained_encoder,
    takes_pretrained_encoder,
)
from segkit.experiment.planning.residual_encoder import plan_residual_encoder
from segkit.experiment.planning.small_unet import plan_small_unet


def choose_network(task: Task) -> NetworkPlan:
    """A pretrained encoder for colour images, nnU-Net's residual encoder for other images where a GPU has the memory,
    and a small U-Net otherwise."""
    if takes_pretrained_encoder(task):
        plan = plan_pretrained_encoder(task) if has_libraries() else None
        why = (
            f"no pretrained encoder fits into {task.limit.gb:.3g} GB"
            if has_libraries()
            else "for colour images like these, an encoder trained on ImageNet is usually better; it needs the extra "
            "`encoders`: pip install 'segkit-trainer[encoders]', then plan again"
        )
    else:
        plan = plan_residual_encoder(task)
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
