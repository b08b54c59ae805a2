"""Nodes: pods' programs really run there, with what their specification says, and end as it says."""

import base64
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lab.api import ApiError

from tests.fakes.kubernetes_pods import Namespace, pod

pytestmark = [pytest.mark.exhaustive, pytest.mark.kubernetes]


def test_a_program_gets_its_variables_and_files(space: Namespace, tmp_path: Path) -> None:
    space.make("secrets", {"metadata": {"name": "keys"}, "data": {"door": base64.b64encode(b"sesame").decode()}})
    space.make("configmaps", {"metadata": {"name": "settings"}, "data": {"steps": "10", "a.yaml": "x: 1"}})
    variables = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "DOOR", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "door"}}},
        {"name": "STEPS", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "steps"}}},
        {"name": "TWICE", "value": "$(STEPS)$(STEPS) $$(STEPS) $(NONE)"},
        {"name": "MOST", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]
    volumes = [
        {"name": "host", "hostPath": {"path": str(tmp_path), "type": "Directory"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a.yaml", "path": "deep/a.yaml"}]}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
    ]
    places = {"host": "/data", "scratch": "/scratch", "memory": "/dev/shm", "settings": "/etc/settings", "keys": "/keys"}
    mounts = [{"name": name, "mountPath": path} for name, path in places.items()]
    script = """
        echo $BASHPID $(hostname) $POD $APP $DOOR $STEPS; echo "$TWICE $MOST"
        cat /etc/settings/deep/a.yaml /keys/door; echo; stat -c %a /keys/door
        df --output=size -B1 /dev/shm | tail -1; touch /scratch/a /usr/left-behind; echo done > /data/result; pwd
    """
    container = {"env": variables, "volumeMounts": mounts, "workingDir": "/scratch", "resources": {"limits": {"memory": "256Mi"}}}
    space.make("pods", pod("reader", script, container=container, volumes=volumes))
    end = space.ends("reader")
    said = space.log("reader").split()
    assert (end["exitCode"], end["reason"]) == (0, "Completed"), said
    assert said[:6] == ["1", "reader", "reader", "reader", "sesame", "10"]
    assert said[6:] == ["1010", "$(STEPS)", "$(NONE)", "256", "x:", "1sesame", "400", str(8 * 2**20), "/scratch"]
    assert (tmp_path / "result").read_text() == "done\n"
    assert not Path("/usr/left-behind").exists()


@pytest.mark.parametrize(
    ("script", "container", "expected"),
    [
        ("exit 3", {}, (3, "Error")),
        ("sleep 60 & kill -9 $!; wait $!", {}, (137, "Error")),
        ("", {"command": ["/no/such/program"]}, (128, "StartError")),
        ("x=$(head -c 200M /dev/zero | tr '\\0' x); sleep 60", {"resources": {"limits": {"memory": "64Mi"}}}, (137, "OOMKilled")),
        ("echo why > /dev/termination-log; exit 1", {}, (1, "Error")),
        ("echo why; exit 1", {"terminationMessagePolicy": "FallbackToLogsOnError"}, (1, "Error")),
    ],
    ids=["error", "signal", "program", "memory", "message", "log"],
)
def test_an_end_is_called_what_it_was(space: Namespace, script: str, container: dict[str, Any], expected: tuple[int, str]) -> None:
    space.make("pods", pod("ends", script, container=container))
    end = space.ends("ends")
    assert (end["exitCode"], end["reason"]) == expected, end
    assert space.pod("ends")["status"]["phase"] == "Failed"
    assert ("why" in script) == (end.get("message") == "why\n")


def test_a_user_without_rights_stays_one(space: Namespace) -> None:
    strict = {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    script = "id -u; id -G; touch /no 2>&1; touch /scratch/yes && stat -c %g /scratch/yes; grep -E 'CapBnd|NoNewPrivs' /proc/self/status"
    container = {"securityContext": strict, "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    space.make("pods", pod("strict", script, container=container, securityContext={"fsGroup": 2000}, volumes=[{"name": "scratch", "emptyDir": {}}]))
    assert space.ends("strict")["exitCode"] == 0
    user, groups, refused, group, *rest = space.log("strict").splitlines()
    assert (user, groups, group) == ("1000", "1000 2000", "2000")
    assert "Read-only file system" in refused
    assert [int(line.split()[1], 16) for line in rest] == [0, 1]
    space.make("pods", pod("root", "true", securityContext={"runAsNonRoot": True}))
    assert "will run as root" in space.waits("root", "CreateContainerConfigError")


def test_a_deleted_pod_is_asked_first_and_killed_in_the_end(space: Namespace, tmp_path: Path) -> None:
    out = {"volumes": [{"name": "out", "hostPath": {"path": str(tmp_path)}}]}
    mounted = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    script = "trap 'echo bye > /out/bye; exit 0' TERM; touch /out/on; while :; do sleep 0.1; done"
    space.make("pods", pod("polite", script, container=mounted, **out))
    space.make("pods", pod("deaf", "sleep 600"))
    for name in ("polite", "deaf"):
        space.reaches(name, "Running")
    space.wait((tmp_path / "on").exists, "a handler")
    began = time.monotonic()
    space.delete("polite")
    space.delete("deaf", grace_s=1)
    space.vanishes("polite")
    space.vanishes("deaf")
    assert time.monotonic() - began < 25, "it was not heard: 30 seconds are for those who do not listen"
    assert (tmp_path / "bye").exists()


def test_a_pod_that_was_evicted_says_so(space: Namespace, kubernetes_nodes: Any) -> None:
    space.make("pods", pod("victim", "sleep 600"))
    node = space.reaches("victim", "Running")["spec"]["nodeName"]
    kubernetes_nodes.evict(node, namespace=space.name, pod="victim")
    status = space.reaches("victim", "Failed")["status"]
    assert (status["reason"], status["containerStatuses"][0]["state"]["terminated"]["exitCode"]) == ("Evicted", 137)
    assert "low on resource" in status["message"]
    assert "DisruptionTarget" in [condition["type"] for condition in status["conditions"]]


@pytest.mark.parametrize(
    ("script", "spec", "reason"),
    [
        ("head -c 5M /dev/zero > /scratch/file; sleep 600", {"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]}, "Evicted"),
        ("sleep 600", {"volumes": [{"name": "scratch", "emptyDir": {}}], "activeDeadlineSeconds": 1}, "DeadlineExceeded"),
    ],
    ids=["disk", "deadline"],
)
def test_a_pod_that_takes_too_much_is_ended(space: Namespace, script: str, spec: dict[str, Any], reason: str) -> None:
    mount = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    space.make("pods", pod("greedy", script, container=mount, terminationGracePeriodSeconds=1, **spec))
    assert space.reaches("greedy", "Failed")["status"]["reason"] == reason


def test_what_is_to_be_done_before_the_end_is_done(space: Namespace, tmp_path: Path) -> None:
    hook = {"preStop": {"exec": {"command": ["bash", "-c", "hostname > /out/hook"]}}}
    container = {"lifecycle": hook, "volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    volume = {"name": "out", "hostPath": {"path": str(tmp_path)}}
    space.make("pods", pod("hooked", "sleep 600", container=container, volumes=[volume], terminationGracePeriodSeconds=5))
    space.reaches("hooked", "Running")
    space.delete("hooked")
    space.vanishes("hooked")
    assert (tmp_path / "hook").read_text() == "hooked\n"


def test_an_eviction_through_the_api_deletes(space: Namespace) -> None:
    space.make("pods", pod("drained", "sleep 600", terminationGracePeriodSeconds=0))
    space.reaches("drained", "Running")
    eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "drained", "namespace": space.name}}
    space.api.post(f"{space.path}/pods/drained/eviction", eviction)
    space.vanishes("drained")


def test_an_image_that_is_missing_is_waited_for(space: Namespace, kubernetes_nodes: Any) -> None:
    space.make("pods", pod("early", "", container={"image": "site/late:1", "command": None, "args": None}))
    assert "site/late:1" in space.waits("early", "ImagePullBackOff")
    events = [event["reason"] for event in space.api.get(f"{space.path}/events")["items"]]
    assert {"Failed", "BackOff"} <= set(events)
    command = "echo $PLACE in $(pwd) as $(id -u)"
    kubernetes_nodes.add_image(
        "site/late:1", rootfs="/", entrypoint=["bash", "-c"], command=[command], env={"PLACE": "image"}, workdir="/usr", user="1000"
    )
    assert space.ends("early")["exitCode"] == 0
    assert space.log("early") == "image in /usr as 1000\n"


def test_an_image_is_a_folder_and_stays_as_it_is(space: Namespace, kubernetes_nodes: Any, tmp_path: Path) -> None:
    shell = Path(shutil.which("bash") or "")
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", shell], capture_output=True, text=True, check=True).stdout)
    for path in (shell, *map(Path, libraries)):
        place = tmp_path / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        place.chmod(0o755)
    for name in ("etc", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "var").symlink_to("/elsewhere")  # of the image, not of this machine
    kubernetes_nodes.add_image("site/small:1", rootfs=str(tmp_path), entrypoint=[shell.name, "-c"], env={"PATH": str(shell.parent)})
    before = sorted(tmp_path.rglob("*"))
    script = 'echo x > /written; token=$(< /var/run/secrets/kubernetes.io/serviceaccount/token); echo ${#token} /* "$(< /etc/hostname)"'
    space.make("pods", pod("small", "", container={"image": "site/small:1", "command": None, "args": [script]}))
    assert space.ends("small")["exitCode"] == 0, space.pod("small")["status"]
    length, *roots, name = space.log("small").split()
    assert int(length) > 500
    assert {"/proc", "/dev", "/sys", "/etc", "/elsewhere", "/written"} <= set(roots)
    assert "/root" not in roots
    assert name == "small"
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/elsewhere").exists()


def test_what_a_pod_refers_to_is_waited_for(space: Namespace) -> None:
    variable = {"name": "DOOR", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "door"}}}
    space.make("pods", pod("early", "echo $DOOR", container={"env": [variable]}))
    assert "keys" in space.waits("early", "CreateContainerConfigError")
    space.make("secrets", {"metadata": {"name": "keys"}, "data": {"door": base64.b64encode(b"sesame").decode()}})
    assert space.ends("early")["exitCode"] == 0
    assert space.log("early") == "sesame\n"


def test_pods_find_each_other_by_name(space: Namespace) -> None:
    serve = "exec python3 -c \"import http.server as h, socket; h.test(h.SimpleHTTPRequestHandler, port=8000, bind=socket.gethostbyname('a'))\""
    ask = "until python3 -c \"import urllib.request as r; r.urlopen('http://a.peers:8000/')\" 2>/dev/null; do sleep 0.2; done; grep -c . /etc/hosts"
    spec = {"clusterIP": "None", "selector": {"gang": "1"}, "publishNotReadyAddresses": True}
    space.make("services", {"metadata": {"name": "peers"}, "spec": spec})
    space.make("pods", pod("a", serve, container={"workingDir": "/usr/share"}, hostname="a", subdomain="peers"))
    space.make("pods", pod("b", ask, hostname="b", subdomain="peers"))
    assert space.ends("b")["exitCode"] == 0
    addresses = {space.pod(name)["status"]["podIP"] for name in "ab"}
    assert len(addresses) == 2
    space.delete("a", grace_s=0)


def test_a_program_speaks_to_the_api_as_its_service_account(space: Namespace) -> None:
    home = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = (
        f"cd {home}; cat namespace; echo; cat token | cut -d. -f2 | base64 -d 2>/dev/null | tr ',' '\n' | grep -o '\"sub\":.*'; "
        "python3 - <<'E'\n"
        "import os, ssl, urllib.error, urllib.request as r\n"
        "url = 'https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}/api/v1/secrets'.format(**os.environ)\n"
        "ask = r.Request(url, headers={'Authorization': 'Bearer ' + open('token').read()})\n"
        "try: r.urlopen(ask, context=ssl.create_default_context(cafile='ca.crt'))\n"
        "except urllib.error.HTTPError as e: print(e.code)\n"
        "E\n"
    )
    space.make("pods", pod("asking", script))
    assert space.ends("asking")["exitCode"] == 0, space.log("asking")
    namespace, subject, code = space.log("asking").splitlines()
    assert (namespace, code) == (space.name, "403")
    assert f"system:serviceaccount:{space.name}:default" in subject


def test_a_claim_is_a_folder(space: Namespace, kubernetes_nodes: Any, tmp_path: Path) -> None:
    kubernetes_nodes.add_volume("folder-of-a-claim", tmp_path, storage_class="folders")
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "folders", "resources": {"requests": {"storage": "1Gi"}}}
    space.make("persistentvolumeclaims", {"metadata": {"name": "shared"}, "spec": spec})
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/shared", "subPath": "runs"}]}
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}
    space.make("pods", pod("writer", "echo kept > /shared/result", container=mount, volumes=[volume]))
    assert space.ends("writer")["exitCode"] == 0
    assert (tmp_path / "runs/result").read_text() == "kept\n"


def test_a_container_is_begun_again_when_the_pod_says_so(space: Namespace) -> None:
    scratch = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    script = "echo life; [ -e /scratch/once ] || { touch /scratch/once; exit 1; }"
    space.make("pods", pod("second", script, container=scratch, restartPolicy="OnFailure", volumes=[{"name": "scratch", "emptyDir": {}}]))
    space.ends("second")
    (status,) = space.pod("second")["status"]["containerStatuses"]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"], status["state"]["terminated"]["exitCode"]) == (1, 1, 0)
    assert space.log("second") == space.log("second", "?previous=true") == "life\n"


def test_init_containers_come_first_and_probes_say_when_it_is_ready(space: Namespace, tmp_path: Path) -> None:
    scratch = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    both = {"volumeMounts": [*scratch["volumeMounts"], {"name": "out", "mountPath": "/out"}]}
    probe = {"exec": {"command": ["test", "-e", "/scratch/ready"]}, "periodSeconds": 1}
    before = {"name": "before", "image": "host", "command": ["touch", "/scratch/first"], **scratch}
    script = "ls /scratch; until [ -e /out/go ]; do sleep 0.1; done; touch /scratch/ready; sleep 600"
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "out", "hostPath": {"path": str(tmp_path)}}]
    spec = {"volumes": volumes, "initContainers": [before], "terminationGracePeriodSeconds": 0}
    space.make("pods", pod("probed", script, container={**both, "readinessProbe": probe}, **spec))

    def ready() -> str:
        return str({condition["type"]: condition["status"] for condition in space.pod("probed")["status"].get("conditions", [])}.get("Ready"))

    space.reaches("probed", "Running")
    assert ready() == "False"
    (tmp_path / "go").touch()
    space.wait(lambda: ready() == "True", "ready")
    assert space.log("probed") == "first\n"
    space.delete("probed")
    space.vanishes("probed")


