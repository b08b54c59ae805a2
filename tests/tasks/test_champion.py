"""The champion as the start of a further training."""

import json
from pathlib import Path

import pytest

from cluster.storage import FileStorage
from schemas.config import RunConfig
from schemas.errors import InputError
from schemas.stage import Stage
from tasks.champion import find_champion
from tests.fakes.finished_records import finish, promote
from tests.fakes.in_process_work import config_with


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    return config_with(
        corpus={"sources": [str(tmp_path / "text")]},
        storage={"root": str(tmp_path / "data")},
        state=str(tmp_path / "state"),
    )


def storage_of(config: RunConfig) -> FileStorage:
    return FileStorage(Path(config.storage.root))


def test_without_a_promotion_there_is_no_champion(config: RunConfig) -> None:
    finish(config)
    assert find_champion(storage_of(config), config) is None


def test_a_training_starts_from_its_export_and_on_its_tokenizer(config: RunConfig) -> None:
    records = finish(config)
    promote(config, version=1)
    champion = find_champion(storage_of(config), config)
    assert champion is not None
    model = f"{config.storage.root}/{records[Stage.EXPORT].key}/model"
    assert (champion.uri, champion.training, champion.started_by) == ("models:/test/1", records[Stage.TRAIN].key, ())
    assert champion.overrides == (f"model={json.dumps({'pretrained': model})}", f'tokenizer.path="{model}"')


def test_a_tokenizer_that_the_recipe_names_stays(config: RunConfig, tmp_path: Path) -> None:
    finish(config)
    promote(config, version=1)
    own = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"path": str(tmp_path / "own")})})
    champion = find_champion(storage_of(config), own)
    assert champion is not None
    assert champion.overrides[1] == f'tokenizer.path="{tmp_path}/own"'


def test_one_that_went_on_from_another_says_where_it_started(config: RunConfig, tmp_path: Path) -> None:
    """So that nothing changed is told from something changed."""
    first = tmp_path / "first"
    first.mkdir()
    (first / "tokenizer.json").write_text("{}")
    (first / "config.json").write_text("{}")
    (first / "model.safetensors").write_bytes(b"weights")
    sections = {"model": {"pretrained": str(first)}, "tokenizer": {"path": str(first)}}
    later = RunConfig.model_validate(config.model_dump(mode="json") | sections)
    finish(config)
    finish(later, run_id="later", made="2", summaries={Stage.REGISTER: {"version": 2}})
    promote(config, version=1)
    promote(config, version=2, number=1)
    champion = find_champion(storage_of(config), config)
    assert champion is not None
    assert champion.uri == "models:/test/2"
    assert champion.started_by == (f"model={json.dumps({'pretrained': str(first)})}", f'tokenizer.path="{first}"')


def test_a_champion_whose_artifacts_are_gone_is_said(config: RunConfig) -> None:
    promote(config, version=4)
    with pytest.raises(InputError, match="no registered model 'test@champion'"):
        find_champion(storage_of(config), config)
