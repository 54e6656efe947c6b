"""The configuration: what is accepted, how it is resolved, and what each mistake says."""

import dataclasses
import io
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segkit.config import Config, ConfigError, Named, Table, check, dump, read


class Dice:
    def __init__(self, *, labels: object, per: Literal["batch", "image"] = "batch", eps: float | list[float] = 1e-5):
        pass


def cross_entropy(*, labels: object, class_weights: list[float] | str | None = None) -> None: ...
def pairs(*, labels: object, images: Path, masks: Path, value_map: dict[int, int] | None = None) -> None: ...
def kfold(cases: object, *, folds: int = 5, file: Path | None = None) -> None: ...
def source(cases: object) -> None: ...
def unet(*, dims: int, widths: list[int] = [8, 16], residual: bool = False) -> None: ...  # noqa: B006
def adamw(parameters: object, *, lr: float = 1e-3) -> None: ...
def cosine(*, steps: int, warmup: float = 0.0) -> None: ...
def constant(*, steps: int) -> None: ...
def flip(*, p: float = 0.5) -> None: ...


TABLES = {
    "data": Table({"pairs": pairs}, frozenset({"labels"})),
    "split": Table({"source": source, "kfold": kfold}, frozenset({"cases"})),
    "model": Table({"unet": unet}, frozenset({"dims"})),
    "loss": Table({"dice": Dice, "cross_entropy": cross_entropy}, frozenset({"labels"})),
    "recipe": Table({"dice_ce": [{"name": "dice"}, {"name": "cross_entropy"}]}),
    "optimizer": Table({"adamw": adamw}, frozenset({"parameters"})),
    "schedule": Table({"cosine": cosine, "constant": constant}, frozenset({"steps"})),
    "augment.albumentations": Table({"flip": flip}),
    "augment.monai": Table({}),
}

MINIMAL = """\
labels: {names: [background, a]}
data: {name: pairs, images: images, masks: masks}
model: {name: unet}
loss: dice
optimizer: {name: adamw, lr: 1e-4}
train: {steps: 10}
"""


@pytest.fixture
def load(tmp_path):
    """Read a YAML text with overrides."""

    def load(text=MINIMAL, *overrides):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return read(path, overrides, TABLES)

    return load


