"""`headrace logs`: what is there, and what comes while the run works, through everything that may happen to its jobs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.lease import Lease
from cluster.storage import FileStorage
from flows.logs_of import log_lines
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.errors import InputError
from schemas.journal import EventKind, RunFile
from schemas.stage import Stage
from tasks.runs import Run
from tests.fakes.job_request import ARTIFACT, gang_request

RUN_ID = "demo-20261122t020000-7f3a"
EXPORTED = "export/fake-0123456789ab"
ENDED = ExitRecord(key="k", exit_code=0, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=1.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose training has begun."""
    run = Run(FileStorage(tmp_path / "data"), RUN_ID)
    fields: dict[str, Any] = {"run_id": RUN_ID, "recipe": "r.yaml", "overrides": (), "from_stage": None, "project_dir": "/p", "state_dir": "/s"}
    run.storage.create_exclusive(run.layout.config, canonical_json(RunFile(**fields, config={}, created_at=0.0, argv=())))
    run.append(EventKind.STAGE_STARTED, stage=Stage.TRAIN, artifact_key=ARTIFACT)
    return run


@pytest.fixture
def begin(run: Run, tmp_path: Path) -> Callable[..., AttemptLayout]:
    """Returns a function that begins an attempt. Each is meant to start after the one before."""
    moments = iter(range(1, 100))

    def attempt(number: int, *, artifact: str = ARTIFACT, job: str = "") -> AttemptLayout:
        layout = ArtifactLayout(artifact).attempt(job, number)
        spec = gang_request(tmp_path).model_copy(update={"attempt": number, "intended_at": float(next(moments))})
        run.storage.create_exclusive(layout.spec, canonical_json(spec))
        return layout

    return attempt


@pytest.fixture
def controlled(run: Run) -> Iterator[Lease]:
    """Somebody controls the run, until the lease is released."""
    with Lease.take(run.storage, run.layout.control) as lease:
        yield lease


def say(run: Run, attempt: AttemptLayout, text: str, *, epoch: int, rank: int = 0, sequence: int = 0) -> None:
    run.storage.create_exclusive(attempt.log_segment(epoch=epoch, rank=rank, sequence=sequence), text.encode())


def end(run: Run, attempt: AttemptLayout) -> None:
    run.storage.create_exclusive(attempt.exit, canonical_json(ENDED))


def texts(run: Run, **options: Any) -> list[str]:
    plain: dict[str, Any] = {"stage": None, "rank": 0, "last": None, "follow": False}
    return [line.text for line in log_lines(run, **(plain | options))]


def followed(run: Run, *happens: Callable[[], Any], **options: Any) -> list[str]:
    """Follows while one thing after another happens, between two looks each."""
    to_come = iter(happens)
    return texts(run, follow=True, sleep=lambda _seconds: next(to_come, lambda: None)(), **options)


def test_all_attempts_in_the_order_in_which_they_were_meant_to_start(run: Run, begin: Callable[..., AttemptLayout]) -> None:
    for number, text in ((0, "old\n"), (1, "line 0\nline 1\nunfini")):
        attempt = begin(number)
        say(run, attempt, text, epoch=number)
        say(run, attempt, "other rank\n", epoch=number, rank=1)
    say(run, begin(0, job="another"), "last\n", epoch=2)  # a name before `job`
    assert texts(run) == ["old", "line 0", "line 1", "last", "unfini"]
    assert texts(run, rank=1) == ["other rank", "other rank"]
    assert texts(run, last=2) == ["last", "unfini"]
    assert texts(run, last=0) == []


@pytest.mark.parametrize("follow", [False, True])
def test_a_stage_without_output_is_told(run: Run, follow: bool) -> None:
    with pytest.raises(InputError, match="stage export of run"):
        texts(run, stage=Stage.EXPORT, follow=follow)


def test_following_goes_on_through_starts_attempts_and_stages(run: Run, begin: Callable[..., AttemptLayout], controlled: Lease) -> None:
    first = begin(0)
    say(run, first, "before\nbegun", epoch=0)

    def next_attempt() -> None:
        end(run, first)
        say(run, begin(1), "another attempt\n", epoch=2)

    def next_stage() -> None:
        end(run, ArtifactLayout(ARTIFACT).attempt("", 1))
        run.append(EventKind.STAGE_FINISHED, stage=Stage.TRAIN, artifact_key=ARTIFACT)
        run.append(EventKind.STAGE_STARTED, stage=Stage.EXPORT, artifact_key=EXPORTED)
        say(run, begin(0, artifact=EXPORTED), "exported\n", epoch=0)

    lines = followed(
        run,
        lambda: say(run, first, " and ended\nhalf a line", epoch=0, sequence=1),
        lambda: say(run, first, "another start\n", epoch=1),
        next_attempt,
        lambda: say(run, first, "a late word\n", epoch=1, sequence=1),
        next_stage,
        controlled.release,
    )
    trained = ["before", "begun and ended", "half a line", "another start", "another attempt", "a late word"]
    assert lines == [*trained, "exported"]


def test_following_a_stage_ends_with_it(run: Run, begin: Callable[..., AttemptLayout], controlled: Lease) -> None:
    attempt = begin(0)
    say(run, attempt, "a\nb\nc\n", epoch=0)

    def finish() -> None:
        end(run, attempt)
        run.append(EventKind.STAGE_FINISHED, stage=Stage.TRAIN, artifact_key=ARTIFACT)

    lines = followed(run, lambda: say(run, attempt, "d\n", epoch=0, sequence=1), finish, stage=Stage.TRAIN, last=2)
    assert lines == ["b", "c", "d"], "only what is there already is cut"


def test_following_waits_for_the_first_job(run: Run, begin: Callable[..., AttemptLayout], controlled: Lease) -> None:
    assert followed(run, lambda: say(run, begin(0), "at last\n", epoch=0), controlled.release, rank=None) == ["at last"]


def test_following_a_run_that_nobody_works_on_ends_at_once(run: Run, begin: Callable[..., AttemptLayout]) -> None:
    say(run, begin(0), "a\nb", epoch=0)
    assert followed(run, pytest.fail) == ["a", "b"]
