"""The command line: its commands and flags, its help, its exit codes, and how errors look."""

import errno
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main

from flows import checkup, cli, piloting, terminal
from schemas import errors
from schemas.exit_code import ExitCode
from tests.fakes.tiny_pipeline import ROOT

STORE_COMMANDS = {"store ls", "store du", "store pin", "store unpin", "store give-up", "store gc"}
COMMANDS = STORE_COMMANDS | {
    *("init", "plan", "run", "status", "logs", "resume", "cancel", "verify", "verify-resume", "rollback", "doctor", "deploy", "demo"),
    *("shards export", "shards import"),
}
FLAGS = {
    "init": {"--text", "--model", "--tokenizer", "--deepspeed", "--cluster"},
    "plan": {"--set", "--from"},
    "run": {"--set", "--from"},
    "status": {"--storage"},
    "logs": {"--rank", "--stage", "--lines", "--follow", "--storage"},
    "resume": {"--storage"},
    "cancel": {"--storage", "--wait", "--force"},
    "verify": {"--storage"},
    "verify-resume": {"--kills", "--world", "--seed", "--keep", "--set"},
    "rollback": {"--alias", "--history", "--storage"},
    "doctor": {"--cluster"},
    "deploy": {"--pool"},
    "demo": set(),
    "shards export": {"--to", "--split"},
    "shards import": {"--tokenizer", "--to", "--end-of-text", "--sequence-length", "--sequences-per-shard", "--split"},
    "store ls": {"--storage", "--keep-runs"},
    "store du": {"--storage"},
    "store pin": {"--storage", "--reason"},
    "store unpin": {"--storage", "--force"},
    "store give-up": {"--storage", "--force"},
    "store gc": {"--storage", "--keep-runs", "--dry-run", "--force"},
}
"""A recipe says what happens; a new flag must earn its place here."""

SLOW = ("prefect", "torch", "pyarrow", "mlflow", "great_expectations", "deepspeed", "transformers", "duckdb", "rich", "fsspec")

ERRORS: dict[errors.HeadraceError, int] = {
    errors.ConfigError((errors.Problem("training.lr", "3", "unknown key", nearest="training.optimizer.learning_rate"),)): 2,
    errors.InputError("what", why="why", mend="mend"): 2,
    errors.MissingTextError("what", why="why", mend="mend"): 2,
    errors.DataVerdictError("what"): 3,
    errors.GateError("what"): 4,
    errors.PolicyStopError("what"): 5,
    errors.NumericError("what"): 5,
    errors.CorruptStateError("what"): 1,
    errors.OutOfMemoryError("what"): 6,
    errors.VerificationError(("shard: flipped",), subject="demo"): 7,
    errors.LeaseHeldError("what"): 8,
    errors.UnreachableError("what"): 9,
    errors.InterruptedRunError("what"): 75,
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command line in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def commands() -> dict[str, Any]:
    """All commands by the words that call them."""
    found: dict[str, Any] = {}
    todo: list[tuple[str, Any]] = [("", typer.main.get_command(cli.app))]
    while todo:
        prefix, group = todo.pop()
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                todo.append((f"{prefix}{name} ", command))
            else:
                found[f"{prefix}{name}"] = command
    return found


def test_the_commands_and_their_flags_are_these() -> None:
    found = {name: {flag for option in command.params for flag in option.opts if flag.startswith("--")} for name, command in commands().items()}
    assert set(found) == COMMANDS
    assert {name: flags - {"--json"} for name, flags in found.items()} == FLAGS
    assert all("--json" in flags for flags in found.values())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_examples_that_are_commands_of_ours(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *name.split(), "--help") == 0
    text = capsys.readouterr().out
    examples = [line.strip() for line in text.splitlines() if "headrace " in line and not line.startswith("Usage")]
    assert examples
    for example in examples:
        words = example.split("headrace ", 1)[1].split()
        assert words[: len(name.split())] == name.split()
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert flags <= FLAGS[name] | {"--json"}, example


def test_it_tells_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"headrace {metadata.version('headrace')}\n"


def test_help_names_the_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{int(code)} " in text for code in ExitCode)
    assert "demo" not in text.split("Commands:")[1].split("Exit codes")[0]  # hidden


@pytest.mark.parametrize(("error", "code"), ERRORS.items(), ids=lambda value: type(value).__name__)
def test_an_expected_error_is_told_without_a_traceback(
    error: errors.HeadraceError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(piloting, "run_recipe", fail)
    assert call(monkeypatch, "run", "x.yaml") == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"{'stopped' if code == 75 else 'error'}: {error.render()}\n"
    assert call(monkeypatch, "run", "x.yaml", "--json") == code
    body = json.loads(capsys.readouterr().out)["error"]
    assert (body["class"], body["exit_code"]) == (type(error).__name__, code)
    if isinstance(error, errors.ConfigError):
        assert body["problems"][0]["nearest"] == "training.optimizer.learning_rate"


def test_every_error_class_is_covered() -> None:
    def below(base: type[errors.HeadraceError]) -> set[type[errors.HeadraceError]]:
        return {base}.union(*(below(child) for child in base.__subclasses__()))

    ours = {kind for kind in below(errors.HeadraceError) if kind.__module__ == "schemas.errors"}
    assert ours - {type(error) for error in ERRORS} == {errors.HeadraceError, errors.UnsafeFileError}


def test_a_bug_leaves_its_traceback_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    (tmp_path / ".headrace").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(piloting, "run_recipe", fail)
    assert call(monkeypatch, "run", "x.yaml") == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == 3
    (crash,) = (tmp_path / ".headrace" / "crashes").iterdir()
    assert str(crash) in shown
    assert "Traceback" in crash.read_text()
    assert "headrace run x.yaml" in crash.read_text()


def test_a_bug_is_told_even_when_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".headrace").mkdir()
    (tmp_path / ".headrace" / "crashes").touch()  # no folder can be made there
    (tmp_path / "headrace-crashes").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.tempfile, "gettempdir", lambda: str(tmp_path))
    terminal.show_bug(ValueError("odd"))
    assert "ValueError: odd" in capsys.readouterr().err


