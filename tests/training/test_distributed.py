"""Distributed training: weights, scores and files equal those of a single process."""

import gc
import itertools
import json
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from segkit.evaluation.results import foreground_means
from segkit.evaluation.scorer import score_cases
from segkit.evaluation.scoring import Scoring
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision
from segkit.models.unet import UNet
from segkit.training import checkpoint
from segkit.training.loop import fit
from segkit.training.optimizers import build_optimizer
from segkit.training.run_folder import Run
from segkit.training.stopping import Interrupted, Limits, StopMonitor
from segkit.training.trainer import Trainer
from segkit.utils.distributed import Processes

from support.command_line import TINY, tool
from support.experiments import LABELS, QUIET, assert_same, make_experiment
from support.processes import run_ranks, run_tool_ranks

TOOL = Path(__file__).parents[2] / "tools" / "train.py"
LOSS = [{"name": "dice"}, {"name": "cross_entropy"}, {"name": "lovasz_softmax", "weight": 0.5}]
STEPS = 50


def experiment_of(processes, dtype, steps=STEPS, accumulate=1):
    """The phantoms of the other tests. The ranks share each batch, with very different numbers of ignored pixels."""
    made = make_experiment(steps=steps, accumulate=accumulate, clip_norm=1.0, validate_every=25, log_every=5)
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8, 16], norm="instance", deep_supervision=True)
    model = model.to(dtype)
    loss = DeepSupervision(build_loss(LOSS, LABELS, group=processes.group))

    def batches(start):
        for batch in made.batches(start):
            batch["mask"][0, :16] = 255
            share = processes.batch_slice(4)
            yield {
                "image": batch["image"][share].to(dtype),
                "mask": batch["mask"][share],
                "case": batch["case"][share],
            }

    def predictor(model):
        in_float64 = made.predictor(model)
        return replace(in_float64, model=InType(model, dtype))

    optimizer = build_optimizer("sgd", model, {"lr": 0.02})
    return replace(
        made, model=model, loss=loss, optimizer=optimizer, batches=batches, processes=processes, predictor=predictor
    )


class InType(torch.nn.Module):
    """A network that converts its images to its own data type."""

    def __init__(self, network, dtype):
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, image):
        return self.network(image.to(self.dtype))


def first_gradient(experiment):
    trainer = Trainer(experiment)
    trainer.train_mode()
    optimizer, seen = experiment.optimizer, []
    optimizer.register_step_pre_hook(
        lambda *_: seen.extend(parameter.grad.clone() for parameter in experiment.model.parameters())
    )
    trainer.step([next(iter(experiment.batches(0)))])
    return torch.cat([gradient.flatten() for gradient in seen])


def train_in_a_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    processes = Processes(rank, 2, rank, dist.group.WORLD)
    run = Run(Path(folder) / "run", writes=processes.is_first)
    fit(experiment_of(processes, torch.float64), run, console=QUIET)
    torch.save(first_gradient(experiment_of(processes, torch.float32)), f"{folder}/gradient{rank}.pt")
    accumulated = Run(Path(folder) / "accumulated-2", writes=processes.is_first)
    fit(experiment_of(processes, torch.float64, steps=10, accumulate=2), accumulated, console=QUIET)
    gc.collect()  # as `process_group` does
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    alone = Run(tmp_path / "alone")
    fit(experiment_of(Processes(), torch.float64), alone, console=QUIET)
    run_ranks(train_in_a_process, (str(tmp_path),), 2)
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("alone", "run"))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-8)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("alone", "run")
    ]
    scores = [[line["validation"] for line in log if line["kind"] == "epoch"] for log in logs]
    assert scores[0] == scores[1]
    assert len(two["training"]["random"]) == 2
    fit(experiment_of(Processes(), torch.float64, 10, accumulate=2), Run(tmp_path / "accumulated-1"), console=QUIET)
    ones = [checkpoint.load(tmp_path / f"accumulated-{number}" / "checkpoints" / "last.pt") for number in (1, 2)]
    for name, value in ones[0]["model"].items():
        torch.testing.assert_close(ones[1]["model"][name], value, rtol=0, atol=1e-8)
    expected = first_gradient(experiment_of(Processes(), torch.float32))
    for rank in range(2):
        gradient = torch.load(tmp_path / f"gradient{rank}.pt")
        assert (gradient - expected).norm() < 1e-5 * expected.norm()


def torchrun(*arguments, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def with_batch_norm(processes, **settings):
    """Another network for the same phantoms. Its batch norms only see the images of their own rank."""
    made = experiment_of(processes, torch.float32, steps=8)
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8, 16], deep_supervision=True)
    optimizer = build_optimizer("adamw", model, {"lr": 1e-2})
    changed = replace(made.settings, **{"ema": 0.5, "validate_every": 4} | settings)
    return replace(made, model=model, optimizer=optimizer, settings=changed)


