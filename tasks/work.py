"""What a stage's control half gets: its inputs, its folder, and the means to run jobs. And the frame around it: find, lease, build, commit."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.job_view import JobView
from cluster.layout import ArtifactLayout
from cluster.lease import PATIENCE_S, Lease
from cluster.mirror import Mirror, cache_folder
from cluster.s3_storage import S3Storage
from cluster.storage import AlreadyExistsError, Storage
from cluster.supervisor import clear_up, run_job
from cluster.unfinished import remove_unfinished
from schemas.artifact import ArtifactRecord, FileEntry, Provenance, content_hash_of
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import BY_EXIT_CODE, ConfigError, HeadraceError, LeaseHeldError, Problem, VerificationError
from schemas.exit_code import ExitCode
from schemas.job import FileRead, ItemRecord, JobKind, JobSpec, WorkPlan
from schemas.stage import Stage
from tasks.allowance import refuse_spent
from tasks.file_hashes import FileHashes
from tasks.hashing import telling
from tasks.job_request import JobPlace, JobShape, array_shape, cores_here, job_request, scratch_of
from tasks.store import Identity, Store
from tasks.store_hygiene.sweep import finish_sweep


@dataclass(frozen=True)
class Draft:
    """What a stage made, before its record is written."""

    files: tuple[FileEntry, ...]
    """Content files, relative to the artifact's folder."""
    summary: Mapping[str, Any]
    """Small figures for people and for later stages; plain JSON data."""
    content_hash: str | None = None
    """Default: the root hash over `files`."""


@dataclass(frozen=True)
class Bench:
    """What all stages of one run share."""

    run_id: str
    run_name: str
    config: RunConfig
    storage: Storage
    store: Store
    state_dir: Path
    project_dir: Path
    provenance: Provenance
    note: Callable[[Stage, str], None]
    """Takes one line for people."""
    on_view: Callable[[Stage, JobView], None]
    """Takes the state of a running job, every second or so."""
    stop_requested: Callable[[], bool]
    """Whether the run was asked to stop."""

    def hashes(self, stage: Stage) -> FileHashes:
        """Returns the hashes of files that runs remember here, to be closed. Reading many files is told when it takes long, and can be stopped."""
        watch = telling(stage, note=lambda line: self.note(stage, line), stop_requested=self.stop_requested)
        return FileHashes(self.state_dir / "file-hashes.sqlite", watch=watch)


