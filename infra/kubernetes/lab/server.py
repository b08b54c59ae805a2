"""What the API server asks of a node: the logs of containers. And what the test asks: to evict a pod."""

import datetime as dt
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lab.logs import read
from lab.pod import PodRunner

Find = Callable[[str, str], PodRunner | None]
"""Namespace, name → the pod, if it is on this node."""


def serve(find: Find, *, address: str, port: int, pki: Path, name: str) -> None:
    """Serves for ever, to whoever has a certificate of the cluster's authority.

    Args:
        find: finds a pod.
        address: of the node.
        port: of the node's kubelet.
        pki: folder of certificates.
        name: of the node.
    """
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
    tls.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    tls.verify_mode = ssl.CERT_REQUIRED

    class Handler(_Handler):
        pods = staticmethod(find)

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    pods: Find
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests are no news."""

    def do_GET(self) -> None:
        """Answers with a log: /containerLogs/NAMESPACE/POD/CONTAINER."""
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
        match url.path.strip("/").split("/"):
            case ["containerLogs", namespace, pod, container]:
                self._log(namespace, pod, container, query)
            case _:
                self._say(404, "no such page")

    def do_POST(self) -> None:
        """Evicts: /evict/NAMESPACE/POD, with a message."""
        match self.path.strip("/").split("/"):
            case ["evict", namespace, name]:
                runner = self.pods(namespace, name)
                if runner is not None:
                    runner.evict(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
                self._say(*((200, "evicted") if runner is not None else (404, f'pods "{name}" not found')))
            case _:
                self._say(404, "no such page")

    def _log(self, namespace: str, pod: str, container: str, query: dict[str, str]) -> None:
        runner = self.pods(namespace, pod)
        slot = runner.slot(container) if runner is not None else None
        if slot is None:
            return self._say(404, f'container "{container}" in pod "{pod}" is not found')
        previous = query.get("previous") == "true"
        path = slot.previous_log if previous else slot.log()
        if not slot.log(0).exists():
            return self._say(400, f'container "{container}" in pod "{pod}" is waiting to start: {slot.state().reason}')
        if previous and not path.exists():
            return self._say(400, f'previous terminated container "{container}" in pod "{pod}" not found')
        follow = query.get("follow") == "true" and not previous
        lines = read(
            path,
            follow=lambda: follow and slot.running is not None,
            tail=int(query["tailLines"]) if "tailLines" in query else None,
            since=_since(query),
            timestamps=query.get("timestamps") == "true",
            limit=int(query["limitBytes"]) if "limitBytes" in query else None,
        )
        return self._stream(lines)

    def _stream(self, lines: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines:
                if line:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # whoever asked has gone
            self.close_connection = True

    def _say(self, code: int, text: str) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _since(query: dict[str, str]) -> str:
    if "sinceSeconds" in query:
        return (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(query["sinceSeconds"]))).strftime("%Y-%m-%dT%H:%M:%S")
    return query.get("sinceTime", "").removesuffix("Z")
