"""A real Slurm cluster of several nodes on one machine, for tests and for trying things out. Needs root.

    python3 infra/slurm/test_cluster.py up DIR [--nodes 3] [--gpus 2] [--accounting]      then:  . DIR/env.sh; sinfo
    python3 infra/slurm/test_cluster.py kill DIR node2        power it off: its slurmd and all that runs there are gone at once
    python3 infra/slurm/test_cluster.py start DIR node2       power it on again; `slurmctld` can be killed and started, too
    python3 infra/slurm/test_cluster.py status DIR
    python3 infra/slurm/test_cluster.py down DIR              ends all that `up` started; safe to repeat

    apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge      (--accounting: also slurmdbd mariadb-server)

Each node is a slurmd in a UTS, PID and mount namespace of its own: own name, own process table, own /etc/hosts. The namespace's first
process is the power switch: when it is killed, the kernel kills everything inside. The network is shared, and all of it is loopback.
Partitions: `main` (the default), `cpu`, `gpu`, and `closed`, which takes nobody's jobs; every node is in all of them. GPUs are pretended.
"""

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_LONGEST_FOLDER = 60
"""Sockets lie below it, and their paths are short by law of the kernel."""
_PROGRAMS = ("munged", "slurmctld", "slurmd", "scontrol", "unshare")
_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacctmgr")
_NODE = 'hostname "$1" && mount --bind "$2" /etc/hosts || exit 1; slurmd -D -N "$1" -f "$3" & wait $!'
"""The first process of a node: names it, and waits for its slurmd."""
_USABLE = frozenset({"idle", "mixed", "allocated", "completing", "planned"})


class ClusterError(Exception):
    """The cluster cannot be started or stopped."""


