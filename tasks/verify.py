"""Walks from a registered model back to the raw files and hashes everything again. Trusts no cache."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.layout import ArtifactLayout, RunLayout, parse_artifact_folder
from cluster.storage import Storage, walk_files
from schemas.artifact import RECORD_NAME, ArtifactRecord, FileEntry
from schemas.canonical import fingerprint, root_hash
from schemas.checkpoint import CommitRecord
from schemas.errors import InputError, UnsafeFileError, VerificationError
from schemas.frozen import Frozen, thaw
from schemas.manifest import CorpusManifest, raw_hash
from schemas.safe_path import is_below
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.rehashing import MADE_BY, VerifiedArtifact, Walk, files_below
from tasks.store import Store


class VerifyReport(Frozen):
    """What `headrace verify` found."""

    subject: str
    """What was asked for."""
    artifacts: tuple[VerifiedArtifact, ...]
    """From the subject back to the corpus, then the raw files under the key `raw`."""
    findings: tuple[str, ...]
    """Every damage, naming the file. Empty: all is as it was committed."""


def verify_model(storage: Storage, model: str) -> VerifyReport:
    """Returns what was hashed and every damage found, from `model` back to the raw files.

    Args:
        model: an artifact's folder (`register/demo-0123456789ab`, or its path on this machine), a run id, a model name, `NAME/VERSION` or
            `NAME@ALIAS`, the last three with or without `models:/`.

    Raises:
        InputError: nothing fits `model`.
    """
    walk = Walk(Store(storage))
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
    if (key := _key_of_path(storage, model)) is not None:
        return key
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


def _key_of_path(storage: Storage, path: str) -> str | None:
    """Returns the key of an artifact whose folder is named as it lies on this machine, as a shell completes it; None when `path` is none."""
    folder = Path(path).resolve()
    key = "/".join(folder.parts[-2:])
    if not (is_below(key) and parse_artifact_folder(folder.name)):
        return None
    local = storage.local_path(key)
    return key if local is not None and local.resolve() == folder and storage.exists(ArtifactLayout(key).record) else None


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


def _read(walk: Walk, key: str) -> ArtifactRecord | None:
    try:
        return walk.store.read(key)
    except FileNotFoundError:
        walk.findings.append(f"{key}/record.json: missing")
    except VerificationError as error:
        walk.findings.extend(error.findings)
    return None


def _verify_artifact(walk: Walk, record: ArtifactRecord) -> None:
    folder = walk.store.storage.local_path(record.key)
    if folder is not None:
        try:
            for _ in walk_files(folder, skip=("attempts", "metrics")):  # refuses links and pickles anywhere in the artifact
                pass
        except UnsafeFileError as error:
            walk.findings.append(error.what)
    walk.hashed_below(record.key, record.files)
    walk.findings.extend(f"{record.key}/{name}: is not part of the artifact" for name in _unlisted(walk.names_below(record.key), record.files))
    if record.stage is Stage.TRAIN:
        _verify_commits(walk, record)
    inputs = {**{ref.stage.value: ref.content_hash for ref in record.inputs}, **record.outside}
    expected = fingerprint(stage=record.stage.value, stage_version=record.stage_version, recipe=thaw(record.recipe), inputs=inputs)
    if expected != record.fingerprint:
        walk.findings.append(f"{record.key}/record.json: fingerprint does not fit recipe and inputs")
    if record.stage is Stage.VALIDATE:
        _verify_raw(walk, record)
    if record.stage is Stage.REGISTER:
        _verify_registry_copy(walk, record)


def _unlisted(names: Iterable[str], files: Iterable[FileEntry]) -> Iterator[str]:
    """Yields the files of an artifact that are neither its content nor how it was made: libraries load more than they are asked to."""
    listed = {RECORD_NAME, *(entry.path for entry in files)}
    for name in names:
        made_by = name.split("/")[0] in MADE_BY or ("/" not in name and name.endswith("-plan.json"))
        if name not in listed and not made_by:
            yield name


def _verify_commits(walk: Walk, record: ArtifactRecord) -> None:
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
        if not is_final and not walk.has_folder(f"{record.key}/{commit.folder}"):
            continue  # retention removed the data of an older checkpoint; its commit stays as history
        walk.hashed_below(f"{record.key}/{commit.folder}", commit.files)
        if is_final:
            content = root_hash((entry.path, entry.size, entry.xxh3) for entry in commit.files)
            if content != record.content_hash:
                walk.findings.append(f"{key}: content {content[:12]} is not what the record says ({record.content_hash[:12]})")


def _verify_raw(walk: Walk, record: ArtifactRecord) -> None:
    """The raw files as they are now, against what was parsed."""
    try:
        manifest = CorpusManifest.model_validate_json(walk.store.storage.read(f"{record.key}/manifest.json"))
    except (OSError, ValueError, UnsafeFileError):
        return  # the manifest is one of the record's files: its damage is found there
    walk.hashed_raw("raw", manifest.inputs)
    if record.outside.get("raw") != raw_hash(manifest.inputs):
        walk.findings.append(f"{record.key}/manifest.json: its list of raw files is not what the corpus was made from")


def _verify_registry_copy(walk: Walk, record: ArtifactRecord) -> None:
    """MLflow's own copy of the model, which is what gets served."""
    from tasks.register.registration import Registration

    try:
        registration = Registration.model_validate_json(walk.store.storage.read(f"{record.key}/registration.json"))
    except (OSError, ValueError, UnsafeFileError):
        return  # one of the record's files: its damage is found there
    if registration.model_dir is None:
        return  # kept by a remote server; its artifact store answers for it
    model_dir = Path(registration.model_dir)
    walk.hashed("mlflow", walk.located(model_dir, registration.model_files))
    if (model_dir / "MLmodel").is_file():  # else it is no model's folder, which was found above
        walk.findings.extend(f"{model_dir / name}: is not part of the model" for name in _unlisted(files_below(model_dir), registration.model_files))
