"""What a container is to become (`enter.py` reads it): pure, from the pod's specification and the image."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.api import Json
from lab.environment import expand
from lab.images import Image
from lab.lookup import NotThereError

_PIECE = re.compile(r"[^/]+")


def specification_of(
    container: Json,
    pod: Json,
    *,
    image: Image,
    environment: Mapping[str, str],
    volume: Callable[[str], Path],
    files: Mapping[str, Path],
    folder: Path,
) -> dict[str, Any]:
    """Returns the specification of a container's first process.

    Args:
        container: of the pod's specification.
        pod: as the API has it.
        image: what it is made of.
        environment: its variables.
        volume: name → where the volume is.
        files: single files of ours: place in the container → where they are.
        folder: of this container; its root and what goes wrong lie there.

    Raises:
        NotThereError: the image's user is root, and the pod forbids it.
    """
    context = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    uid, gid = context.get("runAsUser", image.uid), context.get("runAsGroup", image.gid)
    if context.get("runAsNonRoot") and uid == 0:
        raise NotThereError("container has runAsNonRoot and image will run as root")
    groups = {*context.get("supplementalGroups", ()), *([context["fsGroup"]] if "fsGroup" in context else []), gid}
    drop = (context.get("capabilities") or {}).get("drop") or []
    mounts = [{"source": str(source), "target": target, "read_only": False} for target, source in files.items()]
    mounts += [_mount(mount, volume, environment) for mount in container.get("volumeMounts") or []]
    return {
        "argv": _argv(container, image, environment),
        "environment": dict(environment),
        "workdir": container.get("workingDir") or image.workdir or "/",
        "hostname": hostname_of(pod),
        "image": image.rootfs,
        "root": str(folder / "root"),
        "error": str(folder / "error"),
        "log_is_message": container.get("terminationMessagePolicy") == "FallbackToLogsOnError",
        "mounts": sorted(mounts, key=lambda mount: str(mount["target"]).count("/")),
        "read_only_root": bool(context.get("readOnlyRootFilesystem")),
        "uid": uid,
        "gid": gid,
        "groups": sorted(groups),
        "drop_capabilities": "ALL" in drop and not context.get("privileged"),
        "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
    }


def hostname_of(pod: Json) -> str:
    """Returns the name that a pod's processes see as their machine's."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]


def _argv(container: Json, image: Image, environment: Mapping[str, str]) -> list[str]:
    """Returns what is run: `command` replaces the image's entrypoint and command, `args` its command alone."""
    command, arguments = container.get("command"), container.get("args")
    words = [*(command or image.entrypoint), *(arguments or (() if command else image.command))]
    if not words:
        raise NotThereError("no command specified")
    return [expand(word, environment) for word in words]


def _mount(mount: Json, volume: Callable[[str], Path], environment: Mapping[str, str]) -> dict[str, Any]:
    source = volume(mount["name"])
    below = expand(mount["subPathExpr"], environment) if mount.get("subPathExpr") else mount.get("subPath") or ""
    for piece in _PIECE.findall(below):
        if piece == "..":
            raise NotThereError(f"subPath {below!r} leads out of its volume")
        source = source / piece
    if below and not source.exists():
        source.mkdir(parents=True)
    return {"source": str(source), "target": mount["mountPath"], "read_only": bool(mount.get("readOnly"))}
