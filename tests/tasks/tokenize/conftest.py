"""A small corpus with its tokenizer, and the stage over both."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import ArtifactRecord
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.tokenize.build import build
from tasks.tokenizer.build import build as build_tokenizer
from tests.fakes.in_process_work import Documents, InProcessWork, commit, config_with, write_corpus

WORDS = ["water", "wheel", "mill", "race", "the", "flows", "and", "a", "gate", "水", "轮子", "def", "return", "naïve", "🙂", "<|endoftext|>"]


@dataclass(frozen=True)
class Site:
    """A corpus and a tokenizer, ready to be tokenized."""

    root: Path
    documents: Documents
    corpus: ArtifactRecord
    tokenizer: ArtifactRecord
    end_of_text: str

    def stage(self, *, key: str = "", epoch: int = 0, **tokenization: Any) -> InProcessWork:
        """Returns the `tokenize` stage with these settings."""
        config = config_with(
            tokenizer={"end_of_text": self.end_of_text}, tokenization={"sequence_length": 32, "sequences_per_shard": 16} | tokenization
        )
        return InProcessWork(self.root, Stage.TOKENIZE, config, {Stage.VALIDATE: self.corpus, Stage.TOKENIZER: self.tokenizer}, key=key, epoch=epoch)

    def manifest(self, **tokenization: Any) -> tuple[ShardManifest, Path]:
        """Tokenizes and returns (manifest, folder)."""
        work = self.stage(**tokenization)
        build(work)
        return ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes()), work.output_dir


SiteMaker = Callable[..., Site]


@pytest.fixture(scope="session")
def documents() -> Documents:
    """Two groups; the second has every split."""
    return {(0, "train"): texts(120, seed=1), (1, "train"): texts(80, seed=2), (1, "validation"): texts(9, seed=3), (1, "test"): texts(1, seed=4)}


@pytest.fixture(scope="session")
def site_at(documents: Documents) -> SiteMaker:
    """Returns a maker of sites: `site_at(root, documents=…, tokenizer={…})`."""
    default = documents

    def make(root: Path, *, documents: Documents = default, tokenizer: Mapping[str, Any] | None = None) -> Site:
        root.mkdir(exist_ok=True)
        corpus = write_corpus(root, documents)
        config = config_with(tokenizer={"vocab_size": 320, "max_tokens_per_word": 50, "min_bytes_per_token": 0.1} | dict(tokenizer or {}))
        work = InProcessWork(root, Stage.TOKENIZER, config, {Stage.VALIDATE: corpus})
        made = commit(root, Stage.TOKENIZER, build_tokenizer(work), key=work.key)
        return Site(root=root, documents=documents, corpus=corpus, tokenizer=made, end_of_text=config.tokenizer.end_of_text)

    return make


@pytest.fixture
def site(tmp_path: Path, site_at: SiteMaker) -> Site:
    """The default corpus with a trained tokenizer."""
    return site_at(tmp_path / "site")


def texts(count: int, *, seed: int) -> list[str]:
    """Returns `count` different documents, some of them longer than a row, the same for equal seeds."""
    draw = random.Random(seed)
    return [f"{seed}-{number} " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(0, 80))) for number in range(count)]
