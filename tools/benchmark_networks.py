"""Networks trained for equal minutes on hippocampus: python tools/benchmark.py networks.

Which network is best depends on the time that it is given: a network with cheap steps makes more of them. Each is
trained with three seeds, one training at a time, and evaluated on the 40 held-out cases of the shipped configuration.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_tables import Sheet, write_page

from segkit.training.checkpoint import load

CONFIG = Path(__file__).parents[1] / "configs" / "hippocampus.yaml"
SEEDS = (0, 1, 2)
ABOUT = """\
Which network is best depends on the time that it is given: a network with cheap steps makes more of them. All else is
that of `configs/hippocampus.yaml`: 160 training volumes, 40 held-out cases. The learning rate reaches its end with the
last step; where that would take longer than the minutes, the training ends earlier. The seeds of a network differ by as
much as some networks do.\
"""


@dataclass(frozen=True)
class Network:
    """A network with its settings and the number of steps that three minutes on two cores allow."""

    name: str
    model: dict[str, Any]
    precision: str
    steps: int


UNET = {"name": "unet", "widths": [12, 24, 48, 96], "norm": "instance", "residual": True}
DYNUNET = {"name": "monai_dynunet", "widths": [12, 24, 48, 96], "norm": "instance", "deep_supervision": True}
NETWORKS = (
    Network("`unet`, widths 12 to 96, residual", UNET, "auto", 790),
    Network("`monai_dynunet`, widths 12 to 96, deep supervision", DYNUNET, "auto", 897),
    Network("`monai_segresnet`, width 8", {"name": "monai_segresnet", "width": 8}, "fp32", 780),
    Network("`unet`, widths 12 to 96, residual", UNET, "fp32", 500),
)


def benchmark_networks(data: Path, minutes: float, page: Path | None) -> None:
    """Train all networks, print the table and write the page.

    Args:
        data: Folder of the data sets.
        minutes: Time of each training.
        page: The Markdown file; None only prints.
    """
    os.environ["SEGKIT_DATA"] = str(data)
    sheets = (make(minutes) for make in (networks_sheet,))
    write_page("Benchmark: networks at equal minutes", "networks", ABOUT, sheets, os.cpu_count() or 1, page)


def networks_sheet(minutes: float) -> Sheet:
    sheet = Sheet(
        f"hippocampus, {minutes:g} minutes of training",
        ["network", "precision", "parameters", "s a step", "steps", "Dice of seeds 0, 1, 2", "median"],
        note="Dice: mean over the foreground classes and the 40 cases, last checkpoint. Precision: `auto` is bfloat16\n"
        "where the processor computes in it; each network has the precision in which its steps are faster.",
    )
    for network in NETWORKS:
        runs = list(trained(network, minutes))
        steps = [run["step"] for run in runs]
        dice = [run["mean"]["dice"] for run in runs]
        seconds = statistics.median(run["seconds"] / run["step"] for run in runs)
        sheet.rows.append(
            [
                *(network.name, runs[0]["precision"], f"{runs[0]['parameters'] / 1e6:.2f} million"),
                *(f"{seconds:.2f}", span(steps), ", ".join(f"{value:.4f}" for value in dice)),
                f"{statistics.median(dice):.4f}",
            ]
        )
    return sheet


def span(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def trained(network: Network, minutes: float) -> Iterator[dict[str, Any]]:
    """For each seed, the scores of a training, with its time, precision and number of parameters."""
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            overrides = [
                *(f"model={json.dumps(network.model)}", f"train.precision={network.precision}", f"seed={seed}"),
                *(f"train.steps={network.steps}", f"train.max_minutes={minutes}", f"run.dir={run}"),
                *("train.validate_every={fraction: 0.5}", "evaluation.overlays=false"),
            ]
            command = [sys.executable, "-m", "segkit.cli", "train", "--quiet", "--config", str(CONFIG), *overrides]
            subprocess.run(command, check=True)
            checkpoint = load(run / "checkpoints" / "last.pt")
            (scores,) = (run / "evaluation").glob("*/scores.json")
            yield json.loads(scores.read_text()) | {
                "seconds": checkpoint["time"]["training_seconds"],
                "precision": checkpoint["resolved"]["train"]["precision"],
                "parameters": sum(weights.numel() for weights in checkpoint["model"].values()),
            }
