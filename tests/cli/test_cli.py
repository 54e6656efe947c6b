"""What the command prints of warnings and errors that it expects."""

import warnings

import pytest
import torch
from typer.testing import CliRunner

from segkit import cli
from segkit._version import VERSION
from segkit.data import Case
from segkit.data.splits import lists_split


def test_own_warnings_name_no_line_of_code(capsys):
    eyes = [Case("left", "child"), Case("right", "child")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = cli.show_warning
        lists_split(eyes, train=["left"], validation=["right"])
        warnings.warn("of a library", stacklevel=1)
    ours, theirs = capsys.readouterr().err.split("warning: 1 groups are in more than one part")[1].split(__file__)
    assert ".py" not in ours
    assert "of a library" in theirs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 4),
        (MemoryError(), 4),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"), 5),
        (RuntimeError("some defect"), None),
    ],
)
def test_exit_codes(error, code):
    assert cli.exit_code(error) == code


def test_the_version():
    printed = CliRunner().invoke(cli.app, ["--version"])
    assert (printed.exit_code, printed.output) == (0, f"segkit {VERSION}\n")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("evaluate", "[default: the run folder]"),
        ("compare", "[all pairs]"),
        ("predict", "[default: as in the checkpoint]"),
    ],
)
def test_defaults_in_brackets_are_printed(command, text):
    """Rich would read them as markup."""
    printed = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert text in " ".join(printed.split())
