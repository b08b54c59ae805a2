"""Groups that an earlier corpus has scanned already: equal raw files under equal rules give equal files and figures, byte for byte.

A group's item takes them over, also from a corpus that failed its verdict or was never finished. In object storage the control half does it, by
copies that the server makes. What is removed as duplicates across groups is decided anew, from what the scans made: that is kept (`superseded/`).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from cluster.layout import ArtifactLayout, parse_artifact_folder, sweep_key
from cluster.lease import live_holder
from cluster.storage import Storage
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.canonical import FINGERPRINT_CHARS, hash_of
from schemas.corpus_config import RulesConfig
from schemas.errors import VerificationError
from schemas.manifest import CorpusGroup, raw_hash
from schemas.sealed import SealBrokenError, Sealed
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.store import Identity
from tasks.taking_over import Offer, sound_path, take_over
from tasks.validate.figures.sampling import Sampling
from tasks.validate.scan import ScanOutput

logger = logging.getLogger(__name__)

_FOLDER = "scans"
SCANS = f"{_FOLDER}/"
"""Where `GroupScan`s lie."""
_MOST_DONORS, _MOST_TRIED = 3, 3
_AT_A_TIME = 16
"""Scans that are read at once."""


class GroupScan(Sealed):
    """`scans/g0003.json`: what a later corpus needs to know to take a group over."""

    schema_version: int = 2
    """Version of this type."""
    facts: str
    """Hash over all else that files and figures follow from (`facts_of`)."""
    raw: str
    """Hash of the group's raw files (`schemas.manifest.raw_hash`)."""
    output: ScanOutput
    """What the scan made of them."""


def scan_name(group: int) -> str:
    """Returns the path of a group's `GroupScan` within the artifact."""
    return f"{SCANS}g{group:04d}.json"


def facts_of(recipe: Mapping[str, Any], *, sampling: Sampling) -> str:
    """Returns one hash over all that a group's files and figures follow from, besides its raw files. `recipe`: of the corpus' identity."""
    made_by = {package: version(package) for package in ("charset-normalizer", "orjson", "pyarrow", "pycld2")}
    corpus = dict(recipe["corpus"])
    corpus["rules"] = {name: rule for name, rule in corpus["rules"].items() if name not in RulesConfig.OF_THE_WHOLE}
    return hash_of({"corpus": corpus, "stage": Stage.VALIDATE.version, "sampling": sampling.model_dump(), "made_by": made_by})


def find_donors(storage: Storage, identity: Identity, *, facts: str) -> tuple[str, ...]:
    """Returns the folders of corpora of this name that were made in the same way, beside the one in the making: some that nobody finishes, those
    with the most scanned groups first, then the newest finished ones. Not those that are being made, removed, or whose record is damaged.
    """
    unfinished: list[tuple[int, str]] = []
    finished: list[tuple[str, str]] = []
    for folder in storage.names(Stage.VALIDATE.value):
        name, digits, _ = parse_artifact_folder(folder) or ("", "", 0)
        if name != identity.name or digits == identity.fingerprint[:FINGERPRINT_CHARS]:
            continue
        key = f"{Stage.VALIDATE.value}/{folder}"
        scans = storage.names(f"{key}/{_FOLDER}")
        tried = (_read_scan(storage, key, name=f"{SCANS}{scan}") for scan in scans[:_MOST_TRIED])
        first = next((scan for scan in tried if scan is not None), None)
        if first is None or first.scan.facts != facts or storage.exists(sweep_key(key)):
            continue
        try:
            record = ArtifactRecord.from_bytes(storage.read(ArtifactLayout(key).record))
            finished.append((record.provenance.created_at, folder))
        except FileNotFoundError:
            if live_holder(storage, ArtifactLayout(key).leases) is None:
                unfinished.append((len(scans), folder))
        except SealBrokenError as error:
            logger.warning("%s: no group is taken from it, its record is damaged: %s", key, error)
    best = [sorted(found, reverse=True)[:_MOST_DONORS] for found in (unfinished, finished)]
    return tuple(folder for found in best for _, folder in found)


