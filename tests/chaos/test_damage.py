"""Flipped bits and cut-off files anywhere in a finished pipeline: found before anything uses them (rows 18 and 19 of the fault matrix)."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import FileStorage
from schemas.errors import VerificationError
from schemas.manifest import ShardManifest
from schemas.stage import Stage, stages_of
from tasks.recorded_file import verified_path
from tasks.store import Store
from tasks.tokenize.shard_reader import ShardReader
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.reader import newest_verified
from tasks.train.gang import Gang
from tests.fakes.tiny_pipeline import Project

pytestmark = pytest.mark.slow

POSITIONS = 200
SEED = 18


@dataclass(frozen=True)
class Target:
    """One kind of stored bytes, and the step of the product that reads them before any use."""

    files: tuple[Path, ...]
    finds: Callable[[], bool]
    """Whether that step notices: it raises, or passes over a checkpoint."""


class Pipeline:
    """A copy of a finished pipeline's storage that may be damaged."""

    def __init__(self, root: Path) -> None:
        self.store = Store(FileStorage(root))
        self.folders = {stage: next((root / stage.value).glob("*/record.json")).parent for stage in stages_of(prepared=False)}
        self.records = {stage: self.store.read(f"{stage.value}/{folder.name}") for stage, folder in self.folders.items()}
        self.checkpoints = CheckpointStore(self.folders[Stage.TRAIN])
        newest = self.checkpoints.steps()[-1]
        commit = self.checkpoints.read(newest)
        assert commit is not None
        self.commit, self.newest = self.folders[Stage.TRAIN] / "commits" / f"step-{newest:08d}.json", commit
        tokens = self.folders[Stage.TOKENIZE]
        self.manifest = ShardManifest.model_validate_json((tokens / "manifest.json").read_bytes())

    def targets(self) -> dict[str, Target]:
        """Returns what is damaged, by name."""
        heads = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)
        checkpoint = self.checkpoints.folder(self.newest)
        return {
            "checkpoint": Target((*(checkpoint / entry.path for entry in self.newest.files), self.commit), self.goes_one_back),
            "shard": Target(tuple((self.folders[Stage.TOKENIZE] / "shards").iterdir()), self.refuses(self.read_shards)),
            "manifest": Target(
                tuple(self.folders[stage] / entry.path for stage in heads for entry in self.records[stage].files if "/" not in entry.path),
                self.refuses(lambda: [self.store.check_heads(self.records[stage]) for stage in heads]),
            ),
            "record": Target(
                tuple(folder / "record.json" for folder in self.folders.values()),
                self.refuses(lambda: [self.store.read(record.key) for record in self.records.values()]),
            ),
            "model": Target(tuple((self.folders[Stage.EXPORT] / "model").iterdir()), self.refuses(self.open_model)),
        }

    def goes_one_back(self) -> bool:
        """What a start of ranks does, and says; then everything is as it was."""
        kept, told = self.commit.read_bytes(), list[tuple[int, int]]()
        chosen = newest_verified(
            self.checkpoints, gang=Gang(), epoch=10**6, tell=lambda step, findings, instead: told.append((step, instead)) if findings else None
        )
        shutil.rmtree(self.folders[Stage.TRAIN] / "quarantine", ignore_errors=True)
        self.commit.write_bytes(kept)
        *_, before, newest = self.checkpoints.steps()
        return chosen is not None and chosen.step == before and told == [(newest, before)]

    def read_shards(self) -> None:
        """What a training or an evaluation does."""
        for split in ("train", "validation", "test"):
            reader = ShardReader(self.manifest, folder=self.folders[Stage.TOKENIZE], split=split)
            reader.rows(np.arange(reader.num_sequences))

    def open_model(self) -> None:
        """What evaluation and registration do with an exported model."""
        for entry in self.records[Stage.EXPORT].files:
            verified_path(self.folders[Stage.EXPORT], entry, subject="exported model")

    @staticmethod
    def refuses(use: Callable[[], object]) -> Callable[[], bool]:
        """Returns whether a use raises as it should; any other error is a defect."""

        def refused() -> bool:
            try:
                use()
            except VerificationError:
                return True
            return False

        return refused


@pytest.fixture(scope="module")
def pipeline(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(finished.root, root)
    return Pipeline(root)


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(kept)


def test_every_flipped_bit_is_found_before_use(pipeline: Pipeline) -> None:
    draw, targets = random.Random(SEED), pipeline.targets()
    missed = []
    for number in range(POSITIONS):
        name = list(targets)[number % len(targets)]
        path = draw.choice(sorted(targets[name].files))
        data = bytearray(path.read_bytes())
        position, bit = draw.randrange(len(data)), draw.randrange(8)
        data[position] ^= 1 << bit
        with damaged(path, bytes(data)):
            if not targets[name].finds():
                missed.append((name, path.name, position, bit))
    assert missed == []
    assert [name for name, target in targets.items() if target.finds()] == [], "undamaged, all of it is used"


def test_every_file_that_is_cut_or_empty_is_found_before_use(pipeline: Pipeline) -> None:
    draw, targets = random.Random(SEED), pipeline.targets()
    for name, target in targets.items():
        for path in sorted(target.files):
            whole = path.read_bytes()
            for length in (0, draw.randrange(1, len(whole)), len(whole) - 1):
                with damaged(path, whole[:length]):
                    assert target.finds(), (name, path.name, length)
