"""Whether the store has room for what a plan would make: bytes and inodes, by its file system and by quotas. Asked before anything is made.

What is needed is estimated from above, and said as a warning; the run is refused only where even the least that it must have does not fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.quota import Ask, Room, rooms_of
from schemas.config import RunConfig
from schemas.plan import Action, PlannedStage
from schemas.sizing import TrainingSize
from schemas.source_url import is_remote
from schemas.stage import Stage
from tasks.validate.sources import plan_inputs

_COMPRESSED = (".gz", ".zst", ".parquet")
_EXPANSION = 4
"""Text is at most so much longer than its compressed file, as a rule."""
_BYTES_PER_TOKEN = 3
"""The fewest bytes that a token stands for, as a rule: shorter ones make more of them."""
_SMALL_BYTES = 10_000_000
"""Reports, pictures, a tokenizer, logs: of any stage."""
_SMALL_INODES = 60
"""Files and folders around a stage's own: leases, attempts, logs, records."""
_LEAST_CHECKPOINTS = 2
"""The last good one, and the one that is being written."""
_PARTS_OF_A_RANK = 2
"""Files of a rank in a checkpoint: its share and its index. Beside them lie state, model configuration, commit and folder."""
_PARTS_OF_ALL = 4


@dataclass(frozen=True)
class Need:
    """What a stage takes of the store."""

    num_bytes: int
    num_inodes: int
    least_bytes: int = 0
    """Without so much it cannot go on at all."""
    least_inodes: int = 1


@dataclass(frozen=True)
class RoomVerdict:
    """What there is to say about the room."""

    warnings: tuple[str, ...] = ()
    refusal: str = ""
    """Why the run cannot come to its end; empty: nothing says so."""


def judge_room(
    config: RunConfig, planned: Sequence[PlannedStage], *, size: TrainingSize, folder: Path | None, present_bytes: int = 0, ask: Ask | None = None
) -> RoomVerdict:
    """Returns what there is to say about the room in the store.

    Args:
        config: the configuration.
        planned: what would be done.
        size: derived numbers of the training.
        folder: the storage root; None where it is no folder: object stores have no end.
        present_bytes: what an unfinished training has already of its checkpoints.
        ask: see `cluster.quota.rooms_of`.
    """
    made = [stage.stage for stage in planned if stage.action is not Action.REUSE]
    if not made or folder is None:
        return RoomVerdict()
    text = _text_of(config, planned)
    needs = {stage: _need_of(stage, config=config, size=size, text_bytes=text.num_bytes, present_bytes=present_bytes) for stage in made}
    if (need := needs.get(Stage.VALIDATE)) is not None:
        fetched = {"num_bytes": need.num_bytes + text.fetched_bytes, "num_inodes": need.num_inodes + text.fetched_files}
        needs[Stage.VALIDATE] = replace(need, **fetched)
    return judge(needs, rooms_of(folder, ask=ask))


def judge(needs: Mapping[Stage, Need], rooms: Sequence[Room]) -> RoomVerdict:
    """Compares what stages need with every room there is. Pure."""
    warnings, refusals = list[str](), list[str]()
    for attribute, least, what in (("num_bytes", "least_bytes", "bytes"), ("num_inodes", "least_inodes", "inodes")):
        wanted = {stage: int(getattr(need, attribute)) for stage, need in needs.items()}
        needed, at_least = sum(wanted.values()), sum(int(getattr(need, least)) for need in needs.values())
        for room in rooms:
            free = room.free_bytes if what == "bytes" else room.free_inodes
            if free is None or needed <= free:
                continue
            largest = ", ".join(f"{stage.value} {_shown(count, what)}" for stage, count in sorted(wanted.items(), key=lambda item: -item[1])[:3])
            left = f"{room.source} leaves {_shown(free, what)}"
            if at_least > free:
                refusals.append(f"{left}, and this run cannot do with less than {_shown(at_least, what)}")
            else:
                warnings.append(f"{left}; this run may need {_shown(needed, what)} ({largest}): `headrace store gc` frees what nobody wants")
    return RoomVerdict(warnings=(*refusals, *warnings), refusal="; ".join(refusals))


def _need_of(stage: Stage, *, config: RunConfig, size: TrainingSize, text_bytes: int, present_bytes: int) -> Need:
    groups = 1 + text_bytes // config.corpus.group_bytes
    match stage:
        case Stage.VALIDATE | Stage.PREPARE:
            return Need(text_bytes + _SMALL_BYTES, num_inodes=8 * groups + 2 * _SMALL_INODES)
        case Stage.TOKENIZE:
            num_ids = size.model.vocab_size if size.model is not None else config.tokenizer.vocab_size
            tokens, width = text_bytes // _BYTES_PER_TOKEN, 2 if num_ids <= 1 << 16 else 4
            shards = tokens // (config.tokenization.sequence_length * config.tokenization.sequences_per_shard)
            return Need(tokens * width + _SMALL_BYTES, num_inodes=8 * groups + shards + _SMALL_INODES)
        case Stage.TRAIN:
            return _need_of_training(size, present_bytes=present_bytes)
        case Stage.EXPORT:
            weights = 2 * size.model.parameters if size.model is not None else 0
            return Need(weights + _SMALL_BYTES, num_inodes=_SMALL_INODES, least_bytes=weights)
    return Need(_SMALL_BYTES, num_inodes=_SMALL_INODES)


def _need_of_training(size: TrainingSize, *, present_bytes: int) -> Need:
    one, kept = size.checkpoint_bytes or 0, size.kept_checkpoints or _LEAST_CHECKPOINTS
    inodes = _PARTS_OF_A_RANK * size.world_size + _PARTS_OF_ALL
    fewest = min(_LEAST_CHECKPOINTS, kept)
    return Need(
        max(kept * one - present_bytes, one) + _SMALL_BYTES,
        num_inodes=kept * inodes + 10 * _SMALL_INODES,
        least_bytes=max(fewest * one - present_bytes, one),
        least_inodes=inodes if present_bytes else fewest * inodes,
    )


@dataclass(frozen=True)
class _Text:
    """All text."""

    num_bytes: int
    """Of texts, without compression."""
    fetched_bytes: int = 0
    """Of remote files, as they lie in the store while they are scanned."""
    fetched_files: int = 0
    """How many those are."""


def _text_of(config: RunConfig, planned: Sequence[PlannedStage]) -> _Text:
    """Returns how much text there is: counted where it was validated, else estimated from the sizes of its files."""
    known = next((stage.summary.get("text_bytes") for stage in planned if stage.stage is Stage.VALIDATE), None)
    if known is not None:
        return _Text(int(known))
    inputs = plan_inputs(config, None)
    text_bytes = sum(file.size * (_EXPANSION if file.path.endswith(_COMPRESSED) else 1) for file in inputs)
    fetched = [file.size for file in inputs if is_remote(file.path)]
    return _Text(text_bytes, fetched_bytes=sum(fetched), fetched_files=len(fetched))


def _shown(count: int, what: str) -> str:
    return f"{count:,} files" if what == "inodes" else f"{count / 1e9:,.2f} GB"
