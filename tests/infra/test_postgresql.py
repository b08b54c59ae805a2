"""Prefect's server on a real PostgreSQL, as its unit starts it; the scripts that back the databases up and restore them."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes.postgres_server import SERVICES, PostgresServer
from tests.fakes.postgres_services import MLFLOW, PREFECT
from tests.fakes.prefect_lab import PrefectLab

pytestmark = [pytest.mark.slow, pytest.mark.services]

BACKUP, RESTORE = (str(SERVICES / "postgresql" / name) for name in ("backup.sh", "restore.sh"))


def run_flow(prefect: PrefectLab, how: str) -> int:
    """Runs a flow in a process of its own; returns its exit code."""
    argv = (sys.executable, "-m", "tests.fakes.ending_flow", "tried", how)
    return subprocess.run(argv, env=prefect.env, capture_output=True, timeout=120).returncode


# ---- Prefect's server -------------------------------------------------------------------------------------------------


def test_a_flow_run_completes_and_is_in_the_database(prefect: PrefectLab, database: PostgresServer) -> None:
    assert run_flow(prefect, "well") == 0
    assert "COMPLETED" in database.sql("SELECT DISTINCT state_type FROM flow_run", database=PREFECT).splitlines()


def test_without_the_key_nothing_is_answered_but_that_it_lives(prefect: PrefectLab) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(urllib.request.Request(f"{prefect.url}/flow_runs/count", b"{}"), timeout=20)


def test_the_password_is_in_no_command_line_no_environment_and_no_log(prefect: PrefectLab, database: PostgresServer, services_folder: Path) -> None:
    assert prefect.get("health")
    seen = [process.info for process in psutil.process_iter(["cmdline", "environ"])]
    servers = [info for info in seen if str(services_folder) in (info["environ"] or {}).get("PREFECT_HOME", "")]
    assert servers, "the server was seen"
    held = [text for info in servers for text in (*info["cmdline"], *info["environ"].values())]
    held += [log.read_text() for log in services_folder.glob("*.log")]
    assert [text for text in held for password in database.passwords.values() if password in text] == []


def test_it_goes_on_after_its_database_was_cut_off(prefect: PrefectLab, database: PostgresServer) -> None:
    database.stop_at_once()
    with pytest.raises(urllib.error.HTTPError, match="50"):
        prefect.post("flow_runs/count", {})
    database.start()
    assert run_flow(prefect, "well") == 0


# ---- scripts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(database: PostgresServer) -> Iterator[PostgresServer]:
    """MLflow's database with something in it."""
    database.sql("CREATE TABLE mills (name text); INSERT INTO mills VALUES ('upper'), ('lower')", database=MLFLOW)
    yield database
    database.sql("DROP TABLE IF EXISTS mills", database=MLFLOW)
    for name in databases(database, like="_before_"):
        database.sql(f'DROP DATABASE "{name}"')


def databases(server: PostgresServer, *, like: str) -> list[str]:
    return [name for name in server.sql("SELECT datname FROM pg_database ORDER BY 1").splitlines() if like in name]


def mills(server: PostgresServer) -> list[str]:
    return server.sql("SELECT name FROM mills ORDER BY 1", database=MLFLOW).splitlines()


def test_what_was_backed_up_comes_back_and_what_was_there_is_kept(filled: PostgresServer, tmp_path: Path) -> None:
    filled.run(BACKUP, str(tmp_path), MLFLOW)
    (dump,) = tmp_path.iterdir()
    assert dump.stat().st_mode & 0o077 == 0
    filled.sql("DELETE FROM mills WHERE name = 'upper'", database=MLFLOW)
    said = filled.run(RESTORE, MLFLOW, str(dump))
    assert "1 tables, 2 rows" in said
    assert mills(filled) == ["lower", "upper"]
    (before,) = databases(filled, like="_before_")
    assert filled.sql("SELECT name FROM mills", database=before) == "lower"
    rights = filled.sql(
        f"SELECT has_database_privilege('{PREFECT}', '{MLFLOW}', 'CONNECT'), pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{MLFLOW}'"
    )
    assert rights == f"f|{MLFLOW}", "a restored database is as closed as it was"


