"""A container's probes: whether it is ready, and whether it has to be begun again."""

import http.client
import socket
import time

from lab.api import Json
from lab.container import Container

_KINDS = ("startupProbe", "readinessProbe", "livenessProbe")


class Probes:
    """The probes of one container. One attempt at a time, by whoever looks after the pod."""

    def __init__(self, description: Json, *, address: str) -> None:
        """Args: description: of the container. address: of its pod."""
        self._probes = {kind: description[kind] for kind in _KINDS if description.get(kind)}
        self._address = address
        ports = description.get("ports") or []
        self._ports = {port["name"]: port["containerPort"] for port in ports if "name" in port}
        self.reset()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._probes)

    def reset(self) -> None:
        """Begins anew, with a new life of the container."""
        now = time.monotonic()
        self._next = {kind: now + probe.get("initialDelaySeconds", 0) for kind, probe in self._probes.items()}
        self._failures = dict.fromkeys(self._probes, 0)
        self._successes = dict.fromkeys(self._probes, 0)
        self.ready = "readinessProbe" not in self._probes and "startupProbe" not in self._probes

    def condemn(self, container: Container) -> bool:
        """Attempts what is due. Returns whether the container has to be begun again."""
        for kind, probe in self._probes.items():
            if time.monotonic() < self._next[kind] or (kind != "startupProbe" and not self._has_started):
                continue
            self._next[kind] = time.monotonic() + probe.get("periodSeconds", 10)
            if self._passes(probe, container):
                self._failures[kind], self._successes[kind] = 0, self._successes[kind] + 1
            else:
                self._failures[kind], self._successes[kind] = self._failures[kind] + 1, 0
            if self._failures[kind] >= probe.get("failureThreshold", 3):
                if kind != "readinessProbe":
                    return True
                self.ready = False
            if kind == "readinessProbe" and self._successes[kind] >= probe.get("successThreshold", 1):
                self.ready = True
        if "readinessProbe" not in self._probes:
            self.ready = self._has_started
        return False

    @property
    def _has_started(self) -> bool:
        return "startupProbe" not in self._probes or self._successes["startupProbe"] > 0

    def _passes(self, probe: Json, container: Container) -> bool:
        seconds = probe.get("timeoutSeconds", 1)
        if action := probe.get("exec"):
            return container.run(action["command"], seconds=seconds) == 0
        action = probe.get("httpGet") or probe["tcpSocket"]
        host, port = action.get("host") or self._address, self._ports.get(action["port"], action["port"])
        try:
            if "tcpSocket" in probe:
                socket.create_connection((host, int(port)), timeout=seconds).close()
                return True
            connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
            connection.request("GET", action.get("path") or "/")
            status = connection.getresponse().status
            connection.close()
        except (OSError, http.client.HTTPException):
            return False
        return 200 <= status < 400
