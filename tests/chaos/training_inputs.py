"""What trainings of these tests read: token shards of seeded random ids, and a tokenizer of single characters, as earlier stages leave them."""

from collections.abc import Mapping
from pathlib import Path

from cluster.storage import file_entry
from schemas.artifact import ArtifactRecord
from schemas.manifest import Split
from schemas.stage import Stage
from tasks.work import Draft
from tests.fakes.in_process_work import commit as record_of
from tests.fakes.tiny_training import make_shards, make_tokenizer

INPUT_KEYS = {stage: f"{stage.value}/tiny-000000000000" for stage in (Stage.TOKENIZER, Stage.TOKENIZE)}
"""Where they lie in a storage."""
_ROWS: Mapping[Split, tuple[int, ...]] = {"train": (61,), "validation": (11,)}


def make_inputs(root: Path, *, vocab_size: int, length: int, rows: Mapping[Split, tuple[int, ...]] = _ROWS) -> None:
    """Writes token shards and a tokenizer into a storage, as earlier stages leave them."""
    make_shards(root / INPUT_KEYS[Stage.TOKENIZE], rows=rows, vocab_size=vocab_size, length=length, last_row_tokens=length)
    make_tokenizer(root / INPUT_KEYS[Stage.TOKENIZER], vocab_size=vocab_size)


def input_record(root: Path, stage: Stage) -> ArtifactRecord:
    folder = root / INPUT_KEYS[stage]
    files = tuple(file_entry(path, relative_to=folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return record_of(root, stage, Draft(files=files, summary={}), key=INPUT_KEYS[stage])
