"""All that is wrong with a configuration, at once, in the words of the recipe.

pydantic reports every wrong field of one pass, but runs the rules *between* fields only where the fields are right.
So a wrong place is taken out and the rest is checked again, until nothing new is found: one wrong learning rate does
not hide a batch size that does not divide. Rules that speak of a place which was taken out are not believed.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.config import RunConfig
from schemas.corpus_config import encoding_for
from schemas.errors import Problem
from schemas.frozen import meaning_of
from schemas.suggestion import model_at, nearest_choice, nearest_key, nearest_match, nearest_number
from schemas.yaml_text import Location, dotted, shorten

_MAX_PASSES = 6
_PLACEHOLDERS: dict[str, Any] = {
    "name": "x",
    "corpus": {"sources": ["x"]},
    "corpus.sources": ["x"],
    "model": {"config": {"model_type": "llama"}},
    "training": {"steps": 10**9},
}
"""What stands for a required key that is missing or was taken out, so that the rest can be checked."""


def diagnose(data: Mapping[str, Any]) -> tuple[RunConfig | None, tuple[Problem, ...]]:
    """Returns the configuration in `data`, or None and every problem, in the order of the recipe's sections."""
    tree: dict[str, Any] = copy.deepcopy(dict(data))
    problems: dict[tuple[str, str], Problem] = {}
    removed: set[str] = set()
    for _ in range(_MAX_PASSES):
        try:
            config = RunConfig.model_validate(tree)
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details:
                for problem in _explain(detail, data):
                    if not (problem.key in removed or _speaks_of(problem, detail, removed)):
                        problems.setdefault((problem.key, problem.message), problem)
            removed |= {_take_out(tree, detail) for detail in details}
        else:
            return (None if problems else config), _in_order(problems)
    return None, _in_order(problems)


def _in_order(problems: Mapping[tuple[str, str], Problem]) -> tuple[Problem, ...]:
    sections = list(RunConfig.model_fields)
    return tuple(sorted(problems.values(), key=lambda problem: sections.index(section) if (section := problem.key.split(".")[0]) in sections else -1))


# ---- taking a wrong place out ----------------------------------------------------------------------------------------


def _take_out(tree: dict[str, Any], detail: ErrorDetails) -> str:
    """Takes the place that `detail` complains of out of `tree` and returns its key. Root rules take nothing out."""
    location = _clean(detail)
    if detail["type"] == "missing":
        here = _mapping_above(tree, location)
        if here is not None:
            here[str(location[-1])] = copy.deepcopy(_PLACEHOLDERS.get(dotted(location), "x"))
        return dotted(location)
    if not location:  # a rule of the root: everything else is right, so nothing more can be found
        tree.clear()
        tree.update(copy.deepcopy({key: value for key, value in _PLACEHOLDERS.items() if "." not in key}))
        return ""
    while location:  # a wrong list item takes its list along: positions must not move
        here = _mapping_above(tree, location)
        if here is not None and str(location[-1]) in here:
            del here[str(location[-1])]
            break
        location = location[:-1]
    return dotted(location)


