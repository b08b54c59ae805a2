"""Find a finished artifact; commit a record, last. The only place that decides whether a stage is done."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from cluster.layout import ArtifactLayout, artifact_key, parse_artifact_folder
from cluster.storage import AlreadyExistsError, Storage, hash_file, path_below
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.canonical import FINGERPRINT_CHARS, fingerprint
from schemas.errors import UnreachableError, VerificationError
from schemas.sealed import SealBrokenError
from schemas.stage import Stage

logger = logging.getLogger(__name__)

_STAGES = frozenset(stage.value for stage in Stage)


@dataclass(frozen=True)
class Identity:
    """What an artifact is, before anybody has made it."""

    stage: Stage
    name: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Content hash by input stage, and of what comes from outside by its name: `raw`, `compared`, `existing`, `pretrained`, `factory`, `registry`."""
    outside_files: tuple[FileEntry, ...] = ()
    """What `pretrained` or `factory` stands for, file by file, so that ranks can check what they read. No part of the fingerprint by itself."""
    fingerprint: str = field(init=False)

    @property
    def outside(self) -> dict[str, str]:
        """The inputs from outside the store."""
        return {name: digest for name, digest in self.inputs.items() if name not in _STAGES}

    def __post_init__(self) -> None:
        digest = fingerprint(stage=self.stage.value, stage_version=self.stage.version, recipe=self.recipe, inputs=self.inputs)
        object.__setattr__(self, "fingerprint", digest)


