"""A JSON Schema of configuration files, for editors that complete and check them while they are written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from segkit.config.schema import GeneralSection
from segkit.config.sections import FIXED
from segkit.config.validation import Table

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXT: dict[str, Any] = {"type": "string"}
ENGINES = "augment."  # tables of transforms are called after their engine

Schema = dict[str, Any]


def json_schema(
    tables: Mapping[str, Table], named: Iterable[str], required: Iterable[str], optional: Iterable[str]
) -> Schema:
    """The schema of a configuration file.

    What a signature or a section cannot express, such as that `steps` and `epochs` exclude each other, is not part of
    it: `segkit config validate` checks that.

    Args:
        tables: The entries that can be named.
        named: Sections that are an entry of the table of their name.
        required: Sections that a file must have.
        optional: Sections that may be empty.
    """
    builder = _Builder(tables)
    sections = {key: builder.section(model) for key, model in FIXED.items()}
    sections |= {key: builder.entry(key) for key in named}
    sections |= {"loss": builder.loss(), "augment": builder.augment(), "logging": builder.logging()}
    sections["comparison"] = builder.comparison(sections["comparison"])
    for key in optional:
        sections[key] = {"anyOf": [sections[key], {"type": "null"}]}
    general = builder.definition(GeneralSection)
    builder.remove_copied()
    return {
        "$schema": DIALECT,
        "title": "segkit configuration",
        "type": "object",
        "properties": {**general["properties"], **sections},
        "required": list(required),
        "additionalProperties": False,
        "$defs": builder.definitions,
    }


class _Builder:
    """Makes the parts of the schema. definitions: those that they refer to, by name."""

    def __init__(self, tables: Mapping[str, Table]):
        self.tables = tables
        models = [*FIXED.values(), GeneralSection]
        with_options = [table for key, table in tables.items() if key not in ("recipe", "like", "preset")]
        models += [table.model(name) for table in with_options for name in table.entries]
        inputs = [(model, "validation") for model in dict.fromkeys(models)]
        references, schema = models_json_schema(inputs, ref_template="#/$defs/{model}")  # pyright: ignore
        self.references = {model: reference for (model, _mode), reference in references.items()}
        self.definitions: dict[str, Schema] = schema["$defs"]
        self.copied: set[Any] = {GeneralSection}  # models whose definitions are parts of others

    def section(self, model: Any) -> Schema:
        return dict(self.references[model])

    def definition(self, model: Any) -> Schema:
        return self.definitions[self._name(model)]

    def remove_copied(self) -> None:
        """Remove the definitions that nothing refers to any more."""
        for name in {self._name(model) for model in self.copied}:  # equal signatures share a definition
            del self.definitions[name]

    def _name(self, model: Any) -> str:
        return self.references[model]["$ref"].rpartition("/")[2]

    def entry(self, table: str, more: Callable[[str], Mapping[str, Schema]] = lambda _name: {}) -> Schema:
        """A name, or a mapping with a name and options. more: further keys of the mapping for a name."""
        variants: list[Schema] = []
        for name, entry in self.tables[table].entries.items():
            model = self.tables[table].model(name)
            self.copied.add(model)
            options = self.definition(model)
            definition = {
                **options,
                "title": name,
                "properties": {"name": {"const": name}, **options.get("properties", {}), **more(name)},
                "required": ["name", *options.get("required", [])],
            }
            if presets := getattr(entry, "presets", None):
                definition["properties"]["preset"] = {"enum": list(presets)}
                definition["required"] = ["name"]  # a preset may set the others
            if described := inspect.getdoc(entry):
                definition["description"] = described.partition("\n\n")[0].replace("\n", " ")
            self.definitions[f"{table}.{name}"] = definition
            variants.append({"$ref": f"#/$defs/{table}.{name}"})
        return {"anyOf": [{"enum": list(self.tables[table].entries)}, *variants]}

    def loss(self) -> Schema:
        """A loss, a recipe, a term, or a list of losses and terms."""
        weight = {"anyOf": [{"type": "number", "minimum": 0}, self.entry("weight")]}
        more = {"weight": weight, "like": {"enum": list(self.tables["like"].entries)}}
        self.definitions["term"] = self.entry("loss", lambda _name: more)
        term = {"$ref": "#/$defs/term"}
        self.definitions["loss"] = {
            "anyOf": [
                {"enum": list(self.tables["recipe"].entries)},
                term,
                {"type": "array", "items": term, "minItems": 1},
            ]
        }
        return {"$ref": "#/$defs/loss"}

    def augment(self) -> Schema:
        """The engine, and transforms of that engine."""
        engines = [key.removeprefix(ENGINES) for key in self.tables if key.startswith(ENGINES)]
        keys: Schema = {
            "engine": {"enum": ["none", *engines]},
            "preset": {"anyOf": [{"enum": list(self.tables["preset"].entries)}, {"type": "null"}]},
            "transforms": {"type": ["array", "null"]},
            "swap_on_flip": {
                "type": ["array", "null"],
                "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
            },
        }
        of_engine = [
            {
                "if": {"properties": {"engine": {"const": engine}}, "required": ["engine"]},
                "then": {"properties": {"transforms": {"items": self.entry(f"{ENGINES}{engine}")}}},
            }
            for engine in engines
        ]
        return {"type": "object", "properties": keys, "additionalProperties": False, "allOf": of_engine}

    def logging(self) -> Schema:
        """The trackers, and the short forms of two of them."""
        keys: Schema = {
            "trackers": {"type": ["array", "null"], "items": self.entry("tracker")},
            "tensorboard": {"type": ["boolean", "null"]},
            "mlflow": {"type": ["string", "null"]},
        }
        return {"type": "object", "properties": keys, "additionalProperties": False}

    def comparison(self, section: Schema) -> Schema:
        """The section with its losses by label as in the section `loss`."""
        definition = self.definition(FIXED["comparison"])
        loss = {"$ref": "#/$defs/loss"}
        losses = {"anyOf": [{"type": "array", "items": TEXT}, {"type": "object", "additionalProperties": loss}]}
        definition["properties"]["losses"] = {**definition["properties"]["losses"], **losses}
        return section
