"""Errors that end a command with a message and an exit code instead of a traceback."""

from __future__ import annotations

import re


class DataError(ValueError):
    """Invalid input data. The message names the case, the file and the value, and says how to fix it."""

    exit_code = 3

    @property
    def messages(self) -> tuple[str, ...]:
        """One message per problem."""
        return (str(self),)


class DataErrors(DataError):
    """Several problems with one case."""

    def __init__(self, *errors: DataError):
        super().__init__("\n".join(map(str, errors)))
        self._messages = tuple(str(error) for error in errors)

    @property
    def messages(self) -> tuple[str, ...]:
        return self._messages


class RunError(ValueError):
    """A command cannot use a run folder, or its options, as requested."""

    exit_code = 2


class MissingExtra(ImportError):
    """An optional dependency is not installed. The message names what needs it and the extra that installs it."""

    exit_code = 2


def reason(error: BaseException) -> str:
    """The message of a library's exception as a reason: one line, without objects in memory and bare class names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\s*<[^<>]* object at 0x[0-9a-f]+>", " its content", lines[-1] if lines else "")
    if isinstance(error, KeyError):
        return f"the entry {text} is missing"
    if not text:
        return f"the library that reads it gives no reason ({type(error).__name__})"
    return text
