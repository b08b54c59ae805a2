"""The shape of the tree: what may lie where, and that the names resolve to this checkout."""

import ast
import functools
import importlib
import importlib.machinery
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "cluster", "schemas")
DRAWERS = {"utils.py", "common.py", "helpers.py", "misc.py", "core.py"}
LIGHT = (
    "schemas.config",
    "schemas.recipe",
    "cluster.storage",
    "cluster.agent.agent",
    "cluster.supervisor",
    "tasks.planning",
    "tasks.verify",
    "flows.cli",
)
UNSAFE_CALLS = ("torch.load", "torch.save", "numpy.load", "np.load")
PICKLES = frozenset({"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})
HEAVY = ("torch", "deepspeed", "prefect", "mlflow", "great_expectations", "transformers", "pyarrow")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_to_this_checkout(package: str) -> None:
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).resolve() == ROOT / package / "__init__.py"


def test_no_drawer_of_everything() -> None:
    assert [str(path) for path in sources(*PACKAGES, "tests") if path.name in DRAWERS] == []


def test_no_flow_file_shadows_an_importable_module() -> None:
    """Prefect puts `flows/` first on sys.path, so `flows/queue.py` would hide the standard library's."""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "flows")]
    names = [path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__"]
    taken = [name for name in names if name in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name, elsewhere)]
    assert taken == []


def test_flows_define_no_class() -> None:
    """Prefect loads flows by path, which would give a class two identities. A worker is a class by Prefect's own rule, and loaded by name."""
    classes = [
        f"{path.name}:{node.name}"
        for path in sources("flows")
        if path.name != "slurm_worker.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert classes == []


def test_tests_have_no_package_files() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_module_says_what_it_is_for() -> None:
    bare = [str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if not facts_of(path).has_docstring]
    assert bare == []


def test_only_task_modules_and_flows_import_prefect() -> None:
    allowed = {"task.py", "stage_task.py"}
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources("tasks", "cluster", "schemas")
        if path.name not in allowed and "prefect" in facts_of(path).imports
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("mlflow", {"tasks/tracking.py", "tasks/mlflow_connection.py", "tasks/mlflow_registry.py", "tasks/register/served_model.py"}),
        ("fsspec", {"cluster/object_storage.py", "cluster/fsspec_files.py"}),
        ("s3fs", {"cluster/s3_requests.py"}),
    ],
)
def test_one_module_per_outside_thing(library: str, owners: set[str]) -> None:
    users = {str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if library in facts_of(path).imports}
    assert users <= owners


def test_great_expectations_stays_in_validate() -> None:
    users = {path.relative_to(ROOT).parent.as_posix() for path in sources(*PACKAGES) if "great_expectations" in facts_of(path).imports}
    assert users <= {"tasks/validate"}


def test_nothing_unsafe_is_imported_or_called() -> None:
    assert [place for path in sources(*PACKAGES) for place in facts_of(path).unsafe] == []


@pytest.mark.slow
@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    """The command line's fast path and the agent must start in a fraction of a second."""
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    answer = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


class Facts(NamedTuple):
    """What the rules ask of a module."""

    has_docstring: bool
    imports: frozenset[str]
    """The top-level names that it imports, anywhere in it."""
    unsafe: tuple[str, ...]
    """Where it calls what could run code, or read it."""


@functools.cache
def facts_of(path: Path) -> Facts:
    tree = ast.parse(path.read_text())
    roots: set[str] = set()
    unsafe = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Attribute) and node.attr in ("load", "save") and ast.unparse(node) in UNSAFE_CALLS:
            unsafe.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    if roots & PICKLES:
        unsafe.append(f"{path.name}: pickle")
    return Facts(ast.get_docstring(tree) is not None, frozenset(roots), tuple(unsafe))
