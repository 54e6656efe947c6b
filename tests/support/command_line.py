"""The command line in this process, and small data for it."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkit import cli

TINY = """\
labels: {names: [background, a, b]}
data: {name: synthetic, size: [32, 32], train: 8, validation: 4, test: 12, foreground: 0.3, noise: 0.02}
augment: {engine: albumentations, transforms: [horizontal_flip]}
loader: {batch: 4}
model: {name: unet, widths: [8, 16]}
loss: dice_ce
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 8, ema: 0.8, log_every: {steps: 4}}
"""


def write_pairs(folder, side=16):
    """Six images and masks of 0 and 1, the files of which are of one size whatever they hold."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 2 if kind == "masks" else 255, (side, side)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.bmp")


def tool(name, *arguments, code=0, folder=None):
    """Run what tools/NAME.py runs, check its exit code and return what it printed. In this process, since it takes
    seconds for another one to import everything; `tool_process` is the tool itself."""
    printed, found = io.StringIO(), 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
    ):
        warnings.simplefilter("default")
        patch.setenv("COLUMNS", "120")
        try:
            cli.main([name, *map(str, arguments)])
        except SystemExit as ended:
            found = ended.code or 0
        finally:
            torch.set_num_threads(threads)
    assert found == code, printed.getvalue()
    return printed.getvalue()
