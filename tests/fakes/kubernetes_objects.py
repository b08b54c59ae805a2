"""What becomes of an object that is sent to an API server."""

from collections.abc import Iterator, Mapping
from typing import Any


def losses(sent: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yields what was sent and is not there, or is otherwise."""
    if isinstance(sent, Mapping):
        for key, value in sent.items():
            yield from losses(value, kept.get(key) if isinstance(kept, Mapping) else None, f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(kept, list) and len(sent) <= len(kept):
        for index, value in enumerate(sent):
            yield from losses(value, kept[index], f"{path}[{index}]")
    elif sent != kept:
        yield f"{path}: {sent!r} became {kept!r}"
