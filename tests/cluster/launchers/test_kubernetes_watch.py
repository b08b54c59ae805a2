"""List and watch: what is known when, from a server that forgets, breaks off, hangs and goes back in time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.launchers import kubernetes_watch
from cluster.launchers.kubernetes_pod import Pod
from cluster.launchers.kubernetes_watch import PodWatch
from cluster.launchers.protocol import JobState
from tests.fakes.kubernetes_api import FakeApi, Fault, api_at, kubernetes_speaking
from tests.fakes.live_job import wait_until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_watch, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(kubernetes_watch, "_MOST_PAUSE_S", 0.05)
    monkeypatch.setattr(kubernetes_watch, "_GOOD_FOR_S", 0.0)


class Scene:
    """A server with one pod, and who looks at it."""

    def __init__(self, fake: FakeApi, url: str) -> None:
        self.fake, self.url, self.watches = fake, url, []
        self.add("a")

    def watch(self, *, answer_s: float = 10.0) -> PodWatch:
        api = api_at(self.url, answer_s=answer_s)
        self.watches.append(PodWatch(lambda: api))
        return self.watches[-1]

    def watching(self) -> PodWatch:
        """One whose thread watches."""
        watch = self.watch()
        watch.pods()
        assert watch.pods() is not None
        wait_until(lambda: "GET pods watch" in self.fake.requests)
        return watch

    def add(self, key: str, **status: Any) -> None:
        labels = {"app.kubernetes.io/managed-by": "headrace", "headrace/node-rank": "0"}
        metadata = {"name": key, "labels": labels, "annotations": {"headrace/key": key, "headrace/num-nodes": "1"}}
        self.fake.put("pods", {"kind": "Pod", "metadata": metadata, "status": {"phase": "Running", **status}})

    def lists(self) -> int:
        return self.fake.requests.count("GET pods")


def state(watch: PodWatch, key: str = "a") -> JobState | None:
    """Returns what is known of a pod; None: nobody answers, or there is none."""
    pods = watch.pods()
    found: tuple[Pod, ...] = pods.get(key, ()) if pods is not None else ()
    return found[0].state if found else None


@pytest.fixture
def scene() -> Iterator[Scene]:
    with kubernetes_speaking() as (fake, url):
        scene = Scene(fake, url)
        yield scene
        for watch in scene.watches:
            watch.close()
        scene.fake.closed = True


def test_who_asks_once_is_answered_by_a_list_alone(scene: Scene) -> None:
    watch = scene.watch()
    assert state(watch) is JobState.RUNNING
    assert scene.fake.requests == ["GET pods"]


def test_who_watches_hears_of_what_happens_without_listing_again(scene: Scene) -> None:
    watch = scene.watching()
    lists = scene.lists()
    scene.add("b")
    wait_until(lambda: state(watch, "b") is JobState.RUNNING)
    scene.fake.status("b", phase="Failed", reason="Evicted")
    wait_until(lambda: state(watch, "b") is JobState.ENDED)
    assert scene.lists() == lists


def test_a_pod_that_was_removed_is_remembered_with_its_last_words(scene: Scene) -> None:
    watch = scene.watching()
    scene.fake.status("a", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}])
    scene.fake.remove("pods", "a")
    wait_until(lambda: state(watch) is JobState.ENDED)
    pods = watch.pods()
    assert pods is not None
    assert pods["a"][0].cause is not None
    watch.forget("a")
    assert state(watch) is None


@pytest.mark.parametrize("change", [lambda watch: watch.forget("a"), PodWatch.expire])
def test_after_a_change_only_a_list_answers_whatever_the_watch_has_heard_since(scene: Scene, change: Callable[[PodWatch], None]) -> None:
    """The event that told of a pod may have come before the change, and no other follows while the pod waits in the queue."""
    watch = scene.watching()
    lists = scene.lists()
    change(watch)
    scene.add("b")
    wait_until(lambda: "b" in watch._pods)
    assert state(watch, "a") is JobState.RUNNING
    assert scene.lists() == lists + 1
    assert state(watch, "b") is JobState.RUNNING
    assert scene.lists() == lists + 1, "from then on the watch answers again"


def test_a_list_that_was_asked_for_before_a_change_does_not_answer_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = scene.watching()
    pages = watch._pages

    def overtaken() -> Iterator[Any]:
        monkeypatch.setattr(watch, "_pages", pages)
        yield from pages()
        scene.add("b")
        watch.forget("b")

    monkeypatch.setattr(watch, "_pages", overtaken)
    watch.expire()
    watch.pods()
    lists = scene.lists()
    assert state(watch, "b") is JobState.RUNNING
    assert scene.lists() == lists + 1


def test_history_that_is_gone_is_made_up_for_by_a_list(scene: Scene) -> None:
    """410, in the answer's place and in the midst of a watch."""
    watch = scene.watching()
    scene.fake.faults.append(Fault("GET", "pods", 410, "Expired", "too old resource version", watch=True))
    lists = scene.lists()
    scene.fake.forget_history()
    wait_until(lambda: scene.lists() > lists)
    scene.fake.status("a", phase="Succeeded")
    wait_until(lambda: state(watch) is JobState.ENDED)


