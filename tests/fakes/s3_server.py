"""A real S3 server, SeaweedFS, in a process of its own on loopback; with an identity that may do everything and one that may only read."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.server_process import free_port

BUCKET = "headrace"
_WRITER, _READER = ("WRITERKEY", "writer-secret-0123"), ("READERKEY", "reader-secret-0123")
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": _WRITER[0], "secretKey": _WRITER[1]}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": _READER[0], "secretKey": _READER[1]}],
            "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"],
        },
    ]
}
_PORTS = ("master", "volume", "filer", "s3", "admin")
_MAY_BE = range(12_000, 22_000)
_GRPC = 10_000
"""What each port's second one lies above it."""
_STARTUP_S = 120.0
_TRIES = 5


@dataclass(frozen=True)
class S3Server:
    """A server that answers, with an empty bucket."""

    endpoint: str

    def environment(self, *, endpoint: str = "", reads_only: bool = False) -> dict[str, str]:
        """Returns what a user's environment holds to reach it; `endpoint`: of a proxy before it."""
        key, secret = _READER if reads_only else _WRITER
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextlib.contextmanager
def s3_serving(folder: Path) -> Iterator[S3Server]:
    """Runs a server as long as the body."""
    (folder / "identities.json").write_text(json.dumps(_IDENTITIES))
    for _ in range(_TRIES):  # between the choice of ports and their use another process may take one
        ports = {name: free_port(_MAY_BE, above=_GRPC) for name in _PORTS}
        process = _start(folder, ports)
        try:
            server = S3Server(f"http://127.0.0.1:{ports['s3']}")
            if _comes_up(process, server):
                yield server
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a stop takes it half a minute, and what it wrote is a test's
            process.wait()
    raise AssertionError((folder / "s3.log").read_text(errors="replace")[-3000:])


def _start(folder: Path, ports: Mapping[str, int]) -> "subprocess.Popen[bytes]":
    data = folder / f"s3-{ports['s3']}"
    data.mkdir()
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{name}.port": port for name, port in ports.items()},
        "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
    }
    argv = [str(Path(sys.executable).parent / "weed"), "mini", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "s3.log").open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True)


def _comes_up(process: "subprocess.Popen[bytes]", server: S3Server) -> bool:
    """Makes the bucket once the server takes it; False when the server has ended."""
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(f"{server.endpoint}/healthz") and _make_bucket(server):
            return True
        time.sleep(0.1)
    return False


def _make_bucket(server: S3Server) -> bool:
    import botocore.session
    from botocore.exceptions import BotoCoreError, ClientError

    session, known = botocore.session.get_session(), server.environment()
    session.set_credentials(known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])
    client = session.create_client("s3", region_name="us-east-1", endpoint_url=server.endpoint)
    try:
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
        client.delete_object(Bucket=BUCKET, Key="ready")
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
