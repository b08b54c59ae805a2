"""What the API hears of a pod from its node."""

import logging
import threading
import time
from collections.abc import Sequence

from lab.api import Api, ApiError, Json
from lab.logs import now
from lab.status import ContainerState, phase_of, status_of

_LOG = logging.getLogger(__name__)
_RETRY_S = 1.0


class GoneError(Exception):
    """The pod is no more in the API: whoever deleted it did not wait."""


class Reporter:
    """Tells the API of one pod."""

    def __init__(self, api: Api, pod: Json, *, addresses: tuple[str, str], gone: threading.Event) -> None:
        """Args: api: as the node sees it. pod: as the API has it. addresses: of the pod and its node. gone: set when the pod is no more."""
        meta = pod["metadata"]
        self._api, self._uid, self._addresses, self._gone = api, meta["uid"], addresses, gone
        self._name = f"{meta['namespace']}/{meta['name']}"
        self._path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self._policy = pod["spec"].get("restartPolicy", "Always")
        self._conditions = pod.get("status", {}).get("conditions") or []
        self._started = now()
        self._sent: Json | None = None

    @property
    def knows(self) -> bool:
        """Whether the API heard the last report."""
        return self._sent is not None

    def report(self, main: Sequence[ContainerState], init: Sequence[ContainerState]) -> bool:
        """Tells how it is, if that is news. Returns whether the API knows. Raises: GoneError."""
        return self._send(phase_of(main, policy=self._policy), main, init)

    def insist(self, main: Sequence[ContainerState], init: Sequence[ContainerState], *, reason: str = "", message: str = "") -> None:
        """Tells how it ended, for as long as that takes.

        Args:
            main: how its containers ended.
            init: how its init containers ended.
            reason: why the pod as a whole ended; empty: as its containers did.
            message: the same for people.

        Raises:
            GoneError: nobody wants to know any more.
        """
        failed = bool(reason) or any(state.exit is not None and state.exit.code != 0 for state in init)
        phase = "Failed" if failed else phase_of(main, policy="Never")
        while not self._send(phase, main, init, reason=reason, message=message):
            if self._gone.is_set():
                raise GoneError
            time.sleep(_RETRY_S)

    def delete(self) -> None:
        """Takes the pod out of the API, which waits for that."""
        while not self._gone.is_set():
            try:
                self._api.delete(self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}})
            except ApiError as error:
                if error.status in (404, 409):
                    return
                time.sleep(_RETRY_S)
            else:
                return

    def _send(self, phase: str, main: Sequence[ContainerState], init: Sequence[ContainerState], *, reason: str = "", message: str = "") -> bool:
        status = status_of(
            self._uid,
            known=self._conditions,
            phase=phase,
            addresses=self._addresses,
            started=self._started,
            containers=main,
            init=init,
            reason=reason,
            message=message,
            time=now(),
        )
        if status == self._sent:
            return True
        try:
            self._api.patch(f"{self._path}/status", status)
        except ApiError as error:
            if error.status in (404, 409):
                raise GoneError from error
            _LOG.warning("%s: %s", self._name, error)
            self._sent = None
            return False
        self._sent, self._conditions = status, status["status"]["conditions"]
        return True
