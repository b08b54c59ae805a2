"""The Prefect server's own process: serves on the socket it was handed, watches its users, and ends when none is left.

Started by `flows.prefect_server`, which explains the locks.
"""

import argparse
import contextlib
import fcntl
import importlib.metadata
import os
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

_WATCH_S = 0.5
_LINGER_S = 2.0
"""Seconds without a user before the server ends: a next command joins instead of starting another."""
_SHUTDOWN_S = 10.0


def main() -> None:
    """Serves until the last user is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="PREFECT_HOME")
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--lock", type=int, required=True, help="descriptor that holds server.lock; kept open until the end")
    arguments = parser.parse_args()
    home: Path = arguments.home
    current = prepare_database(home)
    os.environ["PREFECT_API_DATABASE_MIGRATE_ON_START"] = "false" if current else "true"

    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(final=True), log_level="warning", timeout_graceful_shutdown=2))
    threading.Thread(target=_watch, args=(home, server), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=arguments.listener)])
    os._exit(0)  # Prefect's threads may linger; the locks go with the process


# ---- the database -----------------------------------------------------------------------------------------------------


def template_path() -> Path | None:
    """Returns where this environment keeps an empty database at the newest schema, or None when it may not be written.

    Prefect's hundred migrations cost 10 cpu-seconds on a new database; a copy of the outcome costs nothing.
    """
    if sys.prefix == sys.base_prefix or not os.access(sys.prefix, os.W_OK):
        return None
    return Path(sys.prefix) / "share" / "headrace" / f"prefect-{importlib.metadata.version('prefect')}.db"


def prepare_database(home: Path) -> bool:
    """Makes `prefect.db` ready and returns whether its schema is current, so that the server need not look.

    A new database is copied from the environment's template, which the first start ever makes. A database of another
    Prefect version is left to Prefect's own migration.
    """
    database, version = home / "prefect.db", importlib.metadata.version("prefect")
    mark = home / "schema-version"
    if database.exists():
        return mark.exists() and mark.read_text(encoding="utf-8") == version
    template = template_path()
    if template is not None and template.exists():
        _copy(template, database)
    else:
        _migrate()
        if template is not None:
            template.parent.mkdir(parents=True, exist_ok=True)
            _copy(database, template)
    mark.write_text(version, encoding="utf-8")
    return True


def _migrate() -> None:
    """Creates the database that Prefect's settings name. Killed half-way, the next start goes on: there is no mark yet."""
    import asyncio

    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())


def _copy(source: Path, target: Path) -> None:
    """Copies a database through SQLite, which minds its journal, and puts it in place whole."""
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    with contextlib.closing(sqlite3.connect(source)) as original, contextlib.closing(sqlite3.connect(temporary)) as copy:
        original.backup(copy)
    temporary.replace(target)


# ---- the users --------------------------------------------------------------------------------------------------------


def _watch(home: Path, server: "uvicorn.Server") -> None:
    """Ends `server` once no user has lived for a while."""
    last_used = time.monotonic()
    while True:
        time.sleep(_WATCH_S)
        if _users(home, alive=True):
            last_used = time.monotonic()
        elif time.monotonic() - last_used > _LINGER_S and _leave(home):
            server.should_exit = True
            time.sleep(_SHUTDOWN_S)
            os._exit(0)  # a client that keeps its connection open must not keep us


def _leave(home: Path) -> bool:
    """Takes the server's address away, unless a user came in the meantime."""
    try:
        descriptor = os.open(home / "join.lock", os.O_RDWR)
    except FileNotFoundError:  # somebody removed the state folder
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _users(home, alive=True):
            return False
        for path in _users(home, alive=False):  # under join.lock: nobody is between making a file and locking it
            path.unlink(missing_ok=True)
        (home / "server.json").unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _users(home: Path, *, alive: bool) -> list[Path]:
    """Returns the user files whose process lives, or those whose process is dead."""
    found: list[Path] = []
    for path in _user_files(home / "users"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = False
        except BlockingIOError:
            held = True
        finally:
            os.close(descriptor)
        found += [path] if held is alive else []
    return found


def _user_files(folder: Path) -> tuple[Path, ...]:
    """Returns the files of users, dead or alive; none when somebody removed their folder, be it in the midst of this."""
    try:
        return tuple(path for path in folder.iterdir() if "-" in path.name)
    except FileNotFoundError:
        return ()
