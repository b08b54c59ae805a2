"""What is in the API and changes there: a list that is kept up to date by watching."""

import logging
import threading
import time
from collections.abc import Callable

from lab.api import Api, ApiError, Json

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.5


class Informer(threading.Thread):
    """Objects of one kind, by their uid. An API server that is away or has forgotten is asked again, for ever."""

    def __init__(self, api: Api, path: str, *, on_change: Callable[[str, Json | None], None]) -> None:
        """Args: api: who asks. path: of the list. on_change: called with an object's uid, and the object or None when it is gone."""
        super().__init__(daemon=True, name=path)
        self._api, self._path, self._on_change = api, path, on_change
        self._objects: dict[str, Json] = {}
        self._stopped = False

    def objects(self) -> list[Json]:
        """Returns all of them."""
        return list(self._objects.copy().values())

    def stop(self) -> None:
        """Follows no further than to the next change."""
        self._stopped = True

    def run(self) -> None:
        """Follows."""
        version = ""
        while not self._stopped:
            try:
                version = version or self._list()
                for event in self._api.watch(self._path, version=version, allowWatchBookmarks="true"):
                    if self._stopped:
                        return
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._take(event["object"], gone=event["type"] == "DELETED")
            except ApiError as error:
                if error.status:
                    version = ""
                _LOG.info("%s: %s", self._path, error)
                time.sleep(_RETRY_S)

    def _list(self) -> str:
        answer = self._api.get(self._path)
        found = {item["metadata"]["uid"]: item for item in answer["items"]}
        for uid in self._objects.keys() - found.keys():
            self._take(self._objects[uid], gone=True)
        self._objects.update(found)  # before the first of them is acted upon
        for item in found.values():
            self._take(item, gone=False)
        return str(answer["metadata"]["resourceVersion"])

    def _take(self, item: Json, *, gone: bool) -> None:
        uid = item["metadata"]["uid"]
        if gone:
            self._objects.pop(uid, None)
        else:
            self._objects[uid] = item
        self._on_change(uid, None if gone else item)
