"""`store gc` end to end on a store without MLflow: what is wanted stays, the rest goes, and no moment of a kill or of another run loses anything."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import ArtifactLayout, sweep_key
from cluster.lease import REMOVAL, Lease, live_holder
from cluster.storage import FileStorage
from schemas.errors import UnreachableError, VerificationError
from schemas.journal import EventKind
from schemas.stage import Stage, stages_of
from tasks.runs import Pointer
from tasks.store_hygiene.collection import Collector, GcReport
from tasks.store_hygiene.pin_log import add_pin, find_pins, remove_pin, standing_pins
from tasks.store_hygiene.sweep import finish_sweep, wait_for_sweep
from tests.fakes.stored_chain import StoredChain

ROOT = Path(__file__).resolve().parents[3]


def collect(chain: StoredChain, *, dry_run: bool = False, **options: Any) -> GcReport:
    return Collector(chain.storage, **{"keep_runs": 0, **options}).collect(dry_run=dry_run)


def left(chain: StoredChain) -> list[str]:
    """Every file of artifacts, but for the leases that stay on record."""
    files = (
        path.relative_to(chain.storage.root).as_posix()
        for stage in stages_of(prepared=False)
        for path in (chain.storage.root / stage.value).rglob("*")
    )
    return sorted(name for name in files if "/leases" not in name and name.count("/") > 1)


# ---- what is wanted ---------------------------------------------------------------------------------------------------


def test_recent_runs_of_every_user_keep_what_they_use(chain: StoredChain) -> None:
    old, new, theirs = chain.model("old"), chain.model("new"), chain.model("theirs", owner="bob@there")
    chain.run(list(theirs.values()), owner="bob@there")
    chain.run(list(old.values()))
    chain.run(list(new.values()))
    report = collect(chain, keep_runs=1)
    assert {fate.key for fate in report.removed} == {record.key for record in old.values()}
    assert chain.finished() == {record.key for records in (new, theirs) for record in records.values()}


@pytest.mark.parametrize("ended", [None, EventKind.RUN_FAILED])
def test_unfinished_runs_keep_what_they_use(chain: StoredChain, ended: EventKind | None) -> None:
    model = chain.model()
    run = chain.run([model[Stage.TRAIN]], ended=ended)
    collect(chain)
    assert chain.finished() == {model[stage].key for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.TRAIN)}
    run.append(EventKind.RUN_FINISHED)
    collect(chain)
    assert chain.finished() == set()


def test_a_run_that_is_given_up_keeps_nothing_until_it_is_taken_up_again(chain: StoredChain) -> None:
    model = chain.model()
    run = chain.run(list(model.values()), ended=EventKind.RUN_FAILED)
    run.append(EventKind.RUN_GIVEN_UP)
    with Lease.take(chain.storage, run.layout.control):
        assert collect(chain, keep_runs=1).removed == (), "somebody controls it all the same"
    run.append(EventKind.RUN_RESUMED)
    assert collect(chain).removed == ()
    run.append(EventKind.RUN_GIVEN_UP)
    collect(chain, keep_runs=1)
    assert chain.finished() == set()


def test_a_finished_run_that_is_taken_up_again_keeps_what_it_uses(chain: StoredChain) -> None:
    run = chain.run(list(chain.model().values()))
    run.append(EventKind.RUN_RESUMED)
    assert collect(chain).removed == ()
    run.append(EventKind.RUN_FINISHED)
    with Lease.take(chain.storage, run.layout.control):
        assert collect(chain).removed == ()


def test_a_registered_model_stays_until_mlflow_says_that_no_version_has_it(chain: StoredChain) -> None:
    kept, gone = chain.model("kept"), chain.model("gone")
    claims = {variant: chain.claim(model, run=chain.run(list(model.values()))) for variant, model in (("kept", kept), ("gone", gone))}
    for claim in claims.values():  # their runs tracked on a server
        path = chain.storage.root / f"runs/{claim.run_id}/config.json"
        path.write_text(path.read_text().replace('"mlflow_uri":null', '"mlflow_uri":"http://mlflow"'))
    collect(chain, has_versions=lambda target, claim: target.uri == "http://mlflow" and claim == claims["kept"])
    assert chain.finished() == {record.key for record in kept.values()}


def test_without_mlflow_nothing_goes(chain: StoredChain) -> None:
    model = chain.model()
    run = chain.run([])
    chain.claim(model, run=run)
    path = chain.storage.root / run.layout.config
    path.write_text(path.read_text().replace('"mlflow_uri":null', '"mlflow_uri":"http://mlflow"'))

    def unreachable(*_: object) -> bool:
        raise UnreachableError("MLflow at http://mlflow could not be asked", why="refused")

    for dry_run in (True, False):
        with pytest.raises(UnreachableError, match="which models are registered cannot be told"):
            collect(chain, dry_run=dry_run, has_versions=unreachable)
    assert chain.finished() == {record.key for record in model.values()}


def test_a_registry_that_only_another_user_can_ask_counts_as_registered(chain: StoredChain) -> None:
    """The database of a state folder that is not here."""
    model = chain.model()
    chain.claim(model, run=chain.run([]))
    assert collect(chain, has_versions=lambda *_: pytest.fail("nobody is asked")).removed == ()


def test_pins_keep_until_they_are_out(chain: StoredChain) -> None:
    model, other = chain.model("a"), chain.model("b")
    pin = add_pin(chain.storage, subject="paper", keys=[model[Stage.EVALUATE].key], reason="table 2")
    report = collect(chain)
    assert chain.finished() == {record.key for stage, record in model.items() if stage is not Stage.REGISTER}
    assert any("table 2" in why for fate in report.kept for why in fate.why)
    assert {fate.key for fate in report.removed} >= {record.key for record in other.values()}
    assert find_pins(standing_pins(chain.storage), "paper") == (pin,)
    remove_pin(chain.storage, pin, force=False)
    collect(chain)
    assert (chain.finished(), standing_pins(chain.storage)) == (set(), ())


def test_nothing_goes_from_under_a_live_lease(chain: StoredChain) -> None:
    model = chain.model()
    with Lease.take(chain.storage, ArtifactLayout(model[Stage.TOKENIZE].key).leases):
        report = collect(chain)
    assert chain.finished() == {model[stage].key for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)}
    assert any("works on it" in why for fate in report.kept for why in fate.why)


def test_other_users_artifacts_go_by_force_only(chain: StoredChain) -> None:
    mine = chain.model("mine")
    theirs = chain.finish(Stage.TOKENIZER, mine[Stage.VALIDATE], variant="theirs", owner="bob@there")
    report = collect(chain)
    assert chain.finished() == {theirs.key, mine[Stage.VALIDATE].key}
    assert {fate.key: fate.why for fate in report.kept}[theirs.key] == ("belongs to bob@there",)
    collect(chain, force=True)
    assert chain.finished() == set()


def test_a_dry_run_says_the_same_and_removes_nothing(chain: StoredChain) -> None:
    chain.model()
    before = left(chain)
    announced = collect(chain, dry_run=True)
    assert left(chain) == before
    done = collect(chain)
    assert done.removed == announced.removed
    assert done.use.bytes > 0
    assert left(chain) == []


# ---- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_record_is_kept_and_told_with_what_it_may_have_been_made_from(chain: StoredChain) -> None:
    model, other = chain.model("a"), chain.model("b")
    path = chain.storage.root / model[Stage.TRAIN].key / "record.json"
    path.write_bytes(path.read_bytes().replace(b'"stage_version"', b'"stage_versi0n"'))
    report = collect(chain)
    before_training = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)
    assert chain.finished() == {model[Stage.TRAIN].key, *(records[stage].key for records in (model, other) for stage in before_training)}
    assert "not what was committed" in {fate.key: fate.why for fate in report.kept}[model[Stage.TRAIN].key][0]


@pytest.mark.parametrize("name", ["pins/000000.json", "registry/0123.json", "registry/promotions/test/000000.json"])
def test_nothing_goes_while_a_root_cannot_be_read(chain: StoredChain, name: str) -> None:
    model = chain.model()
    chain.storage.create_exclusive(name, b'{"key')
    with pytest.raises(VerificationError, match=name.split("/")[0]):
        collect(chain)
    assert chain.finished() == {record.key for record in model.values()}


@pytest.mark.parametrize("name", ["config.json", "artifacts/train.json", "journal/000001.json"])
def test_nothing_goes_while_a_run_cannot_be_read_and_all_such_are_named(chain: StoredChain, name: str) -> None:
    model = chain.model()
    runs = [chain.run([model[Stage.TRAIN]]) for _ in range(2)]
    for run in runs:
        (chain.storage.root / run.layout.key / name).write_bytes(b"{}")
    keep = {"artifacts/train.json": 9}.get(name, 0)  # of runs that are not recent, pointers are not even read
    with pytest.raises(VerificationError) as caught:
        collect(chain, keep_runs=keep)
    assert [finding.split(":")[0] for finding in caught.value.findings] == [run.layout.key for run in reversed(runs)]
    assert chain.finished() == {record.key for record in model.values()}


def test_what_nobody_made_is_let_alone(chain: StoredChain) -> None:
    chain.storage.create_exclusive("train/notes-0123456789ab/readme.txt", b"mine")
    chain.storage.create_exclusive("train/other/readme.txt", b"mine")
    report = collect(chain, force=True)
    assert left(chain) == ["train/notes-0123456789ab/readme.txt", "train/other/readme.txt"]
    assert [fate.why for fate in report.kept] == [("not made by Headrace",)] * 2


# ---- a run that begins meanwhile --------------------------------------------------------------------------------------


def test_a_run_that_takes_an_artifact_before_it_is_looked_at_again_keeps_it(chain: StoredChain) -> None:
    model = chain.model()

    def begin(_: float) -> None:  # everything is marked, and all leases are taken
        chain.run([model[Stage.TOKENIZE]], ended=None)

    report = collect(chain, sleep=begin)
    assert chain.finished() == {model[stage].key for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)}
    assert {fate.key for fate in report.removed} == {model[stage].key for stage in (Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE, Stage.REGISTER)}


def test_a_run_that_comes_too_late_waits_and_finds_nothing(chain: StoredChain) -> None:
    """It has found the record, says that it uses it, and must not use what is being removed."""
    record = chain.finish(Stage.VALIDATE)
    run = chain.run([], ended=None)
    found: list[bool] = []

    def use() -> None:
        run.point(Stage.VALIDATE, Pointer(key=record.key, fingerprint=record.fingerprint))
        wait_for_sweep(chain.storage, record.key)
        found.append(chain.storage.exists(f"{record.key}/manifest.json"))

    late = threading.Thread(target=use)

    class Slow(FileStorage):
        """Lets the late run begin once the record is gone, and gives it the time to use what is still there, if it does."""

        def delete(self, key: str) -> None:
            super().delete(key)
            if key.endswith("record.json"):
                late.start()
                late.join(timeout=0.5)

    Collector(Slow(chain.storage.root), keep_runs=0).collect(dry_run=False)
    late.join(timeout=30)
    assert found == [False]
    assert left(chain) == []


def test_whoever_is_asked_to_stop_does_not_wait(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    with Lease.take(chain.storage, ArtifactLayout(record.key).leases, purpose=REMOVAL):
        wait_for_sweep(chain.storage, record.key, stop_requested=lambda: True)
    with Lease.take(chain.storage, ArtifactLayout(record.key).leases):  # somebody makes it: that is told, not waited for
        wait_for_sweep(chain.storage, record.key)


@pytest.mark.parametrize("moment", ["record.json", "data"], ids=["before its record goes", "before its files go"])
def test_what_another_took_over_and_built_during_the_removal_of_a_batch_stays(chain: StoredChain, moment: str) -> None:
    """This machine slept at the first artifact of the batch, for longer than the leases last."""
    records = [chain.finish(Stage.VALIDATE, variant=variant) for variant in ("1", "2")]
    taken: list[str] = []

    class Sleeping(FileStorage):
        def delete(self, key: str) -> None:
            super().delete(key)
            if not taken and key.endswith(f"/{moment}"):
                taken.extend(record.key for record in records if not key.startswith(record.key))
                leases = ArtifactLayout(taken[0]).leases
                self.create_exclusive(f"{leases}/000002.json", self.read(f"{leases}/000001.json"))
                self.create_exclusive(f"{taken[0]}/data/built.bin", b"new")
                taken.extend(left(StoredChain(self)))

    report = Collector(Sleeping(chain.storage.root), keep_runs=0).collect(dry_run=False)
    key, *files = taken
    assert left(chain) == [name for name in files if name.startswith(key)]
    assert ("record.json" in {Path(name).name for name in left(chain)}) is (moment == "record.json")
    assert key not in {fate.key for fate in report.removed}
    assert [(fate.key, fate.why) for fate in report.kept] == [(key, ("somebody else took it over",))]


# ---- interruptions ----------------------------------------------------------------------------------------------------


class Dying(FileStorage):
    """Fails for good after so many changes."""

    def __init__(self, root: Path, *, changes: int) -> None:
        super().__init__(root)
        self._changes = changes

    def _count(self, act: Callable[[], None]) -> None:
        self._changes -= 1
        if self._changes < 0:
            raise InterruptedError("killed")
        act()

    def create_exclusive(self, key: str, data: bytes) -> None:
        self._count(lambda: super(Dying, self).create_exclusive(key, data))

    def delete(self, key: str) -> None:
        self._count(lambda: super(Dying, self).delete(key))


def test_after_a_kill_at_any_moment_no_half_artifact_is_used_and_the_next_call_goes_on(tmp_path: Path) -> None:
    done = False
    for changes in range(1, 40):
        chain = StoredChain(FileStorage(tmp_path / f"{changes}"))
        record = chain.finish(Stage.VALIDATE)
        whole = [name for name in left(chain) if "record" not in name]
        try:
            Collector(Dying(chain.storage.root, changes=changes), keep_runs=0).collect(dry_run=False)
            done = True
        except InterruptedError:
            _forget_leases(chain, record.key)
        if record.key in chain.finished():
            assert set(left(chain)) >= set(whole), f"a finished artifact lacks files after {changes} changes"
        else:
            with Lease.take(chain.storage, ArtifactLayout(record.key).leases) as lease:  # as `make` does
                finish_sweep(chain.storage, record.key, held=lease.still_held)
                assert left(chain) == [] or set(left(chain)) >= set(whole)
        collect(chain)
        assert left(chain) == []
        assert not chain.storage.exists(sweep_key(record.key))
        if done:
            return
    pytest.fail("it never came to its end")


def _forget_leases(chain: StoredChain, key: str) -> None:
    """What a dead process held is free: here it is this one, which lives."""
    for path in (chain.storage.root / ArtifactLayout(key).leases).glob("*.json"):
        path.unlink()


def test_a_killed_process_leaves_its_leases_to_the_next(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    program = f"""
import os
from cluster.storage import FileStorage
from pathlib import Path
from tasks.store_hygiene.collection import Collector
class Deadly(FileStorage):
    def delete(self, key):
        super().delete(key)
        if key.endswith("record.json"):
            os.kill(os.getpid(), {int(signal.SIGKILL)})
