"""Crashes at a chosen file event: of the process alone, or of the power, which takes what was not synced with it.

File events are the calls that change what a file system holds: files created, written, cut, linked, removed, folders made and removed, and
every fsync. `Crash` counts them in this process and ends it at the n-th; run it in a child.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "link", "unlink", "rmdir")
CRASHED = 77
"""Exit status of a process that crashed on purpose."""
_GENUINE: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _CALLS}


@dataclass
class Unsynced:
    """Changes that a power cut may undo, each with its undoing."""

    undo: dict[str, list[Callable[[], None]]] = field(default_factory=dict)
    """By the path whose fsync makes them durable: a file for its content, a folder for its entries."""

    def add(self, path: str, undo: Callable[[], None]) -> None:
        self.undo.setdefault(path, []).append(undo)

    def synced(self, path: str) -> None:
        self.undo.pop(path, None)

    def lose(self, chance: random.Random) -> None:
        """Undoes some of them: newest first, each with a chance of a half."""
        for path in reversed(list(self.undo)):
            for undo in reversed(self.undo[path]):
                if chance.random() < 0.5:
                    undo()


@dataclass
class Crash:
    """Ends this process at the n-th file event below a folder."""

    root: Path
    at: int
    """The event before which it ends, 0-based; −1: never."""
    torn: bool = False
    """Whether half of a write is done first."""
    power_seed: int | None = None
    """What is lost of what was not synced; None: nothing, only the process ends."""
    kills_parent: bool = False
    """Whether the process that started this one is killed first: a writer's rank."""
    attic: Path | None = None
    """Where removed files wait for the power to fail."""
    torn_events: list[int] = field(default_factory=list)
    """Events so far that can be torn: writes."""
    count: int = 0
    """Events so far."""
    unsynced: Unsynced = field(default_factory=Unsynced)

    def install(self) -> None:
        """Replaces the calls in this process, for good."""
        os.open = self._open  # type: ignore[assignment]
        os.write = self._write  # type: ignore[assignment]
        os.pwrite = self._pwrite  # type: ignore[assignment]
        os.ftruncate = self._ftruncate  # type: ignore[assignment]
        os.fsync = self._fsync  # type: ignore[assignment]
        os.mkdir = self._mkdir  # type: ignore[assignment]
        os.link = self._link  # type: ignore[assignment]
        os.unlink = self._unlink  # type: ignore[assignment]
        os.rmdir = self._rmdir  # type: ignore[assignment]

    def _event(self, path: str, *, half: Callable[[], object] | None = None) -> None:
        if not path.startswith(str(self.root)):
            return
        if self.count == self.at:
            if self.torn and half is not None:
                half()
            if self.power_seed is not None:
                for name, call in _GENUINE.items():
                    setattr(os, name, call)
                self.unsynced.lose(random.Random(self.power_seed))
            if self.kills_parent:
                os.kill(os.getppid(), signal.SIGKILL)
            os._exit(CRASHED)
        if half is not None:
            self.torn_events.append(self.count)
        self.count += 1

    def _entry(self, path: str, undo: Callable[[], None]) -> None:
        self.unsynced.add(str(Path(path).parent), undo)

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        creates = bool(flags & os.O_CREAT)
        if creates:
            self._event(str(path))
        descriptor: int = _GENUINE["open"](path, flags, mode, **more)
        if creates:
            name = str(path)
            self._entry(name, lambda: Path(name).unlink(missing_ok=True))
        return descriptor

    def _content(self, descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def _write(self, descriptor: int, data: Any) -> int:
        path = self._content(descriptor)
        self._event(path, half=lambda: _GENUINE["write"](descriptor, data[: len(data) // 2]))
        self.unsynced.add(path, lambda: _empty(path))
        written: int = _GENUINE["write"](descriptor, data)
        return written

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        path = self._content(descriptor)
        self._event(path, half=lambda: _GENUINE["pwrite"](descriptor, data[: len(data) // 8192 * 4096], offset))
        self.unsynced.add(path, lambda: _empty(path))
        written: int = _GENUINE["pwrite"](descriptor, data, offset)
        return written

    def _ftruncate(self, descriptor: int, size: int) -> None:
        path = self._content(descriptor)
        self._event(path)
        longer = os.fstat(descriptor).st_size
        _GENUINE["ftruncate"](descriptor, size)
        self.unsynced.add(path, lambda: _resize(path, longer))

    def _fsync(self, descriptor: int) -> None:
        path = self._content(descriptor)
        self._event(path)
        _GENUINE["fsync"](descriptor)
        self.unsynced.synced(path)

    def _mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        self._event(str(path))
        _GENUINE["mkdir"](path, mode, **more)
        name = str(path)
        self._entry(name, lambda: shutil.rmtree(name, ignore_errors=True))

    def _link(self, source: Any, target: Any, **more: Any) -> None:
        self._event(str(target))
        _GENUINE["link"](source, target, **more)
        name = str(target)
        self._entry(name, lambda: Path(name).unlink(missing_ok=True))

    def _unlink(self, path: Any, **more: Any) -> None:
        self._event(str(path))
        name = str(path)
        kept = self.attic / f"{self.count:06d}" if self.attic is not None and Path(name).exists() else None
        if kept is not None:
            _GENUINE["link"](name, kept)
        _GENUINE["unlink"](path, **more)
        if kept is not None:
            self._entry(name, lambda: _restore(kept, Path(name)))

    def _rmdir(self, path: Any, **more: Any) -> None:
        self._event(str(path))
        _GENUINE["rmdir"](path, **more)


def _empty(path: str) -> None:
    if Path(path).is_file():
        _resize(path, 0)


def _resize(path: str, size: int) -> None:
    if Path(path).is_file():
        descriptor = _GENUINE["open"](path, os.O_WRONLY)
        _GENUINE["ftruncate"](descriptor, size)
        os.close(descriptor)


def _restore(kept: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _GENUINE["link"](kept, path)
