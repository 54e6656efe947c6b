"""Configurations: what is accepted, what every mistake is answered with, and that a resolved file reads back."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from segkit.config import Config, ConfigError, Named, Table, dump, read


def unet(*, out_channels: int, widths: list[int] = [8, 16], norm: Literal["batch", "instance"] = "batch"): ...  # noqa: B006


def sized(*, out_channels: int, size: tuple[int, int], dropout: float = 0): ...


def pairs(
    *,
    labels: Any,
    images: Path,
    masks: Path | None = None,
    pattern: str = "{case}.*",
    value_map: dict[int, int] | None = None,
): ...


class Dice:
    def __init__(
        self, *, labels: Any, per: Literal["batch", "image"] = "batch", eps: float | list[float] = 1e-5
    ) -> None: ...


def cross_entropy(*, labels: Any, class_weights: Literal["inverse"] | list[float] | None = None): ...


def source(cases: Any): ...


def kfold(cases: Any, *, folds: int = 5): ...


def adamw(parameters: Any, *, lr: float = 1e-3, nesterov: bool = False): ...


def constant(*, steps: int, warmup: float = 0.0): ...


def flip(*, padding_value: int, p: float = 0.5): ...


TABLES = {
    "data": Table({"pairs": pairs}, injected=frozenset({"labels"})),
    "split": Table({"source": source, "kfold": kfold}, injected=frozenset({"cases"})),
    "augment.albumentations": Table(
        {"horizontal_flip": flip, "vertical_flip": flip}, injected=frozenset({"padding_value"})
    ),
    "augment.monai": Table({"mirror": flip}, injected=frozenset({"padding_value"})),
    "model": Table({"unet": unet, "sized": sized}, injected=frozenset({"out_channels"})),
    "loss": Table({"dice": Dice, "cross_entropy": cross_entropy}, injected=frozenset({"labels"})),
    "recipe": Table({"dice_ce": [{"name": "dice"}, {"name": "cross_entropy"}]}, injected=frozenset()),
    "optimizer": Table({"adamw": adamw}, injected=frozenset({"parameters"})),
    "schedule": Table({"constant": constant}, injected=frozenset({"steps"})),
}

# one line a section, in this order, so that the line of an error is the place of its section
VALID = {
    "labels": "{names: [background, a]}",
    "data": "{name: pairs, images: images}",
    "model": "{name: unet}",
    "loss": "dice",
    "optimizer": "{name: adamw}",
    "train": "{steps: 3}",
}


@pytest.fixture
def write(tmp_path: Path):
    """Write the valid file with sections changed, added or (None) left out; returns its path."""

    def write(**sections: str | None) -> Path:
        path = tmp_path / "x.yaml"
        lines = [f"{key}: {value}" for key, value in {**VALID, **sections}.items() if value is not None]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def errors(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The lines of the error that a file is refused with, without the folder."""
    with pytest.raises(ConfigError) as caught:
        read(path, overrides, TABLES)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def round_trip(config: Config, folder: Path) -> Config:
    path = folder / "resolved.yaml"
    with path.open("w", encoding="utf-8") as file:
        dump(config, file)
    return read(path, [], TABLES)


# What is accepted


def test_defaults_are_filled_in(write, tmp_path):
    config = read(write(), [], TABLES)
    assert (config.name, config.seed, config.device) == ("x", 0, "auto")
    assert config.labels.mode == "multiclass"
    assert config.data.args == {
        "images": tmp_path / "images",
        "masks": None,
        "pattern": "{case}.*",
        "value_map": None,
    }
    assert config.split == Named("source", {})
    assert config.model == Named("unet", {"widths": [8, 16], "norm": "batch"})
    assert config.schedule == Named("constant", {"warmup": 0.0})
    assert (config.augment.engine, config.augment.transforms) == ("none", ())
    assert (config.loader.batch, config.loader.workers, config.loader.cache) == (4, 0, "memory")
    assert (config.sampling.patch, config.sampling.foreground, config.sampling.margin) == (None, 0.0, 1.5)
    assert (config.train.steps, config.train.epochs, config.train.precision) == (3, None, "fp32")
    assert config.run.dir is None


@pytest.mark.parametrize("section", ["split", "schedule", "preprocess", "augment", "sampling", "loader", "evaluation"])
def test_an_empty_section_is_its_default(write, section):
    assert read(write(**{section: ""}), [], TABLES) == read(write(), [], TABLES)