def evaluate_in_a_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    processes = Processes(rank, 2, rank, dist.group.WORLD)
    fit(with_batch_norm(processes), Run(Path(folder) / "run", writes=processes.is_first), console=QUIET)
    # one of the two ranks receives a signal between two log lines
    StopMonitor.SECONDS = 0.05
    experiment = with_batch_norm(processes, log_every=1000)
    experiment = replace(experiment, settings=replace(experiment.settings, limits=Limits(10**6), validate_every=10**6))
    batches = list(experiment.batches(0))

    def endless(_start):
        for step in itertools.count():
            if (rank, step) == (1, 5):
                signal.raise_signal(signal.SIGTERM)
            yield batches[step % 8]

    run = Run(Path(folder) / "stopped", writes=processes.is_first)
    with pytest.raises(Interrupted) as stopped:
        fit(replace(experiment, batches=endless), run, console=QUIET)
    assert stopped.value.exit_code == 143
    traceback.clear_frames(stopped.tb)  # as `process_group` does
    gc.collect()  # as `process_group` does
    dist.destroy_process_group()


def test_scores_of_two_processes_are_those_of_the_checkpoint(tmp_path):
    """The ranks have different running statistics in their batch norms. A signal to one rank stops both."""
    run_ranks(evaluate_in_a_process, (str(tmp_path),), 2)
    run = Run(tmp_path / "run")
    experiment = with_batch_norm(Processes())
    experiment.model.load_state_dict(checkpoint.load(run.last)["model"])
    scored = score_cases(experiment.predictor(experiment.model), experiment.validation, LABELS, Scoring())
    lines = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert [line for line in lines if line["kind"] == "epoch"][-1]["validation"] == foreground_means(
        scored.cases, LABELS
    )
    assert 6 <= checkpoint.load(tmp_path / "stopped" / "checkpoints" / "last.pt")["step"] < 1000


def resume_in_a_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    processes = Processes(rank, 3, rank, dist.group.WORLD)

    def train(name, cut=None, resume=False):
        made = with_batch_norm(processes, validate_every=3)
        source = make_experiment(steps=9)

        def batches(start):
            for step, batch in enumerate(source.batches(start), start):
                if step == cut:
                    raise RuntimeError("power cut")
                yield {**batch, "image": batch["image"][[rank]], "mask": batch["mask"][[rank]], "case": ["c"]}

        settings = replace(made.settings, limits=Limits(9))
        fit(
            replace(made, batches=batches, settings=settings),
            Run(Path(folder) / name, writes=processes.is_first),
            resume=resume,
            console=QUIET,
        )

    train("whole")
    with pytest.raises(RuntimeError, match="power cut") as cut:
        train("parts", cut=5)
    traceback.clear_frames(cut.tb)
    train("parts", resume=True)
    gc.collect()  # as `process_group` does
    dist.destroy_process_group()


def test_three_processes_resume_to_the_bit(tmp_path):
    """A sum of three numbers depends on their order, which DDP changes after the first step."""
    run_ranks(resume_in_a_process, (str(tmp_path),), 3)
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 9
    assert_same(whole["training"]["model"], parts["training"]["model"])
    assert_same(whole["model"], parts["model"])


def test_torchrun_writes_one_run_and_resumes_it(tmp_path):
    """Files and output are written once, the ranks share the cases, and a single process can continue the run."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("ema: 0.8, ", ""))
    arguments = ["--config", "tiny.yaml", "model.norm=instance", "evaluation.calibration=true"]
    done = torchrun(*arguments, "run.dir=two", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder: ") == 1
    assert "in 2 processes" in done.stdout
    assert "processes" not in tool("train", *arguments, "run.dir=one", folder=tmp_path)
    tables = [pd.read_csv(tmp_path / name / "evaluation" / "test" / "cases.csv") for name in ("one", "two")]
    assert tables[0]["case"].tolist() == tables[1]["case"].tolist()
    assert tables[0]["reference"].tolist() == tables[1]["reference"].tolist()
    assert (tmp_path / "two" / "evaluation" / "test" / "overlays.png").exists()
    steps = [len((tmp_path / name / "log.jsonl").read_text().splitlines()) for name in ("one", "two")]
    assert steps[0] == steps[1]
    for refused in ("train.steps=7", "loader.batch=3"):
        printed = run_tool_ranks("train", *arguments, "run.dir=two", refused, folder=tmp_path)
        errors = [line for line in printed.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, printed.stderr
        assert printed.exit_codes == [2, 2]
        assert "Traceback" not in printed.stderr
    again = run_tool_ranks("train", *arguments, "run.dir=two", folder=tmp_path)
    assert again.exit_codes == [0, 0], again.stderr[-3000:]
    assert "holds the finished run" in " ".join(again.stdout.split())


def test_a_batch_that_cannot_be_divided_evenly():
    with pytest.raises(ValueError, match="a multiple of the 2 processes, got 3"):
        Processes(0, 2).batch_slice(3)
