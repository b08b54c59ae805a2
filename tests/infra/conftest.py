"""A database with a Prefect server on it, which the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.finished_pipeline import new_canary
from tests.fakes.postgres_server import DATABASES, PostgresServer, postgres_serving
from tests.fakes.postgres_services import install, prefect_on
from tests.fakes.prefect_lab import PrefectLab


@pytest.fixture(scope="session")
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL with the services' databases and passwords of theirs."""
    with postgres_serving({role: new_canary() for role in DATABASES}) as server:
        yield server


@pytest.fixture(scope="session")
def services_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State and logs of the servers, and what was installed."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def prefect(database: PostgresServer, services_folder: Path) -> Iterator[PrefectLab]:
    """The Prefect server as installed, on the database."""
    with prefect_on(database, services_folder, settings=install(services_folder / "installed")) as lab:
        yield lab