@dataclass(frozen=True)
class Work:
    """One stage in the making."""

    bench: Bench
    identity: Identity
    key: str
    inputs: Mapping[Stage, ArtifactRecord]
    is_rebuild: bool = False
    """Whether somebody asked to make it anew (`--from`)."""
    mirror: Mirror | None = None
    """Where this process finds files of object storage; None: storage is a folder."""
    still_held: Callable[[], bool] = lambda: True
    """Whether this process still holds the artifact's lease."""
    layout: ArtifactLayout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", ArtifactLayout(self.key))

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.identity.stage

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.bench.config

    @property
    def storage(self) -> Storage:
        """Shared storage."""
        return self.bench.storage

    @property
    def state_dir(self) -> Path:
        """The local state folder."""
        return self.bench.state_dir

    @property
    def output_dir(self) -> Path:
        """Local folder of the artifact in the making."""
        return self.made()

    def input_dir(self, stage: Stage, *files: FileEntry) -> Path:
        """Returns the local folder of an input, in which `files` can be opened: others may be missing there. Raises as `Mirror.bring`."""
        return self._local(self.inputs[stage].key, files)

    def made(self, *files: FileEntry) -> Path:
        """Returns the local folder of the artifact in the making, in which `files` can be opened. Raises as `Mirror.bring`."""
        return self._local(self.key, files)

    def hashes(self) -> FileHashes:
        """See `Bench.hashes`."""
        return self.bench.hashes(self.stage)

    def note(self, message: str) -> None:
        """Tells people one line: task log, terminal, journal."""
        self.bench.note(self.stage, message)

    def check_lease(self) -> None:
        """Makes sure that nobody else makes, or has made, this artifact: a machine may sleep, or be cut off, for longer than its lease lasts.

        Raises:
            LeaseHeldError: another process has taken it over.
        """
        if not self.still_held():
            why = "this one was silent for longer than its lease"
            raise LeaseHeldError(f"{self.key} was taken over by another process", why=why, mend="headrace resume goes on")

    def publish_json(self, name: str, value: BaseModel | Mapping[str, Any]) -> FileEntry:
        """Writes a JSON file of the artifact exclusively and returns its entry. Equal bytes that are there already are success.

        Raises:
            VerificationError: the file is there with other bytes.
        """
        return self._publish(f"{self.key}/{name}", canonical_json(value), name=name)

    def run_array(
        self, plan: WorkPlan, *, module: str, options: Mapping[str, Any] | None = None, reads: Iterable[FileRead] = (), loader: str = ""
    ) -> tuple[ItemRecord, ...]:
        """Freezes `plan`, runs the items that have no record yet, and returns all records in order.

        Args:
            plan: the items.
            module: their program.
            options: what it needs beyond the config.
            reads: the files of storage that items open, where that is less than all inputs, or more.
            loader: `module:function` that loads once what every item needs, into the process that items are forks of.

        Raises:
            VerificationError: an earlier start froze another plan in this folder.
            HeadraceError: the job failed; the class fits its exit code.
        """
        self._publish(self.layout.plan(plan.step_name), canonical_json(plan), name=f"{plan.step_name}-plan.json")
        if any(not self.storage.exists(self.layout.item(plan.step_name, item.index)) for item in plan.items):
            shape = array_shape(self.config, self.stage, step_name=plan.step_name, num_items=len(plan.items), cores=cores_here())
            request = job_request(
                self.config,
                place=self._place(reads),
                shape=shape,
                module=module,
                cores=cores_here(),
                preload=(module,) if len(plan.items) > 1 else (),  # its imports take longer than an item of some megabytes
                loader=loader,
                options=options,
            )
            self._run(request)
        else:
            self.clear_up(plan.step_name)
        records = [ItemRecord.model_validate_json(self.storage.read(self.layout.item(plan.step_name, item.index))) for item in plan.items]
        return tuple(records)

    def run_gang(
        self,
        *,
        module: str,
        step_name: str = "",
        num_nodes: int,
        ranks_per_node: int,
        preload: tuple[str, ...] = (),
        options: Mapping[str, Any] | None = None,
        is_complete: Callable[[], bool] = lambda: True,
    ) -> ExitRecord:
        """Runs ranks that start, work and restart together, until they are done.

        Args:
            is_complete: asked when an earlier attempt says that all is done; False makes another attempt due.

        Raises:
            PolicyStopError: its budget is used up.
            HeadraceError: the job failed; the class fits its exit code.
        """
        shape = JobShape(JobKind.GANG, num_nodes=num_nodes, ranks_per_node=ranks_per_node, step_name=step_name)
        request = job_request(self.config, place=self._place(), shape=shape, module=module, cores=cores_here(), preload=preload, options=options)
        refuse_spent(self.storage, request)
        return self._run(request, is_complete=is_complete)

    def clear_up(self, step_name: str = "") -> None:
        """Removes what an earlier start's job, whose work is done, may have left on its cluster. `step_name`: of an array; empty: a gang."""
        from cluster.launchers import launcher_for

        clear_up(self.storage, self.layout, step_name=step_name, launcher=lambda: launcher_for(self.config))

    def _place(self, reads: Iterable[FileRead] = ()) -> JobPlace:
        return JobPlace(
            run_id=self.bench.run_id,
            stage=self.stage,
            artifact_key=self.key,
            storage_root=self.storage.url,
            scratch_dir=str(scratch_of(self.state_dir)),
            project_dir=str(self.bench.project_dir),
            inputs={stage: record.key for stage, record in self.inputs.items()},
            reads=tuple(reads) if self.mirror is not None else (),  # elsewhere nothing needs to be brought
        )

    def _run(self, request: JobSpec, *, is_complete: Callable[[], bool] = lambda: True) -> ExitRecord:
        from cluster.launchers import launcher_for

        record = run_job(
            request,
            storage=self.storage,
            launcher=launcher_for(self.config),
            on_view=lambda view: self.bench.on_view(self.stage, view),
            stop_requested=self.bench.stop_requested,
            is_complete=is_complete,
        )
        if record.exit_code is not ExitCode.DONE:
            raise _error_of(record, stage=self.stage)
        return record

    def _publish(self, key: str, data: bytes, *, name: str) -> FileEntry:
        import xxhash

        try:
            self.storage.create_exclusive(key, data)
        except AlreadyExistsError as error:
            if self.storage.read(key) != data:
                self.check_lease()
                finding = f"{key}: is there with other content than this start made"
                mend = f"nothing in {self.storage.url}/{self.key} is finished: remove that folder and run again"
                raise VerificationError((finding,), subject=self.key, mend=mend) from error
        return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())

    def _local(self, key: str, files: Iterable[FileEntry]) -> Path:
        if self.mirror is not None:
            return self.mirror.bring(key, files)
        path = self.storage.local_path(key)
        if path is None:
            raise ConfigError((Problem("storage.root", repr(self.storage.url), "stages work on folders, mounted paths and s3://"),))
        return path


