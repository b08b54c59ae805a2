"""The control half of `register`: one version per root hash, its card and tags, then its aliases. Runs no job.

Every step can be the last before a crash: logging is looked up by root hash, creation settles on the lowest version, alias
moves are logged before they are made, and `registration.json` comes last.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import xxhash
from pydantic import BaseModel

from cluster.storage import AlreadyExistsError, file_entry, walk_files
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.errors import VerificationError
from schemas.stage import Stage
from tasks.evaluate.report import REPORT_NAME, SAMPLES_NAME, SPEED_NAME, Report, Samples, Speed
from tasks.export.layout import MODEL_FOLDER
from tasks.library_versions import library_version
from tasks.mlflow_connection import TrackingTarget, without_credentials
from tasks.mlflow_registry import ModelPackage, ModelRegistry
from tasks.recorded_file import entry_of, verified_bytes, verified_path
from tasks.register.card import render, run_metrics
from tasks.register.gate import Verdict, judge
from tasks.register.lineage import Lineage, trace
from tasks.register.promotion import CANDIDATE, CHAMPION, promote
from tasks.register.registration import REGISTRATION_NAME, Registration
from tasks.register.registry import Registered, RegistryClaim, register_once
from tasks.tracking import Tracker
from tasks.work import Draft, Work

CARD_NAME = "README.md"
_SERVED_MODEL = Path(__file__).with_name("served_model.py")
_REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors")

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class _Subject:
    """What is registered, and what is known about it."""

    lineage: Lineage
    report: Report
    verdict: Verdict
    card: str
    card_entry: FileEntry


def build(work: Work) -> Draft:
    """Registers the exported model and returns the draft; a gate that says no leaves the version `candidate` (see `gate_error`).

    Raises:
        UnreachableError: MLflow does not answer; running again goes on.
        VerificationError: a file of the model or of the evaluation is not what was recorded.
    """
    subject = _subject(work)
    bench, config, root_hash = work.bench, work.config, subject.lineage.root_hash
    target = TrackingTarget.of(config)
    tracker = Tracker(target, run_id=bench.run_id, run_name=bench.run_name)
    registry = ModelRegistry(tracker.connection, mlflow_run_id=tracker.mlflow_run_id)
    _describe_run(work, subject, tracker=tracker, registry=registry)
    tags = subject.lineage.tags(run_id=bench.run_id, commit=bench.provenance.commit)
    claim = RegistryClaim(root_hash=root_hash, model_name=config.model_name, run_id=bench.run_id)
    registered = register_once(
        registry,
        work.storage,
        claim=claim,
        tags=tags,
        description=subject.card,
        log_model=lambda: registry.log_model(_package(work, subject, tags=tags)),
    )
    work.note(f"{config.model_name} version {registered.version}" + ("" if registered.created else " is there already: its content is the same"))
    aliases = _promote(work, subject, registry=registry, version=registered.version)
    registration = _registration(work, subject, registry=registry, registered=registered, aliases=aliases)
    entry = work.publish_json(REGISTRATION_NAME, registration)
    return Draft(files=(subject.card_entry, entry), summary=_summary(registration))


def _subject(work: Work) -> _Subject:
    """Reads the verified inputs, judges them and writes the card."""
    evaluation = work.inputs[Stage.EVALUATE]
    folder = work.input_dir(Stage.EVALUATE, *evaluation.files)
    lineage = trace(work.bench.store, export=work.inputs[Stage.EXPORT], evaluation=evaluation)
    report = _read(folder, evaluation, REPORT_NAME, Report)
    verdict = judge(report, work.config.registration.gate)
    card = render(
        model_name=work.config.model_name,
        lineage=lineage,
        report=report,
        speed=_read(folder, evaluation, SPEED_NAME, Speed),
        samples=_read(folder, evaluation, SAMPLES_NAME, Samples),
        verdict=verdict,
    )
    return _Subject(lineage=lineage, report=report, verdict=verdict, card=card, card_entry=_publish_text(work, CARD_NAME, card))


def _read(folder: Path, record: ArtifactRecord, name: str, kind: type[_Model]) -> _Model:
    """Returns one of the evaluation's JSON files after checking it against the record."""
    return kind.model_validate_json(verified_bytes(folder, entry_of(record, name), subject=record.key))


def _publish_text(work: Work, name: str, text: str) -> FileEntry:
    data = text.encode()
    key = f"{work.key}/{name}"
    try:
        work.storage.create_exclusive(key, data)
    except AlreadyExistsError as error:
        if work.storage.read(key) != data:
            raise VerificationError((f"{key}: is there with other content than this start made",), subject=work.key) from error
    return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())


