"""The import rules of pyproject.toml, and what importing costs."""

import subprocess
import sys

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
