"""Groups that an earlier artifact has already: equal documents, equal steps and equal texts to compare with give equal files, byte for byte.

The control half names earlier artifacts; a group's items take from them what fits and do the rest. In object storage the control half itself takes
over.
"""

import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import orjson

from cluster.storage import Storage
from schemas.artifact import FileEntry
from schemas.canonical import hash_of
from schemas.config import RunConfig
from schemas.errors import VerificationError
from schemas.frozen import Frozen
from schemas.manifest import AcceptedFile, Split
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.prepare.filtering import FilterOutput
from tasks.prepare.removal import RemovalOutput
from tasks.recorded_file import verified_bytes, verified_object
from tasks.store import Identity, Store
from tasks.taking_over import Offer, take_over

logger = logging.getLogger(__name__)

GROUPS_NAME = "groups.json"
_MOST_DONORS = 3


class GroupRecord(Frozen):
    """How one group of an artifact was made."""

    read: dict[Split, str]
    """Hash of each accepted file that it was made of."""
    filtered: FilterOutput
    """What the steps made of it."""
    listed: str | None = None
    """Hash of what was listed for removal; null without."""
    removal: RemovalOutput | None = None
    """What was removed of it as duplicates; null without."""

    @property
    def absent(self) -> tuple[Split, ...]:
        """The splits whose files are there without their duplicates alone."""
        return self.removal.splits if self.removal is not None else ()

    @property
    def filtered_files(self) -> tuple[FileEntry, ...]:
        """What the steps made of the group and is there."""
        files = [file.file for file in self.filtered.accepted if file.split not in self.absent]
        return (*files, *(entry for entry in (self.filtered.quarantine, self.filtered.signatures) if entry is not None))

    @property
    def filtered_as_present(self) -> FilterOutput:
        """What the steps made of the group, saying which of its files are not there."""
        return self.filtered.model_copy(update={"absent": self.absent})

    @property
    def removal_files(self) -> tuple[FileEntry, ...]:
        """The files without duplicates, and the duplicates."""
        return (*(file.file for file in self.removal.accepted), self.removal.quarantine) if self.removal is not None else ()


class PreparedGroups(Frozen):
    """`groups.json`: what later artifacts need to know to take groups over."""

    schema_version: int = 1
    """Version of this type."""
    groups: tuple[GroupRecord, ...]
    """All groups, in order."""


class Donor(Frozen):
    """An earlier artifact whose groups may be taken over."""

    folder: str
    """Its folder, beside the artifact in the making."""
    groups: FileEntry
    """Its `groups.json`."""


def facts_of(config: RunConfig, *, index: Iterable[FileEntry]) -> str:
    """Returns one hash over all that the files of a group follow from, besides its documents.

    Args:
        config: the recipe's.
        index: files of the texts to compare with.
    """
    sections = config.corpus.preparation.identity()
    if (duplicates := sections.pop("duplicates", None)) is not None:  # which of them are too near is decided over all groups
        sections["compared_by"] = {key: duplicates.get(key) for key in ("near", "permutations", "shingle")}
    sections["conversations"] = config.corpus.conversations
    made_by = {"pyarrow": version("pyarrow"), "rensa": version("rensa"), "unicode": unicodedata.unidata_version, "stage": Stage.PREPARE.version}
    return hash_of({"steps": sections, "index": [entry.xxh3 for entry in index], "made_by": made_by})


def find_donors(storage: Storage, identity: Identity, *, facts: str) -> tuple[Donor, ...]:
    """Returns the newest finished artifacts of this name whose groups were made in the same way."""
    donors = []
    for record in Store(storage).siblings(identity):
        groups = next((file for file in record.files if file.path == GROUPS_NAME), None)
        if groups is not None and record.summary.get("facts") == facts:
            donors.append(Donor(folder=record.key.rpartition("/")[2], groups=groups))
    return tuple(donors[:_MOST_DONORS])


