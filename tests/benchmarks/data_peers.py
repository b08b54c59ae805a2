"""The peers of the benchmarks of data: two environments from PyPI, since one of them wants older libraries than the others."""

from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.harness import peer_python

_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "datatrove==0.10.1",
        "datasets==5.2.0",
        "gigatoken==0.10.0",
        "litdata==0.2.76",
        "orjson==3.13.0",
        "pyarrow==25.0.1",
        "tokenizers==0.23.3",
        "torch==2.13.0",
        "transformers==5.23.0",
    ),
    "streaming": ("mosaicml-streaming==0.13.0", "pyarrow==25.0.1", "torch==2.13.0"),
}
_IN_STREAMING = frozenset({"mds", "mosaicml-streaming"})


def peer_pythons() -> Mapping[str, Path]:
    """Returns the interpreters of the environments, which are made from PyPI the first time."""
    return {name: peer_python(name, *requirements) for name, requirements in _REQUIREMENTS.items()}


def environment_of(contestant: str) -> str:
    """Returns the name of the environment that a contestant runs in."""
    return "streaming" if contestant in _IN_STREAMING else "data"


def peer_versions() -> dict[str, str]:
    """Returns the peers' pinned versions."""
    return {name: version for pins in _REQUIREMENTS.values() for name, version in (pin.split("==") for pin in pins)}
