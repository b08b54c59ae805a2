"""What training reads from outside the store: named by content, and checked again on every node, each file once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import hash_file
from schemas.artifact import FileEntry
from schemas.config import RunConfig
from schemas.errors import HeadraceError, InputError, UnsafeFileError, VerificationError
from schemas.exit_code import ExitCode
from tasks import outside_inputs
from tasks.outside_inputs import training_entries, verify_training_files
from tests.fakes.in_process_work import config_with

NAMES = ("config.json", "model-00001.safetensors", "model-00002.safetensors", "sub/extra.json")


def pretrained(folder: Path) -> RunConfig:
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(json.dumps({"model_type": "llama", "name": name}))
    return config_with(model={"pretrained": str(folder)})


def factory(folder: Path) -> RunConfig:
    (folder / "hr_models").mkdir(parents=True)
    for name in ("__init__.py", "small.py"):
        (folder / "hr_models" / name).write_text(f"NAME = {name!r}\n")
    return config_with(model={"factory": "hr_models.small:make"})


def entries_of(config: RunConfig, folder: Path) -> tuple[FileEntry, ...]:
    return training_entries(config, project_dir=folder, hash_file=hash_file)


def check(config: RunConfig, entries: tuple[FileEntry, ...], folder: Path, *, part: int = 0, num_parts: int = 1) -> None:
    verify_training_files(config, entries, project_dir=folder, part=part, num_parts=num_parts)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("make", [pretrained, factory])
def test_what_is_as_it_was_planned_passes(tmp_path: Path, make: Callable[[Path], RunConfig]) -> None:
    config = make(tmp_path / "it")
    check(config, entries_of(config, tmp_path / "it"), tmp_path / "it")


def test_a_model_of_transformers_has_nothing_outside(tmp_path: Path) -> None:
    assert entries_of(config_with(), tmp_path) == ()
    check(config_with(), (), tmp_path)


@pytest.mark.parametrize(
    ("make", "name"), [*((pretrained, name) for name in NAMES), (factory, "hr_models/small.py"), (factory, "hr_models/__init__.py")]
)
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes() + b" "), Path.unlink], ids=["flip", "grow", "remove"])
def test_a_node_that_sees_something_else_refuses_and_names_it(
    tmp_path: Path, make: Callable[[Path], RunConfig], name: str, damage: Callable[[Path], Any]
) -> None:
    config = make(tmp_path / "it")
    entries = entries_of(config, tmp_path / "it")
    damage(tmp_path / "it" / name)
    with pytest.raises(HeadraceError) as caught:
        check(config, entries, tmp_path / "it")
    assert Path(name).stem in str(caught.value)
    if damage is not Path.unlink and name != "config.json":  # without what says what they are, model and factory are refused as such
        assert caught.value.exit_code is ExitCode.VERIFICATION


@pytest.mark.parametrize(("make", "name"), [(pretrained, "adapter.json"), (pretrained, "sub/model.safetensors"), (factory, "hr_models/json.py")])
def test_a_file_that_was_added_on_a_node_is_refused(tmp_path: Path, make: Callable[[Path], RunConfig], name: str) -> None:
    config = make(tmp_path / "it")
    entries = entries_of(config, tmp_path / "it")
    (tmp_path / "it" / name).write_text("{}")
    with pytest.raises(VerificationError, match="was not there when this training was planned") as caught:
        check(config, entries, tmp_path / "it")
    assert name in str(caught.value)


def test_a_link_in_the_place_of_a_weight_file_is_refused(tmp_path: Path) -> None:
    config = pretrained(tmp_path / "it")
    entries = entries_of(config, tmp_path / "it")
    shutil.move(tmp_path / "it" / NAMES[1], tmp_path / "moved")
    (tmp_path / "it" / NAMES[1]).symlink_to(tmp_path / "moved")
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        check(config, entries, tmp_path / "it")


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_the_ranks_of_a_node_hash_each_file_once_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int) -> None:
    config = pretrained(tmp_path / "it")
    entries = entries_of(config, tmp_path / "it")
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.relative_to(tmp_path / "it").as_posix())
        return hash_file(path)

    monkeypatch.setattr(outside_inputs, "hash_file", counting)
    for rank in range(num_ranks):
        check(config, entries, tmp_path / "it", part=rank, num_parts=num_ranks)
    assert sorted(hashed) == sorted(NAMES)
    flip(tmp_path / "it" / NAMES[2])
    refusals = 0
    for rank in range(num_ranks):
        try:
            check(config, entries, tmp_path / "it", part=rank, num_parts=num_ranks)
        except VerificationError:
            refusals += 1
    assert refusals == 1


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    config = factory(tmp_path / "it")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(InputError, match=r"model\.factory: .*__init__\.py cannot be read"):
        training_entries(config, project_dir=tmp_path / "it", hash_file=refuse)