class SlurmTestCluster:
    """A cluster in a folder of its own. Everything about it is in that folder: any process may go on with it."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: absolute, short."""
        self.folder = folder
        self.conf = folder / "slurm.conf"

    @property
    def variables(self) -> Mapping[str, str]:
        """What Slurm's commands need in their environment."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        lines = self.conf.read_text().splitlines() if self.conf.exists() else []
        return [line.split()[0].partition("=")[2] for line in lines if line.startswith("NodeName=")]

    @property
    def daemons(self) -> list[str]:
        """Names of all processes, in the order in which they are started."""
        accounting = ["mariadbd", "slurmdbd"] if (self.folder / "slurmdbd.conf").exists() else []
        return ["munged", *accounting, "slurmctld", *self.nodes]

    def up(self, *, nodes: int = 3, cpus: int = 4, memory_mb: int = 4000, gpus: int = 0, accounting: bool = False, extra: str = "") -> None:
        """Starts it; does nothing when it is up already.

        Args:
            nodes: how many.
            cpus: of each node, whatever the machine has.
            memory_mb: of each node.
            gpus: of each node; pretended.
            accounting: whether `sacct` knows everything: a slurmdbd, and a MariaDB of its own.
            extra: more lines of slurm.conf; of a key that is there twice, the last counts.

        Raises:
            ClusterError: something is missing, or did not come up.
        """
        self._check(nodes, accounting=accounting)
        if len(self.nodes) == nodes and self.healthy():
            return
        self.down()
        for name in ("state", "spool", "munge", "run", "log", "dev", "mysql"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("jobcomp.txt", "slurmdbd.conf", "gres.conf"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("state", "spool", "munge", "run", "log"):
            (self.folder / name).mkdir(parents=True)
        for path in (self.folder, self.folder / "munge"):
            path.chmod(0o755)  # munged insists
        self._write_secret("munge/munge.key", secrets.token_bytes(128))
        port = self._configure(nodes, cpus=cpus, memory_mb=memory_mb, gpus=gpus, accounting=accounting, extra=extra)
        for name in self.nodes:
            (self.folder / "spool" / name).mkdir()
        munge = {"key-file": "munge/munge.key", "socket": "munge/munge.sock", "pid-file": "run/munged.inner", "log-file": "log/munged.log"}
        self._spawn("munged", "munged", "--foreground", "--seed-file", str(self.folder / "munge/seed"), *self._options(munge))
        self._wait((self.folder / "munge/munge.sock").exists, what="munged", log="munged")
        if accounting:
            self._start_accounting(port)
        self.start("slurmctld")
        self._wait(lambda: "is UP" in self.ask("scontrol", "ping"), what="slurmctld", log="slurmctld")
        for name in self.nodes:
            self.start(name)
        self._wait(self.healthy, what="a node", log="node*", seconds=60)

    def down(self) -> None:
        """Ends everything that `up` started."""
        polite = self._pid("slurmctld") is not None and self.ask("scontrol", "shutdown") is not None
        for name in self.nodes:
            if not (polite and _until(lambda name=name: self._pid(name) is None, seconds=2)):  # type: ignore[misc]
                self.kill(name)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._stop(name, signal.SIGTERM, seconds=10)
            self.kill(name)
        for path in (self.folder / "run").glob("*"):
            path.unlink()

    def start(self, name: str) -> None:
        """Starts `slurmctld`, or powers a node on."""
        if self._pid(name) is not None:
            return
        if name == "slurmctld":
            self._spawn(name, "slurmctld", "-D", "-f", str(self.conf))
        elif name in self.nodes:
            alone = ("unshare", "--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
            self._spawn(name, *alone, "bash", "-c", _NODE, "node", name, str(self.folder / "hosts"), str(self.conf))
        else:
            raise ClusterError(f"no node {name}; there are: {', '.join(self.nodes)}")

    def kill(self, name: str) -> None:
        """Kills a process; of a node: powers it off."""
        self._stop(name, signal.SIGKILL, seconds=10)
        if self._pid(name) is not None:
            raise ClusterError(f"{name} does not end")

    def healthy(self) -> bool:
        """Whether all processes live and all nodes can be used."""
        if any(self._pid(name) is None for name in self.daemons):
            return False
        states = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
        return len(states) == len(self.nodes) and set(states) <= _USABLE

    def ask(self, *argv: str) -> str:
        """Returns what one of Slurm's commands prints; nothing when it fails."""
        try:
            done = subprocess.run(argv, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=15)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    # ---- processes -----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, *argv: str) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env={**environment, "LANG": "C.UTF-8", **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # it outlives this process, which need not wait for it
        (self.folder / "run" / f"{name}.pid").write_text(str(process.pid))

    def _pid(self, name: str) -> int | None:
        """Returns the process, when it lives and is ours: it has the environment that it was given, which a recycled pid has not."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if f"SLURM_CONF={self.conf}".encode() in environment else None

    def _stop(self, name: str, number: signal.Signals, *, seconds: float) -> None:
        pid = self._pid(name)
        if pid is not None:
            os.kill(pid, number)
            _until(lambda: self._pid(name) is None or _reaped(pid), seconds=seconds)

    def _wait(self, condition: Callable[[], bool], *, what: str, log: str, seconds: float = 20) -> None:
        if not _until(condition, seconds=seconds):
            raise ClusterError(f"{what} did not come up; see {self.folder}/log/{log}")

    # ---- configuration -------------------------------------------------------------------------------------------------

    def _check(self, nodes: int, *, accounting: bool) -> None:
        if os.geteuid() != 0:
            raise ClusterError("needs root: namespaces, and daemons that run jobs of other users")
        if not 1 <= nodes <= 90:
            raise ClusterError(f"--nodes {nodes}: 1 to 90")
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise ClusterError(f"{self.folder} is longer than {_LONGEST_FOLDER} characters: the paths of sockets below it would be too long")
        missing = [name for name in (*_PROGRAMS, *(_FOR_ACCOUNTING if accounting else ())) if shutil.which(name) is None]
        if missing:
            packages = "slurmctld slurmd slurm-client munge" + (" slurmdbd mariadb-server" if accounting else "")
            raise ClusterError(f"not installed: {', '.join(missing)}; apt-get install -y --no-install-recommends {packages}")

    def _configure(self, nodes: int, *, cpus: int, memory_mb: int, gpus: int, accounting: bool, extra: str) -> int:
        """Writes all files of configuration; returns the first of the cluster's ports."""
        number = zlib.crc32(str(self.folder).encode())
        network, port = f"127.{64 + number % 128}.{number // 128 % 256}", _free_ports(10000 + number // 32768 % 200 * 100)
        addresses = {f"node{index}": f"{network}.{100 + index}" for index in range(1, nodes + 1)}
        hosts = Path("/etc/hosts").read_text().rstrip("\n") + "\n"
        (self.folder / "hosts").write_text(hosts + "".join(f"{address} {name}\n" for name, address in addresses.items()))
        values = {
            "ClusterName": "lab",
            "SlurmctldHost": "localhost(127.0.0.1)",
            "SlurmctldPort": port,
            "CommunicationParameters": "NoCtldInAddrAny",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self.folder}/munge/munge.sock,cred_expire=5",  # how long a requeued job waits, too
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool/%n",
            "SlurmctldPidFile": self.folder / "run/slurmctld.inner",
            "SlurmdPidFile": self.folder / "run/%n.inner",
            "SlurmctldLogFile": self.folder / "log/slurmctld.log",
            "SlurmdLogFile": self.folder / "log/%n.log",
            "MailProg": "/bin/true",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",  # offer what is written here, not what the machine has
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=1,sched_interval=1",
            "ReturnToService": 2,
            "SlurmctldTimeout": 10,
            # Long enough that a busy machine's pause is no dead node: Slurm would fail the node's jobs.
            "SlurmdTimeout": 20,
            "MessageTimeout": 10,
            "BatchStartTimeout": 60,
            "UnkillableStepTimeout": 120,
            "InactiveLimit": 0,
            "KillWait": 10,
            "MinJobAge": 86400,  # a finished job is remembered so long
            "JobCompType": "jobcomp/filetxt",
            "JobCompLoc": self.folder / "jobcomp.txt",
            "AccountingStorageType": "accounting_storage/none",
        }
        if accounting:
            values |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": port + 98,
                "AccountingStoragePass": self.folder / "munge/munge.sock",
                "AccountingStorageTRES": "gres/gpu",
            }
        offered = f"CPUs={cpus} RealMemory={memory_mb}"
        if gpus:
            values["GresTypes"] = "gpu"
            offered += f" Gres=gpu:{gpus}"
            self._pretend_gpus(gpus, nodes=nodes)
        lines = [f"{key}={value}" for key, value in values.items()]
        lines += [extra.strip()] if extra else []
        lines += [f"NodeName={name} NodeAddr={addresses[name]} Port={port + 1 + index} {offered}" for index, name in enumerate(addresses)]
        lines += [f"PartitionName={name} Nodes=ALL MaxTime=INFINITE{' Default=YES' if name == 'main' else ''}" for name in ("main", "cpu", "gpu")]
        lines += ["PartitionName=closed Nodes=ALL AllowGroups=nogroup AllowAccounts=nobody"]
        self.conf.write_text("\n".join(lines) + "\n")
        (self.folder / "env.sh").write_text(f"export SLURM_CONF={shlex.quote(str(self.conf))}\n")
        return port

    def _pretend_gpus(self, gpus: int, *, nodes: int) -> None:
        devices = self.folder / "dev"
        devices.mkdir()
        for index in range(gpus):
            os.mknod(devices / f"gpu{index}", 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-{nodes}] Name=gpu File={devices}/gpu[0-{gpus - 1}]\n")

    # ---- accounting ----------------------------------------------------------------------------------------------------

    def _start_accounting(self, port: int) -> None:
        """Starts a MariaDB of this cluster's own, and the slurmdbd before it."""
        data, password = self.folder / "mysql", secrets.token_hex(8)
        install = (
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )
        with (self.folder / "log/mariadb-install.out").open("wb") as log:
            if subprocess.run(install, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode != 0:
                raise ClusterError(f"no database; see {log.name}")
        options = {"datadir": "mysql", "socket": "mysql.sock", "pid-file": "run/mariadbd.inner"}
        small = ("--skip-log-bin", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900")
        where = ("--bind-address=127.0.0.1", f"--port={port + 99}")
        self._spawn("mariadbd", "mariadbd", "--no-defaults", "--user=root", *self._options(options), *where, *small)
        self._wait(lambda: self._sql("SELECT 1"), what="MariaDB", log="mariadbd.out")
        self._sql(f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}'; GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'")
        values = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/munge.sock",
            "DbdHost": "localhost",
            "DbdAddr": "127.0.0.1",
            "DbdPort": port + 98,
            "SlurmUser": "root",
            "LogFile": self.folder / "log/slurmdbd.log",
            "PidFile": self.folder / "run/slurmdbd.inner",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": port + 99,
            "StorageUser": "slurm",
            "StoragePass": password,
            "StorageLoc": "slurm_acct_db",
        }
        self._write_secret("slurmdbd.conf", "".join(f"{key}={value}\n" for key, value in values.items()).encode())
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait(lambda: bool(self.ask("sacctmgr", "--noheader", "show", "configuration")), what="slurmdbd", log="slurmdbd.log")

    def _sql(self, statement: str) -> bool:
        argv = ("mariadb", "--no-defaults", f"--socket={self.folder}/mysql.sock", "-uroot", "-e", statement)
        return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode == 0

    def _write_secret(self, name: str, data: bytes) -> None:
        with os.fdopen(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)

    def _options(self, paths: Mapping[str, str]) -> Iterator[str]:
        return (f"--{option}={self.folder / path}" for option, path in paths.items())


def _until(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _reaped(pid: int) -> bool:
    """Whether a child of this process has ended; it is a zombie until somebody asks."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


def _free_ports(first: int) -> int:
    """Returns the first of a hundred ports that are free, as far as its ends tell; below the kernel's own choice."""
    for offset in range(0, 20000, 100):
        port = 10000 + (first - 10000 + offset) % 20000
        if all(_is_free(number) for number in (port, port + 1, port + 99)):
            return port
    raise ClusterError("no free ports")


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def main() -> int:
    """Runs one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "status", "kill", "start"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name in ("kill", "start"):
            command.add_argument("name", help="node1, node2, …, or slurmctld")
        if name == "up":
            command.add_argument("--nodes", type=int, default=3)
            command.add_argument("--cpus", type=int, default=4, help="of each node, whatever the machine has")
            command.add_argument("--gpus", type=int, default=0, help="of each node; pretended")
            command.add_argument("--accounting", action="store_true", help="with slurmdbd and a database: `sacct` knows everything")
            command.add_argument("--conf", type=Path, help="a file of more lines of slurm.conf")
    arguments = parser.parse_args()
    cluster = SlurmTestCluster(arguments.folder.resolve())
    try:
        if arguments.command == "up":
            cluster.folder.mkdir(parents=True, exist_ok=True)
            extra = arguments.conf.read_text() if arguments.conf else ""
            cluster.up(nodes=arguments.nodes, cpus=arguments.cpus, gpus=arguments.gpus, accounting=arguments.accounting, extra=extra)
            print(f"up: {len(cluster.nodes)} nodes; . {cluster.folder}/env.sh")
        elif arguments.command == "down":
            cluster.down()
        elif arguments.command == "status":
            print("\n".join(f"{name}\t{cluster._pid(name) or '-'}" for name in cluster.daemons))
            print(cluster.ask("sinfo", "--Node", "--long"), end="")
        else:
            getattr(cluster, arguments.command)(arguments.name)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
