"""Who is told: the automations of `infra/automations.yaml` in a real Prefect server, with a block that posts to a receiver on this machine."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fakes.ending_flow import REASON
from tests.fakes.prefect_lab import PrefectLab, wait_until
from tests.fakes.tiny_pipeline import ROOT

pytestmark = [pytest.mark.exhaustive, pytest.mark.services]

_FILE = ROOT / "infra" / "automations.yaml"
_MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
content = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="told", url=sys.argv[1], json_data=content).save("headrace", overwrite=True)
"""


@dataclass
class Receiver:
    """What was posted to it."""

    url: str
    posts: list[dict[str, str]] = field(default_factory=list)

    def told_of(self, flow_run: str) -> list[dict[str, str]]:
        """The posts about a flow run, by its name."""
        return [post for post in self.posts if flow_run in post["subject"]]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_port}/told")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def told(prefect: PrefectLab, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Receiver:
    """The receiver, after a block and the automations were made as the head of their file says; silence is ten seconds here, not ten minutes."""
    subprocess.run((sys.executable, "-c", _MAKE_BLOCK, receiver.url), env=prefect.env, check=True, timeout=120)
    text = _FILE.read_text(encoding="utf-8")
    shown = re.search(r"^# +(sed (?:.|\n)*?--from-file) (\S+)$", text, re.MULTILINE)
    assert shown is not None
    command = shown[0].replace("#", "").replace("\\\n", "").replace("slack-webhook/", "custom-webhook/").replace("/tmp/", "")
    folder = tmp_path_factory.mktemp("automations")
    (folder / "infra").mkdir()
    (folder / "infra" / "automations.yaml").write_text(text.replace("within: 600\n", "within: 10\n"))
    env = prefect.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(("bash", "-e", "-o", "pipefail", "-c", command), cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return receiver


def start(prefect: PrefectLab, *, tag: str, how: str) -> "subprocess.Popen[bytes]":
    argv = (sys.executable, "-m", "tests.fakes.ending_flow", tag, how)
    return subprocess.Popen(argv, env=prefect.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest(prefect: PrefectLab, *, tag: str) -> dict[str, str]:
    """The newest flow run with a tag."""
    found: dict[str, str] = prefect.flow_runs(tags={"all_": [tag]})[-1]
    return found


def test_a_run_that_failed_is_posted_with_its_reason_and_others_are_not(prefect: PrefectLab, told: Receiver) -> None:
    runs = [start(prefect, tag=tag, how=how) for tag, how in (("headrace", "well"), ("other", "badly"))]
    assert [run.wait(timeout=120) for run in runs] == [0, 1]
    well, strange = newest(prefect, tag="headrace"), newest(prefect, tag="other")
    assert start(prefect, tag="headrace", how="badly").wait(timeout=120) == 1
    failed = newest(prefect, tag="headrace")
    (post,) = wait_until(lambda: told.told_of(failed["name"]), what=lambda: told.posts, timeout_s=60)
    assert post["subject"] == f"{failed['name']} Failed"
    assert REASON in post["body"]
    assert f"headrace status {failed['name']}" in post["body"]
    assert failed["id"] in post["body"], "a link to the flow run"
    assert told.told_of(well["name"]) == told.told_of(strange["name"]) == []


def test_a_run_whose_process_is_gone_is_posted(prefect: PrefectLab, told: Receiver) -> None:
    with start(prefect, tag="headrace", how="never") as process, contextlib.ExitStack() as end:
        end.callback(process.kill)  # else a test that fails here waits for it for ever
        running = wait_until(lambda: prefect.flow_runs(state={"type": {"any_": ["RUNNING"]}}), what=lambda: prefect.flow_runs())[-1]
        beats = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{running['id']}"]}}
        wait_until(lambda: prefect.post("events/filter", {"filter": beats})["events"], what=lambda: "no heartbeat")
        process.kill()
    (post,) = wait_until(lambda: told.told_of(running["name"]), what=lambda: told.posts, timeout_s=120)
    assert post["subject"] == f"{running['name']} shows no life"
    assert f"headrace resume {running['name']}" in post["body"]
