"""Walks from a registered model back to the raw files and hashes everything again. Trusts no cache."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.layout import BOOKKEEPING, ArtifactLayout, RunLayout, parse_artifact_folder
from cluster.storage import TEMPORARY_PREFIX, Storage, hash_file, path_below, walk_files
from schemas.artifact import RECORD_NAME, ArtifactRecord, FileEntry
from schemas.canonical import fingerprint, root_hash
from schemas.checkpoint import CommitRecord
from schemas.errors import InputError, UnsafeFileError, VerificationError
from schemas.frozen import Frozen, thaw
from schemas.manifest import CorpusManifest, InputFile, raw_hash
from schemas.safe_path import is_below
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.store import Store


class VerifiedArtifact(Frozen):
    """One artifact that was looked at."""

    key: str
    """Its folder."""
    files: int
    """Files hashed."""
    bytes: int
    """Bytes hashed."""


class VerifyReport(Frozen):
    """What `headrace verify` found."""

    subject: str
    """What was asked for."""
    artifacts: tuple[VerifiedArtifact, ...]
    """From the subject back to the corpus, then the raw files under the key `raw`."""
    findings: tuple[str, ...]
    """Every damage, naming the file. Empty: all is as it was committed."""


@dataclass
class _Walk:
    """A verification under way."""

    store: Store
    findings: list[str] = field(default_factory=list)
    artifacts: list[VerifiedArtifact] = field(default_factory=list)

    def hashed(self, key: str, entries: Iterable[tuple[Path, FileEntry | InputFile]]) -> None:
        """Hashes files against their entries and books them under `key`."""
        files, total = 0, 0
        for path, entry in entries:
            files, total = files + 1, total + entry.size
            self.findings.extend(_damage(path, entry))
        self.artifacts.append(VerifiedArtifact(key=key, files=files, bytes=total))

    def located(self, folder: Path, entries: Iterable[FileEntry]) -> Iterator[tuple[Path, FileEntry]]:
        """Yields where each entry lies; what a link leads out of `folder` is a finding, and is not opened."""
        for entry in entries:
            try:
                yield path_below(folder, entry.path), entry
            except UnsafeFileError as error:
                self.findings.append(error.what)


def verify_model(storage: Storage, model: str) -> VerifyReport:
    """Returns what was hashed and every damage found, from `model` back to the raw files.

    Args:
        model: an artifact's folder (`register/demo-0123456789ab`), a run id, a model name, `NAME/VERSION` or `NAME@ALIAS`,
            the last three with or without `models:/`.

    Raises:
        InputError: nothing fits `model`.
    """
    walk = _Walk(Store(storage))
    todo = [resolve(storage, model)]
    seen: set[str] = set()
    while todo:
        key = todo.pop(0)
        if key in seen:
            continue
        seen.add(key)
        record = _read(walk, key)
        if record is None:
            continue
        _verify_artifact(walk, record)
        for ref in record.inputs:
            todo.append(ref.key)
            upstream = _read(walk, ref.key) if ref.key not in seen else None
            if upstream is not None and upstream.content_hash != ref.content_hash:
                holds, wanted = upstream.content_hash[:12], ref.content_hash[:12]
                walk.findings.append(f"{ref.key}/record.json: holds content {holds}, {key} was made from {wanted}")
    return VerifyReport(subject=model, artifacts=tuple(walk.artifacts), findings=tuple(dict.fromkeys(walk.findings)))


def resolve(storage: Storage, model: str) -> str:
    """Returns the folder of the artifact that `model` names; the newest one where several fit. Raises InputError."""
    name = model.removeprefix("models:/").rstrip("/")
    if not is_below(name):
        raise InputError(f"{model!r} names no model", why="a model is NAME, NAME@ALIAS, NAME/VERSION, a run, or an artifact's folder")
    if "/" in name and parse_artifact_folder(name.rpartition("/")[2]) and storage.exists(ArtifactLayout(name).record):
        return name
    if storage.exists(RunLayout(name).config):
        return _of_run(storage, name)
    base, version, alias = name, "", ""
    if "@" in name:
        base, _, alias = name.rpartition("@")
    elif "/" in name:
        base, _, version = name.rpartition("/")
    if alias:
        version = _version_of_alias(storage, base, alias=alias)
    found: list[ArtifactRecord] = []
    known: set[str] = set()
    for folder in storage.names(Stage.REGISTER.value):
        key = f"{Stage.REGISTER.value}/{folder}"
        if not storage.exists(ArtifactLayout(key).record):
            continue
        record = Store(storage).read(key)
        known.add(str(record.summary["model_name"]))
        summary = record.summary
        if summary["model_name"] == base and version in ("", str(summary["version"])):
            found.append(record)
    if not found:
        raise InputError(
            f"no registered model {model!r} in {storage.url}",
            why=f"known models: {', '.join(sorted(known)) or 'none'}",
            mend="headrace status lists runs; --storage names another storage root",
        )
    return max(found, key=lambda record: record.provenance.created_at).key


def _version_of_alias(storage: Storage, model_name: str, *, alias: str) -> str:
    """The version that an alias points to now, by the promotion log: a rollback moves it without a new registration."""
    from tasks.register.promotion import history

    moves = [move for move in history(storage, model_name) if move.alias == alias]
    if not moves:
        why = "nothing was ever promoted to it"
        raise InputError(f"no model {model_name}@{alias} in {storage.url}", why=why, mend=f"headrace rollback {model_name} --history shows all moves")
    return str(moves[-1].version)


def _of_run(storage: Storage, run_id: str) -> str:
    """The last artifact that a run made or found."""
    from tasks.runs import Run

    pointers = [pointer for stage in Stage if (pointer := Run(storage, run_id).pointer(stage)) and storage.exists(ArtifactLayout(pointer.key).record)]
    if not pointers:
        raise InputError(f"run {run_id} has finished no stage yet", mend=f"headrace resume {run_id}")
    return pointers[-1].key


def _read(walk: _Walk, key: str) -> ArtifactRecord | None:
    try:
        return walk.store.read(key)
    except FileNotFoundError:
        walk.findings.append(f"{key}/record.json: missing")
    except VerificationError as error:
        walk.findings.extend(error.findings)
    return None


def _verify_artifact(walk: _Walk, record: ArtifactRecord) -> None:
    folder = walk.store.storage.local_path(record.key)
    if folder is None:
        raise InputError(f"{walk.store.storage.url} cannot be hashed in place", mend="verify where the storage is mounted")
    try:
        for _ in walk_files(folder, skip=("attempts", "metrics")):  # refuses links and pickles anywhere in the artifact
            pass
    except UnsafeFileError as error:
        walk.findings.append(error.what)
    walk.hashed(record.key, walk.located(folder, record.files))
    walk.findings.extend(f"{record.key}/{name}: is not part of the artifact" for name in _unlisted(folder, record.files))
    if record.stage is Stage.TRAIN:
        _verify_commits(walk, record, folder)
    inputs = {**{ref.stage.value: ref.content_hash for ref in record.inputs}, **record.outside}
    expected = fingerprint(stage=record.stage.value, stage_version=record.stage_version, recipe=thaw(record.recipe), inputs=inputs)
    if expected != record.fingerprint:
        walk.findings.append(f"{record.key}/record.json: fingerprint does not fit recipe and inputs")
    if record.stage is Stage.VALIDATE:
        _verify_raw(walk, record, folder)
    if record.stage is Stage.REGISTER:
        _verify_registry_copy(walk, folder)


def _unlisted(folder: Path, files: Iterable[FileEntry]) -> Iterator[str]:
    """Yields the files of an artifact that are neither its content nor how it was made: libraries load more than they are asked to."""
    listed = {RECORD_NAME, *(entry.path for entry in files)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        made_by = name.split("/")[0] in (*BOOKKEEPING, "quarantine") or (path.parent == folder and name.endswith("-plan.json"))
        if path.is_file() and name not in listed and not made_by and not path.name.startswith(TEMPORARY_PREFIX):
            yield name


def _verify_commits(walk: _Walk, record: ArtifactRecord, folder: Path) -> None:
    """Every checkpoint that is still kept, not only the one that was exported."""
    storage, layout = walk.store.storage, ArtifactLayout(record.key)
    for name in storage.names(layout.commits):
        key = f"{layout.commits}/{name}"
        try:
            commit = CommitRecord.from_bytes(storage.read(key))
        except SealBrokenError as error:
            walk.findings.append(f"{key}: {error}")
            continue
        is_final = commit.step == record.summary.get("commit_step")
        if not (folder / commit.folder).exists() and not is_final:
            continue  # retention removed the data of an older checkpoint; its commit stays as history
        whole = (entry.model_copy(update={"path": f"{commit.folder}/{entry.path}"}) for entry in commit.files)
        walk.hashed(f"{record.key}/{commit.folder}", walk.located(folder, whole))
        if is_final:
            content = root_hash((entry.path, entry.size, entry.xxh3) for entry in commit.files)
            if content != record.content_hash:
                walk.findings.append(f"{key}: content {content[:12]} is not what the record says ({record.content_hash[:12]})")


def _verify_raw(walk: _Walk, record: ArtifactRecord, folder: Path) -> None:
    """The raw files as they are now, against what was parsed."""
    try:
        manifest = CorpusManifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return  # the manifest is one of the record's files: its damage is found there
    walk.hashed("raw", ((Path(file.path), file) for file in manifest.inputs))
    if record.outside.get("raw") != raw_hash(manifest.inputs):
        walk.findings.append(f"{record.key}/manifest.json: its list of raw files is not what the corpus was made from")


def _verify_registry_copy(walk: _Walk, folder: Path) -> None:
    """MLflow's own copy of the model, which is what gets served."""
    from tasks.register.registration import Registration

    try:
        registration = Registration.model_validate_json((folder / "registration.json").read_bytes())
    except (OSError, ValueError):
        return  # one of the record's files: its damage is found there
    if registration.model_dir is None:
        return  # kept by a remote server; its artifact store answers for it
    model_dir = Path(registration.model_dir)
    walk.hashed("mlflow", walk.located(model_dir, registration.model_files))
    if (model_dir / "MLmodel").is_file():  # else it is no model's folder, which was found above
        walk.findings.extend(f"{model_dir / name}: is not part of the model" for name in _unlisted(model_dir, registration.model_files))


def _damage(path: Path, entry: FileEntry | InputFile) -> Iterator[str]:
    """Yields what is wrong with one file, naming it."""
    try:
        size = path.lstat().st_size
        if size != entry.size:
            yield f"{path}: {size} bytes, {entry.size} were committed"
        elif hash_file(path) != entry.xxh3:
            yield f"{path}: its content is not what was committed"
    except FileNotFoundError:
        yield f"{path}: missing"
    except UnsafeFileError as error:
        yield error.what
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror})"
