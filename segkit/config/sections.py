"""Checks of the sections of a configuration; each returns the checked section, or None after an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segkit.config.schema import (
    Augment,
    CheckpointsSection,
    ComparisonSection,
    EvaluationSection,
    LabelsSection,
    LoaderSection,
    Logging,
    Named,
    ParametersSection,
    PreprocessSection,
    RunSection,
    SamplingSection,
    TrainSection,
)
from segkit.config.validation import Checker, Table
from segkit.utils.text import shown

FIXED = {
    "labels": LabelsSection,
    "preprocess": PreprocessSection,
    "sampling": SamplingSection,
    "loader": LoaderSection,
    "parameters": ParametersSection,
    "train": TrainSection,
    "checkpoints": CheckpointsSection,
    "evaluation": EvaluationSection,
    "run": RunSection,
    "comparison": ComparisonSection,
}


def fixed_keys() -> list[str]:
    """The dotted paths of the keys of the fixed sections."""
    return [f"{section}.{key}" for section, model in FIXED.items() for key in model.model_fields]


def keys_of_sections(tables: Mapping[str, Table], named: Sequence[str]) -> dict[str, str]:
    """The keys of all sections with their dotted paths; of a key in several sections, the first path.

    Args:
        tables: The entries that sections can name.
        named: The sections with an entry of the table of the same name.
    """
    keys = {path.rpartition(".")[2]: path for path in reversed(fixed_keys())}
    for section in reversed(named):
        for entry in tables[section].entries:
            keys |= {key: f"{section}.{key}" for key in tables[section].model(entry).model_fields}
    return keys


def check_part(checker: Checker, key: str, value: Any) -> Any:
    if key in FIXED:
        section = checker.section((key,), value, FIXED[key])
        if key == "comparison" and section is not None:
            _check_compared_losses(checker, section.losses)
        return section
    if key == "loss":
        return _check_loss(checker, ("loss",), value)
    if key == "augment":
        return _check_augment(checker, value)
    if key == "logging":
        return _check_logging(checker, value)
    return _check_named(checker, (key,), value, key)


def _check_logging(checker: Checker, value: Any) -> Logging | None:
    """The trackers, those of the short forms `tensorboard: true` and `mlflow: FILE` first."""
    if not isinstance(value, dict):
        return checker.error(("logging",), f"expected a mapping with trackers, got {shown(value)}")
    checker.known_keys(("logging",), value, ["trackers", "tensorboard", "mlflow"])
    tensorboard, file, listed = value.get("tensorboard"), value.get("mlflow"), value.get("trackers") or []
    if tensorboard not in (None, True, False):
        return checker.error(("logging", "tensorboard"), f"expected true or false, got {shown(tensorboard)}")
    if not isinstance(listed, list):
        return checker.error(("logging", "trackers"), f"expected a list of trackers, got {shown(listed)}")
    entries: list[tuple[tuple, Any]] = [(("logging", "tensorboard"), "tensorboard")] if tensorboard else []
    entries += [] if file is None else [(("logging", "mlflow"), {"name": "mlflow", "file": file})]
    entries += [(("logging", "trackers", number), entry) for number, entry in enumerate(listed)]
    checked = [_check_named(checker, path, entry, "tracker") for path, entry in entries]
    names = [tracker.name for tracker in checked if tracker is not None]
    for name in {name for name in names if names.count(name) > 1}:
        checker.error(("logging",), f"expected each tracker once, got {name} {names.count(name)} times")
    return Logging(tuple(tracker for tracker in checked if tracker is not None))


def _check_named(checker: Checker, path: tuple, value: Any, table: str) -> Named | None:
    chosen = checker.choose(path, value, table)
    if chosen is None:
        return None
    name, options = chosen
    options = _with_preset(checker, path, options, table, name)
    args = None if options is None else checker.arguments(path, options, table, name)
    return None if args is None else Named(name, args)


def _with_preset(
    checker: Checker, path: tuple, options: dict[str, Any], table: str, name: str
) -> dict[str, Any] | None:
    """The options with those of `preset`, a key of the attribute `presets` of the entry; explicit options win.

    The resolved configuration holds the options, so that a change of a preset is another experiment.
    """
    presets = getattr(checker.tables[table].entries[name], "presets", None)
    if not presets or "preset" not in options:
        return options
    preset = options["preset"]
    if not isinstance(preset, str) or preset not in presets:
        return checker.error((*path, "preset"), f"expected one of {', '.join(presets)}, got {shown(preset)}")
    return {**presets[preset], **{key: value for key, value in options.items() if key != "preset"}}


def _check_augment(checker: Checker, value: Any) -> Augment | None:
    """Expand a preset into its transforms, followed by those of the file."""
    path = ("augment",)
    if not isinstance(value, dict):
        return checker.error(path, f"expected a mapping with engine and transforms, got {shown(value)}")
    checker.known_keys(path, value, ["engine", "preset", "transforms", "swap_on_flip"])
    engine, preset, entries = value.get("engine", "none"), value.get("preset"), value.get("transforms") or []
    engines = [key.removeprefix("augment.") for key in checker.tables if key.startswith("augment.")]
    listed = f"{', '.join(map(repr, engines[:-1]))} or {engines[-1]!r}"
    if engine not in ("none", *engines):
        return checker.error((*path, "engine"), f"expected 'none', {listed}, got {shown(engine)}")
    if not isinstance(entries, list):
        return checker.error((*path, "transforms"), f"expected a list of transforms, got {shown(entries)}")
    if engine == "none" and (entries or preset not in (None, "none")):
        return checker.error((*path, "engine"), f"transforms need an engine: {listed}")
    transforms = [
        *_preset(checker, (*path, "preset"), preset, engine),
        *(
            _check_named(checker, (*path, "transforms", index), entry, f"augment.{engine}")
            for index, entry in enumerate(entries)
        ),
    ]
    swaps = _check_swaps(checker, (*path, "swap_on_flip"), value.get("swap_on_flip") or [])
    return Augment(engine, tuple(transform for transform in transforms if transform is not None), swaps)


def _preset(checker: Checker, path: tuple, preset: Any, engine: str) -> list[Named | None]:
    if preset is None or engine == "none":
        return []
    presets = checker.tables["preset"].entries
    if not isinstance(preset, str) or preset not in presets:
        checker.error(path, f"expected one of {', '.join(presets)}, got {shown(preset)}")
        return []
    try:
        entries = presets[preset](engine)
    except ValueError as error:
        checker.error(path, str(error))
        return []
    return [_check_named(checker, path, entry, f"augment.{engine}") for entry in entries]


def _check_swaps(checker: Checker, path: tuple, pairs: Any) -> tuple[tuple[str, str], ...]:
    fits = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
    )
    if not fits:
        checker.error(path, f"expected pairs of class names, such as [[left, right]], got {shown(pairs)}")
        return ()
    names = [name for pair in pairs for name in pair]
    if len(set(names)) < len(names):
        checker.error(path, f"expected each class in one pair only, got {shown(pairs)}")
    return tuple((first, second) for first, second in pairs)


def _check_compared_losses(checker: Checker, losses: list[str] | dict[str, Any]) -> None:
    path = ("comparison", "losses")
    for label, loss in losses.items() if isinstance(losses, dict) else enumerate(losses):
        name = loss.strip() if isinstance(loss, str) else loss
        if name != "":  # the comparison itself asks for names
            _check_loss(checker, (*path, label), name)


def _check_loss(checker: Checker, path: tuple, value: Any) -> tuple[dict[str, Any], ...] | None:
    """Check a loss: the name of a loss or recipe, a mapping, or a list of names and mappings."""
    recipes = checker.tables["recipe"].entries
    if isinstance(value, str) and value in recipes:
        value = recipes[value]
    if isinstance(value, str) and value not in checker.tables["loss"].entries:
        return checker.unknown_name(path, value, [*checker.tables["loss"].entries, *recipes])
    entries = value if isinstance(value, list) else [value]
    if not entries:
        return checker.error(path, "expected a name, a mapping or a list of them, got an empty list")
    terms = [
        _check_term(checker, (*path, index) if isinstance(value, list) else path, entry)
        for index, entry in enumerate(entries)
    ]
    return tuple(term for term in terms if term is not None)


def _check_term(checker: Checker, path: tuple, entry: Any) -> dict[str, Any] | None:
    chosen = checker.choose(path, entry, "loss")
    if chosen is None:
        return None
    name, options = chosen
    weight = _check_weight(checker, (*path, "weight"), options.pop("weight", 1.0))
    like = options.pop("like", None)
    if like is not None and (not isinstance(like, str) or like not in checker.tables["like"].entries):
        checker.unknown_name((*path, "like"), like, checker.tables["like"].entries)
    args = checker.arguments(path, options, "loss", name, also=("name", "weight", "like"))
    if args is None:
        return None
    if like is not None:  # options that are not set then follow the defaults of the library, not those of segkit
        args = {"like": like, **{key: value for key, value in args.items() if key in options}}
    return {"name": name, "weight": weight, **args}


def _check_weight(checker: Checker, path: tuple, value: Any) -> Any:
    """Check a weight: a number, or the name and arguments of a schedule."""
    if isinstance(value, dict):
        chosen = checker.choose(path, value, "weight")
        args = None if chosen is None else checker.arguments(path, chosen[1], "weight", chosen[0])
        return None if chosen is None or args is None else {"name": chosen[0], **args}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return checker.error(path, f"expected a number of at least 0, or a schedule, got {shown(value)}")
    return float(value)
