"""Identity and splits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.corpus_config import SplitConfig
from tasks.validate.documents import Splitter, digest_of, digests_of, sample_key, sample_keys


def test_splits_have_about_their_shares() -> None:
    splitter = Splitter(SplitConfig(validation=0.1, test=0.2))
    splits = [splitter.split_of(digest_of(str(i).encode())) for i in range(20_000)]
    assert abs(splits.count("validation") / 20_000 - 0.1) < 0.01
    assert abs(splits.count("test") / 20_000 - 0.2) < 0.01


def test_without_shares_all_is_training_data() -> None:
    splitter = Splitter(SplitConfig(validation=0.0, test=0.0))
    assert {splitter.split_of(digest_of(str(i).encode())) for i in range(1000)} == {"train"}
    assert splitter.split_of(b"\0" * 16) == "train"
    assert Splitter(SplitConfig(validation=0.0, test=0.5)).split_of(b"\xff" * 16) == "train"


@given(st.binary(), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_larger_validation_share_only_takes_from_training(data: bytes, test: float, validation: float) -> None:
    digest = digest_of(data)
    before = Splitter(SplitConfig(validation=validation, test=test)).split_of(digest)
    after = Splitter(SplitConfig(validation=validation + 0.1, test=test)).split_of(digest)
    assert before == after or (before, after) == ("train", "validation")


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1), st.floats(0, 0.4), st.floats(0, 0.5))
def test_many_documents_have_the_splits_and_keys_of_each(digests: list[bytes], test: float, validation: float) -> None:
    splitter = Splitter(SplitConfig(validation=validation, test=test))
    digests += [b"\0" * 16, b"\xff" * 16]
    hashes = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)
    members = splitter.members_of(hashes)
    assert [[split for split in members if members[split][index]] for index in range(len(digests))] == [[splitter.split_of(each)] for each in digests]
    assert sample_keys(hashes).tolist() == [sample_key(each) for each in digests]


def test_many_digests_are_those_of_each() -> None:
    assert digests_of([b"", b"a"]).tobytes() == digest_of(b"") + digest_of(b"a")


def test_the_sample_is_independent_of_the_split() -> None:
    digests = [digest_of(str(i).encode()) for i in range(5000)]
    splitter = Splitter(SplitConfig(validation=0.0, test=0.5))
    lowest = sorted(digests, key=sample_key)[:500]
    assert 0.4 < sum(splitter.split_of(digest) == "test" for digest in lowest) / 500 < 0.6
