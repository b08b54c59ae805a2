"""Trainings in storage of their own, on a recipe's finished corpus, tokenizer and shards: what proofs about training are made with.

The recipe's storage gets no run of it, so neither `status` nor `resume last` ever meets one.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.attempt import claimant, list_attempts, read_claim, read_exit
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import is_dead
from cluster.storage import Storage, open_storage
from schemas.artifact import ArtifactRecord
from schemas.attempt import Incident
from schemas.checkpoint import TrainingState
from schemas.config import RunConfig
from schemas.errors import ConfigError, InterruptedRunError, Problem
from schemas.journal import EventKind
from schemas.ledger import GoodputLedger
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.recorded_file import entry_of, verified_bytes
from tasks.runs import Pointer, Run, create_run, open_run
from tasks.store import Store
from tasks.tokenizer.corpus import MANIFEST_NAME
from tasks.train.bookkeeping import read_ledger
from tasks.train.consumed import prescribed
from tasks.train.prescribed_order import order_of
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view, stopping_on_signals
from tasks.work import Bench, Draft, Work, make

Prepared = Mapping[Stage, ArtifactRecord]
"""The finished artifacts that a training needs."""


@dataclass(frozen=True)
class Audience:
    """Who hears how a proof goes."""

    note: Callable[[str], None]
    """Takes one line for people."""
    watch: Callable[[Run], AbstractContextManager[None]]
    """Shows what is going on in a scratch run, while its body works."""


@dataclass(frozen=True)
class Origin:
    """Whose training it is."""

    config: RunConfig
    """The recipe's own."""
    project_dir: Path
    """Its project."""
    recipe: str
    """Where it came from."""


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    record: ArtifactRecord
    state: TrainingState
    """Of its last commit."""
    seconds: float
    incidents: tuple[Incident, ...]
    """Of all attempts, oldest first."""
    ledger: GoodputLedger


@contextmanager
def scratch_folder(origin: Origin, *, keep: bool, audience: Audience) -> Iterator[Path]:
    """Gives a folder for scratch storages, and removes it at the end unless asked to `keep` it. The first Ctrl-C or SIGTERM stops the job that runs.

    Raises:
        InterruptedRunError: it was asked to stop.
    """
    folder = Path(origin.config.state) / "verify-resume" / f"{time.strftime('%Y%m%dt%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        with stopping_on_signals():
            yield folder
    except InterruptedRunError as error:
        mend = "call it again: it begins anew, with the corpus, tokenizer and shards that are finished"
        raise InterruptedRunError("verify-resume was asked to stop", why=error.what, mend=mend) from error
    finally:
        if not keep:
            _remove(folder, note=audience.note)


