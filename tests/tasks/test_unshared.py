"""What pods miss that share no folder with the machine that decides: named by key, once, and only where it is missed."""

from pathlib import Path
from typing import Any

from schemas.stage import Stage
from tasks.unshared import missed_by_pods
from tests.fakes.in_process_work import config_with

PROJECT = Path("/home/me/project")
BUCKET = "s3://bucket/data"
EVERY = frozenset(Stage)


def missed(root: str, *, stages: frozenset[Stage] = EVERY, kubernetes: dict[str, Any] | None = None, **sections: Any) -> list[str]:
    """Returns the keys that are warned of."""
    corpus = {"sources": ["/home/me/text"], **sections.pop("corpus", {})}
    cluster = sections.pop("cluster", {"kind": "kubernetes", "kubernetes": kubernetes or {}})
    config = config_with(corpus=corpus, cluster=cluster, **sections)
    return [each.subject for each in missed_by_pods(config, storage_root=root, project_dir=PROJECT, stages=stages)]


def test_a_bucket_carries_the_text_and_nobody_carries_credentials() -> None:
    assert missed(BUCKET) == ["cluster.kubernetes.secrets"]
    assert missed(BUCKET, kubernetes={"secrets": ["storage"]}) == []
    assert missed("/mnt/data") == ["corpus.sources.0"]
    assert missed("/mnt/data", kubernetes={"volumes": [{"mount": "/home/me", "claim": "home"}]}) == []


def test_text_behind_a_url_is_fetched_for_pods_wherever_artifacts_lie() -> None:
    corpus = {"sources": ["s3://texts/raw/", "https://example.org/a.jsonl"]}
    assert missed("/mnt/data", corpus=corpus) == []
    assert missed(BUCKET, corpus=corpus, kubernetes={"secrets": ["storage"]}) == []


def test_files_besides_text_are_named_by_the_stage_that_opens_them() -> None:
    tokenizer = {"path": "/home/me/tokenizer", "end_of_text": "</s>"}
    decontamination = {"preparation": {"decontamination": {"ngram": 13, "files": ["/home/me/test.txt"]}}}
    outside = {"tokenizer": tokenizer, "model": {"pretrained": "/home/me/model"}, "corpus": decontamination}
    known = {"secrets": ["storage"]}
    keys = ["corpus.preparation.decontamination.files.0", "tokenizer.path", "model.pretrained"]
    assert missed(BUCKET, kubernetes=known, **outside) == keys
    assert missed(BUCKET, kubernetes=known, stages=frozenset({Stage.TRAIN}), **outside) == ["model.pretrained"]
    assert missed(BUCKET, kubernetes=known, model={"factory": "my_models:small"}) == ["model.factory"]
    mounted = {**known, "stages": {"train": {"volumes": [{"mount": "/home/me/project", "claim": "code"}]}}}
    assert missed(BUCKET, kubernetes=mounted, model={"factory": "my_models:small"}) == []


def test_elsewhere_machines_share_what_the_user_has() -> None:
    assert missed(BUCKET, cluster={"kind": "local"}) == []