def test_name_is_the_files_stem_unless_given(write):
    assert read(write(name=""), [], TABLES).name == "x"
    assert read(write(name="y"), [], TABLES).name == "y"


@pytest.mark.parametrize(
    ("written", "terms"),
    [
        ("dice", [("dice", 1.0)]),
        ("{name: dice, weight: 2}", [("dice", 2.0)]),
        ("[dice, {name: cross_entropy, weight: 0.5}]", [("dice", 1.0), ("cross_entropy", 0.5)]),
        ("dice_ce", [("dice", 1.0), ("cross_entropy", 1.0)]),
    ],
)
def test_loss_is_a_name_a_mapping_a_list_or_a_recipe(write, written, terms):
    loss = read(write(loss=written), [], TABLES).loss
    assert [(term["name"], term["weight"]) for term in loss] == terms
    assert loss[0] == {"name": "dice", "weight": terms[0][1], "per": "batch", "eps": 1e-5}


def test_transforms_are_entries_of_the_engines_table(write):
    config = read(write(augment="{engine: albumentations, transforms: [{name: vertical_flip, p: 1}]}"), [], TABLES)
    assert config.augment.transforms == (Named("vertical_flip", {"p": 1.0}),)


@pytest.mark.parametrize(
    ("written", "value"),
    [("no", "no"), ("12:30", "12:30"), ("on", "on"), ("2020-01-01", "2020-01-01"), ("'12'", "12"), ("1e-4x", "1e-4x")],
)
def test_yaml_1_2_keeps_text_as_text(write, written, value):
    assert read(write(name=written), [], TABLES).name == value


@pytest.mark.parametrize(
    ("written", "value"), [("1e-4", 1e-4), ("1.0E-4", 1e-4), (".5", 0.5), ("1", 1.0), ("0x10", 16.0)]
)
def test_yaml_1_2_reads_numbers_as_numbers(write, written, value):
    lr = read(write(optimizer=f"{{name: adamw, lr: {written}}}"), [], TABLES).optimizer.args["lr"]
    assert (lr, type(lr)) == (value, float)


def test_whole_numbers_have_no_octal_form(write):
    assert read(write(seed="010"), [], TABLES).seed == 10


def test_mappings_may_have_numbers_as_keys(write):
    config = read(write(data="{name: pairs, images: i, value_map: {0: 1, 255: 0}}"), [], TABLES)
    assert config.data.args["value_map"] == {0: 1, 255: 0}


def test_a_tuple_is_written_as_a_list(write, tmp_path):
    config = read(write(model="{name: sized, size: [3, 4]}"), [], TABLES)
    assert config.model.args["size"] == (3, 4)
    assert round_trip(config, tmp_path) == config


def test_merge_keys_and_anchors(tmp_path, write):
    merged = write(model=None).read_text() + "\nmodel:\n  <<: &net {name: unet}\n  widths: [4]\n"
    path = tmp_path / "merged.yaml"
    path.write_text(merged)
    assert read(path, [], TABLES).model.args["widths"] == [4]


