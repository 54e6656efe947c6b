"""Comparisons on Ray: on this machine, and on a cluster with two nodes, one of whose workers is killed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from support.command_line import TINY

ray = pytest.importorskip("ray", reason="ray is not installed")

from segkit.commands.compare import CompareOptions, compare  # noqa: E402

LOSSES = ("dice", "cross_entropy")
STEPS = 80


def test_units_are_trained_on_ray(tmp_path, without_figures):  # noqa: ARG001
    (tmp_path / "tiny.yaml").write_text(TINY)
    try:
        ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
        overrides = ["comparison.losses=[dice, cross_entropy]", "comparison.seeds=1", "evaluation.overlays=false"]
        compare(tmp_path / "tiny.yaml", overrides, CompareOptions(tmp_path / "out", "ray", 1), Console(quiet=True))
    finally:
        ray.shutdown()
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {loss["name"]: len(loss["runs"]) for loss in result["losses"]} == dict.fromkeys(LOSSES, 1)
    assert result["failed"] == {}


@pytest.mark.slow
def test_all_units_finish_although_a_worker_is_killed(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, logging_level="error")
        assert len(ray.nodes()) == 2
        (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 8", f"steps: {STEPS}"))
        overrides = ["comparison.losses=[dice, cross_entropy]", "comparison.seeds=2", "evaluation.overlays=false"]
        killed = kill_a_worker(tmp_path / "out")
        compare(tmp_path / "tiny.yaml", overrides, CompareOptions(tmp_path / "out", "ray", 2), Console(quiet=True))
        assert killed()
    finally:
        ray.shutdown()
        cluster.shutdown()
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {loss["name"]: len(loss["runs"]) for loss in result["losses"]} == dict.fromkeys(LOSSES, 2)
    assert result["failed"] == {}
    for unit in (tmp_path / "out" / "units").glob("*/log.jsonl"):
        steps = [json.loads(line)["step"] for line in unit.read_text().splitlines() if '"kind": "step"' in line]
        assert steps == sorted(set(steps))
        assert steps[-1] == STEPS


def kill_a_worker(out):
    """Kill a process that trains a unit, from a thread; returns a function that says whether one was killed."""
    import threading

    done = threading.Event()

    def look():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not done.is_set():
            if list(out.glob("units/*/log.jsonl")):
                for entry in Path("/proc").iterdir():
                    if entry.name.isdigit() and _is_training(entry / "cmdline"):
                        os.kill(int(entry.name), signal.SIGKILL)
                        done.set()
                        return
            time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()
    return done.is_set


def _is_training(file):
    """Whether it is the command line of a Ray worker that trains a unit; the process may end meanwhile."""
    try:
        return b"ray::train_remotely" in file.read_bytes()
    except OSError:
        return False
