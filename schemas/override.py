"""Overrides from the command line: `--set training.steps=50`, `--set 'corpus.sources=["docs.jsonl.gz"]'`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import Problem
from schemas.suggestion import known_keys, nearest_choice
from schemas.yaml_text import MAX_DEPTH, Location, dotted, parse_yaml, shorten

ORIGIN = "--set"
_MAX_DIGITS = 9
_MAX_PROPOSAL_CHARS = 200


@dataclass(frozen=True)
class Override:
    """One assignment."""

    location: Location
    """Where the value goes; a number is a list position (or a mapping's key that looks like one)."""
    value: Any
    """Plain data."""


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Returns the assignments in `texts` (`KEY=VALUE`, VALUE being YAML) and what is wrong with the others."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        key, equals, value_text = text.partition("=")
        parts = tuple(int(part) if part.isdecimal() and len(part) <= _MAX_DIGITS else part for part in key.strip().split("."))
        if not equals or not all(part != "" for part in parts) or len(parts) > MAX_DEPTH:
            nearest = nearest_choice(key.strip(), known_keys())
            problems.append(
                Problem(
                    key=key.strip() or "--set",
                    value=shorten(text),
                    message="must be KEY=VALUE" if len(parts) <= MAX_DEPTH else f"a key has at most {MAX_DEPTH} parts",
                    nearest=f"{nearest}=VALUE" if nearest else "",
                    origin=ORIGIN,
                )
            )
            continue
        try:
            document = parse_yaml(value_text)
        except ValueError as error:
            problems.append(
                Problem(key=key, value=shorten(value_text), message=f"the value is not YAML: {error}", nearest=_quoted(value_text), origin=ORIGIN)
            )
            continue
        problems += document.problems
        overrides.append(Override(location=parts, value=document.data))
    return overrides, problems


def apply_override(data: dict[str, Any], override: Override) -> Problem | None:
    """Writes one assignment into `data`; returns the problem when it has no place there."""
    *parents, last = override.location
    here: Any = data
    for depth, part in enumerate(parents):
        below = _child(here, part)
        if isinstance(below, _Refused):
            return _problem(override, depth, below)
        if below is None:
            below = {}
        if isinstance(below, str) and override.location[:depth] == ("corpus", "sources"):
            below = {"path": below}  # a plain string is short for its path
        _place(here, part, below)
        here = below
    refused = _child(here, last)
    if isinstance(refused, _Refused):
        return _problem(override, len(parents), refused)
    _place(here, last, override.value)
    return None


@dataclass(frozen=True)
class _Refused:
    message: str
    nearest: str = ""


def _child(here: Any, part: str | int) -> Any:
    """Returns what lies at `part` of a mapping or list; None when a new value may be put there."""
    if isinstance(here, dict):
        return here.get(str(part))
    if isinstance(here, list):
        if not isinstance(part, int):
            return _Refused("is a list: a position must follow its key", nearest="0")
        if part > len(here):
            return _Refused(f"the list holds {len(here)}; position {part} would leave a gap", nearest=str(len(here)))
        return here[part] if part < len(here) else None
    return _Refused(f"there is nothing below it, it is {shorten(here, limit=30)}")


def _place(here: Any, part: str | int, value: Any) -> None:
    if isinstance(here, list):
        assert isinstance(part, int)
        if part == len(here):
            here.append(value)
        else:
            here[part] = value
    else:
        here[str(part)] = value


def _problem(override: Override, depth: int, refused: _Refused) -> Problem:
    location = override.location
    nearest = (
        dotted((*location[:depth], refused.nearest, *location[depth + (isinstance(location[depth], int)) :]))
        if refused.nearest
        else dotted(location[:depth])
    )
    return Problem(
        key=dotted(location), value=shorten(override.value), message=f"{dotted(location[:depth])} {refused.message}", nearest=nearest, origin=ORIGIN
    )


def _quoted(text: str) -> str:
    """Returns a value as quoted YAML, a proposal; none for what nobody would write by hand."""
    if len(text) > _MAX_PROPOSAL_CHARS:
        return ""
    return "'" + text.replace("'", "''") + "'"
