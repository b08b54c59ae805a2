"""Finding runs and models by the names people use, without being told where storage is.

A run leaves the address of its storage in `{project}/.headrace/storages/`; commands look there, in the project's default
storage, and nowhere else. `--storage` names one place and settles it.
"""

from pathlib import Path

from cluster.storage import TEMPORARY_PREFIX, Storage, entries_of, open_storage, replace_local, short_hash
from schemas.errors import InputError, UnreachableError
from schemas.recipe import absolute, project_dir_of
from tasks.runs import Run, list_runs

_DEFAULT_ROOT = Path(".headrace") / "data"
_LATEST = ("last", "latest")


def remember_storage(project_dir: Path, root: str) -> None:
    """Leaves the address of a storage that runs of this project use."""
    if root == str(project_dir / _DEFAULT_ROOT):
        return
    folder = project_dir / ".headrace" / "storages"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / short_hash(root)
    if not path.exists() or path.read_bytes() != root.encode():  # half written, when a disk was full
        replace_local(path, root.encode())


def storages(option: str | None) -> tuple[Storage, ...]:
    """Returns the storages to look into: `option`, or those of the project around the current folder.

    Raises:
        InputError: there are none.
    """
    if option:
        is_folder = "://" not in option
        if is_folder and not Path(option).is_dir():
            raise InputError(f"storage {option!r} does not exist", mend="give the storage.root of the run")
        return (open_storage(str(absolute(option, base=Path.cwd())) if is_folder else option),)
    project_dir = project_dir_of(Path.cwd() / "recipe")
    roots = [str(project_dir / _DEFAULT_ROOT)] if (project_dir / _DEFAULT_ROOT).is_dir() else []
    roots += _remembered(project_dir / ".headrace" / "storages")
    found = [root for root in roots if "://" in root or Path(root).is_dir()]
    if not found:
        raise InputError(f"no runs in project {project_dir}", mend="`headrace run RECIPE` makes one; --storage names another storage root")
    return tuple(open_storage(root) for root in found)


def all_runs(places: tuple[Storage, ...]) -> tuple[Run, ...]:
    """Returns all runs, newest first."""
    runs = [Run(storage, run_id) for storage in places for run_id in list_runs(storage)]
    return tuple(sorted(runs, key=lambda run: run.layout.run_id.rsplit("-", 2)[-2:], reverse=True))


def find_run(name: str, *, storage: str | None) -> Run:
    """Returns the run called `name`: its id, its readable name (`demo-7f3a`), the beginning of its id, or `last`.

    Raises:
        InputError: no run, or several, fit.
    """
    runs = all_runs(storages(storage))
    if name in _LATEST and runs:
        return runs[0]
    for fits in (_is_exact, _is_readable_name, _begins):
        found = [run for run in runs if fits(run.layout.run_id, name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{name!r} fits {len(found)} runs", why=", ".join(run.layout.run_id for run in found[:5]), mend="give the whole id")
    newest = ", ".join(run.layout.run_id for run in runs[:3])
    raise InputError(
        f"no run {name!r}",
        why=f"the newest are {newest}" if newest else "there are no runs yet",
        mend="`headrace status` lists them; --storage names another storage root",
    )


def find_storage_of_model(model: str, *, storage: str | None) -> Storage:
    """Returns the storage that knows `model`. Raises InputError when none does."""
    from tasks.verify import resolve

    places = storages(storage)
    problem: InputError | UnreachableError | None = None
    for place in places:
        try:
            resolve(place, model)
        except (InputError, UnreachableError) as error:
            problem = error
        else:
            return place
    assert problem is not None
    raise problem


def _remembered(folder: Path) -> list[str]:
    """Returns the addresses that runs have left. A file's name is the hash of its address: what is empty or torn does not fit."""
    paths = [path for path in sorted(entries_of(folder)) if not path.name.startswith(TEMPORARY_PREFIX)]  # gone before they are read
    return [root for path in paths if short_hash(root := path.read_text(encoding="utf-8", errors="replace")) == path.name]


def _is_exact(run_id: str, name: str) -> bool:
    return run_id == name


def _is_readable_name(run_id: str, name: str) -> bool:
    base, _, suffix = run_id.rpartition("-")
    return f"{base.rpartition('-')[0]}-{suffix}" == name


def _begins(run_id: str, name: str) -> bool:
    return run_id.startswith(name)
