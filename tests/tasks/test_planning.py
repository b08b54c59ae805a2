"""Plans: of a model that is known by its code, what changed code means; of a mixture, what training will see of its sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.corpus_config import SplitConfig
from schemas.errors import ConfigError, InputError
from schemas.plan import Action, PlannedStage
from schemas.recipe_config import ModelConfig
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.planning import make_plan
from tasks.store import Store
from tasks.train.sibling import Trajectory
from tasks.work import Draft
from tests.fakes.in_process_work import commit as record_of
from tests.fakes.in_process_work import config_with
from tests.fakes.plain_hashes import PlainHashes
from tests.fakes.training_artifact import write_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    write_model(tmp_path / "project")
    return config_with(
        corpus={"sources": [str(tmp_path / "text")]},
        storage={"root": str(tmp_path / "data")},
        state=str(tmp_path / "state"),
        model={"factory": "hr_planned.small:make"},
    )


def write_model(project_dir: Path, *, layers: int = 2) -> None:
    package = project_dir / "hr_planned"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise AssertionError('the source was run')\n")
    (package / "small.py").write_text("from hr_planned.layers import LAYERS\n")
    (package / "layers.py").write_text(f"LAYERS = {layers}\n")


def finish(config: RunConfig, project_dir: Path, **summaries: Mapping[str, Any]) -> dict[Stage, ArtifactRecord]:
    """Commits empty artifacts of the stages up to `train`, as this configuration identifies them now. `summaries`: by stage."""
    summaries = {"validate": {"documents": {"train": 9, "validation": 0, "test": 1}}, **summaries}
    store = Store(FileStorage(Path(config.storage.root)))
    records: dict[Stage, ArtifactRecord] = {}
    for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.TRAIN):
        contents = {source: records[source].content_hash for source in config.inputs_of(stage)}
        identity = identity_of(stage, config=config, inputs=contents, hashes=PlainHashes(), project_dir=project_dir)
        key, summary = store.place(identity, rebuild=False), dict(summaries.get(stage.value, {}))
        record = record_of(store.storage.root, stage, Draft(files=(), summary=summary, content_hash=stage.value), key=key)  # type: ignore[attr-defined]
        inputs = tuple(records[source].ref() for source in config.inputs_of(stage))
        known = {"name": config.name, "fingerprint": identity.fingerprint, "inputs": inputs, "outside": identity.outside, "recipe": identity.recipe}
        records[stage] = store.find(identity) or store.commit(record.model_copy(update=known))
    return records


def planned(config: RunConfig, project_dir: Path) -> PlannedStage:
    return make_plan(config, project_dir=project_dir).stage(Stage.TRAIN)


def test_what_pods_do_not_see_is_warned_of_while_it_is_to_be_read(config: RunConfig, tmp_path: Path) -> None:
    cluster = {"kind": "kubernetes", "image": "x:1", "kubernetes": {"volumes": [{"mount": str(tmp_path / "data"), "claim": "data"}]}}
    config = RunConfig.model_validate({**config.model_dump(), "cluster": cluster})
    warned = make_plan(config, project_dir=tmp_path / "project").warnings
    assert [line.partition(":")[0] for line in warned] == ["corpus.sources.0", "model.factory"]
    finish(config, tmp_path / "project")
    assert make_plan(config, project_dir=tmp_path / "project").warnings == ()


def test_a_recipe_of_another_name_takes_text_and_tokens_over_and_trains_its_own_model(config: RunConfig, tmp_path: Path) -> None:
    made = finish(config, tmp_path / "project")
    plan = make_plan(config.model_copy(update={"name": "other"}), project_dir=tmp_path / "project")
    for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE):
        planned = plan.stage(stage)
        assert (planned.action, planned.key) == (Action.REUSE, made[stage].key)
        assert planned.reasons == ("found by content", f"made under the recipe name {config.name}")
    trained = plan.stage(Stage.TRAIN)
    assert (trained.action, trained.key.startswith("train/other-")) == (Action.BUILD, True)
    assert make_plan(config, project_dir=tmp_path / "project").stage(Stage.VALIDATE).reasons == ("found by content",)


def test_unchanged_code_is_found_again_wherever_the_project_lies(config: RunConfig, tmp_path: Path) -> None:
    finish(config, tmp_path / "project")
    assert planned(config, tmp_path / "project").action is Action.REUSE
    write_model(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "unrelated.py").write_text("x = 1\n")
    assert planned(config, tmp_path / "elsewhere").action is Action.REUSE


@pytest.mark.parametrize("name", ["small.py", "layers.py", "__init__.py"])
def test_changed_code_is_another_model_and_the_plan_says_so(config: RunConfig, tmp_path: Path, name: str) -> None:
    finish(config, tmp_path / "project")
    path = tmp_path / "project" / "hr_planned" / name
    path.write_text(path.read_text() + "# another\n")
    stage = planned(config, tmp_path / "project")
    assert stage.action is Action.BUILD
    (reason,) = stage.reasons
    assert reason.startswith("model.factory changed")
    finish(config, tmp_path / "project")
    assert planned(config, tmp_path / "project").action is Action.REUSE


def test_changed_code_is_another_trajectory(config: RunConfig, tmp_path: Path) -> None:
    """So a longer run never goes on from a checkpoint that other code made."""
    hashes = set()
    for layers in (2, 3, 2):
        write_model(tmp_path / "project", layers=layers)
        contents = {source: source.value for source in config.inputs_of(Stage.TRAIN)}
        identity = identity_of(Stage.TRAIN, config=config, inputs=contents, hashes=PlainHashes(), project_dir=tmp_path / "project")
        hashes.add(Trajectory.of(config, inputs=identity.inputs, total_steps=200).hash)
        assert {entry.path for entry in identity.outside_files} == {f"hr_planned/{name}.py" for name in ("__init__", "small", "layers")}
    assert len(hashes) == 2


def test_code_that_is_not_there_is_said_at_once(config: RunConfig, tmp_path: Path) -> None:
    """Though nothing is tokenized yet, so that the training's own identity is not known."""
    with pytest.raises(ConfigError, match=r"model\.factory = 'hr_planned\.small:make': cannot be found: there is no module 'hr_planned'"):
        make_plan(config, project_dir=tmp_path / "nowhere")
    assert planned(config, tmp_path / "project").action is Action.DEPENDS


