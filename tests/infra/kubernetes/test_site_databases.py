"""What the database's first start runs: roles get the passwords of the Secret, and no log has them."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.fakes.kubernetes_site import BASE
from tests.fakes.postgres_server import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.services]

PREFECT, MLFLOW = "headrace_prefect", "headrace_mlflow"


def set_passwords(database: PostgresServer, *, prefect: str, mlflow: str) -> str:
    """Runs the script as the image does; returns what it printed."""
    file = f"--file={BASE / 'passwords.sql'}"
    done = database.call("psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", file, PREFECT_PASSWORD=prefect, MLFLOW_PASSWORD=mlflow)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def reaches(database: PostgresServer, role: str, password: str) -> bool:
    """Whether a role gets in by the address, as servers do: the password by the environment, none in the URL."""
    url = f"postgresql://{role}@127.0.0.1:{database.port}/{role}"
    env = {**database.env, "PGPASSWORD": password, "PGPASSFILE": os.devnull}
    return subprocess.run(("psql", "--no-psqlrc", url, "--command=SELECT 1"), env=env, capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def changed(database: PostgresServer) -> Iterator[dict[str, str]]:
    """Passwords that somebody else's taste might choose. Those that other tests know are set again."""
    wanted = {PREFECT: 'it\'s; a \\ $1 "one"', MLFLOW: "another"}
    printed = set_passwords(database, prefect=wanted[PREFECT], mlflow=wanted[MLFLOW])
    assert not any(password in printed for password in wanted.values())
    yield wanted
    set_passwords(database, prefect=database.passwords[PREFECT], mlflow=database.passwords[MLFLOW])


def test_each_role_gets_in_by_its_own_password_alone(database: PostgresServer, changed: dict[str, str]) -> None:
    assert all(reaches(database, role, password) for role, password in changed.items())
    assert not reaches(database, PREFECT, database.passwords[PREFECT])
    assert not reaches(database, PREFECT, changed[MLFLOW])


def test_what_is_asked_to_change_them_is_in_no_log(database: PostgresServer, changed: dict[str, str]) -> None:
    text = "".join(path.read_text(errors="replace") for path in database.folder.glob("*.log"))
    assert not any(password in text for password in changed.values())
