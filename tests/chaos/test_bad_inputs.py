"""Bad inputs at every edge: a clear error with the right exit code, no stack trace, nothing half-made, and counts that balance."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from schemas.artifact import ArtifactRecord
from schemas.errors import HeadraceError, InputError, VerificationError
from schemas.exit_code import ExitCode
from schemas.manifest import CorpusManifest
from schemas.plan import Action
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.planning import make_plan
from tasks.runs import create_run
from tasks.validate import judge as judging
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tests.fakes.tiny_pipeline import Project, make_project

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("bad") / "project")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def headrace(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Calls the command line in this process; afterwards the project holds nothing half-made."""

    def call(*arguments: str) -> Answer:
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return Answer(int(caught.value.code or 0), shown.out, shown.err)

    yield call
    assert half_made(project) == []
    assert not (project.folder / ".headrace" / "crashes").exists(), "no bug of ours"


def half_made(project: Project) -> list[str]:
    """Temporary files anywhere, and records."""
    return [str(path) for path in (project.folder / ".headrace").rglob("*") if path.name.startswith(".tmp-") or path.name == "record.json"]


# ---- recipes ----------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

RECIPES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"name: caf\xe9\n", "is not UTF-8 text"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "NUL": (b"name: a\0b\n", "control characters are not allowed"),
    "huge": (b"#" * 1_000_001, "a recipe holds at most 1,000,000"),
    "list": (b"- name\n", "must be a mapping"),
    "text": (b"hello\n", "must be a mapping"),
    "empty": (b"", "name: is required"),
    "two documents": (b"name: a\n---\nname: b\n", "but found another document"),
    "not YAML": (b"name: [a\n", "line 2, column 1"),
    "duplicate key": (b"name: a\nname: b\n", "given twice, in lines 1 and 2"),
    "explosion": (BOMB.encode(), "more than 100,000 values"),
    "value inside itself": (b"a: &a [*a]\n", "stands for a value that it is part of"),
    "deep": (b"a: " + b"[" * 300_000, "nested more than 50 deep"),
    "long number": (b"training: {steps: " + b"9" * 5000 + b"}\n", "Exceeds the limit"),
}


@pytest.mark.parametrize(("content", "says"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_that_cannot_be_read_is_said_so(headrace: Call, tmp_path: Path, content: bytes, says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    answer = headrace("plan", str(recipe))
    assert answer.code == ExitCode.USAGE
    assert answer.err.startswith("error: ")
    assert says in answer.err
    assert str(recipe) in answer.err


def test_a_recipe_must_be_a_regular_file(headrace: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path / "nowhere.yaml"):
        answer = headrace("plan", str(path))
        assert answer.code == ExitCode.USAGE
        assert f"recipe {path}" in answer.err


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        (f"name={'[' * 1000}", "nested more than 50 deep"),
        (f"{'a.' * 1000}b=1", "a key has at most 50 parts"),
        (f"training.steps={'9' * 5000}", "Exceeds the limit"),
        ("corpus.sources=['a\\0b']", "does not exist"),
        ("deepspeed=text", "cannot be read"),
        ("deepspeed=deep.json", "nested too deep"),
        ("deepspeed=latin.json", "is not JSON"),
    ],
    ids=["deep value", "deep key", "long number", "NUL in a path", "folder for JSON", "deep JSON", "JSON not UTF-8"],
)
def test_an_override_that_cannot_be_read_is_said_so(headrace: Call, project: Project, assignment: str, says: str) -> None:
    (project.folder / "deep.json").write_text("[" * 100_000)
    (project.folder / "latin.json").write_bytes(b'{"a": "caf\xe9"}')
    answer = headrace("plan", "tiny.yaml", "--set", assignment)
    assert answer.code == ExitCode.USAGE
    assert says in answer.err


# ---- text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no file to read"),
        ("hidden", "holds no file to read"),
        ("empty/*.jsonl", "holds no file to read"),
        ("linked", "a symbolic link that leaves the source"),
        ("special", "not a regular file"),
        ("s3://bucket/docs.jsonl", "is not on this machine"),
    ],
)
def test_text_that_cannot_be_read_is_refused_before_anything_runs(headrace: Call, project: Project, source: str, says: str) -> None:
    for name in ("empty", "hidden", "linked", "special"):
        (project.folder / name).mkdir(exist_ok=True)
    (project.folder / "hidden" / ".text").write_text("x")
    if not (project.folder / "linked" / "a.txt").is_symlink():
        (project.folder / "linked" / "a.txt").symlink_to("/etc/hostname")
        os.mkfifo(project.folder / "special" / "pipe")
    for command in ("plan", "run"):
        answer = headrace(command, "tiny.yaml", "--set", f"corpus.sources=[{source!r}]")
        assert answer.code == ExitCode.USAGE
        assert says in answer.err
    assert project.run_ids() == [], "no run was begun"


