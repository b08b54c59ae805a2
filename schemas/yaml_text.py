"""Reading YAML text strictly: YAML 1.2 scalars, no duplicate keys, the line of every key. Plain data only, no tags, no objects.

PyYAML follows YAML 1.1, which reads `no` as false, `24:00:00` as 86400 and `1e-6` as text. A recipe means what it
says, so the scalars here follow YAML 1.2's core schema (and digits may be grouped: `3_000_000`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from schemas.errors import Problem

if TYPE_CHECKING:
    from yaml import SafeLoader as _BaseLoader
else:
    _BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster; PyYAML may be built without it

MAX_DEPTH = 50
"""Sections within sections; parsers recurse, and a crafted file must not end the process."""
_MAX_VALUES = 100_000
"""Values after every alias is replaced by what it stands for: a few lines of aliases can stand for billions."""

Location = tuple[str | int, ...]
"""Where a value lies in a document: keys and list positions."""


@dataclass
class Document:
    """A parsed document."""

    data: Any
    """Plain dicts, lists and scalars."""
    lines: dict[Location, int] = field(default_factory=dict)
    """1-based line of every key and list item."""
    problems: list[Problem] = field(default_factory=list)
    """Duplicate keys."""


class _Loader(_BaseLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _scalar(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))


_scalar("null", r"~|null|Null|NULL|", "~nN\0")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_scalar("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_scalar("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789")
_scalar(
    "float",
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)
_scalar("merge", "<<", "<")


def parse_yaml(text: str) -> Document:
    """Returns the document in `text`.

    Raises:
        ValueError: not YAML, more than one document, or one that explodes; the message names line and column.
    """
    loader = _Loader(text)
    try:
        _refuse_explosion(text)
        node = loader.get_single_node()
        document = Document(data=None)
        if node is not None:
            _walk(node, (), document)
            document.data = loader.construct_document(node)
        return document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context or 'not YAML'}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def _refuse_explosion(text: str) -> None:
    """Raises ValueError for nesting and aliases that no recipe has. Looks at the flat stream of events, before anything recurses."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, values before it
    total = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        where = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"{where}: the alias *{event.anchor} stands for a value that it is part of")
            total += sizes.get(str(event.anchor), 0)  # an unknown one is reported by the parser, better
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
        if total > _MAX_VALUES:
            raise ValueError(f"{where}: more than {_MAX_VALUES:,} values, aliases counted as what they stand for")


def dotted(location: Location) -> str:
    """Returns a location as the user would write it after `--set`: `corpus.sources.0.path`."""
    return ".".join(map(str, location))


def map_text(value: Any, location: Location, change: Callable[[str, Location], Any]) -> Any:
    """Returns plain data with `change(text, location)` in place of every text."""
    if isinstance(value, dict):
        return {str(key): map_text(item, (*location, str(key)), change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_text(item, (*location, index), change) for index, item in enumerate(value)]
    return change(value, location) if isinstance(value, str) else value


def shorten(value: Any, *, limit: int = 60) -> str:
    """Returns `repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _walk(node: Any, location: Location, document: Document) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*location, index)] = item.start_mark.line + 1
            _walk(item, (*location, index), document)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        if key_node.tag.endswith(":merge"):
            continue
        below, line = (*location, str(key_node.value)), key_node.start_mark.line + 1
        if below in document.lines:
            value = shorten(value_node.value) if isinstance(value_node, yaml.ScalarNode) else ""
            message = f"given twice, in lines {document.lines[below]} and {line}; keep one"
            document.problems.append(Problem(key=dotted(below), value=value, message=message, origin=f"line {line}"))
        document.lines[below] = line
        _walk(value_node, below, document)
