"""Options of functions and classes, checked by pydantic against the annotations of their signatures."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, create_model

from segkit.utils.durations import Units
from segkit.utils.field_errors import PROBLEM
from segkit.utils.text import shown

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}


@cache
def signature_model(
    entry: Callable[..., Any], injected: frozenset[str] = frozenset(), allow_inf_nan: bool = False
) -> type[BaseModel]:
    """The signature of a function or class as a pydantic model: annotations check values, defaults are filled in.

    injected: parameters that the program fills in and the user cannot set.
    allow_inf_nan: whether numbers may be infinite or NaN.
    """
    function = entry.__init__ if isinstance(entry, type) else entry
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry).parameters.items():
        if name not in injected:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (_with_exact_literals(hints.get(name, Any)), default)
    # Defaults are validated too: a default 0 of a float becomes 0.0, as it does when a resolved file is read again.
    config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=allow_inf_nan, validate_default=True)
    return create_model(entry.__name__, __config__=config, **fields)


def _with_exact_literals(annotation: Any) -> Any:
    """The annotation, with `Literal` values compared by type too; pydantic takes True and 1.0 for Literal[1]."""
    literals = literal_values(annotation)
    only_literals = all(get_origin(member) is Literal or member is type(None) for member in union_members(annotation))
    if not only_literals or not any(isinstance(literal, int) for literal in literals):
        return annotation

    def check_type(value: Any) -> Any:
        if any(value == literal and type(value) is not type(literal) for literal in literals):
            raise ValueError(f"expected {describe(annotation)}, got {shown(value)}")
        return value

    return Annotated[annotation, BeforeValidator(check_type)]


def first_errors(error: ValidationError) -> dict[str, Any]:
    """The first problem of each field; a union reports one problem for each of its members.

    A problem with a message of its own comes before those that pydantic describes.
    """
    first: dict[str, Any] = {}
    for details in sorted(error.errors(), key=lambda details: details["type"] != PROBLEM):
        first.setdefault(str(details["loc"][0]), details)
    return first


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation is its own single member."""
    is_union = get_origin(annotation) in (typing.Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def accepted_as_text(value: str, members: Sequence[Any]) -> bool:
    """Whether a text is a value of one of the members of a union other than a path, such as one of its literals."""
    for member in members:
        if member is not Path:
            try:
                TypeAdapter(member).validate_python(value, strict=True)
            except ValidationError:
                continue
            return True
    return False


def literal_values(annotation: Any) -> list[Any]:
    """All values that the `Literal` members of an annotation allow."""
    return [
        value for member in union_members(annotation) if get_origin(member) is Literal for value in get_args(member)
    ]


def is_mapping_type(annotation: Any) -> bool:
    """Whether an annotation is a `TypedDict`."""
    return typing.is_typeddict(annotation) or hasattr(annotation, "__required_keys__")


def describe(annotation: Any) -> str:
    """A type in the words of someone who writes YAML."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return " or ".join(repr(value) for value in arguments)
    if origin is Annotated:
        return describe(arguments[0])
    if annotation is Units:
        return "a length as {steps: N}, {epochs: N} or {fraction: F}"
    if is_mapping_type(annotation):
        return f"a mapping with {', '.join(annotation.__annotations__)}"
    if origin in (list, Sequence, tuple):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if origin in (dict, Mapping):
        return f"a mapping from {describe(arguments[0])} to {describe(arguments[1])}"
    return str(annotation)
