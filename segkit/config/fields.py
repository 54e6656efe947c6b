"""Types of the fields of a configuration, with the bounds of their values."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from segkit.utils.field_errors import problem
from segkit.utils.text import shown

Count = Annotated[int, Field(ge=1, le=10**9)]
Sides = list[Annotated[int, Field(ge=1, le=2**16)]]
Seed = Annotated[int, Field(ge=0, le=2**53)]  # exact in JSON too
MaskValue = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # masks are 32-bit integers at most
NAME_BYTES = 200  # a file name has at most 255, and a run folder adds the digest


def _one_line(name: str) -> str:
    """A name that fits into a table and, with its special characters replaced, into a file name."""
    if len(name.encode()) > NAME_BYTES:
        raise problem(f"expected a name of at most {NAME_BYTES} bytes, got {len(name.encode())}")
    if any(letter in name for letter in "\n\t"):
        raise problem(f"expected a name on one line, without tabs, got {shown(name)}")
    return name


def _folder_name(name: str) -> str:
    """A name that is part of the path of a folder, inside the folder of all runs."""
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        raise problem(f"expected a name that stays inside the folder of the runs, without '..', got {shown(name)}")
    return _one_line(name)


Name = Annotated[str, AfterValidator(_one_line)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
