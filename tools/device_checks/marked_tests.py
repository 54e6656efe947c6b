"""Part: the tests that need a CUDA device."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from device_checks.checks import Check, Measured, Setup, Skip, described

ROOT = Path(__file__).parents[2]
MARK = "mark.cuda"


def checks(setup: Setup) -> Iterator[Check]:
    """A row per test with the mark `cuda`. Only the files that use the mark are collected."""
    recorder = Recorder()
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in file.read_text("utf-8")]
    options = ["-m", "cuda", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exit_code = pytest.main([*options, *files], plugins=[recorder])
    if exit_code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not recorder.reports:
        raise RuntimeError(f"pytest ended with {exit_code!r}: {printed.getvalue()[-200:]}")
    for name, report in recorder.reports.items():
        yield Check(name, partial(_outcome, report, setup))


class Recorder:
    """A plugin of pytest that keeps the decisive report of each test: of the call, or of a failing or skipping
    fixture."""

    def __init__(self) -> None:
        self.reports: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.reports[report.nodeid] = report


def _outcome(report: Any, setup: Setup) -> Measured:
    seconds = [f"{report.duration:.1f}"]
    if report.skipped:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else "it is expected to fail"
        if setup.is_cuda:
            return Measured(seconds, f"the test was skipped: {reason}")
        raise Skip(reason.removeprefix("Skipped: "))
    return Measured(seconds, described(AssertionError(report.longreprtext[-200:])) if report.failed else None)
