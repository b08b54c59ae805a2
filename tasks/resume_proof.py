"""Proves on one's own recipe that restarts lose nothing: trains twice in scratch storage, once calm and once with kills, and compares.

The weights, the moments, the step and the generators of the final commit are compared byte by byte, through its content hash.
"""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.storage import open_storage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.frozen import Frozen, thaw
from schemas.job import Incident
from schemas.stage import Stage
from tasks.disturbance import Kill, kill_rank
from tasks.runs import Pointer, Run, create_run
from tasks.views import job_progress
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view

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


def prove_resume(
    config: RunConfig, *, project_dir: Path, recipe: str, kills: int, seed: int, note: Callable[[str], None], keep: bool = False
) -> ResumeProof:
    """Returns the proof for `config`.

    Args:
        kills: how many ranks to kill, one after another, at seeded steps.
        seed: decides when and whom.
        note: takes lines for people.
        keep: leave the scratch storage in place.

    Raises:
        ConfigError: storage is not a local folder, or more kills than steps.
        HeadraceError: a stage failed.
    """
    prepared = _prepare(config, project_dir=project_dir, recipe=recipe, note=note)
    scratch = Path(config.state) / "verify-resume" / f"{time.strftime('%Y%m%dt%H%M%S')}-{os.getpid()}"
    budget = config.restart.model_copy(
        update={"max_failures": config.restart.max_failures + kills, "max_interruptions": config.restart.max_interruptions + kills}
    )
    try:
        note("training undisturbed")
        calm, calm_s, _ = _train(config, prepared, scratch / "calm", project_dir=project_dir, recipe=recipe, note=note, victims=())
        steps, world_size = int(calm.summary["steps"]), int(calm.summary["world_size"])
        victims = _victims(kills, steps=steps, world_size=world_size, seed=seed)
        note(f"training again, with {kills} kills")
        disturbed, disturbed_s, incidents = _train(
            config.model_copy(update={"restart": budget}),
            prepared,
            scratch / "disturbed",
            project_dir=project_dir,
            recipe=recipe,
            note=note,
            victims=victims,
        )
        return ResumeProof(
            steps=steps,
            world_size=world_size,
            calm_hash=calm.content_hash,
            disturbed_hash=disturbed.content_hash,
            calm_s=calm_s,
            disturbed_s=disturbed_s,
            kills=tuple(_proven(incident) for incident in incidents),
            scratch=str(scratch) if keep else "",
        )
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def _prepare(config: RunConfig, *, project_dir: Path, recipe: str, note: Callable[[str], None]) -> Mapping[Stage, ArtifactRecord]:
    """The recipe's own corpus, tokenizer and shards, found or made in its own storage."""
    from tasks.tokenize.build import build as tokenize
    from tasks.tokenizer.build import build as make_tokenizer
    from tasks.validate.build import build as validate

    handle = create_run(config, project_dir=project_dir, recipe=recipe)
    bench = bench_of(handle, listener=Listener(note=note, view=ignore_view))
    builds = dict(zip(_PREPARATION, (validate, make_tokenizer, tokenize), strict=True))
    return {stage: find_or_make(stage, bench=bench, build=build) for stage, build in builds.items()}


def _train(
    config: RunConfig,
    prepared: Mapping[Stage, ArtifactRecord],
    root: Path,
    *,
    project_dir: Path,
    recipe: str,
    note: Callable[[str], None],
    victims: tuple[tuple[int, int], ...],
) -> tuple[ArtifactRecord, float, tuple[Incident, ...]]:
    """Trains in its own storage under `root`, killing each (rank, step) of `victims` in turn."""
    from tasks.train.build import build

    source = open_storage(config.storage.root)
    own = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(root)})})
    handle = create_run(own, project_dir=project_dir, recipe=recipe)
    run = Run(open_storage(str(root)), handle.run_id)
    for stage, record in prepared.items():
        local = source.local_path(record.key)
        if local is None:
            raise ConfigError((Problem("storage.root", repr(config.storage.root), "verify-resume needs a local folder or a mounted path"),))
        shutil.copytree(local, root / record.key, ignore=shutil.ignore_patterns("attempts", "leases", "metrics", "epochs"))
        run.point(stage, Pointer(key=record.key, fingerprint=record.fingerprint))
    cancelled, killed = threading.Event(), list[Kill]()
    killer = threading.Thread(target=_kill_all, args=(run, victims, cancelled, killed, note), name="killer", daemon=True)
    started = time.monotonic()
    killer.start()
    try:
        record = find_or_make(Stage.TRAIN, bench=bench_of(handle, listener=Listener(note=note, view=ignore_view)), build=build)
    finally:
        cancelled.set()
        killer.join()
    job = job_progress(run.storage, record.key, now=time.time())
    assert job is not None
    return record, time.monotonic() - started, job.incidents


def _kill_all(run: Run, victims: tuple[tuple[int, int], ...], cancelled: threading.Event, killed: list[Kill], note: Callable[[str], None]) -> None:
    def artifact_key() -> str | None:
        pointer = run.pointer(Stage.TRAIN)
        return pointer.key if pointer else None

    for number, (rank, step) in enumerate(victims):
        kill = kill_rank(run.storage, artifact_key=artifact_key, rank=rank, at_step=step, epoch=number, cancelled=cancelled)
        if kill is None:
            return
        killed.append(kill)
        note(f"killed rank {kill.rank} (pid {kill.pid}) at step {kill.step}")


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

