"""Proves on one's own recipe that restarts lose nothing: trains twice in scratch storage, once calm and once with kills, and compares.

The weights, the moments, the step and the generators of the final commit are compared byte by byte, through its content hash.
"""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.attempt import claimant, read_claim
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import is_dead
from cluster.storage import open_storage
from schemas.artifact import ArtifactRecord
from schemas.config import RestartConfig, RunConfig
from schemas.errors import ConfigError, InterruptedRunError, Problem
from schemas.frozen import Frozen, thaw
from schemas.job import Incident
from schemas.journal import EventKind, RunHandle
from schemas.stage import Stage
from tasks.disturbance import kill_rank
from tasks.file_hashes import FileHashes
from tasks.identity import identity_of
from tasks.runs import Pointer, Run, create_run, open_run
from tasks.store import Store
from tasks.views import job_progress
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view, stopping_on_signals
from tasks.work import Bench, make

_PREPARATION = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)


class ProvenKill(Frozen):
    """One kill of the proof, and what it cost."""

    rank: int
    """The rank that was killed."""
    step: int
    """The newest step that any rank had reached."""
    resumed_from: int
    """The committed step that training went on from."""
    recovered_after_s: float
    """Seconds until all ranks were in a step again."""


class ResumeProof(Frozen):
    """What `headrace verify-resume` found."""

    steps: int
    """Steps of each training."""
    world_size: int
    """Ranks."""
    calm_hash: str
    """Content hash of the undisturbed training's final commit."""
    disturbed_hash: str
    """Content hash of the killed training's final commit."""
    calm_s: float
    """Wall time of the undisturbed training."""
    disturbed_s: float
    """Wall time of the killed training."""
    kills: tuple[ProvenKill, ...]
    """What was done to it."""
    scratch: str
    """Where both lie."""

    @property
    def equal(self) -> bool:
        """Whether both ended with the same bytes."""
        return self.calm_hash == self.disturbed_hash


@dataclass(frozen=True)
class Audience:
    """Who hears how a proof goes."""

    note: Callable[[str], None]
    """Takes one line for people."""
    watch: Callable[[Run], AbstractContextManager[None]]
    """Shows what is going on in a scratch run, while its body works."""


@dataclass(frozen=True)
class _Training:
    """One of the two trainings, once it has ended."""

    record: ArtifactRecord
    seconds: float
    incidents: tuple[Incident, ...]


def prove_resume(config: RunConfig, *, project_dir: Path, recipe: str, kills: int, seed: int, audience: Audience, keep: bool = False) -> ResumeProof:
    """Returns the proof for `config`. The first Ctrl-C or SIGTERM stops the job that runs.

    Args:
        kills: how many ranks to kill, one after another, at seeded steps.
        seed: decides when and whom.
        audience: who hears how it goes.
        keep: leave the scratch storage in place.

    Raises:
        ConfigError: storage is not a local folder, or more kills than steps.
        InterruptedRunError: it was asked to stop.
        HeadraceError: a stage failed.
    """
    scratch = Path(config.state) / "verify-resume" / f"{time.strftime('%Y%m%dt%H%M%S')}-{os.getpid()}"
    calm_run, disturbed_run = (
        _scratch_run(own, scratch / name, project_dir=project_dir, recipe=recipe)
        for name, own in (("calm", config), ("disturbed", config.model_copy(update={"restart": with_kills(config.restart, kills)})))
    )
    try:
        with stopping_on_signals():
            prepared = _prepare(config, calm_run, audience=audience)
            audience.note("training undisturbed")
            calm = _train(calm_run, prepared, source=config, audience=audience, victims=())
            steps, world_size = int(calm.record.summary["steps"]), int(calm.record.summary["world_size"])
            victims = _victims(kills, steps=steps, world_size=world_size, seed=seed)
            audience.note(f"training again, with {kills} kill{'' if kills == 1 else 's'}")
            disturbed = _train(disturbed_run, prepared, source=config, audience=audience, victims=victims)
    except InterruptedRunError as error:
        mend = "call it again: it begins anew, with the corpus, tokenizer and shards that are finished"
        raise InterruptedRunError("verify-resume was asked to stop", why=error.what, mend=mend) from error
    finally:
        if not keep:
            _remove(scratch, note=audience.note)
    return ResumeProof(
        steps=steps,
        world_size=world_size,
        calm_hash=calm.record.content_hash,
        disturbed_hash=disturbed.record.content_hash,
        calm_s=calm.seconds,
        disturbed_s=disturbed.seconds,
        kills=tuple(_proven(incident) for incident in disturbed.incidents),
        scratch=str(scratch) if keep else "",
    )


def with_kills(restart: RestartConfig, kills: int) -> RestartConfig:
    """Returns budgets that `kills` kills cannot use up, even when no step is committed between any of them."""
    return restart.model_copy(
        update={
            "max_failures": restart.max_failures + kills,
            "max_interruptions": restart.max_interruptions + kills,
            "max_attempts_without_progress": restart.max_attempts_without_progress + kills,
        }
    )


def _scratch_run(config: RunConfig, root: Path, *, project_dir: Path, recipe: str) -> RunHandle:
    """Begins a run in a storage of its own: the recipe's storage gets none, so neither `status` nor `resume last` ever meets it."""
    own = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(root)})})
    return create_run(own, project_dir=project_dir, recipe=recipe)


