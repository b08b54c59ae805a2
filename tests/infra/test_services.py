"""What `infra/services` installs: units that systemd takes, settings that hold no secret, scripts that refuse what is wrong."""

import os
import re
import stat
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from tests.fakes.postgres_server import DATABASES, SERVICES
from tests.fakes.postgres_services import CHECKOUT, install, read_settings, unit
from tests.fakes.tiny_pipeline import ROOT

UNITS = sorted(path.name for path in (SERVICES / "systemd").iterdir())
SERVERS = ("headrace-prefect.service", "headrace-mlflow.service", "headrace-worker@.service")
SECRET = re.compile(r"(?i)(password|passwd|secret|token|auth_string|api_key)\w*=\S|://[^/\s:@]*:[^/\s@]+@")
"""An assignment of something secret, or a URL with a password."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    install(folder)
    return folder


# ---- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_systemd_takes_the_units(installed: Path) -> None:
    units = [str(path).replace("@.", "@slurm.") for path in (installed / "etc/systemd/system").iterdir()]
    assert len(units) == len(UNITS) == 5
    done = subprocess.run(("systemd-analyze", "verify", "--man=no", *units), capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "headrace" in line and "is not executable" not in line]
    assert ours == []


@pytest.mark.parametrize("name", SERVERS)
def test_what_a_unit_starts_is_there(name: str) -> None:
    program = unit(name).argv()[0]
    assert os.access(program, os.X_OK), program
    assert not SECRET.search(unit(name).path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_keeps_trying_while_its_database_is_away(name: str) -> None:
    sections = unit(name).sections
    assert sections["Unit"]["StartLimitIntervalSec"] == "0"
    assert sections["Service"]["Restart"] == "on-failure"


def test_a_worker_that_is_stopped_leaves_trainings_alone() -> None:
    assert unit("headrace-worker@.service").sections["Service"]["KillMode"] == "process"


def test_servers_are_the_accounts_that_postgresql_knows_and_backups_the_superuser() -> None:
    accounts = re.findall(r"^u (\w+) ", (SERVICES / "sysusers.conf").read_text(encoding="utf-8"), re.MULTILINE)
    users = {name: unit(name).sections["Service"]["User"] for name in SERVERS}
    assert set(users.values()) == set(accounts)
    assert (users["headrace-prefect.service"], users["headrace-mlflow.service"]) == DATABASES
    backup = unit("headrace-backup.service")
    assert backup.sections["Service"]["User"] == "postgres"
    assert (ROOT / Path(backup.command[0]).relative_to(CHECKOUT)).exists()
    assert backup.command[2:] == list(DATABASES)


def test_workers_serve_the_pools_of_the_deployments() -> None:
    pools = {
        deployment["work_pool"]["type"]: deployment["work_pool"]["name"]
        for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        if deployment["work_pool"]["type"] != "kubernetes"  # its worker is a pod
    }
    template = " ".join(unit("headrace-worker@.service").command[1:])
    assert pools == {kind: template.replace("%i", kind).rpartition("--pool ")[2] for kind in ("process", "slurm")}


# ---- settings ---------------------------------------------------------------------------------------------------------


def test_no_setting_is_secret_and_each_is_known_to_its_server() -> None:
    from prefect.settings import Settings

    mlflow = Path(str(metadata.distribution("mlflow").locate_file("mlflow")))  # not imported: that takes seconds
    sources = "".join((mlflow / name).read_text(encoding="utf-8") for name in ("environment_variables.py", "cli/__init__.py", "utils/cli_args.py"))
    known = {name.upper() for name in _prefect_names(Settings)} | set(re.findall(r"\bMLFLOW_\w+", sources)) | {"DO_NOT_TRACK"}
    for file in (SERVICES / "environment").iterdir():
        assert not SECRET.search(file.read_text(encoding="utf-8")), file
        assert set(read_settings(file)) - known == set(), file


def _prefect_names(model: Any, prefix: str = "prefect_") -> set[str]:
    """Every name that a setting of Prefect's has in the environment."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        choices = getattr(field.validation_alias, "choices", ())
        names |= {str(choice) for choice in choices if isinstance(choice, str)} | {f"{prefix}{name}"}
        if hasattr(field.annotation, "model_fields"):
            names |= _prefect_names(field.annotation, f"{prefix}{name}_")
    return names


