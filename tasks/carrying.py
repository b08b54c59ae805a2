"""Raw files that the machines of a job cannot see: they go there through storage, and are removed from it once all have been read.

Files behind URLs are fetched by the machine that decides, the only one that needs a way there and credentials. Pods that share nothing but a bucket
with it have no folder in which the user's text lies. Either lies in the artifact in the making while `validate` scans, by content; on object
storage the agent brings each item its own, verified as everything is.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.durable import make_folder
from cluster.launchers import machines_see
from cluster.remote_files import RemoteFiles
from cluster.storage import TEMPORARY_PREFIX, publish_file
from schemas.artifact import FileEntry
from schemas.errors import InputError, InterruptedRunError, VerificationError
from schemas.job import FileRead
from schemas.manifest import InputFile
from schemas.source_url import is_remote
from tasks.entry import ItemTask

if TYPE_CHECKING:  # what decides; items import this module, too
    from tasks.work import Work

CARRIED = "carried"
"""Folder within the artifact in the making. Not part of the artifact."""
_AT_A_TIME = 4
"""Files that are under way at once."""
_MEND = "run again: the corpus is planned anew from the files as they are now"


def carry_unseen(work: "Work", files: Mapping[int, Sequence[InputFile]], *, step_name: str) -> tuple[FileRead, ...]:
    """Puts the raw files that the stage's machines do not see into storage, and returns what agents have to bring.

    Those of finished items are left out, and what is there already is not sent again. Where storage is a folder, local files that machines do not
    see have no way round by it.

    Args:
        files: item → the files that it reads.
        step_name: of the items.

    Raises:
        InputError: a file changed since it was planned, or cannot be read.
        UnreachableError: the server of a remote one refuses, or does not answer.
        InterruptedRunError: somebody wishes a stop; what was sent stays for the next start.
    """
    carried = {index: found for index in files if (found := [file for file in files[index] if _is_carried(work, file)])}
    due = [index for index in carried if not work.storage.exists(work.layout.item(step_name, index))]
    unseen = [(index, file) for index in due for file in carried[index]]
    distinct = {file.xxh3: file for _, file in unseen}
    remote = [file for file in distinct.values() if is_remote(file.path)]
    local = [file for file in distinct.values() if not is_remote(file.path)]
    if remote:
        work.note(f"{len(remote):,} raw files, {_bytes(remote)}, are fetched from where they lie, for as long as they are scanned")
    if local:
        work.note(f"{len(local):,} raw files that pods do not see, {_bytes(local)}, go to them through {work.storage.url}")
    if distinct:
        servers = RemoteFiles()
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="carry") as pool:
            list(pool.map(lambda file: _carry(work, file, servers=servers), distinct.values()))
    return tuple(FileRead(key=work.key, file=_entry(file), item=index) for index, file in unseen)


def drop_carried(work: "Work") -> None:
    """Removes what was carried: nobody reads it any more."""
    work.storage.delete(f"{work.key}/{CARRIED}")


def place_of(task: ItemTask, file: InputFile) -> Path:
    """Returns where an item finds a raw file: brought to its node, or where the recipe says."""
    brought = task.output_dir / _entry(file).path
    return brought if brought.exists() else Path(file.path)


def _is_carried(work: "Work", file: InputFile) -> bool:
    return is_remote(file.path) or (work.mirror is not None and not machines_see(file.path, work.config.cluster, stage=work.stage))


def _entry(file: InputFile) -> FileEntry:
    """Returns a raw file as it is carried: by content, so that equal ones are one."""
    return FileEntry(path=f"{CARRIED}/{file.xxh3}", size=file.size, xxh3=file.xxh3)


def _bytes(files: Sequence[InputFile]) -> str:
    return f"{sum(file.size for file in files):,} bytes"


def _carry(work: "Work", file: InputFile, *, servers: RemoteFiles) -> None:
    if work.bench.stop_requested():
        raise InterruptedRunError(f"stopped before {work.stage.value}, as asked", mend="headrace resume goes on")
    if is_remote(file.path):
        _fetch(work, file, servers=servers)
    else:
        _send(work, file)


def _send(work: "Work", file: InputFile) -> None:
    """Puts a file of this machine into object storage."""
    assert work.mirror is not None
    try:
        work.mirror.carry(Path(file.path), work.key, _entry(file))
    except VerificationError as error:
        raise InputError(f"{file.path}: changed while the corpus was being made", why=error.findings[0], mend=_MEND) from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read", why=error.strerror or str(error), mend="make it readable, and run again") from error


def _fetch(work: "Work", file: InputFile, *, servers: RemoteFiles) -> None:
    """Puts a remote file into storage: a folder at once, object storage by way of this machine's disk."""
    entry = _entry(file)
    if work.storage.exists(f"{work.key}/{entry.path}"):
        return
    final = (work.output_dir if work.mirror is None else work.mirror.folder(work.key)) / entry.path
    make_folder(final.parent)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{final.name}")
    try:
        fetched = servers.fetch(file.path, target=temporary)
        if fetched.xxh3 != file.xxh3:
            why = f"it was planned with xxh3 {file.xxh3[:12]} and {file.size:,} bytes, and is {fetched.xxh3[:12]} with {fetched.file.size:,} now"
            raise InputError(f"{file.path}: changed while the corpus was being made", why=why, mend=_MEND)
        if work.mirror is None:
            publish_file(temporary, final)
        else:
            work.mirror.carry(temporary, work.key, entry)
    finally:
        temporary.unlink(missing_ok=True)