def take_group(task: ItemTask, group: CorpusGroup, *, donors: Iterable[str], facts: str) -> ScanOutput | None:
    """Publishes what an earlier corpus made of the same raw files, and returns it; None when there is none, or it is damaged.

    Raises:
        VerificationError: a name is taken by other bytes here.
    """
    for folder, output in _offers(task.output_dir.parent, group, donors=donors, facts=facts):
        if take_over(task, files_of(output), folder=folder, subject="accepted corpus"):
            return output
    return None


def is_offered(stage_dir: Path, group: CorpusGroup, *, donors: Iterable[str], facts: str) -> bool:
    """Whether `take_group` will find what it takes: so the group's raw files need not be there. Hashes the files.

    Args:
        stage_dir: folder of all artifacts of the stage.
        group: the group.
        donors: folders in it.
        facts: `facts_of`.
    """
    return any(all(_is_sound(folder, file) for file in files_of(output)) for folder, output in _offers(stage_dir, group, donors=donors, facts=facts))


def offers(wanted: Set[int], *, storage: Storage, groups: Sequence[CorpusGroup], donors: Iterable[str], facts: str) -> Iterator[Offer]:
    """Yields what earlier corpora have of the groups, from whatever storage. The item of a group has its place in `groups`.

    Args:
        wanted: the items that are asked for; it may shrink meanwhile.
        storage: where the corpora lie.
        groups: all groups.
        donors: the corpora's folders.
        facts: `facts_of`.
    """
    for donor in donors:
        key = f"{Stage.VALIDATE.value}/{donor}"
        present = frozenset(storage.names(f"{key}/{_FOLDER}"))
        asked = [index for index in sorted(wanted) if scan_name(groups[index].index).removeprefix(SCANS) in present]
        for first in range(0, len(asked), _AT_A_TIME):
            part = asked[first : first + _AT_A_TIME]
            with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="scans") as pool:
                stored = list(pool.map(lambda index, key=key: _read_scan(storage, key, name=scan_name(groups[index].index)), part))
            for index, each in zip(part, stored, strict=True):
                if each is not None and (each.scan.facts, each.scan.raw) == (facts, raw_hash(groups[index].inputs)):
                    output = {"scan": each.scan.output.model_dump(mode="json"), "reused": True}
                    yield Offer(index=index, key=key, files=(*files_of(each.scan.output), each.entry), output=output)


def _is_sound(folder: Path, entry: FileEntry) -> bool:
    try:
        sound_path(folder, entry, subject="accepted corpus")
    except VerificationError:
        return False
    return True


def _offers(stage_dir: Path, group: CorpusGroup, *, donors: Iterable[str], facts: str) -> Iterator[tuple[Path, ScanOutput]]:
    """Yields the earlier corpora that were made of the same raw files, as far as this group goes: their folders, and what is in them."""
    wanted = raw_hash(group.inputs)
    for donor in donors:
        folder = stage_dir / donor
        try:
            scan = GroupScan.from_bytes((folder / scan_name(group.index)).read_bytes())
        except (FileNotFoundError, SealBrokenError) as error:
            logger.info("group %d is not taken from %s: %s", group.index, folder, error)
            continue
        if (scan.facts, scan.raw) == (facts, wanted):
            yield folder, scan.output


@dataclass(frozen=True)
class _StoredScan:
    """A scan as it lies in storage."""

    scan: GroupScan
    entry: FileEntry


def _read_scan(storage: Storage, key: str, *, name: str) -> _StoredScan | None:
    """Returns a scan of an earlier corpus; None where it is gone, damaged, or another version's."""
    try:
        data = storage.read(f"{key}/{name}")
        return _StoredScan(GroupScan.from_bytes(data), FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest()))
    except (FileNotFoundError, SealBrokenError) as error:
        logger.info("no group is taken from %s/%s: %s", key, name, error)
        return None


def files_of(output: ScanOutput) -> tuple[FileEntry, ...]:
    """Returns the files of a scanned group."""
    quarantine = () if output.quarantine is None else (output.quarantine,)
    return (*(accepted.file for accepted in output.accepted), *quarantine)
