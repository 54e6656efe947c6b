"""A small experiment that is built without a configuration."""

from functools import partial

import torch
from rich.console import Console

from segkit import Labels
from segkit.data import SPLITS, SyntheticSource
from segkit.data.augment import ALBUMENTATIONS, build_augment
from segkit.data.case_store import CaseStore
from segkit.data.datasets import EvaluationSet, TrainingSet
from segkit.data.loaders import training_loader
from segkit.data.preprocess import Preprocess
from segkit.inference.predictor import Predictor
from segkit.losses import build_loss
from segkit.losses.target_maps import maps_of_mask
from segkit.models.unet import UNet
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import build_optimizer
from segkit.training.stopping import Limits
from segkit.training.trainer import Experiment, Settings

LABELS = Labels(["background", "a", "b"], ignore_index=255)


QUIET = Console(quiet=True)


CPU = torch.device("cpu")


def make_experiment(steps=6, *, workers=0, ema=None, dropout=0.2, lr=1e-2, loss="dice_ce", limits=None, **settings):
    """An experiment on 32 x 32 phantoms, built by hand from its parts."""
    source = SyntheticSource(labels=LABELS, size=[32, 32], train=8, validation=3, test=0, foreground=0.3, noise=0.02)
    split = SPLITS["source"](source.cases)
    by_name = {case.name: case for case in source.cases}
    train = [by_name[name] for name in split.train]
    store = CaseStore(source, "memory")
    preprocess = Preprocess.fit(((case, store.read(case)) for case in train), multiple=4)
    augment = build_augment("albumentations", [ALBUMENTATIONS["horizontal_flip"](p=0.5)], LABELS.padding_value)
    built = build_loss(loss, LABELS)
    maps = partial(maps_of_mask, built.maps, LABELS) if built.maps else None
    options = {"patch": [24, 24], "foreground": 0.5, "margin": 1.5, "seed": 1, "maps": maps}
    dataset = TrainingSet(train, store, preprocess, LABELS, augment, **options)
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[8, 16, 32], dropout=dropout)
    return Experiment(
        labels=LABELS,
        model=model,
        loss=built,
        optimizer=build_optimizer("adamw", model, {"lr": lr}),
        schedule=SCHEDULES["poly"](steps=steps),
        batches=lambda start: training_loader(
            dataset, batch=4, workers=workers, steps=steps, seed=1, start=start, multiple=4, pin=False
        ),
        validation=EvaluationSet([by_name[name] for name in split.validation], source, preprocess, keep=True),
        predictor=lambda model: Predictor(model, LABELS, CPU, 4),
        settings=Settings(
            limits or Limits(steps), 2, **{"clip_norm": 1.0, "ema": ema, "log_every": 2, "validate_every": 2} | settings
        ),
        device=CPU,
        plain={"config": {"seed": 1}},
    )


def assert_same(first, second, place="content"):
    """Equality of nested plain data and tensors, such as state dicts, bit by bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for name, value in first.items():
            assert_same(value, second[name], f"{place}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), place
        for number, value in enumerate(first):
            assert_same(value, second[number], f"{place}.{number}")
    else:
        assert first == second, place
