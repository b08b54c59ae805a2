"""Malicious paths, links and files in a store: nothing outside is read or written, nothing is executed, and the refusal says why."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import storage as storage_module
from cluster.patience import PatientStorage
from cluster.storage import FileStorage, Storage, open_storage, path_below
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json, hash_of
from schemas.errors import InputError, UnsafeFileError, VerificationError
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tasks import rehashing
from tasks.recorded_file import verified_path
from tasks.runs import Pointer, Run
from tasks.store import Store
from tasks.verify import VerifyReport, verify_model
from tests.fakes.booby_traps import TRAPS, booby_traps
from tests.fakes.in_process_work import write_corpus
from tests.fakes.training_artifact import COMMIT, FOLDER, Cut, write_training

UNSAFE = ("../../outside", "/etc/hostname", "a/../../outside", "a\0b", "a\\..\\b", "", "a//b", "./a")
KEY = "train/test-000000000000"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Is there after a booby trap went off."""
    return tmp_path / "canary"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage with a finished training artifact."""
    root = tmp_path / "data"
    record = write_training(root, {"w": np.arange(64, dtype=np.float32)}, cuts=[[Cut("w", 0, 64)]])
    (root / KEY / "record.json").write_bytes(record.sealed().to_bytes())
    (tmp_path / "outside").write_bytes(b"private")
    return root


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a sealed record as somebody would who knows how records are sealed."""
    body = json.loads(path.read_bytes())
    del body["record_hash"]
    change(body)
    path.write_bytes(canonical_json({**body, "record_hash": hash_of(body)}))


def verify(root: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyReport:
    """Verifies the artifact, and that nothing outside of the root was opened."""
    opened: list[Path] = []

    def watched(path: Path) -> str:
        opened.append(path.resolve())
        return storage_module.hash_file(path)

    monkeypatch.setattr(rehashing, "hash_file", watched)
    report = verify_model(FileStorage(root), KEY)
    assert [path for path in opened if not path.is_relative_to(root.resolve())] == []
    return report


# ---- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", UNSAFE)
@pytest.mark.parametrize("wrap", [lambda storage: storage, lambda storage: PatientStorage(storage, patience_s=60.0)], ids=["plain", "patient"])
def test_unsafe_keys_are_refused_at_every_call(tmp_path: Path, key: str, wrap: Callable[[Storage], Storage]) -> None:
    storage = wrap(FileStorage(tmp_path / "data"))
    for call in (storage.read, storage.exists, storage.size, storage.names, storage.delete, storage.local_path):
        with pytest.raises(UnsafeFileError) as caught:
            call(key)
        assert caught.value.exit_code is ExitCode.VERIFICATION
    with pytest.raises(UnsafeFileError):
        storage.create_exclusive(key, b"x")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("path", UNSAFE)
def test_no_record_manifest_or_commit_can_name_a_file_outside(path: str) -> None:
    for kind, values in ((FileEntry, {"path": path, "size": 7, "xxh3": "0"}), (Pointer, {"key": path, "fingerprint": "0"})):
        with pytest.raises(ValueError, match="does not stay below its folder"):
            kind.model_validate(values)


CRAFTED: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "file": lambda body: body["files"].append({"path": "../../../outside", "size": 7, "xxh3": "0" * 32}),
    "absolute file": lambda body: body["files"][0].update(path="/etc/hostname"),
    "own folder": lambda body: body.update(key="../outside"),
    "input": lambda body: body["inputs"].append(
        {"stage": "tokenize", "key": "../../outside", "fingerprint": "0" * 64, "content_hash": "0" * 64},
    ),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_record_is_refused_and_nothing_outside_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]
) -> None:
    reseal(root / KEY / "record.json", change)
    report = verify(root, monkeypatch)
    assert len(report.findings) == 1
    assert "does not stay below its folder" in report.findings[0]
    with pytest.raises(VerificationError, match=r"record\.json"):
        Store(FileStorage(root)).read(KEY)