class Store:
    """Artifacts on one storage."""

    def __init__(self, storage: Storage) -> None:
        """Args: storage: where artifacts lie."""
        self.storage = storage

    def find(self, identity: Identity) -> ArtifactRecord | None:
        """Returns the finished artifact of this identity, the latest rebuild first, or None.

        Of text and tokens, also one that a recipe of another name made; one of this name comes first.

        Raises:
            VerificationError: its record is damaged.
        """
        for is_own, key in reversed(self._folders_alike(identity)):
            try:
                if is_own or identity.stage.is_shared:
                    record = self.read(key)
                    if record.fingerprint == identity.fingerprint:  # folders carry 48 bits of it
                        return record
            except FileNotFoundError:  # unfinished, or removed meanwhile
                continue
            except (PermissionError, UnreachableError, VerificationError) as error:
                if is_own:
                    raise
                logger.info("%s is not taken over: %s", key, error)  # that is the affair of whoever uses that name
        return None

    def place(self, identity: Identity, *, rebuild: bool) -> str:
        """Returns the folder to make the artifact in: the unfinished one, or with `rebuild` the next `.rK` that has no record."""
        taken = [key for key in self._folders(identity) if self.storage.exists(ArtifactLayout(key).record)]
        if not taken or not rebuild:
            return artifact_key(identity.stage, name=identity.name, fingerprint=identity.fingerprint)
        newest = parse_artifact_folder(taken[-1].rpartition("/")[2])
        assert newest is not None
        return artifact_key(identity.stage, name=identity.name, fingerprint=identity.fingerprint, rebuild=newest[2] + 1)

    def read(self, key: str) -> ArtifactRecord:
        """Returns the record in the folder `key`.

        Raises:
            FileNotFoundError: there is none.
            VerificationError: a byte of it changed since it was written.
        """
        path = ArtifactLayout(key).record
        data = self.storage.read(path)
        try:
            record = ArtifactRecord.from_bytes(data)
        except SealBrokenError as error:
            raise VerificationError((f"{path}: {error}",), subject=key, mend=_MEND) from error
        if record.key != key:
            raise VerificationError((f"{path}: is the record of {record.key}",), subject=key, mend=_MEND)
        return record

    def check_heads(self, record: ArtifactRecord) -> None:
        """Refuses an artifact whose manifests or tokenizer, the JSON files at its top, changed since: everything else is read by what they say.

        Raises:
            VerificationError: naming every one of them.
        """
        folder = self.storage.local_path(record.key)
        if folder is None:
            return
        heads = [entry for entry in record.files if entry.path.endswith(".json") and "/" not in entry.path]
        findings = tuple(
            f"{folder / entry.path}: is not what was committed" for entry in heads if not _is_intact(path_below(folder, entry.path), entry)
        )
        if findings:
            raise VerificationError(findings, subject=record.key, mend=_MEND)

    def commit(self, record: ArtifactRecord) -> ArtifactRecord:
        """Writes the sealed record, last, and returns it; when another process was first with equal content, returns that one's.

        Raises:
            VerificationError: another process committed different content in this folder.
        """
        sealed = record.sealed()
        try:
            self.storage.create_exclusive(ArtifactLayout(record.key).record, sealed.to_bytes())
        except AlreadyExistsError as error:
            present = self.read(record.key)
            if present.content_hash != sealed.content_hash:
                finding = f"{record.key}/record.json: holds content {present.content_hash[:12]}, this process made {sealed.content_hash[:12]}"
                raise VerificationError((finding,), subject=record.key, mend="two writers made different bytes; run again with --from") from error
            return present
        return sealed

    def siblings(self, identity: Identity) -> tuple[ArtifactRecord, ...]:
        """Returns the finished artifacts of the same stage and name with another fingerprint, newest first: what `plan` compares with."""
        return self._named(identity.stage, identity.name, but=identity.fingerprint[:FINGERPRINT_CHARS])

    def newest(self, stage: Stage, name: str) -> ArtifactRecord | None:
        """Returns the newest finished artifact of a stage under a recipe's name, or None."""
        return next(iter(self._named(stage, name)), None)

    def _named(self, stage: Stage, name: str, *, but: str = "") -> tuple[ArtifactRecord, ...]:
        records = []
        for folder in self.storage.names(stage.value):
            parsed = parse_artifact_folder(folder)
            if parsed is None or parsed[0] != name or parsed[1] == but:
                continue
            key = f"{stage.value}/{folder}"
            try:
                records.append(self.read(key))
            except FileNotFoundError:  # unfinished, or removed meanwhile
                continue
            except VerificationError as error:  # nobody needs it here; whoever does is told
                logger.warning("%s", error)
        return tuple(sorted(records, key=lambda record: record.provenance.created_at, reverse=True))

    def _folders(self, identity: Identity) -> list[str]:
        """The folders of this identity that exist, oldest rebuild first."""
        return [key for is_own, key in self._folders_alike(identity) if is_own]

    def _folders_alike(self, identity: Identity) -> list[tuple[bool, str]]:
        """Those of its fingerprint under other recipes' names, then those under its own, and whether they are; of each the oldest rebuild first."""
        found = []
        for folder in self.storage.names(identity.stage.value):
            name, digits, rebuild = parse_artifact_folder(folder) or ("", "", 0)
            if digits == identity.fingerprint[:FINGERPRINT_CHARS]:
                found.append((name == identity.name, rebuild, f"{identity.stage.value}/{folder}"))
        return [(is_own, key) for is_own, _, key in sorted(found)]


def _is_intact(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.size and hash_file(path) == entry.xxh3
    except FileNotFoundError:
        return False


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> tuple[str, ...]:
    """Returns the field-level differences between two recipes as `key: old -> new`, sorted."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if _are_sections(before) and _are_sections(after) and len(before) == len(after):  # of sources, say: one by one
            before, after = ({str(place): section for place, section in enumerate(sections)} for sections in (before, after))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines.extend(differences(before, after, prefix=f"{path}."))
        elif _plain(before) != _plain(after):
            lines.append(f"{path}: {_plain(before)} -> {_plain(after)}")
    return tuple(lines)


def _are_sections(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value)


def _plain(value: Any) -> str:
    from schemas.frozen import thaw

    return json.dumps(thaw(value), sort_keys=True, ensure_ascii=False)


_MEND = "move the artifact's folder away and run again: it is built anew from its inputs"
