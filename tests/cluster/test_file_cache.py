"""Files of object storage on this machine: verified, bounded, shared, and never taken from who uses them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from cluster.file_cache import FileCache
from schemas.artifact import FileEntry
from schemas.errors import UnreachableError, VerificationError


def entry_of(content: bytes, *, name: str = "a") -> FileEntry:
    return FileEntry(path=name, size=len(content), xxh3=xxhash.xxh3_128(content).hexdigest())


class Source:
    """Where files come from; counts how often."""

    def __init__(self, *contents: bytes) -> None:
        self.contents, self.fetched = list(contents), 0

    def __call__(self, path: Path) -> None:
        path.write_bytes(self.contents[min(self.fetched, len(self.contents) - 1)])
        self.fetched += 1


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Path]:
    """Brings some content under a name that is new by default, and returns it."""

    def bring(cache: FileCache, content: bytes, source: Source, *, name: str = "") -> Path:
        target = tmp_path / (name or f"target-{len(list(tmp_path.iterdir()))}")
        cache.bring(entry_of(content), target=target, fetch=source, subject="x")
        assert target.read_bytes() == content
        return target

    return bring


def test_a_file_is_fetched_once_whoever_wants_it(tmp_path: Path, bring: Callable[..., Path]) -> None:
    source = Source(b"content")
    first, second = (bring(FileCache(tmp_path / "cache", most_bytes=100), b"content", source) for _ in range(2))
    assert source.fetched == 1
    assert first.samefile(second)


def test_who_reads_a_file_does_not_see_that_others_want_it_too(tmp_path: Path, bring: Callable[..., Path]) -> None:
    cache, source = FileCache(tmp_path / "cache", most_bytes=100), Source(b"content")
    first = bring(cache, b"content", source)
    os.utime(first, (1.0, 1.0))
    bring(cache, b"content", source)
    assert first.stat().st_mtime == 1.0
    assert first.stat().st_atime > 1.0


def test_a_file_that_arrives_damaged_is_fetched_again_and_once_more_refused(tmp_path: Path, bring: Callable[..., Path]) -> None:
    cache, source = FileCache(tmp_path / "cache", most_bytes=100), Source(b"damaged", b"content")
    bring(cache, b"content", source)
    assert source.fetched == 2
    with pytest.raises(VerificationError, match="were recorded"):
        bring(cache, b"another", Source(b"damaged"), name="refused")
    assert [path.name for path in tmp_path.iterdir() if "refused" in path.name] == []


def test_a_file_that_was_damaged_here_is_fetched_again(tmp_path: Path, bring: Callable[..., Path]) -> None:
    cache, source = FileCache(tmp_path / "cache", most_bytes=100), Source(b"content")
    bring(cache, b"content", source).unlink()
    (stored,) = (tmp_path / "cache" / "files").iterdir()
    stored.write_bytes(b"CONTENT")
    bring(cache, b"content", source)
    assert source.fetched == 2


def test_what_was_unused_for_longest_makes_room_and_what_is_in_use_stays(tmp_path: Path, bring: Callable[..., Path]) -> None:
    cache = FileCache(tmp_path / "cache", most_bytes=30)
    kept = bring(cache, b"a" * 10, Source(b"a" * 10))
    for letter, age in ((b"b", 200), (b"c", 100)):
        bring(cache, letter * 10, Source(letter * 10)).unlink()
        place = tmp_path / "cache" / "files" / f"{entry_of(letter * 10).xxh3}.10"
        os.utime(place, (place.stat().st_mtime - age,) * 2)
    bring(cache, b"d" * 10, Source(b"d" * 10)).unlink()
    names = {path.name for path in (tmp_path / "cache" / "files").iterdir()}
    assert names == {f"{entry_of(letter * 10).xxh3}.10" for letter in (b"a", b"c", b"d")}, "the oldest went"
    bring(cache, b"e" * 20, Source(b"e" * 20))
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "files").iterdir()) == 30
    assert kept.read_bytes() == b"a" * 10
    with pytest.raises(UnreachableError, match=r"files in use take 30 of 30 bytes") as caught:
        bring(cache, b"f", Source(b"f"))
    assert "cluster.cache_bytes" in caught.value.mend


def test_what_was_made_here_is_kept_when_there_is_room(tmp_path: Path, bring: Callable[..., Path]) -> None:
    cache, made = FileCache(tmp_path / "cache", most_bytes=10), tmp_path / "made"
    made.write_bytes(b"content")
    cache.keep(made, entry_of(b"content"))
    source = Source(b"never asked")
    assert bring(cache, b"content", source).samefile(made)
    assert source.fetched == 0
    large = tmp_path / "large"
    large.write_bytes(b"x" * 11)
    cache.keep(large, entry_of(b"x" * 11))
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1