def test_a_file_that_may_not_be_read_is_named() -> None:
    """As root every file can be read, so the command runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="headrace-unreadable-") as folder:
        Path(folder).chmod(0o755)
        project = make_project(Path(folder) / "project")
        secret = project.folder / "text" / "secret.py"
        secret.write_text("x = 1\n")
        secret.chmod(0)
        argv = project.argv("plan", "tiny.yaml")
        if os.geteuid() == 0:
            subprocess.run(("chown", "-R", "65534:65534", str(project.folder)), check=True)
            os.chown(secret, 0, 0)
            argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
        environment = project.environment({"HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"})
        done = subprocess.run(argv, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == ExitCode.USAGE, done.stderr
        assert f"{secret}: cannot be read" in done.stderr
        assert "Permission denied" in done.stderr
        assert "exclude" in done.stderr
        assert half_made(project) == []


# ---- tokenizers -----------------------------------------------------------------------------------------------------------


def write_tokenizer(path: Path, *, vocab_size: int = 300, end_of_text: str = "<|endoftext|>") -> Path:
    """Writes a byte-level BPE in one file."""
    from schemas.config import TokenizerConfig
    from tasks.tokenizer.bpe import train_bpe

    texts = ["the water flows over the mill wheel and grinds the grain " * 20]
    path.write_bytes(train_bpe(texts, config=TokenizerConfig(vocab_size=vocab_size, end_of_text=end_of_text, min_frequency=1)).tokenizer_json)
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "cannot be loaded"), (b"{", "cannot be loaded"), (b"[]", "cannot be loaded"), (b"\xff\xfe", "cannot be loaded"), (None, "does not exist")],
)
def test_what_is_no_tokenizer_is_refused_by_the_plan(headrace: Call, tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    answer = headrace("plan", "tiny.yaml", "--set", f"tokenizer.path={path}")
    assert answer.code == ExitCode.USAGE
    assert says in answer.err


def test_a_tokenizer_without_the_end_of_text_token_is_refused_by_the_plan(headrace: Call, tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", end_of_text="</s>")
    answer = headrace("plan", "tiny.yaml", "--set", f"tokenizer.path={path}")
    assert answer.code == ExitCode.USAGE
    assert "has no special token '<|endoftext|>'" in answer.err
    assert "</s>" in answer.err
    assert headrace("plan", "tiny.yaml", "--set", f"tokenizer.path={path}", "--set", "tokenizer.end_of_text=</s>").code == 0


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused_by_the_plan(headrace: Call, tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    for command in ("plan", "run"):
        answer = headrace(command, "tiny.yaml", "--set", f"tokenizer.path={path}", "--set", "model.config.vocab_size=64")
        assert answer.code == ExitCode.USAGE
        assert "model.config.vocab_size = 64" in answer.err
        assert "the tokenizer has 291 ids" in answer.err
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 64}')
    (folder / "model.safetensors").touch()
    pretrained = ("--set", "model.config=null", "--set", f"model.pretrained={folder}")
    answer = headrace("plan", "tiny.yaml", "--set", f"tokenizer.path={path}", *pretrained)
    assert answer.code == ExitCode.USAGE
    assert "vocab_size = 64" in answer.err


# ---- stages, with real jobs -----------------------------------------------------------------------------------------------


@pytest.fixture
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for Great Expectations, whose import takes seconds, where a test is about the scan."""

    def judge(*_: Any, docs_dir: Path, **__: Any) -> judging.Judgement:
        (docs_dir / "index.html").write_text("judged")
        return judging.Judgement(judging.Verdict.PASS, 1, ())

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "preload", lambda: None)


def make_stages(project: Project, *assignments: str, until: Stage) -> list[ArtifactRecord]:
    """Makes the first stages of a new run with real jobs, without Prefect, and returns their records."""
    import importlib

    loaded = load_recipe(project.recipe, assignments)
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path), overrides=tuple(assignments))
    bench = bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view))
    stages = list(Stage)[: list(Stage).index(until) + 1]
    return [find_or_make(stage, bench=bench, build=importlib.import_module(f"tasks.{stage.value}.build").build) for stage in stages]


