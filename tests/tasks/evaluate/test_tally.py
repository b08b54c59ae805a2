"""Bits per byte, perplexity, accuracy and calibration against computations by hand."""

import math

import numpy as np
import pytest
import torch

from tasks.evaluate.document import Document
from tasks.evaluate.score import score
from tasks.evaluate.tally import Tally, bits_per_byte, length_bucket, length_bucket_names

VOCABULARY = 7
BOUNDS = (256, 1024)


class FakeModel:
    """Gives the same logits everywhere, and remembers how often it was asked."""

    def __init__(self, logits: list[float]) -> None:
        self.logits_row = torch.tensor(logits)
        self.calls = 0

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool) -> "FakeModel":
        self.calls += 1
        self.logits = self.logits_row.expand(*input_ids.shape, len(self.logits_row))
        return self


def tallied(model: FakeModel, token_ids: list[list[int]], *, length: int = 8, batch_size: int = 2, bins: int = 10) -> Tally:
    tally = Tally(num_documents=len(token_ids), num_bins=bins)
    arrays = [np.array(ids, dtype=np.int64) for ids in token_ids]
    done: list[int] = []
    score(
        model,
        arrays,
        tally=tally,
        length=length,
        overlap=2,
        batch_size=batch_size,
        vocab_size=VOCABULARY,
        device=torch.device("cpu"),
        on_tokens=done.append,
    )
    assert done[-1] == sum(len(ids) - 1 for ids in token_ids)
    return tally


def test_uniform_logits_by_hand() -> None:
    """With equal logits every token costs ln 7 nats: 30 tokens over 40 bytes are 30·log2(7)/40 bits per byte."""
    documents = [Document("x" * 25, source="a"), Document("y" * 15, source="b")]
    tally = tallied(FakeModel([0.0] * VOCABULARY), [[0, *range(1, 7), *range(1, 7), *range(1, 7)], [0] + [3] * 12])
    scores = tally.scores(documents)
    assert scores.tokens == 30
    assert scores.text_bytes == 40
    assert scores.loss == pytest.approx(math.log(7), rel=1e-6)
    assert scores.perplexity == pytest.approx(7, rel=1e-6)
    assert scores.bits_per_byte == pytest.approx(30 * math.log2(7) / 40, rel=1e-6)
    by_source = tally.by(documents, name_of=lambda document: document.source, order=["a", "b"])
    assert [part.scores.tokens for part in by_source] == [18, 12]
    assert by_source[1].scores.bits_per_byte == pytest.approx(12 * math.log2(7) / 15, rel=1e-6)


def test_skewed_logits_by_hand() -> None:
    """Token 3 has probability e²/(e²+6): a quarter of the targets is 3, so the first guess is right there and nowhere else."""
    logits = [0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    total = math.exp(2) + 6
    tally = tallied(FakeModel(logits), [[0, 3, 1, 2, 4, 3, 1, 2, 4, 3, 1, 2, 4]])
    scores = tally.scores([Document("z" * 10, source="a")])
    assert scores.accuracy == pytest.approx(0.25)
    assert scores.loss == pytest.approx((3 * (math.log(total) - 2) + 9 * math.log(total)) / 12, rel=1e-6)
    calibration = tally.calibration()
    (used,) = [entry for entry in calibration.bins if entry.tokens]
    confidence = math.exp(2) / total
    assert used.lower < confidence <= used.upper
    assert used.tokens == 12
    assert calibration.expected_error == pytest.approx(abs(confidence - 0.25), rel=1e-6)


def test_batching_and_windows_change_no_sum() -> None:
    logits = [0.1, -0.3, 0.7, 0.2, 0.0, 1.0, -1.0]
    ids = [[0, *(number % 6 + 1 for number in range(count))] for count in (1, 5, 40, 17)]
    nats = [tallied(FakeModel(logits), ids, length=length, batch_size=size).nats for length, size in ((4, 1), (8, 3), (64, 9))]
    np.testing.assert_allclose(nats[0], nats[1])
    np.testing.assert_allclose(nats[0], nats[2])


def test_an_empty_document_counts_no_token() -> None:
    tally = tallied(FakeModel([0.0] * VOCABULARY), [[0], [0, 1, 2]])
    assert tally.tokens.tolist() == [0, 2]


def test_perfect_confidence_falls_into_the_last_bin() -> None:
    tally = Tally(num_documents=1, num_bins=4)
    tally.add(np.array([0, 0]), nats=np.array([0.0, 0.1]), confidence=np.array([1.0, 0.25]), correct=np.array([True, False]))
    assert [entry.tokens for entry in tally.calibration().bins] == [1, 0, 0, 1]


def test_bits_per_byte_of_one_bit_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), text_bytes=8) == pytest.approx(1.0)


@pytest.mark.parametrize(("size", "name"), [(0, "≤ 256 B"), (256, "≤ 256 B"), (257, "257-1024 B"), (1024, "257-1024 B"), (1025, "> 1024 B")])
def test_length_buckets(size: int, name: str) -> None:
    assert length_bucket(size, bounds=BOUNDS) == name


def test_no_bounds_is_one_bucket() -> None:
    assert length_bucket_names(()) == ("all lengths",)
    assert length_bucket(5, bounds=()) == "all lengths"
