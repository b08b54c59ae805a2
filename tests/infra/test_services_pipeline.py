"""A pipeline with both servers on PostgreSQL: the database is cut off in mid-training, backed up, lost and restored, and lost without a backup."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from schemas.exit_code import ExitCode
from tests.fakes.finished_pipeline import Watch, new_canary
from tests.fakes.postgres_server import DATABASES, SERVICES, PostgresServer, postgres_serving
from tests.fakes.postgres_services import MLFLOW, PREFECT, install, mlflow_on, prefect_on
from tests.fakes.prefect_lab import PrefectLab, wait_until
from tests.fakes.server_process import free_port
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = [pytest.mark.exhaustive, pytest.mark.services]

BACKUP, RESTORE = (str(SERVICES / "postgresql" / name) for name in ("backup.sh", "restore.sh"))
RESUMABLE = (ExitCode.UNREACHABLE, ExitCode.INTERRUPTED)
_TRAINING = {"training.steps": 120, "checkpoint.every_steps": 5, "tracking.validate_every_steps": 60}
_STEPS_WITHOUT = 60
"""How many steps are taken while there is no database: many hand-overs to MLflow fail meanwhile."""
_FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'could not extend file: No space left on device'; END $$;
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
    EXECUTE format('CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON %I EXECUTE FUNCTION full_disk()', name);
  END LOOP; END $$
"""