def _prepare(config: RunConfig, handle: RunHandle, *, audience: Audience) -> Mapping[Stage, ArtifactRecord]:
    """The recipe's own corpus, tokenizer and shards, found or made in its own storage; the scratch run `handle` keeps the journal."""
    from tasks.tokenize.build import build as tokenize
    from tasks.tokenizer.build import build as make_tokenizer
    from tasks.validate.build import build as validate

    run, storage = open_run(handle), open_storage(config.storage.root)
    bench = replace(_bench(handle), config=config, storage=storage, store=Store(storage))
    records: dict[Stage, ArtifactRecord] = {}
    with audience.watch(run):
        for stage, build in zip(_PREPARATION, (validate, make_tokenizer, tokenize), strict=True):
            inputs = {source: records[source] for source in stage.inputs}
            contents = {source: record.content_hash for source, record in inputs.items()}
            with FileHashes(bench.state_dir / "file-hashes.sqlite") as hashes:
                identity = identity_of(stage, config=config, inputs=contents, hash_file=hashes.hash)
            found, started = bench.store.find(identity), time.time()
            if found is None:
                key = bench.store.place(identity, rebuild=False)
                run.append(EventKind.STAGE_STARTED, f"making {key}", stage=stage, artifact_key=key)
                records[stage] = make(identity, bench=bench, key=key, inputs=inputs, build=build)
            else:
                records[stage] = found
            kind = EventKind.STAGE_FINISHED if found is None else EventKind.STAGE_REUSED
            figures = {**records[stage].summary, "seconds": time.time() - started}
            run.append(kind, stage=stage, artifact_key=records[stage].key, figures=figures)
    return records


def _train(
    handle: RunHandle, prepared: Mapping[Stage, ArtifactRecord], *, source: RunConfig, audience: Audience, victims: tuple[tuple[int, int], ...]
) -> _Training:
    """Trains in the storage of a scratch run on copies of what is `prepared`, killing each (rank, step) of `victims` in turn."""
    from tasks.train.build import build

    run = open_run(handle)
    _copy_prepared(prepared, run, source=source)
    cancelled, started = threading.Event(), time.monotonic()
    with audience.watch(run), ThreadPoolExecutor(max_workers=1, thread_name_prefix="killer") as pool:
        killing = pool.submit(_kill_all, run, victims, cancelled)
        try:
            record = find_or_make(Stage.TRAIN, bench=_bench(handle), build=build)
        finally:
            cancelled.set()
        killing.result()
    job = job_progress(run.storage, record.key, now=time.time())
    assert job is not None
    return _Training(record=record, seconds=time.monotonic() - started, incidents=job.incidents)


def _copy_prepared(prepared: Mapping[Stage, ArtifactRecord], run: Run, *, source: RunConfig) -> None:
    """Copies finished artifacts from the recipe's storage into a scratch run's, and points the run at them."""
    origin = open_storage(source.storage.root)
    for stage, record in prepared.items():
        local, target = origin.local_path(record.key), run.storage.local_path(record.key)
        if local is None:
            raise ConfigError((Problem("storage.root", repr(source.storage.root), "verify-resume needs a local folder or a mounted path"),))
        assert target is not None, "scratch storage is a local folder"
        shutil.copytree(local, target, ignore=shutil.ignore_patterns("attempts", "leases", "metrics", "epochs"))
        run.point(stage, Pointer(key=record.key, fingerprint=record.fingerprint))


def _bench(handle: RunHandle) -> Bench:
    """The bench of a scratch run; its notes are in its journal, which is watched."""
    return bench_of(handle, listener=Listener(note=_not_twice, view=ignore_view))


def _not_twice(message: str) -> None:
    """Takes a note that the journal has already."""
    del message


def _kill_all(run: Run, victims: tuple[tuple[int, int], ...], cancelled: threading.Event) -> None:
    """Kills each (rank, step) in turn, until `cancelled`."""

    def artifact_key() -> str | None:
        pointer = run.pointer(Stage.TRAIN)
        return pointer.key if pointer else None

    for number, (rank, step) in enumerate(victims):
        kill = kill_rank(run.storage, artifact_key=artifact_key, rank=rank, at_step=step, epoch=number, cancelled=cancelled)
        if kill is None:
            return


def _remove(scratch: Path, *, note: Callable[[str], None]) -> None:
    """Removes the scratch storage, unless a job may still write there: a second Ctrl-C leaves before its job has stopped."""
    if all(_is_idle(root) for root in scratch.iterdir()):
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        note(f"{scratch} stays: its job has not ended yet. Remove it when it has")


def _is_idle(root: Path) -> bool:
    """Whether every attempt of the training in a scratch storage has ended, by its own word or because its agent is dead."""
    storage = open_storage(str(root))
    for folder in storage.names(Stage.TRAIN.value):
        attempts = ArtifactLayout(f"{Stage.TRAIN.value}/{folder}").attempts
        for attempt in (AttemptLayout(f"{attempts}/{name}") for name in storage.names(attempts)):
            if not storage.exists(attempt.spec) or storage.exists(attempt.exit):
                continue
            claim = read_claim(storage, attempt)
            if claim is None or not is_dead(claimant(claim)):
                return False
    return True


def _victims(kills: int, *, steps: int, world_size: int, seed: int) -> tuple[tuple[int, int], ...]:
    """(rank, step) of each kill, in order of steps: seeded, spread over the training, never in its last tenth."""
    last = max(1, steps * 9 // 10)
    if kills > last:
        raise ConfigError((Problem("--kills", str(kills), f"needs more steps than the training has ({steps})", nearest=str(last)),))
    rng = random.Random(seed)  # noqa: S311  # reproducible, not secret
    return tuple((rng.randrange(world_size), step) for step in sorted(rng.sample(range(1, last + 1), kills)))


def _proven(incident: Incident) -> ProvenKill:
    plain = thaw(incident.model_dump())
    return ProvenKill(
        rank=plain["rank"], step=plain["step"], resumed_from=max(0, plain["committed_step"]), recovered_after_s=plain["recovered_after_s"]
    )