class ScratchTraining:
    """One training in a storage of its own."""

    def __init__(self, origin: Origin, root: Path, *, config: RunConfig, audience: Audience) -> None:
        """Args: root: its storage. config: the recipe's, with what differs here; what comes before training must not."""
        self._origin, self._audience = origin, audience
        own = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(root)})})
        self._handle = create_run(own, project_dir=origin.project_dir, recipe=origin.recipe)
        self.run = open_run(self._handle)
        """Its scratch run."""

    @property
    def storage(self) -> Storage:
        """Its storage."""
        return self.run.storage

    @property
    def layout(self) -> ArtifactLayout | None:
        """Keys of the training artifact, or None before it has begun."""
        pointer = self.run.pointer(Stage.TRAIN)
        return ArtifactLayout(pointer.key) if pointer else None

    def artifact_key(self) -> str | None:
        """Returns the training artifact's folder, or None before it has begun."""
        return self.layout.key if self.layout is not None else None

    def prepare(self) -> Prepared:
        """Returns the recipe's own corpus, tokenizer and shards, found or made in its own storage; the scratch run keeps the journal."""
        from tasks.prepare.build import build as prepare
        from tasks.tokenize.build import build as tokenize
        from tasks.tokenizer.build import build as make_tokenizer
        from tasks.validate.build import build as validate

        config = self._origin.config
        storage = open_storage(config.storage.root)
        bench = replace(self._bench(), config=config, storage=storage, store=Store(storage))
        records: dict[Stage, ArtifactRecord] = {}
        with self._audience.watch(self.run):
            builds = {Stage.VALIDATE: validate, Stage.PREPARE: prepare, Stage.TOKENIZER: make_tokenizer, Stage.TOKENIZE: tokenize}
            for stage in (stage for stage in config.stages if stage in builds):
                inputs = {source: records[source] for source in config.inputs_of(stage)}
                records[stage] = self._find_or_prepare(stage, bench=bench, inputs=inputs, build=builds[stage])
        return records

    def take(self, prepared: Prepared) -> None:
        """Copies finished artifacts from the recipe's storage, and points the scratch run at them."""
        source = self._origin.config
        origin = open_storage(source.storage.root)
        for stage, record in prepared.items():
            local, target = origin.local_path(record.key), self.storage.local_path(record.key)
            if local is None:
                raise ConfigError((Problem("storage.root", repr(source.storage.root), "verify-resume needs a local folder or a mounted path"),))
            assert target is not None, "scratch storage is a local folder"
            shutil.copytree(local, target, ignore=shutil.ignore_patterns("attempts", "leases", "metrics", "epochs"))
            self.run.point(stage, Pointer(key=record.key, fingerprint=record.fingerprint))

    def train(
        self,
        *,
        config: RunConfig | None = None,
        meanwhile: Callable[[threading.Event], None] = lambda _: None,
        build: Callable[[Work], Draft] | None = None,
    ) -> Trained:
        """Trains, or goes on from what is committed, to the end.

        Args:
            config: what differs from now on; the artifact must stay the same one.
            meanwhile: runs in a thread beside it; the event is set once the training has ended.
            build: in place of the stage's own.
        """
        from tasks.train.build import build as build_training

        bench = self._bench() if config is None else replace(self._bench(), config=config)
        ended, started = threading.Event(), time.monotonic()
        with self._audience.watch(self.run), ThreadPoolExecutor(max_workers=1, thread_name_prefix="meanwhile") as pool:
            beside = pool.submit(meanwhile, ended)
            try:
                record = find_or_make(Stage.TRAIN, bench=bench, build=build or build_training)
            finally:
                ended.set()
            beside.result()
        return self._trained(record, seconds=time.monotonic() - started)

    def num_epochs(self) -> int:
        """Returns how often ranks were started so far."""
        return len(self.storage.names(self.layout.epochs)) if self.layout is not None else 0

    def artifact_dir(self) -> Path:
        """Returns the folder of the training artifact, which has begun."""
        assert self.layout is not None
        folder = self.storage.local_path(self.layout.key)
        assert folder is not None, "scratch storage is a local folder"
        return folder

    def _trained(self, record: ArtifactRecord, *, seconds: float) -> Trained:
        layout = ArtifactLayout(record.key)
        ends = [read_exit(self.storage, layout.attempt("", number)) for number in list_attempts(self.storage, layout, step_name="")]
        ledger = read_ledger(self.storage, layout, now=time.time())
        assert ledger is not None, "it has trained"
        state = (self.artifact_dir() / str(record.summary["checkpoint"]) / "state.json").read_bytes()
        return Trained(
            record=record,
            state=TrainingState.model_validate_json(state),
            seconds=seconds,
            incidents=tuple(incident for end in ends if end is not None for incident in end.incidents),
            ledger=ledger,
        )

    def _find_or_prepare(self, stage: Stage, *, bench: Bench, inputs: Prepared, build: Callable[[Work], Draft]) -> ArtifactRecord:
        contents = {source: record.content_hash for source, record in inputs.items()}
        with bench.hashes(stage) as hashes:
            identity = identity_of(stage, config=bench.config, inputs=contents, hashes=hashes, project_dir=bench.project_dir)
        record, started, kind = bench.store.find(identity), time.time(), EventKind.STAGE_REUSED
        if record is None:
            key, kind = bench.store.place(identity, rebuild=False), EventKind.STAGE_FINISHED
            self.run.append(EventKind.STAGE_STARTED, f"making {key}", stage=stage, artifact_key=key)
            record = make(identity, bench=bench, key=key, inputs=inputs, build=build)
        self.run.append(kind, stage=stage, artifact_key=record.key, figures={**record.summary, "seconds": time.time() - started})
        return record

    def _bench(self) -> Bench:
        """The bench of the scratch run; its notes are in its journal, which is watched."""
        return bench_of(self._handle, listener=Listener(note=_not_twice, view=ignore_view))


def prescribed_ids(origin: Origin, prepared: Prepared, *, state: TrainingState) -> str:
    """Returns the hash of the sequences that the recipe prescribes up to `state` (`tasks.train.consumed`)."""
    tokens = prepared[Stage.TOKENIZE]
    folder = open_storage(origin.config.storage.root).local_path(tokens.key)
    assert folder is not None, "its files were copied"
    manifest = ShardManifest.model_validate_json(verified_bytes(folder, entry_of(tokens, MANIFEST_NAME), subject=tokens.key))
    training = origin.config.training
    order = order_of(manifest, seed=state.seed, mixture=training.mixture, window_sequences=training.window_sequences)
    return prescribed(state.step, order=order, global_batch_size=training.global_batch_size, skipped=state.skipped_batches)


def _not_twice(message: str) -> None:
    """Takes a note that the journal has already."""
    del message


def _remove(folder: Path, *, note: Callable[[str], None]) -> None:
    """Removes scratch storages, unless a job may still write there: a second Ctrl-C leaves before its job has stopped."""
    if all(_is_idle(root) for root in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        note(f"{folder} stays: its job has not ended yet. Remove it when it has")


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
