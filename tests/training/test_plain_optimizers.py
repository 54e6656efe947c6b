"""Optimisers that users build with torch.optim and pass to an experiment."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import optim

from segkit.models.unet import UNet
from segkit.training import checkpoint
from segkit.training.loop import fit
from segkit.training.optimizers import build_optimizer, skips_by_flag
from segkit.training.run_folder import Run
from segkit.training.stopping import Limits
from segkit.training.trainer import Trainer

from support.experiments import QUIET, assert_same, make_experiment
from support.synchronisation import NoWaiting


class CountingSGD(optim.Optimizer):
    """A third-party optimiser that counts its steps in a Python number and in its parameter groups."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "calls": 0})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            group["calls"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] = state.get("step", 0) + 1
                    parameter -= group["lr"] / state["step"] * parameter.grad


PLAIN = {
    "adamw": lambda parameters: optim.AdamW(parameters, lr=1e-3),
    "adamw loop": lambda parameters: optim.AdamW(parameters, lr=1e-3, foreach=False),
    "adamw foreach": lambda parameters: optim.AdamW(parameters, lr=1e-3, foreach=True),
    "adamw tensor lr": lambda parameters: optim.AdamW(parameters, lr=torch.tensor(1e-3), foreach=False),
    "adam": lambda parameters: optim.Adam(parameters, lr=1e-3, weight_decay=1e-2),
    "adam amsgrad": lambda parameters: optim.Adam(parameters, lr=1e-3, amsgrad=True),
    "sgd": lambda parameters: optim.SGD(parameters, lr=1e-2, weight_decay=1e-2),
    "sgd momentum": lambda parameters: optim.SGD(parameters, lr=1e-2, momentum=0.9, dampening=0.1),
    "sgd nesterov": lambda parameters: optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, lr=1e-3),
    "rmsprop momentum": lambda parameters: optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda parameters: optim.Adagrad(parameters, lr=1e-2, lr_decay=1e-2),
    "adadelta": lambda parameters: optim.Adadelta(parameters, lr=1.0),
    "adamax": lambda parameters: optim.Adamax(parameters, lr=1e-3),
    "nadam": lambda parameters: optim.NAdam(parameters, lr=1e-3),
    "radam": lambda parameters: optim.RAdam(parameters, lr=1e-3),
    "rprop": lambda parameters: optim.Rprop(parameters, lr=1e-3),
    "asgd": lambda parameters: optim.ASGD(parameters, lr=1e-3),
}
FUSED = {
    "adamw": lambda parameters: optim.AdamW(parameters, lr=1e-3, fused=True),
    "adam amsgrad": lambda parameters: optim.Adam(parameters, lr=1e-3, amsgrad=True, fused=True),
    "sgd": lambda parameters: optim.SGD(parameters, lr=1e-2, fused=True),
    "sgd momentum": lambda parameters: optim.SGD(parameters, lr=1e-2, momentum=0.9, dampening=0.1, fused=True),
    "adagrad": lambda parameters: optim.Adagrad(parameters, lr=1e-2, fused=True),
}
ALL = {
    **PLAIN,
    **{f"{name} fused": make for name, make in FUSED.items()},
    "third party": lambda parameters: CountingSGD(parameters, lr=1e-2),
}
each_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def experiment_with(make, **settings):
    """The small experiment with an optimiser that is built from the parameters of its network."""
    experiment = make_experiment(**{"dropout": 0.0, **settings})
    return replace(experiment, optimizer=make(experiment.model.parameters()))


def poisoned(batch):
    """The batch with NaN images."""
    return {**batch, "image": batch["image"] * torch.nan}