def make(
    identity: Identity, *, bench: Bench, key: str, inputs: Mapping[Stage, ArtifactRecord], build: Callable[[Work], Draft], is_rebuild: bool = False
) -> ArtifactRecord:
    """Builds the artifact in `key` under its lease and commits its record, last. `is_rebuild`: whether it was asked to make it anew.

    Raises:
        LeaseHeldError: another live process builds it.
        HeadraceError: the stage failed; nothing is committed.
    """
    layout = ArtifactLayout(key)
    with Lease.take(bench.storage, layout.leases, watch_s=PATIENCE_S) as lease, _mirror_of(bench) as mirror:
        if bench.storage.exists(layout.record):  # another process finished it while we waited for the lease
            return bench.store.read(key)
        work = Work(bench=bench, identity=identity, key=key, inputs=inputs, is_rebuild=is_rebuild, mirror=mirror, still_held=lease.still_held)
        finish_sweep(bench.storage, key, held=lease.still_held)
        work.check_lease()
        for record in inputs.values():
            bench.store.check_heads(record)
        draft = build(work)
        work.check_lease()
        if (folder := bench.storage.local_path(key)) is not None:
            remove_unfinished(folder)  # of items of killed jobs; a job that is over has no other
        record = ArtifactRecord(
            stage=identity.stage,
            stage_version=identity.stage.version,
            name=identity.name,
            key=key,
            fingerprint=identity.fingerprint,
            content_hash=draft.content_hash or content_hash_of(draft.files),
            inputs=tuple(inputs[stage].ref() for stage in bench.config.inputs_of(identity.stage)),
            outside=identity.outside,
            recipe=identity.recipe,
            files=draft.files,
            summary=json.loads(canonical_json(draft.summary)),
            provenance=bench.provenance.model_copy(update={"created_at": datetime.now(UTC).isoformat(timespec="seconds")}),
        )
        return bench.store.commit(record)


def _mirror_of(bench: Bench) -> AbstractContextManager[Mirror | None]:
    """Returns a mirror of object storage for this process; nothing where storage is a folder."""
    if not isinstance(bench.storage, S3Storage):
        return nullcontext()
    folder = cache_folder(scratch_of(bench.state_dir))
    return Mirror.open(bench.storage, folder=folder, most_bytes=bench.config.cluster.cache_bytes)


def _error_of(record: ExitRecord, *, stage: Stage) -> HeadraceError:
    """Returns the error that a failed job means for the control side."""
    kind = BY_EXIT_CODE.get(record.exit_code, HeadraceError)
    if record.exit_code is ExitCode.VERIFICATION:
        return VerificationError((record.message,), subject=stage.value)
    what = f"{stage.value} {'stopped' if record.cause is Cause.BUDGET else 'failed'}: {record.message}"
    if "\n  why:" in record.message:  # the rank's own error says it all
        return kind(what)
    repeats = record.exit_code in (ExitCode.USAGE, ExitCode.DATA_VERDICT, ExitCode.GATE)  # the same again would end the same way
    mend = "" if repeats else "headrace logs shows the ranks' output; headrace resume goes on"
    return kind(what, why=f"{record.cause.value} (exit code {int(record.exit_code)})", mend=mend)
