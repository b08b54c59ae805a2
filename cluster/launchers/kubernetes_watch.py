"""The pods of Headrace's in one namespace, as the API server tells of them: listed once, then watched.

One question answers for all jobs. The first is a list; from the second on a thread watches, so that what happens to a pod is known although nobody
asked at that moment, and is still known when the pod is gone. What the server says counts by its resource version: a late event changes nothing.

An answer is only given while the server speaks. When it does not, there is none: that pods were running a minute ago says nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.launchers.kubernetes_api import Api, ApiRefusedError, ApiSilentError
from cluster.launchers.kubernetes_name import MANAGED_BY, MANAGER
from cluster.launchers.kubernetes_pod import Pod, pod_of, removed

logger = logging.getLogger(__name__)

WATCH_S = 45
"""The server ends a watch after so long, and is heard from by that alone."""
SILENT_S = 60.0
"""Without any sign of the server for so long a watch is given up."""
_GOOD_FOR_S = 2.0
"""A list answers for so long, where nothing watches."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0
"""Between two tries while the server does not answer."""
_PAGE = "500"
_MOST_REMOVED = 10_000
"""Pods that are gone, and still remembered."""
_GONE = 410


class PodWatch:
    """See the module. Safe to use from several threads."""

    def __init__(self, api: Callable[[], Api], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: api: returns the connection; raises what makes it impossible. clock: monotonic seconds."""
        self._api, self._clock = api, clock
        self._lock, self._listing = threading.RLock(), threading.Lock()
        self._pods: dict[str, Pod] = {}
        """By name: all that are there, and those that were."""
        self._version = -1
        """Newest resource version that was heard; -1: never listed."""
        self._heard_at: float | None = None
        """When the server was heard last; None: it has been silent since."""
        self._num_changes, self._num_listed_changes = 0, 0
        """Changes that `expire` and `forget` told of, and how many of them had been told of when the newest list was asked for. Only a list
        makes up for a change: what the watch hears next may be of another pod. A list that was under way already does not, hence no flag."""
        self._silent_tries, self._ask_again_at = 0, 0.0
        self._closed, self._thread = threading.Event(), None

    _thread: threading.Thread | None

    def pods(self) -> Mapping[str, tuple[Pod, ...]] | None:
        """Returns attempt key → its pods, removed ones among them; None: the server does not answer."""
        if not self._is_fresh() and not self._ask():
            return None
        with self._lock:
            by_key: dict[str, tuple[Pod, ...]] = {}
            for pod in self._pods.values():
                by_key[pod.key] = (*by_key.get(pod.key, ()), pod)
            return by_key

    def expire(self) -> None:
        """Makes the next question a fresh one: something was changed."""
        with self._lock:
            self._num_changes += 1
            self._ask_again_at = 0.0

    def forget(self, key: str) -> None:
        """Forgets the removed pods of an attempt. Those that are there are found again by the next question, which is a fresh one."""
        with self._lock:
            self._pods = {name: pod for name, pod in self._pods.items() if pod.key != key}
            self._num_changes += 1

    def close(self) -> None:
        """Ends the thread soon."""
        self._closed.set()

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _is_fresh(self) -> bool:
        with self._lock:
            bound = SILENT_S if self._thread is not None and self._thread.is_alive() else _GOOD_FOR_S
            is_listed = self._num_listed_changes == self._num_changes
            return is_listed and self._heard_at is not None and self._clock() - self._heard_at < bound

    def _ask(self) -> bool:
        """Lists; returns whether there was an answer. While there is none it is asked ever more rarely."""
        with self._listing:
            if self._is_fresh():
                return True
            if self._clock() < self._ask_again_at:
                return False
            was_listed = self._version >= 0
            try:
                self._list()
            except (ApiSilentError, ApiRefusedError) as error:
                self._note_silence(error)
                return False
            if was_listed and self._thread is None and not self._closed.is_set():  # who asks twice, asks again
                self._thread = threading.Thread(target=self._watch_for_ever, name="kubernetes-watch", daemon=True)
                self._thread.start()
            return True

    def _note_silence(self, error: Exception) -> float:
        """Notes that the server did not answer; returns how long to leave it alone."""
        with self._lock:
            pause_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._silent_tries, 10))
            self._silent_tries, self._heard_at = self._silent_tries + 1, None
            self._ask_again_at = self._clock() + pause_s
        logger.warning("Kubernetes does not answer, asked again in %.0f s: %s", pause_s, error)
        return pause_s

    def _list(self) -> None:
        """Replaces what is known. Consistent: no `resourceVersion`, so that no cache that lags behind answers."""
        found: dict[str, Pod] = {}
        version = -1
        with self._lock:
            num_changes = self._num_changes
        for page in self._pages():
            version = int(page["metadata"]["resourceVersion"])
            found |= {pod.name: pod for manifest in page["items"] if (pod := pod_of(manifest)) is not None}
        with self._lock:
            went_back = version < self._version
            if went_back:  # a server that was restored: what it does not know may run all the same
                logger.warning(
                    "Kubernetes has gone back from version %d to %d: what it has forgotten is not taken for removed", self._version, version
                )
            gone = {} if went_back else {name: removed(pod) for name, pod in self._pods.items() if name not in found}
            self._pods = {**dict(list(gone.items())[-_MOST_REMOVED:]), **found}
            self._version, self._heard_at, self._silent_tries = version, self._clock(), 0
            self._num_listed_changes = num_changes

    def _pages(self) -> Iterator[Mapping[str, Any]]:
        api, more = self._api(), ""
        while True:
            query = {"labelSelector": f"{MANAGED_BY}={MANAGER}", "limit": _PAGE} | ({"continue": more} if more else {})
            page = api.call("GET", api.objects("pods"), query=query)
            yield page
            more = page["metadata"].get("continue") or ""
            if not more:
                return

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _watch_for_ever(self) -> None:
        while not self._closed.is_set():
            try:
                self._watch()
            except ApiRefusedError as error:
                pause_s = self._list_again() if error.status == _GONE else self._note_silence(error)
                self._closed.wait(pause_s)
            except ApiSilentError as error:
                self._closed.wait(self._note_silence(error))
            self._closed.wait(0.1)  # a server that ends every watch at once is not to be asked at once

    def _list_again(self) -> float:
        """Lists, as the server no longer knows what happened since; returns how long to wait."""
        logger.info("Kubernetes has forgotten what happened since version %d: listed again", self._version)
        with self._listing:
            try:
                self._list()
            except (ApiSilentError, ApiRefusedError) as error:
                return self._note_silence(error)
        return 0.0

    def _watch(self) -> None:
        """Follows what happens until the server ends the watch."""
        api = self._api()
        with self._lock:
            since = str(self._version)
        query = {"labelSelector": f"{MANAGED_BY}={MANAGER}", "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        for event in api.stream(api.objects("pods"), query={**query, "resourceVersion": since}, silent_s=SILENT_S):
            if self._closed.is_set():
                return
            if event["type"] == "ERROR":
                status = event["object"]
                raise ApiRefusedError(int(status.get("code", 0)), reason=status.get("reason", ""), message=status.get("message", ""), details={})
            self._apply(event["type"], event["object"])
        with self._lock:  # it ended as it was asked to: the server is well
            self._heard_at = self._clock()

    def _apply(self, kind: str, manifest: Mapping[str, Any]) -> None:
        version = int(manifest["metadata"]["resourceVersion"])
        with self._lock:
            self._heard_at, self._silent_tries = self._clock(), 0
            if version <= self._version:  # a list was faster
                return
            self._version = version
            pod = pod_of(manifest) if kind in ("ADDED", "MODIFIED", "DELETED") else None
            if pod is not None:
                self._pods[pod.name] = removed(pod) if kind == "DELETED" else pod
