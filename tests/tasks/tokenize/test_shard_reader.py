"""Rows come back by global index, from either layout, and never from damaged bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import file_entry
from schemas.errors import UnsafeFileError, VerificationError
from schemas.manifest import Shard, ShardManifest
from tasks.tokenize import shard_reader
from tasks.tokenize.shard_file import write_shard
from tasks.tokenize.shard_reader import ShardReader

LENGTH = 16
ROWS = [5, 1, 9]


def make(folder: Path, *, layout: Any = "fixed", dtype: str = "uint16") -> tuple[ShardManifest, np.ndarray[Any, Any]]:
    """Writes three training shards and one of validation; returns their manifest and all training rows."""
    draw, shards, written = np.random.default_rng(0), [], []
    for number, count in enumerate([*ROWS, 2]):
        rows = draw.integers(0, np.iinfo(dtype).max, size=(count, LENGTH), endpoint=True).astype(f"<u{np.dtype(dtype).itemsize}")
        path = folder / f"shards/s{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        offset = write_shard(path, rows, layout=layout, facts={}).payload_offset
        shards.append(
            Shard(
                group=0,
                split="train" if number < len(ROWS) else "validation",
                file=file_entry(path, relative_to=folder),
                rows=count,
                tokens=count * LENGTH,
                last_row_tokens=LENGTH,
                payload_offset=offset,
                text_bytes=0,
            )
        )
        written.append(rows)
    manifest = ShardManifest(
        layout=layout,
        dtype=dtype,  # type: ignore[arg-type]
        sequence_length=LENGTH,
        vocab_size=65_536,
        end_of_text_id=0,
        tokenizer_hash="",
        engine="gigatoken",
        shards=tuple(shards),
    )
    return manifest, np.concatenate(written[: len(ROWS)])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardManifest, np.ndarray[Any, Any], Path]:
    folder = tmp_path_factory.mktemp("shards")
    return (*make(folder), folder)


@given(indices=st.lists(st.integers(0, sum(ROWS) - 1), max_size=40))
@settings(max_examples=50)
def test_any_indices_in_any_order_give_their_rows(stored: tuple[ShardManifest, np.ndarray[Any, Any], Path], indices: list[int]) -> None:
    manifest, rows, folder = stored
    found = ShardReader(manifest, folder=folder, split="train").rows(np.array(indices, dtype=np.int64))
    assert found.dtype == np.int64
    assert found.shape == (len(indices), LENGTH)
    assert np.array_equal(found, rows[np.array(indices, dtype=np.int64)])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_both_layouts_and_widths_are_read(tmp_path: Path, layout: str, dtype: str) -> None:
    manifest, rows = make(tmp_path, layout=layout, dtype=dtype)
    reader = ShardReader(manifest, folder=tmp_path, split="train")
    assert reader.num_sequences == sum(ROWS)
    assert np.array_equal(reader.rows(np.arange(sum(ROWS))), rows)
    assert ShardReader(manifest, folder=tmp_path, split="validation").num_sequences == 2
    assert ShardReader(manifest, folder=tmp_path, split="test").num_sequences == 0


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_few_shards_are_held_open_at_a_time(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shard_reader._MAX_OPEN, layout, 1)
    manifest, rows = make(tmp_path, layout=layout)
    reader = ShardReader(manifest, folder=tmp_path, split="train")
    order = np.random.default_rng(1).permutation(sum(ROWS))
    for index in order:
        assert np.array_equal(reader.rows(np.array([index]))[0], rows[index])


@pytest.mark.parametrize("index", [-1, sum(ROWS)])
def test_an_index_outside_the_split_is_an_error(stored: tuple[ShardManifest, np.ndarray[Any, Any], Path], index: int) -> None:
    manifest, _, folder = stored
    with pytest.raises(IndexError, match="the split has 15 rows"):
        ShardReader(manifest, folder=folder, split="train").rows(np.array([0, index]))


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_a_flipped_byte_anywhere_is_found_before_a_row_is_used(tmp_path: Path, layout: str) -> None:
    manifest, _ = make(tmp_path, layout=layout)
    path = tmp_path / manifest.shards[2].file.path
    whole = path.read_bytes()
    for position in np.random.default_rng(3).integers(0, len(whole), size=40):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        reader = ShardReader(manifest, folder=tmp_path, split="train")
        assert reader.rows(np.array([0])).shape == (1, LENGTH)  # its neighbours are intact
        with pytest.raises(VerificationError, match=r"s2\.parquet"):
            reader.rows(np.array([0, 14]))


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "link"])
def test_a_damaged_file_is_named_without_a_stack_trace(tmp_path: Path, damage: str) -> None:
    manifest, _ = make(tmp_path)
    path = tmp_path / manifest.shards[1].file.path
    whole = path.read_bytes()
    path.unlink()
    match damage:
        case "truncated":
            path.write_bytes(whole[:-1])
        case "empty":
            path.write_bytes(b"")
        case "link":
            (tmp_path / "elsewhere").write_bytes(whole)
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match=r"s1\.parquet") as caught:
        ShardReader(manifest, folder=tmp_path, split="train").rows(np.array([5]))
    assert int(caught.value.exit_code) == 7


@pytest.mark.parametrize("change", [{"payload_offset": 200}, {"payload_offset": -1}, {"rows": 90}])
def test_a_manifest_that_points_out_of_the_file_is_a_finding_and_no_crash(tmp_path: Path, change: dict[str, int]) -> None:
    manifest, _ = make(tmp_path)
    shards = tuple(shard.model_copy(update=change) if number == 2 else shard for number, shard in enumerate(manifest.shards))
    reader = ShardReader(manifest.model_copy(update={"shards": shards}), folder=tmp_path, split="train")
    with pytest.raises(VerificationError, match=r"s2\.parquet: the manifest says"):
        reader.rows(np.array([reader.num_sequences - 1]))


def test_a_batch_may_touch_more_shards_than_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shard_reader._MAX_OPEN, "fixed", 1)
    manifest, rows = make(tmp_path)
    reader = ShardReader(manifest, folder=tmp_path, split="train")
    for indices in ([0, 5, 14], [14, 6], [1, 2], [14, 0, 5]):
        assert np.array_equal(reader.rows(np.array(indices)), rows[indices])


def test_all_damaged_shards_are_reported_at_once(tmp_path: Path) -> None:
    manifest, _ = make(tmp_path)
    for number in (0, 2):
        path = tmp_path / manifest.shards[number].file.path
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(VerificationError) as caught:
        ShardReader(manifest, folder=tmp_path, split="train").verify_all()
    assert len(caught.value.findings) == 2


def test_a_folder_of_shards_that_is_a_link_is_refused_though_the_shards_are_right(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    manifest, _ = make(tmp_path / "artifact")
    folder = (tmp_path / "artifact" / manifest.shards[0].file.path).parent
    assert folder != tmp_path / "artifact", "shards lie in a folder of their own"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError, match="is a symbolic link") as caught:
        ShardReader(manifest, folder=tmp_path / "artifact", split="train").rows(np.array([0]))
    assert int(caught.value.exit_code) == 7
