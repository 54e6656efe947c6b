"""Where values of a configuration come from, in what configurations differ, and what is not the default."""

import pytest

from segkit.config.changed_settings import changed_settings
from segkit.config.origins import differing, origins
from segkit.config.shipped import shipped_configs
from segkit.experiment.build import TABLES, load_config

from support.command_line import tool

CONFIG = """\
labels:
  names: [background, a]
data: {name: synthetic}
augment:
  engine: albumentations
  preset: light
model: unet
loss:
  - {name: dice, per: image}
  - cross_entropy
optimizer: {name: adamw, lr: 0.01}
train:
  epochs: 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return path


def test_each_value_has_its_origin(file):
    overrides = ["train.steps=5", "optimizer=sgd", "loss.1.weight=2"]
    found = {key: (value, origin) for key, value, origin in origins(load_config(file, overrides), file, overrides)}
    assert found["labels.names.1"] == ("a", "line 2")
    assert found["labels.mode"] == ("multiclass", "default")
    assert found["model.name"] == ("unet", "line 7"), "a short form"
    assert found["augment.transforms.0.p"][1] == "line 6", "what a preset stands for"
    assert found["augment.engine"] == ("albumentations", "line 5")
    assert found["loss.0.per"] == ("image", "line 9")
    assert found["loss.0.weight"] == (1.0, "default")
    assert found["loss.1.name"] == ("cross_entropy", "line 10")
    assert found["loss.1.weight"] == (2.0, "override 'loss.1.weight=2'")
    assert found["optimizer.name"] == ("sgd", "override 'optimizer=sgd'"), "not the line that it replaces"
    assert found["optimizer.lr"][1] == "override 'optimizer=sgd'"
    assert found["train.steps"] == (5, "override 'train.steps=5'")
    assert found["train.epochs"] == (None, "default"), "dropped by the override"
    assert found["loader.batch"][1] == "default"


def test_short_and_former_forms_have_their_lines(tmp_path):
    terms = "loss:\n  - {name: dice, per: image}\n  - cross_entropy\n"
    text = CONFIG.replace(terms, "loss:\n  name: focal\n  link: sigmoid\n")
    text = text.replace("  preset: light\n", "  preset: light\n  transforms:\n    - {name: gaussian_blur, p: 0.1}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = {key: origin for key, _value, origin in origins(load_config(path, []), path, [])}
    assert found["loss.0.name"] == "line 11", "a single term without a list"
    assert found["loss.0.activation"] == "line 12", "the former name of the option"
    assert found["loss.0.gamma"] == "default"
    transforms = load_config(path, []).augment.transforms
    assert transforms[-1].name == "gaussian_blur"
    assert found[f"augment.transforms.{len(transforms) - 1}.p"] == "line 8"
    assert found["augment.transforms.0.name"] == "line 6", "of the preset"


def test_differences_are_those_of_the_values(file):
    first, second = load_config(file, []), load_config(file, ["optimizer.lr=0.1", "name=other", "seed=3"])
    assert differing(first, second) == [("seed", 0, 3), ("optimizer.lr", 0.01, 0.1)]
    assert differing(first, first) == []


def test_what_is_not_the_default(file):
    found = {setting.key: setting for setting in changed_settings(load_config(file, ["loss.1.weight=2"]), TABLES)}
    assert (found["optimizer.lr"].value, found["optimizer.lr"].default) == (0.01, 1e-3)
    assert found["loss.0.per"].default == "batch"
    assert found["loss.1.weight"].value == 2.0
    assert not found["data.name"].has_default
    assert "model.widths" not in found
    assert "loader.batch" not in found


@pytest.mark.parametrize("name", shipped_configs())
def test_a_configuration_of_what_is_not_the_default_is_the_same(name, monkeypatch, tmp_path):
    """The list is complete: with nothing but these values, the configuration is the same again."""
    if name == "camvid_pretrained":
        pytest.importorskip("timm")
    monkeypatch.setenv("SEGKIT_DATA", str(tmp_path))
    config = load_config(name, [])
    tree = {}
    for setting in changed_settings(config, TABLES):
        node, keys = tree, setting.key.split(".")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = setting.value
    for section, key in (("augment", "transforms"), (None, "loss")):
        place = tree if section is None else tree.get(section, {})
        if key in place:
            place[key] = [place[key][number] for number in sorted(place[key], key=int)]
    again = load_config({"name": config.name, **tree}, [])
    assert differing(config, again) == []


def test_the_commands_print_origins_and_differences(file, tmp_path):
    printed = tool("config", "show", "--config", file, "--origins", "seed=4")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in printed.splitlines()}
    assert rows["seed"] == ["4", "override 'seed=4'"]
    assert rows["optimizer.lr"] == ["0.01", "line 11"]
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text(CONFIG.replace("0.01", "0.02"))
    printed = tool("config", "diff", file, other)
    assert "optimizer.lr" in printed
    assert "1 differences; different experiments" in printed
    assert "0 differences; the same experiment" in tool("config", "diff", file, file)