@pytest.mark.parametrize("change", [lambda body: body.update(folder="../../../outside"), CRAFTED["file"]], ids=["folder", "file"])
def test_a_crafted_commit_is_refused_by_verify_and_by_resumption(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]
) -> None:
    from tasks.train.checkpoint.commit import parse_commit

    reseal(root / KEY / COMMIT, change)
    report = verify(root, monkeypatch)
    assert any(COMMIT in finding and "does not stay below its folder" in finding for finding in report.findings)
    assert parse_commit((root / KEY / COMMIT).read_bytes(), step=40) is None, "passed over as a damaged one"


def test_a_crafted_corpus_manifest_is_refused_by_its_readers(tmp_path: Path) -> None:
    from cluster.storage import file_entry
    from tasks.tokenizer.corpus import open_corpus

    folder = tmp_path / "data" / write_corpus(tmp_path / "data", {(0, "train"): ["text"]}).key
    body = json.loads((folder / "manifest.json").read_bytes())
    body["files"][0]["file"]["path"] = "../../../outside"
    (folder / "manifest.json").write_bytes(canonical_json(body))
    with pytest.raises(VerificationError, match="not a corpus manifest"):
        open_corpus(folder, manifest=file_entry(folder / "manifest.json", relative_to=folder))


def test_a_crafted_pointer_of_a_run_is_refused(root: Path) -> None:
    storage = FileStorage(root)
    storage.create_exclusive("runs/r/artifacts/train.json", canonical_json({"key": "../../outside", "fingerprint": "0"}))
    with pytest.raises(ValueError, match="does not stay below its folder"):
        Run(storage, "r").pointer(Stage.TRAIN)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", ".", "models:/../x"])
def test_a_name_that_is_a_path_is_no_model(root: Path, name: str) -> None:
    with pytest.raises(InputError, match="names no model"):
        verify_model(FileStorage(root), name)


# ---- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [f"{FOLDER}/rank-0000.bin", FOLDER, "checkpoints", "commits", COMMIT])
def test_links_inside_an_artifact_are_found_and_not_followed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Even where the link leads to the very bytes that were committed: tomorrow it may lead to others."""
    (root / KEY / place).rename(tmp_path / "moved")
    (root / KEY / place).symlink_to(tmp_path / "moved")
    try:
        findings = verify(root, monkeypatch).findings
    except UnsafeFileError as error:
        findings = error.findings
    assert any(finding == f"{root / KEY / place} is a symbolic link" for finding in findings)


@pytest.mark.parametrize("place", ["train", KEY])
def test_links_in_the_place_of_a_stage_or_an_artifact_are_refused(root: Path, tmp_path: Path, place: str) -> None:
    (root / place).rename(tmp_path / "moved")
    (root / place).symlink_to(tmp_path / "moved")
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        verify_model(FileStorage(root), KEY)


def test_readers_of_recorded_files_follow_no_link(root: Path, tmp_path: Path) -> None:
    folder = root / KEY
    entry = FileEntry(path=f"{FOLDER}/state.json", size=(folder / FOLDER / "state.json").stat().st_size, xxh3="0")
    (folder / "checkpoints").rename(tmp_path / "moved")
    (folder / "checkpoints").symlink_to(tmp_path / "moved")
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        verified_path(folder, entry, subject="it")
    with pytest.raises(UnsafeFileError):
        path_below(folder, "../../outside")


def test_the_root_itself_may_be_a_link_because_the_user_named_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert open_storage(str(tmp_path / "link")).exists(f"{KEY}/record.json")


def test_files_that_were_added_to_an_artifact_are_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries load more than what they are asked for: an adapter beside a model, say."""
    (root / KEY / "adapter_config.json").write_text("{}")
    assert f"{KEY}/adapter_config.json: is not part of the artifact" in verify(root, monkeypatch).findings


@pytest.mark.parametrize("trap", TRAPS)
def test_a_pickle_inside_an_artifact_is_found(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    (root / KEY / trap).write_bytes(booby_traps(canary)[trap])
    assert any(trap in finding for finding in verify(root, monkeypatch).findings)
    assert not canary.exists()
