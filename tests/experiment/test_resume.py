"""Whether a run is finished, and what a change of its length means."""

import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from segkit.experiment.build import load_config
from segkit.experiment.runner import run_experiment
from segkit.experiment.trained_model import load_trained
from segkit.training import checkpoint, precision
from segkit.training.checkpoint import CheckpointError
from segkit.training.run_folder import Run
from segkit.utils.errors import RunError

from support.faults.checkpoints import TINY

LENGTH = ["train.steps=8", "schedule.name=poly", "optimizer={name: adamw, lr: 0.01}"]


def train(folder, *overrides, resume=False, allow=()):
    """Train into a folder; the scores, and what was printed."""
    printed = io.StringIO()
    config = load_config(TINY, [*LENGTH, *overrides])
    scores = run_experiment(
        config, Run(folder), resume=resume, allow=allow, console=Console(file=printed, width=200, color_system=None)
    )
    return scores, printed.getvalue()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed after four of its eight steps."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    train(folder, "train.max_steps=4")
    run = Run(folder)
    content = torch.load(run.last, weights_only=True)
    whole = load_config(TINY, LENGTH)
    content |= {"config": whole.to_dict(), "resolved": whole.to_dict(), "finished": None}
    checkpoint.save(run.last, content)
    shutil.rmtree(folder / "evaluation")
    return folder


@pytest.fixture
def run(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "run")


def test_scores_of_a_run_that_was_cut_short_once_do_not_finish_it(run):
    """`--allow train.max_steps` evaluates the run as it is; afterwards the first command goes on."""
    scores, printed = train(run, "train.max_steps=3", resume=True, allow=["train.max_steps"])
    assert (scores["step"], scores["finished"]) == (4, "max_steps")
    assert "continued with changes: train.max_steps" in printed
    with pytest.raises(RunError, match="--resume"):
        train(run)
    scores, printed = train(run, resume=True)
    assert (scores["step"], scores["finished"]) == (8, "steps")
    assert "not trained again" not in printed
    scores, printed = train(run)
    assert scores["step"] == 8
    assert "not trained again" in printed


def test_a_run_that_was_to_be_short_is_finished(tmp_path):
    train(tmp_path / "run", "train.max_steps=2")
    scores, printed = train(tmp_path / "run", "train.max_steps=2")
    assert (scores["step"], scores["finished"]) == (2, "max_steps")
    assert "not trained again" in printed
    with pytest.raises(RunError, match=r"train\.max_steps: 2 in the run, None now"):
        train(tmp_path / "run", resume=True)


def test_another_length_says_how_the_learning_rate_jumps(run):
    """poly: 0.01 (1 - 3/8)^0.9 = 0.00655 in the last step; in a run of 80 steps it would have been 0.00966."""
    _, printed = train(run, "train.steps=80", "train.max_steps=5", resume=True, allow=["train"])
    line = re.search(r"learning rate at step 4: (\S+) -> (\S+) \(length of the schedule: 8 -> 80 steps\)", printed)
    assert line is not None
    assert float(line[1]) == pytest.approx(0.01 * (1 - 3 / 8) ** 0.9, rel=1e-2)
    assert float(line[2]) == pytest.approx(0.01 * (1 - 3 / 80) ** 0.9, rel=1e-2)


def test_nothing_is_said_of_a_learning_rate_that_stays(run):
    _, printed = train(run, resume=True)
    assert "learning rate" not in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("training"), r"has no training"),
        (lambda content: content.pop("config"), r"has no config"),
        (lambda content: content["training"]["model"].popitem(), r"training\.model .* missing: head\.bias"),
        (lambda content: content["training"]["optimizer"].update(param_groups=[{}]), r"param_groups"),
        (lambda content: content["training"]["model"]["head.bias"].fill_(torch.nan), r"finite .*head\.bias"),
        (lambda content: content["config"].update(loss="x"), r"loss"),
    ],
)
def test_a_damaged_checkpoint_is_not_continued(run, change, message):
    content = torch.load(Run(run).last, weights_only=True)
    change(content)
    torch.save(content, Run(run).last)
    with pytest.raises(ValueError, match=message) as error:
        train(run, resume=True)
    assert str(Run(run).last) in str(error.value)
    assert error.value.exit_code == 2


def test_weights_that_are_not_finite_are_not_evaluated(run):
    content = torch.load(Run(run).last, weights_only=True)
    content["model"]["head.weight"][0, 0] = torch.nan
    torch.save(content, Run(run).last)
    with pytest.raises(CheckpointError, match=r"last\.pt: expected finite weights in model, .*head\.weight \(1 of "):
        load_trained(Run(run).last)


def test_a_network_of_any_size_costs_nothing(run):
    """The configuration asks for networks that the weights in the file do not fit."""
    for option, value, message in (
        ("widths", [2, 3000], "do not fit the network"),
        ("widths", [2, 60_000], "do not fit the network"),
        ("widths", [-1, 2], "model.widths"),
        ("encoder_convs", 1_000_000_000, "model.encoder_convs"),
        ("widths", [2, 10**15], "model.widths"),
    ):
        content = torch.load(Run(run).last, weights_only=True)
        content["config"]["model"][option] = value
        torch.save(content, run / "changed.pt")
        with pytest.raises(ValueError, match=message) as error:
            load_trained(run / "changed.pt")
        assert "changed.pt" in str(error.value)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs the list of instructions that Linux gives")
def test_the_instructions_of_the_processor_are_those_that_linux_lists():
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    assert precision._cpu_has_bf16() == (not flags.isdisjoint({"avx512_bf16", "amx_bf16"}))


@pytest.mark.parametrize("capabilities", [{"avx512_f": True, "avx512_bf16": False}, {}, None])
def test_bfloat16_is_not_chosen_where_it_is_emulated(monkeypatch, capabilities):
    """AVX-512 alone, another kind of processor, and a version of torch that does not tell."""
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.chosen_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("recorded", ["bf16", "fp32"])
def test_automatic_precision_is_that_of_the_hardware_and_a_run_keeps_its_own(tmp_path, monkeypatch, recorded):
    """A run that was begun where the processor has bfloat16, or has not, and is continued where it is otherwise."""
    other = "fp32" if recorded == "bf16" else "bf16"
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: recorded == "bf16")
    automatic = "train.precision=auto"
    _, printed = train(tmp_path / "run", automatic)
    assert f"train.precision: auto is {recorded} on this device" in printed
    train(tmp_path / "same", f"train.precision={recorded}")
    first, second = (torch.load(Run(tmp_path / name).last, weights_only=True) for name in ("run", "same"))
    assert all(torch.equal(first["model"][name], value) for name, value in second["model"].items())
    assert (first["config"]["train"]["precision"], first["resolved"]["train"]["precision"]) == ("auto", recorded)
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: recorded != "bf16")
    with pytest.raises(RunError, match=f"train.precision: '{recorded}' in the run, '{other}' now"):
        train(tmp_path / "run", automatic, resume=True)
