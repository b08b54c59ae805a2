"""Real ranks on made-up token shards: a tiny Llama, gloo on the CPU, forked from one process that has the libraries."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import file_entry, hash_file
from schemas.artifact import FileEntry
from schemas.config import RunConfig
from schemas.job import JobKind, JobSpec, RestartLimits, TaskSpec
from schemas.manifest import Shard, ShardManifest, Split
from schemas.stage import Stage
from tasks.outside_inputs import training_entries
from tasks.tokenize.shard_file import write_shard

HERE = Path(__file__).parent
LENGTH, VOCABULARY = 16, 64
LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,  # so that random numbers count
    "tie_word_embeddings": True,
}


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """Returns a small config; `changes` are dotted keys with `__` for the dot."""
    values: dict[str, Any] = {
        "name": "tiny",
        "corpus": {"sources": [str(folder)]},
        "tokenizer": {"vocab_size": 300},
        "tokenization": {"sequence_length": LENGTH},
        "model": {"config": dict(LLAMA)},
        "training": {
            "seed": 7,
            "steps": 6,
            "global_batch_size": 12,
            "micro_batch_size": 2,
            "precision": "bf16",
            "zero_stage": 2,
            "optimizer": {"learning_rate": 0.01},
            "schedule": {"kind": "constant", "warmup_steps": 2},
        },
        "checkpoint": {"every_steps": 2, "background": False},  # steps take milliseconds here: a second checkpoint would be skipped
        "tracking": {"validate_every_steps": 3, "validation_sequences": 8, "sample_tokens": 4},
        "cluster": {"ranks_per_node": 1},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return RunConfig.model_validate(values)


def make_shards(folder: Path, *, rows: Mapping[Split, tuple[int, ...]], vocab_size: int = VOCABULARY, last_row_tokens: int = 5) -> ShardManifest:
    """Writes shards of random ids below `folder`; the last row of each shard holds `last_row_tokens` tokens and padding."""
    random = np.random.default_rng(0)
    shards = []
    (folder / "shards").mkdir(parents=True)
    for split, counts in rows.items():
        for group, count in enumerate(counts):
            ids = random.integers(1, vocab_size, size=(count, LENGTH)).astype("<u2")
            ids[-1, last_row_tokens:] = 0
            path = folder / "shards" / f"{split}-g{group:04d}-00000.parquet"
            written = write_shard(path, ids, layout="fixed", facts={})
            tokens = (count - 1) * LENGTH + last_row_tokens
            shards.append(
                Shard(
                    group=group,
                    split=split,
                    file=file_entry(path, relative_to=folder),
                    rows=count,
                    tokens=tokens,
                    last_row_tokens=last_row_tokens,
                    payload_offset=written.payload_offset,
                    text_bytes=tokens * 3,
                )
            )
    manifest = ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer_hash="0",
        engine="huggingface",
        shards=tuple(shards),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def make_tokenizer(folder: Path, *, vocab_size: int = VOCABULARY) -> None:
    """Writes a `tokenizer.json` of single characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + number): number for number in range(1, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


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

    def start(self, spec: Path, *, world_size: int, program: str = "tasks.train.job:run", log_dir: Path) -> list[int]:
        """Forks a gang and returns its pids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
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
        """Starts an epoch, sends a signal to `rank` once it is at `step`, kills what is left after a SIGKILL, and returns the statuses."""
        pids = self.start(config, world_size=world_size)
        self.wait_for(lambda progress: progress["step"] >= step, rank=rank)
        os.kill(pids[rank], number)
        if number == signal.SIGKILL:
            for pid in pids:
                if pid != pids[rank]:
                    os.kill(pid, signal.SIGKILL)
        return self.server.wait()

    def kill(self) -> list[int]:
        """Kills all ranks of the present epoch and returns their statuses."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        return self.server.wait()

    def kill_in_save(self, config: RunConfig, *, rank: int, program: str, number: int = signal.SIGKILL) -> list[int]:
        """Starts an epoch of two ranks, sends a signal to `rank` while the first checkpoint is being written, and returns the statuses."""
        pids = self.start(config, world_size=2, program=program)
        deadline = time.monotonic() + 120.0
        while not any(self.artifact_dir.glob(f"checkpoints/*.e{self.epoch:06d}/rank-{rank:04d}.bin")):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.001)
        for pid in pids if number == signal.SIGKILL else [pids[rank]]:
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