Collector(Deadly(Path({str(chain.storage.root)!r})), keep_runs=0).collect(dry_run=False)
"""
    died = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert live_holder(chain.storage, ArtifactLayout(record.key).leases) is None
    report = collect(chain)
    assert report.completed == (record.key,)
    assert left(chain) == []


def test_a_mark_beside_a_whole_artifact_that_is_wanted_again_is_taken_back(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.create_exclusive(sweep_key(record.key), b"{}")
    chain.run([record], ended=None)
    assert collect(chain).completed == ()
    assert chain.finished() == {record.key}
    assert not chain.storage.exists(sweep_key(record.key))


@pytest.mark.parametrize("refusal", [OSError(5, "Input/output error", "x"), UnreachableError("x cannot be deleted")])
def test_what_cannot_be_removed_is_told_and_the_rest_goes(chain: StoredChain, refusal: Exception) -> None:
    first, second = chain.finish(Stage.VALIDATE, variant="1"), chain.finish(Stage.VALIDATE, variant="2")

    class Failing(FileStorage):
        def delete(self, key: str) -> None:
            if key == f"{first.key}/data":
                raise refusal
            super().delete(key)

    report = Collector(Failing(chain.storage.root), keep_runs=0).collect(dry_run=False)
    assert [fate.key for fate in report.removed] == [second.key]
    assert [fate.key for fate in report.failed] == [first.key]
    assert collect(chain).completed == (first.key,)
    assert left(chain) == []
