"""The first moments of a container: a process in namespaces of its own makes its files, gives up its rights, and becomes the container's program.

    python3 -I enter.py SPECIFICATION

A second process stays outside and ends as the container did; with it, the container ends.
The root is the image with a layer of memory above it that goes with the container. What fails before the program begins is written to the
specification's `error` file, and the process ends with 128.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_COULD_NOT_START = 128
_READ_ONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _RECURSIVE = 1, 2, 4, 8, 32, 4096, 16384
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PRIVATE = 1 << 18
_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000
"""Mounts, UTS, IPC, PID: `CLONE_NEW…` of linux/sched.h."""
_SET_NO_NEW_PRIVS, _DROP_BOUNDING, _SET_PARENT_DEATH_SIGNAL = 38, 24, 1
_ROOT_BYTES = 4 * 2**30
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Becomes the container's program, and the process that waits for it."""
    with open(sys.argv[1], encoding="utf-8") as file:
        specification = json.load(file)
    if _libc.unshare(_NAMESPACES) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    inside = os.fork()
    if inside:
        code = os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    error = os.open(specification["error"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _become(specification)
    except OSError as failure:
        os.write(error, str(failure).encode())
        os._exit(_COULD_NOT_START)


def _become(specification: dict[str, Any]) -> None:
    socket.sethostname(specification["hostname"])
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    root = specification["root"]
    sources = [os.open(mount["source"], os.O_PATH | os.O_CLOEXEC) for mount in specification["mounts"]]
    _layer(root, image=specification["image"])
    _system(root, shared_memory=specification["shared_memory"])
    os.chroot(root)
    os.chdir("/")
    # Only now are the places looked up: a link in an image must not lead out of it.
    for source, mount in zip(sources, specification["mounts"], strict=True):
        _bind(f"/proc/self/fd/{source}", mount["target"], read_only=mount["read_only"])
    Path(specification["workdir"]).mkdir(parents=True, exist_ok=True)
    if specification["read_only_root"]:
        _mount("none", "/", flags=_REMOUNT | _READ_ONLY)
    os.chdir(specification["workdir"])
    _give_up(specification)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.execvpe(specification["argv"][0], specification["argv"], specification["environment"])  # noqa: S606


def _layer(root: str, *, image: str) -> None:
    """Makes the root: the image, and above it a layer of memory that takes what is written."""
    above = f"{root}.layer"
    for path in (root, above):
        Path(path).mkdir(exist_ok=True)
    _mount("layer", above, kind="tmpfs", data=f"size={_ROOT_BYTES},mode=755")
    for name in ("upper", "work"):
        Path(above, name).mkdir()
    _mount("image", root, kind="overlay", data=f"lowerdir={image},upperdir={above}/upper,workdir={above}/work")
    if image == "/":
        for path in _own_mounts(beside=root):
            if Path(root + path).is_dir():
                _mount(path, root + path, flags=_BIND)
                _mount("none", root + path, flags=_REMOUNT | _BIND | _READ_ONLY)


def _own_mounts(*, beside: str) -> list[str]:
    """Returns where this machine has mounted other file systems with files in them, which the layer does not show."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        rows = [line.split() for line in file]
    kinds = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "nfs", "nfs4", "overlay", "fuse", "virtiofs", "9p"}
    return [path for _, path, kind, *_ in rows if kind in kinds and path != "/" and not beside.startswith(path) and not path.startswith(beside)]


def _system(root: str, *, shared_memory: str) -> None:
    for name in ("proc", "sys", "dev"):
        Path(root, name).mkdir(exist_ok=True)
    _mount("proc", f"{root}/proc", kind="proc", flags=_NOSUID | _NODEV | _NOEXEC)
    _mount("/sys", f"{root}/sys", flags=_BIND)
    _mount("none", f"{root}/sys", flags=_REMOUNT | _BIND | _READ_ONLY)
    _mount("dev", f"{root}/dev", kind="tmpfs", flags=_NOSUID, data="size=64k,mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", flags=_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx")):
        Path(root, "dev", name).symlink_to(target)
    for name in ("pts", "shm"):
        Path(root, "dev", name).mkdir()
    _mount("devpts", f"{root}/dev/pts", kind="devpts", flags=_NOSUID | _NOEXEC, data="newinstance,ptmxmode=0666,mode=0620")
    _mount(shared_memory, f"{root}/dev/shm", flags=_BIND)  # noqa: S108  # the pod's own


def _bind(source: str, target: str, *, read_only: bool) -> None:
    """Mounts a file or folder at a place, which is made when it is not there."""
    place = Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.touch()
    _mount(source, target, flags=_BIND | _RECURSIVE)
    if read_only:
        _mount("none", target, flags=_BIND | _REMOUNT | _READ_ONLY)


def _give_up(specification: dict[str, Any]) -> None:
    """Becomes the user, without the capabilities that are to be dropped."""
    if specification["drop_capabilities"]:
        for number in range(64):
            _libc.prctl(_DROP_BOUNDING, number, 0, 0, 0)  # EINVAL beyond the last one
    os.setgroups(specification["groups"])
    os.setgid(specification["gid"])
    os.setuid(specification["uid"])
    if specification["no_new_privileges"]:
        _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _mount(source: str, target: str, *, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} at {target}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
