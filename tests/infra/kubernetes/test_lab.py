"""The decisions of the nodes that need no cluster: variables, names, logs, statuses, amounts."""

import threading
from pathlib import Path
from typing import Any

import pytest
from lab.container import Exit
from lab.environment import expand
from lab.images import Image
from lab.logs import read
from lab.lookup import NotThereError, own_field
from lab.names import hosts_of, write_hosts
from lab.quantity import parse
from lab.specification import specification_of
from lab.status import ContainerState, phase_of, status_of

from tests.fakes.kubernetes_pods import pod


@pytest.mark.parametrize(("text", "amount"), [("500m", 0.5), ("2", 2), ("8Gi", 8 * 2**30), ("1e3", 1000), ("3M", 3_000_000), ("64Mi", 2**26)])
def test_amounts(text: str, amount: float) -> None:
    assert parse(text) == pytest.approx(amount)


@pytest.mark.parametrize(("text", "value"), [("$(A)/x", "1/x"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A $(A)$(A)", "$A 11"), ("$", "$")])
def test_references_to_variables(text: str, value: str) -> None:
    assert expand(text, {"A": "1"}) == value


def _there(name: str, address: str, *, space: str = "ml", ready: str = "True", **spec: Any) -> dict[str, Any]:
    status = {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name, "namespace": space, "labels": {"app": name[0]}}, "spec": spec, "status": status}


def test_names_of_pods_and_services() -> None:
    pods = [
        _there("b1", "127.9.1.2", hostname="rank-1", subdomain="gang"),
        _there("s2", "127.9.1.3", ready="False"),
        _there("s3", "127.9.2.2"),
        _there("o1", "127.9.2.3", space="other"),
    ]
    services = [
        {"metadata": {"name": "server", "namespace": "ml"}, "spec": {"selector": {"app": "s"}}},
        {"metadata": {"name": "over", "namespace": "other"}, "spec": {"selector": {"app": "o"}}},
        {"metadata": {"name": "empty", "namespace": "ml"}, "spec": {}},
    ]
    lines = hosts_of("ml", pods=pods, services=services).splitlines()
    assert lines == [
        "127.9.1.2 rank-1.gang.ml.svc.cluster.local rank-1.gang.ml.svc rank-1.gang.ml rank-1.gang",
        "127.9.2.3 over.other.svc.cluster.local over.other.svc over.other",
        "127.9.2.2 server.ml.svc.cluster.local server.ml.svc server.ml server",
    ]


def test_a_file_of_hosts_is_written_over_and_stays_the_same_file(tmp_path: Path) -> None:
    path, one = tmp_path / "hosts", _there("b1", "127.9.1.2", hostname="rank-1", subdomain="gang")
    write_hosts(path, one, address="127.9.1.2", others="127.9.1.3 other\n" * 5)
    number = path.stat().st_ino
    write_hosts(path, one, address="127.9.1.2", others="127.9.1.3 other\n")
    assert path.stat().st_ino == number
    assert path.read_text() == "127.0.0.1 localhost\n127.9.1.2 rank-1.gang.ml.svc.cluster.local rank-1\n127.9.1.3 other\n"


def test_a_log_that_is_being_written_is_followed_to_its_end(tmp_path: Path) -> None:
    path, ended = tmp_path / "0.log", threading.Event()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(read(path, follow=lambda: not ended.is_set())))
    reader.start()
    with path.open("ab", buffering=0) as file:
        for piece in (b"2026-01-01T00:00:00.1Z one\n2026-01-01", b"T00:00:01.1Z two\n", b"2026-01-01T00:00:02.1Z three\n"):
            file.write(piece)
    ended.set()
    reader.join(timeout=30)
    assert got == [b"one\n", b"two\n", b"three\n"]
    whole = {"follow": lambda: False}
    assert list(read(path, **whole, tail=1)) == [b"three\n"]
    assert list(read(path, **whole, since="2026-01-01T00:00:01")) == [b"two\n", b"three\n"]
    assert b"".join(read(path, **whole, limit=5)) == b"one\nt"
    assert next(read(path, **whole, timestamps=True)) == b"2026-01-01T00:00:00.1Z one\n"


def _ended(code: int) -> ContainerState:
    return ContainerState(name="c", image="i", started="t", exit=Exit(code=code, reason="", message="", started="t", finished="t"))


@pytest.mark.parametrize(
    ("states", "policy", "phase"),
    [
        ([ContainerState("c", "i")], "Never", "Pending"),
        ([ContainerState("c", "i", started="t")], "Never", "Running"),
        ([_ended(0)], "Never", "Succeeded"),
        ([_ended(0), _ended(1)], "Never", "Failed"),
        ([_ended(0), ContainerState("c", "i", started="t")], "Never", "Running"),
        ([_ended(1)], "OnFailure", "Running"),
        ([_ended(0)], "OnFailure", "Succeeded"),
        ([_ended(0)], "Always", "Running"),
    ],
)
def test_phases(states: list[ContainerState], policy: str, phase: str) -> None:
    assert phase_of(states, policy=policy) == phase


def test_a_condition_keeps_its_time_while_it_does_not_change() -> None:
    known = [
        {"type": "Initialized", "status": "True", "lastTransitionTime": "early"},
        {"type": "Ready", "status": "False", "lastTransitionTime": "early"},
    ]
    states = [ContainerState("c", "i", started="t", ready=True)]
    status = status_of("uid", known=known, phase="Running", addresses=("a", "n"), started="s", containers=states, time="late")["status"]
    assert {condition["type"]: condition["lastTransitionTime"] for condition in status["conditions"]} == {
        "Initialized": "early",
        "ContainersReady": "late",
        "Ready": "late",
    }


def test_a_specification_refuses_root_and_ways_out_of_volumes(tmp_path: Path) -> None:
    def specification(one: dict[str, Any]) -> dict[str, Any]:
        (container,) = one["spec"]["containers"]
        image = Image(name="host", rootfs="/")
        return specification_of(container, one, image=image, environment={}, volume=lambda name: tmp_path, files={}, folder=tmp_path)

    with pytest.raises(NotThereError, match="will run as root"):
        specification(pod("p", "true", securityContext={"runAsNonRoot": True}))
    with pytest.raises(NotThereError, match="leads out"):
        specification(pod("p", "true", container={"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/../../b"}]}))
    made = specification(
        pod("p", "true", container={"securityContext": {"runAsUser": 5}}, securityContext={"runAsUser": 4, "runAsGroup": 6, "fsGroup": 7})
    )
    assert (made["uid"], made["gid"], made["groups"]) == (5, 6, [6, 7])


def test_fields_that_are_unknown_are_refused() -> None:
    one = _there("b1", "127.9.1.2")
    one["metadata"]["uid"] = "u"
    assert own_field(one, "metadata.labels['app']", pod_address="a", node_address="n") == "b"
    with pytest.raises(NotThereError, match=r"no field status\.phase"):
        own_field(one, "status.phase", pod_address="a", node_address="n")