def write_mixed_corpus(folder: Path) -> Counter[str]:
    """Writes good and bad records of every format and returns how many were planted by reason."""
    folder.mkdir()

    def good(name: str, count: int) -> list[bytes]:
        return [json.dumps({"text": f"A good document of {name}, number {i}, about water and wheels."}).encode() for i in range(count)]

    lines = good("plain", 200)
    bad = [
        b"{broken",
        b'{"text": "caf\xe9"}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"text": "a\\u0000b"}',
        b'{"other": 1}',
        b"",
        b'{"text": 7}',
        b"[1]",
    ]
    for index, line in enumerate([*bad, lines[0]]):
        lines.insert(index * 20 + 10, line)
    (folder / "plain.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    whole = gzip.compress(b"\n".join(good("cut", 5000)) + b"\n")
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "rubbish.jsonl.gz").write_bytes(b"this is not gzip at all")
    pq.write_table(pa.table({"text": [f"row {i} of a table that will be cut" for i in range(500)]}), folder / "cut.parquet")
    data = (folder / "cut.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(data[: len(data) * 2 // 3])
    (folder / "nothing.jsonl").touch()
    (folder / "table.csv").write_text('id,text\n1,a fine row of a table\n2,one,too many\n3,"another, fine, row"\n')
    (folder / "latin.txt").write_bytes("grüße".encode("latin-1"))
    (folder / "binary.txt").write_bytes(b"\x7fELF" + bytes(range(1, 32)) * 20)
    planted = ["invalid JSON", "invalid UTF-8", "null text", "empty text", "NUL character", "missing column", "blank line", "wrong type"]
    planted += ["not a JSON object", "duplicate", "truncated file", "empty file", "malformed CSV", "invalid UTF-8", "unprintable characters"]
    return Counter(planted)


@SLOW
@pytest.mark.usefixtures("lenient_judge")
def test_what_cannot_be_read_is_quarantined_with_its_place_and_the_counts_balance(tmp_path: Path) -> None:
    changes = {"corpus.sources": ["mixed"], "corpus.group_bytes": 20_000, "corpus.rules": {"min_printable_share": 0.9}}
    project = make_project(tmp_path / "project", changes=changes)
    planted = write_mixed_corpus(project.folder / "mixed")
    (record,) = make_stages(project, until=Stage.VALIDATE)
    folder = project.root / record.key
    manifest = CorpusManifest.model_validate_json((folder / "manifest.json").read_bytes())
    accepted = [row for file in manifest.files for row in pq.read_table(folder / file.file.path).to_pylist()]
    refused = [row for path in sorted((folder / "quarantine").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert manifest.read == manifest.accepted + manifest.quarantined
    assert (len(accepted), len(refused)) == (manifest.accepted, manifest.quarantined)
    reasons = Counter(row["reason"] for row in refused)
    assert reasons == manifest.reasons
    damaged = reasons.pop("damaged file")
    assert damaged == 2, "the file that is no gzip, the table without its end"
    assert reasons == planted
    places = {(row["path"], row["row"]): row["reason"] for row in refused}
    assert places["plain.jsonl", 11] == "invalid JSON"
    assert places["plain.jsonl", 31] == "invalid UTF-8"
    assert places["table.csv", 2] == "malformed CSV"
    rescued = sum(row["path"] == "cut.jsonl.gz" for row in accepted)
    assert rescued > 1000, "what came before the cut is kept"
    assert places["cut.jsonl.gz", rescued + 1] == "truncated file"
    assert all(row["excerpt"].isprintable() for row in refused)
    assert [path for path in half_made(project) if not path.endswith("record.json")] == []


@SLOW
@pytest.mark.usefixtures("lenient_judge")
def test_a_missing_column_stops_the_run_and_names_file_and_column(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"corpus.sources": ["shards"]})
    (project.folder / "shards").mkdir()
    for shard in range(20):
        column = "body" if shard == 17 else "text"
        lines = [json.dumps({column: f"document {i} of shard {shard}"}) for i in range(10)]
        (project.folder / "shards" / f"part-{shard:02d}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"part-17\.jsonl: no column 'text', in all 10 records") as caught:
        make_stages(project, until=Stage.TOKENIZE)
    assert caught.value.exit_code is ExitCode.USAGE
    assert half_made(project) == []
    assert not (project.root / "tokenizer").exists()


@SLOW
@pytest.mark.usefixtures("lenient_judge")
def test_text_that_changed_after_validation_is_validated_again(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    first, *_ = make_stages(project, until=Stage.TOKENIZE)
    victim = next((project.folder / "text").iterdir())
    victim.write_text("changed = 'after it was validated'\n")
    config = load_recipe(project.recipe).config
    plan = make_plan(config)
    assert plan.stage(Stage.VALIDATE).action is Action.BUILD
    assert plan.stage(Stage.VALIDATE).reasons == ("the raw files changed",)
    again, *_ = make_stages(project, until=Stage.TOKENIZE)
    assert again.key != first.key
    texts = [text for path in (project.root / again.key / "accepted").iterdir() for text in pq.read_table(path)["text"].to_pylist()]
    assert "changed = 'after it was validated'\n" in texts


@SLOW
@pytest.mark.usefixtures("lenient_judge")
def test_a_run_whose_text_changed_is_not_resumed_on_other_text(tmp_path: Path) -> None:
    from tasks.validate.build import build

    project = make_project(tmp_path / "project")
    loaded = load_recipe(project.recipe)
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path))
    bench = bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view))
    find_or_make(Stage.VALIDATE, bench=bench, build=build)
    next((project.folder / "text").iterdir()).write_text("other = 'text'\n")
    with pytest.raises(HeadraceError, match="not there any more") as caught:
        find_or_make(Stage.VALIDATE, bench=bench, build=build)
    assert caught.value.exit_code is ExitCode.USAGE


