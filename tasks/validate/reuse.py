"""Groups that an earlier corpus has scanned already: equal raw files under equal rules give equal files and figures, byte for byte.

A group's item takes them over. What is removed as duplicates across groups is decided anew: a group whose files were rewritten for that is scanned
again. Where compute cannot reach the earlier artifact (another storage), everything is scanned: reuse saves time and changes nothing.
"""

import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.canonical import hash_of
from schemas.errors import VerificationError
from schemas.frozen import Frozen
from schemas.manifest import CorpusGroup, raw_hash
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.recorded_file import verified_bytes, verified_path
from tasks.store import Identity, Store
from tasks.taking_over import take_over
from tasks.validate.figures.sampling import Sampling
from tasks.validate.scan import ScanOutput

logger = logging.getLogger(__name__)

SCANS = "scans/"
"""Where `GroupScan`s lie."""
_MOST_DONORS = 3


class GroupScan(Frozen):
    """`scans/g0003.json`: what a later corpus needs to know to take a group over."""

    schema_version: int = 1
    """Version of this type."""
    raw: str
    """Hash of the group's raw files (`schemas.manifest.raw_hash`)."""
    output: ScanOutput
    """What the scan made of them."""


def scan_name(group: int) -> str:
    """Returns the path of a group's `GroupScan` within the artifact."""
    return f"{SCANS}g{group:04d}.json"


def facts_of(identity: Identity, *, sampling: Sampling) -> str:
    """Returns one hash over all that a group's files and figures follow from, besides its raw files."""
    made_by = {package: version(package) for package in ("charset-normalizer", "orjson", "pyarrow", "pycld2")}
    return hash_of({"recipe": identity.recipe, "stage": Stage.VALIDATE.version, "sampling": sampling.model_dump(), "made_by": made_by})


def find_donors(storage: Storage, identity: Identity, *, facts: str) -> tuple[str, ...]:
    """Returns the folders of the newest finished corpora of this name that were made in the same way, beside the one in the making."""
    donors = [record.key.rpartition("/")[2] for record in Store(storage).siblings(identity) if record.summary.get("facts") == facts]
    return tuple(donors[:_MOST_DONORS])


def take_group(task: ItemTask, group: CorpusGroup, *, donors: Iterable[str]) -> ScanOutput | None:
    """Publishes what an earlier corpus made of the same raw files, and returns it; None when there is none, or it is damaged.

    Raises:
        VerificationError: a name is taken by other bytes here.
    """
    for folder, output in _offers(task.output_dir.parent, group, donors=donors):
        if take_over(task, files_of(output), folder=folder, subject="accepted corpus"):
            return output
    return None


def is_offered(stage_dir: Path, group: CorpusGroup, *, donors: Iterable[str]) -> bool:
    """Whether `take_group` will find what it takes: so the group's raw files need not be there. Hashes the files.

    Args:
        stage_dir: folder of all artifacts of the stage.
        group: the group.
        donors: folders in it.
    """
    return any(all(_is_sound(folder, file) for file in files_of(output)) for folder, output in _offers(stage_dir, group, donors=donors))


def _is_sound(folder: Path, entry: FileEntry) -> bool:
    try:
        verified_path(folder, entry, subject="accepted corpus")
    except VerificationError:
        return False
    return True


def _offers(stage_dir: Path, group: CorpusGroup, *, donors: Iterable[str]) -> Iterator[tuple[Path, ScanOutput]]:
    """Yields the earlier corpora that were made of the same raw files, as far as this group goes: their folders, and what is in them."""
    wanted = raw_hash(group.inputs)
    for donor in donors:
        folder = stage_dir / donor
        try:
            record = ArtifactRecord.from_bytes((folder.parent / ArtifactLayout(donor).record).read_bytes())
            entry = next((file for file in record.files if file.path == scan_name(group.index)), None)
            if entry is None:
                continue
            scan = GroupScan.model_validate_json(verified_bytes(folder, entry, subject="earlier scan"))
        except (FileNotFoundError, SealBrokenError, VerificationError) as error:
            logger.info("no groups are taken from %s: %s", folder, error)
            continue
        if scan.raw == wanted:
            yield folder, scan.output


def files_of(output: ScanOutput) -> tuple[FileEntry, ...]:
    """Returns the files of a scanned group."""
    quarantine = () if output.quarantine is None else (output.quarantine,)
    return (*(accepted.file for accepted in output.accepted), *quarantine)
