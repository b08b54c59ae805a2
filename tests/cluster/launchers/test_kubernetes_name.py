"""Names on Kubernetes: always valid, never shared by two keys, the same in every process."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.launchers.kubernetes_name import job_name, label_value, pod_name

LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@given(st.text(), st.integers(0, 9999))
def test_names_are_dns_labels_whatever_the_key(key: str, node_rank: int) -> None:
    for name in (job_name(key), pod_name(key, node_rank)):
        assert LABEL.fullmatch(name), name
        assert len(name) <= 63


@given(st.lists(st.text(alphabet="ab-._A", max_size=80), unique=True, min_size=2))
def test_two_keys_never_share_a_name(keys: list[str]) -> None:
    names = [job_name(key) for key in keys]
    assert len(set(names)) == len(names)


def test_keys_that_differ_only_where_names_are_cut() -> None:
    keys = [f"{'a' * 100}{end}" for end in ("x", "y", "X")]
    assert all(job_name(one) != job_name(other) for one, other in pairwise(keys))


def test_a_name_is_readable_and_stays() -> None:
    assert job_name("demo-20261122-train-3fa9c1") == "demo-20261122-train-3fa9c1-6b6d52c55f"
    assert pod_name("demo-20261122-train-3fa9c1", 12) == "demo-20261122-train-3fa9c1-6b6d52c55f-12"


@given(st.text())
def test_labels_take_any_text(text: str) -> None:
    assert VALUE.fullmatch(label_value(text))
