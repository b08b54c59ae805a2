"""Raw files that the machines of a job cannot see: they go there through object storage, and are removed from it once all have been read.

Pods that share nothing but a bucket with the machine that decides have no folder in which the user's text lies. The agent brings each item its
own files, verified as everything is, so that pods need neither a volume for it nor rights in another bucket.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.launchers import machines_see
from schemas.artifact import FileEntry
from schemas.errors import InputError, InterruptedRunError, VerificationError
from schemas.job import FileRead
from schemas.manifest import InputFile
from tasks.entry import ItemTask

if TYPE_CHECKING:  # what decides; items import this module, too
    from tasks.work import Work

CARRIED = "carried"
"""Folder within the artifact in the making. Not part of the artifact."""
_AT_A_TIME = 4
"""Files that are under way at once."""


def carry_unseen(work: "Work", files: Mapping[int, Sequence[InputFile]], *, step_name: str) -> tuple[FileRead, ...]:
    """Puts the raw files that the stage's machines do not see into object storage, and returns what their agents have to bring.

    Those of finished items are left out, and what is there already is not sent again. Where storage is a folder there is no way round by it.

    Args:
        files: item → the files that it reads.
        step_name: of the items.

    Raises:
        InputError: a file changed since it was planned, or cannot be read.
        InterruptedRunError: somebody wishes a stop; what was sent stays for the next start.
    """
    if work.mirror is None:
        return ()
    due = [index for index in files if not work.storage.exists(work.layout.item(step_name, index))]
    unseen = [(index, file) for index in due for file in files[index] if not machines_see(file.path, work.config.cluster, stage=work.stage)]
    distinct = {file.xxh3: file for _, file in unseen}
    if distinct:
        size = sum(file.size for file in distinct.values())
        work.note(f"{len(distinct):,} raw files that pods do not see, {size:,} bytes, go to them through {work.storage.url}")
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="carry") as pool:
        list(pool.map(lambda file: _carry(work, file), distinct.values()))
    return tuple(FileRead(key=work.key, file=_entry(file), item=index) for index, file in unseen)


def drop_carried(work: "Work") -> None:
    """Removes what was carried: nobody reads it any more."""
    if work.mirror is not None:
        work.storage.delete(f"{work.key}/{CARRIED}")


def place_of(task: ItemTask, file: InputFile) -> Path:
    """Returns where an item finds a raw file: brought to its node, or where the recipe says."""
    brought = task.output_dir / _entry(file).path
    return brought if brought.exists() else Path(file.path)


def _entry(file: InputFile) -> FileEntry:
    """Returns a raw file as it is carried: by content, so that equal ones are one."""
    return FileEntry(path=f"{CARRIED}/{file.xxh3}", size=file.size, xxh3=file.xxh3)


def _carry(work: "Work", file: InputFile) -> None:
    if work.bench.stop_requested():
        raise InterruptedRunError(f"stopped before {work.stage.value}, as asked", mend="headrace resume goes on")
    assert work.mirror is not None
    try:
        work.mirror.carry(Path(file.path), work.key, _entry(file))
    except VerificationError as error:
        mend = "run again: the corpus is planned anew from the files as they are now"
        raise InputError(f"{file.path}: changed while the corpus was being made", why=error.findings[0], mend=mend) from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read", why=error.strerror or str(error), mend="make it readable, and run again") from error
