"""Files that an earlier artifact has already, given their names in the one in the making: reuse saves time and changes no byte.

On a folder an item links what it takes over. In object storage the control half finishes the item before it is run: the server copies.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.layout import parse_artifact_folder
from cluster.s3_storage import S3Storage
from cluster.storage import AlreadyExistsError, hash_file, link_exclusive, make_folder, publish_file
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.errors import InterruptedRunError, VerificationError
from schemas.job import ItemRecord
from tasks.entry import ItemTask
from tasks.recorded_file import verified_path

if TYPE_CHECKING:  # what decides; items import this module, too
    from tasks.work import Work

logger = logging.getLogger(__name__)

_AT_A_TIME = 16
"""Items whose files a server copies at once."""
BEFORE_ALL_STARTS = -1
"""Epoch of an item that no start of a job made."""


@dataclass(frozen=True)
class Offer:
    """What an earlier artifact has of an item that is to be made."""

    index: int
    """The item."""
    key: str
    """The earlier artifact's folder."""
    files: tuple[FileEntry, ...]
    """What the item would make, under the same names."""
    output: Mapping[str, Any]
    """What the item would say of it."""


def finish_items(work: "Work", offers: Iterable[Offer], *, step_name: str) -> None:
    """Finishes items in object storage from what earlier artifacts have: nothing is brought to a node, computed or sent. On a folder items do it.

    Bytes are not looked at, as they go from the server to the server; whoever reads them later does. So a rebuild takes nothing over.

    Args:
        work: the artifact in the making.
        offers: of items, by any number of artifacts.
        step_name: of the items.

    Raises:
        UnreachableError: storage fails.
        InterruptedRunError: somebody wishes a stop; what was copied stays for the next start.
    """
    storage, (_, _, rebuild) = work.storage, parse_artifact_folder(work.key.rpartition("/")[2]) or ("", "", 0)
    if not isinstance(storage, S3Storage) or rebuild:
        return
    done = frozenset(storage.names(work.layout.items))
    due: dict[str, list[Offer]] = {}
    for offer in offers:
        name = work.layout.item(step_name, offer.index)
        if name.rpartition("/")[2] not in done:
            due.setdefault(name, []).append(offer)

    def finish(name: str, found: Iterable[Offer]) -> None:
        for offer in found:
            if work.bench.stop_requested():
                raise InterruptedRunError(f"stopped before {work.stage.value}, as asked", mend="headrace resume goes on")
            if all(storage.copy(f"{offer.key}/{entry.path}", f"{work.key}/{entry.path}", size=entry.size) for entry in offer.files):
                record = ItemRecord(index=offer.index, epoch=BEFORE_ALL_STARTS, files=offer.files, output=dict(offer.output))
                storage.create_exclusive(name, canonical_json(record))
                return
            logger.warning("%s: made again, not taken over: %s has not all of it any more", name, offer.key)

    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="copy") as pool:
        list(pool.map(finish, due.keys(), due.values()))


def take_over(task: ItemTask, entries: Iterable[FileEntry], *, folder: Path, subject: str) -> bool:
    """Publishes files of an earlier artifact under the same names: links to the same bytes, or copies where links cannot be made.

    Args:
        task: the item at work.
        entries: the files.
        folder: the earlier artifact's.
        subject: what they are, for people.

    Returns:
        Whether they were all sound; nothing is published when one is missing or damaged there.

    Raises:
        VerificationError: a name is taken by other bytes here.
    """
    try:
        paths = [(entry, verified_path(folder, entry, subject=subject)) for entry in entries]
    except VerificationError as error:
        logger.warning("made again, not taken over: %s", error)
        return False
    for entry, path in paths:
        final = task.output_dir / entry.path
        make_folder(final.parent)
        try:
            link_exclusive(path, final)
        except AlreadyExistsError as error:
            if hash_file(final) != entry.xxh3:
                raise taken_by_other_bytes(final, subject=subject) from error
        except OSError:  # another file system, or one without links
            temporary = task.temporary(entry.path)
            shutil.copyfile(path, temporary)
            publish_file(temporary, final)
    return True


def taken_by_other_bytes(path: Path, *, subject: str) -> VerificationError:
    """Returns the error for a file that is there with bytes that its documents do not give: nobody goes on beside it."""
    finding = f"{path}: is there with other bytes than its documents give; the file is damaged"
    return VerificationError((finding,), subject=subject, mend="delete this file and run again; the others are kept")