def errors_of(load, text, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    folder = load.__closure__[0].cell_contents
    return [line.replace(f"{folder}/", "") for line in str(caught.value).splitlines()]


def test_defaults_are_filled_in(load, tmp_path):
    config = load()
    assert config.name == "experiment"
    assert config.data == Named(
        "pairs", {"images": tmp_path / "images", "masks": tmp_path / "masks", "value_map": None}
    )
    assert config.split == Named("source", {})
    assert config.model.args == {"widths": [8, 16], "residual": False}
    assert config.loss == ({"name": "dice", "weight": 1.0, "per": "batch", "eps": 1e-5},)
    assert config.optimizer.args["lr"] == 1e-4  # YAML 1.1 reads this as text
    assert config.schedule.name == "constant"
    assert config.train.steps == 10


@pytest.mark.parametrize(
    ("written", "names", "weights"),
    [
        ("dice", ["dice"], [1.0]),
        ("{name: dice, weight: 0.5}", ["dice"], [0.5]),
        ("[dice, {name: cross_entropy, weight: 2}, dice]", ["dice", "cross_entropy", "dice"], [1.0, 2.0, 1.0]),
        ("dice_ce", ["dice", "cross_entropy"], [1.0, 1.0]),
    ],
)
def test_a_loss_is_a_name_a_mapping_or_a_list(load, written, names, weights):
    config = load(MINIMAL.replace("loss: dice", f"loss: {written}"))
    assert [term["name"] for term in config.loss] == names
    assert [term["weight"] for term in config.loss] == weights


def test_all_errors_at_once_in_the_order_of_lines(load):
    text = """\
labels: {names: [background, a], modes: binary}
data: {name: pairs, images: images, value_map: {a: 1}}
model: {name: unett}
loss:
  - {name: dice, per: images}
  - {name: cross_entropy, weigth: 2}
optimizer: {name: adamw, lr: fast}
train:
  steps: 10
  epochs: 2
  clip_norm: 0
sampling:
  patch: [0, 8]
extra: 1
"""
    assert errors_of(load, text) == [
        "experiment.yaml:1: labels.modes: unknown key; did you mean 'mode'?",
        "experiment.yaml:2: data: missing required key 'masks'",
        "experiment.yaml:2: data.value_map: expected a mapping from a whole number to a whole number or null, "
        "got {'a': 1}",
        "experiment.yaml:3: model.name: unknown name 'unett'; did you mean 'unet'?",
        "experiment.yaml:5: loss.0.per: expected 'batch' or 'image', got 'images'",
        "experiment.yaml:6: loss.1.weigth: unknown key; did you mean 'weight'?",
        "experiment.yaml:7: optimizer.lr: expected a number, got 'fast'",
        "experiment.yaml:8: train: expected either 'steps' or 'epochs', got both",
        "experiment.yaml:11: train.clip_norm: expected a value greater than 0, got 0",
        "experiment.yaml:13: sampling.patch.0: expected a value greater than or equal to 1, got 0",
        "experiment.yaml:14: extra: unknown key; expected one of format, name, seed, device, plugins, labels, "
        "preprocess, sampling, loader, parameters, train, checkpoints, evaluation, run, comparison, data, "
        "split, model, optimizer, schedule, augment, logging, loss",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "train: {steps: 10}",
            "train: {}",
            "yaml:6: train: expected either 'steps' or 'epochs', got neither",
        ),
        ("train: {steps: 10}", "train: {steps: true}", "train.steps: expected a whole number or null, got True"),
        ("train: {steps: 10}", "train: {steps: '10'}", "train.steps: expected a whole number or null, got '10'"),
        ("train: {steps: 10}", "train: 10", "experiment.yaml:6: train: expected a mapping, got 10"),
        ("loss: dice", "loss: dise", "loss: unknown name 'dise'; did you mean 'dice'?"),
        ("train: {steps: 10}", "train: {steps: 10, lr: 1}", "train.lr: unknown key; did you mean 'optimizer.lr'?"),
        ("train: {steps: 10}", "train: {steps: 10}\nbatch: 2", "batch: unknown key; did you mean 'loader.batch'?"),
        ("loss: dice", "loss: DiceCE", "loss: unknown name 'DiceCE'; did you mean 'dice_ce'?"),  # as MONAI spells it
        ("loss: dice", "loss: []", "loss: expected a name, a mapping or a list of them, got an empty list"),
        ("loss: dice", "loss: {per: batch}", "loss: missing required key 'name'"),
        (
            "loss: dice",
            "loss: {name: dice, weight: -1}",
            "loss.weight: expected a number of at least 0, or a schedule, got -1",
        ),
        ("loss: dice", "loss: {name: dice, labels: 1}", "loss.labels: unknown key"),
        ("model: {name: unet}", "model: [unet]", "experiment.yaml:3: model: expected a mapping with a name"),
        ("images: images", "images: 7", "data.images: expected a path, got 7"),
        ("images: images", "images: '${SEGKIT_UNSET}/x'", "the environment variable SEGKIT_UNSET is not set"),
        ("[background, a]", "[background, 7]", "labels.names.1: expected a list, each item text, got"),
        ("loss: dice", "augment: {engine: pil}\nloss: dice", "augment.engine: expected 'none', 'albumentations'"),
        ("loss: dice", "augment: {transforms: [flip]}\nloss: dice", "transforms need an engine"),
        ("loss: dice", "format: 2\nloss: dice", "format 2 cannot be read by this version"),
    ],
)
def test_what_a_mistake_says(load, old, new, message):
    (line,) = errors_of(load, MINIMAL.replace(old, new))
    assert message in line


def test_missing_sections_are_named(load):
    assert errors_of(load, "seed: 1\n") == [
        f"experiment.yaml: missing required key '{key}'"
        for key in ("labels", "train", "data", "model", "optimizer", "loss")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: dice\nloss: dice\n", 'experiment.yaml:2: found duplicate key "loss"'),
        ("labels: [\n", "experiment.yaml:2: "),
        ("just text\n", "expected a mapping with labels"),
    ],
)
def test_what_is_no_configuration(load, text, message):
    (line,) = errors_of(load, text)
    assert message in line


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read the configuration: No such file"):
        read(tmp_path / "none.yaml", [], TABLES)