def filter_offers(wanted: Set[int], *, storage: Storage, groups: Mapping[int, Sequence[AcceptedFile]], donors: Iterable[Donor]) -> Iterator[Offer]:
    """Yields what the steps made of groups in earlier artifacts, from whatever storage.

    Args:
        wanted: the items that are asked for; it may shrink meanwhile.
        storage: where the artifacts lie.
        groups: the accepted files of each group, in the order of their items.
        donors: the artifacts.
    """
    for key, records in _records(storage, donors):
        for index, (group, files) in enumerate(groups.items()):
            record = records.get(group)
            if index in wanted and record is not None and record.read == _read_by(files):
                output = {"filtered": record.filtered_as_present.model_dump(mode="json"), "reused": True}
                yield Offer(index=index, key=key, files=record.filtered_files, output=output)


def removal_offers(
    wanted: Set[int], *, storage: Storage, groups: Mapping[int, Sequence[AcceptedFile]], donors: Iterable[Donor], listed: Mapping[int, str]
) -> Iterator[Offer]:
    """Yields groups without their duplicates; see `filter_offers`. `listed`: by group the hash of what is to be removed of it."""
    for key, records in _records(storage, donors):
        for index, (group, files) in enumerate(groups.items()):
            record = records.get(group)
            if index not in wanted or record is None or record.removal is None:
                continue
            if record.read == _read_by(files) and record.listed == listed.get(group):
                yield Offer(index=index, key=key, files=record.removal_files, output={"removal": record.removal.model_dump(mode="json")})


def _records(storage: Storage, donors: Iterable[Donor]) -> Iterator[tuple[str, dict[int, GroupRecord]]]:
    """Yields the folders of earlier artifacts, and how their groups were made."""
    for donor in donors:
        key = f"{Stage.PREPARE.value}/{donor.folder}"
        try:
            groups = PreparedGroups.model_validate_json(verified_object(storage, key, donor.groups)).groups
        except VerificationError as error:
            logger.info("no groups are taken from %s: %s", key, error)
            continue
        yield key, {record.filtered.group: record for record in groups}


def _read_by(files: Iterable[AcceptedFile]) -> dict[Split, str]:
    return {file.split: file.file.xxh3 for file in files}


@dataclass(frozen=True)
class Reuse:
    """What an earlier artifact has of one group that is made of the same documents."""

    task: ItemTask
    folder: Path
    record: GroupRecord

    @classmethod
    def of_group(cls, task: ItemTask, donors: Sequence[Donor], *, accepted: Sequence[AcceptedFile]) -> "Reuse | None":
        """Returns the first donor's. A donor that cannot be reached or is damaged has nothing.

        Args:
            task: the item at work.
            donors: newest first.
            accepted: the group's files as they are to be read.
        """
        read = _read_by(accepted)
        for donor in donors:
            folder = task.output_dir.parent / donor.folder
            try:
                content = orjson.loads(verified_bytes(folder, donor.groups, subject="earlier groups"))
            except VerificationError as error:
                logger.info("no groups are taken from %s: %s", folder, error)
                continue
            for group in content["groups"]:
                if group["filtered"]["group"] == accepted[0].group and group["read"] == read:
                    return cls(task=task, folder=folder, record=GroupRecord.model_validate(group))
        return None

    def take_filtered(self) -> FilterOutput | None:
        """Publishes what the steps made of the group, but for `absent` splits; None when a file is damaged."""
        return self.record.filtered_as_present if self._take(self.record.filtered_files) else None

    def take_removal(self, listed: str | None) -> RemovalOutput | None:
        """Publishes the group without its duplicates; None when others were listed, or a file is damaged."""
        removal = self.record.removal
        if removal is None or self.record.listed != listed:
            return None
        return removal if self._take(self.record.removal_files) else None

    def _take(self, files: Iterable[FileEntry]) -> bool:
        """Whether all of the files could be given their names here: nothing is, when one is damaged."""
        return take_over(self.task, files, folder=self.folder, subject="prepared corpus")
