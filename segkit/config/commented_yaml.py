"""Write a configuration as YAML with comments, for people to read and edit."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

WIDTH = 110  # of comments


def commented_yaml(sections: Mapping[str, Any], reasons: Mapping[str, Sequence[str]], top: Sequence[str]) -> str:
    """YAML text. reasons: lines of comment before a section or a `section.key`. top: lines at the beginning."""
    content = CommentedMap()
    content.yaml_set_start_comment(_wrapped(top))
    for name, section in sections.items():
        content[name] = _section(name, section, reasons)
        content.yaml_set_comment_before_after_key(name, before=_wrapped(["", *reasons.get(name, [])]))
    yaml, text = YAML(), io.StringIO()
    yaml.width = 2**20
    yaml.dump(content, text)
    return text.getvalue()


def _section(name: str, section: Any, reasons: Mapping[str, Sequence[str]]) -> Any:
    """One key per line, with nested values in flow style, `[...]` and `{...}`."""
    if not isinstance(section, Mapping):
        return _flow(section)
    commented = CommentedMap({key: _flow(value) for key, value in section.items()})
    for key in section:
        lines = reasons.get(f"{name}.{key}")
        if lines:
            commented.yaml_set_comment_before_after_key(key, before=_wrapped(lines), indent=2)
    return commented


def _wrapped(lines: Sequence[str]) -> str:
    return "\n".join("\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="  ")) for line in lines)


def _flow(value: Any) -> Any:
    if isinstance(value, Mapping):
        flow: Any = CommentedMap({key: _flow(item) for key, item in value.items()})
    elif isinstance(value, (list, tuple)):
        flow = CommentedSeq([_flow(item) for item in value])
    else:
        return value
    flow.fa.set_flow_style()
    return flow
