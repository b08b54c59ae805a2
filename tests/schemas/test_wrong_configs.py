"""A hundred wrong recipes: each is refused before any work, naming the key, the value found and what was probably meant."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.errors import ConfigError, InputError, Problem
from schemas.local_inputs import input_problems
from schemas.recipe import load_recipe
from tests.schemas.wrong_recipes import ALL, BASE, GONE, GOPHER, Wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("project")
    (base / "pyproject.toml").touch()
    (base / "docs").mkdir()
    (base / "docs/a.txt").touch()
    (base / "tokenizer.json").write_text("not json")
    (base / "ds.json").write_text("{}")
    return base


def edited(edits: dict[str, Any]) -> dict[str, Any]:
    """Returns the base recipe with dotted keys set or taken out."""
    data = copy.deepcopy(BASE)
    for dotted, value in edits.items():
        *parents, last = dotted.split(".")
        here = data
        for part in parents:
            here = here.setdefault(part, {})
        if value is GONE:
            del here[last]
        else:
            here[last] = value
    return data


def problems_of(folder: Path, data: dict[str, Any], *overrides: str) -> tuple[Problem, ...]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_there_are_a_hundred() -> None:
    assert len({repr((wrong.edits, wrong.key)) for wrong in ALL}) >= 100


def test_the_base_is_right(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert load_recipe(path).config.name == "demo"


@pytest.mark.parametrize("wrong", ALL, ids=lambda wrong: f"{wrong.key}={wrong.value}")
def test_wrong_recipe(folder: Path, wrong: Wrong) -> None:
    problems = problems_of(folder, edited(wrong.edits))
    assert [problem.key for problem in problems] == [wrong.key], [str(problem) for problem in problems]
    (problem,) = problems
    value, nearest = wrong.value.replace("{base}", str(folder)), wrong.nearest.replace("{base}", str(folder))
    assert problem.value.startswith(value), problem
    assert bool(problem.value) == bool(value), problem
    assert problem.nearest == nearest
    assert wrong.says in problem.message
    assert "geheim" not in str(problem)


def test_all_problems_come_at_once(folder: Path) -> None:
    """Of every section, of fields, of rules between fields and of rules between sections."""
    edits = {
        "name": "My Run",
        "corpus.splits": {"validation": 0.6, "test": 0.5},
        "corpus.sources": ["docz"],
        "tokenizer.vocab_size": 100,
        "model.config.max_position_embeddings": 128,
        "training.precision": "fp8",
        "training.global_batch_size": 18,
        "training.optimizer.learning_rate": 0,
        "cluster.kind": "slrum",
        "checkpoint.every": 5,
        "storage.root": "${env:HEADRACE_NO_SUCH}",
        "zzzz": 1,
    }
    keys = [problem.key for problem in problems_of(folder, edited(edits), "restart.max_failures=-1", "training.stepz=4", "oops")]
    assert sorted(keys) == sorted(
        [
            "name",
            "corpus.splits.validation",
            "corpus.sources.0",
            "tokenizer.vocab_size",
            "model.config.max_position_embeddings",
            "training.precision",
            "training.global_batch_size",
            "training.optimizer.learning_rate",
            "cluster.kind",
            "checkpoint.every",
            "storage.root",
            "zzzz",
            "restart.max_failures",
            "training.stepz",
            "oops",
        ]
    )


def test_all_contradictory_limits_come_at_once(folder: Path) -> None:
    limits = {"min_words": 9, "max_words": 8, "min_mean_word_length": 5.5, "max_mean_word_length": 5}
    problems = problems_of(folder, edited({GOPHER: limits}))
    assert [problem.key for problem in problems] == [f"{GOPHER}.{key}" for key in ("min_words", "min_mean_word_length")]


def test_a_missing_source_does_not_hide_those_that_hold_nothing(folder: Path) -> None:
    for name in ("full", "bare/deeper"):
        (folder / "texts" / name).mkdir(parents=True)
    (folder / "texts/full/a.txt").touch()
    sources = ["texts/full", "texts/bare", "texts/f*/*.txt", "texts/bare/*", "texts/nowhere", "texts/**.txt", "texts/full/a.txt"]
    found = {problem.key: problem.message for problem in problems_of(folder, edited({"corpus.sources": sources}))}
    assert found == {"corpus.sources.1": "holds no file", "corpus.sources.3": "holds no file", "corpus.sources.4": "does not exist"}


def test_a_link_that_leads_nowhere_is_not_what_was_meant(folder: Path) -> None:
    links = {"round-1": "round-2", "round-2": "round-1", "gone": "nothing"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    problems = problems_of(folder, edited({"corpus.sources": [*links, "round-3", "round-1/b.txt"]}))
    assert [problem.nearest for problem in problems] == ["", "", "", "", ""]
    assert [problem.message for problem in problems] == ["is a symbolic link that leads nowhere"] * 3 + ["does not exist"] * 2


def test_no_rule_is_reported_for_a_value_that_is_wrong_itself(folder: Path) -> None:
    (problem,) = problems_of(folder, edited({"training.steps": "many"}))
    assert "exactly one" not in problem.message


@pytest.mark.parametrize(
    ("override", "key", "value", "nearest"),
    [
        ("training.steps", "training.steps", "'training.steps'", "training.steps=VALUE"),
        ("trainig.steps=5", "trainig", "{'steps': 5}", "training"),
        ("training.stepz=5", "training.stepz", "5", "training.steps"),
        ("training.steps=five", "training.steps", "'five'", ""),
        ("training.steps.x=5", "training.steps.x", "5", "training.steps"),
        ("corpus.sources.3=a", "corpus.sources.3", "a'", "corpus.sources.1"),
        ("corpus.sources.name=a", "corpus.sources.name", "'a'", "corpus.sources.0.name"),
        ("corpus.sources=[", "corpus.sources", "'['", "'['"),
    ],
)
def test_wrong_override(folder: Path, override: str, key: str, value: str, nearest: str) -> None:
    problems = problems_of(folder, BASE, override)
    assert [problem.key for problem in problems] == [key]
    assert problems[0].value.endswith(value)
    assert problems[0].nearest == nearest
    assert problems[0].origin == "--set"


def test_a_duplicate_key_names_both_lines(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE, sort_keys=False) + "name: other\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    assert (problem.key, problem.origin) == ("name", "line 25")
    assert "in lines 1 and 25" in problem.message


def test_a_problem_names_its_line(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text("name: demo\ncorpus:\n  sources:\n    - path: docs\n      formatt: text\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert {problem.key: problem.origin for problem in caught.value.problems} == {"corpus.sources.0.formatt": "line 5", "model": "", "training": ""}
    assert "line 5: corpus.sources.0.formatt = 'text': unknown key; nearest valid: corpus.sources.0.format" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [", "not YAML: line"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"just text", "must be a mapping"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"name: !!python/object/apply:os.system ['touch x']\n", "not YAML"),
        (b"name: \tx\n  y: z", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(folder: Path, content: bytes, says: str) -> None:
    path = folder / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert says in str(caught.value)


def test_an_empty_recipe_lists_what_is_required(folder: Path) -> None:
    path = folder / "empty.yaml"
    path.touch()
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert [problem.key for problem in caught.value.problems] == ["name", "corpus", "model", "training"]


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "recipe.yaml").touch()
    (folder / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(InputError, match=r"did you mean .*recipe.yaml"):
        load_recipe(folder / "recip.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(folder)
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(folder / "latin.yaml")


def test_a_folder_that_cannot_be_looked_into_hides_no_other_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.txt").touch()

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    sources = [str(tmp_path / "closed"), str(tmp_path / "none.txt")]
    (problem,) = input_problems({"corpus": {"sources": sources}})
    assert (problem.key, problem.message) == ("corpus.sources.1", "does not exist")