@SLOW
@pytest.mark.usefixtures("lenient_judge")
@pytest.mark.parametrize("drop", [True, False])
def test_copies_of_a_held_out_document_never_reach_the_training_split(tmp_path: Path, drop: bool) -> None:
    changes = {"corpus.sources": ["docs"], "corpus.group_bytes": 5_000, "corpus.rules": {"drop_duplicates": drop}}
    project = make_project(tmp_path / "project", changes={**changes, "corpus.splits": {"validation": 0.2, "test": 0.2}})
    (project.folder / "docs").mkdir()
    for file in range(4):  # every file holds every document, in another order
        numbers = sorted(range(100), key=lambda number: (number * 37 + file * 11) % 101)
        lines = [json.dumps({"text": f"This is document {number}, planted in every file."}) for number in numbers]
        (project.folder / "docs" / f"part-{file}.jsonl").write_text("\n".join(lines) + "\n")
    (record,) = make_stages(project, until=Stage.VALIDATE)
    manifest = CorpusManifest.model_validate_json((project.root / record.key / "manifest.json").read_bytes())
    splits: dict[str, set[str]] = {}
    for file in manifest.files:
        for text in pq.read_table(project.root / record.key / file.file.path)["text"].to_pylist():
            splits.setdefault(text, set()).add(file.split)
    assert len(splits) == 100
    assert {len(found) for found in splits.values()} == {1}
    assert {split for found in splits.values() for split in found} == {"train", "validation", "test"}


@SLOW
@pytest.mark.usefixtures("lenient_judge")
def test_a_tokenizer_that_was_swapped_is_found_before_its_ids_are_used(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    _, tokenizer = make_stages(project, until=Stage.TOKENIZER)
    path = project.root / tokenizer.key / "tokenizer.json"
    kept = path.read_bytes()
    write_tokenizer(path, vocab_size=400)
    with pytest.raises(VerificationError, match=r"tokenizer\.json") as caught:
        make_stages(project, until=Stage.TOKENIZE)
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert not list((project.root / "tokenize").glob("*/record.json"))
    path.write_bytes(kept)
    make_stages(project, until=Stage.TOKENIZE)
    write_tokenizer(path, vocab_size=400)
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        make_stages(project, until=Stage.EXPORT)
    assert not list((project.root / "export").glob("*/record.json"))


# ---- the whole command ----------------------------------------------------------------------------------------------------


@SLOW
def test_a_corpus_that_fails_ends_the_command_with_its_verdict(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"corpus.sources": ["mixed"]})
    write_mixed_corpus(project.folder / "mixed")
    (project.folder / "mixed" / "more.jsonl").write_text("broken\n" * 3000)
    done = project.headrace("run", "tiny.yaml")
    assert done.returncode == ExitCode.DATA_VERDICT, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "max_quarantined_share" in done.stderr
    assert half_made(project) == []
    (folder,) = (project.root / "validate").iterdir()
    assert (folder / "docs" / "index.html").exists(), "the reports are kept"
    view = project.answer("status", "last")
    assert view["state"] == "failed"
    assert [stage["state"] for stage in view["stages"]][:2] == ["failed", "pending"]
    quarantined = sum(len(pq.read_table(path)) for path in (folder / "quarantine").iterdir())
    stats = json.loads((folder / "stats.json").read_text())["total"]
    assert stats["read"] == quarantined + sum(split["documents"] for split in stats["accepted"].values())