def _mapping_above(tree: Any, location: Location) -> dict[str, Any] | None:
    here = tree
    for part in location[:-1]:
        if isinstance(here, dict):
            here = here.get(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            if isinstance(here[part], str) and location[:-1][-1] == part:
                return None
            here = here[part]
        else:
            return None
    return here if isinstance(here, dict) else None


def _clean(detail: ErrorDetails) -> Location:
    """Returns the location without pydantic's own marks (`[key]`)."""
    return tuple(part for part in detail["loc"] if part != "[key]")


def _speaks_of(problem: Problem, detail: ErrorDetails, removed: set[str]) -> bool:
    """Whether a broken rule concerns a key that was taken out before: then it says nothing about the recipe."""
    if detail["type"] != "value_error":
        return False
    keys = {dotted((*_clean(detail), *key)) for key in _keys_in(str(problem.message), model_at(_clean(detail)))} | {problem.key}
    return any(key == gone or key.startswith(f"{gone}.") or gone.startswith(f"{key}.") for key in keys for gone in removed if gone)


# ---- explaining ------------------------------------------------------------------------------------------------------


def _explain(detail: ErrorDetails, data: Mapping[str, Any]) -> list[Problem]:
    """Returns one pydantic error in our words; a broken rule may be several."""
    location, kind, value = _clean(detail), detail["type"], detail["input"]
    if kind == "value_error":
        return [_broken_rule(line, location, data) for line in str(detail["ctx"]["error"]).splitlines()]
    if kind == "missing":
        return [Problem(key=dotted(location), value="", message=f"is required: {_meaning(location)}")]
    if kind == "extra_forbidden":
        nearest = nearest_key(location)
        model = model_at(location[:-1])
        choices = "" if nearest or model is None else f"; there are {', '.join(model.model_fields)}"
        return [Problem(key=dotted(location), value=shorten(value), message=f"unknown key{choices}", nearest=nearest)]
    if kind == "too_short" and value:  # pydantic's echo of wrong items
        return []
    message, nearest = _rule_and_nearest(detail, location)
    if "[key]" in detail["loc"]:  # the key itself is wrong, not what it holds
        return [Problem(key=dotted(location), value=shorten(value), message=message, nearest=dotted((*location[:-1], nearest)) if nearest else "")]
    found, written = _look_up(data, location)
    return [Problem(key=dotted(location), value=shorten(written if found else value), message=message, nearest=nearest)]


def _rule_and_nearest(detail: ErrorDetails, location: Location) -> tuple[str, str]:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "enum" | "literal_error":
            choices = _choices(context)
            known = encoding_for(value) if location[-1] == "encoding" else None  # by its name, never by how that is spelt: cp437 is not cp1253
            return f"must be one of {', '.join(map(str, choices))}", nearest_choice(value, choices) if known is None else known
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}", _plain(context["ge"])
        case "less_than_equal":
            return f"must be at most {_plain(context['le'])}", _plain(context["le"])
        case "greater_than":
            return f"must be above {context['gt']:g}", _default(location)
        case "less_than":
            return f"must be below {context['lt']:g}", _default(location)
        case "string_pattern_mismatch":
            meaning = _meaning(location)
            return f"must match {context['pattern']}{f' ({meaning})' if meaning else ''}", nearest_match(value, context["pattern"])
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number", nearest_number(value, whole=True)
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a finite number" if kind == "finite_number" else "must be a number", nearest_number(value, whole=False) or _default(
                location
            )
        case "bool_parsing" | "bool_type":
            return "must be true or false", nearest_choice(value, ("true", "false")) if isinstance(value, str) else ""
        case "string_type":
            return "must be text", f'"{value}"' if isinstance(value, bool | int | float) else ""
        case "string_too_short" | "too_short":
            return "must not be empty", _default(location)
        case "tuple_type" | "list_type":
            return "must be a list", f"[{value}]" if isinstance(value, str | int | float) else ""
        case "dict_type" | "model_type" | "model_attributes_type" | "mapping_type":
            model = model_at(location)
            inside = f" with the keys {', '.join(model.model_fields)}" if model and _is_model(location) else ""
            return f"must be a mapping{inside}", ""
        case _:
            return detail["msg"][:1].lower() + detail["msg"][1:], ""


def _broken_rule(line: str, location: Location, data: Mapping[str, Any]) -> Problem:
    """Returns a rule that a validator of ours found broken. Its first key is the one to change; `; nearest: X` ends it."""
    message, _, nearest = line.partition("; nearest: ")
    mentioned = _keys_in(message, model_at(location))
    key = (*location, *mentioned[0]) if mentioned and not _is_leaf(location) else location
    found, value = _look_up(data, key)
    return Problem(key=dotted(key), value=shorten(value) if found else "", message=message, nearest=nearest)


def _keys_in(message: str, model: type[BaseModel] | None) -> list[Location]:
    """Returns the keys below `model` that a rule's message names, in order: `steps`, `training.optimizer.learning_rate`."""
    if model is None:
        return []
    found: list[Location] = []
    for word in re.findall(r"[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*", message):
        parts: Location = tuple(word.split("."))
        if parts[0] in model.model_fields and (model is not RunConfig or len(parts) > 1):
            found.append(parts)
    return found


def _look_up(data: Any, location: Location) -> tuple[bool, Any]:
    for part in location:
        if isinstance(data, Mapping) and str(part) in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return False, None
    return True, data


def _is_leaf(location: Location) -> bool:
    """Whether the value at `location` is no section of its own."""
    return bool(location) and not _is_model(location)


def _is_model(location: Location) -> bool:
    if not location:
        return True
    parent = model_at(location[:-1])
    field = parent.model_fields.get(str(location[-1])) if parent else None
    annotation = field.annotation if field else None
    return field is None or (isinstance(annotation, type) and issubclass(annotation, BaseModel))


def _meaning(location: Location) -> str:
    """Returns the first sentence of what the docstring says of the field, or of the one that holds the list or mapping whose item it is."""
    while location and ((parent := model_at(location[:-1])) is None or str(location[-1]) not in parent.model_fields):
        location = location[:-1]
    parent = model_at(location[:-1])
    text = " ".join(meaning_of(parent, str(location[-1])).split()) if parent else ""
    return re.split(r"(?<=[.;:])\s", text)[0].rstrip(".;:") if text else ""


def _default(location: Location) -> str:
    """Returns the field's default, which is always valid, as text; empty when there is none."""
    parent = model_at(location[:-1])
    field = parent.model_fields.get(str(location[-1])) if parent else None
    default = field.default if field is not None and not field.is_required() else None
    return str(default) if isinstance(default, int | float | str) and not isinstance(default, bool) else ""


def _choices(context: Mapping[str, Any]) -> list[Any]:
    """Returns the choices that pydantic prints as `'a', 'b' or 'c'`."""
    words = re.findall(r"'([^']*)'|(-?\d+)", str(context["expected"]))
    return [text or int(number) for text, number in words]


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"