def test_servers_listen_at_loopback_and_call_nobody() -> None:
    prefect, mlflow, worker = (read_settings(SERVICES / "environment" / f"{name}.env") for name in ("prefect", "mlflow", "worker"))
    assert (prefect["PREFECT_SERVER_API_HOST"], mlflow["MLFLOW_HOST"]) == ("127.0.0.1", "127.0.0.1")
    assert prefect["PREFECT_SERVER_ANALYTICS_ENABLED"] == worker["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert (mlflow["MLFLOW_DISABLE_TELEMETRY"], mlflow["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]) == ("true", "false")


@pytest.mark.parametrize(
    ("file", "key", "driver", "role"),
    [
        ("prefect.env", "PREFECT_API_DATABASE_CONNECTION_URL", "asyncpg", DATABASES[0]),
        ("mlflow.env", "MLFLOW_BACKEND_STORE_URI", "psycopg", DATABASES[1]),
    ],
)
def test_each_server_is_itself_to_postgresql(file: str, key: str, driver: str, role: str) -> None:
    url = make_url(read_settings(SERVICES / "environment" / file)[key])
    assert (url.drivername, url.username, url.password, url.database) == (f"postgresql+{driver}", role, None, role)
    assert dict(url.query) == {"host": "/var/run/postgresql"}, "by the socket, where no password is asked for"
    assert url.get_dialect()().driver == driver


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    settings = install(tmp_path)
    secrets = {path.name: path for path in settings.glob("*.secret.env")}
    assert {name for unit_name in SERVERS for name in unit(unit_name).settings if "secret" in name} == set(secrets)
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.values()} == {0o600}
    key = read_settings(secrets["prefect.secret.env"])["PREFECT_SERVER_API_AUTH_STRING"]
    assert re.fullmatch(r"headrace:[\w-]{32}", key)
    assert read_settings(secrets["worker.secret.env"])["PREFECT_API_AUTH_STRING"] == key
    (settings / "prefect.env").write_text("MINE=1\n")
    install(tmp_path)
    assert (settings / "prefect.env").read_text() == "MINE=1\n"
    assert read_settings(secrets["prefect.secret.env"])["PREFECT_SERVER_API_AUTH_STRING"] == key
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path not in secrets.values() and key.partition(":")[2] in path.read_text()]
    assert others == []


def test_units_name_the_checkout_that_they_were_installed_from(installed: Path) -> None:
    text = "".join(path.read_text() for path in (installed / "etc/systemd/system").iterdir())
    assert CHECKOUT not in text
    assert f"ExecStart={ROOT}/.venv/bin/prefect server start" in text


# ---- compose ----------------------------------------------------------------------------------------------------------


def test_containers_are_reached_from_this_machine_alone_and_need_no_password() -> None:
    folder = SERVICES / "compose"
    text = (folder / "compose.yaml").read_text(encoding="utf-8")
    compose: dict[str, Any] = yaml.safe_load(text)
    assert set(compose) == {"name", "x-server", "services", "volumes"}
    known = {"build", "image", "restart", "depends_on", "security_opt", "cap_drop", "command", "env_file", "environment", "ports", "volumes"}
    known |= {"healthcheck", "stop_grace_period", "shm_size"}
    for name, service in compose["services"].items():
        assert set(service) <= known, name
        assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for source in (volume.split(":")[0] for volume in service["volumes"]):
            assert source in compose["volumes"] or (folder / source).is_file(), source
        files = [folder / file for file in service.get("env_file", ()) if "secret" not in file]
        assert all(file.is_file() for file in files), name
    assert "listen_addresses=" in compose["services"]["database"]["command"]
    assert "ports" not in compose["services"]["database"]
    build = compose["x-server"]["build"]
    dockerfile = (folder / build["context"] / build["dockerfile"]).resolve()
    assert all((ROOT / source).is_file() for source in re.findall(r"^COPY (\S+)", dockerfile.read_text(), re.MULTILINE))
    assert not SECRET.search(re.sub(r"^#.*$", "", text, flags=re.MULTILINE))


# ---- scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*sorted((SERVICES / "postgresql").glob("*.sh")), SERVICES / "install.sh"], ids=lambda path: path.name)
def test_scripts_are_programs_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(("bash", "-n", str(script)), capture_output=True).stderr == b""


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("backup.sh", (), "usage:"),
        ("backup.sh", ("/no/such/folder", "headrace_mlflow"), "install -d"),
        ("restore.sh", ("headrace_mlflow",), "usage:"),
        ("restore.sh", ("x; DROP DATABASE y", "file"), "usage:"),
    ],
)
def test_wrong_calls_say_what_is_wanted(script: str, arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run((str(SERVICES / "postgresql" / script), *arguments), capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
