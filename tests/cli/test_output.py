"""--quiet and --json of the commands: what goes to standard output, to standard error and to files."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from segkit.cli import app
from segkit.cli.output import command_output
from segkit.utils.console import QuietConsole, warn

from support.command_line import TINY

pytestmark = pytest.mark.usefixtures("without_figures")

RUN = ["train", "--config", "tiny.yaml", "run.dir=run"]


def invoked(*arguments, code=0):
    """Standard output and standard error of a command."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoked(*RUN)
    return folder


@pytest.fixture
def folder(finished, monkeypatch):
    monkeypatch.chdir(finished)
    return finished


def test_scores_of_a_training_as_json(folder):
    written, told = invoked(*RUN, "--json", "-")
    assert json.loads(written) == {
        "run": str(folder / "run"),
        "scores": json.loads((folder / "run" / "evaluation" / "test" / "scores.json").read_text()),
    }
    assert "run folder" in told
    printed, _ = invoked(*RUN, "--json", "new/scores.json")
    assert "run folder" in printed
    assert (folder / "new" / "scores.json").read_text() == written


def test_a_quiet_training_prints_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert invoked(*RUN, "train.max_steps=2", "--quiet") == ("", "")


def test_warnings_are_shown_although_it_is_quiet(capsys):
    warn("the disk is nearly full", QuietConsole())
    warn("case 7", QuietConsole(), "failed")
    assert capsys.readouterr() == ("", "warning: the disk is nearly full\nfailed: case 7\n")
    warn("the disk is nearly full", Console())
    assert capsys.readouterr() == ("warning: the disk is nearly full\n", "")
    warn("the disk is nearly full", Console(quiet=True))  # of processes other than the first, and in Python
    assert capsys.readouterr() == ("", "")


def test_evaluations_as_json(folder):
    written, told = invoked("evaluate", "--checkpoint", "run", "--split", "validation", "--json", "-")
    scores = json.loads((folder / "run" / "evaluation" / "validation" / "scores.json").read_text())
    assert json.loads(written) == {"run": scores}
    assert "written to" in told


def test_predictions_as_json_also_if_some_fail(folder):
    images = folder / "images"
    images.mkdir()
    (images / "broken.png").write_bytes(b"no picture")
    options = ("predict", "--checkpoint", "run", "--input", "images", "--output", "masks", "--json", "-", "--quiet")
    from PIL import Image

    Image.new("L", (32, 32)).save(images / "fine.png")
    done = CliRunner().invoke(app, list(options))
    assert done.exception.exit_code == 3, done.output
    results = json.loads(done.stdout)
    assert (results["written"], results["skipped"], results["left_to_others"]) == (1, 0, 0)
    assert list(results["failed"]) == ["broken"]
    assert done.stderr.startswith("failed: case broken\n")


def test_a_comparison_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{loss},{seed},0,c{case},a,{0.5 + 0.1 * (loss == 'b') + 0.01 * ((case * 7 + seed) % 5)}"
        for loss in "ab" for seed in range(3) for case in range(6)
    ]  # fmt: skip
    (tmp_path / "table.csv").write_text("loss,seed,fold,case,class,dice\n" + "\n".join(rows) + "\n")
    written, _ = invoked("compare", "--from-table", "table.csv", "--out", "out", "--json", "-")
    assert json.loads(written) == json.loads((tmp_path / "out" / "comparison.json").read_text())
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ("--losses", "dice,focal", "--seeds", "1", "--out", "new", "--dry-run", "--json", "-", "--quiet")
    written, told = invoked("compare", "--config", "tiny.yaml", *options)
    assert [unit["state"] for unit in json.loads(written)["units"]] == ["-", "-"]
    assert told == ""


@pytest.mark.usefixtures("folder")
def test_findings_of_the_doctor_and_of_a_check_as_json():
    done = CliRunner().invoke(app, ["doctor", "--quiet", "--json", "-"])
    findings = json.loads(done.stdout)
    assert {"segkit", "torch"} <= {finding["name"] for finding in findings}
    assert done.exit_code == any(finding["advice"] for finding in findings)
    written, told = invoked("data", "check", "--config", "tiny.yaml", "--json", "-", "--quiet")
    assert json.loads(written)["cases"] == 24
    assert told == ""
    written, _ = invoked("model", "summary", "--config", "tiny.yaml", "--json", "-")
    assert json.loads(written)["name"] == "unet"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(folder):
    assert "expected a file, got a folder" in str(CliRunner().invoke(app, [*RUN, "--json", "run"]).exception)
    (folder / "file").touch()
    assert "its folder cannot be made" in str(CliRunner().invoke(app, [*RUN, "--json", "file/x.json"]).exception)


def test_what_an_error_has_found_is_written(tmp_path):
    class Failed(Exception):
        results = {"failed": 2}  # noqa: RUF012

    def fail(written, error):
        with command_output(quiet=True, written=written) as command:
            command.results = {"never": "written"}
            raise error

    with pytest.raises(Failed):
        fail(tmp_path / "found.json", Failed())
    assert json.loads((tmp_path / "found.json").read_text()) == {"failed": 2}
    with pytest.raises(ValueError, match="nothing"):
        fail(tmp_path / "none.json", ValueError("nothing was found"))
    assert not (tmp_path / "none.json").exists()
