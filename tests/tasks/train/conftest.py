"""Real ranks on made-up token shards: a tiny Llama, gloo on the CPU, forked from one process that has the libraries."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.agent.node import held_port
from cluster.storage import file_entry, hash_file
from schemas.artifact import FileEntry
from schemas.config import RunConfig
from schemas.job import JobKind, JobSpec, RestartLimits, TaskSpec
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.outside_inputs import training_entries
from tests.fakes.tiny_training import make_shards, make_tokenizer, small_config

HERE = Path(__file__).parent


@dataclasses.dataclass
class Inputs:
    """Folders of the input artifacts."""

    dirs: Mapping[Stage, Path]
    manifest: ShardManifest
    entries: Mapping[Stage, FileEntry]
    """Of the one file of each that ranks read by its entry."""

    def options(self, config: RunConfig, *, project_dir: Path = HERE / "project") -> dict[str, Any]:
        """Returns what `tasks.train.build` hands to ranks for these inputs."""
        files = training_entries(config, project_dir=project_dir, hash_file=hash_file)
        names = {"manifest": Stage.TOKENIZE, "tokenizer": Stage.TOKENIZER}
        named = {name: self.entries[stage].model_dump(mode="json") for name, stage in names.items()}
        return {**named, "outside_files": [entry.model_dump(mode="json") for entry in files]}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A tokenizer, and shards with padded rows."""
    folder = tmp_path_factory.mktemp("inputs")
    make_tokenizer(folder / "tokenizer")
    manifest = make_shards(folder / "tokenize", rows={"train": (23, 18), "validation": (11,)})
    dirs = {Stage.TOKENIZER: folder / "tokenizer", Stage.TOKENIZE: folder / "tokenize"}
    names = {Stage.TOKENIZER: "tokenizer.json", Stage.TOKENIZE: "manifest.json"}
    return Inputs(dirs, manifest, {stage: file_entry(dirs[stage] / name, relative_to=dirs[stage]) for stage, name in names.items()})


