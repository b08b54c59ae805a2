"""Files that an earlier artifact has already, given their names in the one in the making: reuse saves time and changes no byte."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from cluster.storage import AlreadyExistsError, hash_file, link_exclusive, make_folder, publish_file
from schemas.artifact import FileEntry
from schemas.errors import VerificationError
from tasks.entry import ItemTask
from tasks.recorded_file import verified_path

logger = logging.getLogger(__name__)


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
