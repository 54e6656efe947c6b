"""The loop, on small synthetic data: what it writes, that it learns, resumes, stops, and never waits for the device."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from synchronisation import NoWaiting

from segkit import Labels, checkpoint
from segkit.data import SPLITS, SyntheticSource
from segkit.data.augment import ALBUMENTATIONS, build_augment
from segkit.data.loaders import CaseStore, EvaluationSet, TrainingSet, training_loader
from segkit.data.preprocess import Preprocess
from segkit.losses import build_loss
from segkit.models.unet import UNet
from segkit.optimizers import SCHEDULES, build_optimizer
from segkit.predict import Predictor
from segkit.runs import Run
from segkit.train import Diverged, Experiment, Interrupted, Settings, Trainer, fit

LABELS = Labels(["background", "a", "b"], ignore_index=255)
QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def make_experiment(steps=6, *, workers=0, ema=None, dropout=0.2, lr=1e-2, loss="dice_ce", **settings):
    """A whole experiment on 32 x 32 phantoms, made by hand from the parts that it consists of."""
    source = SyntheticSource(labels=LABELS, size=[32, 32], train=8, validation=3, test=0, foreground=0.3, noise=0.02)
    split = SPLITS["source"](source.cases)
    by_name = {case.name: case for case in source.cases}
    train = [by_name[name] for name in split.train]
    store = CaseStore(source, cache=True)
    preprocess = Preprocess.fit(((case, store.read(case)) for case in train), multiple=4)
    augment = build_augment("albumentations", [ALBUMENTATIONS["horizontal_flip"](p=0.5)], LABELS.void)
    dataset = TrainingSet(train, store, preprocess, LABELS, augment, patch=[24, 24], foreground=0.5, margin=1.5, seed=1)
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[8, 16, 32], dropout=dropout)
    return Experiment(
        labels=LABELS,
        model=model,
        loss=build_loss(loss, LABELS),
        optimizer=build_optimizer("adamw", model, {"lr": lr}),
        schedule=SCHEDULES["poly"](steps=steps),
        batches=lambda start: training_loader(
            dataset, batch=4, workers=workers, steps=steps, seed=1, start=start, multiple=4, pin=False
        ),
        validation=EvaluationSet([by_name[name] for name in split.validation], source, preprocess, cache=True),
        predictor=lambda model: Predictor(model, CPU, 4),
        settings=Settings(steps=steps, steps_per_epoch=2, clip_norm=1.0, ema=ema, log_every=2, **settings),
        device=CPU,
        threshold=0.5,
        plain={"config": {"seed": 1}},
    )


def log_of(run):
    """The log without the fields that may differ between equal runs."""
    records = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def weights(run):
    return checkpoint.load(run.last)["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_folder_holds_what_it_says(tmp_path):
    run = Run(tmp_path / "run")
    fit(make_experiment(), run, console=QUIET)
    records = log_of(run)
    assert [record["step"] for record in records if record["kind"] == "step"] == [2, 4, 6]
    assert [record["step"] for record in records if record["kind"] == "epoch"] == [2, 4, 6]
    step = records[0]
    assert set(step["terms"]) == {"dice", "cross_entropy"}
    assert step["loss"] == pytest.approx(sum(step["terms"].values()), rel=1e-5)
    assert step["gradient_norm"] > 0
    saved = checkpoint.load(run.last)
    assert saved["step"] == 6
    assert saved["config"] == {"seed": 1}
    best = max(record["validation"]["dice"] for record in records if record["kind"] == "epoch")
    assert checkpoint.load(run.best)["best"] == saved["best"] == best
    assert (checkpoint.load(run.best)["selected_on"], saved["selected_on"]) == ("validation", None)


def test_it_learns(tmp_path):
    """Eight easy phantoms without randomness are learnt almost by heart."""
    experiment = make_experiment(steps=80, dropout=0.0)
    run = Run(tmp_path)
    fit(experiment, run, console=QUIET)
    losses = [record["loss"] for record in log_of(run) if record["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_two_runs_and_a_resumed_one_are_equal_to_the_bit(tmp_path, ema):
    whole = Run(tmp_path / "whole")
    fit(make_experiment(ema=ema), whole, console=QUIET)
    again = Run(tmp_path / "again")
    fit(make_experiment(ema=ema, workers=1), again, console=QUIET)
    assert_same(weights(whole), weights(again))
    assert log_of(whole) == log_of(again)

    broken = Run(tmp_path / "broken")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(interrupted_after(make_experiment(ema=ema), 5, RuntimeError("power cut")), broken, console=QUIET)
    assert checkpoint.load(broken.last)["step"] == 4
    fit(make_experiment(ema=ema), broken, resume=True, console=QUIET)
    assert_same(weights(whole), weights(broken))
    assert log_of(whole) == log_of(broken)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """The weights of the checkpoint are from before, and the log is still JSON."""
    run = Run(tmp_path)
    with pytest.raises(Diverged, match="steps up to 4, so training is stopped") as stopped:
        fit(poisoned_from(make_experiment(), 3), run, console=QUIET)
    assert stopped.value.exit_code == 1
    assert log_of(run)[-1]["loss"] is None
    saved = checkpoint.load(run.last)
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values())


def poisoned_from(experiment, step):
    """The same experiment with NaN images from a step on."""

    def batches(start):
        for number, batch in enumerate(experiment.batches(start), start):
            yield batch if number < step else {**batch, "image": batch["image"] * torch.nan}

    return replace(experiment, batches=batches)


def interrupted_after(experiment, steps, error):
    """The same experiment, whose data end with an error after some steps."""

    def batches(start):
        for number, batch in enumerate(experiment.batches(start), start):
            if number == steps:
                raise error
            yield batch

    return replace(experiment, batches=batches)


def signalled(experiment, number):
    """The experiment with a signal before its third batch."""

    def batches(start):
        for position, batch in enumerate(experiment.batches(start), start):
            if position == 2:
                signal.raise_signal(number)
            yield batch

    return replace(experiment, batches=batches)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_finish_the_step_and_save(tmp_path, number, code):
    run = Run(tmp_path)
    with pytest.raises(Interrupted, match=r"after step 3; continue with --resume") as stopped:
        fit(signalled(make_experiment(), number), run, console=QUIET)
    assert stopped.value.exit_code == code
    assert checkpoint.load(run.last)["step"] == 3
    fit(make_experiment(), run, resume=True, console=QUIET)
    whole = Run(tmp_path / "whole")
    fit(make_experiment(), whole, console=QUIET)
    assert_same(weights(run), weights(whole))


def test_the_moving_average_is_what_is_saved(tmp_path):
    """Three steps by hand: the decay is limited to 2/11 after the first, and counters are no averages."""
    experiment = make_experiment(steps=3, ema=0.22, dropout=0.0)
    trainer = Trainer(experiment)
    averages = experiment.model.head.weight.detach().clone()
    for batch, decay in zip(experiment.batches(0), (2 / 11, 0.22, 0.22), strict=True):
        trainer.step(batch)
        averages = decay * averages + (1 - decay) * experiment.model.head.weight.detach()
    counters = [value for name, value in trainer.state()["model"].items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(value == 3 for value in counters)
    torch.testing.assert_close(trainer.state()["model"]["head.weight"], averages)
    assert not torch.equal(averages, experiment.model.head.weight)
    del tmp_path


def test_clipping_limits_the_step():
    """With plain SGD and rate 1 the weights move by exactly the clipped norm."""
    experiment = make_experiment(steps=1, dropout=0.0)
    experiment.optimizer = build_optimizer("sgd", experiment.model, {"lr": 1.0, "momentum": 0.0, "nesterov": False})
    experiment.settings = replace(experiment.settings, clip_norm=1e-3)
    before = [parameter.detach().clone() for parameter in experiment.model.parameters()]
    scalars = Trainer(experiment).step(next(iter(experiment.batches(0))))
    after = list(experiment.model.parameters())
    moved = torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm()
    assert scalars["gradient_norm"] > 1e-3
    torch.testing.assert_close(moved.detach(), torch.tensor(1e-3), rtol=1e-3, atol=0)  # float32 differences


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9}, {"precision": "bf16"}, {"channels_last": True}], ids=lambda one: "-".join(one)
)
def test_a_step_never_waits_for_the_device(settings):
    """Everything of the step but the optimiser's own work, under a mode that refuses to read tensors back."""
    experiment = make_experiment(steps=2, **settings)
    trainer = Trainer(experiment)
    batches = list(experiment.batches(0))
    trainer.step(batches[0])
    experiment.optimizer.step = lambda: None
    with NoWaiting():
        trainer.step(batches[1])


