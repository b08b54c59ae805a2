"""Which URLs a source may be: told before anything is asked, and without quoting what may be a secret."""

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.recipe import load_recipe
from schemas.source_url import is_remote, name_of, url_problem
from tests.fakes.tiny_pipeline import make_project


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/raw/", True),
        ("https://host/a.jsonl", True),
        ("abfs+x://a/b", True),
        ("simplecache::s3://b/c", True),
        ("/data/raw", False),
        ("file:///data/raw", False),
        ("C:/data", False),
        ("data/a::b", False),
    ],
)
def test_what_is_remote(path: str, remote: bool) -> None:
    assert is_remote(path) is remote


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/raw/2026-??/**/[ab]*.jsonl.zst",
        "https://host:8080/a%20b.jsonl.zst",
        "s3://bucket/year=202?-month=1/",
        "abfs://container@account.dfs.core.windows.net/raw",
        "sftp://me@host/raw",
        "memory://raw",
    ],
)
def test_what_is_taken(url: str) -> None:
    assert url_problem(url) == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("simplecache::s3://bucket/raw", "chains"),
        ("zip://a.txt::s3://bucket/a.zip", "chains"),
        ("s3://KEY:geheim@bucket/raw", "credentials"),
        ("https://geheim@host/a.jsonl", "credentials"),
        ("https://host/a.jsonl?X-Amz-Signature=geheim", "query"),
        ("https://host/a.jsonl?geheim", "query"),
        ("https://host/a.jsonl#geheim", "query"),
        ("az://container/a.jsonl?sv=1&sig=geheim", "query"),
        ("https://host/raw/", "is no file"),
        ("https://host/*.jsonl", "is no file"),
        ("https://host", "is no file"),
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3://buc,ket/raw", "s3://BUCKET/PREFIX"),
        ("memory://", "names nothing"),
    ],
)
def test_what_is_refused_without_being_quoted(url: str, said: str) -> None:
    assert said in url_problem(url)
    assert "geheim" not in url_problem(url)


def test_a_recipe_tells_all_of_its_urls_at_once_and_no_secret(tmp_path: Path) -> None:
    sources = [
        "s3://bucket/raw",
        "s3://KEY:geheim@bucket/raw",
        {"path": "https://host/a.jsonl?sig=geheim", "name": "b"},
        "simplecache::s3://bucket/x",
    ]
    project = make_project(tmp_path, changes={"corpus.sources": sources})
    with pytest.raises(ConfigError) as caught:
        load_recipe(project.recipe)
    assert [problem.key for problem in caught.value.problems] == ["corpus.sources.1", "corpus.sources.2.path", "corpus.sources.3"]
    assert "geheim" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_recipe(project.recipe, ("corpus.sources=['https://host/a?sig=geheim']",))
    assert "geheim" not in str(caught.value)
    assert "--set" in str(caught.value)


def test_a_url_stays_as_it_is_written(tmp_path: Path) -> None:
    project = make_project(tmp_path, changes={"corpus.sources": ["s3://bucket/raw/../x//"]})
    assert load_recipe(project.recipe).config.corpus.sources[0].path == "s3://bucket/raw/../x//"


@pytest.mark.parametrize(
    ("url", "name"), [("https://host/a%20b.txt", "a b.txt"), ("https://host/a%2Fb.txt", "a%2Fb.txt"), ("s3://bucket/x/a%20b.txt", "a%20b.txt")]
)
def test_a_single_file_is_called_as_it_would_be_on_disk(url: str, name: str) -> None:
    assert name_of(url) == name
