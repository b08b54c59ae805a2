"""Which files a source stands for, and which are refused."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.errors import InputError, MissingTextError
from tasks.validate.sources import compression_of, find_files, format_doubts, format_of, plan_inputs
from tests.fakes.plain_hashes import PlainHashes

Recipe = Callable[..., RunConfig]


def test_a_source_of_nothing_but_json_files_is_doubted(tmp_path: Path, recipe: Recipe) -> None:
    data, code = make_tree(tmp_path / "data", "a.json", "b.JSON.gz"), make_tree(tmp_path / "code", "a.py", "package.json")
    sources = [{"path": str(data), "name": "data"}, {"path": str(code), "name": "code"}]

    def doubts(*sources: dict[str, str]) -> tuple[str, ...]:
        config = recipe(*sources)
        return format_doubts(config, plan_inputs(config, PlainHashes()))

    (doubt,) = doubts(*sources)
    assert "'data': all of its files (2) end in .json" in doubt
    assert "format: jsonl" in doubt
    assert doubts(sources[0] | {"format": "text"}, sources[1]) == ()


def make_tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return root


def found(path: Path | str, **options: object) -> list[str]:
    return [file.relative_path for file in find_files(SourceConfig.model_validate({"path": str(path)} | options), name="s")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a.py", "b.txt", "sub/c.py", "sub/deep/d.md"]),
        ({"include": ("*.py",)}, ["a.py", "sub/c.py"]),
        ({"include": ("*.py", "*.md"), "exclude": ("sub/c*",)}, ["a.py", "sub/deep/d.md"]),
        ({"exclude": ("sub/*",)}, ["a.py", "b.txt"]),
        ({"exclude": ("*/deep/*",)}, ["a.py", "b.txt", "sub/c.py"]),
        ({"exclude": ("s[a-z]b/d?ep/*",)}, ["a.py", "b.txt", "sub/c.py"]),
        ({"exclude": ("deep/*",)}, ["a.py", "b.txt", "sub/c.py", "sub/deep/d.md"]),
        ({"include": ("[ab].*",)}, ["a.py", "b.txt"]),
    ],
)
def test_a_folder_is_read_by_include_and_exclude_without_hidden_names(tmp_path: Path, options: dict[str, object], expected: list[str]) -> None:
    make_tree(tmp_path, "b.txt", "a.py", "sub/c.py", "sub/deep/d.md", ".hidden.py", ".git/config.py", "sub/.cache/x.py")
    assert found(tmp_path, **options) == expected


def test_folders_that_are_left_out_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, "a.py", "sub/deep/d.py", "other/b.py")
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path).name), scandir(path))[1])
    assert found(tmp_path, exclude=("sub/*",)) == ["a.py", "other/b.py"]
    assert listed == [tmp_path.name, "other"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.jsonl", ["a.jsonl", "b.jsonl"]), ("**/*.jsonl", ["a.jsonl", "b.jsonl", "sub/c.jsonl"]), ("s?b/*", ["sub/c.jsonl"]), ("[a]*", ["a.jsonl"])],
)
def test_a_glob_keeps_paths_relative_to_its_fixed_part(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make_tree(tmp_path, "a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/.d.jsonl")
    assert found(tmp_path / pattern) == expected


def test_a_single_file_is_its_own_name_and_may_be_a_link_because_the_user_named_it(tmp_path: Path) -> None:
    make_tree(tmp_path, "real/a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real/a.jsonl")
    assert found(tmp_path / "real/a.jsonl") == ["a.jsonl"]
    (file,) = find_files(SourceConfig(path=str(tmp_path / "link.jsonl")), name="s")
    assert (file.path, file.relative_path) == (tmp_path / "real/a.jsonl", "link.jsonl")


def test_a_name_with_glob_characters_that_exists_is_that_file(tmp_path: Path) -> None:
    make_tree(tmp_path, "a[1].txt", "a1.txt")
    assert found(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_links_inside_the_source_are_read_and_links_that_leave_it_are_refused_all_at_once(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", "a.txt", "sub/b.txt")
    make_tree(tmp_path / "outside", "secret.txt", "folder/secret.txt")
    (source / "inner.txt").symlink_to(source / "sub/b.txt")
    assert found(source) == ["a.txt", "inner.txt", "sub/b.txt"]
    (source / "leak.txt").symlink_to(tmp_path / "outside/secret.txt")
    (source / "leaking_folder").symlink_to(tmp_path / "outside/folder")
    with pytest.raises(InputError, match="2 of 5 files are refused") as caught:
        found(source)
    assert "leak.txt" in str(caught.value)
    assert "leaking_folder" in str(caught.value)
    assert "exclude" in caught.value.mend
    assert found(source, exclude=("leak*",)) == ["a.txt", "inner.txt", "sub/b.txt"]


def test_special_files_broken_links_and_unstorable_names_are_refused(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / os.fsdecode(b"latin-\xe9.txt")).write_text("x")
    with pytest.raises(InputError) as caught:
        found(tmp_path)
    message = str(caught.value)
    assert "3 of 4 files are refused" in message
    assert "pipe: not a regular file" in message
    assert "broken: No such file" in message
    assert "not valid UTF-8" in message
    message.encode()  # printable: nothing of the raw name is left in it


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*"])
def test_links_that_lead_round_in_a_circle_are_refused_as_broken_ones_are(tmp_path: Path, pattern: str) -> None:
    make_tree(tmp_path, "a.txt")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    with pytest.raises(InputError, match="2 of 3 files are refused") as caught:
        found(f"{tmp_path}{pattern}")
    assert f"{tmp_path}/one: Too many levels of symbolic links\n" in str(caught.value)
    assert "exclude" in caught.value.mend


def test_a_link_to_a_folder_that_is_not_looked_into_is_refused(tmp_path: Path) -> None:
    """Its files do not come up anyway, as those of other folders of the source do."""
    make_tree(tmp_path, "a.txt", "sub/b.txt", ".hidden/deep/c.txt")
    (tmp_path / "again").symlink_to("sub")
    (tmp_path / "itself").symlink_to(".")
    assert found(tmp_path) == ["a.txt", "sub/b.txt"]
    (tmp_path / "hiding").symlink_to(".hidden/deep")
    with pytest.raises(InputError, match="1 of 3 files are refused") as caught:
        found(tmp_path)
    assert f"hiding -> {tmp_path}/.hidden/deep: a symbolic link to a hidden folder" in str(caught.value)
    assert found(tmp_path, exclude=("hiding",)) == ["a.txt", "sub/b.txt"]


@pytest.mark.parametrize("pattern", ["**.txt", "sub/a**", "**x/*.txt"])
def test_two_asterisks_within_a_name_are_no_glob(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"is no glob") as caught:
        found(tmp_path / pattern)
    assert "**/*.jsonl" in caught.value.mend


def test_what_is_wrong_with_any_source_is_told_at_once(tmp_path: Path, recipe: Recipe) -> None:
    make_tree(tmp_path, "fine/a.txt", "linked/a.txt")
    (tmp_path / "linked/broken").symlink_to("nothing")
    wrong = ["https://host/folder/", str(tmp_path / "nowhere"), str(tmp_path / "linked"), str(tmp_path / "*.jsonl"), str(tmp_path / "**.jsonl")]
    with pytest.raises(InputError) as caught:
        plan_inputs(recipe(str(tmp_path / "fine"), *wrong), PlainHashes())
    assert not isinstance(caught.value, MissingTextError)
    assert re.findall(r"^    source 'source-(\d)'", caught.value.what, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    for says in ("web servers list nothing", "does not exist", "broken: No such file", "holds no file to read", "is no glob"):
        assert says in caught.value.what
    assert "nearest folder that exists" in caught.value.mend
    assert "exclude" in caught.value.mend


def test_text_that_is_missing_here_is_told_of_all_sources_and_may_still_be_elsewhere(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(MissingTextError, match=r"(?s)'source-0'.*'source-1'") as caught:
        plan_inputs(recipe(str(tmp_path / "nowhere"), str(tmp_path / "*.txt")), PlainHashes())
    assert "a source is a file, a glob or a folder; nothing matches include" in caught.value.why


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.jsonl", "empty", "empty/*.jsonl"])
def test_nothing_to_read_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.hidden").write_text("x")
    with pytest.raises(InputError) as caught:
        found(tmp_path / name)
    assert name in caught.value.what
    assert caught.value.why
    assert "corpus.sources" in caught.value.mend


def test_an_url_is_refused_with_a_reason() -> None:
    with pytest.raises(InputError, match="not on this machine"):
        found("s3://bucket/text.jsonl")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.txt")
    assert found(f"file://{tmp_path}/a.txt") == ["a.txt"]


def test_inputs_carry_source_size_and_hash_in_order_of_the_recipe(tmp_path: Path, recipe: Recipe) -> None:
    make_tree(tmp_path, "z/b.txt", "z/a.txt", "a.jsonl")
    inputs = plan_inputs(recipe({"path": str(tmp_path / "z"), "name": "prose"}, str(tmp_path / "a.jsonl")), PlainHashes())
    assert [(file.source, file.relative_path) for file in inputs] == [("prose", "a.txt"), ("prose", "b.txt"), ("source-1", "a.jsonl")]
    assert inputs[0].size == len("text of z/a.txt")
    assert inputs[0].xxh3 == hash_file(tmp_path / "z/a.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, recipe: Recipe) -> None:
    make_tree(tmp_path, "a.txt", "b.txt")

    def refuse(path: Path) -> str:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return "0" * 32

    with pytest.raises(InputError, match=r"b\.txt: cannot be read") as caught:
        plan_inputs(recipe(str(tmp_path)), PlainHashes(refuse))
    assert caught.value.why == "Permission denied"


def test_a_failure_of_who_looks_on_is_not_blamed_on_a_file(tmp_path: Path, recipe: Recipe) -> None:
    """A journal on a full disk, say, or a terminal that is closed."""
    make_tree(tmp_path, "a.txt")

    def refuse(_: Path) -> str:
        raise OSError(28, "No space left on device", "/store/journal/000012.json")

    with pytest.raises(OSError, match="No space left on device"):
        plan_inputs(recipe(str(tmp_path)), PlainHashes(refuse))


@pytest.mark.parametrize(
    ("path", "declared", "kind", "compression"),
    [
        ("a.jsonl", "auto", "jsonl", "none"),
        ("a.JSONL.GZ", "auto", "jsonl", "gzip"),
        ("a.ndjson.zst", "auto", "jsonl", "zstd"),
        ("a.parquet", "auto", "parquet", "none"),
        ("a.csv.gz", "auto", "csv", "gzip"),
        ("a.tsv", "auto", "csv", "none"),
        ("a.py", "auto", "text", "none"),
        ("Makefile", "auto", "text", "none"),
        ("a.txt.gz", "auto", "text", "gzip"),
        ("a.json", "jsonl", "jsonl", "none"),
        ("data.gz", "csv", "csv", "gzip"),
    ],
)
def test_format_and_compression_go_by_the_ending_unless_the_recipe_says(path: str, declared: str, kind: str, compression: str) -> None:
    source = SourceConfig.model_validate({"path": "x", "format": declared})
    assert (format_of(path, source), compression_of(path)) == (kind, compression)
