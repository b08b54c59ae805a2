"""A small client of the Kubernetes API: JSON over HTTPS with a token."""

import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]

MERGE = "application/strategic-merge-patch+json"
_TIMEOUT_S = 10.0
_WATCH_S = 240


class ApiError(Exception):
    """The API server refused, or does not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Args: status: of HTTP. reason: in one word, as the API has it. message: for people."""
        self.status, self.reason = status, reason
        super().__init__(f"{status} {reason}: {message}")


class Api:
    """The API server, as somebody with a token sees it. Safe for threads: every request has a connection of its own."""

    def __init__(self, url: str, *, token: str, ca: str) -> None:
        """Args: url: `https://HOST:PORT`. token: who asks. ca: file of the certificate authority."""
        parts = urllib.parse.urlsplit(url)
        self._host, self._port, self._token = parts.hostname or "", parts.port or 443, token
        self._tls = ssl.create_default_context(cafile=ca)

    def get(self, path: str, **query: str) -> Json:
        """Returns an object or a list. Raises: ApiError."""
        return self._ask("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """Makes an object. Raises: ApiError."""
        return self._ask("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any]) -> Json:
        """Replaces an object. Raises: ApiError."""
        return self._ask("PUT", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """Changes an object by a strategic merge patch. Raises: ApiError."""
        return self._ask("PATCH", path, body=body, kind=MERGE)

    def delete(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Deletes an object; the body is DeleteOptions. Raises: ApiError."""
        return self._ask("DELETE", path, body=body)

    def raw(self, path: str) -> str:
        """Returns what is at a path, as text. Raises: ApiError."""
        answer = self._send("GET", path)
        with answer:
            return answer.read().decode()

    def watch(self, path: str, *, version: str, **query: str) -> Iterator[Json]:
        """Yields events from a version of a list on, until the API server ends it. Raises: ApiError; 410 Gone: list again."""
        more = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(_WATCH_S), **query}
        with self._send("GET", f"{path}?{urllib.parse.urlencode(more)}", timeout=_WATCH_S + _TIMEOUT_S) as answer:
            try:
                for line in answer:
                    event: Json = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _refusal(event["object"])
                    yield event
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise ApiError(0, "Disconnected", str(error)) from error

    def _ask(self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: object = None, kind: str = "application/json") -> Json:
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        with self._send(method, target, body=body, kind=kind) as answer:
            try:
                value: Json = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise ApiError(0, "Disconnected", str(error)) from error
        return value

    def _send(
        self, method: str, target: str, *, body: object = None, kind: str = "application/json", timeout: float = _TIMEOUT_S
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json", "Content-Type": kind, "Connection": "close"}
        try:
            connection.request(method, target, body=None if body is None else json.dumps(body), headers=headers)
            answer = connection.getresponse()
            if answer.status < 300:
                return answer
            with answer:
                text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ApiError(0, "Unreachable", str(error)) from error
        raise _refusal_of(answer.status, text)


def _refusal_of(status: int, text: bytes) -> ApiError:
    try:
        value = json.loads(text)
    except ValueError:
        value = {}
    return _refusal(value) if isinstance(value, dict) and "code" in value else ApiError(status, "Refused", text.decode(errors="replace")[:300])


def _refusal(status: Json) -> ApiError:
    return ApiError(int(status.get("code", 500)), str(status.get("reason", "Unknown")), str(status.get("message", "")))
