"""The base of every Headrace type: immutable, strict about unknown keys, documented field by field."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WrapSerializer


class Frozen(BaseModel):
    """An immutable value. An unknown key is an error. What a field means is said by the docstring below it (`meaning_of`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def added_later(default: Any, **constraints: Any) -> Any:
    """Returns a field that is left out of JSON while it has its default.

    For a key that came when artifacts had been made without it: whoever does not use it keeps the fingerprints and the bytes of manifests.
    """
    return Field(default=default, exclude_if=lambda value: bool(value == default), **constraints)


def meaning_of(model: type[BaseModel], field: str) -> str:
    """Returns the docstring of a field, read from the source when it is asked for; empty when there is none.

    pydantic could keep them all (`use_attribute_docstrings`): that would be a quarter of the time in which a process imports these types.
    """
    import ast
    import inspect
    import textwrap
    from itertools import pairwise

    owner = next((owner for owner in model.__mro__ if field in inspect.get_annotations(owner)), None)
    if owner is None:
        return ""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == field:
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            return inspect.cleandoc(text) if isinstance(text, str) else ""
    return ""


def freeze(value: Any) -> Any:
    """Returns `value` with every mapping read-only and every list a tuple, recursively."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """Returns `value` as plain dicts and lists: the inverse of `freeze`, what JSON and third-party libraries take."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


JsonObject = Annotated[Mapping[str, Any], AfterValidator(freeze), PlainSerializer(thaw, return_type=dict[str, Any])]
"""A free-form JSON object, deeply read-only. For sections that belong to another library (a transformers config, a DeepSpeed config)."""

ReadOnly = (AfterValidator(lambda value: MappingProxyType(dict(value))), WrapSerializer(lambda value, dump: dump(dict(value))))
"""Metadata for a mapping field that cannot be changed: `Annotated[Mapping[str, int], *ReadOnly]`."""
