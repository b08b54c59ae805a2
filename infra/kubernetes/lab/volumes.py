"""The volumes of a pod, as folders and files of its node."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.api import Json
from lab.lookup import Lookup, NotThereError
from lab.quantity import parse

_FILE_MODE = 0o644
_TOKEN_S = 3600
_SHARED_MEMORY = "64m"
"""What every pod has at /dev/shm when it mounts nothing else there."""


class Volumes:
    """The volumes of one pod. They lie below its folder on the node, and go with it."""

    def __init__(self, folder: Path, *, lookup: Lookup, field: Callable[[str], str], group: int | None) -> None:
        """Args: folder: for them. field: path → value of a field of the pod. group: `fsGroup`."""
        self._folder, self._lookup, self._field, self._group = folder, lookup, field, group
        self._paths: dict[str, Path] = {}
        self._limits: dict[str, float] = {}
        self._in_memory: set[str] = set()

    def make(self, volumes: list[Json]) -> None:
        """Makes all that are not there yet. Raises: NotThereError: something that one refers to is missing, or is of no kind known here."""
        for volume in volumes:
            if volume["name"] not in self._paths:
                self._paths[volume["name"]] = self._make(volume, self._folder / volume["name"])

    def path(self, name: str) -> Path:
        """Returns where a volume is."""
        return self._paths[name]

    def memory_bytes(self) -> int:
        """Returns what the volumes hold of the node's memory."""
        return sum(_used_bytes(self._paths[name]) for name in self._in_memory)

    def too_full(self) -> str | None:
        """Returns the name of an emptyDir that holds more than its limit; of memory none can."""
        for name, limit in self._limits.items():
            if name not in self._in_memory and sum(_sizes(self._paths[name])) > limit:
                return name
        return None

    def shared_memory(self) -> Path:
        """Makes the pod's own /dev/shm. Returns where it is."""
        return _memory(self._folder / ".shm", size=_SHARED_MEMORY)

    def discard(self) -> None:
        """Takes everything away; what other folders hold stays."""
        for path in (*(self._paths[name] for name in self._in_memory), self._folder / ".shm"):
            if path.is_mount():
                subprocess.run(("umount", "--lazy", str(path)), check=True)
        self._in_memory.clear()

    def _make(self, volume: Json, folder: Path) -> Path:
        if source := volume.get("hostPath"):
            return _host_path(Path(source["path"]), kind=source.get("type") or "")
        if source := volume.get("persistentVolumeClaim"):
            return _host_path(self._lookup.claimed(source["claimName"]), kind="Directory")
        if "emptyDir" in volume:
            return self._own(self._empty(volume["name"], volume["emptyDir"] or {}, folder), mode=0o2777 if self._group is not None else 0o777)
        files: dict[str, tuple[bytes, int]]
        if source := volume.get("projected"):
            files = {}
            for part in source.get("sources") or []:
                files |= self._files(part, mode=source.get("defaultMode", _FILE_MODE))
        else:
            kind = next((kind for kind in ("secret", "configMap", "downwardAPI") if kind in volume), None)
            if kind is None:
                known = "hostPath, emptyDir, configMap, secret, downwardAPI, projected, persistentVolumeClaim"
                raise NotThereError(f"volume {volume['name']}: these nodes know {known}")
            files = self._files({kind: volume[kind]}, mode=volume[kind].get("defaultMode", _FILE_MODE))
        for name, (data, mode) in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._own(path, mode=mode if self._group is None else mode | 0o040)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _empty(self, name: str, source: Mapping[str, Any], folder: Path) -> Path:
        limit = parse(str(source["sizeLimit"])) if source.get("sizeLimit") else 0.0
        if limit:
            self._limits[name] = limit
        if source.get("medium") == "Memory":
            self._in_memory.add(name)
            return _memory(folder, size=str(int(limit)) if limit else "50%")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _files(self, source: Json, *, mode: int) -> dict[str, tuple[bytes, int]]:
        """Returns path → content and mode of what a Secret, a ConfigMap, fields or a token are as files."""
        if part := source.get("serviceAccountToken"):
            token = self._lookup.token(audience=part.get("audience"), seconds=int(part.get("expirationSeconds") or _TOKEN_S))
            return {part["path"]: (token.encode(), 0o600 if self._group is not None else mode)}
        if part := source.get("downwardAPI"):
            fields = [item for item in part.get("items") or [] if "fieldRef" in item]
            return {item["path"]: (self._field(item["fieldRef"]["fieldPath"]).encode(), item.get("mode", mode)) for item in fields}
        part, find = (source["secret"], self._lookup.secret) if "secret" in source else (source["configMap"], self._lookup.config_map)
        values = find(part.get("secretName") or part["name"], optional=bool(part.get("optional")))
        if not part.get("items"):
            return {key: (value, mode) for key, value in values.items()}
        if missing := [item["key"] for item in part["items"] if item["key"] not in values]:
            raise NotThereError(f"references non-existent key: {', '.join(missing)}")
        return {item["path"]: (values[item["key"]], item.get("mode", mode)) for item in part["items"]}

    def _own(self, path: Path, *, mode: int) -> Path:
        if self._group is not None:
            os.chown(path, -1, self._group)
        path.chmod(mode)
        return path


def _host_path(path: Path, *, kind: str) -> Path:
    if kind == "DirectoryOrCreate" or (not kind and not path.exists()):
        path.mkdir(parents=True, exist_ok=True)
    if kind == "FileOrCreate":
        path.touch()
    right = {"Directory": path.is_dir, "File": path.is_file}.get(kind.removesuffix("OrCreate"), path.exists)
    if not right():
        raise NotThereError(f"hostPath type check failed: {path} is not a {kind.lower() or 'file or folder'}")
    return path


def _memory(folder: Path, *, size: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_mount():
        subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(folder)), check=True)
    return folder


def _used_bytes(folder: Path) -> int:
    if not folder.is_mount():
        return 0
    usage = shutil.disk_usage(folder)
    return usage.used


def _sizes(folder: Path) -> Iterator[int]:
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                yield Path(base, name).lstat().st_size
