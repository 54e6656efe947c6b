"""The code of nnU-Net and mmsegmentation, which the tests run where it can be imported.

`tools/library_versions.py` makes environments in which it can. Elsewhere loops over the definitions take their place.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

PACKAGES = {  # the package of each library, and the name of its distribution
    "torch": ("torch", "torch"),
    "monai": ("monai", "monai"),
    "smp": ("segmentation_models_pytorch", "segmentation-models-pytorch"),
    "kornia": ("kornia", "kornia"),
    "nnunet": ("nnunetv2", "nnunetv2"),
    "mmseg": ("mmseg", "mmsegmentation"),
}
IGNORED = 255


def installed(library: str) -> Version | None:
    """The version of a library that can be imported; None without one."""
    package, distribution = PACKAGES[library]
    return Version(version(distribution)) if importlib.util.find_spec(package) else None


def _nnunet(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"nnunetv2.training.loss.{module}"), name)


def _with_channels(mask: Tensor, mode: str) -> Tensor:
    """Class numbers as [B, 1, *S]; channels of 0 and 1 as they are."""
    return mask if mode == "multilabel" else mask.unsqueeze(1)


def _weights(numbers: list[float] | None) -> Tensor | None:
    return None if numbers is None else torch.tensor(numbers, dtype=torch.float64)


def nnunet_cross_entropy(weights: list[float] | None = None):
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        if mode == "multiclass":
            loss = _nnunet("robust_ce_loss", "RobustCrossEntropyLoss")(weight=_weights(weights), ignore_index=IGNORED)
            return loss(logits, mask.unsqueeze(1))
        ignored = (_with_channels(mask, mode) == IGNORED).any(1, keepdim=True)
        target = torch.where(_with_channels(mask, mode) == 1, 1.0, 0.0)
        dice = {"batch_dice": False, "do_bg": True, "ddp": False}
        compound = _nnunet("compound_losses", "DC_and_BCE_loss")
        if not ignored.any():
            return compound({}, dice, weight_dice=0)(logits, target)
        return compound({}, dice, weight_dice=0, use_ignore_label=True)(logits, torch.cat([target, ignored], 1))

    return library_loss


def nnunet_topk(share: float):
    def library_loss(logits: Tensor, mask: Tensor, _mode: str) -> Tensor:
        return _nnunet("robust_ce_loss", "TopKLoss")(k=100 * share)(logits, mask.unsqueeze(1))

    return library_loss


def nnunet_dice(batch_wide: bool = False, smooth: float = 1e-5):
    """Sums in float32."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        loss = _nnunet("dice", "MemoryEfficientSoftDiceLoss")(
            apply_nonlin=(lambda z: z.softmax(1)) if mode == "multiclass" else torch.sigmoid,
            batch_dice=batch_wide,
            do_bg=mode != "multiclass",
            smooth=smooth,
            ddp=False,
        )
        target = _with_channels(mask, mode)
        return loss(logits, torch.where(target == IGNORED, 0, target).long(), loss_mask=target != IGNORED)

    return library_loss


def _mmseg(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"mmseg.models.losses.{module}"), name)


def mmseg_cross_entropy(weights: list[float] | None = None, **options: Any):
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        loss = _mmseg("cross_entropy_loss", "CrossEntropyLoss")(
            use_sigmoid=mode != "multiclass", class_weight=weights, **options
        )
        return loss(logits, mask.long(), ignore_index=IGNORED)

    return library_loss


def mmseg_tversky(**options: Any):
    def library_loss(logits: Tensor, mask: Tensor, _mode: str) -> Tensor:
        return _mmseg("tversky_loss", "TverskyLoss")(**options)(logits, mask.long())

    return library_loss


def mmseg_dice(**options: Any):
    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        target = mask.long() if mode == "multiclass" else _with_channels(mask, mode)
        return _mmseg("dice_loss", "DiceLoss")(**options)(logits, target)

    return library_loss


def mmseg_lovasz(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
    """In float32, the only type that it supports."""
    logits = logits.float()
    loss = _mmseg("lovasz_loss", "LovaszLoss")("multi_class" if mode == "multiclass" else "binary", reduction="none")
    return loss(logits if mode == "multiclass" else logits[:, 0], mask.long(), ignore_index=IGNORED)


def mmseg_focal(**options: Any):
    """Its form for a CPU, which takes channels of 0 and 1 only."""

    def library_loss(logits: Tensor, mask: Tensor, mode: str) -> Tensor:
        target = mask.long().unsqueeze(1)
        if mode == "multiclass":
            target = (target == torch.arange(logits.shape[1]).view(-1, 1, 1)).long()
        return _mmseg("focal_loss", "FocalLoss")(**options)(logits, target, ignore_index=IGNORED)

    return library_loss
