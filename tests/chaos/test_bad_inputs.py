"""Bad inputs at every edge: a clear error with the right exit code, no stack trace, nothing half-made, and counts that balance."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import cli
from schemas.exit_code import ExitCode
from schemas.recipe import load_recipe
from tasks.planning import make_plan
from tests.fakes.tiny_pipeline import Project, make_project


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


NOBODY = 65534


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
        ("nonsense://host/docs.jsonl", "is no protocol that is known"),
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


def test_a_file_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As root every file can be read, so the command runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="headrace-unreadable-") as folder:
        Path(folder).chmod(0o755)
        project = make_project(Path(folder) / "project")
        make_plan(load_recipe(project.recipe).config)  # imports what it needs: somebody else may not read the checkout
        secret = project.folder / "text" / "secret.py"
        secret.write_text("x = 1\n")
        secret.chmod(0)
        monkeypatch.setattr(sys, "argv", ["headrace", "plan", str(project.recipe)])
        with somebody_else(project.folder, but=secret), pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == ExitCode.USAGE
        shown = capsys.readouterr().err
        assert f"{secret}: cannot be read" in shown
        assert "Permission denied" in shown
        assert "exclude" in shown
        assert half_made(project) == []


@contextlib.contextmanager
def somebody_else(folder: Path, *, but: Path) -> Iterator[None]:
    """Makes this process, when it is root's, another user for a while, who owns all of `folder` but one file."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *((NOBODY, NOBODY) if path != but else (0, 0)))
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ---- tokenizers -----------------------------------------------------------------------------------------------------------


def write_tokenizer(path: Path, *, vocab_size: int = 300, end_of_text: str = "<|endoftext|>") -> Path:
    """Writes a byte-level BPE in one file."""
    from schemas.tokens_config import TokenizerConfig
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
