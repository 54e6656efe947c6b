"""The training loop on small synthetic data: files, learning, resuming, stopping, no host synchronisation."""

import json
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from segkit.data.sampling import BatchSampler, steps_per_epoch
from segkit.evaluation.scorer import score_cases
from segkit.losses.deep_supervision import DeepSupervision
from segkit.models.unet import UNet
from segkit.training import checkpoint
from segkit.training.compile import Compiled
from segkit.training.init_weights import load_weights
from segkit.training.loop import fit
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import build_optimizer, freeze
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Run
from segkit.training.step_logger import Meter
from segkit.training.stopping import Diverged, Interrupted, Limits
from segkit.training.trainer import Trainer

from support.experiments import CPU, QUIET, assert_same, make_experiment
from support.synchronisation import NoWaiting


def log_of(run):
    """The log without the fields that may differ between identical runs."""
    records = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def weights(run):
    return checkpoint.load(run.last)["model"]


def test_contents_of_the_run_folder(tmp_path):
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


def test_training_reduces_the_loss(tmp_path):
    """Eight easy phantoms are almost memorised without dropout."""
    experiment = make_experiment(steps=80, dropout=0.0)
    run = Run(tmp_path)
    fit(experiment, run, console=QUIET)
    losses = [record["loss"] for record in log_of(run) if record["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_repeated_and_resumed_runs_are_identical(tmp_path, ema):
    whole = Run(tmp_path / "whole")
    fit(make_experiment(ema=ema), whole, console=QUIET)
    again = Run(tmp_path / "again")
    fit(make_experiment(ema=ema, workers=1), again, console=QUIET)
    assert_same(weights(whole), weights(again))
    assert log_of(whole) == log_of(again)

    broken = Run(tmp_path / "broken")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(interrupted_after(make_experiment(ema=ema), 5, RuntimeError("power cut")), broken, console=QUIET)
    assert checkpoint.load(broken.last)["step"] == 5
    fit(make_experiment(ema=ema), broken, resume=True, console=QUIET)
    assert_same(weights(whole), weights(broken))
    assert log_of(whole) == log_of(broken)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_nonfinite_steps_change_nothing(tmp_path, ema):
    """After two batches with NaN, network, optimiser, running statistics and moving average are as without them."""
    run, experiment = Run(tmp_path / "run"), make_experiment(steps=4, dropout=0.0, ema=ema)
    fit(poisoned_at(experiment, {1, 2}), run, console=QUIET)
    other = make_experiment(steps=4, dropout=0.0, ema=ema)
    trainer, batches = Trainer(other), list(other.batches(0))
    trainer.train_mode()
    for number in (0, 3):
        trainer.step_number = number
        trainer.step([batches[number]])
    assert_same(trainer.model.state_dict(), checkpoint.load(run.last)["training"]["model"])
    assert_same(trainer.evaluated_model.state_dict(), checkpoint.load(run.last)["model"])
    first, second = [record for record in log_of(run) if record["kind"] == "step"]
    assert first["skipped"]["steps"] == second["skipped"]["steps"] == 1
    assert first["skipped"]["cases"] == batches[1]["case"]
    assert first["loss"] > 0


def test_too_many_nonfinite_steps_stop_the_run(tmp_path):
    """The weights in the checkpoint are finite, and the log is valid JSON."""
    run = Run(tmp_path)
    with pytest.raises(Diverged, match=r"not finite for 2 .*step 4 \(cases train_.* and 2 more\)") as stopped:
        fit(poisoned_at(make_experiment(nonfinite=2), {2, 3, 4, 5}), run, console=QUIET)
    assert stopped.value.exit_code == 1
    assert log_of(run)[-1]["loss"] is None
    saved = checkpoint.load(run.last)
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_gradient_scaler_and_norms_skip_the_same_steps():
    """Nothing changes as long as the scale overflows in the gradients; the scale is lowered until it does not."""
    experiment = make_experiment(steps=1, dropout=0.0)
    experiment.settings = replace(experiment.settings, precision="fp16")
    experiment.schedule = lambda _step: 1.0
    trainer, (batch,) = Trainer(experiment), experiment.batches(0)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    broken = []
    while not broken or broken[-1]:
        assert_same(trainer.model.state_dict(), before)
        broken.append(bool(trainer.step([batch])["broken"]))
    assert len(broken) > 1
    assert trainer.scaler.get_scale() == 2.0 ** (40 - sum(broken))
    assert not torch.equal(trainer.model.head.weight, before["head.weight"])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimizer_can_skip_the_first_step(name):
    """In the first step, some of PyTorch's buffers do not exist yet."""
    once, twice = make_experiment(steps=2, dropout=0.0), make_experiment(steps=2, dropout=0.0)
    batches = list(once.batches(0))
    poisoned = {**batches[0], "image": batches[0]["image"] * torch.nan}
    for experiment, given in ((once, [batches[1]]), (twice, [poisoned, batches[1]])):
        experiment.optimizer = build_optimizer(name, experiment.model, {"lr": 1e-2})
        experiment.schedule = lambda _step: 1.0
        trainer = Trainer(experiment)
        for batch in given:
            trainer.step([batch])
    assert_same(once.model.state_dict(), twice.model.state_dict())


def poisoned_at(experiment, steps):
    """The experiment with NaN images in the given steps."""

    def batches(start):
        for number, batch in enumerate(experiment.batches(start), start):
            yield {**batch, "image": batch["image"] * torch.nan} if number in steps else batch

    return replace(experiment, batches=batches)


def interrupted_after(experiment, steps, error):
    """The experiment with a data loader that raises an error after the given number of steps."""

    def batches(start):
        for number, batch in enumerate(experiment.batches(start), start):
            if number == steps:
                raise error
            yield batch

    return replace(experiment, batches=batches)


def signalled(experiment, number, before=2):
    """The experiment with a signal before the batch of the given index."""

    def batches(start):
        for position, batch in enumerate(experiment.batches(start), start):
            if position == before:
                signal.raise_signal(number)
            yield batch

    return replace(experiment, batches=batches)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, code):
    run = Run(tmp_path)
    with pytest.raises(Interrupted, match=r"after step 3; .*--resume") as stopped:
        fit(signalled(make_experiment(), number), run, console=QUIET)
    assert stopped.value.exit_code == code
    assert checkpoint.load(run.last)["step"] == 3
    fit(make_experiment(), run, resume=True, console=QUIET)
    whole = Run(tmp_path / "whole")
    fit(make_experiment(), whole, console=QUIET)
    assert_same(weights(run), weights(whole))


def test_a_signal_in_the_last_step_is_not_lost(tmp_path):
    """The process ends by the signal even though the training is finished as well."""
    run = Run(tmp_path)
    with pytest.raises(Interrupted, match="after step 6"):
        fit(signalled(make_experiment(), signal.SIGTERM, before=5), run, console=QUIET)
    assert checkpoint.load(run.last)["finished"] == "steps"
    assert fit(make_experiment(), run, resume=True, console=QUIET).step_number == 6


@pytest.mark.parametrize("validation", [2, 3])
def test_a_signal_during_validation_ends_the_run_after_it(tmp_path, validation, monkeypatch):
    """This includes the last validation, which no further step follows."""
    seen = []

    def signal_in_between(*arguments, **options):
        seen.append(1)
        if len(seen) == validation:
            signal.raise_signal(signal.SIGTERM)
        return score_cases(*arguments, **options)

    monkeypatch.setattr("segkit.training.loop.score_cases", signal_in_between)
    with pytest.raises(Interrupted, match=f"after step {2 * validation}"):
        fit(make_experiment(), Run(tmp_path), console=QUIET)


def test_a_folder_without_last_checkpoint_starts_a_new_run(tmp_path):
    """No file of the earlier run is mistaken for one of the new run."""
    run = Run(tmp_path)
    fit(make_experiment(steps=6, keep_every=1), run, console=QUIET)
    (run.evaluation("test")).mkdir(parents=True)
    (run.evaluation("test") / "scores.json").write_text("{}")
    run.last.unlink()
    cut = interrupted_after(make_experiment(keep_every=1), 1, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="cut"):
        fit(cut, Run(tmp_path), console=QUIET)
    assert sorted(file.name for file in run.last.parent.iterdir()) == ["last.pt", "step-00000001.pt"]
    assert not run.evaluation("test").exists()


def test_the_moving_average_is_saved(tmp_path):
    """Three steps by hand: the first decay is limited to 2/11, and integer buffers are not averaged."""
    experiment = make_experiment(steps=3, ema=0.22, dropout=0.0)
    trainer = Trainer(experiment)
    averages = experiment.model.head.weight.detach().clone()
    for batch, decay in zip(experiment.batches(0), (2 / 11, 0.22, 0.22), strict=True):
        trainer.step([batch])
        averages = decay * averages + (1 - decay) * experiment.model.head.weight.detach()
    counters = [value for name, value in trainer.state()["model"].items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(value == 3 for value in counters)
    torch.testing.assert_close(trainer.state()["model"]["head.weight"], averages)
    assert not torch.equal(averages, experiment.model.head.weight)
    del tmp_path


def test_clipping_limits_the_step():
    """With plain SGD and learning rate 1, the weights change by exactly the clipped norm."""
    experiment = make_experiment(steps=1, dropout=0.0)
    experiment.optimizer = build_optimizer("sgd", experiment.model, {"lr": 1.0, "momentum": 0.0, "nesterov": False})
    experiment.settings = replace(experiment.settings, clip_norm=1e-3)
    before = [parameter.detach().clone() for parameter in experiment.model.parameters()]
    scalars = Trainer(experiment).step([next(iter(experiment.batches(0)))])
    after = list(experiment.model.parameters())
    moved = torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm()
    assert scalars["gradient_norm"] > 1e-3
    torch.testing.assert_close(moved.detach(), torch.tensor(1e-3), rtol=1e-3, atol=0)  # float32 differences


SETTINGS = [{}, {"ema": 0.9}, {"precision": "bf16"}, {"channels_last": True}]
MAPS = {"loss": [{"name": "cldice", "iterations": 2}, "boundary", "component_dice", "border_cross_entropy"]}


@pytest.mark.parametrize("settings", [*SETTINGS, MAPS], ids=lambda one: "-".join(one))
def test_a_step_never_waits_for_the_device(settings):
    """The whole step except for the optimiser, under a mode that refuses to read tensors back."""
    experiment = make_experiment(steps=2, **settings)
    trainer = Trainer(experiment)
    batches = list(experiment.batches(0))
    trainer.step([batches[0]])
    experiment.optimizer.step = lambda: None
    with NoWaiting():
        trainer.step([batches[1]])


def test_no_waiting_mode_detects_synchronisation():
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(1).item()
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3)[torch.tensor([True, False, True])]


class FlaggedAdamW(torch.optim.AdamW):
    """Takes the flag of fused optimisers, but has no fused kernel."""

    def step(self, closure=None):
        assert self.found_inf.is_meta
        del self.found_inf
        return super().step(closure)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_step_runs_on_the_meta_device(ema):
    """The meta device holds no values, so reading one fails. PyTorch's fused kernels are replaced, because they do not
    run on this device."""
    experiment = make_experiment(steps=1, ema=ema)
    experiment.model.to("meta")
    experiment.loss.to("meta")
    experiment.optimizer = FlaggedAdamW(experiment.model.parameters(), lr=1e-2)
    experiment.device = torch.device("meta")
    trainer = Trainer(experiment)
    trainer.skips_by_flag = True
    scalars = trainer.step([next(iter(experiment.batches(0)))])
    assert all(value.is_meta and value.shape == () for value in scalars.values())


def test_warning_about_a_term_without_gradient(tmp_path):
    """With a very large eps, a Dice loss hardly depends on the prediction."""
    constant = {"name": "dice", "eps": [0.0, 1e12]}
    run = Run(tmp_path / "run")
    fit(make_experiment(1, loss=[constant, "cross_entropy"]), run, console=QUIET)
    (warning,) = [record["message"] for record in log_of(run) if record["kind"] == "warning"]
    assert warning.startswith("dice contributes no gradient")


def test_weight_schedules_continue_after_a_resume(tmp_path):
    """The term weights depend on the step only."""
    terms = ["cross_entropy", {"name": "dice", "weight": {"name": "linear", "start": 0, "end": 3}}]
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    fit(make_experiment(loss=terms), whole, console=QUIET)
    with pytest.raises(Interrupted):
        fit(signalled(make_experiment(loss=terms), signal.SIGINT), parts, console=QUIET)
    fit(make_experiment(loss=terms), parts, resume=True, console=QUIET)
    assert_same(weights(whole), weights(parts))


@pytest.mark.parametrize("deep", [False, True])
def test_micro_batches_equal_one_large_batch(deep):
    """Two micro-batches of two images equal one batch of four, with different numbers of valid pixels."""
    loss = [{"name": "dice", "per": "image"}, "cross_entropy"]
    results = []
    for parts in (1, 2):
        experiment = make_experiment(steps=1, loss=loss)
        torch.manual_seed(0)
        experiment.model = UNet(
            in_channels=1, out_channels=3, dims=2, widths=[8, 16, 32], norm="instance", deep_supervision=deep
        ).double()
        experiment.loss = DeepSupervision(experiment.loss) if deep else experiment.loss
        experiment.optimizer = build_optimizer("sgd", experiment.model, {"lr": 0.1})
        whole = next(iter(experiment.batches(0)))
        whole["mask"][0, :20] = 255
        pieces = [
            {"image": whole["image"][part].double(), "mask": whole["mask"][part], "case": whole["case"][part]}
            for part in (slice(0, 4 // parts), slice(4 // parts, 4))[:parts]
        ]
        scalars = Trainer(experiment).step(pieces)
        results.append((scalars["loss"], [*experiment.model.parameters()]))
    (loss_whole, weights_whole), (loss_parts, weights_parts) = results
    torch.testing.assert_close(loss_whole, loss_parts)
    for whole, parts in zip(weights_whole, weights_parts, strict=True):
        torch.testing.assert_close(whole, parts)


def test_accumulated_batches_are_consecutive_samples():
    keys = list(BatchSampler(8, 2, 3, seed=1, accumulate=2))
    assert keys == list(BatchSampler(8, 2, 6, seed=1))
    assert steps_per_epoch(8, 2, 2) == 2
    shares = [list(BatchSampler(8, 4, 3, seed=1, share=part)) for part in (slice(0, 2), slice(2, 4))]
    joined = [first + second for first, second in zip(*shares, strict=True)]
    assert joined == list(BatchSampler(8, 4, 3, seed=1))


@pytest.mark.parametrize(
    ("limits", "ended", "step"),
    [
        (Limits(6), "steps", 6),
        (Limits(6, max_steps=3), "max_steps", 3),
        (Limits(6, max_minutes=1e-9), "max_minutes", 1),
        (Limits(100, patience=4), "patience", None),
    ],
)
def test_limits_end_the_training(tmp_path, limits, ended, step):
    run = Run(tmp_path)
    trainer = fit(make_experiment(steps=limits.steps, limits=limits, lr=0.0), run, console=QUIET)
    saved = checkpoint.load(run.last)
    assert saved["finished"] == trainer.finished == ended
    # with learning rate 0, the first validation remains the best
    assert saved["step"] == (6 if ended == "patience" else step)
    again = fit(make_experiment(steps=limits.steps, limits=limits, lr=0.0), run, resume=True, console=QUIET)
    assert (again.step_number, again.finished) == (saved["step"], ended)


def test_numbered_checkpoints_are_pruned(tmp_path):
    run = Run(tmp_path)
    fit(make_experiment(steps=6, keep_every=1, keep=2, validate_every=3), run, console=QUIET)
    numbered = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert numbered == ["step-00000005.pt", "step-00000006.pt"]
    assert checkpoint.load(run.numbered(5))["step"] == 5


@pytest.mark.parametrize(("metric", "best"), [("iou", max), ("hd95_from_reference", min), ("generalized_dice", max)])
def test_the_best_checkpoint_has_the_best_score(metric, best, tmp_path):
    run = Run(tmp_path)
    fit(make_experiment(steps=6, best=metric), run, console=QUIET)
    records = [record for record in log_of(run) if record["kind"] == "epoch"]
    scores = [record["validation"][metric] for record in records]
    assert len(set(scores)) > 1
    saved = checkpoint.load(run.best)
    assert saved["best"] == best(scores)
    assert saved["step"] == records[scores.index(best(scores))]["step"]
    assert list(records[0]["validation"]) == list(dict.fromkeys(["dice", "iou", metric]))


def test_a_plateau_follows_a_score_of_which_less_is_better(tmp_path):
    run = Run(tmp_path)
    made = make_experiment(steps=6, best="hd95", lr=1e-2)
    plateau = SCHEDULES["plateau"](steps=6, steps_per_epoch=2)
    fit(replace(made, schedule=plateau), run, console=QUIET)
    scores = [record["validation"]["hd95"] for record in log_of(run) if record["kind"] == "epoch"]
    assert plateau.state["best"] == -min(scores)


def test_plateau_lowers_the_learning_rate_and_resumes(tmp_path):
    def experiment():
        made = make_experiment(steps=8, lr=0.0)
        return replace(
            made, schedule=SCHEDULES["plateau"](steps=8, steps_per_epoch=2, patience={"steps": 2}, factor=0.5)
        )

    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    fit(experiment(), whole, console=QUIET)
    with pytest.raises(RuntimeError, match="cut"):
        fit(interrupted_after(experiment(), 5, RuntimeError("power cut")), broken, console=QUIET)
    fit(experiment(), broken, resume=True, console=QUIET)
    assert checkpoint.load(whole.last)["training"]["schedule"] == checkpoint.load(broken.last)["training"]["schedule"]
    # the first validation remains the best, and each later one halves the learning rate
    assert checkpoint.load(whole.last)["training"]["schedule"]["current"] == 0.125


def test_loading_weights_of_another_network(tmp_path):
    """Matching weights are loaded; the others are reported by name and shape."""
    torch.manual_seed(1)
    other = UNet(in_channels=1, out_channels=5, dims=2, widths=[8, 16, 32])
    torch.save({"module." + name: value for name, value in other.state_dict().items()}, tmp_path / "other.pth")
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[8, 16, 32], deep_supervision=True)
    loaded = load_weights(model, tmp_path / "other.pth", out_channels=3)
    assert loaded.mismatched == {"head.weight": ([5, 8, 1, 1], [3, 8, 1, 1]), "head.bias": ([5], [3])}
    assert set(loaded.missing) == {"coarser_heads.0.weight", "coarser_heads.0.bias"}
    assert torch.equal(model.encoder[0].layers[0].weight, other.encoder[0].layers[0].weight)
    assert "the head is new: 5 classes in the file, 3 here" in " ".join(loaded.describe(tmp_path))
    assert ("head", "0 of 2", "", "2", "weight [5, 8, 1, 1], here [3, 8, 1, 1]") in [row.cells for row in loaded.rows()]
    wrapped = {f"net._orig_mod.{name}": value for name, value in other.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.ckpt")
    assert load_weights(model, tmp_path / "wrapped.ckpt").mismatched == loaded.mismatched
    torch.save({"strange": torch.ones(1)}, tmp_path / "strange.pth")
    with pytest.raises(checkpoint.CheckpointError, match=r"no weight in .*strange"):
        load_weights(model, tmp_path / "strange.pth")


def test_frozen_parameters_do_not_change(tmp_path):
    experiment = make_experiment(steps=3)
    freeze(experiment.model, ["encoder.*"])
    experiment.optimizer = build_optimizer("adamw", experiment.model, {"lr": 1e-2})
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    fit(experiment, Run(tmp_path), console=QUIET)
    for name, value in experiment.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
    with pytest.raises(ValueError, match=r"freeze: .*'encodr.\*'; .* encoder.\*, upsample"):
        freeze(experiment.model, ["encodr.*"])
    with pytest.raises(ValueError, match=r"freeze: \* leaves no trainable parameter"):
        freeze(experiment.model, ["*"])


def test_profile_of_training_steps(tmp_path):
    run, profiler = Run(tmp_path), Profiler(2, CPU, warm_up=1)
    fit(make_experiment(steps=5), run, console=QUIET, profiler=profiler)
    parts = json.loads((tmp_path / "profile" / "steps.json").read_text())["seconds"]
    assert list(parts) == ["data", "forward", "loss", "backward", "optimiser"]
    assert all(seconds > 0 for seconds in parts.values())
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert {"forward", "backward", "optimiser"} <= {event.get("name") for event in events}


def test_profile_of_a_run_that_ends_early(tmp_path):
    """It covers the measured steps; if there are none, a warning says so."""
    short = Run(tmp_path / "short")
    fit(make_experiment(steps=3), short, console=QUIET, profiler=Profiler(20, CPU, warm_up=1))
    assert json.loads((short.folder / "profile" / "steps.json").read_text())["steps"] == 2
    with pytest.warns(UserWarning, match=r"train.profile: no step was measured.* 2 steps .* 3 steps"):
        fit(make_experiment(steps=2), Run(tmp_path / "none"), console=QUIET, profiler=Profiler(1, CPU))


def test_time_per_step_excludes_validation(monkeypatch):
    """Four steps of one second each, two of them before a resume, and a validation of 100 seconds."""
    now = [0.0]
    monkeypatch.setattr("segkit.training.step_logger.time.perf_counter", lambda: now[0])
    meter = Meter(4, 10, CPU)
    scalars = {"loss": torch.ones(()), "broken": torch.zeros(())}

    def record(step):
        now[0] += 1
        return meter.record(scalars, ["a", "b"], {"step": step}, due=False)

    meter.start()
    assert record(1) is record(2) is None
    resumed = Meter(4, 10, CPU)
    resumed.load_state(meter.state())
    meter = resumed
    meter.start()
    assert record(3) is None
    with meter.paused():
        now[0] += 100
    line = record(4)
    assert line["time"]["images_per_second"] == 2
    assert line["time"]["seconds_left"] == 6


def test_a_network_that_cannot_be_compiled_runs_without_compilation():
    network = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8])
    compiled = Compiled(network)

    def fails(_image):
        raise RuntimeError("no compiler here")

    compiled.calls = [fails]
    image = torch.randn(2, 1, 8, 8)
    with pytest.warns(UserWarning, match=r"train.compile: .*\(RuntimeError: no compiler here\)"):
        logits = compiled(image)
    torch.testing.assert_close(logits, network(image))
    compiled.calls = [lambda image: network(image) if image.shape[-1] == 8 else fails(image)]
    compiled(image)
    with pytest.warns(UserWarning, match="no compiler here"):  # for a second shape
        assert compiled(torch.randn(2, 1, 16, 16)).shape[-1] == 16
    assert set(compiled.network.state_dict()) == set(network.state_dict())


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_like_the_plain_one(tmp_path, monkeypatch, backend):
    """Without inductor the graphs are the same, but not turned into code, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = (make_experiment(steps=2) for _ in range(2))
    for experiment in (plain, compiled):
        torch.manual_seed(0)
        experiment.model = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8])  # 5 s per resolution
    compiled = replace(compiled, network=Compiled(compiled.model))
    for number, experiment in enumerate((plain, compiled)):
        experiment.optimizer = build_optimizer("sgd", experiment.model, {"lr": 1e-2})
        fit(experiment, Run(tmp_path / str(number)), console=QUIET)
    for expected, parameter in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(expected, parameter, rtol=1e-3, atol=1e-4)  # the kernels differ


def test_deep_supervision_has_a_head_for_each_resolution():
    network = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8, 16, 32], deep_supervision=True)
    heads = network(torch.randn(2, 1, 32, 32))
    assert [tuple(head.shape[2:]) for head in heads] == [(32, 32), (16, 16), (8, 8)]
    assert network.head_strides == ((1, 1), (2, 2), (4, 4))
    assert network.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)


# losses of a fixed experiment on one machine; other processors sum in another order and differ in the last digits
GOLDEN = [1.85852, 1.7725, 1.64466, 1.6754, 1.59527]


def test_golden_losses_of_five_steps(tmp_path):
    run = Run(tmp_path)
    fit(make_experiment(steps=5, dropout=0.0, log_every=1), run, console=QUIET)
    losses = [record["loss"] for record in log_of(run) if record["kind"] == "step"]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)


def test_a_run_stopped_between_two_log_lines_writes_the_same_next_line(tmp_path):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    settings = {"log_every": 4, "validate_every": 6, "gradients_every": 3}
    fit(make_experiment(**settings), whole, console=QUIET)
    with pytest.raises(Interrupted):
        fit(signalled(make_experiment(**settings), signal.SIGTERM), parts, console=QUIET)
    assert checkpoint.load(parts.last)["step"] == 3
    fit(make_experiment(**settings), parts, resume=True, console=QUIET)
    assert log_of(whole) == log_of(parts)
