"""Reading JSON files that describe data: every field is checked, and errors name file, entry and field."""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from segkit.data.formats.header_checks import check_file_bytes
from segkit.utils.errors import DataError
from segkit.utils.text import is_control, listed, one_line

SHOWN = 3  # problems named in a message
MAX_DEPTH = 500  # of lists and objects within each other
MAX_NAME, MAX_PATH = 255, 4096  # bytes of a file name and of a path, as file systems limit them
MAX_TEXT_BYTES = 1 << 28  # of a list of names or a table
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
Content = TypeVar("Content")


def _identifier(value: Any) -> Any:
    """An identifier as a number if it is one: `"7"` and `7` are the same."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value) else value


def name_problem(name: str) -> str | None:
    """Why text can be no name or path of a file; None if it can."""
    if not name.strip():
        return "a name, got none"
    if any(map(is_control, name)):
        return f"a name without control characters, got {one_line(name, 80)}"
    size, longest = len(name.encode()), max(len(part.encode()) for part in name.split("/"))
    if longest > MAX_NAME or size > MAX_PATH:
        return f"names of at most {MAX_NAME} bytes in a path of at most {MAX_PATH}, got {longest} and {size} bytes"
    return None


def _file_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _text(text: str) -> str:
    if len(text) > MAX_NAME or any(map(is_control, text)):
        raise ValueError(f"text of at most {MAX_NAME} characters without control characters, got {one_line(text, 80)}")
    return text


Text = Annotated[str, AfterValidator(_text)]
FileName = Annotated[str, AfterValidator(_file_name)]
Identifier = Annotated[int | Text, BeforeValidator(_identifier)]


class Entry(BaseModel):
    """An object of a JSON file. Fields that are not declared are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def read_json(file: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without byte order mark. Raises DataError."""
    try:
        check_file_bytes(file, str(file))
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} does not exist") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} cannot be read: it is no text in UTF-8, UTF-16 or UTF-32") from error
    except RecursionError:
        raise DataError(
            f"{file} cannot be read as JSON: expected lists and objects within each other to a depth of at most "
            f"{MAX_DEPTH}, got more"
        ) from None
    except DataError:
        raise
    except json.JSONDecodeError as error:  # its message names line and column
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    except ValueError as error:  # of Python, whose limit protects from slow conversions
        raise DataError(f"{file} cannot be read as JSON: expected numbers of at most 4300 digits, got more") from error


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark. Raises DataError."""
    try:
        check_file_bytes(file, str(file), MAX_TEXT_BYTES)
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} cannot be read: it is no text in UTF-8 (byte {error.start:,})") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def read_document(file: Path, kind: type[Content]) -> Content:
    """Read a JSON file as a type that pydantic can check. Raises DataError that names file, entry and field."""
    return checked(read_json(file), kind, file)


def checked(content: Any, kind: type[Content], file: Path | str) -> Content:
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
            parts.append(f"{step} (id {one_line(content['id'], 40)})" if has_id else one_line(step, 80))
        # any other step is the type of a union that pydantic tried
    if problem["type"] == "missing":
        parts.append(one_line(last, 80))
    return ", ".join(parts) or "the file"


def _problem(problem: Any) -> str:
    if problem["type"] == "missing":
        return "is missing"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if ", got " in message:
        return f"expected {one_line(message)}"
    got = _repr.repr(problem["input"])
    return f"expected {one_line(message)}, got {got if len(got) <= 80 else f'{got[:80]} ...'}"
