"""The base of every Headrace type: immutable, strict about unknown keys, documented field by field."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, WrapSerializer


class Frozen(BaseModel):
    """An immutable value. An unknown key is an error, a field's docstring is its description in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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
