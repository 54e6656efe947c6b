"""What the shell proposes, asked as the scripts of bash ask."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from segkit.cli import app

from support.command_line import TINY


@pytest.fixture
def proposed(tmp_path, monkeypatch):
    """A function from the words of a command line, the last of which is incomplete, to what is proposed for it."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "other.yml").touch()
    monkeypatch.chdir(tmp_path)

    def propose(*words):
        environment = {
            "_SEGKIT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["segkit", *words]),
            "COMP_CWORD": str(len(words)),
        }
        return CliRunner().invoke(app, [], env=environment, prog_name="segkit").output.split()

    return propose


def test_commands_and_options(proposed):
    assert {"train", "evaluate", "predict"} <= set(proposed(""))
    assert proposed("ev") == ["evaluate"]
    assert proposed("train", "--re") == ["--resume"]


def test_shipped_configurations_and_files(proposed):
    assert set(proposed("train", "--config", "")) > {"quickstart", "hippocampus", "tiny.yaml", "inner/"}
    assert "notes.txt" not in proposed("train", "--config", "")
    assert proposed("train", "--config", "qui") == ["quickstart"]
    assert proposed("train", "--config", "inner/") == ["inner/other.yml"]
    assert proposed("train", "--config", "./ti") == ["./tiny.yaml"]
    assert proposed("compare", "--config", "./inner/o") == ["./inner/other.yml"]
    assert proposed("data", "check", "--config", "tiny.") == ["tiny.yaml"]
    assert proposed("config", "diff", "tiny.yaml", "qui") == ["quickstart"]
    assert proposed("train", "--config", "missing/") == []


def test_keys_of_the_configuration(proposed):
    assert "train.steps=" in proposed("train", "train.s")
    assert proposed("train", "--config", "tiny.yaml", "data.no") == ["data.noise="]
    assert proposed("train", "--config", "tiny.yaml", "model.wid") == ["model.widths.0=", "model.widths.1="]
    assert proposed("train", "--config", "missing.yaml", "train.warm") == []
    assert "data.noise=" not in proposed("train", "data.no")


def test_the_script_of_a_shell_is_printed():
    """As by `segkit --show-completion`, for a shell that is named, since a test has none."""
    code = "from segkit.cli import app; app(prog_name='segkit')"
    environment = {"_SEGKIT_COMPLETE": "source_bash", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "complete -o default -F _segkit_completion segkit" in done.stdout