def test_what_the_file_system_refuses_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/headrace")

    monkeypatch.setattr(piloting, "run_recipe", refuse)
    assert call(monkeypatch, "run", "x.yaml") == 9
    shown = capsys.readouterr().err
    assert "/data/headrace: Permission denied" in shown
    assert "bug" not in shown


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(piloting, "run_recipe", interrupt)
    assert call(monkeypatch, "run", "x.yaml") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plam",), "Did you mean 'plan'?"),
        (("plan",), "Missing argument 'RECIPE'"),
        (("plan", "x.yaml", "--frm", "train"), "--from"),
        (("plan", "x.yaml", "--from", "trian"), "train"),
        (("logs", "last", "--rank", "-1"), "--rank"),
        (("verify-resume", "x.yaml", "--kills", "none"), "--kills"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert says in capsys.readouterr().err


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen:
        def isatty(self) -> bool:
            return True

    screen: Any = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.paint("x", "red", stream=screen) == "\x1b[31mx\x1b[0m"
    assert terminal.paint("x", "red") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("x", "red", stream=screen) == "x"


def test_a_wrong_recipe_is_told_with_all_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("name: X\ncorpus: {sources: [nowhere]}\nmodel: {}\ntraining: {steps: 5, lr: 3}\n")
    assert call(monkeypatch, "plan", str(recipe)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {recipe}: 5 problems"
    assert [line.split(": ")[1].split(" = ")[0] for line in lines[1:]] == [
        "name",
        "model.config",
        "training.lr",
        "training.schedule.warmup_steps",
        "corpus.sources.0",
    ]


@pytest.mark.parametrize(("name", "begins"), [("llama_7b_zero3_kubernetes", "apiVersion: v1"), ("llama_1b3_slurm_4x8", "#!/bin/bash")])
def test_what_a_cluster_gets_is_shown_where_its_text_is_not_seen(
    name: str, begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--set", f"storage.root={tmp_path}/data", "--set", f"state={tmp_path}/state", "--set", f"corpus.sources=[{tmp_path}/*.parquet]")
    volume = ("--set", f"cluster.kubernetes.volumes=[{{mount: {tmp_path}, claim: headrace}}]") if "kubernetes" in name else ()
    assert call(monkeypatch, "plan", str(ROOT / "infra/recipes" / f"{name}.yaml"), *here, *volume) == 0
    shown = capsys.readouterr().out
    assert "  validate   depends  depends on text that this machine does not see\n" in shown
    assert f"'{tmp_path}/*.parquet' holds no file to read, as seen from this machine; a run must be started where the text is\n" in shown
    assert f"\n\n{begins}\n" in shown
    assert call(monkeypatch, "plan", str(ROOT / "infra/recipes/demo_cpu.yaml"), *here) == 2, "on one machine it is a mistake"
    assert "holds no file to read\n" in capsys.readouterr().err


def test_doctor_fails_only_on_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"level": "warning", "subject": "memory", "what": "little", "mend": "buy some"}
    monkeypatch.setattr(checkup, "findings_of", lambda *_: [finding])
    assert call(monkeypatch, "doctor") == 0
    assert "mend: buy some" in capsys.readouterr().out
    monkeypatch.setattr(checkup, "findings_of", lambda *_: [{**finding, "level": "error"}])
    assert call(monkeypatch, "doctor", "--json") == 2
    assert json.loads(capsys.readouterr().out)["findings"][0]["level"] == "error"


def test_doctor_knows_the_kinds_of_clusters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "doctor", "--cluster", "slrum") == 2
    assert "--cluster = 'slrum': must be one of local, slurm, kubernetes; nearest valid: slurm" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    ["import flows.cli", "import flows.piloting", "import flows.prefect_server", "import flows.lookup, flows.screens, tasks.views"],
)
def test_the_way_to_nothing_to_do_imports_nothing_slow(program: str) -> None:
    """What is imported decides how fast the command line answers; no time is measured here."""
    code = f"import sys; {program}; print([name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_shown_without_the_types_of_records() -> None:
    """They take longer to import than all that the command line itself needs."""
    code = "import sys, flows.cli; print(*{'pydantic', 'yaml', 'psutil'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