def test_a_watch_from_too_long_ago_is_told_so_by_an_event(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = scene.watch()
    watch.pods()
    scene.fake.oldest = scene.fake.version + 50
    watch.expire()
    assert state(watch) is JobState.RUNNING
    wait_until(lambda: scene.lists() >= 3)
    scene.fake.oldest = 0
    scene.fake.status("a", phase="Succeeded")
    wait_until(lambda: state(watch) is JobState.ENDED)


def test_while_nobody_answers_nothing_is_known_and_then_it_is_again(scene: Scene) -> None:
    watch = scene.watching()
    scene.fake.faults.append(Fault("GET", "pods", 503, times=1_000_000))  # until it was noticed
    scene.fake.forget_history()
    wait_until(lambda: watch.pods() is None)
    scene.fake.faults.clear()
    wait_until(lambda: state(watch) is JobState.RUNNING)


def test_a_server_that_hangs_is_given_up(scene: Scene) -> None:
    scene.fake.faults.append(Fault("GET", "pods", hangs=True))
    assert scene.watch(answer_s=0.1).pods() is None


def test_while_it_is_silent_a_server_is_asked_ever_more_rarely(scene: Scene) -> None:
    now = [0.0]
    api = api_at(scene.url)
    watch = PodWatch(lambda: api, clock=lambda: now[0])
    scene.fake.faults.append(Fault("GET", "pods", 503, times=9))
    for _ in range(5):
        assert watch.pods() is None
    assert scene.lists() == 1
    now[0] = 0.021
    assert watch.pods() is None
    assert scene.lists() == 2


def test_a_server_that_went_back_in_time_is_not_believed_that_pods_are_gone(scene: Scene) -> None:
    """Restored from a backup it does not know the newest pods, which run all the same: not there is not ended."""
    watch = scene.watch()
    assert state(watch) is JobState.RUNNING
    scene.fake.objects.clear()
    scene.fake.history.clear()  # else a watch tells of the pod again
    scene.fake.version = 50
    watch.expire()
    pods = watch.pods()
    assert pods is not None
    assert "a" not in pods


def test_a_pod_that_is_missing_from_a_later_list_has_ended(scene: Scene) -> None:
    watch = scene.watch()
    assert state(watch) is JobState.RUNNING
    scene.fake.remove("pods", "a")
    watch.expire()
    assert state(watch) is JobState.ENDED


def test_long_lists_come_in_pages(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = iter(
        (
            {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [scene.fake.objects["pods", "a"]]},
            {"metadata": {"resourceVersion": "7"}, "items": []},
        )
    )
    api = api_at(scene.url)
    asked: list[Any] = []

    def call(_method: str, _path: str, *, query: dict[str, str]) -> Any:
        asked.append(query.get("continue"))
        return next(pages)

    monkeypatch.setattr(api, "call", call)
    watch = PodWatch(lambda: api)
    assert state(watch) is JobState.RUNNING
    assert asked == [None, "more"]


def test_events_that_come_late_change_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_watch, "_GOOD_FOR_S", 60.0)
    watch = scene.watch()
    watch.pods()
    apply: Callable[[str, Any], None] = watch._apply
    old = {**scene.fake.objects["pods", "a"], "status": {"phase": "Succeeded"}}
    apply("MODIFIED", old)
    assert state(watch) is JobState.RUNNING
