"""Lengths and document starts travel from the packer through the shards to whoever reads rows, in either layout."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cluster.storage import file_entry
from schemas.errors import InputError, VerificationError
from schemas.manifest import Shard, ShardManifest, Split
from schemas.stage import Stage
from tasks.tokenize.build import build
from tasks.tokenize.megatron import export_split
from tasks.tokenize.shard_file import write_shard
from tasks.tokenize.shard_reader import ShardReader
from tests.tasks.tokenize.conftest import Site

LENGTH = 20
ROWS = (5, 1, 9)
LAYOUTS = pytest.mark.parametrize("layout", ["fixed", "list"])


@dataclass(frozen=True)
class Stored:
    """Three shards and what is in them."""

    manifest: ShardManifest
    folder: Path
    lengths: npt.NDArray[np.int32]
    starts: npt.NDArray[np.bool_]

    @property
    def reader(self) -> ShardReader:
        return ShardReader(self.manifest, folder=self.folder, split="train")


def store(folder: Path, *, layout: Any) -> Stored:
    draw, shards, start = np.random.default_rng(0), [], 0
    lengths = draw.integers(1, LENGTH, size=sum(ROWS), endpoint=True).astype(np.int32)
    starts = draw.integers(0, 4, size=(sum(ROWS), LENGTH)) == 0
    for number, count in enumerate(ROWS):
        path, part = folder / f"shards/s{number}.parquet", slice(start, start + count)
        path.parent.mkdir(exist_ok=True)
        marks = np.packbits(starts[part], axis=1, bitorder="little")
        rows = np.full((count, LENGTH), number, dtype="<u2")
        written = write_shard(path, rows, layout=layout, facts={}, lengths=lengths[part], starts=marks)
        about = {"group": 0, "split": "train", "file": file_entry(path, relative_to=folder), "rows": count, "text_bytes": 0}
        counts = {"tokens": int(lengths[part].sum()), "last_row_tokens": int(lengths[part][-1])}
        offsets = {name: value for name, value in asdict(written).items() if name != "xxh3"}
        shards.append(Shard.model_validate(about | counts | offsets))
        start += count
    manifest = ShardManifest(
        layout=layout,
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=65_536,
        end_of_text_id=0,
        tokenizer_hash="",
        engine="gigatoken",
        packing="best_fit",
        boundaries=True,
        shards=tuple(shards),
    )
    return Stored(manifest, folder, lengths=lengths, starts=starts)


@LAYOUTS
def test_lengths_and_starts_come_back_by_global_index(tmp_path: Path, layout: str) -> None:
    stored = store(tmp_path, layout=layout)
    reader = stored.reader
    for indices in ([0], [14, 0, 5, 5, 6], list(range(15)), []):
        wanted = np.array(indices, dtype=np.int64)
        assert np.array_equal(reader.lengths(wanted), stored.lengths[wanted])
        assert np.array_equal(reader.starts(wanted), stored.starts[wanted])
        assert np.array_equal(reader.rows(wanted)[:, 0], np.repeat(np.arange(3), ROWS)[wanted])


@pytest.mark.parametrize("offset", ["lengths_offset", "starts_offset"])
def test_an_offset_out_of_the_file_is_a_finding_and_no_crash(tmp_path: Path, offset: str) -> None:
    stored = store(tmp_path, layout="fixed")
    damaged = stored.manifest.shards[2].model_copy(update={offset: 1 << 40})
    manifest = stored.manifest.model_copy(update={"shards": (*stored.manifest.shards[:2], damaged)})
    with pytest.raises(VerificationError, match=r"s2\.parquet: the manifest says"):
        ShardReader(manifest, folder=tmp_path, split="train").rows(np.array([14]))


@LAYOUTS
def test_without_a_column_the_manifest_knows_the_lengths(tmp_path: Path, layout: str) -> None:
    stored = store(tmp_path, layout=layout)
    plain = stored.manifest.model_copy(update={"packing": "concatenate", "boundaries": False})
    reader = ShardReader(plain, folder=tmp_path, split="train")
    expected = [LENGTH] * sum(ROWS)
    for last, shard in zip(np.cumsum(ROWS) - 1, plain.shards, strict=True):
        expected[last] = shard.last_row_tokens
    assert reader.lengths(np.arange(sum(ROWS))).tolist() == expected
    with pytest.raises(ValueError, match=r"tokenization\.boundaries"):
        reader.starts(np.array([0]))


def documents_of(manifest: ShardManifest, folder: Path, split: Split) -> Counter[tuple[int, ...]]:
    """Returns the marked pieces of a split, padding left out."""
    reader = ShardReader(manifest, folder=folder, split=split)
    everything = np.arange(reader.num_sequences)
    found: Counter[tuple[int, ...]] = Counter()
    for ids, tokens, starts in zip(reader.rows(everything), reader.lengths(everything), reader.starts(everything), strict=True):
        assert set(ids[tokens:].tolist()) <= {manifest.end_of_text_id}
        found.update(tuple(piece.tolist()) for piece in np.split(ids[:tokens], np.flatnonzero(starts)[1:]))
    return found


@LAYOUTS
def test_best_fit_keeps_every_document_that_fits_a_row_in_one_piece(site: Site, layout: str) -> None:
    from tokenizers import Tokenizer

    manifest, folder = site.manifest(packing="best_fit", boundaries=True, layout=layout)
    tokenizer = Tokenizer.from_file(str(site.root / site.tokenizer.key / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    for split in ("train", "validation", "test"):
        expected: Counter[tuple[int, ...]] = Counter()
        for (_, own), texts in site.documents.items():
            if own == split:
                for text in texts:
                    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, manifest.end_of_text_id]
                    expected.update(tuple(ids[first : first + 32]) for first in range(0, len(ids), 32))
        assert documents_of(manifest, folder, split) == expected
        assert manifest.num_tokens(split) == sum(len(piece) * count for piece, count in expected.items())


def test_the_stage_says_how_much_is_padding(site: Site) -> None:
    work = site.stage(packing="best_fit")
    summary = build(work).summary
    manifest = ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    places = manifest.num_sequences("train") * manifest.sequence_length
    assert summary["padding"]["train"] == places - manifest.num_tokens("train") > 0
    assert any("padding" in note for note in work.notes)


def test_packing_and_boundaries_are_identity_and_their_defaults_are_not(site: Site) -> None:
    def prints(**tokenization: Any) -> str:
        return str(site.stage(**tokenization).config.identity(Stage.TOKENIZE))

    assert len({prints(), prints(packing="best_fit"), prints(boundaries=True), prints(by_source=True)}) == 4
    assert not any(key in prints() for key in ("packing", "boundaries", "by_source"))


def test_boundaries_change_no_id(site: Site) -> None:
    def content(**tokenization: Any) -> bytes:
        manifest, folder = site.manifest(**tokenization)
        reader = ShardReader(manifest, folder=folder, split="train")
        return reader.stored(np.arange(reader.num_sequences)).tobytes()

    plain = site.stage(key="tokenize/plain-000000000000")
    build(plain)
    manifest = ShardManifest.model_validate_json((plain.output_dir / "manifest.json").read_bytes())
    reader = ShardReader(manifest, folder=plain.output_dir, split="train")
    assert content(boundaries=True) == reader.stored(np.arange(reader.num_sequences)).tobytes()


def test_a_best_fit_artifact_is_not_exported_as_if_its_rows_were_documents(site: Site, tmp_path: Path) -> None:
    _, folder = site.manifest(packing="best_fit")
    with pytest.raises(InputError, match="best_fit") as caught:
        export_split(folder, split="train", prefix=tmp_path / "out/train")
    assert "concatenate" in caught.value.mend
    assert not (tmp_path / "out").exists()


def test_shards_with_boundaries_are_exported_as_ever(site: Site, tmp_path: Path) -> None:
    _, folder = site.manifest(boundaries=True)
    found = export_split(folder, split="train", prefix=tmp_path / "out/train")
    assert found.documents == sum(len(texts) for (_, split), texts in site.documents.items() if split == "train")
