"""Recipes that are right: what paths, overrides and references come out as."""

import json
import sysconfig
from pathlib import Path

import pytest

from schemas.canonical import canonical_json
from schemas.frozen import thaw
from schemas.recipe import load_recipe

TEXT = """
name: demo
corpus: {sources: [docs]}
model: {config: {model_type: llama, rms_norm_eps: 1e-6}}
training: {steps: 100, global_batch_size: 16, micro_batch_size: 4, schedule: {warmup_steps: 10}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a recipe two folders down, and a current folder elsewhere."""
    for folder in ("project/.git", "project/docs", "project/recipes/deep", "elsewhere/docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "elsewhere/docs/a.txt").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def write(project: Path, text: str) -> Path:
    path = project / "recipes" / "deep" / "recipe.yaml"
    path.write_text(text)
    return path


def test_relative_paths_start_at_the_project_folder(project: Path) -> None:
    text = "state: ~/state\nstorage: {root: data}\ntracking: {mlflow_uri: 'sqlite:///ml.db'}\n"
    loaded = load_recipe(write(project, TEXT + text))
    assert loaded.project_dir == project
    assert loaded.config.corpus.sources[0].path == str(project / "docs")
    assert loaded.config.storage.root == str(project / "data")
    assert loaded.config.tracking.mlflow_uri == f"sqlite:///{project}/ml.db"
    assert loaded.config.state == str(Path("~/state").expanduser())


def test_defaults_are_made_absolute_too(project: Path) -> None:
    config = load_recipe(write(project, TEXT)).config
    assert (config.storage.root, config.state) == (str(project / ".headrace/data"), str(project / ".headrace/state"))


@pytest.mark.parametrize("mark", ["pyproject.toml", ".git", ".headrace"])
def test_the_nearest_mark_is_the_project_folder(tmp_path: Path, mark: str) -> None:
    (tmp_path / ".git").mkdir()
    inner = tmp_path / "inner" / "recipes"
    (inner / "docs").mkdir(parents=True)
    (tmp_path / "inner" / "docs").mkdir()
    (tmp_path / "inner" / mark).mkdir()
    (inner / "recipe.yaml").write_text(TEXT)
    assert load_recipe(inner / "recipe.yaml").project_dir == tmp_path / "inner"


def test_relative_paths_of_overrides_start_at_the_current_folder(project: Path) -> None:
    path = write(project, TEXT)
    elsewhere = project.parent / "elsewhere"
    for override in ('corpus.sources=["docs"]', "corpus.sources.0=docs", "corpus.sources.0.path=docs", "corpus.sources=[{path: docs}]"):
        assert load_recipe(path, [override]).config.corpus.sources[0].path == str(elsewhere / "docs")
    assert load_recipe(path, ["storage.root=out"]).config.storage.root == str(elsewhere / "out")


def test_urls_and_globs_stay(project: Path) -> None:
    overrides = ["storage.root=s3://bucket/x", "corpus.sources=['docs/*.txt', 's3://b/c.jsonl']", "tracking.mlflow_uri=http://host:5000"]
    config = load_recipe(write(project, TEXT), overrides).config
    assert config.storage.root == "s3://bucket/x"
    assert [source.path for source in config.corpus.sources] == [str(project.parent / "elsewhere/docs/*.txt"), "s3://b/c.jsonl"]
    assert config.tracking.mlflow_uri == "http://host:5000"


def test_overrides_are_yaml_and_the_last_one_wins(project: Path) -> None:
    overrides = [
        "training.steps=5",
        "training.steps=50",
        "training.schedule.warmup_steps=0",
        "training.optimizer.learning_rate=1e-3",
        "corpus.sources.1=docs",
    ]
    overrides += ["evaluation.prompts=['a: b', c]", "cluster.stages.train.nodes=2", "corpus.sources.0.name=first", "tracking.experiment="]
    loaded = load_recipe(write(project, TEXT), overrides)
    config = loaded.config
    assert (config.training.steps, config.training.schedule.warmup_steps, config.training.optimizer.learning_rate) == (50, 0, 1e-3)
    assert config.evaluation.prompts == ("a: b", "c")
    assert config.corpus.source_names == ("first", "source-1")
    assert config.cluster.resources(next(iter(config.cluster.stages))).nodes == 2
    assert config.tracking.experiment is None
    assert loaded.overrides == tuple(overrides)


def test_numbers_mean_what_they_look_like(project: Path) -> None:
    """YAML 1.1 would read `1e-6` as text, `no` as false and `24:00` as minutes."""
    text = TEXT.replace("name: demo", "name: no") + "cluster: {kind: slurm, queue: on, time_limit: 24h}\n"
    config = load_recipe(write(project, text), ["corpus.group_bytes=3_000_000"]).config
    assert config.model.config is not None
    assert config.model.config["rms_norm_eps"] == 1e-6
    assert (config.name, config.cluster.queue, config.corpus.group_bytes) == ("no", "on", 3_000_000)


def test_the_standard_library_is_found(project: Path) -> None:
    config = load_recipe(write(project, TEXT.replace("[docs]", "['${python:stdlib}']"))).config
    assert config.corpus.sources[0].path == sysconfig.get_path("stdlib")


def test_a_deepspeed_file_is_inlined_and_can_be_overridden(project: Path) -> None:
    (project / "ds.json").write_text(json.dumps({"zero_optimization": {"overlap_comm": True}}))
    path = write(project, TEXT + "deepspeed: ds.json\n")
    assert thaw(load_recipe(path).config.deepspeed) == {"zero_optimization": {"overlap_comm": True}}
    assert thaw(load_recipe(path, ["deepspeed.zero_optimization.overlap_comm=false"]).config.deepspeed) == {
        "zero_optimization": {"overlap_comm": False}
    }
    (project.parent / "elsewhere" / "other.json").write_text("{}")
    assert thaw(load_recipe(path, ["deepspeed=other.json"]).config.deepspeed) == {}


def test_secrets_are_never_in_what_is_stored(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_SECRET", "canary-5e1f")
    loaded = load_recipe(write(project, TEXT), ["tracking.mlflow_uri=http://me:${env:HEADRACE_TEST_SECRET}@host"])
    assert loaded.config.tracking.mlflow_uri == "http://me:${env:HEADRACE_TEST_SECRET}@host"
    assert b"canary" not in canonical_json(loaded.config)
    assert "canary" not in repr(loaded)


def test_a_storage_root_may_come_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_ROOT", "/scratch")
    assert load_recipe(write(project, TEXT + "storage: {root: '${env:HEADRACE_TEST_ROOT}/x'}\n")).config.storage.root == "${env:HEADRACE_TEST_ROOT}/x"


def test_text_for_shells_and_models_is_left_alone(project: Path) -> None:
    text = TEXT + "evaluation: {prompts: ['${foo:bar} ${env:NO_SUCH}']}\ncluster: {setup: ['echo ${env:NO_SUCH}']}\n"
    config = load_recipe(write(project, text)).config
    assert config.evaluation.prompts == ("${foo:bar} ${env:NO_SUCH}",)
    assert config.cluster.setup == ("echo ${env:NO_SUCH}",)


def test_inputs_on_a_cluster_need_not_exist_here(project: Path) -> None:
    text = TEXT.replace("[docs]", "[/nowhere/docs]") + "cluster: {kind: slurm}\n"
    assert load_recipe(write(project, text)).config.corpus.sources[0].path == "/nowhere/docs"


def test_the_hash_is_of_the_text(project: Path) -> None:
    first = load_recipe(write(project, TEXT))
    again = load_recipe(write(project, TEXT), ["training.steps=50"])
    other = load_recipe(write(project, f"{TEXT}# comment\n"))
    assert first.text_hash == again.text_hash != other.text_hash


def test_options_without_effect_are_named(project: Path) -> None:
    text = TEXT + "cluster: {stages: {train: {queue: gpu}}}\nevaluation: {temperature: 0.5}\n"
    warnings = load_recipe(write(project, text), ["training.schedule.kind=constant", "training.schedule.final_fraction=0.5"]).warnings
    assert [warning.split(" =")[0] for warning in warnings] == [
        "training.schedule.final_fraction",
        "cluster.stages.train.queue",
        "evaluation.temperature",
    ]


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("{language: {min_score: 0.9}}", "language.min_score"),
        ("{quality: {gopher: true, c4_limits: {min_sentences: 2}}}", "quality.c4_limits.min_sentences"),
        ("{decontamination: {files: [docs/a.txt]}}", "decontamination.files"),
        ("{duplicates: {exact: true, threshold: 0.5}}", "duplicates.threshold"),
    ],
)
def test_a_preparation_step_that_is_not_turned_on_is_named(project: Path, section: str, key: str) -> None:
    (warning,) = load_recipe(write(project, TEXT), [f"corpus.preparation={section}"]).warnings
    assert warning.startswith(f"corpus.preparation.{key} = ")


@pytest.mark.parametrize(
    ("source", "key"),
    [("{path: docs, format: text, text_column: body}", "text_column"), ("{path: docs, format: parquet, encoding: big5}", "encoding")],
)
def test_what_a_format_ignores_is_named(project: Path, source: str, key: str) -> None:
    (warning,) = load_recipe(write(project, TEXT), [f"corpus.sources=[{source}]"]).warnings
    assert warning.startswith(f"corpus.sources.0.{key} = ")


def test_a_recipe_without_useless_options_has_no_warnings(project: Path) -> None:
    assert load_recipe(write(project, TEXT)).warnings == ()
