"""Hostile configurations, overrides and loss specifications.

A try survives if it ends in a checked configuration (a built loss), or in a ConfigError (ValueError) that names the
source and the place, and if it takes little time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from segkit.config import ConfigError
from segkit.config.sections import FIXED
from segkit.config.shipped import shipped_configs
from segkit.config.yaml_reader import parse_text
from segkit.experiment.build import TABLES, load_config, restore_config
from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES, build_loss
from segkit.losses.library_presets import PRESETS
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES

SECONDS = 5.0  # of processor time for one try
LONGEST_LINE = 2000  # characters of a message
SOURCE = "the configuration in the checkpoint"

# YAML text that has a meaning of its own, is out of range, or is easily misread
TOKENS = [
    *(".nan", ".inf", "-.inf", "-1", "0", "-0.0", "1e400", "1e308", str(10**30), "9" * 5000, "1" * 101, "0x1F", "0o17"),
    *("1_000", "12:30:30", "2025-31-12", "2025-01-01", "null", "~", "true", "no", "=", "<<", "[]", "{}", "''", '""'),
    *(
        "&a 1",
        "*a",
        "&a [*a]",
        "&a {<<: *a}",
        "{<<: {a: 1}}",
        "{<<: 1}",
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!null x",
    ),
    *(
        "!!str 1",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!timestamp x",
        "!!python/object/apply:os.system [ls]",
    ),
    *("!x y", "!<tag:x> y", '"\\0"', '"\\ud800"', '"\\UFFFFFFFF"', '"\\x1b[31m"', "../x", "/etc/passwd", "x" * 5000),
    *("[" * 300, "{a: " * 40 + "1" + "}" * 40, "? " * 50, "- " * 50, "[[[[1]]]]", "{1: 2, a: [1]}", "? [a]\n: 1"),
    *("|", ">", "'", '"', "%YAML 1.1\n---\n", "%TAG ! x\n---\n", "---\n", "...\n", "\t", "\n", "#", ":", ",", "@", "`"),
    *("\ufeff", "\x85", "\u2028", "\x00", "é", "${HOME}", "${NO_SUCH_VARIABLE}", "[1000000000, 1000000000]"),
]
# what can stand where a configuration, a checkpoint or a caller in Python should have a value
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 10**6, 10**9, 10**12, 2**63, 10**400, 0.0, 0.5, 1.0, -0.5, 1e-300, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "none", "x", "../x", "\0", "\ud800", "\x1b[31m", "x" * 5000),
    *([], {}, [None], [0], [1, 2], [8, 8], [16, 16, 16], [1e9, 1e9], [10**9, 10**9], ["a", "a"], [[]], [[[]]], [{}]),
    *({"name": None}, {"name": []}, {"steps": 1}, {"steps": -1}, {"epochs": 1e308}, {"fraction": 2}, {"a": {"b": [1]}}),
    *({1: 2}, {None: 1}, {(1, 2): 3}, (1, 2), {1, 2}, b"x", 1j, Path("x"), Path("\0"), np.float64(1), np.int64(1)),
    *(
        np.zeros(2),
        torch.zeros(2),
        object,
        Ellipsis,
        range(3),
        [0.5] * 3,
        ["x"] * 20_000,
        {f"k{i}": i for i in range(300)},
    ),
]


KEYS = [None, True, 1, 0.5, float("nan"), "", "\0", "x" * 5000, (1, 2), b"x", 10**400]


def _deep() -> Any:
    value: Any = []
    for _ in range(5000):
        value = [value]
    return value


def _recursive() -> Any:
    value: dict[str, Any] = {}
    value["name"] = value
    return value


VALUES += [_deep(), _recursive()]


def _outcome(call: Callable[[], Any], error_class: type[ValueError], says_where: Callable[[str], bool]) -> str | None:
    """None if a call survives, otherwise what went wrong."""
    start = time.process_time()
    try:
        call()
    except error_class as error:
        message = str(error)
        if not message or not all(says_where(line) for line in message.splitlines() if not line.startswith("  ")):
            return f"a message without a place: {message[:300]!r}"
        if max(map(len, message.splitlines())) > LONGEST_LINE:
            return f"a message of {len(message)} characters: {message[:300]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - start
    return None if seconds < SECONDS else f"{seconds:.1f} s of processor time"


def _begins(starts: str | tuple[str, ...], line: str) -> bool:
    return line.startswith(starts)


def _names_loss(line: str) -> bool:
    return "loss" in line


def _described(problem: str | None, subject: object) -> str | None:
    return None if problem is None else f"{problem}, for {str(subject)[:1500]!r}"


def _shipped() -> list[str]:
    return [file.read_text(encoding="utf-8") for file in shipped_configs().values()]


def _trees() -> list[dict[str, Any]]:
    return [parse_text(text)[0] for text in _shipped()]


# --- text ------------------------------------------------------------------------------------------------------------


def _cut(text: str, random: Random) -> tuple[int, int]:
    start = random.randrange(len(text) + 1)
    return start, min(len(text), start + random.choice([1, 1, 2, 5, 20, 100]))


def _mutated(text: str, random: Random, texts: list[str]) -> str:
    """The text after one random change."""
    start, stop = _cut(text, random)
    lines = text.splitlines(keepends=True)
    kind = random.randrange(8)
    if kind == 0:
        return text[:start] + text[stop:]
    if kind == 1:
        return text[:start] + text[start:stop] * random.choice([2, 3, 50]) + text[stop:]
    if kind == 2:
        return text[:start] + random.choice(TOKENS) + text[stop:]
    if kind == 3:
        other = random.choice(texts)
        return text[:start] + other[_cut(other, random)[0] :]
    if kind == 4 and lines:
        random.shuffle(lines)
        return "".join(lines)
    if kind == 5 and lines:
        number = random.randrange(len(lines))
        lines[number] = " " * random.randrange(9) + lines[number].lstrip()
        return "".join(lines)
    # most changes replace the value of a key, so that the text stays YAML
    places = [place for place, letter in enumerate(text) if letter in ":,[" and text[place + 1 : place + 2] != ""]
    if not places:
        return text + random.choice(TOKENS)
    start = random.choice(places) + 1
    stop = min((text.find(letter, start) % (len(text) + 1) for letter in ",]}\n"), default=len(text))
    return f"{text[:start]} {random.choice(TOKENS)}{text[stop:]}"


def mutated_texts(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """YAML text mutated from the shipped configurations, sometimes as bytes that are no UTF-8."""
    random, texts, file = Random(seed), _shipped(), folder / "mutated.yaml"
    for _ in range(tries):
        text = random.choice(texts)
        for _change in range(random.choice([1, 1, 2, 3, 6])):
            text = _mutated(text, random, texts)
        content = bytearray(text.encode("utf-8", "surrogatepass"))
        if random.random() < 0.1 and content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        if random.random() < 0.02:
            content = bytearray(text.encode("utf-16", "surrogatepass"))
        file.write_bytes(content)
        problem = _outcome(partial(load_config, file), ConfigError, partial(_begins, str(file)))
        yield _described(problem, bytes(content))


# --- trees -----------------------------------------------------------------------------------------------------------


def _options(section: str, value: Any) -> list[str]:
    """The options that a section knows."""
    if section in FIXED:
        return list(FIXED[section].model_fields)
    name = value.get("name") if isinstance(value, Mapping) else None
    if section in TABLES and isinstance(name, str) and name in TABLES[section].entries:
        return [*TABLES[section].model(name).model_fields, "name"]
    return ["name", "weight", "like", "per", "engine", "preset", "transforms", "swap_on_flip"]


def _value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(10)
    if kind == 0 and depth < 3:
        return [_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 1 and depth < 3:
        return {random.choice(_NAMES): _value(random, depth + 1) for _ in range(random.randrange(4))}
    if kind == 2:
        return random.choice(_NAMES)
    if kind == 3:
        return random.choice([-1, 1]) * 10 ** random.uniform(-5, 12)
    if kind == 4:
        return random.randrange(-2, 10 ** random.randrange(1, 14))
    if kind == 5:
        return [random.randrange(1, 2 ** random.randrange(1, 34)) for _ in range(random.randrange(1, 6))]
    return random.choice(VALUES)


_NAMES = [
    *(name for table in TABLES.values() for name in table.entries),
    *(option for model in FIXED.values() for option in model.model_fields),
    *(name for name in (*WEIGHT_SCHEDULES, *PRESETS, "name", "weight", "like", "background", "median", "auto", "cpu")),
]


def _change(tree: dict[str, Any], random: Random) -> None:
    """Change one value of a configuration in place."""
    sections = [*FIXED, "data", "split", "model", "optimizer", "schedule", "loss", "augment"]
    if random.random() < 0.1:
        tree[random.choice([*sections, "name", "seed", "device", "plugins", "format", "no_such"])] = _value(random)
        return
    section = random.choice(sections)
    if section in TABLES and random.random() < 0.3:
        tree[section] = {"name": random.choice(list(TABLES[section].entries))}
    content = tree.get(section)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        content = content[0]
    content = dict(content) if isinstance(content, dict) else {"name": content} if isinstance(content, str) else {}
    tree[section] = content
    content[random.choice(_options(section, content))] = _value(random)


def _grown(random: Random, trees: list[dict[str, Any]]) -> dict[str, Any]:
    tree = _copied(random.choice(trees))
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        _change(tree, random)
    return tree


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def grown_trees(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Configurations in Python, of which some values are replaced by others, known and unknown."""
    random, trees = Random(seed), _trees()
    for _ in range(tries):
        tree = _grown(random, trees)
        problem = _outcome(partial(load_config, tree), ConfigError, partial(_begins, "experiment"))
        yield _described(problem, _shortened(tree))