@dataclass(frozen=True)
class Site:
    """A database, where servers keep their state, and a user's project."""

    database: PostgresServer
    folder: Path
    settings: Path
    mlflow_port: int
    project: Project

    @contextlib.contextmanager
    def up(self) -> Iterator[PrefectLab]:
        """Runs both servers as long as the body."""
        with (
            prefect_on(self.database, self.folder, settings=self.settings) as prefect,
            mlflow_on(self.database, self.folder, settings=self.settings, port=self.mlflow_port) as mlflow,
        ):
            assert mlflow.uri == f"http://127.0.0.1:{self.mlflow_port}"
            yield prefect

    def headrace(self, prefect: PrefectLab, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs `headrace` as a user of both servers."""
        return self.project.headrace(*arguments, env=of_a_user(prefect))

    def start(self, prefect: PrefectLab, *arguments: str) -> "subprocess.Popen[bytes]":
        """Starts it and returns at once."""
        return replace(self.project, secrets=of_a_user(prefect)).start(*arguments)

    def said(self) -> str:
        """The end of what was printed by a command that was started, and by the servers."""
        files = (self.project.folder / "output.log", self.folder / "mlflow.log", self.folder / "prefect.log")
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in files if file.exists())

    def committed_step(self) -> int:
        """The step of the newest commit; 0: there is none."""
        return max((int(path.stem.rpartition("-")[2]) for path in self.project.root.glob("train/*/commits/step-*.json")), default=0)

    def flow_runs(self) -> list[str]:
        """The flow runs with their states, as the database has them."""
        return self.database.sql("SELECT name || ' ' || state_type FROM flow_run ORDER BY 1", database=PREFECT).splitlines()

    def versions(self) -> list[str]:
        """The registered versions, as the database has them."""
        return self.database.sql("SELECT name || ' ' || version FROM model_versions ORDER BY 1", database=MLFLOW).splitlines()

    def loss_steps(self) -> list[int]:
        """The steps whose loss MLflow knows."""
        return [int(line) for line in self.database.sql("SELECT step FROM metrics WHERE key = 'loss' ORDER BY 1", database=MLFLOW).splitlines()]

    def fill_disk(self) -> None:
        """From now on MLflow's tables answer what they answer on a disk without room."""
        self.database.sql(_FULL, database=MLFLOW)

    def empty_disk(self) -> None:
        """There is room again."""
        self.database.sql("DROP FUNCTION full_disk CASCADE", database=MLFLOW)


def of_a_user(prefect: PrefectLab) -> dict[str, str]:
    """What a user of the Prefect server has in the environment."""
    return {name: prefect.env[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    project = make_project(folder / "project", changes={**_TRAINING, "tracking.mlflow_uri": f"http://127.0.0.1:{port}"})
    with postgres_serving({role: new_canary() for role in DATABASES}) as database:
        yield Site(database, folder, install(folder / "installed"), port, project)
    project.end()


@dataclass(frozen=True)
class CutOff:
    """A run whose database was cut off in mid-training, and came back."""

    codes: tuple[int, ...]
    """Of the run, and of every `headrace resume` after it."""
    watch: Watch
    secrets: tuple[str, ...]


@pytest.fixture(scope="module")
def cut_off(site: Site) -> CutOff:
    with site.up() as prefect:
        secrets = (*site.database.passwords.values(), prefect.env["PREFECT_API_AUTH_STRING"].partition(":")[2])
        with Watch(site.project.folder, secrets) as watch:
            process = site.start(prefect, "run", "tiny.yaml")
            wait_until(lambda: process.poll() is not None or site.committed_step() >= 20, what=site.said)
            assert process.poll() is None, site.said()
            site.database.stop_at_once()
            # To its end at most: the training does not wait for who cuts it off.
            enough = min(site.committed_step() + _STEPS_WITHOUT, _TRAINING["training.steps"])
            wait_until(lambda: site.committed_step() >= enough, what=site.said)
            site.database.start()
            codes = [process.wait(timeout=300)]
            while codes[-1] in RESUMABLE and len(codes) < 4:
                codes.append(site.headrace(prefect, "resume", "last").returncode)
    return CutOff(tuple(codes), watch, secrets)


def test_a_run_outlives_its_database_and_makes_one_version(site: Site, cut_off: CutOff) -> None:
    assert cut_off.codes[-1] == ExitCode.DONE, (cut_off.codes, site.said())
    assert set(cut_off.codes[:-1]) <= set(RESUMABLE)
    assert site.versions() == ["tiny 1"]
    assert site.database.sql("SELECT count(*) FROM runs", database=MLFLOW) == "1"
    assert site.loss_steps() == list(range(1, _TRAINING["training.steps"] + 1)), "what waited was handed over, once"


def test_no_secret_reaches_compute_a_command_line_or_a_file(site: Site, cut_off: CutOff) -> None:
    assert len(cut_off.watch.compute_pids) >= 4, "ranks and items were seen"
    assert cut_off.watch.leaks == set()
    files = [path for path in site.folder.rglob("*") if path.is_file() and not path.name.endswith(".secret.env")]
    assert len(files) > 100
    assert [str(path) for path in files for secret in cut_off.secrets if secret.encode() in path.read_bytes()] == []


def test_both_databases_are_lost_and_come_back_from_the_backup(site: Site, cut_off: CutOff, tmp_path: Path) -> None:
    with site.up():  # a backup stops nobody
        site.database.run(BACKUP, str(tmp_path), *DATABASES)
    before = [site.flow_runs(), site.versions(), site.loss_steps()]
    for name in DATABASES:
        site.database.sql(f"DROP DATABASE {name}")
        (dump,) = tmp_path.glob(f"{name}-*.dump")
        site.database.run(RESTORE, name, str(dump))
    assert [site.flow_runs(), site.versions(), site.loss_steps()] == before
    with site.up() as prefect:
        done = site.headrace(prefect, "verify", "models:/tiny@champion")
        assert done.returncode == 0, done.stdout + done.stderr
        again = site.headrace(prefect, "run", "tiny.yaml", "--from", "register")
        assert again.returncode == 0, again.stdout + again.stderr
    assert site.versions() == ["tiny 1"], "the restored version was found"


def test_without_a_backup_the_model_is_registered_anew_once_the_disk_has_room(site: Site, cut_off: CutOff) -> None:
    for name in DATABASES:
        site.database.sql(f"DROP DATABASE {name}")
    site.database.run("psql", "-Xq", f"--file={SERVICES / 'postgresql' / 'databases.sql'}", "--dbname=postgres")
    with site.up() as prefect:
        site.fill_disk()
        refused = site.headrace(prefect, "run", "tiny.yaml", "--from", "register")
        assert refused.returncode == ExitCode.UNREACHABLE, refused.stdout + refused.stderr
        assert "Traceback" not in refused.stdout + refused.stderr
        assert site.versions() == []
        site.empty_disk()
        resumed = site.headrace(prefect, "resume", "last")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert site.headrace(prefect, "verify", "models:/tiny@champion").returncode == 0
    assert site.versions() == ["tiny 1"]
