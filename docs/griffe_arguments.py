"""An extension of griffe: reads lines such as `name: meaning` in docstrings as descriptions of arguments.

segkit's docstrings describe arguments in plain lines. In the API reference they should appear as a list.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from griffe import Class, Extension, Function

LINE = re.compile(r"(\w+(?:, \w+)*): (\S.*)")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (\S.*)$", re.MULTILINE)  # a line of a section that describes several names


class Arguments(Extension):
    """Turns such lines into a section that the docstring parser knows."""

    def on_function(self, *, func: Function, **_: object) -> None:
        _rewrite(func, "Args", [parameter.name for parameter in func.parameters])

    def on_class(self, *, cls: Class, **_: object) -> None:
        _rewrite(cls, "Attributes", list(cls.attributes))


def _rewrite(described: Function | Class, section: str, names: Collection[str]) -> None:
    if described.docstring is None:
        return
    if f"{section}:\n" in described.docstring.value:
        described.docstring.value = SHARED.sub(_one_line_per_name, described.docstring.value)
    else:
        described.docstring.value = with_section(described.docstring.value, section, names)


def _one_line_per_name(match: re.Match[str]) -> str:
    indent, names, meaning = match.groups()
    return "\n".join(f"{indent}{name}: {meaning}" for name in names.split(", "))


def with_section(text: str, section: str, names: Collection[str]) -> str:
    """The docstring with its first block of argument lines as a section, several names on a line split up."""
    before: list[str] = []
    entries: list[str] = []
    after: list[str] = []
    for line in text.splitlines():
        match = LINE.fullmatch(line.rstrip())
        described = match.group(1).split(", ") if match else []
        if match and not after and all(name in names for name in described):
            entries += [f"    {name}: {match.group(2)}" for name in described]
        elif not entries:
            before.append(line)
        elif after or not line.strip():
            after.append(line)
        else:
            entries.append(f"        {line.strip()}")
    return "\n".join([*before, "", f"{section}:", *entries, *after]) if entries else text
