"""What changed in the raw files since the newest corpus of a recipe, and which groups that concerns: for `headrace plan`.

A group's files are known before they are read; what documents they hold is not. So what is said of groups is a bound where documents of one
group decide about those of others: the first of equal texts stays, and `prepare` may compare all of the corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.storage import Storage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.manifest import CorpusPlan, InputFile, ShardManifest, raw_hash
from schemas.stage import Stage
from tasks.file_hashes import Hashes
from tasks.recorded_file import entry_of, verified_object
from tasks.store import Identity, Store
from tasks.store import differences as recipe_differences

_SHOWN = 3
_PLAN_NAME, _MANIFEST_NAME = "plan.json", "manifest.json"


@dataclass(frozen=True)
class RawChanges:
    """The differences of two lists of raw files. Names are `source/relative path`."""

    now: CorpusPlan
    """The corpus to be made."""
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    groups: frozenset[int]
    """Groups of the new corpus that are not made of the files that they were made of."""
    gone: frozenset[int]
    """Groups that there were, and are no more."""
    scanned: frozenset[int]
    """Groups that no earlier corpus has, so that they are scanned."""
    facts: str = ""
    """What groups follow from besides raw files (`tasks.validate.reuse.facts_of`)."""

    def reasons(self) -> tuple[str, ...]:
        """Returns lines for people: the files, and what of the corpus is made anew."""
        lines = [_named(names, verb) for names, verb in ((self.changed, "changed"), (self.added, "is new"), (self.removed, "is gone")) if names]
        if not lines:
            return ()
        total = len(self.now.groups)
        if len(self.scanned) == total > len(self.groups):
            return (*lines, f"{_groups(self.groups)} of {total:,} scanned anew, and the others, which cannot be taken over")
        taken = f", {'the others' if self.scanned else 'all'} taken over" if len(self.scanned) < total else ""
        return (*lines, f"{_groups(self.scanned)} of {total:,} scanned anew{taken}")

    def shards(self, manifest: ShardManifest, *, config: RunConfig) -> str:
        """Returns what that means for shards that were cut of the earlier corpus, for people.

        Args:
            manifest: the shards.
            config: the recipe's; it says which other groups may change, and whether the tokenizer may.
        """
        parts = [_groups(self.groups)]
        if self.groups:
            concerned = sum(shard.group in self.groups for shard in manifest.shards)
            parts[0] += f" ({concerned:,} of {len(manifest.shards):,} shards)"
        if others := self._others(config):
            parts = [*(parts if self.groups else ()), others]
        tokenizer = "; all groups if the tokenizer comes out another" if config.tokenizer.path is None else ""
        return f"cut anew at most: {', and '.join(parts)}{tokenizer}"

    def _others(self, config: RunConfig) -> str:
        """Returns which other groups may hold other documents all the same, for people; empty where none can."""
        touched = self.groups | self.gone
        preparation = config.corpus.preparation
        compared, duplicates = preparation.decontamination, preparation.duplicates
        if touched and (compared.ngram is not None or duplicates.exact or duplicates.near):
            by = "validate or prepare" if self._may_move_copies(config) else "prepare"
            return f"groups in which {by} refuses other documents than before"
        return "groups in which a duplicate comes back or goes" if self._may_move_copies(config) else ""

    def _may_move_copies(self, config: RunConfig) -> bool:
        """Whether `validate` may give a copy back to another group, or take one from it: the first one stays."""
        touched = self.groups | self.gone
        untouched = (group.index for group in self.now.groups if group.index not in touched)
        return config.corpus.rules.drop_duplicates and any(index > min(touched, default=index) for index in untouched)


def raw_changes(config: RunConfig, identity: Identity, *, hashes: Hashes, storage: Storage, earlier: ArtifactRecord) -> RawChanges:
    """Returns what changed since `earlier`, a finished corpus of the same recipe name. `identity`: of the one to be made.

    Raises:
        InputError: a raw file is missing.
        VerificationError: the earlier corpus' plan is damaged.
    """
    from tasks.validate.figures.sampling import sampling_of
    from tasks.validate.grouping import plan_groups
    from tasks.validate.reuse import facts_of, find_donors, offers
    from tasks.validate.sources import plan_inputs

    inputs = plan_inputs(config, hashes)
    now = plan_groups(inputs, group_bytes=config.corpus.group_bytes, source_names=config.corpus.source_names)
    facts = facts_of(identity.recipe, sampling=sampling_of(now.raw_bytes))
    found = differences(_plan_of(storage, earlier), now)
    is_alike = earlier.summary.get("facts") == facts
    lacking = {place for place, group in enumerate(now.groups) if not is_alike or group.index in found.groups}
    if lacking:  # after going back, a corpus before that one has them
        donors = find_donors(storage, identity, facts=facts)
        for offer in offers(lacking, storage=storage, groups=now.groups, donors=donors, facts=facts):
            lacking.discard(offer.index)
    return replace(found, scanned=frozenset(now.groups[place].index for place in lacking), facts=facts)


def differences(then: CorpusPlan, now: CorpusPlan) -> RawChanges:
    """Returns the differences of two plans, when the first is all that there is to take over from. Pure."""
    before, after = _hashes(then), _hashes(now)
    made_of = {group.index: raw_hash(group.inputs) for group in then.groups}
    groups = frozenset(group.index for group in now.groups if made_of.get(group.index) != raw_hash(group.inputs))
    return RawChanges(
        now=now,
        changed=tuple(sorted(name for name in before.keys() & after.keys() if before[name] != after[name])),
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        groups=groups,
        gone=frozenset(made_of.keys() - {group.index for group in now.groups}),
        scanned=groups,
    )


def shards_reason(raw: RawChanges, *, config: RunConfig, store: Store, hashes: Hashes) -> str:
    """Returns what of the recipe's newest shards is cut anew, for people; empty where they will not be taken over, or it cannot be told.

    They were not always cut of the newest corpus: a run may have ended before.

    Raises:
        FileNotFoundError: what they were cut of is gone.
        InputError: the given tokenizer is missing.
        VerificationError: a record or a manifest is damaged.
    """
    shards = store.newest(Stage.TOKENIZE, config.name)
    if shards is None or not _is_as_asked(shards, config):
        return ""
    corpus = _corpus_of(shards, config=config, store=store)
    if corpus is None or corpus.summary.get("facts") != raw.facts or not _has_tokenizer(shards, config=config, store=store, hashes=hashes):
        return ""
    manifest = ShardManifest.model_validate_json(verified_object(store.storage, shards.key, entry_of(shards, _MANIFEST_NAME)))
    return differences(_plan_of(store.storage, corpus), raw.now).shards(manifest, config=config)


def _corpus_of(shards: ArtifactRecord, *, config: RunConfig, store: Store) -> ArtifactRecord | None:
    """Returns what `validate` made of the text that shards were cut of; None when it was prepared otherwise than the recipe says."""
    if not any(ref.stage is config.corpus_stage for ref in shards.inputs):
        return None
    corpus = store.read(shards.input(config.corpus_stage).key)
    if corpus.stage is Stage.VALIDATE:
        return corpus
    return store.read(corpus.input(Stage.VALIDATE).key) if _is_as_asked(corpus, config) else None


def _has_tokenizer(shards: ArtifactRecord, *, config: RunConfig, store: Store, hashes: Hashes) -> bool:
    """Whether shards were encoded with the tokenizer that the recipe gives, or with what was trained as it says."""
    tokenizer = store.newest(Stage.TOKENIZER, config.name)
    if tokenizer is None or not _is_as_asked(tokenizer, config):
        return False
    if tokenizer.content_hash != shards.input(Stage.TOKENIZER).content_hash:
        return False
    if config.tokenizer.path is None:
        return True
    from tasks.tokenizer.existing import existing_hash

    return tokenizer.outside.get("existing") == existing_hash(Path(config.tokenizer.path), hashes.hash)


def _is_as_asked(record: ArtifactRecord, config: RunConfig) -> bool:
    """Whether an artifact was made as the recipe asks for it, by this version of its stage; of its inputs nothing is said."""
    return record.stage_version == record.stage.version and not recipe_differences(record.recipe, config.identity(record.stage))


def _plan_of(storage: Storage, corpus: ArtifactRecord) -> CorpusPlan:
    return CorpusPlan.model_validate_json(verified_object(storage, corpus.key, entry_of(corpus, _PLAN_NAME)))


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
