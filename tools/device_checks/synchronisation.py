"""Part: neither a training step nor an evaluation waits for the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch

from device_checks.checks import Check, Measured, Setup, Skip
from device_checks.experiments import COLOUR, PLANE, VOLUME, built
from segkit.evaluation.scorer import Scorer, score_case
from segkit.evaluation.scoring import Scoring
from segkit.losses import LOSSES, build_loss
from segkit.metrics import count
from segkit.training.trainer import Trainer

from support.loss_oracle import (  # pyright: ignore[reportMissingImports]
    EXACT,
    MODES,
    MODES_OF,
    batch,
    labels_of,
    maps_of,
    spec_of,
)
from support.synchronisation import NoWaiting  # pyright: ignore[reportMissingImports]

STEPS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "fp32": (PLANE, []),
    "bf16, channels_last": (PLANE, ["train.precision=bf16", "train.channels_last=true"]),
    "fp16": (PLANE, ["train.precision=fp16"]),
    "clipped, moving average": (PLANE, ["train.clip_norm=1", "train.ema=0.9"]),
    "SGD": (PLANE, ["optimizer={name: sgd, lr: 0.01}"]),
    "two micro-batches": (PLANE, ["train.accumulate=2"]),
    "deep supervision": (PLANE, ["model.deep_supervision=true"]),
    "shares of the gradient": (PLANE, ["train.gradients_every={steps: 1}"]),
    "3D": (VOLUME, []),
    "colour, channels_last": (COLOUR, ["train.precision=bf16", "train.channels_last=true"]),
    "group norm, attention gates": (PLANE, ["model.norm=group", "model.attention=true"]),
    "encoder of timm": (COLOUR, ["model={name: encoder_unet, encoder: resnet18}"]),
    "residual encoder, 3D": (VOLUME, ["model={name: residual_encoder_unet, widths: [8, 16], deep_supervision: true}"]),
    "DynUNet of MONAI": (VOLUME, ["model={name: monai_dynunet, widths: [8, 16, 32], deep_supervision: true}"]),
}
SHORT_STEPS = ("fp32", "bf16, channels_last", "clipped, moving average", "deep supervision")
EVALUATIONS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "2D": (PLANE, []),
    "2D, resampled": (PLANE, ["preprocess.spacing=[1.5, 2]"]),
    "3D, sliding window": (VOLUME, []),
    "3D, resampled": (VOLUME, ["preprocess.spacing=[1.5, 1, 1]", "sampling.patch=[16, 16, 16]"]),
}
NOTE = """\
On CUDA, an operation that waits raises an error by `torch.cuda.set_sync_debug_mode("error")`. On a CPU, a dispatch mode
raises one for operations that would wait, except for those of the optimiser.\
"""
SCORING = Scoring(("dice", "iou", "boundary_iou"), calibration=True)


def checks(setup: Setup) -> Iterator[Check]:
    """A row per kind of step, loss and evaluation."""
    yield Check("an operation that waits is found", partial(_control, setup))
    for name, (tree, overrides) in STEPS.items():
        if setup.short and name not in SHORT_STEPS:
            continue
        yield Check(f"training step, {name}", partial(_step, setup, tree, overrides))
    for name in LOSSES:
        yield Check(f"loss {name}", partial(_loss, setup, name))
    for mode in MODES:
        yield Check(f"counts, {mode}", partial(_counts, setup, mode))
    for name, (tree, overrides) in EVALUATIONS.items():
        yield Check(f"evaluation of a case, {name}", partial(_evaluation, setup, tree, overrides))


@contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Raise an error for an operation that waits for the device, or would wait if it were one."""
    if device.type != "cuda":
        with NoWaiting():
            yield
        return
    torch.cuda.synchronize(device)
    former = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(former)
        torch.cuda.synchronize(device)


def _control(setup: Setup) -> Measured:
    """The check itself: reading a number is found."""
    number = torch.ones((), device=setup.torch_device)
    try:
        with never_waiting(setup.torch_device):
            number.item()
    except (RuntimeError, AssertionError):
        return Measured()
    return Measured(problem="reading a number of the device raises no error, so the rows below show nothing")


def _step(setup: Setup, tree: dict[str, Any], overrides: Sequence[str]) -> Measured:
    """The second and third step; the first one may set up what later ones use."""
    if not setup.is_cuda and "train.precision=fp16" in overrides:
        raise Skip("fp16 needs an accelerator")
    experiment = built(setup, tree, overrides).experiment
    trainer, size = Trainer(experiment), experiment.settings.accumulate
    batches = list(islice(iter(experiment.batches(0)), 3 * size))
    trainer.train_mode()
    trainer.step(batches[:size])
    if not setup.is_cuda:
        experiment.optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    with never_waiting(setup.torch_device):
        trainer.step(batches[size : 2 * size])
        scalars = trainer.step(batches[2 * size :])
    finite = bool(torch.stack([value.float() for value in scalars.values()]).isfinite().all())
    return Measured(problem=None if finite else f"expected finite scalars, got {scalars}")


def _loss(setup: Setup, name: str) -> Measured:
    """Forward and backward pass in every mode, with ignored pixels."""
    for mode in MODES_OF.get(name, MODES):
        logits, mask = (tensor.to(setup.torch_device) for tensor in batch(mode, (6, 7), dtype=torch.float32))
        for options in ({}, EXACT.get(name, {})):
            loss = build_loss({**spec_of(name), **options}, labels_of(mode)).to(setup.torch_device)
            given = maps_of(loss, mask, 2)
            loss(logits.clone().requires_grad_(), mask, **given).backward()
            leaf = logits.clone().requires_grad_()
            with never_waiting(setup.torch_device):
                loss(leaf, mask, **given).backward()
    return Measured()


def _counts(setup: Setup, mode: str) -> Measured:
    labels = labels_of(mode)
    logits, mask = (tensor.to(setup.torch_device) for tensor in batch(mode, (6, 7), dtype=torch.float32))
    with never_waiting(setup.torch_device):
        count(labels.decode(logits), mask, labels)
    return Measured()


def _evaluation(setup: Setup, tree: dict[str, Any], overrides: Sequence[str]) -> Measured:
    """Prediction and counts of the second case; the first one may set up what later ones use."""
    construction = built(setup, tree, overrides)
    experiment, cases = construction.experiment, construction.data.evaluation_set("test")
    predictor = experiment.predictor(experiment.model)
    scorer = Scorer(2, experiment.labels, SCORING, setup.torch_device)
    score_case(scorer, predictor, cases[0])
    second = cases[1]
    with never_waiting(setup.torch_device):
        score_case(scorer, predictor, second)
    cases = scorer.result().cases
    return Measured(problem=None if cases["reference"].to_numpy().any() else "the counts are all 0")
