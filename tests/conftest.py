"""What several test files share."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_runtest_setup(item):
    """Skip the tests with the mark `cuda` where there is no CUDA device."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where SEGKIT_DATA does not say where it is."""
    folder = os.environ.get("SEGKIT_DATA")
    if not folder:
        pytest.skip("SEGKIT_DATA is not set: no real data")
    return Path(folder)


@pytest.fixture
def quick_workers(monkeypatch):
    """Comparisons fork their worker processes from a server, which takes no time for imports; the default is spawn."""
    import support.processes  # noqa: F401  tells the server what to import

    monkeypatch.setattr("segkit.compare.executors.START_METHOD", "forkserver")


ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.fixture
def without_figures(monkeypatch):
    """Evaluations and comparisons write one pixel for each figure, since drawing takes longer than a tiny training."""
    from segkit.report.html import Picture

    def write_pixel(*arguments):
        Path(arguments[-1]).write_bytes(ONE_PIXEL)

    monkeypatch.setattr("segkit.report.evaluation_figures.confusion_figure", write_pixel)
    monkeypatch.setattr("segkit.report.evaluation_figures.reliability_figure", write_pixel)
    monkeypatch.setattr("segkit.experiment.evaluate_run.write_overlays", write_pixel)
    pixel = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr("segkit.compare.run_artifacts.overlay_picture", lambda _rows, _labels: pixel)
    monkeypatch.setattr(
        "segkit.report.comparison_page.figure_picture",
        lambda name, title, caption, _make, _widths: Picture(name, title, caption, ONE_PIXEL),
    )


@pytest.fixture(autouse=True, scope="session")
def without_waiting_for_disks():
    """Files are replaced without waiting until disks have them, which matters only if a machine loses its power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield
