"""What a run would do, and why, without doing any of it. Also the fast path of `headrace run`: all found, nothing to do."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.layout import ArtifactLayout
from cluster.storage import Storage, open_storage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import MissingTextError, VerificationError
from schemas.frozen import thaw
from schemas.mixture import check_mixture
from schemas.plan import Action, Plan, PlannedStage
from schemas.sizing import TrainingSize, training_size
from schemas.stage import Stage
from tasks.cost_of_training import planned_cost
from tasks.evaluate.held_out import check_test_split
from tasks.file_hashes import FileHashes, Hashes
from tasks.hashing import Hashing
from tasks.identity import identity_of
from tasks.outside_inputs import check_tokenizer, training_files
from tasks.planned_jobs import planned_scripts
from tasks.raw_changes import RawChanges, raw_changes, shards_reason
from tasks.store import Identity, Store, differences
from tasks.store_hygiene.usage import DiskMeter
from tasks.store_room import RoomVerdict, judge_room
from tasks.unshared import missed_by_pods

logger = logging.getLogger(__name__)


def make_plan(
    config: RunConfig,
    *,
    from_stage: Stage | None = None,
    project_dir: Path | None = None,
    alike: str = "",
    text_may_be_elsewhere: bool = False,
    watch: Callable[[Hashing], None] = lambda _: None,
) -> Plan:
    """Returns what `headrace run` would do with `config`.

    Args:
        from_stage: `--from`.
        project_dir: the recipe's project folder, where the source of `model.factory` is looked for last. None: on the import path alone.
        alike: folder of a training of the same model, whose pace counts although its model section reads otherwise.
        text_may_be_elsewhere: whether a source that this machine does not see is a warning, and all stages are planned as depending on it.
        watch: sees how far the hashing of raw files is.

    Raises:
        InputError: a raw input is missing, an existing tokenizer or a pretrained model cannot be used, or `from_stage` needs stages that
            are not finished.
        UnsafeFileError: an existing tokenizer or a pretrained model holds pickles, or links that leave it.
        ConfigError: the model cannot take the ids of the existing tokenizer, a source that is to be mixed in has no sequence, the source of
            `model.factory` cannot be found, or there is no text to evaluate the model by.
        VerificationError: a record is damaged, or a manifest or a tokenizer that a stage to be made would read.
    """
    store = Store(open_storage(config.storage.root))
    found: dict[Stage, ArtifactRecord] = {}
    planned: list[PlannedStage] = []
    raw: RawChanges | None = None
    unseen: tuple[str, ...] = ()
    with FileHashes(Path(config.state) / "file-hashes.sqlite", watch=watch) as hashes:
        for stage in config.stages:
            missing = [source for source in config.inputs_of(stage) if source not in found]
            if missing:
                planned.append(_depends(stage, missing))
                continue
            contents = {source: found[source].content_hash for source in config.inputs_of(stage)}
            try:
                identity = identity_of(stage, config=config, inputs=contents, hashes=hashes, project_dir=project_dir)
            except MissingTextError as error:
                if not text_may_be_elsewhere:
                    raise
                unseen = (f"{error.what}, as seen from this machine; a run must be started where the text is",)
                planned.append(_unplanned(stage, "depends on text that this machine does not see"))
                continue
            rebuild = from_stage is not None and stage in from_stage.following
            planned.append(_plan_stage(identity, store=store, found=found, rebuild=rebuild, from_stage=from_stage))
            if stage is Stage.VALIDATE and planned[-1].action is Action.BUILD:
                raw = _raw_changes(config, identity, store=store, hashes=hashes)
        if raw is not None:
            planned = [_with_raw_changes(stage, raw, store=store, config=config, hashes=hashes) for stage in planned]
    _check_from(from_stage, planned, config=config)
    vocab_size = _check_outside_inputs(config, planned, project_dir=project_dir)
    _check_test_split(config, planned, found=found)
    if (tokenizer := found.get(Stage.TOKENIZER)) is not None:
        vocab_size = tokenizer.summary.get("vocab_size")
    _check_inputs(store, config=config, planned=planned, found=found)
    shards = found.get(Stage.TOKENIZE)
    known = thaw(shards.summary) if shards is not None else {}
    by_source = known.get("sequences_by_source")
    if config.training.mixture is not None and shards is not None:
        check_mixture(config.training.mixture, by_source or {})
    size = training_size(config, vocab_size=vocab_size, train_sequences=known.get("sequences", {}).get("train"), source_sequences=by_source)
    training = next(stage for stage in planned if stage.stage is Stage.TRAIN)
    cost = planned_cost(config, storage=store.storage, stage=training, size=size, alike=alike)
    over_budget = (f"{cost.objection}: it will stop there, and go on under a larger budget",) if cost is not None and cost.objection else ()
    room = RoomVerdict() if unseen else _room(config, planned, size=size, store=store)  # how much text there is decides
    project, made = project_dir or Path.cwd(), [stage.stage for stage in planned if stage.action is not Action.REUSE]
    missed = missed_by_pods(config, storage_root=store.storage.url, project_dir=project, stages=made)
    return Plan(
        name=config.name,
        storage_root=store.storage.url,
        stages=tuple(planned),
        size=size,
        cost=cost,
        scripts=planned_scripts(config, planned, storage=store.storage, project_dir=project),
        warnings=(*unseen, *over_budget, *(warning for source in size.sources if (warning := source.warning)), *room.warnings, *map(str, missed)),
        lacks_room=room.refusal,
    )


def _room(config: RunConfig, planned: list[PlannedStage], *, size: TrainingSize, store: Store) -> RoomVerdict:
    """Whether the store has room for what is to be made; what an unfinished training has already is not needed again."""
    training = next(stage for stage in planned if stage.stage is Stage.TRAIN)
    present = DiskMeter(store.storage).measure(ArtifactLayout(training.key).checkpoints).bytes if training.action is Action.CONTINUE else 0
    return judge_room(config, planned, size=size, folder=_folder_of(store.storage), present_bytes=present)


def _folder_of(storage: Storage) -> Path | None:
    local = storage.local_path("runs")
    return None if local is None else local.parent


def _plan_stage(identity: Identity, *, store: Store, found: dict[Stage, ArtifactRecord], rebuild: bool, from_stage: Stage | None) -> PlannedStage:
    """Plans a stage whose inputs are known; adds it to `found` when it is reused."""
    stage, record = identity.stage, store.find(identity)
    if record is not None and not rebuild:
        found[stage] = record
        maker = () if record.name == identity.name else (f"made under the recipe name {record.name}",)
        return _planned(identity, Action.REUSE, record.key, ("found by content", *maker), summary=thaw(record.summary))
    key = store.place(identity, rebuild=rebuild)
    if record is not None:
        assert from_stage is not None
        return _planned(identity, Action.REBUILD, key, (f"--from {from_stage.value}",))
    if store.storage.names(ArtifactLayout(key).attempts) or store.storage.names(ArtifactLayout(key).commits):
        return _planned(identity, Action.CONTINUE, key, _why_continue(store, key))
    return _planned(identity, Action.BUILD, key, _why_build(identity, store))


def _why_continue(store: Store, key: str) -> tuple[str, ...]:
    commits = store.storage.names(ArtifactLayout(key).commits)
    if commits:
        return (f"unfinished; goes on from {commits[-1].removesuffix('.json')}",)
    items = store.storage.names(f"{key}/items")
    return (f"unfinished; {len(items)} finished items are kept",)


def _why_build(identity: Identity, store: Store) -> tuple[str, ...]:
    """The field-level difference to the newest sibling, and which inputs changed."""
    siblings = store.siblings(identity)
    if not siblings:
        return ("not made yet",)
    newest = siblings[0]
    reasons = list(differences(newest.recipe, identity.recipe))
    for ref in newest.inputs:
        now = identity.inputs.get(ref.stage.value)
        if now != ref.content_hash:
            reasons.append(f"{ref.stage.value} changed: {ref.content_hash[:12]} -> {str(now)[:12]}")
    changed = (name for name, digest in newest.outside.items() if identity.inputs.get(name, digest) != digest)
    reasons += [_OUTSIDE_CHANGED.get(name, f"{name} changed") for name in changed]
    if newest.stage_version != identity.stage.version:
        reasons.append(f"stage version {newest.stage_version} -> {identity.stage.version}")
    return tuple(reasons) or ("its inputs changed",)


def _raw_changes(config: RunConfig, identity: Identity, *, store: Store, hashes: Hashes) -> RawChanges | None:
    """Returns which raw files changed since the newest corpus, where only they did; None where that cannot be told."""
    earlier = next(iter(store.siblings(identity)), None)
    if earlier is None or differences(earlier.recipe, identity.recipe) or earlier.stage_version != identity.stage.version:
        return None
    try:
        return raw_changes(config, identity, hashes=hashes, storage=store.storage, earlier=earlier)
    except VerificationError as error:  # only a plan depends on it, and can do without
        logger.info("it cannot be told which raw files changed: %s", error)
        return None


def _with_raw_changes(stage: PlannedStage, raw: RawChanges, *, store: Store, config: RunConfig, hashes: Hashes) -> PlannedStage:
    """Returns a planned stage with the files' names in its reasons, and with the shards that are cut anew."""
    if stage.stage is Stage.VALIDATE and raw.reasons():
        kept = tuple(reason for reason in stage.reasons if reason != _OUTSIDE_CHANGED["raw"])
        return stage.model_copy(update={"reasons": (*kept, *raw.reasons())})
    if stage.stage is not Stage.TOKENIZE or stage.action is not Action.DEPENDS:
        return stage
    try:
        reason = shards_reason(raw, config=config, store=store, hashes=hashes)
    except (FileNotFoundError, VerificationError) as error:
        logger.info("it cannot be told which shards are cut anew: %s", error)
        return stage
    return stage.model_copy(update={"reasons": (*stage.reasons, reason)}) if reason else stage


_OUTSIDE_CHANGED: Mapping[str, str] = {
    "raw": "the raw files changed",
    "compared": "the texts to compare with changed",
    "existing": "the given tokenizer changed",
    "pretrained": "the pretrained model changed",
    "factory": "model.factory changed: its source is not what it was",
    "registry": "the model registry is another",
}


def _depends(stage: Stage, missing: list[Stage]) -> PlannedStage:
    return _unplanned(stage, f"depends on {', '.join(source.value for source in missing)}: rebuilt unless they come out byte for byte equal")


def _unplanned(stage: Stage, reason: str) -> PlannedStage:
    return PlannedStage(stage=stage, action=Action.DEPENDS, key="", fingerprint="", reasons=(reason,))


def _planned(identity: Identity, action: Action, key: str, reasons: tuple[str, ...], *, summary: Mapping[str, Any] | None = None) -> PlannedStage:
    return PlannedStage(stage=identity.stage, action=action, key=key, fingerprint=identity.fingerprint, reasons=reasons, summary=dict(summary or {}))


def _check_outside_inputs(config: RunConfig, planned: list[PlannedStage], *, project_dir: Path | None) -> int | None:
    """Refuses at once what the stages that are to be made would refuse later, perhaps after hours.

    Returns how many ids the existing tokenizer has; None without one, or where it is taken over already.
    """
    made = {stage.stage for stage in planned if stage.action is not Action.REUSE}
    vocab_size = check_tokenizer(config) if Stage.TOKENIZER in made else None
    if Stage.TRAIN in made:
        training_files(config, project_dir=project_dir)
    return vocab_size