def test_the_ids_of_a_tokenizer_that_exists_decide_how_large_the_model_is(config: RunConfig, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["text"], key="given")
    config = config.model_copy(
        update={
            "tokenizer": config.tokenizer.model_copy(update={"path": str(tmp_path / "given")}),
            "model": ModelConfig(config={"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}),
        }
    )
    model = make_plan(config).size.model
    assert model is not None
    assert model.vocab_size == 260  # 256 bytes, three merges, the end of text


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ({"path": "given"}, "no chat template"),
        ({"path": "given", "chat_template": "{% if %}"}, "no Jinja"),
        ({"chat_template": "{{ x }"}, "no Jinja"),
    ],
)
def test_conversations_without_a_usable_template_are_refused_before_any_work(
    config: RunConfig, tmp_path: Path, tokenizer: dict[str, str], says: str
) -> None:
    write_tokenizer(tmp_path, ["text"], key="given")
    values = config.model_dump(mode="json")
    values["corpus"]["sources"] = [{"path": str(tmp_path / "text"), "kind": "chat"}]
    values["tokenizer"] = {key: str(tmp_path / value) if key == "path" else value for key, value in tokenizer.items()}
    with pytest.raises(InputError, match=says):
        make_plan(RunConfig.model_validate(values), project_dir=tmp_path / "project")


def mixed(config: RunConfig, weights: Mapping[str, float], *, text: Path) -> RunConfig:
    """Returns the recipe with two sources and their weights: 200 steps of 8 sequences."""
    values = config.model_dump(mode="json")
    values["corpus"]["sources"] = [{"path": str(text), "name": "web"}, {"path": str(text), "name": "code"}]
    values["tokenization"]["by_source"] = True
    values["training"]["mixture"] = {"weights": dict(weights)}
    return RunConfig.model_validate(values)


def test_a_source_that_will_be_repeated_too_often_is_warned_of(config: RunConfig, tmp_path: Path) -> None:
    config = mixed(config, {"web": 3, "code": 1}, text=tmp_path / "text")
    by_source = {"web": 600, "code": 50}
    finish(config, tmp_path / "project", tokenize={"sequences": {"train": 650}, "sequences_by_source": by_source})
    plan = make_plan(config, project_dir=tmp_path / "project")
    assert [(share.source, share.epochs) for share in plan.size.sources] == [("web", 2.0), ("code", 8.0)]
    (warning,) = [warning for warning in plan.warnings if "2305.16264" in warning]
    assert warning.startswith("source code will be seen 8.0 times")


def test_a_mixture_that_the_tokens_cannot_give_is_refused_at_once(config: RunConfig, tmp_path: Path) -> None:
    config = mixed(config, {"web": 3, "code": 1}, text=tmp_path / "text")
    finish(config, tmp_path / "project", tokenize={"sequences": {"train": 600}, "sequences_by_source": {"web": 600}})
    with pytest.raises(ConfigError, match=r"training\.mixture\.weights\.code = 1.*no training sequence"):
        make_plan(config, project_dir=tmp_path / "project")


@pytest.mark.parametrize("finds_out", ["by its share", "by its documents"])
def test_a_corpus_by_which_no_model_could_be_evaluated_is_refused_before_it_is_trained(config: RunConfig, tmp_path: Path, finds_out: str) -> None:
    if finds_out == "by its share":
        corpus = config.corpus.model_copy(update={"splits": SplitConfig(test=0.0)})
        config = config.model_copy(update={"corpus": corpus})
    else:
        finish(config, tmp_path / "project", validate={"documents": {"train": 10, "validation": 2, "test": 0}})
    with pytest.raises(ConfigError, match=r"corpus\.splits\.test = 0\.0\d?: leaves no text to evaluate the model by.*; raise it, or give more text"):
        make_plan(config, project_dir=tmp_path / "project")
