"""Files that an earlier artifact has already, given their names in the one in the making: reuse saves time and changes no byte.

On a folder an item links what it takes over. In object storage the control half finishes the item before it is run: the server copies.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.attempt import list_attempts, read_exit, read_verdict
from cluster.layout import SUPERSEDED
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

_AT_A_TIME, _BATCH = 16, 64
"""Items whose files a server copies at once, and of which offers are in memory."""
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


def finish_items(work: "Work", offers: Callable[[Set[int]], Iterable[Offer]], *, step_name: str, num_items: int) -> None:
    """Finishes items in object storage from what earlier artifacts have: nothing is brought to a node, computed or sent. On a folder items do it.

    Bytes are not looked at, as they go from the server to the server; whoever reads them later does. So where somebody asked to rebuild, nothing is
    taken over, and what was is given up. Nor is anything while a job of an earlier start may be at work on the same items.

    Args:
        work: the artifact in the making.
        offers: yields what there is of items that are still wanted: a set that shrinks meanwhile.
        step_name: of the items.
        num_items: how many there are.

    Raises:
        UnreachableError: storage fails.
        InterruptedRunError: somebody wishes a stop; what was copied stays for the next start.
    """
    storage = work.storage
    if not isinstance(storage, S3Storage) or _is_under_way(work, step_name=step_name):
        return
    done = frozenset(storage.names(work.layout.items))
    names = {index: work.layout.item(step_name, index) for index in range(num_items)}
    wanted = {index for index, name in names.items() if name.rpartition("/")[2] not in done}
    if work.is_rebuild:
        _give_up_copies(work, [name for index, name in names.items() if index not in wanted])
        return

    def copy(key: str, entry: FileEntry) -> bool:
        target = f"{work.key}/{entry.path}"
        return any(storage.copy(f"{source}/{entry.path}", target, size=entry.size) for source in (key, f"{key}/{SUPERSEDED}"))

    def finish(offer: Offer) -> int | None:
        if work.bench.stop_requested():
            raise InterruptedRunError(f"stopped before {work.stage.value}, as asked", mend="headrace resume goes on")
        if not all(copy(offer.key, entry) for entry in offer.files):
            logger.warning("item %d: made again, not taken over: %s has not all of it any more", offer.index, offer.key)
            return None
        record = ItemRecord(index=offer.index, epoch=BEFORE_ALL_STARTS, files=offer.files, output=dict(offer.output))
        with contextlib.suppress(AlreadyExistsError):  # two artifacts have it
            storage.create_exclusive(names[offer.index], canonical_json(record))
        return offer.index

    found = iter(offers(wanted)) if wanted else iter(())
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="copy") as pool:
        while batch := list(islice(found, _BATCH)):
            wanted.difference_update(index for index in pool.map(finish, batch) if index is not None)


def _is_under_way(work: "Work", *, step_name: str) -> bool:
    """Whether a job of an earlier start has not been seen to end: it may write what is about to be copied."""
    attempts = [work.layout.attempt(step_name, number) for number in list_attempts(work.storage, work.layout, step_name=step_name)]
    return bool(attempts) and read_exit(work.storage, attempts[-1]) is None and read_verdict(work.storage, attempts[-1]) is None


def _give_up_copies(work: "Work", names: Iterable[str]) -> None:
    """Removes items that were taken over, the record first, so that nothing names what is not there. They are made anew."""
    for name in names:
        record = ItemRecord.model_validate_json(work.storage.read(name))
        if record.epoch == BEFORE_ALL_STARTS:
            work.storage.delete(name)
            for entry in record.files:
                work.storage.delete(f"{work.key}/{entry.path}")


def set_aside(work: "Work", entry: FileEntry) -> None:
    """Moves a file of the artifact in the making that is no part of it any more to where a later artifact finds it, but no reader of this one."""
    storage, source, target = work.storage, f"{work.key}/{entry.path}", f"{work.key}/{SUPERSEDED}/{entry.path}"
    if isinstance(storage, S3Storage):
        storage.copy(source, target, size=entry.size)
    elif storage.exists(source):
        path = work.output_dir / SUPERSEDED / entry.path
        make_folder(path.parent)
        with contextlib.suppress(AlreadyExistsError):  # by a start that was killed
            link_exclusive(work.output_dir / entry.path, path)
    storage.delete(source)


def sound_path(folder: Path, entry: FileEntry, *, subject: str) -> Path:
    """Returns where an earlier artifact has a file, after checking size and hash. Raises VerificationError."""
    aside = folder / SUPERSEDED / entry.path
    return verified_path(folder / SUPERSEDED if aside.exists() else folder, entry, subject=subject)


def take_over(task: ItemTask, entries: Iterable[FileEntry], *, folder: Path, subject: str) -> bool:
    """Publishes files of an earlier artifact under the same names: links to the same bytes, or copies where links cannot be made.

    Args:
        task: the item at work.
        entries: the files.
        folder: the earlier artifact's.
        subject: what they are, for people.

    Returns:
        Whether they were all sound and still there; nothing is published when one is missing or damaged before.

    Raises:
        VerificationError: a name is taken by other bytes here.
    """
    try:
        paths = [(entry, sound_path(folder, entry, subject=subject)) for entry in entries]
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
        except FileNotFoundError as error:  # whoever made it removed it meanwhile
            logger.warning("made again, not taken over: %s", error)
            return False
        except OSError:  # another file system, or one without links
            temporary = task.temporary(entry.path)
            try:
                shutil.copyfile(path, temporary)
            except FileNotFoundError as error:
                logger.warning("made again, not taken over: %s", error)
                return False
            publish_file(temporary, final)
    return True


def taken_by_other_bytes(path: Path, *, subject: str) -> VerificationError:
    """Returns the error for a file that is there with bytes that its documents do not give: nobody goes on beside it."""
    finding = f"{path}: is there with other bytes than its documents give; the file is damaged"
    return VerificationError((finding,), subject=subject, mend="delete this file and run again; the others are kept")
