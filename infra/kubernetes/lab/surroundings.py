"""What a pod has of its node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.api import Api, Json


@dataclass(frozen=True)
class Surroundings:
    """What a pod has of its node."""

    api: Api
    """As the node sees it."""
    address: str
    """Of the node."""
    folder: Path
    """Of the node."""
    images: Path
    cluster: Mapping[str, str]
    """Variables that name the API server."""
    hosts: Callable[[str], str]
    """Namespace → lines of names."""
    tell: Callable[[Json, str, str], None]
    """Makes an event: pod, reason, message."""
