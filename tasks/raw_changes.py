"""What changed in the raw files since the newest corpus of a recipe, and which groups that concerns: for `headrace plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.storage import Storage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.manifest import CorpusPlan, InputFile, ShardManifest, raw_hash
from tasks.file_hashes import Hashes
from tasks.recorded_file import entry_of, verified_object
from tasks.store import Identity

_SHOWN = 3
_PLAN_NAME, _MANIFEST_NAME = "plan.json", "manifest.json"


@dataclass(frozen=True)
class RawChanges:
    """The differences of two lists of raw files. Names are `source/relative path`."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    groups: frozenset[int]
    """Groups of the new corpus that are not made of the files that they were made of."""
    num_groups: int
    reused: bool = True
    """Whether the other groups are taken over from the earlier corpus."""

    def reasons(self) -> tuple[str, ...]:
        """Returns lines for people: the files, and what of the corpus is made anew."""
        lines = [_named(names, verb) for names, verb in ((self.changed, "changed"), (self.added, "is new"), (self.removed, "is gone")) if names]
        if not lines:
            return ()
        others = "the others taken over" if self.reused else "and the others, which cannot be taken over"
        return (*lines, f"{_groups(self.groups)} of {self.num_groups:,} scanned anew, {others}")

    def shards(self, manifest: ShardManifest) -> str:
        """Returns what that means for shards that were cut of the earlier corpus, for people."""
        concerned = sum(shard.group in self.groups for shard in manifest.shards)
        return f"{_groups(self.groups)}: at most {concerned:,} of {len(manifest.shards):,} shards, unless the tokenizer comes out another"


def raw_changes(config: RunConfig, identity: Identity, *, hashes: Hashes, storage: Storage, earlier: ArtifactRecord) -> RawChanges:
    """Returns what changed since `earlier`, a finished corpus of the same recipe name. `identity`: of the one to be made.

    Raises:
        InputError: a raw file is missing.
        VerificationError: the earlier corpus' plan is damaged.
    """
    from tasks.validate.figures.sampling import sampling_of
    from tasks.validate.grouping import plan_groups
    from tasks.validate.reuse import facts_of
    from tasks.validate.sources import plan_inputs

    inputs = plan_inputs(config, hashes)
    now = plan_groups(inputs, group_bytes=config.corpus.group_bytes, source_names=config.corpus.source_names)
    then = CorpusPlan.model_validate_json(verified_object(storage, earlier.key, entry_of(earlier, _PLAN_NAME)))
    is_alike = earlier.summary.get("facts") == facts_of(identity.recipe, sampling=sampling_of(now.raw_bytes))
    return replace(differences(then, now), reused=is_alike)


def differences(then: CorpusPlan, now: CorpusPlan) -> RawChanges:
    """Returns the differences of two plans. Pure."""
    before, after = _hashes(then), _hashes(now)
    made_of = {group.index: raw_hash(group.inputs) for group in then.groups}
    return RawChanges(
        changed=tuple(sorted(name for name in before.keys() & after.keys() if before[name] != after[name])),
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        groups=frozenset(group.index for group in now.groups if made_of.get(group.index) != raw_hash(group.inputs)),
        num_groups=len(now.groups),
    )


def read_shards(storage: Storage, earlier: ArtifactRecord) -> ShardManifest:
    """Returns the manifest of a finished `tokenize`. Raises VerificationError when it is damaged."""
    return ShardManifest.model_validate_json(verified_object(storage, earlier.key, entry_of(earlier, _MANIFEST_NAME)))


def _hashes(plan: CorpusPlan) -> Mapping[str, str]:
    files: list[InputFile] = [file for group in plan.groups for file in group.inputs]
    return {str(Path(file.source) / file.relative_path): file.xxh3 for file in files}


def _named(names: Sequence[str], verb: str) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    plural = {"is new": "are new", "is gone": "are gone"}.get(verb, verb) if len(names) > 1 else verb
    return f"{', '.join(names[:_SHOWN])}{more} {plural}"


def _groups(groups: frozenset[int]) -> str:
    named = ", ".join(f"g{group:04d}" for group in sorted(groups)[:_SHOWN])
    more = f" and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    return f"{'group' if len(groups) == 1 else 'groups'} {named}{more}" if groups else "no group"
