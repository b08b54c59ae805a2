"""Documents go to Megatron's format and come back; what does not fit is refused before anything is written."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import InputError, VerificationError
from schemas.manifest import ShardManifest
from tasks.tokenize import megatron
from tasks.tokenize.megatron import export_split, import_dataset
from tasks.tokenize.shard_reader import ShardReader
from tests.tasks.tokenize.conftest import Site


def documents_of(prefix: Path) -> list[list[int]]:
    """Reads an indexed data set as its format says, independently of the code under test."""
    index, data = prefix.with_name(prefix.name + ".idx").read_bytes(), prefix.with_name(prefix.name + ".bin").read_bytes()
    magic, version, code, count, bounds = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, bounds) == (b"MMIDIDX\x00\x00", 1, count + 1)
    letter = {4: "i", 8: "H"}[code]
    lengths = struct.unpack_from(f"<{count}i", index, 34)
    offsets = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    assert struct.unpack_from(f"<{bounds}q", index, 34 + 12 * count) == tuple(range(bounds))
    assert len(index) == 34 + 12 * count + 8 * bounds
    return [list(struct.unpack_from(f"<{length}{letter}", data, offset)) for length, offset in zip(lengths, offsets, strict=True)]


def stream_of(folder: Path) -> list[int]:
    """All training ids of a folder of shards, without padding, group after group."""
    manifest = megatron.open_manifest(folder)
    reader, start, ids = ShardReader(manifest, folder=folder, split="train"), 0, []
    for shard in manifest.of_split("train"):
        ids += reader.rows(np.arange(start, start + shard.rows)).reshape(-1)[: shard.tokens].tolist()
        start += shard.rows
    return ids


def tokenizer_of(site: Site) -> Path:
    return site.root / site.tokenizer.key / "tokenizer.json"


def back(site: Site, prefix: Path, folder: Path, **options: Any) -> ShardManifest:
    return import_dataset(
        prefix,
        end_of_text=site.end_of_text,
        folder=folder,
        **({"tokenizer": tokenizer_of(site), "sequence_length": 32, "sequences_per_shard": 16} | options),
    )


@pytest.mark.parametrize("tokens_at_a_time", [64, 1 << 22])
def test_documents_are_the_same_there_and_back(site: Site, tmp_path: Path, tokens_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "_TOKENS_AT_A_TIME", tokens_at_a_time)
    manifest, folder = site.manifest()
    exported = export_split(folder, split="train", prefix=tmp_path / "out/train")
    there = documents_of(tmp_path / "out/train")
    expected = [text for (_, split), texts in site.documents.items() if split == "train" for text in texts]
    assert (exported.documents, exported.tokens) == (len(expected), manifest.num_tokens("train"))
    assert len(there) == len(expected)
    assert all(ids[-1] == manifest.end_of_text_id and manifest.end_of_text_id not in ids[:-1] for ids in there)
    assert [id_ for ids in there for id_ in ids] == stream_of(folder)
    imported = back(site, tmp_path / "out/train", tmp_path / "back")
    assert stream_of(tmp_path / "back") == stream_of(folder)
    assert (imported.engine, imported.dtype, imported.tokenizer_hash != "") == ("imported", manifest.dtype, True)
    export_split(tmp_path / "back", split="train", prefix=tmp_path / "again")
    assert documents_of(tmp_path / "again") == there


def test_rows_come_back_byte_for_byte_when_there_is_one_group(site_at: Any, tmp_path: Path) -> None:
    site = site_at(tmp_path / "site", documents={(0, "train"): [f"wheel {number} " * (number % 7) for number in range(90)]})
    _, folder = site.manifest()
    export_split(folder, split="train", prefix=tmp_path / "train")
    imported = back(site, tmp_path / "train", tmp_path / "back")
    assert imported == back(site, tmp_path / "train", tmp_path / "again", tokenizer=tokenizer_of(site).parent)
    own = megatron.open_manifest(folder)
    rows = [
        ShardReader(each, folder=where, split="train").stored(np.arange(each.num_sequences("train")))
        for each, where in ((own, folder), (imported, tmp_path / "back"))
    ]
    assert np.array_equal(*rows)
    assert [shard.last_row_tokens for shard in imported.shards] == [shard.last_row_tokens for shard in own.shards]


def test_documents_without_an_end_get_one_and_empty_ones_count(site: Site, tmp_path: Path) -> None:
    manifest, _ = site.manifest()
    end = manifest.end_of_text_id
    documents = [[3, 4, end], [5], [], [end], [6, 7]]
    ids = np.array([id_ for ids in documents for id_ in ids], dtype="<i4")
    (tmp_path / "data.bin").write_bytes(ids.tobytes())
    lengths = np.array([len(one) for one in documents])
    with (tmp_path / "data.idx").open("wb") as file:
        megatron._write_index(file, lengths, itemsize=4, code=4)
    back(site, tmp_path / "data", tmp_path / "back")
    assert stream_of(tmp_path / "back") == [3, 4, end, 5, end, end, end, 6, 7, end]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index, data: (b"something else" * 9, data), "not the index of a Megatron data set"),
        (lambda index, data: (index[:40], data), "truncated"),
        (lambda index, data: (index, data[:-2]), "do not fit each other"),
        (lambda index, data: (index, data[:-1]), "not a whole number of ids"),
        (lambda index, data: (index[:17] + b"\x07" + index[18:], data), "type 7"),
        (lambda index, data: (index[:26] + bytes(8) + index[34:], data), "do not fit each other"),
    ],
)
def test_what_is_no_data_set_is_refused_and_leaves_nothing(site: Site, tmp_path: Path, damage: Any, message: str) -> None:
    _, folder = site.manifest()
    export_split(folder, split="train", prefix=tmp_path / "train")
    index, data = damage((tmp_path / "train.idx").read_bytes(), (tmp_path / "train.bin").read_bytes())
    (tmp_path / "train.idx").write_bytes(index)
    (tmp_path / "train.bin").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        back(site, tmp_path / "train", tmp_path / "back")
    assert int(caught.value.exit_code) == 2
    assert not (tmp_path / "back").exists()


def test_ids_of_another_tokenizer_are_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(np.array([70_000], dtype="<i4").tobytes())
    with (tmp_path / "data.idx").open("wb") as file:
        megatron._write_index(file, np.array([1]), itemsize=4, code=4)
    with pytest.raises(VerificationError, match="id 70000 was encoded"):
        back(site, tmp_path / "data", tmp_path / "back")
    assert not (tmp_path / "back/manifest.json").exists()


def test_nothing_is_replaced_and_a_damaged_shard_exports_nothing(site: Site, tmp_path: Path) -> None:
    manifest, folder = site.manifest()
    export_split(folder, split="train", prefix=tmp_path / "train")
    with pytest.raises(InputError, match="exists"):
        export_split(folder, split="train", prefix=tmp_path / "train")
    path = folder / manifest.of_split("train")[1].file.path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError, match=path.name):
        export_split(folder, split="train", prefix=tmp_path / "other")
    assert sorted(found.name for found in tmp_path.iterdir() if found.is_file()) == ["train.bin", "train.idx"]
