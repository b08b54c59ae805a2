"""The source of `model.factory`: found as an import would find it, and read without running any of it. Imports nothing heavy."""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path

from schemas.errors import ConfigError, Problem

_LOADERS = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES))
"""What a folder's files are to Python, in its own order."""


def source_files(factory: str, *, project_dir: Path | None) -> Mapping[str, Path]:
    """Returns the Python files that a factory consists of, by their place below where imports start (`models/small.py`), links resolved.

    A module by itself is one file. A module of a package stands for all of its outermost package, whose modules import each other; what it
    imports from elsewhere is no part of it.

    Args:
        factory: `package.module:function`.
        project_dir: the user's folder, searched after everything else, as in a rank. None: the import path of this process alone.

    Raises:
        ConfigError: no such module is found, or it has no Python source.
    """
    name = factory.partition(":")[0]
    origin = _origin(name, factory=factory, search=_search_path(project_dir))
    if origin.name == "__init__.py":
        origin = origin.parent
    top = origin.parents[name.count(".") - 1] if "." in name else origin
    if not top.is_dir():
        return {top.name: top.resolve()}
    package = name.partition(".")[0]
    return {f"{package}/{path.relative_to(top).as_posix()}": path.resolve() for path in sorted(_python_files(top))}


def _search_path(project_dir: Path | None) -> list[str]:
    return list(dict.fromkeys([*sys.path, *([str(project_dir)] if project_dir else [])]))


def _origin(name: str, *, factory: str, search: Sequence[str]) -> Path:
    """Returns the file of a module. The packages on the way are looked into, not imported, so nothing of them is run."""
    known, *below = name.split(".")
    spec = _find(known, search=search)
    if spec is None:
        raise _refusal(factory, f"cannot be found: there is no module {known!r} in the project's folder and on the import path")
    for part in below:
        known, places = f"{known}.{part}", list(spec.submodule_search_locations or ())
        spec = _find_below(known, places=places)
        if spec is None:
            raise _refusal(factory, f"cannot be found: there is no module {known!r} in {', '.join(places) or 'what is no package'}")
    if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py") or not Path(spec.origin).is_file():
        raise _refusal(factory, f"has no Python source that can be identified: {spec.origin or 'a folder without __init__.py'}")
    return Path(spec.origin)


def _find(name: str, *, search: Sequence[str]) -> ModuleSpec | None:
    """Asks the finders that an import of a first name would ask, in their order; those of editable installations among them."""
    importlib.invalidate_caches()  # a file may be younger than the last look
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, search if finder is PathFinder else None) if find_spec else None
        if spec is not None:
            return spec
    return None


def _find_below(name: str, *, places: Sequence[str]) -> ModuleSpec | None:
    """Looks into the folders of a package. Python's own `PathFinder` wants packages without `__init__.py` imported for that."""
    portions: list[str] = []
    for place in places:
        spec = FileFinder(place, *_LOADERS).find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations or ()) if spec is not None else ()
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _python_files(folder: Path) -> Iterator[Path]:
    """Yields the `.py` files below a folder that can be imported, behind links too, each folder once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names if name.endswith(".py") and not name.startswith("."))


def _refusal(factory: str, message: str) -> ConfigError:
    return ConfigError((Problem("model.factory", repr(factory), message),))
