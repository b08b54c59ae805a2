"""One Prefect server per state folder: joined by its users, gone after the last, however they end."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import prefect_server_process
from flows.prefect_server import client_environment, ensure_server, is_healthy, prefect_home, wait_until_ready
from flows.prefect_server_process import prepare_database
from schemas.errors import UnreachableError
from tests.fakes.child_process import running

CHECKOUT = Path(__file__).resolve().parents[2]
USER = """
import sys, time
from pathlib import Path
from flows.prefect_server import ensure_server
print(ensure_server(Path(sys.argv[1]), wait=False), flush=True)
sys.stdin.readline()
"""


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def removed(folder: Path) -> bool:
    """Removes a folder, and says whether it is gone: a process that still writes there may put a file into it meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


UserProcess = subprocess.Popen[str]


@pytest.fixture
def start_user() -> Iterator[Callable[[Path], UserProcess]]:
    """Returns a function that starts a user of a state folder; those that are left when the test ends are killed."""
    with contextlib.ExitStack() as left:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        yield lambda state: left.enter_context(running(sys.executable, "-c", USER, str(state), cwd=CHECKOUT, text=True, **pipes))


def url_of(user: UserProcess) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def end(user: UserProcess, number: int = signal.SIGTERM) -> None:
    user.send_signal(number)
    user.communicate()


def server_pid(state: Path) -> int:
    pid: int = json.loads((prefect_home(state) / "server.json").read_text())["pid"]
    return pid


@pytest.mark.slow
def test_users_share_one_server_which_ends_with_the_last(tmp_path: Path, start_user: Callable[[Path], UserProcess]) -> None:
    users = [start_user(tmp_path) for _ in range(4)]
    (url,) = {url_of(user) for user in users}  # all at once, and one server
    pid = server_pid(tmp_path)
    wait_until_ready(tmp_path, url)
    children = psutil.Process(pid).children(recursive=True)
    assert children == []
    for user in users[:2]:
        end(user, signal.SIGKILL)
    end(users[2])
    time.sleep(3.0)
    assert is_healthy(url, timeout_s=30.0)  # one user is left
    late = start_user(tmp_path)
    assert url_of(late) == url
    end(users[3], signal.SIGKILL)
    end(late)
    assert wait_for(lambda: not psutil.pid_exists(pid))
    assert not is_healthy(url)
    assert not (prefect_home(tmp_path) / "server.json").exists()
    assert list((prefect_home(tmp_path) / "users").iterdir()) == []


@pytest.mark.slow
def test_a_killed_server_is_replaced_and_a_removed_state_folder_ends_it(tmp_path: Path, start_user: Callable[[Path], UserProcess]) -> None:
    state = tmp_path / "state"
    user = start_user(state)
    assert url_of(user)
    first = server_pid(state)
    os.kill(first, signal.SIGKILL)
    assert wait_for(lambda: not psutil.pid_exists(first))
    next_user = start_user(state)
    second_url, second = url_of(next_user), server_pid(state)
    assert second != first
    wait_until_ready(state, second_url)
    end(user)
    assert wait_for(lambda: removed(state))
    assert wait_for(lambda: not psutil.pid_exists(second))
    end(next_user)


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    home = prefect_home(tmp_path)
    home.mkdir()
    (home / "prefect.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(UnreachableError, match="ended while it started") as caught:
        ensure_server(tmp_path)
    assert "not a database" in caught.value.why
    assert str(home / "server.log") in caught.value.mend


def test_silence_is_not_health(tmp_path: Path) -> None:
    assert not is_healthy("http://127.0.0.1:1/api", timeout_s=0.5)
    with pytest.raises(UnreachableError):
        wait_until_ready(tmp_path, "http://127.0.0.1:1/api", timeout_s=0.2)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (401, True), (404, True), (500, False), (503, False)])
def test_an_answer_is_health_unless_the_server_says_that_it_is_ill(status: int, healthy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy is not asked for our own machine
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert is_healthy(f"http://127.0.0.1:{server.server_port}/api", timeout_s=30.0) is healthy
        server.shutdown()
    assert not is_healthy("not a url")


def test_ambient_settings_do_not_count(tmp_path: Path) -> None:
    environment = {
        "PREFECT_API_URL": "http://cloud",
        "PREFECT_API_KEY": "geheim",
        "PREFECT_PROFILE": "work",
        "PATH": "/bin",
        "no_proxy": "example.com",
    }
    assert client_environment(environment, state_dir=tmp_path, ambient=False) is None
    assert "geheim" not in environment.values()
    assert "PREFECT_API_URL" not in environment
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["NO_PROXY"] == "example.com,127.0.0.1,localhost"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_an_explicit_url_counts_and_brings_its_settings(tmp_path: Path) -> None:
    environment = {"PREFECT_API_URL": "http://team:4200/api", "PREFECT_API_KEY": "k"}
    assert client_environment(environment, state_dir=tmp_path, ambient=True) == "http://team:4200/api"
    assert environment["PREFECT_API_KEY"] == "k"
    assert "PREFECT_HOME" not in environment


def test_without_a_url_other_ambient_settings_do_not_count_either(tmp_path: Path) -> None:
    environment = {"PREFECT_HOME": "/home/me/.prefect", "PREFECT_PROFILE": "cloud"}
    assert client_environment(environment, state_dir=tmp_path, ambient=True) is None
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert "PREFECT_PROFILE" not in environment


@pytest.fixture
def migrations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Counts migrations instead of running them; they make a database with one table."""
    done: list[Path] = []

    def migrate() -> None:
        database = tmp_path / f"home{len(done)}" / "prefect.db"
        with sqlite3.connect(database) as connection:
            connection.execute("create table flow (id)")
        connection.close()
        done.append(database)

    monkeypatch.setattr(prefect_server_process, "_migrate", migrate)
    monkeypatch.setattr(prefect_server_process, "template_path", lambda: tmp_path / "share" / "template.db")
    for name in ("home0", "home1"):
        (tmp_path / name).mkdir()
    return done


def tables(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    names = [row[0] for row in connection.execute("select name from sqlite_master")]
    connection.close()
    return names


def test_only_the_first_database_of_an_environment_is_migrated(tmp_path: Path, migrations: list[Path]) -> None:
    assert prepare_database(tmp_path / "home0")
    assert prepare_database(tmp_path / "home1")
    assert len(migrations) == 1
    assert tables(tmp_path / "home1" / "prefect.db") == ["flow"]
    assert prepare_database(tmp_path / "home1")  # current: nothing is looked at again


def test_a_database_of_another_version_is_left_to_prefect(tmp_path: Path, migrations: list[Path]) -> None:
    prepare_database(tmp_path / "home0")
    (tmp_path / "home0" / "schema-version").write_text("2.0.0")
    assert not prepare_database(tmp_path / "home0")
    (tmp_path / "home0" / "schema-version").unlink()  # killed while it migrated
    assert not prepare_database(tmp_path / "home0")
    assert len(migrations) == 1


def test_users_whose_folder_goes_while_it_is_listed_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that ends the server must not die of it."""
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "1-abcd").touch()
    assert prefect_server_process._users(tmp_path, alive=False) == [tmp_path / "users" / "1-abcd"]
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, vanishing(getattr(os, name), tmp_path / "users"))
    assert prefect_server_process._users(tmp_path, alive=False) == []


def vanishing(genuine: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Returns a listing before which the folder is renamed."""

    def listing(path: Any) -> Any:
        if path == folder:
            folder.rename(folder.with_name("gone"))
        return genuine(path)

    return listing
