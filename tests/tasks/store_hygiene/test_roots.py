"""What is wanted for its own sake."""

from collections.abc import Sequence

import pytest

from schemas.journal import Event, EventKind
from schemas.stage import Stage
from tasks.register.promotion import Promotion
from tasks.store_hygiene.inventory import take_inventory
from tasks.store_hygiene.roots import aliased, collect_roots, is_finished, keys_of, owner_of
from tests.fakes.stored_chain import StoredChain


def move(alias: str, version: int, *, root_hash: str = "") -> Promotion:
    return Promotion(number=0, model_name="m", alias=alias, version=version, previous=None, root_hash=root_hash, run_id="r", reason="", at=0.0)


def test_an_alias_keeps_the_version_that_it_points_to_also_after_a_rollback() -> None:
    moves = [move("champion", 1, root_hash="a"), move("candidate", 2, root_hash="b"), move("champion", 2, root_hash="b")]
    assert aliased(moves) == {"champion": "b", "candidate": "b"}
    assert aliased([*moves, move("champion", 1)]) == {"champion": "a", "candidate": "b"}
    assert aliased([move("champion", 7)]) == {}


@pytest.mark.parametrize(
    ("kinds", "finished"),
    [
        ((EventKind.RUN_STARTED, EventKind.RUN_FINISHED), True),
        ((EventKind.RUN_STARTED, EventKind.RUN_FINISHED, EventKind.NOTE), True),
        ((EventKind.RUN_STARTED, EventKind.RUN_FAILED), False),
        ((EventKind.RUN_STARTED, EventKind.RUN_FAILED, EventKind.RUN_RESUMED, EventKind.RUN_FINISHED), True),
        ((EventKind.RUN_STARTED, EventKind.RUN_FINISHED, EventKind.RUN_RESUMED), False),
        ((), False),
    ],
)
def test_a_run_is_finished_by_its_last_turn(kinds: Sequence[EventKind], finished: bool) -> None:
    events = [Event(sequence=number, at=0.0, kind=kind) for number, kind in enumerate(kinds)]
    assert is_finished(reversed(events)) is finished


def test_one_users_many_runs_push_nobody_elses_out(chain: StoredChain) -> None:
    theirs = chain.finish(Stage.VALIDATE, variant="theirs")
    chain.run([theirs], owner="bob@login-1")
    mine = [chain.finish(Stage.VALIDATE, variant=str(number)) for number in range(3)]
    for number, record in enumerate(mine):
        chain.run([record], owner=f"ada@login-{number}")  # one user on several hosts
    wanted = {root.key for root in collect_roots(chain.storage, take_inventory(chain.storage), keep_runs=1)}
    assert wanted == {theirs.key, mine[-1].key}


def test_an_alias_keeps_its_model_though_mlflow_knows_no_version(chain: StoredChain) -> None:
    model = chain.model()
    claim = chain.claim(model, run=chain.run([]))
    artifacts = take_inventory(chain.storage)
    assert {root.key for root in collect_roots(chain.storage, artifacts, keep_runs=0)} == {model[Stage.EXPORT].key, model[Stage.REGISTER].key}
    assert collect_roots(chain.storage, artifacts, keep_runs=0, unregistered={claim.root_hash}) == ()
    chain.storage.create_exclusive("registry/promotions/m/000000.json", move("champion", 1, root_hash=claim.root_hash).model_dump_json().encode())
    roots = collect_roots(chain.storage, artifacts, keep_runs=0, unregistered={claim.root_hash})
    assert {root.why for root in roots} == {"m@champion"}


def test_a_run_of_an_earlier_version_belongs_to_who_controlled_it(chain: StoredChain) -> None:
    from cluster.lease import Lease
    from cluster.process import owner_here

    run = chain.run([chain.finish(Stage.VALIDATE)], owner="ada@here")
    assert owner_of(run) == "ada@here"
    path = chain.storage.root / run.layout.config
    path.write_text(path.read_text().replace('"created_by":"ada@here",', ""))
    assert owner_of(run) == ""
    Lease.take(chain.storage, run.layout.control).release()
    assert owner_of(run) == owner_here()
    assert keys_of(run) == (f"validate/{chain.config.name}-{run.pointer(Stage.VALIDATE).fingerprint[:12]}",)  # type: ignore[union-attr]