class RankServer:
    """Starts gangs of ranks; see rank_server.py."""

    def __init__(self, log_dir: Path) -> None:
        environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": f"{Path.cwd()}:{HERE / 'project'}",
        }
        argv = [sys.executable, str(HERE / "rank_server.py")]
        with (log_dir / "server.log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self._log_dir = log_dir
        self._held = contextlib.ExitStack()
        """The port of the present gang, until the next: rank 0 may listen only after many seconds."""

    def start(self, spec: Path, *, world_size: int, program: str = "tasks.train.job:run", log_dir: Path) -> list[int]:
        """Forks a gang and returns its pids."""
        self._held.close()
        port = self._held.enter_context(held_port())
        request = {"program": program, "spec": str(spec), "world_size": world_size, "port": port, "log_dir": str(log_dir)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pids: list[int] = self._answer()["pids"]
        return pids

    def wait(self) -> list[int]:
        """Returns the exit statuses of the gang; negative: killed by that signal."""
        statuses: list[int] = self._answer()["statuses"]
        return statuses

    def close(self) -> None:
        """Ends the server."""
        self._held.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the rank server ended: {(self._log_dir / 'server.log').read_text()[-3000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    """One server for all tests."""
    server = RankServer(tmp_path_factory.mktemp("rank-server"))
    yield server
    server.close()


@dataclasses.dataclass
class Gang:
    """Runs training on an artifact's folder, epoch after epoch, as an agent would."""

    server: RankServer
    inputs: Inputs
    artifact_dir: Path
    epoch: int = -1
    pids: list[int] = dataclasses.field(default_factory=list)
    """Of the present epoch's ranks."""

    def start(
        self, config: RunConfig, *, world_size: int, program: str = "tasks.train.job:run", options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Starts the next epoch and returns the ranks' pids."""
        self.epoch += 1
        scratch, given = self.scratch, dict(options or {})
        scratch.mkdir(parents=True)
        self.artifact_dir.mkdir(exist_ok=True)
        job = JobSpec(
            run_id="run",
            stage=Stage.TRAIN,
            artifact_key=f"train/{self.artifact_dir.name}",
            attempt=0,
            key="key",
            kind=JobKind.GANG,
            argv=("-m", "tasks.train.job"),
            ranks_per_node=world_size,
            limits=RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0),
            storage_root=str(self.artifact_dir.parent),
            scratch_dir=str(scratch),
            project_dir=str(self.artifact_dir.parent),
            inputs={},
            config=config.model_dump(mode="json"),
            options=given if "outside_files" in given else {**self.inputs.options(config), **given},
        )
        spec = TaskSpec(
            job=job,
            epoch=self.epoch,
            input_dirs={stage: str(path) for stage, path in self.inputs.dirs.items()},
            output_dir=str(self.artifact_dir),
            scratch_dir=str(scratch),
        )
        (scratch / "spec.json").write_text(spec.model_dump_json())
        self.pids = self.server.start(scratch / "spec.json", world_size=world_size, program=program, log_dir=scratch)
        return self.pids

    def run(
        self,
        config: RunConfig,
        *,
        world_size: int = 2,
        expect: int = 0,
        program: str = "tasks.train.job:run",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs one epoch to its end and asserts every rank's exit status."""
        self.start(config, world_size=world_size, program=program, options=options)
        statuses = self.server.wait()
        assert statuses == [expect] * world_size, self.logs()

    def kill_at(self, config: RunConfig, *, step: int, rank: int = 1, world_size: int = 2, number: int = signal.SIGKILL) -> list[int]:
        """Starts an epoch, sends a signal to `rank` while it waits at `step`, kills what is left after a SIGKILL, and returns the statuses."""
        program = f"{HERE / 'rank_programs.py'}:held"  # progress is told four times a second: short trainings would be over
        pids = self.start(config, world_size=world_size, program=program, options={"held_rank": rank, "held_at": step})
        deadline = time.monotonic() + 120.0
        while not (self.scratch / "held").exists():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.002)
        os.kill(pids[rank], number)
        if number == signal.SIGKILL:
            for pid in pids:
                if pid != pids[rank]:
                    with contextlib.suppress(ProcessLookupError):  # it ended of the lost connection, and was waited for
                        os.kill(pid, signal.SIGKILL)
        (self.scratch / "go").touch()
        return self.server.wait()

    def kill(self) -> list[int]:
        """Kills all ranks of the present epoch and returns their statuses."""
        os.kill(self.pids[0], signal.SIGKILL)
        for pid in self.pids[1:]:
            with contextlib.suppress(ProcessLookupError):  # it ended of the lost connection, and was waited for
                os.kill(pid, signal.SIGKILL)
        return self.server.wait()

    def kill_in_save(self, config: RunConfig, *, rank: int, program: str, number: int = signal.SIGKILL) -> list[int]:
        """Starts an epoch of two ranks, sends a signal to `rank` while the first checkpoint is being written, and returns the statuses."""
        pids = self.start(config, world_size=2, program=program)
        deadline = time.monotonic() + 120.0
        while not any(self.artifact_dir.glob(f"checkpoints/*.e{self.epoch:06d}/rank-{rank:04d}.bin")):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.001)
        os.kill(pids[rank], number)
        for pid in pids if number == signal.SIGKILL else []:
            if pid != pids[rank]:
                with contextlib.suppress(ProcessLookupError):  # as in `kill_at`
                    os.kill(pid, number)
        return self.server.wait()

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], *, rank: int, within_s: float = 120.0) -> None:
        """Waits until a rank's progress satisfies `condition`."""
        path = self.scratch / f"progress-{rank:06d}.json"
        deadline = time.monotonic() + within_s
        while not (path.exists() and condition(json.loads(path.read_bytes()))):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.002)

    @property
    def scratch(self) -> Path:
        """Scratch folder of the present epoch."""
        return self.artifact_dir.parent / "scratch" / f"{self.artifact_dir.name}-e{self.epoch}"

    def logs(self) -> str:
        """Returns the ends of the ranks' logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.scratch.glob("rank-*.log")))

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the metric points of the present epoch."""
        return [json.loads(line) for line in (self.scratch / "metrics-r0000.jsonl").read_text().splitlines()]


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """Returns a function that makes a small config; keyword arguments are dotted keys with `__` for the dot."""
    return lambda **changes: small_config(tmp_path, **changes)


@pytest.fixture
def gang(rank_server: RankServer, inputs: Inputs, tmp_path: Path) -> Callable[[str], Gang]:
    """Returns a function that makes a gang for an artifact's folder of the given name."""
    return lambda name: Gang(rank_server, inputs, tmp_path / name)


@pytest.fixture
def train_gang(rank_server: RankServer, inputs: Inputs, tmp_path: Path) -> Callable[[str], Gang]:
    """As `gang`, below the folder `train` of a storage."""
    (tmp_path / "train").mkdir()
    return lambda name: Gang(rank_server, inputs, tmp_path / "train" / name)
