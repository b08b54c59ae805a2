"""`headrace doctor` on storage: room, what the file system promises, and whether its kind suits."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from cluster.file_system import NETWORK_FILE_SYSTEMS, file_system_of, mounts_here
from cluster.storage import AlreadyExistsError, Storage, open_storage
from flows.figure import of_bytes
from flows.finding import Finding, finding
from schemas.config import RunConfig
from schemas.errors import HeadraceError
from schemas.sizing import training_size

_FEW_BYTES = 5_000_000_000


def check_disk(folder: Path, *, subject: str, config: RunConfig | None) -> Finding:
    """Free space against what checkpoints will take."""
    free = shutil.disk_usage(existing(folder)).free
    size = training_size(config) if config is not None else None
    need = (size.checkpoint_bytes or 0) * (size.kept_checkpoints or 0) if size is not None else _FEW_BYTES
    what = f"{of_bytes(free)} free for {folder}"
    if size is not None:
        what += f", up to {of_bytes(need)} needed for checkpoints"
    return finding(
        "error" if free < need and size is not None else "warning" if free < need else "ok",
        subject,
        what,
        "free space, or name another storage.root" if free < need else "",
    )


def check_storage(folder: Path, *, subject: str = "storage.root") -> list[Finding]:
    """What the file system promises: exclusive creation, `link(2)` that refuses an existing target, fsync of files and folders."""
    home = existing(folder)
    probe = home / f".headrace-doctor-{secrets.token_hex(4)}"
    try:
        probe.mkdir()
    except OSError as error:
        return [
            finding(
                "error", subject, f"{home} cannot be written: {error.strerror}", f"give yourself the right to write there, or name another {subject}"
            )
        ]
    try:
        problems = list(_broken_promises(probe))
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    if problems:
        mend = f"name a {subject} on a local disk or NFS; object stores mounted as folders do not keep these promises"
        return [finding("error", subject, f"{home}: {problem}", mend) for problem in problems]
    return [finding("ok", subject, f"{home} keeps its promises: exclusive create, link, fsync, flock")]


def check_object_storage(url: str) -> list[Finding]:
    """What object storage promises: a put that refuses an existing object, reading and listing what was just written, deletion."""
    probe = f"headrace-doctor-{secrets.token_hex(4)}"
    try:
        storage = open_storage(url)
        problems = list(_broken_object_promises(storage, probe))
    except HeadraceError as error:
        return [finding("error", "storage.root", f"{error.what}{f' ({error.why})' if error.why else ''}", error.mend or "see to storage.root")]
    if problems:
        mend = "name a server that keeps conditional writes (If-None-Match), such as S3 itself, or a folder"
        return [finding("error", "storage.root", f"{url}: {problem}", mend) for problem in problems]
    return [finding("ok", "storage.root", f"{url} keeps its promises: conditional put, read and list after write, delete")]


def _broken_object_promises(storage: Storage, probe: str) -> Iterator[str]:
    key = f"{probe}/object"
    storage.create_exclusive(key, b"1")
    try:
        with contextlib.suppress(AlreadyExistsError):
            storage.create_exclusive(key, b"2")
            yield "a conditional put replaced an existing object"
        if storage.names(probe) != ("object",) or not storage.exists(key):
            yield "what was just written is not listed"
    finally:
        storage.delete(probe)
    if storage.exists(key):
        yield "what was just deleted is still there"


def _broken_promises(folder: Path) -> Iterator[str]:
    import fcntl

    first, second = folder / "first", folder / "second"
    first.write_bytes(b"1")
    try:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        yield "exclusive creation overwrote an existing file"
    except FileExistsError:
        pass
    try:
        os.link(first, second)
    except OSError as error:
        yield f"link(2) fails: {error.strerror}"
    else:
        try:
            os.link(first, second)
            yield "link(2) overwrote an existing target"
        except FileExistsError:
            pass
    for path, flags in ((first, os.O_RDONLY), (folder, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        except OSError as error:
            yield f"fsync of a {'folder' if path == folder else 'file'} fails: {error.strerror}"
        finally:
            os.close(descriptor)
    with first.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK,):
                yield f"flock fails: {error.strerror}"


def check_file_system(folder: Path, *, subject: str, is_shared: bool = False) -> list[Finding]:
    """Whether a folder lies on a kind of file system that suits it: state belongs on a local disk, unless nodes share it."""
    kind = file_system_of(existing(folder), mounts=mounts_here())
    if subject == "state" and kind in NETWORK_FILE_SYSTEMS and not is_shared:
        return [finding("warning", subject, f"{folder} lies on {kind}; its SQLite databases want a local disk", "set `state` to a local folder")]
    if kind in ("tmpfs", "ramfs"):
        return [finding("warning", subject, f"{folder} lies in memory ({kind}) and is gone after a restart", f"set {subject} to a folder on disk")]
    return []


def check_sharing(folder: Path) -> list[Finding]:
    """Whether a store that its group may write is shared as it seems meant: setgid, so that what one user makes the others may use."""
    if not folder.is_dir() or not (mode := folder.stat().st_mode) & stat.S_IWGRP:
        return []
    group = folder.stat().st_gid
    if mode & stat.S_ISGID:
        return [finding("ok", "storage.root", f"{folder} is shared by the users of group {group}")]
    what = f"group {group} may write in {folder}, but what its users make there belongs to their own groups"
    return [finding("warning", "storage.root", what, f"chmod g+s {folder}, and chgrp -R {group} what is in it")]


def existing(folder: Path) -> Path:
    """Returns the deepest existing folder on the way to `folder`."""
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())
