"""`headrace init`: what it finds out about text, and that what it writes is right."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.starter import write_recipe
from schemas.errors import ConfigError, InputError
from schemas.recipe import load_recipe
from schemas.stage import Stage

RECORD = {"id": "a-1", "url": "http://example.com/a/very/long/address/that/is/longer/than/the/text", "content": "Es war einmal mitten im Winter"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(text: str, **options: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"model": None, "tokenizer": None, "deepspeed": None, "cluster": "local"}
    return write_recipe(Path("my.yaml"), text=text, **(plain | options))


def written() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path("my.yaml").read_text())
    return data


def write_jsonl(project: Path) -> str:
    (project / "docs.jsonl").write_text(f"{json.dumps(RECORD)}\n" * 100)
    return "docs.jsonl"


def write_gzip(project: Path) -> str:
    (project / "docs.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(RECORD)}\n".encode() * 100))
    return "docs.jsonl.gz"


def write_zstandard(project: Path) -> str:
    with pa.CompressedOutputStream(pa.OSFile(str(project / "docs.jsonl.zst"), "wb"), "zstd") as stream:
        stream.write(f"{json.dumps(RECORD)}\n".encode() * 100)
    return "docs.jsonl.zst"


def write_parquet(project: Path) -> str:
    pq.write_table(pa.table({"id": [1, 2], "content": ["a", "b"]}), project / "docs.parquet")
    return "docs.parquet"


def write_csv(project: Path) -> str:
    (project / "docs.csv").write_text('id,"content"\n1,"a, b"\n')
    return "docs.csv"


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_zstandard, write_parquet, write_csv])
def test_the_text_column_is_found(project: Path, write: Any) -> None:
    path = write(project)
    init(path)
    assert written()["corpus"]["sources"] == [{"path": path, "text_column": "content"}]


def test_a_column_without_a_known_name_is_the_longest(project: Path) -> None:
    (project / "docs.jsonl").write_text(json.dumps({"k": "short", "prose": "a much longer piece of text", "n": 5}))
    init("docs.jsonl")
    assert written()["corpus"]["sources"][0]["text_column"] == "prose"


def test_a_prompt_is_the_beginning_of_ones_own_text(project: Path) -> None:
    init(write_jsonl(project))
    assert written()["evaluation"]["prompts"] == ["Es war einmal mitten"]


def test_a_folder_of_prose_makes_one_document_per_file(project: Path) -> None:
    (project / "books").mkdir()
    for number in range(3):
        (project / "books" / f"{number}.txt").write_text("很久很久以前，在一个遥远的王国里住着一位老人。" * 200)
    answer = init("books")
    assert "3 files, about " in answer["summary"]
    assert written()["corpus"]["sources"] == [{"path": "books", "format": "text"}]
    assert len(written()["evaluation"]["prompts"][0]) == 20
    assert load_recipe(Path("my.yaml")).warnings == ()


def test_what_lies_outside_the_project_is_named_absolutely(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a.txt").write_text("text")
    init(str(outside / "*.txt"))
    assert written()["corpus"]["sources"][0]["path"] == str(outside / "*.txt")


@pytest.mark.parametrize("cluster", ["local", "slurm", "kubernetes"])
def test_every_rank_gets_work(project: Path, cluster: str) -> None:
    init(write_jsonl(project), cluster=cluster)
    loaded = load_recipe(Path("my.yaml"))
    assert loaded.config.cluster.kind == cluster
    assert max(loaded.config.training.feasible_world_sizes) >= (8 if cluster != "local" else 1)
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("cluster", "commands"),
    [
        ("local", ["headrace plan my.yaml", "headrace run my.yaml"]),
        ("slurm", ["headrace plan my.yaml", "headrace doctor my.yaml", "headrace run my.yaml"]),
        ("kubernetes", ["headrace plan my.yaml", "headrace doctor my.yaml", "headrace run my.yaml"]),
    ],
)
def test_the_next_commands_are_those_that_work(project: Path, cluster: str, commands: list[str]) -> None:
    assert init(write_jsonl(project), cluster=cluster)["next"] == commands


def test_a_recipe_for_slurm_asks_for_gpus_in_training_alone_and_stops_before_it_is_killed(project: Path) -> None:
    init(write_jsonl(project), cluster="slurm")
    config = load_recipe(Path("my.yaml")).config
    gpus = {stage: config.cluster.resources(stage).gpus_per_node for stage in Stage if stage is not Stage.REGISTER}
    assert gpus == dict.fromkeys(gpus, 0) | {Stage.TRAIN: 8, Stage.EVALUATE: 1}
    assert config.cluster.grace_s < 30, "Slurm's KillWait, where nobody changed it"
    assert config.cluster.threads_per_rank == 4


def test_an_existing_model_brings_its_tokenizer_and_length(project: Path) -> None:
    model = project / "llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 128}))
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    init(write_jsonl(project), model=Path("llama"))
    data = written()
    assert data["model"] == {"pretrained": "llama"}
    assert data["tokenizer"] == {"path": "llama", "end_of_text": "</s>"}
    assert data["tokenization"] == {"sequence_length": 128}
    assert data["training"]["optimizer"]["learning_rate"] == 5e-05


def test_a_deepspeed_file_is_named(project: Path) -> None:
    (project / "ds.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    init(write_jsonl(project), deepspeed=Path("ds.json"))
    assert written()["deepspeed"] == "ds.json"


def test_wrong_options_come_at_once_and_leave_nothing(project: Path) -> None:
    path = write_jsonl(project)
    with pytest.raises(ConfigError) as caught:
        init(path, cluster="slrm", model=Path("nix"), tokenizer=Path("nix2"), deepspeed=Path("ds.json"))
    assert [(problem.key, problem.nearest) for problem in caught.value.problems] == [
        ("--cluster", "slurm"),
        ("--model", ""),
        ("--tokenizer", ""),
        ("--deepspeed", ""),
    ]
    assert sorted(found.name for found in project.iterdir()) == ["docs.jsonl", "pyproject.toml"]


def test_a_broken_deepspeed_file_leaves_nothing(project: Path) -> None:
    (project / "ds.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        init(write_jsonl(project), deepspeed=Path("ds.json"))
    assert not Path("my.yaml").exists()
    assert not list(project.glob(".my*"))


def test_a_recipe_is_never_overwritten(project: Path) -> None:
    Path("my.yaml").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        init(write_jsonl(project))
    assert Path("my.yaml").read_text() == "mine"


@pytest.mark.parametrize(("text", "says"), [("nowhere", "does not exist"), ("empty", "holds no file"), ("s3://bucket/x", "not on this machine")])
def test_text_that_is_not_there(project: Path, text: str, says: str) -> None:
    (project / "empty").mkdir()
    with pytest.raises(InputError, match=says):
        init(text)
    assert not Path("my.yaml").exists()


@pytest.mark.parametrize("content", [b"", b"not json\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_a_file_whose_first_record_is_broken_is_left_to_validate(project: Path, content: bytes) -> None:
    (project / "docs.jsonl").write_bytes(content)
    init("docs.jsonl")
    assert "text_column" not in written()["corpus"]["sources"][0]
