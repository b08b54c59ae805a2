"""MLflow's own database comes into being whole or not at all, whatever is killed meanwhile."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.errors import UnreachableError
from tasks.mlflow_connection import MlflowConnection, TrackingTarget

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::DeprecationWarning")]

_OPEN = """
import sys
from pathlib import Path
from tasks.mlflow_connection import MlflowConnection, TrackingTarget
MlflowConnection(TrackingTarget(uri=sys.argv[1], artifact_root=Path(sys.argv[2]), experiment="demo")).client
"""


def target_in(folder: Path) -> TrackingTarget:
    return TrackingTarget(uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_root=folder / "artifacts", experiment="demo")


def num_tables(database: Path) -> int:
    """How far the migrations have come; a database that is locked at the moment is further than none."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.01) as connection:
            (count,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
        connection.close()
    except sqlite3.Error:
        return 0
    return int(count)


@pytest.mark.parametrize("tables", [1, 20])
def test_a_creation_that_is_killed_leaves_no_database_and_the_next_one_succeeds(tmp_path: Path, tables: int) -> None:
    target, new = target_in(tmp_path), tmp_path / "mlflow.db.new"
    with subprocess.Popen((sys.executable, "-c", _OPEN, target.uri, str(target.artifact_root))) as creating:
        deadline = time.monotonic() + 240.0  # it has to import MLflow first
        while num_tables(new) < tables:
            assert creating.poll() is None, "it must be killed in the middle"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        creating.kill()
    assert not (tmp_path / "mlflow.db").exists()
    assert MlflowConnection(target).experiment_id
    assert not new.exists()


def test_processes_that_begin_together_share_one_database(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    argv = (sys.executable, "-c", _OPEN, target.uri, str(target.artifact_root))
    together = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate(timeout=300)[1] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], told
    assert MlflowConnection(target).experiment_id


@pytest.mark.parametrize(
    ("message", "unreachable"),
    [
        ("(psycopg.errors.ReadOnlySqlTransaction) cannot execute INSERT in a read-only transaction", True),
        ("(psycopg.errors.NotNullViolation) null value in column", False),
    ],
)
def test_a_server_on_a_standby_database_is_out_of_reach_although_it_answers_400(tmp_path: Path, message: str, unreachable: bool) -> None:
    connection = MlflowConnection(target_in(tmp_path))
    connection.prepare()
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    with pytest.raises(UnreachableError if unreachable else MlflowException, match="psycopg"), connection.reaching("written to"):
        raise MlflowException(message, error_code=BAD_REQUEST)