def flat(value, name=""):
    """The leaves of nested mappings and lists by their path."""
    if isinstance(value, dict):
        return {path: leaf for key in value for path, leaf in flat(value[key], f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {path: leaf for place, item in enumerate(value) for path, leaf in flat(item, f"{name}/{place}").items()}
    return {name: value}


def assert_same_state(first, second):
    """Equality of two states of an optimiser, bit by bit."""
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        assert type(value) is type(other), name
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name
        else:
            assert value == other, name


def trained(make, batches, **settings):
    """The trainer after one step per batch, at a constant learning rate."""
    experiment = experiment_with(make, **settings)
    experiment.schedule = lambda _step: 1.0
    trainer = Trainer(experiment)
    trainer.train_mode()
    for batch in batches:
        trainer.step([batch])
    return trainer


@each_optimizer
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_nonfinite_step_changes_nothing(make, ema):
    batches = list(make_experiment(steps=3).batches(0))
    trainer = trained(make, batches[:2], ema=ema)
    before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    average = copy.deepcopy(trainer.evaluated_model.state_dict())
    assert trainer.step([poisoned(batches[2])])["broken"] == 1
    assert_same(trainer.model.state_dict(), before[0])
    assert_same_state(trainer.optimizer.state_dict(), before[1])
    assert_same(trainer.evaluated_model.state_dict(), average)
    assert trainer.step([batches[2]])["broken"] == 0
    assert not torch.equal(trainer.model.head.weight, before[0]["head.weight"])


@each_optimizer
def test_a_nonfinite_first_step_changes_nothing(make):
    """In the first step, optimisers create their state."""
    batches = list(make_experiment(steps=2).batches(0))
    expected = trained(make, batches)
    trainer = trained(make, [poisoned(batches[0]), batches[0], poisoned(batches[1]), batches[1]])
    assert_same(trainer.model.state_dict(), expected.model.state_dict())
    assert_same_state(trainer.optimizer.state_dict(), expected.optimizer.state_dict())


@each_optimizer
def test_the_trainer_equals_a_plain_loop(make):
    """The trainer and a plain loop give the same weights."""
    batches = list(make_experiment(steps=3).batches(0))
    trainer = trained(make, batches, clip_norm=None)
    experiment = experiment_with(make)
    model, loss, optimizer = experiment.model.train(), experiment.loss, experiment.optimizer
    for batch in batches:
        optimizer.zero_grad()
        loss(model(batch["image"]), batch["mask"]).backward()
        optimizer.step()
    assert_same(trainer.model.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "make", [ALL[name] for name in ALL if name != "third party"], ids=[n for n in ALL if n != "third party"]
)
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, make):
    """One step of the run is not finite, and the run is cut off in the middle."""

    def experiment(cut=None):
        made = experiment_with(make, steps=6, dropout=0.2)

        def batches(start):
            for number, batch in enumerate(made.batches(start), start):
                if number == cut:
                    raise RuntimeError("power cut")
                yield poisoned(batch) if number == 1 else batch

        return replace(made, batches=batches)

    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    fit(experiment(), whole, console=QUIET)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(experiment(cut=5), parts, console=QUIET)
    assert checkpoint.load(parts.last)["step"] == 5
    fit(experiment(), parts, resume=True, console=QUIET)
    first, second = checkpoint.load(whole.last), checkpoint.load(parts.last)
    assert_same(first["training"]["model"], second["training"]["model"])
    assert_same_state(first["training"]["optimizer"], second["training"]["optimizer"])
    logs = [[json.loads(line) for line in run.log_file.read_text().splitlines()] for run in (whole, parts)]
    for record in logs[0] + logs[1]:
        record.pop("time", None)
    assert logs[0] == logs[1]


def test_the_schedule_multiplies_the_learning_rate_of_each_group():
    experiment = make_experiment(steps=4)
    head = list(experiment.model.head.parameters())
    rest = [parameter for parameter in experiment.model.parameters() if all(parameter is not other for other in head)]
    experiment.optimizer = optim.AdamW([{"params": rest}, {"params": head, "lr": 1e-2}], lr=1e-3)
    experiment.schedule = lambda step: 1 / (1 + step)
    trainer = Trainer(experiment)
    for step, batch in enumerate(experiment.batches(0)):
        trainer.step([batch])
        assert trainer.position["lr"] == [pytest.approx(1e-3 / (1 + step)), pytest.approx(1e-2 / (1 + step))]


def test_a_learning_rate_that_is_a_tensor_is_logged_as_a_number():
    trainer = trained(ALL["adamw tensor lr"], list(make_experiment(steps=1).batches(0)))
    assert json.loads(json.dumps(trainer.position))["lr"] == [pytest.approx(1e-3)]


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_a_fused_optimizer_never_waits_for_the_device(make):
    """Fused SGD with momentum waits in its first step, in which it creates its buffers."""
    batches = list(make_experiment(steps=4).batches(0))
    trainer = trained(make, batches[:1])
    with NoWaiting():
        for batch in (batches[1], poisoned(batches[2]), batches[3]):
            trainer.step([batch])
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda model: optim.AdamW(model.parameters()), False),
        (lambda model: optim.AdamW(model.parameters(), fused=True), True),
        (lambda model: optim.AdamW([{"params": model.parameters(), "fused": False}], fused=True), False),
        (lambda model: optim.SGD(model.parameters(), fused=True), True),
        (lambda model: optim.SGD(model.parameters(), momentum=0.9, fused=True), False),
        (lambda model: optim.RMSprop(model.parameters()), False),
        (lambda model: build_optimizer("sgd", model, {}), True),
        (lambda model: build_optimizer("adamw", model, {}), True),
    ],
)
def test_which_optimizers_skip_by_a_flag(make, expected):
    """Before their first step."""
    model = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make(model)
    assert skips_by_flag(optimizer) is expected
    optimizer.step()
    if isinstance(optimizer, optim.SGD):
        assert skips_by_flag(optimizer)


