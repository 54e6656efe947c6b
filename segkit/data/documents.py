"""Reading JSON files that describe data: every field is checked, and errors name file, entry and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from segkit.utils.errors import DataError
from segkit.utils.text import listed

SHOWN = 3  # problems named in a message
Content = TypeVar("Content")


def _identifier(value: Any) -> Any:
    """An identifier as a number if it is one: `"7"` and `7` are the same."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


Identifier = Annotated[int | str, BeforeValidator(_identifier)]


class Entry(BaseModel):
    """An object of a JSON file. Fields that are not declared are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def read_json(file: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without byte order mark. Raises DataError."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} does not exist") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} cannot be read: it is no text in UTF-8, UTF-16 or UTF-32") from error
    except ValueError as error:  # the message of the JSON reader names line and column
        raise DataError(f"{file} cannot be read as JSON: {error}") from error


def read_document(file: Path, kind: type[Content]) -> Content:
    """Read a JSON file as a type that pydantic can check. Raises DataError that names file, entry and field."""
    return checked(read_json(file), kind, file)


def checked(content: Any, kind: type[Content], file: Path) -> Content:
    """The content of a file as a type that pydantic can check. Raises DataError that names file, entry and field."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        texts = [f"{_place(problem, content)}: {_problem(problem)}" for problem in problems]
        raise DataError(f"{file}: {listed(list(dict.fromkeys(texts)), limit=SHOWN, separator='; ')}") from None


def _place(problem: Any, content: Any) -> str:
    """The path to a field: keys and numbers of entries, with the `id` of those that have one."""
    *outer, last = problem["loc"] or ("",)
    parts: list[str] = []
    for step in [*outer, last]:
        if (isinstance(content, dict) and step in content) or (isinstance(content, list) and isinstance(step, int)):
            content = content[step]
            has_id = isinstance(step, int) and isinstance(content, dict) and "id" in content
            parts.append(f"{step} (id {content['id']})" if has_id else str(step))
        # any other step is the type of a union that pydantic tried
    if problem["type"] == "missing":
        parts.append(str(last))
    return ", ".join(parts) or "the file"


def _problem(problem: Any) -> str:
    if problem["type"] == "missing":
        return "is missing"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    got = repr(problem["input"])
    return f"expected {message}, got {got if len(got) <= 80 else f'{got[:80]} ...'}"
