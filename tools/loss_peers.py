"""The losses of segkit beside those of the same kind in torch, MONAI, smp and kornia, and calls that compute them.

A library is imported when its losses are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit import Labels
from segkit.losses import build_loss
from segkit.losses.target_maps import maps_of_mask, stacked

LIBRARIES = ("segkit", "torch", "MONAI", "smp", "kornia")
MONAI_OPTIONS: dict[str, Any] = {"softmax": True, "to_onehot_y": True}

Loss = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A loss of segkit (the spec that builds it), its counterparts in other libraries, and the targets: the largest
    time relative to the fastest of the others, and the largest peak memory relative to the logits."""

    spec: str | dict[str, Any]
    time: float | None = None
    memory: float | None = 2.0
    peers: Mapping[str, Loss] = field(default_factory=dict)


ROWS = {
    "cross_entropy": Row("cross_entropy", 1.15),
    "focal": Row("focal", 0.8),
    "dice": Row("dice", 0.9),
    "jaccard": Row("jaccard", 0.9),
    "tversky": Row("tversky", 0.9),
    "generalized_dice": Row("generalized_dice"),
    "dice_ce": Row("dice_ce", 0.6),
    "lovasz_softmax histogram": Row({"name": "lovasz_softmax", "mode": "histogram"}, 0.33, None),
    "lovasz_softmax exact": Row({"name": "lovasz_softmax", "mode": "exact"}, 0.8, None),
    "poly_cross_entropy": Row("poly_cross_entropy"),
    "topk_cross_entropy": Row("topk_cross_entropy"),
    "ohem_cross_entropy": Row("ohem_cross_entropy"),
    "margin_label_smoothing": Row("margin_label_smoothing"),
    "log_cosh_dice": Row("log_cosh_dice"),
    "dice_semimetric variant 2": Row({"name": "dice_semimetric", "variant": 2}),
    "jaccard_metric variant 2": Row({"name": "jaccard_metric", "variant": 2}),
    "mcc": Row("mcc"),
    "unified_focal": Row("unified_focal"),
    "exponential_log": Row("exponential_log"),
}


# losses of boundaries, centrelines and components, and what they are compared with
SPATIAL_ROWS = {
    "boundary": Row("boundary"),
    "hausdorff, one-sided": Row("hausdorff"),
    "hausdorff, two-sided": Row({"name": "hausdorff", "one_sided": False}),
    "surface": Row("surface"),
    "cldice, 5 iterations": Row({"name": "cldice", "iterations": 5}, memory=8.0),
    "skeleton_recall": Row("skeleton_recall"),
    "component_dice": Row("component_dice", memory=3.0),
    "component_dice, regions": Row({"name": "component_dice", "of": "region"}, memory=3.0),
    "border_cross_entropy": Row("border_cross_entropy"),
}


def spatial_rows() -> dict[str, Row]:
    """The rows of `SPATIAL_ROWS` with the losses of MONAI, which alone has some of them."""
    from monai.losses.boundary_loss import BoundaryLoss
    from monai.losses.cldice import SoftclDiceLoss
    from monai.losses.hausdorff_loss import HausdorffDTLoss

    foreground = {**MONAI_OPTIONS, "include_background": False}
    peers: dict[str, Loss] = {
        "boundary": with_channel(BoundaryLoss(**foreground)),
        "hausdorff, two-sided": with_channel(HausdorffDTLoss(**foreground)),
        "cldice, 5 iterations": with_channel(SoftclDiceLoss(iter_=5, **foreground)),
    }
    return {
        name: Row(row.spec, row.time, row.memory, {"MONAI": peers[name]} if name in peers else {})
        for name, row in SPATIAL_ROWS.items()
    }


def rows(dims: int, libraries: Sequence[str] = LIBRARIES) -> dict[str, Row]:
    """Every row with its counterparts for images of 2 or 3 axes. Raises ImportError if a library is not installed."""
    by_library = {library: losses_of(library, dims) for library in libraries}
    return {
        name: Row(
            row.spec,
            row.time,
            row.memory,
            {library: losses[name] for library, losses in by_library.items() if name in losses},
        )
        for name, row in ROWS.items()
    }


def losses_of(library: str, dims: int) -> dict[str, Loss]:
    """The losses of another library. Raises ImportError if it is not installed."""
    return LOSSES_OF[library](dims) if library in LOSSES_OF else {}


def _torch_losses(_dims: int) -> dict[str, Loss]:
    others = ("poly_cross_entropy", "topk_cross_entropy", "ohem_cross_entropy", "margin_label_smoothing")
    return dict.fromkeys(("cross_entropy", *others), F.cross_entropy)