def _check_test_split(config: RunConfig, planned: list[PlannedStage], *, found: Mapping[Stage, ArtifactRecord]) -> None:
    """Refuses a corpus by which the model could not be evaluated; while it is not made, the recipe alone tells."""
    if any(stage.stage is Stage.EVALUATE and stage.action is not Action.REUSE for stage in planned):
        corpus = found.get(config.corpus_stage)
        check_test_split(config, None if corpus is None else corpus.summary.get("documents"))


def _check_inputs(store: Store, *, config: RunConfig, planned: list[PlannedStage], found: Mapping[Stage, ArtifactRecord]) -> None:
    """Refuses finished artifacts that are to be read and are not what was committed, as far as a few milliseconds can tell."""
    wanted = {source for stage in planned if stage.action is not Action.REUSE for source in config.inputs_of(stage.stage)}
    for stage, record in found.items():
        if stage in wanted:
            store.check_heads(record)


def _check_from(from_stage: Stage | None, planned: list[PlannedStage], *, config: RunConfig) -> None:
    """`--from S` needs S in the recipe, and everything before it finished."""
    from schemas.errors import InputError

    if from_stage is None:
        return
    if from_stage not in config.stages:
        why = "it declares no preparation step, so what validate accepts is what is read"
        raise InputError(f"--from {from_stage.value}: this recipe has no such stage", why=why, mend=f"--from {Stage.TOKENIZER.value}")
    unfinished = [stage.stage.value for stage in planned if stage.stage not in from_stage.following and stage.action is not Action.REUSE]
    if unfinished:
        raise InputError(
            f"--from {from_stage.value} needs the stages before it finished; unfinished: {', '.join(unfinished)}",
            mend=f"headrace run without --from, or with --from {unfinished[0]}",
        )
