"""The source of a factory: found as an import would find it, and never run."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from schemas.errors import ConfigError
from tasks.factory_source import source_files

BOMB = "raise AssertionError('the source was run')\n"


def write(folder: Path, *names: str) -> None:
    """Writes modules that fail when they are run."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BOMB)


def names_of(factory: str, project_dir: Path | None) -> list[str]:
    return sorted(source_files(factory, project_dir=project_dir))


def test_a_module_by_itself_is_one_file(tmp_path: Path) -> None:
    write(tmp_path, "hr_models.py", "hr_other.py")
    assert source_files("hr_models:small", project_dir=tmp_path) == {"hr_models.py": tmp_path / "hr_models.py"}


PACKAGE = ("hr_pkg/__init__.py", "hr_pkg/small.py", "hr_pkg/parts/__init__.py", "hr_pkg/parts/layer.py")


@pytest.mark.parametrize("factory", ["hr_pkg:make", "hr_pkg.small:make", "hr_pkg.parts:make", "hr_pkg.parts.layer:make"])
def test_a_module_of_a_package_stands_for_the_whole_package(tmp_path: Path, factory: str) -> None:
    write(tmp_path, *PACKAGE, "hr_pkg/.#small.py", "hr_pkg/.venv/lib/x.py", "elsewhere.py")
    (tmp_path / "hr_pkg" / "notes.md").write_text("not code")
    assert names_of(factory, tmp_path) == sorted(PACKAGE)
    assert not {name for name in sys.modules if name.startswith("hr_")}, "nothing was imported"


def test_folders_without_init_are_packages_too(tmp_path: Path) -> None:
    write(tmp_path, "hr_space/models/small.py", "hr_space/layers.py")
    assert names_of("hr_space.models.small:make", tmp_path) == ["hr_space/layers.py", "hr_space/models/small.py"]


def test_linked_files_and_folders_are_followed_once(tmp_path: Path) -> None:
    project = tmp_path / "project"
    write(project, "hr_pkg/__init__.py")
    write(tmp_path, "shared/layer.py")
    (project / "hr_pkg" / "shared").symlink_to(tmp_path / "shared")
    (project / "hr_pkg" / "loop").symlink_to(project / "hr_pkg")
    (project / "hr_pkg" / "alias.py").symlink_to(tmp_path / "shared" / "layer.py")
    found = source_files("hr_pkg:make", project_dir=project)
    assert sorted(found) == ["hr_pkg/__init__.py", "hr_pkg/alias.py", "hr_pkg/shared/layer.py"]
    assert not any(path.is_symlink() for path in found.values())


def test_the_project_comes_last_as_in_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "project/hr_models.py", "installed/hr_models.py", "project/json/__init__.py")
    assert source_files("hr_models:small", project_dir=tmp_path / "project")["hr_models.py"].parent.name == "project"
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert source_files("hr_models:small", project_dir=tmp_path / "project")["hr_models.py"].parent.name == "installed"
    assert source_files("hr_models:small", project_dir=None)["hr_models.py"].parent.name == "installed"
    assert (
        source_files("json:dumps", project_dir=tmp_path / "project")["json/__init__.py"]
        == Path(importlib.util.__file__).parents[1] / "json/__init__.py"
    )


def test_editable_installations_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may put a finder of their own before the one that looks at the import path."""
    write(tmp_path, "src/__init__.py", "src/small.py")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
            del path, target
            if name != "hr_editable":
                return None
            return importlib.util.spec_from_file_location(name, tmp_path / "src" / "__init__.py", submodule_search_locations=[str(tmp_path / "src")])

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert names_of("hr_editable.small:make", None) == ["hr_editable/__init__.py", "hr_editable/small.py"]


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("hr_nowhere:make", "there is no module 'hr_nowhere' in the project's folder and on the import path"),
        ("hr_pkg.nowhere:make", "there is no module 'hr_pkg.nowhere' in .*hr_pkg"),
        ("hr_alone.nowhere:make", "there is no module 'hr_alone.nowhere' in what is no package"),
        ("hr_folder:make", "no Python source that can be identified: a folder without"),
        ("builtins:dict", "no Python source that can be identified: built-in"),
        ("hr_compiled:make", r"no Python source that can be identified: .*\.pyc"),
    ],
)
def test_what_cannot_be_found_or_identified_is_refused(tmp_path: Path, factory: str, says: str) -> None:
    write(tmp_path, *PACKAGE, "hr_alone.py")
    (tmp_path / "hr_folder").mkdir()
    (tmp_path / "hr_compiled.pyc").write_bytes(b"")
    with pytest.raises(ConfigError, match=says) as caught:
        source_files(factory, project_dir=tmp_path)
    assert caught.value.problems[0].key == "model.factory"
    assert factory in caught.value.problems[0].value


def test_a_module_that_was_just_written_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        source_files("hr_models:small", project_dir=tmp_path)
    write(tmp_path, "hr_models.py")
    assert names_of("hr_models:small", tmp_path) == ["hr_models.py"]
