"""OOM kills, as the kernel counts them."""

from pathlib import Path

import pytest

from cluster.agent import memory
from cluster.agent.memory import OomWatch, counters


def group(tmp_path: Path, membership: str, file: str, text: str) -> tuple[Path, Path]:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    (groups / file).parent.mkdir(parents=True)
    (groups / file).write_text(text)
    return proc, groups


@pytest.mark.parametrize(
    ("membership", "file"),
    [("0::/user/job\n", "user/job/memory.events"), ("5:cpu:/x\n4:memory:/slurm/job\n", "memory/slurm/job/memory.oom_control")],
)
def test_the_jobs_own_counter_is_found(tmp_path: Path, membership: str, file: str) -> None:
    proc, groups = group(tmp_path, membership, file, "low 0\noom_kill 0\n")
    assert counters(proc, groups) == (groups / file,)


def test_what_was_killed_in_groups_below_does_not_count_where_the_kernel_tells_them_apart(tmp_path: Path) -> None:
    proc, groups = group(tmp_path, "0::/job\n", "job/memory.events", "oom_kill 1\n")
    own = groups / "job" / "memory.events.local"
    own.write_text("oom_kill 0\n")
    assert counters(proc, groups) == (own,)


def test_the_machines_counter_stands_in(tmp_path: Path) -> None:
    proc, groups = group(tmp_path, "0::/gone\n", "other", "")
    (proc / "vmstat").write_text("oom_kill 3\n")
    assert counters(proc, groups) == (proc / "vmstat",)


def test_a_rise_is_seen_until_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 3\n")
    watch = OomWatch((file,))
    assert not watch.struck()
    file.write_text("oom_kill 4\n")
    clock[0] = 2.5
    watch.look()
    assert watch.struck()
    for clock[0] in (5.0, 7.5):
        watch.look()
    assert not watch.struck()


def test_without_a_counter_nothing_is_claimed(tmp_path: Path) -> None:
    assert not OomWatch(()).struck()
    assert not OomWatch((tmp_path / "gone",)).struck()
