"""One finished pipeline for all tests that only look at it: real Prefect server, real MLflow server over HTTP."""

from collections.abc import Iterator

import pytest

from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.tiny_pipeline import Project, make_project


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Project:
    project = make_project(tmp_path_factory.mktemp("finished") / "project", changes={"tracking.mlflow_uri": mlflow_server.uri})
    done = project.headrace("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return project