def _describe_run(work: Work, subject: _Subject, *, tracker: Tracker, registry: ModelRegistry) -> None:
    """Gives the MLflow run its evaluation figures, pictures and dataset. The same again changes nothing."""
    evaluation = work.inputs[Stage.EVALUATE]
    measured_at = datetime.fromisoformat(evaluation.provenance.created_at).timestamp()
    tracker.log_figures(run_metrics(subject.report), at=measured_at)
    folder = work.input_dir(Stage.EVALUATE, *evaluation.files)
    tracker.log_files({entry.path: verified_path(folder, entry, subject=evaluation.key) for entry in evaluation.files}, folder="evaluation")
    for stage, context in ((subject.lineage.corpus_stage, "corpus"), (Stage.TOKENIZE, "training")):
        record = subject.lineage[stage]
        registry.log_dataset(
            name=record.key.rpartition("/")[2],
            digest=record.content_hash,
            source=f"{work.storage.url}/{record.key}",
            context=context,
            profile={key: value for key, value in record.summary.items() if isinstance(value, int | float | str)},
        )


def _package(work: Work, subject: _Subject, *, tags: dict[str, str]) -> ModelPackage:
    """Returns the model's files, each checked against the export's record just before MLflow copies them."""
    export_dir = work.input_dir(Stage.EXPORT, *work.inputs[Stage.EXPORT].files)
    for entry in work.inputs[Stage.EXPORT].files:
        verified_path(export_dir, entry, subject="exported model")
    return ModelPackage(
        name=work.config.name,
        hf_dir=export_dir / MODEL_FOLDER,
        code_path=_SERVED_MODEL,
        card_path=work.made(subject.card_entry) / CARD_NAME,
        requirements=tuple(f"{name}=={library_version(name).partition('+')[0]}" for name in _REQUIREMENTS),
        root_hash=subject.lineage.root_hash,
        tags=tags,
    )


def _promote(work: Work, subject: _Subject, *, registry: ModelRegistry, version: int) -> tuple[str, ...]:
    """Moves the aliases, `champion` last and only when the gate says so; returns those that were given."""
    wanted = [(CANDIDATE, "registered")]
    if subject.verdict.passed:
        wanted.append((CHAMPION, "; ".join(subject.verdict.reasons) or "no gate is configured"))
    for alias, reason in wanted:
        promote(
            registry,
            work.storage,
            model_name=work.config.model_name,
            alias=alias,
            version=version,
            root_hash=subject.lineage.root_hash,
            run_id=work.bench.run_id,
            reason=reason,
        )
        work.note(f"{work.config.model_name}@{alias} was given to version {version} ({reason})")  # a move made meanwhile may have taken it on
    if not subject.verdict.passed:
        work.note("the gate said no: " + "; ".join(subject.verdict.reasons))
    return tuple(alias for alias, _ in wanted)


def _registration(work: Work, subject: _Subject, *, registry: ModelRegistry, registered: Registered, aliases: tuple[str, ...]) -> Registration:
    """Returns the registration, with the hashes of MLflow's own copy after comparing it with the export."""
    model_dir = registry.local_dir(registered.model_id)
    files = () if model_dir is None else tuple(file_entry(path, relative_to=model_dir) for path in walk_files(model_dir))
    if model_dir is not None:
        _compare(work.inputs[Stage.EXPORT], files, model_dir=model_dir)
    name = work.config.model_name
    return Registration(
        model_name=name,
        version=registered.version,
        model_uri=f"models:/{name}/{registered.version}",
        aliases=aliases,
        root_hash=subject.lineage.root_hash,
        verdict=subject.verdict,
        mlflow_uri=without_credentials(TrackingTarget.of(work.config).uri),
        mlflow_run_id=registry.run_of(registered.model_id),
        mlflow_model_id=registered.model_id,
        model_dir=None if model_dir is None else str(model_dir),
        model_files=files,
    )


def _compare(export: ArtifactRecord, files: tuple[FileEntry, ...], *, model_dir: Path) -> None:
    """Raises VerificationError when MLflow's copy lacks or changed a file of the exported model."""
    copies = {entry.path: entry.xxh3 for entry in files}
    findings = tuple(
        f"{model_dir}/artifacts/{entry.path}: {'differs from the export' if f'artifacts/{entry.path}' in copies else 'missing'}"
        for entry in export.files
        if copies.get(f"artifacts/{entry.path}") != entry.xxh3
    )
    if findings:
        raise VerificationError(findings, subject="MLflow's copy of the model", mend="delete the version in MLflow and run again")


def _summary(registration: Registration) -> dict[str, object]:
    return {
        "model_name": registration.model_name,
        "version": registration.version,
        "model_uri": registration.model_uri,
        "aliases": list(registration.aliases),
        "gate_passed": registration.verdict.passed,
        "gate_reasons": list(registration.verdict.reasons),
        "mlflow_run_id": registration.mlflow_run_id,
    }
