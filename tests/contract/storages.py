"""The storages that are put to the contract suite: functions that return an empty one."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.storage import Storage, open_storage
from tests.fakes.s3_server import BUCKET

MakeStorage = Callable[[Path], Storage]


def _file(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "data"))


def _file_url(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path / 'data'}")


def _memory(_tmp_path: Path) -> Storage:
    return open_storage(f"memory://contract-{secrets.token_hex(4)}")


def _s3(_tmp_path: Path) -> Storage:
    return open_storage(f"s3://{BUCKET}/contract-{secrets.token_hex(4)}")


STORAGES: Mapping[str, MakeStorage] = {"path": _file, "file url": _file_url, "memory": _memory, "s3": _s3}
