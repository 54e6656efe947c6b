"""The import rules of pyproject.toml, and what importing costs."""

import subprocess
import sys
from importlib.metadata import requires

import pytest


def modules_after(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_rules_hold():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("statement", ["import segkit", "import segkit.cli", "import segkit.config"])
def test_light_imports_stay_light(statement):
    assert not modules_after(statement) & {"torch", "monai", "numpy", "pandas", "albumentations"}


def test_training_pictures_does_not_import_monai():
    assert "monai" not in modules_after("import segkit.commands.train")


WALK = "import pkgutil, importlib, segkit; found = [m.name for m in pkgutil.walk_packages(segkit.__path__, 'segkit.')]"
WITHOUT_POSIX = """
import builtins
plain = builtins.__import__
HIDDEN = {"resource", "fcntl", "termios", "pwd", "grp"}
def hiding(name, globals=None, *rest, **more):
    if name in HIDDEN and (globals or {}).get("__name__", "").startswith("segkit"):
        raise ImportError(f"{name} is not available on Windows")
    return plain(name, globals, *rest, **more)
builtins.__import__ = hiding
import pkgutil, importlib, segkit
for module in pkgutil.walk_packages(segkit.__path__, "segkit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_no_module_needs_posix():
    """Windows has no such modules: segkit's own modules do without. (psutil uses them on Linux.)"""
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


OPTIONAL = ("nibabel", "SimpleITK", "pydicom", "highdicom", "tifffile", "imagecodecs", "pycocotools", "ray",
            "tensorboard", "mlflow", "skimage", "statsmodels")  # fmt: skip
if not any(line.startswith("requests") for line in requires("blosc2") or []):
    OPTIONAL += ("requests",)  # earlier versions of blosc2 need it, so that a plain install has it


def test_the_plain_install_is_enough_to_import_everything():
    hide = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    modules_after(f"{hide}; {WALK}; [importlib.import_module(n) for n in found if not n.endswith('__main__')]")


def test_the_plain_install_trains_and_compares_pictures(tmp_path):
    """As a user of PNG files does who has installed no extra."""
    from support.command_line import write_pairs

    write_pairs(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "labels: {names: [background, a]}\n"
        "data: {name: pairs, images: images, masks: masks}\n"
        "split: {name: kfold, folds: 3}\n"
        "augment: {engine: albumentations, transforms: [horizontal_flip]}\n"
        "model: {name: unet, widths: [4, 8]}\n"
        "loss: dice\noptimizer: adamw\nloader: {batch: 2}\ntrain: {steps: 2}\n"
    )
    hide = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    command = "['compare', '-c', 'small.yaml', '--losses', 'dice,cross_entropy', '--seeds', '2', '--out', 'out']"
    code = f"{hide}; from segkit.cli import main; main({command})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/comparison.json").exists()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "-c", "quickstart", "checkpoints.best=cldice", "train.max_steps=1", "run.dir=c"], "topology"),
        (["compare", "-c", "quickstart", "--losses", "dice,focal", "--engine", "ray"], "ray"),
        (["train", "-c", "quickstart", "logging.tensorboard=true", "train.max_steps=1", "run.dir=a"], "tensorboard"),
        (["train", "-c", "quickstart", "logging.mlflow=mlruns", "train.max_steps=1", "run.dir=b"], "mlflow"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_pip_line(tmp_path, monkeypatch, capsys, arguments, extra):
    from segkit import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, {"topology": "skimage"}.get(extra, extra), None)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert f"pip install 'segkit-trainer[{extra}]'" in capsys.readouterr().err


def test_public_names_are_there():
    import segkit

    for name in segkit.__all__:
        assert getattr(segkit, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = segkit.nothing


def test_public_surface_is_importable():
    from segkit import Labels
    from segkit.compare.statistics import analyse
    from segkit.inference.predictor import sliding_window
    from segkit.losses import LOSSES, RECIPES, build_loss
    from segkit.metrics import count, dice, iou

    loss = build_loss("dice_ce", Labels(["background", "a"]))
    assert LOSSES
    assert RECIPES
    assert loss is not None
    assert all(map(callable, (analyse, count, dice, iou, sliding_window)))