def test_a_configuration_is_frozen(write):
    config = read(write(), [], TABLES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 4


# What mistakes are answered with


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": "{steps: 3, stepz: 4}"}, "x.yaml:6: train.stepz: unknown key; did you mean 'steps'?"),
        ({"labels": "{mode: binary}"}, "x.yaml:1: labels: missing required key 'names'"),
        ({"data": "{name: pairs}"}, "x.yaml:2: data: missing required key 'images'"),
        ({"model": "{widths: [8]}"}, "x.yaml:3: model: missing required key 'name'"),
        ({"model": "{name: unet, normm: batch}"}, "x.yaml:3: model.normm: unknown key; did you mean 'norm'?"),
        ({"model": "{name: unett}"}, "x.yaml:3: model.name: unknown name 'unett'; did you mean 'unet'?"),
        (
            {"model": "{name: transformer}"},
            "x.yaml:3: model.name: unknown name 'transformer'; expected one of unet, sized",
        ),
        ({"model": "7"}, "x.yaml:3: model: expected a mapping with a name, got 7"),
        ({"loss": "diec"}, "x.yaml:4: loss: unknown name 'diec'; did you mean 'dice'?"),
        ({"loss": "[]"}, "x.yaml:4: loss: expected a name, a mapping or a list of them, got an empty list"),
        ({"loss": "[{name: dice, per: images}]"}, "x.yaml:4: loss.0.per: expected 'batch' or 'image', got 'images'"),
        (
            {"loss": "{name: dice, weight: -1}"},
            "x.yaml:4: loss.weight: expected a number of at least 0, or a schedule, got -1",
        ),
        (
            {"loss": "{name: dice, eps: small}"},
            "x.yaml:4: loss.eps: expected a number or a list, each item a number, got 'small'",
        ),
        ({"optimizer": "{name: adamw, lr: fast}"}, "x.yaml:5: optimizer.lr: expected a number, got 'fast'"),
        ({"optimizer": "{name: adamw, lr: true}"}, "x.yaml:5: optimizer.lr: expected a number, got True"),
        ({"optimizer": "{name: adamw, nesterov: 1}"}, "x.yaml:5: optimizer.nesterov: expected true or false, got 1"),
        ({"train": "[steps]"}, "x.yaml:6: train: expected a mapping, got ['steps']"),
        ({"train": ""}, "x.yaml:6: train: expected a mapping, got None"),
        ({"train": "{ema: 0.9}"}, "x.yaml:6: train: expected either 'steps' or 'epochs', got neither"),
        ({"train": "{steps: 1, epochs: 1}"}, "x.yaml:6: train: expected either 'steps' or 'epochs', got both"),
        ({"train": "{steps: '3'}"}, "x.yaml:6: train.steps: expected a whole number or null, got '3'"),
        ({"train": "{steps: 3, ema: 1}"}, "x.yaml:6: train.ema: expected a value less than 1, got 1"),
        ({"seed": "true"}, "x.yaml:7: seed: expected a whole number, got True"),
        ({"seed": "1.0"}, "x.yaml:7: seed: expected a whole number, got 1.0"),
        ({"seed": "-1"}, "x.yaml:7: seed: expected a value greater than or equal to 0, got -1"),
        ({"device": "gpu"}, "x.yaml:7: device: expected 'auto' or 'cpu' or 'cuda' or 'mps', got 'gpu'"),
        (
            {"sampling": "{foreground: 1.5}"},
            "x.yaml:7: sampling.foreground: expected a value less than or equal to 1, got 1.5",
        ),
        ({"lables": "{}"}, "x.yaml:7: lables: unknown key; did you mean 'labels'?"),
        (
            {"augment": "{engine: imgaug}"},
            "x.yaml:7: augment.engine: expected 'none', 'albumentations' or 'monai', got 'imgaug'",
        ),
        (
            {"augment": "{transforms: [{name: mirror}]}"},
            "x.yaml:7: augment.engine: transforms need an engine: 'albumentations' or 'monai'",
        ),
        (
            {"augment": "{engine: monai, transforms: [{name: mirror}, {name: mirror, q: 1}]}"},
            "x.yaml:7: augment.transforms.1.q: unknown key; expected one of p, name",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(write, sections, expected):
    assert errors(write(**sections)) == [expected]


@pytest.mark.parametrize("section", list(VALID))
def test_required_sections(write, section):
    assert errors(write(**{section: None})) == [f"x.yaml: missing required key '{section}'"]


@pytest.mark.parametrize("injected", ["model", "data", "loss"])
def test_what_the_program_fills_in_is_not_accepted(write, injected):
    parameter = {"model": "out_channels", "data": "labels", "loss": "labels"}[injected]
    content = {"model": "{name: unet, %s: 3}", "data": "{name: pairs, images: i, %s: 3}", "loss": "{name: dice, %s: 3}"}
    assert f"{injected}.{parameter}: unknown key" in errors(write(**{injected: content[injected] % parameter}))[0]


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(write, number):
    shown = number.replace(".", "")
    sections = {"optimizer": f"{{name: adamw, lr: {number}}}", "sampling": f"{{margin: {number}}}"}
    first, second = errors(write(**sections))
    assert first == f"x.yaml:5: optimizer.lr: expected a number, got {shown}"
    assert second.startswith("x.yaml:7: sampling.margin: expected a ")


@pytest.mark.parametrize("name", ["[unet]", "{unet: 1}", "3", "null"])
def test_a_name_that_is_no_text(write, name):
    assert errors(write(model=f"{{name: {name}}}"))[0].startswith("x.yaml:3: model.name: unknown name ")


def test_an_item_of_a_list_is_named_with_its_own_line(write):
    path = write(sampling="\n  patch:\n  - 8\n  - x")
    (found,) = errors(path)
    assert found.startswith("x.yaml:10: sampling.patch.1: expected ")


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines(write):
    path = write(
        labels="{nmaes: [a]}",
        model="{name: unet, widths: wide}",
        loss="[{name: dice, per: images}, {name: cros_entropy}]",
        optimizer="5",
        train="{steps: 3, epochs: 4}",
        augment="{engine: monai, transforms: [{name: miror}]}",
        seed="x",
    )
    places = [(int(line.split(":")[1]), line.split(": ")[1]) for line in errors(path)]
    assert places == [
        (1, "labels"),
        (1, "labels.nmaes"),
        (3, "model.widths"),
        (4, "loss.0.per"),
        (4, "loss.1.name"),
        (5, "optimizer"),
        (6, "train"),
        (7, "augment.transforms.0.name"),
        (8, "seed"),
    ]


def test_an_error_is_a_value_error_that_exits_with_2():
    assert issubclass(ConfigError, ValueError)
    assert ConfigError.exit_code == 2


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot read the configuration: No such file or directory"):
        read(tmp_path / "no.yaml", [], TABLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1\n", r"x\.yaml:\d: "),
        ("seed: 1\nseed: 2\n", r"x\.yaml:2: found duplicate key"),
        ("a: 1\n\tb: 2\n", r"x\.yaml:2: "),
        ("", r"x\.yaml: expected a mapping with labels, data, model, loss, optimizer, train; got None"),
        ("- 1\n", r"x\.yaml: expected a mapping with .*; got \[1\]"),
    ],
)
def test_text_that_is_no_configuration(tmp_path, text, expected):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read(path, [], TABLES)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: expected UTF-8 text, got the byte 0xff at position 6"):
        read(path, [], TABLES)


# Overrides


@pytest.mark.parametrize(
    ("override", "value_of", "value"),
    [
        ("train.steps=10", lambda config: config.train.steps, 10),
        ("seed=3", lambda config: config.seed, 3),
        ("loss=cross_entropy", lambda config: config.loss[0]["name"], "cross_entropy"),
        ("loss.0.weight=0.5", lambda config: config.loss[0]["weight"], 0.5),
        ("loss=[dice, dice]", lambda config: len(config.loss), 2),
        ("augment.transforms.1.p=0.2", lambda config: config.augment.transforms[1].args["p"], 0.2),
        ("model.widths=[8,16,32]", lambda config: config.model.args["widths"], [8, 16, 32]),
        ("model={name: unet}", lambda config: config.model.args["norm"], "batch"),
        ("preprocess.spacing=null", lambda config: config.preprocess.spacing, None),
        ("sampling.patch=[64, 64]", lambda config: config.sampling.patch, [64, 64]),
        ("schedule.warmup=1e-1", lambda config: config.schedule.args["warmup"], 0.1),
        ("split.name=kfold", lambda config: config.split.args["folds"], 5),
        ("data.pattern=a=b", lambda config: config.data.args["pattern"], "a=b"),
        ("name=2020-01-01", lambda config: config.name, "2020-01-01"),
    ],
)
def test_overrides(write, override, value_of, value):
    path = write(
        model="{name: unet, norm: instance}",
        loss="[{name: dice}]",
        preprocess="{spacing: median}",
        augment="{engine: albumentations, transforms: [{name: horizontal_flip}, {name: vertical_flip}]}",
    )
    assert value_of(read(path, [override], TABLES)) == value


def test_an_override_reaches_into_an_empty_section(write):
    assert read(write(sampling=""), ["sampling.patch=[8, 8]"], TABLES).sampling.patch == [8, 8]


def test_the_last_override_of_a_key_holds(write):
    assert read(write(), ["seed=1", "seed=2"], TABLES).seed == 2


@pytest.mark.parametrize(("given", "dropped"), [("steps", "epochs"), ("epochs", "steps")])
def test_overriding_the_length_drops_the_other_way_to_say_it(write, given, dropped):
    train = read(write(train=f"{{{dropped}: 9}}"), [f"train.{given}=2"], TABLES).train
    assert (getattr(train, given), getattr(train, dropped)) == (2, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stepz=3", "train.stepz: unknown key; did you mean 'steps'?"),
        ("train.ema=2", "train.ema: expected a value less than 1, got 2"),
        ("model={name: unet, widht: 3}", "model.widht: unknown key; did you mean 'widths'?"),
        ("loss=diec", "loss: unknown name 'diec'; did you mean 'dice'?"),
        ("train.steps", "expected key=value, for example train.steps=100"),
        ("=3", "expected key=value, for example train.steps=100"),
        ("seed=[1", "the value is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("loss.3.weight=1", "expected a list item from 0 to 0, got '3'"),
        ("loss.x.weight=1", "expected a list item from 0 to 0, got 'x'"),
        ("loss.0.name.x=1", "loss.0.name is 'dice', which has no keys"),
    ],
)
def test_mistakes_in_overrides_name_the_override(write, override, expected):
    assert errors(write(loss="[{name: dice}]"), [override]) == [f"override '{override}': {expected}"]


def test_a_mistyped_section_in_an_override_names_the_override(write):
    assert errors(write(), ["trian.steps=3"]) == ["override 'trian.steps=3': trian: unknown key; did you mean 'train'?"]


def test_a_list_item_is_numbered_in_ascii_digits(write):
    assert errors(write(), ["train.²=1"])[0].startswith("override 'train.²=1': train.²: unknown key")


def test_mistakes_of_overrides_and_of_the_file_are_reported_together(write):
    found = errors(write(seed="x"), ["train.stepz=3", "nonsense"])
    assert len(found) == 3
    assert any("seed: expected a whole number, got 'x'" in line for line in found)


def test_overrides_do_not_change_the_tables_recipes(write):
    before = json.dumps(TABLES["recipe"].entries["dice_ce"])
    read(write(loss="dice_ce"), ["loss=[dice]"], TABLES)
    assert json.dumps(TABLES["recipe"].entries["dice_ce"]) == before


# Paths


def test_paths_of_the_file_are_relative_to_it_and_those_of_overrides_to_the_current_directory(
    write, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write(data="{name: pairs, images: ../in, masks: '{split}/m'}", run="{dir: runs/x}")
    monkeypatch.chdir(elsewhere)
    config = read(path, ["data.masks=m"], TABLES)
    assert config.data.args["images"] == tmp_path.parent / "in"
    assert config.data.args["masks"] == elsewhere / "m"
    assert config.run.dir == tmp_path / "runs/x"
    assert read(path, [], TABLES).data.args["masks"] == tmp_path / "{split}/m"


def test_variables_are_expanded_in_paths_only(write, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_TEST", str(tmp_path / "root"))
    path = write(data="{name: pairs, images: '${SEGKIT_TEST}/$SEGKIT_TEST', pattern: '${SEGKIT_TEST}'}")
    args = read(path, [], TABLES).data.args
    assert args["images"] == tmp_path / "root/$SEGKIT_TEST"
    assert args["pattern"] == "${SEGKIT_TEST}"


def test_a_tilde_is_part_of_the_name(write, tmp_path):
    assert read(write(data="{name: pairs, images: '~/in'}"), [], TABLES).data.args["images"] == tmp_path / "~/in"


def test_an_unset_variable_is_named_and_hides_no_other_mistake(write, monkeypatch):
    monkeypatch.delenv("SEGKIT_UNSET", raising=False)
    found = errors(write(data="\n  name: pairs\n  images: '${SEGKIT_UNSET}/in'\n  patern: x"))
    assert found == [
        "x.yaml:4: data.images: the environment variable SEGKIT_UNSET is not set: export it, or give a path with "
        "data.images=PATH",
        "x.yaml:5: data.patern: unknown key; did you mean 'pattern'?",
    ]


def test_a_path_is_text(write):
    assert errors(write(run="{dir: 5}")) == ["x.yaml:7: run.dir: expected a path or null, got 5"]


# The resolved form


def test_the_resolved_form_is_plain_and_starts_with_its_format(write, tmp_path):
    resolved = read(write(), [], TABLES).to_dict()
    assert next(iter(resolved.items())) == ("format", 1)
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["data"]["images"] == str(tmp_path / "images")
    assert resolved["loss"] == [{"name": "dice", "weight": 1.0, "per": "batch", "eps": 1e-5}]


def test_the_resolved_form_means_the_same_anywhere(write, tmp_path):
    config = read(write(run="{dir: here}"), [], TABLES)
    (tmp_path / "a/b").mkdir(parents=True)
    assert round_trip(config, tmp_path / "a/b") == config


@pytest.mark.parametrize("number", ["2", "0", "one"])
def test_another_format_is_refused(write, number):
    (found,) = errors(write(format=number))
    assert "x.yaml:7: format: " in found
    assert "cannot be read by this version" in found


def test_an_omitted_default_and_the_same_value_written_out_have_one_digest(write, tmp_path):
    omitted = read(write(model="{name: sized, size: [1, 2]}"), [], TABLES)
    written = read(write(model="{name: sized, size: [1, 2], dropout: 0}"), [], TABLES)
    assert omitted.digest() == written.digest() == round_trip(omitted, tmp_path).digest()


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
special_text = st.sampled_from(
    ["no", "null", "1e-4", "12:30", "2020-01-01", "~", "", " x", "a: b", "#c", "0x1", "- a", "'\""]
)
numbers = st.floats(1e-300, 1e300) | st.integers(0, 10**6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=(plain_text | special_text).filter(lambda text: not text.startswith(("/", "\\")) and ".." not in text),
    names=st.lists(plain_text | special_text, min_size=1, max_size=4),
    lr=numbers,
    widths=st.lists(st.integers(-(10**12), 10**12), max_size=40),
    value_map=st.none() | st.dictionaries(st.integers(0, 300), st.integers(0, 300), max_size=4),
    weights=st.lists(numbers, min_size=1, max_size=3),
    folder=st.text("abc {}#:$~é", min_size=1, max_size=12).filter(lambda name: "${" not in name),
)
def test_a_resolved_file_reads_back_equal(tmp_path, text, names, lr, widths, value_map, weights, folder):
    content = {
        "name": text,
        "labels": {"names": names},
        "data": {"name": "pairs", "images": folder, "pattern": text, "value_map": value_map},
        "model": {"name": "unet", "widths": widths},
        "loss": [{"name": "cross_entropy", "weight": weight, "class_weights": weights} for weight in weights],
        "optimizer": {"name": "adamw", "lr": lr},
        "train": {"epochs": 2},
    }
    path = tmp_path / "drawn.yaml"
    path.write_text(
        json.dumps(content, ensure_ascii=False).replace(json.dumps(value_map), yaml_keys(value_map)), "utf-8"
    )
    config = read(path, [], TABLES)
    again = round_trip(config, tmp_path)
    assert again == config
    assert again.digest() == config.digest()
    assert (config.name, list(config.labels.names), config.model.args["widths"]) == (text, names, widths)


def yaml_keys(mapping: dict[int, int] | None) -> str:
    """JSON turns the numbers of a mapping's keys into text; YAML has them as they are."""
    return re.sub(r'"(\d+)":', r"\1:", json.dumps(mapping))


def test_dump_writes_to_a_stream_and_to_a_path(write, tmp_path):
    config, stream = read(write(), [], TABLES), io.StringIO()
    dump(config, stream)
    dump(config, tmp_path / "resolved.yaml")
    assert (tmp_path / "resolved.yaml").read_text() == stream.getvalue()


# The digest


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "device=cpu",
        "run.dir=/elsewhere",
        "loader.workers=3",
        "train.log_every.steps=7",
        "data.images=/elsewhere",
    ],
)
def test_the_digest_is_the_same_wherever_an_experiment_runs(write, override):
    assert read(write(), [override], TABLES).digest() == read(write(), [], TABLES).digest()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "labels.names=[background, b]",
        "labels.ignore_index=255",
        "data.pattern=x",
        "split.name=kfold",
        "preprocess.intensity=none",
        "augment={engine: monai, transforms: [mirror]}",
        "sampling.foreground=0.5",
        "loader.batch=2",
        "model.widths=[8, 17]",
        "loss.0.weight=0.5",
        "loss.0.per=image",
        "optimizer.lr=0.1",
        "schedule.warmup=0.1",
        "train.steps=4",
        "train.epochs=3",
        "train.precision=bf16",
        "evaluation.threshold=0.4",
    ],
)
def test_the_digest_tells_experiments_apart(write, override):
    path = write(loss="[{name: dice}]")
    assert read(path, [override], TABLES).digest() != read(path, [], TABLES).digest()


def test_the_digest_is_twelve_hexadecimal_digits(write):
    assert re.fullmatch("[0-9a-f]{12}", read(write(), [], TABLES).digest())


# Around it


def test_importing_the_configuration_loads_neither_torch_nor_a_family():
    code = "import sys, segkit.config; print([m for m in sys.modules if m == 'torch' or m.startswith('segkit.')])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in output
    assert all(
        name.startswith(("segkit._version", "segkit.config", "segkit.utils"))
        for name in re.findall(r"segkit\.\w+", output)
    )