def test_the_mode_would_notice():
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(1).item()
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3)[torch.tensor([True, False, True])]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_step_runs_on_the_meta_device(ema):
    """The meta device holds no numbers, so any look at one fails."""
    experiment = make_experiment(steps=1, ema=ema)
    experiment.model.to("meta")
    experiment.loss.to("meta")
    experiment.optimizer = build_optimizer("adamw", experiment.model, {"lr": 1e-2})
    experiment.device = torch.device("meta")
    scalars = Trainer(experiment).step(next(iter(experiment.batches(0))))
    assert all(value.is_meta and value.shape == () for value in scalars.values())


def test_a_term_without_gradient_is_warned_of(tmp_path):
    """With an eps as large as this, a Dice loss hardly depends on what is predicted."""
    drowned = {"name": "dice", "eps": [0.0, 1e12]}
    run = Run(tmp_path / "run")
    fit(make_experiment(1, loss=[drowned, "cross_entropy"]), run, console=QUIET)
    (warning,) = [record["message"] for record in log_of(run) if record["kind"] == "warning"]
    assert "the gradient of dice is" in warning


def test_a_schedule_goes_on_after_a_resume(tmp_path):
    """The weights of terms at a step depend on nothing but the step."""
    terms = ["cross_entropy", {"name": "dice", "weight": {"name": "linear", "start": 0, "end": 3}}]
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    fit(make_experiment(loss=terms), whole, console=QUIET)
    with pytest.raises(Interrupted):
        fit(signalled(make_experiment(loss=terms), signal.SIGINT), parts, console=QUIET)
    fit(make_experiment(loss=terms), parts, resume=True, console=QUIET)
    assert_same(weights(whole), weights(parts))
