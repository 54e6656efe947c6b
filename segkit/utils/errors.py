"""Errors that end a command with a message and an exit code instead of a traceback."""

from __future__ import annotations

import re
from pathlib import Path


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


def kept(error: DataError) -> DataError:
    """An error that is kept for a list of all, without its traceback, which would keep the pixels of its case in
    memory."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


class RunError(ValueError):
    """A command cannot use a run folder, or its options, as requested."""

    exit_code = 2


class MissingExtra(ImportError):
    """An optional dependency is not installed. The message names what needs it and the extra that installs it."""

    exit_code = 2


OUT_OF_MEMORY_SIGNS = (
    "out of memory",  # CUDA
    "can't allocate memory",  # torch on the CPU
    "could not create a primitive",  # oneDNN
    "Unable to allocate",  # NumPy
    "Insufficient memory",  # OpenCV
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device and in any library."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


_FOLDER = "segkit_folder"


def set_folder(error: BaseException, folder: Path) -> None:
    """Note the run folder in which an error arose, where its traceback belongs if it is a bug."""
    error.__dict__.setdefault(_FOLDER, folder)


def folder_of(error: BaseException) -> Path | None:
    """The run folder in which an error arose; None if it arose in no run, or the folder is gone."""
    folder = error.__dict__.get(_FOLDER)
    return folder if folder is not None and folder.is_dir() else None


def reason(error: BaseException) -> str:
    """The message of a library's exception as a reason: one line, without objects in memory and bare class names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\s*<[^<>]* object at 0x[0-9a-f]+>", "", lines[-1] if lines else "")
    if isinstance(error, KeyError):
        return f"the entry {text} is missing"
    if not text:
        return f"the library that reads it gives no reason ({type(error).__name__})"
    return text
