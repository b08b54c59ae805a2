"""A whole pipeline on a little real text, small enough to run in tests: the recipe, and the command line as a user calls it."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
_TEXT_BYTES = 400_000
_LARGEST_BYTES = 15_000

TEXT_STAGES = ("validate", "tokenizer", "tokenize")
"""The stages before training, which no setting of the training changes."""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A user's folder with a recipe in it."""

    folder: Path
    secrets: Mapping[str, str] = field(default_factory=dict)
    """What the user's shell holds besides."""
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    """Commands that run by themselves; whoever made the project ends them with `end`."""

    @property
    def recipe(self) -> Path:
        """The recipe."""
        return self.folder / "tiny.yaml"

    @property
    def root(self) -> Path:
        """The storage root."""
        return self.folder / ".headrace" / "data"

    def headrace(self, *arguments: str, timeout_s: float = 240.0, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs `headrace` as a user would, in the project's folder."""
        return subprocess.run(self.argv(*arguments), cwd=self.folder, env=self.environment(env), capture_output=True, text=True, timeout=timeout_s)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Starts `headrace` and returns at once; what it prints goes to `output.log`."""
        with (self.folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                self.argv(*arguments), cwd=self.folder, env=self.environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.started.append(process)
        return process

    def answer(self, *arguments: str) -> Any:
        """Returns what a command that must succeed says with `--json`; it runs in this process."""
        done = self.here(*arguments, "--json")
        assert done.code == 0, f"{arguments}: exit {done.code}\n{done.out}\n{done.err}"
        return json.loads(done.out)

    def here(self, *arguments: str) -> Answer:
        """Runs a `headrace` that starts nothing in this process: all of the command line but the second that a new process takes to import."""
        from flows import cli

        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["headrace", *arguments]),
            mock.patch.dict(os.environ, self.environment()),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return Answer(code, out.getvalue(), err.getvalue())

    def end(self) -> None:
        """Kills the commands that still run, and waits for them: a test that failed midway leaves them."""
        for process in self.started:
            process.kill()
            process.wait()

    def processes(self) -> list[str]:
        """Command lines of the live processes that work for the project."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(line)
        return found

    def left_behind(self) -> list[str]:
        """What `processes` still finds after a while: the Prefect server ends a little after its last user."""
        deadline = time.monotonic() + 120
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def take(self, other: "Project", *stages: str) -> None:
        """Copies what another project with the same text has finished: a run finds it."""
        for stage in stages:
            shutil.copytree(other.root / stage, self.root / stage)

    def run_ids(self) -> list[str]:
        """The ids of all runs, oldest first."""
        return sorted(path.name for path in (self.root / "runs").iterdir()) if (self.root / "runs").exists() else []

    def artifact(self, stage: str) -> Path:
        """The only finished artifact of a stage."""
        (record,) = (self.root / stage).glob("*/record.json")
        return record.parent

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        """The command line of a call."""
        return [sys.executable, "-P", "-c", "from flows.finished import main; main()", *arguments]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a call: this checkout first, no terminal."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **self.secrets, **(extra or {})}


def make_project(folder: Path, *, changes: Mapping[str, Any] | None = None, secrets: Mapping[str, str] | None = None) -> Project:
    """Writes real text and a tiny recipe into `folder`.

    Args:
        changes: dotted key → value, over the recipe.
        secrets: name → value, what the user's environment holds besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _copy_text(folder / "text")
    recipe = _recipe()
    for key, value in (changes or {}).items():
        section = recipe
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    (folder / ".headrace").mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return Project(folder, secrets=secrets or {})


def _copy_text(target: Path) -> None:
    """Copies the standard library's own smaller modules, in order of name, until there is enough: some sixty documents."""
    target.mkdir()
    size = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if size > _TEXT_BYTES:
            return
        if path.stat().st_size <= _LARGEST_BYTES:
            shutil.copyfile(path, target / path.name)
            size += path.stat().st_size


def _recipe() -> dict[str, Any]:
    return {
        "name": "tiny",
        "corpus": {
            "sources": [{"path": "text", "format": "text", "name": "code"}],
            "splits": {"validation": 0.1, "test": 0.2},
            "group_bytes": 150_000,
        },
        "tokenizer": {"vocab_size": 400, "min_bytes_per_token": 1.0, "max_tokens_per_word": 20.0},
        "tokenization": {"sequence_length": 64, "sequences_per_shard": 1000},
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "tie_word_embeddings": True,
            }
        },
        "training": {
            "steps": 12,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "precision": "bf16",
            "optimizer": {"learning_rate": 0.003},
            "schedule": {"kind": "constant", "warmup_steps": 2},
        },
        "evaluation": {"max_bytes": 20_000, "prompts": ["def "], "max_new_tokens": 8},
        "cluster": {"kind": "local", "ranks_per_node": 2, "threads_per_rank": 1, "lost_after_s": 20.0},
        "checkpoint": {"every_steps": 4},
        "tracking": {"validate_every_steps": 6, "validation_sequences": 8, "sample_tokens": 4, "forward_every_s": 0.5},
    }