def _monai_losses(_dims: int) -> dict[str, Loss]:
    from monai.losses.dice import DiceCELoss, DiceFocalLoss, DiceLoss, GeneralizedDiceLoss
    from monai.losses.focal_loss import FocalLoss
    from monai.losses.mcc_loss import MCCLoss
    from monai.losses.tversky import TverskyLoss

    return {
        "focal": with_channel(FocalLoss(use_softmax=True, to_onehot_y=True)),
        "dice": with_channel(DiceLoss(**MONAI_OPTIONS)),
        "jaccard": with_channel(DiceLoss(jaccard=True, **MONAI_OPTIONS)),
        "tversky": with_channel(TverskyLoss(**MONAI_OPTIONS)),
        "generalized_dice": with_channel(GeneralizedDiceLoss(**MONAI_OPTIONS)),
        "dice_ce": with_channel(DiceCELoss(**MONAI_OPTIONS)),
        "log_cosh_dice": with_channel(DiceLoss(**MONAI_OPTIONS)),
        "dice_semimetric variant 2": with_channel(DiceLoss(**MONAI_OPTIONS)),
        "jaccard_metric variant 2": with_channel(DiceLoss(jaccard=True, **MONAI_OPTIONS)),
        "mcc": with_channel(MCCLoss(**MONAI_OPTIONS)),
        "unified_focal": with_channel(DiceFocalLoss(**MONAI_OPTIONS)),  # its own takes two classes
        "exponential_log": with_channel(DiceCELoss(**MONAI_OPTIONS)),
    }


def _smp_losses(_dims: int) -> dict[str, Loss]:
    import segmentation_models_pytorch.losses as smp

    lovasz = smp.LovaszLoss("multiclass")
    return {
        "focal": smp.FocalLoss("multiclass"),
        "dice": smp.DiceLoss("multiclass"),
        "jaccard": smp.JaccardLoss("multiclass"),
        "tversky": smp.TverskyLoss("multiclass"),
        "lovasz_softmax histogram": lovasz,
        "lovasz_softmax exact": lovasz,
    }


def _kornia_losses(dims: int) -> dict[str, Loss]:
    """Only its focal loss takes volumes."""
    import kornia.losses

    focal: dict[str, Loss] = {"focal": partial(kornia.losses.focal_loss, alpha=None, gamma=2.0, reduction="mean")}
    if dims != 2:
        return focal
    return {
        **focal,
        "dice": partial(kornia.losses.dice_loss, average="macro"),
        "tversky": partial(kornia.losses.tversky_loss, alpha=0.5, beta=0.5),
        "lovasz_softmax histogram": kornia.losses.lovasz_softmax_loss,
        "lovasz_softmax exact": kornia.losses.lovasz_softmax_loss,
    }


LOSSES_OF: dict[str, Callable[[int], dict[str, Loss]]] = {
    "torch": _torch_losses,
    "MONAI": _monai_losses,
    "smp": _smp_losses,
    "kornia": _kornia_losses,
}


def with_channel(loss: Loss) -> Loss:
    """MONAI expects class numbers with a channel axis."""
    return lambda logits, mask: loss(logits, mask.unsqueeze(1))


def sides_of(shape: str) -> list[int]:
    """The sides of a shape such as 2x3x64x64: images, channels and spatial axes."""
    return [int(side) for side in shape.split("x")]


def random_batch(shape: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Normal logits of a shape such as 2x3x64x64, and uint8 labels."""
    images, channels, *space = sides_of(shape)
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(images, channels, *space, generator=generator, device=device)
    mask = torch.randint(0, channels, (images, *space), generator=generator, dtype=torch.uint8, device=device)
    return logits, mask


def blobs(shape: str) -> tuple[Tensor, Tensor]:
    """Normal logits of a shape such as 2x3x64x64, and uint8 labels of smooth shapes on a background."""
    images, channels, *space = sides_of(shape)
    logits, _ = random_batch(shape)
    smooth = torch.randn(images, channels, *space, generator=torch.Generator().manual_seed(1))
    pool = F.avg_pool2d if len(space) == 2 else F.avg_pool3d
    for _pass in range(3):
        smooth = pool(smooth, 9, 1, 4)
    smooth[:, 0] += smooth.std()  # the background is more frequent
    return logits, smooth.argmax(1).to(torch.uint8)


def with_maps(row: Row, logits: Tensor, mask: Tensor) -> tuple[Call, Call]:
    """Two calls: a loss and its gradient with the maps of the loader, and making these maps for one image."""
    loss: Any = ours(row.spec, logits.shape[1], logits.device)
    leaf, spacing = logits.detach().requires_grad_(), [1.0] * (logits.ndim - 2)
    one_by_one = [maps_of_mask(loss.maps, loss.labels, image, spacing) for image in mask.numpy()]
    maps = {name: torch.from_numpy(array) for name, array in stacked(one_by_one).items()}
    given = partial(loss, maps=maps or None)
    return partial(gradient, given, leaf, mask), partial(maps_of_mask, loss.maps, loss.labels, mask.numpy()[0], spacing)


def calls_of(row: Row, logits: Tensor, mask: Tensor) -> dict[str, Call]:
    """A call for each library that has the loss. segkit gets the labels as uint8, the others as int64."""
    logits = logits.detach().requires_grad_()
    numbers = mask.long()
    return {
        "segkit": partial(gradient, ours(row.spec, logits.shape[1], logits.device), logits, mask),
        **{name: partial(gradient, loss, logits, numbers) for name, loss in row.peers.items()},
    }


def ours(spec: str | dict[str, Any], channels: int, device: torch.device | str = "cpu") -> Loss:
    names = ["background", *(f"class {number}" for number in range(1, channels))]
    return build_loss(spec, Labels(names)).to(device)


def gradient(loss: Loss, logits: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Compute what a training step needs from a loss: the gradient of the logits, which is not kept."""
    return torch.autograd.grad(loss(logits, mask), logits)
