"""Training by several processes: the weights, the scores and the files of one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_tools import TINY
from test_train import LABELS, QUIET, make_experiment

from segkit import checkpoint
from segkit.losses import build_loss
from segkit.losses.supervision import DeepSupervision
from segkit.models.unet import UNet
from segkit.optimizers import build_optimizer
from segkit.processes import Processes
from segkit.runs import Run
from segkit.train import fit
from segkit.trainer import Trainer

TOOL = Path(__file__).parent.parent / "tools" / "train.py"
LOSS = [{"name": "dice"}, {"name": "cross_entropy"}, {"name": "lovasz_softmax", "weight": 0.5}]
STEPS = 50


def experiment_of(processes, dtype, steps=STEPS, accumulate=1):
    """The phantoms of the other tests, a share of each batch a process, with very unequal numbers of ignored pixels."""
    made = make_experiment(steps=steps, accumulate=accumulate, clip_norm=1.0, validate_every=25, log_every=5)
    torch.manual_seed(0)
    model = UNet(in_channels=1, out_channels=3, dims=2, widths=[4, 8, 16], norm="instance", deep_supervision=True)
    model = model.to(dtype)
    loss = DeepSupervision(build_loss(LOSS, LABELS, group=processes.group))

    def batches(start):
        for batch in made.batches(start):
            batch["mask"][0, :16] = 255
            share = processes.share(4)
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
    """A network that gets its images in its own type."""

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
    run = Run(Path(folder) / "run", writes=processes.first)
    fit(experiment_of(processes, torch.float64), run, console=QUIET)
    torch.save(first_gradient(experiment_of(processes, torch.float32)), f"{folder}/gradient{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_what_one_trains(tmp_path):
    alone = Run(tmp_path / "alone")
    fit(experiment_of(Processes(), torch.float64), alone, console=QUIET)
    mp.spawn(train_in_a_process, (str(tmp_path),), nprocs=2)  # pyright: ignore
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
    expected = first_gradient(experiment_of(Processes(), torch.float32))
    for rank in range(2):
        gradient = torch.load(tmp_path / f"gradient{rank}.pt")
        assert (gradient - expected).norm() < 1e-5 * expected.norm()


def torchrun(*arguments, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_torchrun_writes_one_run_and_resumes_it(tmp_path):
    """Of the files and the output there is one, the cases are shared, and a run can be continued alone."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("ema: 0.8, ", ""))
    arguments = ["--config", "tiny.yaml", "model.norm=instance", "evaluation.calibration=true"]
    done = torchrun(*arguments, "run.dir=two", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder: ") == 1
    assert "in 2 processes" in done.stdout
    alone = subprocess.run(
        [sys.executable, str(TOOL), *arguments, "run.dir=one"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "processes" not in alone.stdout
    tables = [pd.read_csv(tmp_path / name / "evaluation" / "test" / "cases.csv") for name in ("one", "two")]
    assert tables[0]["case"].tolist() == tables[1]["case"].tolist()
    assert tables[0]["reference"].tolist() == tables[1]["reference"].tolist()
    assert (tmp_path / "two" / "evaluation" / "test" / "overlays.png").exists()
    steps = [len((tmp_path / name / "log.jsonl").read_text().splitlines()) for name in ("one", "two")]
    assert steps[0] == steps[1]
    again = torchrun(*arguments, "run.dir=two", folder=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "holds the finished run" in " ".join(again.stdout.split())


def test_a_batch_that_cannot_be_shared_evenly():
    with pytest.raises(ValueError, match="a multiple of the 2 processes, got 3"):
        Processes(0, 2).share(3)
