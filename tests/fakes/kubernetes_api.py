"""A Kubernetes API server small enough to misbehave on demand: namespaced objects, lists, watches, owners, and whatever answer a test wants instead.

It is for what a real one does not do when asked: refuse for a quota, forget its history, hang, break off, go back in time.
"""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cluster.launchers.kubernetes_api import Api

_PATH = re.compile(r"^/(?:api/v1|apis/[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?$")


@dataclass
class Fault:
    """What happens instead of an answer to the next matching requests."""

    method: str
    kind: str
    """`pods`, `services`, or any with `.*`."""
    status: int = 0
    """0: no answer at all."""
    reason: str = ""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    skip: int = 0
    """How many matching requests go well before."""
    hangs: bool = False
    """Whether the server keeps the connection open without a word until the end."""
    after: bool = False
    """Whether the request is carried out first: only its answer is lost."""
    watch: bool | None = None
    """Whether it is about watches only, or about none."""


class FakeApi:
    """Objects by (kind, name), and what happened to them by version."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.version = 100
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.oldest = 0
        """Watches from before this version are told that it is gone."""
        self.changed = threading.Condition()
        self.closed = False
        self.answers: dict[str, Any] = {}
        """Of paths that are no namespaced objects."""

    def put(self, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Creates or changes an object, as the server's own parts do."""
        with self.changed:
            key = (kind, manifest["metadata"]["name"])
            event = "MODIFIED" if key in self.objects else "ADDED"
            return self._note(event, key, manifest)

    def remove(self, kind: str, name: str) -> None:
        """Removes an object, and what it owns."""
        with self.changed:
            gone = self.objects.pop((kind, name))
            self._note("DELETED", (kind, name), gone)
            self.objects.pop((kind, name))
            for owned, each in list(self.objects.items()):
                if any(owner["uid"] == gone["metadata"]["uid"] for owner in each["metadata"].get("ownerReferences", ())):
                    self.remove(*owned)

    def status(self, name: str, **status: Any) -> None:
        """Sets a pod's status."""
        with self.changed:
            pod = self.objects["pods", name]
            self.put("pods", {**pod, "status": {**pod.get("status", {}), **status}})

    def kinds(self) -> list[tuple[str, str]]:
        """Returns (kind, name) of all objects."""
        with self.changed:
            return sorted(self.objects)

    def pods(self) -> list[dict[str, Any]]:
        """Returns all pods, by name."""
        with self.changed:
            return [each for (kind, _), each in sorted(self.objects.items()) if kind == "pods"]

    def forget_history(self) -> None:
        """Makes every version so far too old, and ends the watches."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()
            self.changed.notify_all()

    def _note(self, event: str, key: tuple[str, str], manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {"uid": f"uid-{self.version}", **manifest["metadata"], "resourceVersion": str(self.version)}
        self.objects[key] = {**manifest, "metadata": metadata}
        self.history.append((self.version, event, self.objects[key]))
        self.changed.notify_all()
        return self.objects[key]

    def take_fault(self, method: str, kind: str, *, watch: bool) -> Fault | None:
        with self.changed:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.fullmatch(fault.kind, kind) and fault.watch in (None, watch):
                    fault.skip, skipped = fault.skip - 1, fault.skip > 0
                    if skipped:
                        return None
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: FakeApi

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match = _PATH.match(url.path)
        kind = match["kind"] if match else url.path
        self.api.requests.append(f"{method} {kind}{' watch' if 'watch' in query else ''}")
        self.api.bodies.append(body)
        fault = self.api.take_fault(method, kind, watch="watch" in query)
        if fault is not None:
            if fault.after and match:
                self._answer(method, match, query, body)
            return self._fail(fault)
        if not match:
            known = self.api.answers.get(url.path)
            return self._status(404, "NotFound", "no such path") if known is None else self._send(200, known)
        if "watch" in query:
            return self._watch(kind, query)
        status, answer = self._answer(method, match, query, body)
        return self._send(status, answer)

    def _fail(self, fault: Fault) -> None:
        deadline = time.monotonic() + 20.0
        while fault.hangs and not self.api.closed and time.monotonic() < deadline:
            time.sleep(0.02)
        if fault.status:
            return self._status(fault.status, fault.reason, fault.message, fault.details)
        self.close_connection = True
        self.connection.close()
        return None

    def _status(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self._send(code, _status(code, reason, message, details))

    def _send(self, code: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, method: str, match: re.Match[str], query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        api, kind, name = self.api, match["kind"], match["name"]
        with api.changed:
            if method == "POST":
                name = body["metadata"]["name"]
                if (kind, name) in api.objects:
                    return 409, _status(409, "AlreadyExists", f'{kind} "{name}" already exists')
                return 201, api.put(kind, {**body, "metadata": {**body["metadata"], "namespace": match["namespace"]}})
            if name is None:
                found = [each for (of, _), each in sorted(api.objects.items()) if of == kind and _selected(each, query)]
                for each in found if method == "DELETE" else ():
                    self._delete(kind, each, {})
                return 200, {"kind": "List", "metadata": {"resourceVersion": str(api.version)}, "items": found}
            if (kind, name) not in api.objects:
                return 404, _status(404, "NotFound", f'{kind} "{name}" not found')
            if method == "DELETE":
                self._delete(kind, api.objects[kind, name], body or {})
            return 200, api.objects.get((kind, name), {})

    def _delete(self, kind: str, each: dict[str, Any], options: Mapping[str, Any]) -> None:
        """Pods that are placed are only asked to end; what a Service owns goes with it."""
        name = each["metadata"]["name"]
        uids = {owner["uid"] for other in self.api.objects.values() for owner in other["metadata"].get("ownerReferences", ())}
        ends_itself = kind == "pods" and each.get("spec", {}).get("nodeName") and options.get("gracePeriodSeconds") != 0
        if ends_itself or (options.get("propagationPolicy") == "Foreground" and each["metadata"]["uid"] in uids):
            self.api.put(kind, {**each, "metadata": {**each["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        else:
            self.api.remove(kind, name)

    def _watch(self, kind: str, query: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since, began = int(query["resourceVersion"]), self.api.oldest
        while not self.api.closed:
            with self.api.changed:
                if since < self.api.oldest:
                    self._chunk({"type": "ERROR", "object": _status(410, "Expired", "too old resource version")})
                    break
                if began != self.api.oldest:
                    break
                news = [(version, event, each) for version, event, each in self.api.history if version > since and each.get("kind") == "Pod"]
                if not news:
                    self.api.changed.wait(0.05)
            for version, event, each in news:
                since = version
                if kind == "pods" and _selected(each, query):
                    self._chunk({"type": event, "object": each})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: Any) -> None:
        data = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _status(code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details or {}}


def _selected(each: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    wanted = [pair.partition("=") for pair in query.get("labelSelector", "").split(",") if pair]
    labels = each["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, _, value in wanted)


@contextmanager
def kubernetes_speaking() -> Iterator[tuple[FakeApi, str]]:
    """Yields a server that speaks, and its URL."""
    fake = FakeApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        fake.closed = True
        server.shutdown()
        thread.join()
        server.server_close()


def api_at(url: str, *, answer_s: float = 5.0) -> Api:
    """Returns a connection to it."""
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.host = url
    return Api(configuration, namespace="lab", answer_s=answer_s)