def stored_trees(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """The same as the configuration in a checkpoint, or anything else in its place."""
    random, trees = Random(seed), _trees()
    for _ in range(tries):
        tree: Any = _grown(random, trees) if random.random() < 0.9 else _value(random)
        problem = _outcome(partial(restore_config, tree), ConfigError, partial(_begins, SOURCE))
        yield _described(problem, _shortened(tree))


def _shortened(tree: Any) -> str:
    try:
        return repr(tree)
    except (RecursionError, ValueError):
        return "a tree that cannot be printed"


# --- overrides -------------------------------------------------------------------------------------------------------


def _override(random: Random, tree: dict[str, Any]) -> str:
    section = random.choice(list(tree))
    options = _options(section, tree[section])
    key = random.choice([section, f"{section}.{random.choice(options)}", f"{section}.0.{random.choice(options)}"])
    if random.random() < 0.1:
        key = random.choice(
            ["", ".", "..", "a.b", "loss.0", "loss.99999999999999999999", "x." * 5000, "train.steps.x", "\0"]
        )
    value = random.choice([random.choice(TOKENS), _shortened(_value(random))[:20_000]])
    return f"{key}={value}" if random.random() < 0.98 else key


def overrides(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Overrides of the shipped configurations, with hostile keys and values."""
    random, files = Random(seed), list(shipped_configs().values())
    trees = _trees()
    for _ in range(tries):
        number = random.randrange(len(files))
        texts = [_override(random, trees[number]) for _ in range(random.choice([1, 1, 2, 3]))]
        problem = _outcome(
            partial(load_config, files[number], texts),
            ConfigError,
            partial(_begins, (str(files[number]), "override '")),
        )
        yield _described(problem, texts)


# --- losses ----------------------------------------------------------------------------------------------------------

LABELS = [
    Labels(["background", "a", "b"], ignore_index=255),
    Labels(["background", "a"], mode="binary"),
    Labels(["a", "b"], mode="multilabel", ignore_index=7),
]
COUNTS = {"pixels": np.array([[5, 3, 2]]), "components": np.array([[1, 2, 3]])}


def _term(random: Random) -> Any:
    if random.random() < 0.1:
        return _value(random)
    name = random.choice(list(LOSSES))
    term: dict[Any, Any] = {"name": name}
    options = [*TABLES["loss"].model(name).model_fields, "weight", "like", "name", "no_such"]
    for option in random.sample(options, random.choice([0, 1, 1, 2])):
        term[option] = _value(random)
    if random.random() < 0.2:
        term["weight"] = {
            "name": random.choice(list(WEIGHT_SCHEDULES)),
            random.choice(["start", "end"]): _value(random),
        }
    if random.random() < 0.2:
        term["like"] = random.choice(list(PRESETS))
    if random.random() < 0.1:
        term[random.choice(KEYS)] = 1 if random.random() < 0.5 else term
    return term


def _spec(random: Random) -> Any:
    kind = random.randrange(10)
    if kind == 0:
        return _value(random)
    if kind == 1:
        return random.choice([*LOSSES, *RECIPES, "x", ""])
    return [_term(random) for _ in range(random.choice([1, 2, 3]))] if kind < 6 else _term(random)


def loss_specs(_folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Specifications of losses with options of any type."""
    random = Random(seed)
    for _ in range(tries):
        spec, labels = _spec(random), random.choice(LABELS)
        counts = COUNTS if labels is LABELS[0] and random.random() < 0.5 else None
        problem = _outcome(partial(build_loss, spec, labels, counts), ValueError, _names_loss)
        yield _described(problem, _shortened(spec))


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    "configuration files with mutated text": mutated_texts,
    "configurations with unexpected values": grown_trees,
    "configurations in checkpoints with unexpected values": stored_trees,
    "hostile overrides": overrides,
    "hostile loss specifications": loss_specs,
}