def test_a_log_is_followed_and_cut(space: Namespace) -> None:
    space.make("pods", pod("talking", "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done"))
    space.reaches("talking", "Running", "Succeeded")
    assert space.log("talking", "?follow=true") == "".join(f"line {number}\n" for number in range(1, 6))
    assert space.log("talking", "?tailLines=2") == "line 4\nline 5\n"
    assert space.log("talking", "?limitBytes=3") == "lin"
    stamped = space.log("talking", "?timestamps=true").splitlines()
    since = stamped[2].split()[0]
    assert space.log("talking", f"?sinceTime={since[:19]}Z").endswith("line 5\n")
    with pytest.raises(ApiError) as refused:
        space.log("talking", "?container=nobody")
    assert refused.value.status in (400, 404)


def test_gpus_and_cpus_are_counted(space: Namespace) -> None:
    def asking(name: str, gpus: int) -> dict[str, Any]:
        return pod(name, "sleep 600", container={"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}, terminationGracePeriodSeconds=0)

    for number in range(3):
        space.make("pods", asking(f"full{number}", 2))
    for number in range(3):
        space.reaches(f"full{number}", "Running")
    assert len({space.pod(f"full{number}")["spec"]["nodeName"] for number in range(3)}) == 3
    space.make("pods", asking("more", 1))
    said: list[str] = []

    def refused() -> bool:
        said[:] = [condition.get("message", "") for condition in space.pod("more")["status"].get("conditions", [])]
        return any("Insufficient nvidia.com/gpu" in message for message in said)

    space.wait(refused, "no room")
    space.delete("full0")
    space.reaches("more", "Running")
    for name in space.pods():
        space.delete(name)


def test_pods_go_on_and_end_while_the_control_plane_is_away(space: Namespace, kubernetes_nodes: Any, tmp_path: Path) -> None:
    mount = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    script = "until [ -e /out/go ]; do sleep 0.1; done; echo done; touch /out/done; exit 4"
    space.make("pods", pod("alone", script, container=mount, volumes=[{"name": "out", "hostPath": {"path": str(tmp_path)}}]))
    space.reaches("alone", "Running")
    kubernetes_nodes.kill("kube-apiserver")
    (tmp_path / "go").touch()
    space.wait((tmp_path / "done").exists, "the program's end")
    kubernetes_nodes.start("kube-apiserver")
    assert space.ends("alone")["exitCode"] == 4
    assert space.log("alone") == "done\n"


def test_a_node_without_power_is_noticed_and_its_pods_are_lost(space: Namespace, kubernetes_nodes: Any) -> None:
    space.make("pods", pod("unlucky", "sleep 614", terminationGracePeriodSeconds=1))  # as no other pod does: some may still be ending
    node = space.reaches("unlucky", "Running")["spec"]["nodeName"]
    power = kubernetes_nodes.pids()[node]
    space.wait(lambda: bool(_processes("sleep 614", under=power)), "a process")
    (program,) = _processes("sleep 614", under=power)
    kubernetes_nodes.kill(node)
    assert not Path(f"/proc/{program}").exists()

    def ready() -> str:
        conditions = space.api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
        return str(next(condition["status"] for condition in conditions if condition["type"] == "Ready"))

    space.wait(lambda: ready() == "Unknown", f"{node} not ready")
    space.wait(lambda: "deletionTimestamp" in space.pod("unlucky")["metadata"], "deleted by the control plane")
    assert space.pod("unlucky")["status"]["phase"] == "Running"  # nobody can say otherwise
    kubernetes_nodes.start(node)
    space.vanishes("unlucky")
    kubernetes_nodes.wait_ready(node)


def test_a_pod_that_lost_its_power_for_a_moment_is_over(space: Namespace, kubernetes_nodes: Any) -> None:
    space.make("pods", pod("blink", "sleep 600"))
    node = space.reaches("blink", "Running")["spec"]["nodeName"]
    kubernetes_nodes.kill(node)
    kubernetes_nodes.start(node)
    end = space.ends("blink")
    assert (end["exitCode"], end["reason"]) == (137, "ContainerStatusUnknown")


def _processes(command: str, *, under: int) -> list[int]:
    """Returns the processes with a command line below another one, as this machine numbers them."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().replace(b"\0", b" ").strip() == command.encode():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def below(pid: int) -> bool:
        return pid == under or (pid in parents and below(parents[pid]))

    return [pid for pid in found if below(pid)]