@pytest.mark.parametrize("name", ["adamw", "sgd momentum", "sgd momentum fused", "rmsprop"])
def test_a_gradient_scaler_works_with_every_optimizer(name):
    """The scale overflows in the gradients and is lowered until it does not; until then nothing changes."""
    experiment = experiment_with(ALL[name], steps=1, precision="fp16")
    experiment.schedule = lambda _step: 1.0
    trainer, (batch,) = Trainer(experiment), experiment.batches(0)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = copy.deepcopy(trainer.model.state_dict())
    skipped = []
    while not skipped or skipped[-1]:
        assert_same(trainer.model.state_dict(), before)
        assert all("momentum_buffer" not in state for state in trainer.optimizer.state.values())
        skipped.append(bool(trainer.step([batch])["broken"]))
    assert len(skipped) > 1
    assert trainer.scaler.get_scale() == 2.0 ** (40 - sum(skipped))
    assert not torch.equal(trainer.model.head.weight, before["head.weight"])
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_parameters_without_optimizer_stay_as_they_are():
    """Their gradients, which nothing resets, do not count for the norm either."""
    batches = list(make_experiment(steps=2).batches(0))
    norms = []
    for frozen in (False, True):
        experiment = make_experiment(steps=2, dropout=0.0, clip_norm=1e-3)
        experiment.optimizer = optim.SGD(experiment.model.head.parameters(), lr=1.0)
        if frozen:
            for name, parameter in experiment.model.named_parameters():
                parameter.requires_grad_(name.startswith("head."))
        before = {name: value.clone() for name, value in experiment.model.named_parameters()}
        trainer = Trainer(experiment)
        norms.append([trainer.step([batch])["gradient_norm"].item() for batch in batches])
        for name, parameter in experiment.model.named_parameters():
            assert torch.equal(parameter, before[name]) != name.startswith("head."), name
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        Trainer(experiment_with(lambda parameters: optim.LBFGS(parameters)))


def test_one_optimizer_can_be_trained_further():
    """A second trainer takes the original learning rate, not the last one of the schedule."""
    experiment = experiment_with(ALL["adamw"], steps=2)
    experiment.settings = replace(experiment.settings, limits=Limits(2))
    for _ in range(2):
        trainer = Trainer(experiment)
        for batch in experiment.batches(0):
            trainer.step([batch])
        assert [group["initial_lr"] for group in experiment.optimizer.param_groups] == [1e-3]
