"""Two users, one store: each finds what the other made, whatever their umask, and neither removes or stops what is the other's by accident."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.other_user import GROUP, OtherUser, environment_for_others, other_user
from tests.fakes.tiny_pipeline import make_project

pytestmark = [pytest.mark.users, pytest.mark.slow]

USERS = ((1, 0o077, "ada"), (2, 0o022, "bob"))
LIGHT_STAGES = str(Path(__file__).resolve().parents[2] / "fakes" / "light_stages.py")
HOLD = """
import sys
from cluster.lease import Lease
from cluster.storage import open_storage
with Lease.take(open_storage(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
TAKE = """
import sys
from cluster.lease import Lease
from cluster.storage import open_storage
from schemas.errors import LeaseHeldError
try:
    Lease.take(open_storage(sys.argv[1]), sys.argv[2]).release()
except LeaseHeldError as error:
    print(error)
"""
COLLECT = """
import sys
from cluster.storage import open_storage
from tasks.store_hygiene.collection import Collector
report = Collector(open_storage(sys.argv[1]), keep_runs=0, force="--force" in sys.argv, young_s=-1.0).collect(dry_run=False)
print(report.model_dump_json())
"""


@dataclass(frozen=True)
class SharedStore:
    """A setgid folder, two users of its group, and what each of them has run there."""

    root: Path
    ada: OtherUser
    bob: OtherUser
    first: dict[str, Any]
    """Ada made everything."""
    found: dict[str, Any]
    """Bob ran the same recipe."""
    other: dict[str, Any]
    """Bob cut longer sequences."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that others may enter; pytest's own they may not."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(place: Path) -> SharedStore:
    root = place / "store"
    root.mkdir()
    os.chown(root, 0, GROUP)
    root.chmod(0o2775)
    python = environment_for_others(place / "python")
    ada, bob = (other_user(GROUP + number, umask=umask, home=place / name, python=python) for number, umask, name in USERS)
    project = make_project(place / "text-of-all")
    recipes = {}
    for user in (ada, bob):
        recipe = yaml.safe_load(project.recipe.read_text())
        recipe["corpus"]["sources"][0]["path"] = str(project.folder / "text")
        recipe |= {"storage": {"root": str(root)}, "state": str(user.home / "state")}
        recipes[user] = user.home / "tiny.yaml"
        recipes[user].write_text(yaml.safe_dump(recipe))
    runs = [prepare(ada, recipes[ada]), prepare(bob, recipes[bob]), prepare(bob, recipes[bob], "tokenization.sequence_length=96")]
    return SharedStore(root, ada, bob, *runs)


def prepare(user: OtherUser, recipe: Path, *changes: str) -> dict[str, Any]:
    done = user.run(LIGHT_STAGES, str(recipe), *changes)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def collect(user: OtherUser, shared: SharedStore, *options: str) -> dict[str, Any]:
    done = user.run("-c", COLLECT, str(shared.root), *options)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_each_finds_what_the_other_made(shared: SharedStore) -> None:
    assert [end for end, _ in shared.first["stages"].values()] == ["made"] * 3
    assert shared.found["stages"] == {stage: ["found", key] for stage, (_, key) in shared.first["stages"].items()}
    assert [end for end, _ in shared.other["stages"].values()] == ["found", "found", "made"]


def test_everything_is_for_the_group_whatever_the_umask(shared: SharedStore) -> None:
    wrong, owners = [], set()
    for path in shared.root.rglob("*"):
        found = path.lstat()
        owners.add(found.st_uid)
        wanted = stat.S_ISGID | 0o070 if path.is_dir() else 0o060
        if found.st_gid != GROUP or found.st_mode & wanted != wanted:
            wrong.append(f"{path}: {stat.filemode(found.st_mode)} group {found.st_gid}")
    assert wrong == []
    assert owners == {shared.ada.uid, shared.bob.uid}


def test_a_lease_names_its_holder_by_the_system_s_word(shared: SharedStore) -> None:
    folder = f"{shared.first['stages']['tokenize'][1]}/leases"
    holder = shared.ada.start("-c", HOLD, str(shared.root), folder)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        said = shared.bob.run("-c", TAKE, str(shared.root), folder).stdout
    finally:
        holder.communicate(timeout=30)
    assert f"is being worked on by {shared.ada.uid}@{os.uname().nodename} pid" in said
    assert f"ask {shared.ada.uid}@{os.uname().nodename}, or headrace cancel --force" in said
    assert shared.bob.run("-c", TAKE, str(shared.root), folder).stdout == ""


def test_another_user_s_run_is_cancelled_by_force_only(shared: SharedStore) -> None:
    run_id = shared.first["run_id"]
    journal = shared.root / "runs" / run_id / "journal"
    finished = max(journal.iterdir())
    finished.rename(journal.parent / "kept.json")  # so that it has not ended yet
    holder = shared.ada.start("-c", HOLD, str(shared.root), f"runs/{run_id}/control")
    assert holder.stdout is not None
    wishes = journal.parent / "cancel"
    try:
        assert holder.stdout.readline() == "held\n"
        refused = shared.bob.headrace("cancel", run_id, "--storage", str(shared.root), "--wait", "0")
        assert (refused.returncode, wishes.exists()) == (2, False), refused.stderr
        assert f"{run_id} is a run of {shared.ada.uid}@" in refused.stderr
        forced = shared.bob.headrace("cancel", run_id, "--storage", str(shared.root), "--wait", "0", "--force")
        assert (forced.returncode, len(list(wishes.iterdir()))) == (0, 1), forced.stderr
        assert f"headrace cancel by {shared.bob.uid}@" in next(wishes.iterdir()).read_text()
    finally:
        holder.communicate(timeout=30)
        (journal.parent / "kept.json").rename(finished)


def test_another_user_s_pin_is_taken_out_by_force_only(shared: SharedStore) -> None:
    key, place = shared.other["stages"]["tokenize"][1], ("--storage", str(shared.root))
    assert shared.ada.headrace("store", "pin", key, "--reason", "compared with", *place).returncode == 0
    refused = shared.bob.headrace("store", "unpin", key, *place)
    assert (refused.returncode, "add --force" in refused.stderr) == (2, True), refused.stderr
    listed = json.loads(shared.bob.headrace("store", "ls", "--json", *place).stdout)
    assert [pin["by"].partition("@")[0] for pin in listed[0]["pins"]] == [str(shared.ada.uid)]
    assert shared.bob.headrace("store", "unpin", key, "--force", *place).returncode == 0
    assert json.loads(shared.bob.headrace("store", "ls", "--json", *place).stdout)[0]["pins"] == []


def test_one_removes_one_s_own_and_the_rest_by_force(shared: SharedStore) -> None:
    """The last test: it empties the store."""
    made, mine = [key for _, key in shared.first["stages"].values()], shared.other["stages"]["tokenize"][1]
    report = collect(shared.bob, shared)
    assert [fate["key"] for fate in report["removed"]] == [mine]
    assert {fate["key"]: fate["why"][0].partition("@")[0] for fate in report["kept"]}[made[2]] == f"belongs to {shared.ada.uid}"
    assert all((shared.root / key / "record.json").exists() for key in made)
    report = collect(shared.bob, shared, "--force")
    assert sorted(fate["key"] for fate in report["removed"]) == sorted(made)
    assert report["failed"] == []
    assert not any((shared.root / key / "record.json").exists() for key in made)
