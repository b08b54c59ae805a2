"""A container of a pod over its lives: waiting, running, ended, and begun again when the pod's policy says so."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.api import Json
from lab.container import Container, Exit
from lab.logs import now
from lab.probes import Probes
from lab.quantity import parse
from lab.status import ContainerState

_LONGEST_BACKOFF_S = 10.0
_TO_HEED_S = 5.0
"""What a container has that fails its probes, between SIGTERM and SIGKILL."""


class Slot:
    """One entry of a pod's `containers` or `initContainers`."""

    def __init__(self, description: Json, folder: Path, *, address: str) -> None:
        """Args: description: of the pod's specification. folder: of its own. address: of the pod."""
        self.description, self.folder = description, folder
        self.name = str(description["name"])
        self._container: Container | None = None
        self._ended: Exit | None = None
        self._waiting = ("ContainerCreating", "")
        self._last: Exit | None = None
        self._restarts, self._due = 0, 0.0
        self._kill_at: float | None = None
        self._probes = Probes(description, address=address)
        limit = (description.get("resources", {}).get("limits") or {}).get("memory")
        self._limit = parse(str(limit)) if limit else None

    @property
    def running(self) -> Container | None:
        """Its present life, if it has one."""
        return self._container if self._container is not None and self._container.exit is None else None

    @property
    def is_attended(self) -> bool:
        """Whether it has to be looked at often."""
        return self._limit is not None or bool(self._probes) or self._due > 0

    def log(self, life: int | None = None) -> Path:
        """Returns the log of a life; by default of the present one."""
        return self.folder / f"{self._restarts if life is None else life}.log"

    @property
    def previous_log(self) -> Path:
        """The log of the life before the present one."""
        return self.log(self._restarts - 1)

    def wait(self, reason: str, message: str) -> bool:
        """Notes why it does not begin. Returns whether that is news."""
        news = self._waiting != (reason, message)
        self._waiting = (reason, message)
        return news

    def begin(self, specification: Mapping[str, Any], *, on_end: Callable[[], None]) -> None:
        """Begins a life."""
        self._container = Container(specification, self.folder, log=self.log(), on_end=on_end)
        self._ended, self._due, self._kill_at = None, 0.0, None
        self._probes.reset()

    def end_as(self, end: Exit) -> None:
        """Notes an end that was not seen."""
        self._ended = end

    def look(self, *, policy: str, volumes_bytes: int) -> bool:
        """Sees to it that it keeps to its memory, passes its probes, and is begun again when it ended. Returns whether it is to begin now.

        Args:
            policy: `restartPolicy` of the pod.
            volumes_bytes: what the pod's volumes of memory hold.
        """
        if (running := self.running) is not None:
            if self._limit is not None and running.holds_more_than(self._limit, besides=volumes_bytes):
                running.kill_for_memory()
            elif self._kill_at is not None:
                if time.monotonic() > self._kill_at:
                    running.kill()
            elif self._probes.condemn(running):
                running.terminate()
                self._kill_at = time.monotonic() + _TO_HEED_S
            return False
        end = self._container.exit if self._container is not None else None
        if end is None:
            return False
        again = policy == "Always" or (policy == "OnFailure" and end.code != 0)
        if not again:
            self._ended = end
            return False
        if self._due == 0:
            self._due = time.monotonic() + min(_LONGEST_BACKOFF_S, 0.5 * 2**self._restarts)
            self._last = end
            self._waiting = ("CrashLoopBackOff", f"back-off restarting failed container {self.name}")
            self._ended = None
        if time.monotonic() < self._due:
            return False
        self._restarts += 1
        return True

    def settle(self) -> None:
        """Notes that the life that has ended was the last one."""
        if self._container is not None and self._container.exit is not None:
            self._ended, self._due = self._container.exit, 0.0

    def state(self) -> ContainerState:
        """Returns where it is, for the pod's status."""
        container, image = self._container, str(self.description.get("image", ""))
        return ContainerState(
            name=self.name,
            image=image,
            reason=self._waiting[0],
            message=self._waiting[1],
            started=container.started if container is not None and self._due == 0 else "",
            exit=self._ended,
            ready=self.running is not None and self._probes.ready,
            restarts=self._restarts,
            last=self._last,
        )


def lost(started: str) -> Exit:
    """Returns the end of a container that nobody saw end: its node was without power."""
    message = "The container could not be located when the pod was terminated"
    return Exit(code=137, reason="ContainerStatusUnknown", message=message, started=started, finished=now())