def test_text_that_other_readers_take_for_numbers(load):
    config = load(MINIMAL.replace("[background, a]", "[background, no, 12:30, 010x]"))
    assert config.labels.names == ["background", "no", "12:30", "010x"]


def test_overrides(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    config = load(
        MINIMAL.replace("loss: dice", "loss: [dice, cross_entropy]"),
        "train.epochs=3",
        "loss.1.weight=0.5",
        "model.widths=[4, 8]",
        "run.dir=here",
        "split={name: kfold, folds: 3}",
        "data.images=there",
    )
    assert (config.train.steps, config.train.epochs) == (None, 3)
    assert config.loss[1]["weight"] == 0.5
    assert config.model.args["widths"] == [4, 8]
    assert config.run.dir == tmp_path.parent / "here"
    assert config.split == Named("kfold", {"folds": 3, "file": None})
    assert config.data.args["images"] == tmp_path.parent / "there"
    assert config.data.args["masks"] == tmp_path / "masks"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "override 'train.stepz=3': train.stepz: unknown key; did you mean 'steps'?"),
        ("train.steps", "override 'train.steps': expected key=value, for example train.steps=100"),
        ("loss.2.weight=1", "override 'loss.2.weight=1': expected a list item from 0 to 0, got '2'"),
        ("model.widths=[4", "override 'model.widths=[4': the value is not valid YAML"),
        ("seed.x=1", "override 'seed.x=1': seed is 3, which has no keys"),
        ("seed=-1", "override 'seed=-1': seed: expected a value greater than or equal to 0, got -1"),
    ],
)
def test_what_a_wrong_override_says(load, override, message):
    lines = errors_of(load, MINIMAL.replace("loss: dice", "loss: [dice]") + "seed: 3\n", override)
    assert any(message in line for line in lines)


def test_only_variables_in_paths_are_expanded(load, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGKIT_TEST_ROOT", "/somewhere")
    text = MINIMAL.replace("images: images", "images: '${SEGKIT_TEST_ROOT}/{split}'").replace(
        "a]", "'${SEGKIT_TEST_ROOT}']"
    )
    config = load(text)
    assert config.data.args["images"] == Path("/somewhere/{split}")
    assert config.labels.names[1] == "${SEGKIT_TEST_ROOT}"
    del tmp_path


def test_the_configuration_is_frozen(load):
    config = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 1


def digest_of(load, *overrides):
    return load(MINIMAL, *overrides).digest()


def test_the_digest_is_that_of_the_experiment(load):
    same = [
        "name=other",
        "device=cpu",
        "run.dir=x",
        "loader.workers=3",
        "train.log_every.steps=7",
        "data.images=elsewhere",
    ]
    assert all(digest_of(load, override) == digest_of(load) for override in same)
    different = ["seed=1", "loss=cross_entropy", "loss={name: dice, weight: 2}", "train.steps=11", "loader.batch=5"]
    digests = [digest_of(load, override) for override in different]
    assert len({*digests, digest_of(load)}) == len(different) + 1


printable = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
values = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "train": st.fixed_dictionaries({"steps": st.integers(1, 99), "clip_norm": st.none() | st.floats(0.1, 9)}),
        "loss": st.sampled_from(["dice", "dice_ce", [{"name": "dice", "eps": [0.0, 1.0]}, "cross_entropy"]]),
        "labels": st.fixed_dictionaries(
            {
                "names": st.lists(printable, min_size=1),
                "ignore_index": st.none() | st.integers(-99, 999),
            }
        ),
        "run": st.sampled_from([{}, {"dir": "/there/run"}]),
    }
)


@given(values)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_written_reads_the_same(given_values):
    tree = {
        "data": {"name": "pairs", "images": "/i", "masks": "/m"},
        "model": {"name": "unet"},
        "optimizer": {"name": "adamw"},
        "name": "x",
        **given_values,
    }
    config = check(tree, [], TABLES, source="x.yaml")
    assert isinstance(config, Config)
    assert check(config.to_dict(), [], TABLES, source="x.yaml") == config


def test_dump_reads_back(load, tmp_path):
    config = load(MINIMAL, "run.dir=/there", "seed=5")
    text = io.StringIO()
    dump(config, text)
    (tmp_path / "dumped.yaml").write_text(text.getvalue())
    assert text.getvalue().startswith("format: 1")
    assert read(tmp_path / "dumped.yaml", [], TABLES) == config
