"""The documents are true where a machine can tell: links, commands, options, tables of numbers, and the snippets for users, which are run."""

import ast
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer.main
import yaml

from flows import cli
from schemas.exit_code import ExitCode
from schemas.ledger import Spent
from schemas.recipe import load_recipe
from schemas.stage import Stage, inputs_of, stages_of
from tasks.tokenize.shard_file import write_shard
from tasks.train.deepspeed_config import deepspeed_config

ROOT = Path(__file__).resolve().parents[2]
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = (README, README_ZH, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
ASSIGNMENT = re.compile(r"^[A-Z][A-Z_]*=")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


class Call(NamedTuple):
    """A command that a page shows."""

    page: str
    words: tuple[str, ...]


def blocks_of(page: Path, *languages: str) -> list[Block]:
    found = (Block(match["language"], match["text"]) for match in FENCE.finditer(page.read_text(encoding="utf-8")))
    return [block for block in found if not languages or block.language in languages]


def calls(program: str) -> Iterator[Call]:
    """The calls of `program` in shell blocks, without variables before it and comments after it."""
    for page in PAGES:
        for block in blocks_of(page, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and ASSIGNMENT.match(words[0]):
                    words.pop(0)
                if words and Path(words[0]).name == program:
                    yield Call(page.name, tuple(words[1:]))


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# ---- links, commands, numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for match in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.suffix == ".md" and path.exists() else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(match["target"])
    assert broken == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = [(call.page, word) for call in calls("make") for word in call.words if not ASSIGNMENT.match(word)]
    assert len(shown) > 5
    assert [pair for pair in shown if pair[1] not in targets] == []


def test_every_headrace_command_and_option_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    shown = list(calls("headrace"))
    assert len(shown) > 15
    wrong = []
    for call in shown:
        command = group.commands.get(call.words[0])
        if hasattr(command, "commands"):  # `headrace store gc`
            command = command.commands.get(call.words[1])
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} if command else set()
        unknown = [word for word in call.words[1:] if word.startswith("-") and word.partition("=")[0] not in options]
        wrong += [(call.page, *call.words)] if command is None or unknown else []
    assert wrong == []


def test_commands_in_running_text_exist() -> None:
    known = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]  # a group
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        wrong += [(page.name, word) for word in re.findall(r"`headrace ([a-z-]+)", text) if word not in known]
        wrong += [(page.name, word) for word in re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z0-9-]+)", text) if word not in targets]
    assert wrong == []


