"""The images that the nodes know: folders with files, and how their program is called."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """What a container is made of."""

    name: str
    rootfs: str
    """Folder of its files; `/`: this machine's own."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    """`UID` or `UID:GID`; names are not looked up."""

    @property
    def uid(self) -> int:
        """Its user's number."""
        return int(self.user.split(":")[0] or 0)

    @property
    def gid(self) -> int:
        """Its group's number."""
        return int(self.user.partition(":")[2] or 0)


def find(folder: Path, name: str) -> Image | None:
    """Returns an image by the name that a pod gives it; None: no node knows it."""
    path = folder / f"{name.replace('/', '%2F')}.json"
    if not path.exists():
        return None
    value = json.loads(path.read_text())
    return Image(**{**value, "entrypoint": tuple(value.get("entrypoint", ())), "command": tuple(value.get("command", ()))})