def test_older_dumps_go_when_newer_ones_proved_good(filled: PostgresServer, tmp_path: Path) -> None:
    old = [tmp_path / f"{MLFLOW}-2026010{day}T000000Z.dump" for day in range(1, 5)]
    for path in (*old, tmp_path / "mine.dump", tmp_path / f"{MLFLOW}-20260101T000000Z.dump.part"):
        path.touch()
    assert filled.call(BACKUP, str(tmp_path), MLFLOW, KEEP="3").returncode == 0
    assert [path.exists() for path in old] == [False, False, True, True]
    assert (tmp_path / "mine.dump").exists()
    assert list(tmp_path.glob("*.part")) == []


def test_a_dump_that_cannot_be_restored_removes_nothing(filled: PostgresServer, tmp_path: Path) -> None:
    """The rehearsal needs a database's rights, and a disk with room: a role that may not create databases stands for both."""
    filled.sql("CREATE ROLE weak LOGIN; GRANT pg_read_all_data TO weak; GRANT CONNECT ON DATABASE headrace_mlflow TO weak")
    old = tmp_path / f"{MLFLOW}-20260101T000000Z.dump"
    old.touch()
    done = filled.call(BACKUP, str(tmp_path), MLFLOW, KEEP="1", PGUSER="weak")
    filled.sql("REVOKE ALL ON DATABASE headrace_mlflow FROM weak; DROP ROLE weak")
    assert done.returncode != 0
    assert old.exists()
    assert [path.name for path in tmp_path.glob("*.dump")] == [old.name]


def test_two_backups_into_one_folder_do_not_mix(filled: PostgresServer, tmp_path: Path) -> None:
    with subprocess.Popen(("flock", str(tmp_path), "sh", "-c", "echo held; exec sleep 600"), stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = filled.call(BACKUP, str(tmp_path), MLFLOW)
        holder.kill()
    assert (done.returncode, "another backup" in done.stderr) == (8, True)


def test_a_damaged_or_strange_dump_changes_nothing(filled: PostgresServer, tmp_path: Path) -> None:
    filled.run(BACKUP, str(tmp_path), MLFLOW)
    (dump,) = tmp_path.iterdir()
    torn, flipped, text = tmp_path / "torn.dump", tmp_path / "flipped.dump", tmp_path / "text.dump"
    content = dump.read_bytes()
    torn.write_bytes(content[:-20])
    middle = len(content) - 30
    flipped.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    text.write_text("-- SQL\n")
    filled.sql("DELETE FROM mills WHERE name = 'upper'", database=MLFLOW)
    codes = {path.name: filled.call(RESTORE, MLFLOW, str(path)).returncode for path in (torn, flipped, text)}
    assert codes == {"torn.dump": 7, "flipped.dump": 7, "text.dump": 7}
    other = filled.call(RESTORE, PREFECT, str(dump))
    assert (other.returncode, "is not of headrace_prefect" in other.stderr) == (2, True)
    assert mills(filled) == ["lower"]
    assert databases(filled, like="_restoring") == databases(filled, like="_before_") == []


@pytest.mark.exhaustive  # PostgreSQL waits some seconds for the other to leave
def test_a_database_in_use_is_left_alone(filled: PostgresServer, tmp_path: Path) -> None:
    filled.run(BACKUP, str(tmp_path), MLFLOW)
    (dump,) = tmp_path.iterdir()
    argv = ("psql", "-Xqt", f"--dbname={MLFLOW}", "--command=SELECT 'in'", "--file=-")
    with subprocess.Popen(argv, env=filled.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdin is not None
        assert "in" in user.stdout.readline()
        done = filled.call(RESTORE, MLFLOW, str(dump))
        user.stdin.close()
    assert (done.returncode, "systemctl stop headrace-mlflow" in done.stderr) == (8, True), done.stderr
    assert mills(filled) == ["lower", "upper"]
    assert databases(filled, like="_restoring") == databases(filled, like="_before_") == []
    assert os.listdir(tmp_path) == [dump.name]
