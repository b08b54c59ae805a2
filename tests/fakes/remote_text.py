"""Places where raw text may lie behind a URL: memory, a real S3 server, a web server; alike for whoever puts files there."""

import contextlib
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from cluster.s3_requests import S3Requests
from tests.fakes.s3_server import BUCKET


class Place(Protocol):
    """A folder of files behind a URL."""

    url: str

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, in place of what is there."""

    def remove(self, name: str) -> None:
        """Removes a file."""


class InMemory:
    """fsspec's memory, which threads of this process share."""

    def __init__(self) -> None:
        import fsspec

        self.url, self._fs = f"memory://texts-{secrets.token_hex(4)}", fsspec.filesystem("memory")

    def put(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(f"{self.url}/{name}", content)

    def remove(self, name: str) -> None:
        self._fs.rm_file(f"{self.url}/{name}")


class InBucket:
    """A prefix of the S3 server's bucket."""

    def __init__(self) -> None:
        self._prefix = f"texts-{secrets.token_hex(4)}"
        self.url, self._s3 = f"s3://{BUCKET}/{self._prefix}", S3Requests(BUCKET, url=f"s3://{BUCKET}")

    def put(self, name: str, content: bytes) -> None:
        self._s3.call("put_object", Key=f"{self._prefix}/{name}", Body=content)

    def remove(self, name: str) -> None:
        self._s3.call("delete_object", Key=f"{self._prefix}/{name}")


@dataclass
class OnWeb:
    """A web server that knows no ranges and lists nothing."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    """Statuses of files that are not given out."""
    says: dict[str, dict[str, str]] = field(default_factory=dict)
    """Headers of files; default: an ETag that is one of their content."""
    asked: list[str] = field(default_factory=list)
    """Method and name of every request."""

    def put(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def remove(self, name: str) -> None:
        del self.files[name]


@contextlib.contextmanager
def web_serving() -> Iterator[OnWeb]:
    """Runs a web server in threads of this process, as long as the body."""
    place = OnWeb()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            name = self.path.strip("/")
            place.asked.append(f"{self.command} {name}")
            content = place.files.get(name, b"")
            status = place.answers.get(name, 200 if name in place.files else 404)
            self.send_response(status)
            for key, value in place.says.get(name, {"ETag": f'"{hash(content)}"', "Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if has_body and status == 200:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    place.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield place
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
