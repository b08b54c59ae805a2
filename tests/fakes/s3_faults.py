"""A proxy before an S3 server that does what large ones do now and then: says that it is busy, drops the connection, loses an answer."""

import contextlib
import http.client
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_BUSY = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
_HOP = frozenset({"connection", "transfer-encoding", "expect", "keep-alive"})
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


class Fault(Enum):
    """What happens to one request."""

    BUSY = "503 SlowDown, nothing is done"
    RESET = "the connection is reset, nothing is done"
    LOST_ANSWER = "the request is carried out, and the connection reset instead of an answer"


class Trouble:
    """Which requests fail, and how many did."""

    def __init__(self, upstream: str, *, share: float, seed: int) -> None:
        """Args: upstream: the server's endpoint. share: of requests that fail. seed: decides which."""
        self.upstream = upstream
        self.share = share
        self.forced: list[tuple[str, Fault]] = []
        """Faults that come for certain: each for the next request of this method."""
        self.struck: list[tuple[Fault, str]] = []
        """Faults, and the method and path they struck."""
        self.stalled: tuple[str, Callable[[], None]] | None = None
        """The first put of an object whose name ends so is carried out, and then this is done before anybody is told."""
        self._random, self._lock = random.Random(seed), threading.Lock()

    def stall(self, method: str, path: str) -> Callable[[], None]:
        """Returns what is done between a request and its answer."""
        with self._lock:
            if self.stalled is None or method != "PUT" or not path.partition("?")[0].endswith(self.stalled[0]):
                return lambda: None
            act, self.stalled = self.stalled[1], None
            return act

    def next(self, method: str, path: str) -> Fault | None:
        """Returns what happens to a request."""
        with self._lock:
            fault = self._next(method)
            if fault is not None:
                self.struck.append((fault, f"{method} {path}"))
            return fault

    def _next(self, method: str) -> Fault | None:
        for number, (wanted, fault) in enumerate(self.forced):
            if wanted == method:
                del self.forced[number]
                return fault
        return self._random.choice(list(Fault)) if self._random.random() < self.share else None


@contextlib.contextmanager
def troubled(upstream: str, *, share: float = 0.0, seed: int = 0) -> Iterator[tuple[str, Trouble]]:
    """Runs a proxy as long as the body, which gets its endpoint and what it does."""
    trouble = Trouble(upstream, share=share, seed=seed)

    class Handler(_Handler):
        """Requests of this proxy."""

    Handler.trouble = trouble
    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", trouble
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that are gone: tests kill them."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """Hands on one request after the other of a connection, the signed headers as they are."""

    protocol_version = "HTTP/1.1"
    trouble: Trouble

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.trouble.next(self.command, self.path)
        if fault is Fault.BUSY:
            self._answer(503, [("Content-Type", "application/xml")], _BUSY)
            return
        if fault is not Fault.RESET:
            status, headers, content = self._forward(body)
            self.trouble.stall(self.command, self.path)()
        if fault is None:
            self._answer(status, headers, content)
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.connection.close()
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815  # the names that http.server looks for

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        place = urlsplit(self.trouble.upstream)
        upstream = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        has_body = self.command != "HEAD" and status not in (204, 304)
        for name, value in headers:
            if name.lower() not in _HOP and not (has_body and name.lower() == "content-length"):
                self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
