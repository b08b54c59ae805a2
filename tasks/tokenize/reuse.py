"""Shards that an earlier artifact has already: a group whose documents and shard facts are the same has the same shards, byte for byte.

The control half names earlier artifacts; a group's item takes from them what fits and encodes the rest. In object storage the control half itself
takes over the groups of which an earlier artifact has all shards.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.layout import ArtifactLayout, parse_artifact_folder
from cluster.storage import Storage
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.errors import VerificationError
from schemas.frozen import Frozen
from schemas.manifest import AcceptedFile, Shard
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.recorded_file import verified_bytes, verified_object
from tasks.taking_over import Offer, take_over
from tasks.tokenize.facts import ShardFacts
from tasks.tokenizer.corpus import MANIFEST_NAME

logger = logging.getLogger(__name__)

_MOST_DONORS = 3


class Donor(Frozen):
    """An earlier artifact whose shards may be taken over."""

    folder: str
    """Its folder, beside the artifact in the making."""
    manifest: FileEntry
    """Its manifest."""


def find_donors(storage: Storage, *, key: str, name: str, facts: ShardFacts) -> tuple[Donor, ...]:
    """Returns the newest finished artifacts of this name whose shards are cut and encoded the same way.

    Not those of the same fingerprint: whoever rebuilds an artifact wants its shards made anew.
    A damaged record disqualifies its artifact here and is reported by `headrace verify`.
    """
    found: list[tuple[str, Donor]] = []
    mine = parse_artifact_folder(key.rpartition("/")[2])
    for folder in storage.names(Stage.TOKENIZE.value):
        parsed, other = parse_artifact_folder(folder), f"{Stage.TOKENIZE.value}/{folder}"
        if parsed is None or parsed[0] != name or (mine is not None and parsed[1] == mine[1]):
            continue
        try:
            record = ArtifactRecord.from_bytes(storage.read(ArtifactLayout(other).record))
        except FileNotFoundError:  # unfinished, or removed meanwhile
            continue
        except SealBrokenError as error:
            logger.warning("%s: not reused, its record is damaged: %s", other, error)
            continue
        manifest = next((file for file in record.files if file.path == MANIFEST_NAME), None)
        if manifest is not None and facts.are_those_of(record.summary):
            found.append((record.provenance.created_at, Donor(folder=folder, manifest=manifest)))
    found.sort(key=lambda item: item[0], reverse=True)
    return tuple(donor for _, donor in found[:_MOST_DONORS])


def offers(wanted: Set[int], *, storage: Storage, groups: Mapping[int, Sequence[AcceptedFile]], donors: Iterable[Donor]) -> Iterator[Offer]:
    """Yields what earlier artifacts have of whole groups, from whatever storage.

    Args:
        wanted: the items that are asked for; it may shrink meanwhile.
        storage: where they lie.
        groups: the accepted files of each group, in the order of their items.
        donors: the artifacts.
    """
    for donor in donors:
        key = f"{Stage.TOKENIZE.value}/{donor.folder}"
        try:
            content = json.loads(verified_object(storage, key, donor.manifest))
        except VerificationError as error:
            logger.info("no shards are taken from %s: %s", key, error)
            continue
        cut_from: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
        for shard in content["shards"]:
            cut_from.setdefault((shard["group"], shard["split"], shard["source_xxh3"]), []).append(shard)
        for index, (group, files) in enumerate(groups.items()):
            fitting = [cut_from.get((group, file.split, file.file.xxh3), []) for file in files]
            if index in wanted and all(fitting):
                shards = [Shard.model_validate(shard) for found in fitting for shard in found]
                output = {"shards": [shard.model_dump(mode="json") for shard in shards], "checked": 0, "reused": len(shards)}
                yield Offer(index=index, key=key, files=tuple(shard.file for shard in shards), output=output)


@dataclass(frozen=True)
class Reuse:
    """The shards of one corpus group in earlier artifacts."""

    task: ItemTask
    shards: tuple[tuple[Path, tuple[Shard, ...]], ...]
    """For each donor its folder and its shards of the group."""

    @classmethod
    def of_group(cls, task: ItemTask, donors: Iterable[Donor], *, group: int) -> "Reuse":
        """Reads what the donors have of a group. A donor that cannot be reached or is damaged has nothing."""
        shards: list[tuple[Path, tuple[Shard, ...]]] = []
        for donor in donors:
            folder = task.output_dir.parent / donor.folder
            try:
                content = json.loads(verified_bytes(folder, donor.manifest, subject="earlier shards"))
            except VerificationError as error:
                logger.info("no shards are taken from %s: %s", folder, error)
                continue
            shards.append((folder, tuple(Shard.model_validate(shard) for shard in content["shards"] if shard["group"] == group)))
        return cls(task=task, shards=tuple(shards))

    def take(self, file: AcceptedFile) -> tuple[Shard, ...] | None:
        """Publishes the shards that an earlier artifact cut from the same accepted file, and returns them; None when there are none.

        Raises:
            VerificationError: a shard's name is taken by other bytes.
        """
        for folder, shards in self.shards:
            fitting = tuple(shard for shard in shards if shard.split == file.split and shard.source_xxh3 == file.file.xxh3)
            if not fitting:
                continue
            if take_over(self.task, [shard.file for shard in fitting], folder=folder, subject="token shard"):
                return fitting
        return None