@pytest.mark.parametrize("page", [README, README_ZH, ROOT / "docs" / "operations.md"], ids=lambda page: page.name)
def test_tables_of_exit_codes_are_complete(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+ \|", line)]
    shown = [int(cell) for row in rows for cell in row.split("|") if cell.strip().isdecimal()]
    assert sorted(shown) == sorted(int(code) for code in ExitCode)


def test_time_outs_are_those_of_the_code() -> None:
    rows = re.findall(r"\| `([\w/]+\.py)` `(\w+)` \| ([\d.]+) \|", (ROOT / "docs" / "fault-tolerance.md").read_text(encoding="utf-8"))
    assert len(rows) == 22
    assert [(file, name, float(value)) for file, name, value in rows] == [(file, name, first_number(ROOT / file, name)) for file, name, _ in rows]


def first_number(path: Path, name: str) -> float:
    """The first number in what is assigned to `name`, anywhere in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return next(float(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Constant) and isinstance(part.value, int | float))
    raise AssertionError(f"{path} has no {name}")


def test_tests_and_modules_that_pages_name_exist() -> None:
    """No test, no claim."""
    named = [
        (page.name, path) for page in PAGES for path in re.findall(r"`((?:tests|schemas|cluster|tasks|flows)/[\w/]+\.py)`", page.read_text("utf-8"))
    ]
    assert len({path for _, path in named if path.startswith("tests/")}) > 20
    assert [pair for pair in named if not (ROOT / pair[1]).is_file()] == []


def test_the_categories_of_the_ledger_are_the_code_s() -> None:
    section = (ROOT / "docs" / "fault-tolerance.md").read_text(encoding="utf-8").partition("## The ledger")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    assert re.findall(r"`([^`]+)`", first_cells) == [category.value for category in Spent]


def test_the_diagram_of_stages_is_the_code_s() -> None:
    (diagram,) = blocks_of(ROOT / "docs" / "architecture.md", "mermaid")
    stages = {stage.value for stage in Stage}
    edges = {(source, target) for source, targets in re.findall(r"(\w+) --> (.+)", diagram.text) for target in re.findall(r"[a-z]+", targets)}
    reads = {
        (stage, source) for prepared in (False, True) for stage in stages_of(prepared=prepared) for source in inputs_of(stage, prepared=prepared)
    }
    assert {edge for edge in edges if set(edge) <= stages} == {(source.value, stage.value) for stage, source in reads}


def test_decisions_are_numbered_without_gaps() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [page.read_text(encoding="utf-8").partition(".")[0] for page in pages]
    assert [page.name[:4] for page in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    assert titles == [f"# {number}" for number in range(1, len(pages) + 1)]


def test_no_page_names_a_folder_of_this_machine() -> None:
    assert [page.name for page in PAGES if str(ROOT) in page.read_text(encoding="utf-8")] == []


# ---- the two READMEs --------------------------------------------------------------------------------------------------


def test_both_readmes_have_the_same_code_blocks() -> None:
    english, chinese = blocks_of(README), blocks_of(README_ZH)
    assert [block.language for block in english] == [block.language for block in chinese]
    assert [block for block in english if block.language != "text"] == [block for block in chinese if block.language != "text"]
    assert demo_screen(README) == demo_screen(README_ZH)
    assert tree_paths(README) == tree_paths(README_ZH)


def test_the_tree_is_there() -> None:
    paths = tree_paths(README)
    assert len(paths) > 15
    assert [path for path in paths if not path.startswith(".headrace") and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [README, README_ZH], ids=lambda page: page.name)
def test_a_readme_is_read_in_minutes(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 205
    assert len(demo_screen(page).splitlines()) <= 20


def demo_screen(page: Path) -> str:
    (found,) = re.findall(r"<!-- demo:start -->\n```text\n(.*?)```\n<!-- demo:end -->", page.read_text(encoding="utf-8"), re.DOTALL)
    assert isinstance(found, str)
    return found


def tree_paths(page: Path) -> list[str]:
    """The paths that the tree of a README names, relative to the root."""
    (tree,) = (block.text for block in blocks_of(page, "text") if block.text.startswith("flows/"))
    paths, folder = [], ""
    for line in tree.splitlines():
        names = re.match(r"\s*((?:[\w./-]+ ?)+)(?:  |$)", line)
        assert names is not None, line
        if not line.startswith(" "):
            folder = names[1].strip()
            paths.append(folder)
        else:
            paths += [folder + name for name in names[1].split()]
    return paths


# ---- snippets that are run --------------------------------------------------------------------------------------------


def snippets(language: str) -> list[str]:
    return [block.text for block in blocks_of(README, language)]


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=lambda text: text.partition(":")[0])
def test_fragments_of_recipes_load(snippet: str, tmp_path: Path) -> None:
    (tmp_path / ".headrace").mkdir()
    for name in ("data/a.jsonl.gz", "notes/a.md", "my-tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(gzip.compress(b"{}"))
    recipe = yaml.safe_load((ROOT / "infra" / "recipes" / "demo_cpu.yaml").read_text(encoding="utf-8"))
    for section, value in yaml.safe_load(snippet).items():
        recipe[section] = value if section in ("model", "tokenizer") else {**recipe[section], **value}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert loaded.config.name == "demo"
    assert loaded.warnings == ()


def test_the_deepspeed_file_fits_the_demo() -> None:
    (snippet,) = snippets("json")
    config = load_recipe(ROOT / "infra" / "recipes" / "demo_cpu.yaml").config
    options = deepspeed_config(config, world_size=2, options=json.loads(snippet))
    assert options["train_batch_size"] == config.training.global_batch_size
    assert "auto" not in json.dumps(options)


@pytest.mark.slow
def test_init_and_plan_work_as_shown(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / ".headrace").mkdir()
    (tmp_path / "books" / "a.txt").write_text("The miller opens the sluice, and the wheel begins to turn.\n" * 50, encoding="utf-8")
    shown = [call.words for call in calls("headrace") if call.page == README.name and call.words[0] in ("init", "plan") and "my.yaml" in call.words]
    assert [words[0] for words in shown] == ["init", "plan"]
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for words in shown:
        arguments = [word.replace("~", str(tmp_path)) for word in words]
        argv = (sys.executable, "-P", "-c", "from flows.cli import main; main()", *arguments)
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_model_of_ones_own_is_made_and_trains(tmp_path: Path) -> None:
    (snippet,) = (text for text in snippets("python") if text.startswith("# my_models.py"))
    (tmp_path / "my_models.py").write_text(snippet, encoding="utf-8")
    program = """
import torch
from my_models import small
model = small(vocab_size=300, sequence_length=32)
tokens = torch.arange(32).reshape(1, 32)
model(input_ids=tokens, labels=tokens).loss.backward()
print(sum(parameter.numel() for parameter in model.parameters() if parameter.grad is not None))
"""
    done = subprocess.run((sys.executable, "-c", program), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 300 * 128


def decoded(snippet: str, *, path: Path) -> list[Any]:
    """What a decoding snippet leaves in its variables `by_…`."""
    variables: dict[str, Any] = {"path": str(path)}
    exec(snippet, variables)
    return [value for name, value in variables.items() if name.startswith("by_")]


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, Any]:
    rows = np.random.default_rng(7).integers(0, 65_535, size=(40, 24), endpoint=True).astype("<u2")
    write_shard(tmp_path / "shard.parquet", rows, layout="fixed", facts={"dtype": "uint16", "sequence_length": 24})
    return tmp_path / "shard.parquet", rows


def test_pandas_polars_and_duckdb_decode_shards_as_shown(shard: tuple[Path, Any]) -> None:
    path, rows = shard
    (snippet,) = (text for text in snippets("python") if "pandas" in text)
    found = decoded(snippet, path=path)
    assert len(found) == 3
    assert all(np.array_equal(ids, rows) for ids in found)


@pytest.mark.slow
def test_datasets_decodes_shards_as_shown(shard: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = shard
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", path.parent / "cache")
    (snippet,) = (text for text in snippets("python") if "datasets" in text)
    (ids,) = decoded(snippet, path=path)
    assert np.array_equal(ids, rows)
