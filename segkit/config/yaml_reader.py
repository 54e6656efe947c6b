"""YAML text as plain data with the line of every key. The bounds keep the time short that any text can take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import MappingStartEvent, SequenceStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

KeyPath = tuple

MAX_BYTES = 2**18  # of a file, or characters of text
MAX_DEPTH = 32  # of mappings and lists inside each other
MAX_VALUES = 10_000  # keys excluded, aliases expanded
MAX_DIGITS = 100  # of a number

TAG = "tag:yaml.org,2002:"
TEXT = ("str", "timestamp", "value", "merge")  # dates, and what YAML 1.1 reads as an operator, stay text
NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


class YamlProblem(ValueError):
    """Text that is not valid YAML, or exceeds a bound. line: where, counted from 1; None if unknown."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


def parse_text(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """YAML text as plain data (None, bool, int, float, str, list, dict), and the line of every key path.

    Dates stay text, and an alias becomes a copy. Raises YamlProblem.
    """
    if len(text) > MAX_BYTES:
        raise YamlProblem(f"expected at most {MAX_BYTES} characters of YAML, got {len(text)}")
    yaml = YAML(typ="safe", pure=True)
    node = _compose(yaml, text)
    reader = _Reader(yaml.constructor)
    return (None if node is None else reader.value(node, ())), reader.lines


class _BoundedComposer(Composer):
    """Makes the tree of nodes, and stops at the bounds, before recursion or memory does."""

    nodes = 0
    collections = 0  # around the next node

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        opens = isinstance(event, (MappingStartEvent, SequenceStartEvent))
        self.nodes += 1
        self.collections += opens
        line = event.start_mark.line + 1
        if self.collections > MAX_DEPTH:
            raise _too_deep(line)
        if self.nodes > 2 * MAX_VALUES:  # here keys count too
            raise _too_many(line)
        node = super().compose_node(parent, index)
        self.collections -= opens
        return node


def _compose(yaml: YAML, text: str) -> Node | None:
    """The tree of nodes of one document; it is not expanded, so aliases cost nothing here."""
    try:
        yaml.Composer = _BoundedComposer
        yaml.composer.warn_double_anchors = False
        return yaml.compose(text)
    except MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlProblem((error.problem or str(error)).splitlines()[0], line) from error
    except YamlProblem:
        raise
    except (YAMLError, ValueError, OverflowError) as error:  # the last two from numbers in escapes and directives
        line = getattr(error, "line", None)
        raise YamlProblem(str(error).splitlines()[0] if str(error) else "unreadable YAML", line) from error


def _too_deep(line: int) -> YamlProblem:
    return YamlProblem(f"expected at most {MAX_DEPTH} mappings and lists inside each other, got more", line)


def _too_many(line: int) -> YamlProblem:
    return YamlProblem(f"expected at most {MAX_VALUES} values, counting every use of an alias, got more", line)


@dataclass
class _Reader:
    """Converts nodes to plain data. constructor: of ruamel.yaml. lines: of the keys and list items that were read."""

    constructor: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    values: int = 0
    open: list[Node] = field(default_factory=list)  # the nodes around the current one

    def value(self, node: Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.values += 1
        if self.values > MAX_VALUES:
            raise _too_many(line)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if any(node is other for other in self.open):
            raise YamlProblem("an alias refers to a mapping or list that contains it", line)
        if len(self.open) >= MAX_DEPTH:
            raise _too_deep(line)
        self.open.append(node)
        content = self._collection(node, path)
        self.open.pop()
        return content

    def _collection(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, MappingNode) and node.tag == f"{TAG}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{TAG}seq":
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        raise _unknown_tag(node)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{TAG}merge":
                merged = {**self._merged(value_node), **merged}
                continue
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in own:
                raise YamlProblem(f'found duplicate key "{key!s:.100}"', line)
            self.lines[(*path, key)] = line
            own[key] = self.value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: Node) -> dict[Any, Any]:
        """The content of `<<: *alias` or `<<: [*first, *second]`, in which the first one has precedence."""
        lines, self.lines = self.lines, {}  # keys that are merged in have no line of their own
        content = self.value(node, ())
        self.lines = lines
        sources = content if isinstance(content, list) else [content]
        if not all(isinstance(source, dict) for source in sources):
            raise YamlProblem("expected a mapping, or a list of mappings, after '<<:'", node.start_mark.line + 1)
        return {key: item for source in reversed(sources) for key, item in source.items()}

    def _key(self, node: Node) -> str | int:
        key = self._scalar(node) if isinstance(node, ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            shown = repr(node.value) if isinstance(node, ScalarNode) else "a mapping or list"
            raise YamlProblem(f"expected text or a whole number as a key, got {shown:.100}", node.start_mark.line + 1)
        return key

    def _scalar(self, node: ScalarNode) -> Any:
        """The value of a scalar, converted by ruamel.yaml."""
        kind, line = str(node.tag).removeprefix(TAG), node.start_mark.line + 1
        if kind in TEXT:  # JSON writes a letter beyond 2^16 as two escapes
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if kind == "null":
            return None
        if kind not in NUMBERS:
            raise _unknown_tag(node)
        if len(node.value) > MAX_DIGITS:
            raise YamlProblem(f"expected a number of at most {MAX_DIGITS} characters, got {len(node.value)}", line)
        try:
            return getattr(self.constructor, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError) as error:
            raise YamlProblem(f"expected {NUMBERS[kind]} after !!{kind}, got {node.value!r:.100}", line) from error


def _unknown_tag(node: Node) -> YamlProblem:
    message = f"the tag {str(node.tag)!r:.100} is not supported: write plain YAML without tags"
    return YamlProblem(message, node.start_mark.line + 1)
