"""The control plane: it is a real one, it comes back with what it knew, and it ends with whoever wanted it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lab.api import Api, ApiError
from lab.informer import Informer

from tests.fakes.kubernetes_cluster import CACHE
from tests.fakes.kubernetes_pods import Namespace, pod

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]


def test_a_pod_without_a_place_says_why_it_waits(space: Namespace) -> None:
    space.make("pods", pod("lonely", "true", nodeSelector={"no": "such"}))

    def reasons() -> list[str]:
        return [condition.get("reason", "") for condition in space.pod("lonely")["status"].get("conditions", [])]

    space.wait(lambda: "Unschedulable" in reasons(), "unschedulable")


def test_a_name_is_taken_once(space: Namespace) -> None:
    space.make("pods", pod("one", "true"))
    with pytest.raises(ApiError) as refused:
        space.make("pods", pod("one", "true"))
    assert (refused.value.status, refused.value.reason) == (409, "AlreadyExists")


def test_a_quota_refuses(space: Namespace) -> None:
    spec = {"hard": {"pods": "1"}}
    space.make("resourcequotas", {"metadata": {"name": "small"}, "spec": spec})
    space.wait(lambda: bool(space.api.get(f"{space.path}/resourcequotas/small").get("status", {}).get("hard")), "a quota in force")
    space.make("pods", pod("first", "true"))
    with pytest.raises(ApiError, match="exceeded quota") as refused:
        space.make("pods", pod("second", "true"))
    assert refused.value.status == 403


def test_a_service_account_may_do_what_a_role_says_and_nothing_else(space: Namespace, kubernetes_nodes: Any) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{space.name}"
    space.make("serviceaccounts", {"metadata": {"name": "reader"}})
    space.api.post(f"{rbac}/roles", {"metadata": {"name": "read"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": space.name}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "read"}
    space.api.post(f"{rbac}/rolebindings", {"metadata": {"name": "read"}, "subjects": [subject], "roleRef": role})
    settings = json.loads(kubernetes_nodes.service_account("reader", namespace=space.name).read_text())
    cluster, user = settings["clusters"][0]["cluster"], settings["users"][0]["user"]
    api = Api(cluster["server"], token=user["token"], ca=cluster["certificate-authority"])
    # Who authorises hears of a new role a moment later.
    space.wait(lambda: _may_list(api, f"{space.path}/pods"), "the right to list")
    assert api.get(f"{space.path}/pods")["items"] == []
    for refused in (lambda: api.post(f"{space.path}/pods", pod("no", "true")), lambda: api.get(f"{space.path}/secrets")):
        with pytest.raises(ApiError) as error:
            refused()
        assert error.value.status == 403


def _may_list(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        if error.status != 403:
            raise
        return False
    return True


def test_nobody_gets_in_without_a_token(kubernetes_nodes: Any) -> None:
    settings = kubernetes_nodes.settings
    with pytest.raises(ApiError) as refused:
        Api(settings.url, token="guessed", ca=f"{settings.folder}/pki/ca.crt").get("/api/v1/pods")
    assert refused.value.status == 401


@pytest.mark.exhaustive
@pytest.mark.parametrize("program", ["kube-apiserver", "etcd"])
def test_a_watcher_misses_nothing_of_a_program_that_was_killed(space: Namespace, kubernetes_nodes: Any, program: str) -> None:
    seen: dict[str, str] = {}
    changed = threading.Condition()

    def note(uid: str, value: Any) -> None:
        with changed:
            if value is None:
                seen.pop(uid, None)
            else:
                seen[uid] = value["metadata"]["name"]
            changed.notify_all()

    def sees(*names: str) -> bool:
        with changed:
            return changed.wait_for(lambda: sorted(seen.values()) == sorted(names), timeout=60)

    space.make("configmaps", {"metadata": {"name": "before"}})
    informer = Informer(space.api, f"{space.path}/configmaps", on_change=note)
    informer.start()
    root = ["kube-root-ca.crt"]
    assert sees("before", *root)
    kubernetes_nodes.kill(program)
    with pytest.raises(ApiError):
        space.make("configmaps", {"metadata": {"name": "meanwhile"}})
    kubernetes_nodes.start(program)
    space.wait(lambda: _made(space, "after"), "the API to take something")
    space.api.delete(f"{space.path}/configmaps/before")
    assert sees("after", *root)
    informer.stop()


def _made(space: Namespace, name: str) -> bool:
    try:
        space.make("configmaps", {"metadata": {"name": name}})
    except ApiError as error:
        return error.status == 409
    return True


_KILLED = """
import sys, time
from tests.fakes.kubernetes_cluster import kubernetes_serving
from tests.fakes.kubernetes_pods import Namespace, pod
with kubernetes_serving(nodes=1) as cluster:
    space = Namespace(cluster.api(), "killed")
    volume = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    mount = {"volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}]}
    space.make("pods", pod("left", "echo x > /dev/shm/left-behind; echo on; exec sleep 61.7", container=mount, volumes=[volume]))
    space.reaches("left", "Running")
    space.wait(lambda: space.log("left") == "on\\n", "a program")
    print(cluster.folder, *cluster.pids().values(), flush=True)
    time.sleep(600)
"""


@pytest.mark.exhaustive
def test_nothing_is_left_of_a_cluster_whose_test_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "HEADRACE_CACHE": str(CACHE), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", _KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        assert _named(folder, "sleep 61.7")
        process.send_signal(signal.SIGKILL)
    assert len(pids) == 5
    deadline = time.monotonic() + 60
    while Path(folder).exists() or any(_lives(pid) for pid in pids) or _named(folder, "sleep 61.7"):
        assert time.monotonic() < deadline, _named(folder, "sleep 61.7")
        time.sleep(0.05)
    assert [line for line in Path("/proc/mounts").read_text().splitlines() if folder in line] == []
    assert not Path("/dev/shm/left-behind").exists()


def _named(*texts: str) -> list[str]:
    """Returns the command lines with one of these texts of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [line] if any(text in line for text in texts) else []
    return found


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
