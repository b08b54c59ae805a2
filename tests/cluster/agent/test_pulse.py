"""Signs of life across processes: what is written is read, torn beats are not, and nothing is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.agent import pulse as pulse_module
from cluster.agent.pulse import SLOT_BYTES, Pulse, PulseBoard, own_pulse
from cluster.environment import PULSE
from schemas.progress import RankPhase, RankPulse
from tests.fakes.live_job import wait_until


@pytest.fixture
def board(tmp_path: Path) -> Iterator[PulseBoard]:
    board = PulseBoard(range(4, 7), folder=tmp_path)
    yield board
    board.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pulse(board: PulseBoard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    """Rank 5's."""
    monkeypatch.setenv(PULSE, board.place(5))
    own_pulse.cache_clear()
    yield own_pulse()
    own_pulse.cache_clear()


def read(board: PulseBoard, rank: int = 5) -> RankPulse:
    return next(pulse for pulse in board.read() if pulse.rank == rank)


def environment(board: PulseBoard, rank: int) -> dict[str, str]:
    """Of another process that is this rank."""
    return {**os.environ, PULSE: board.place(rank), "PYTHONPATH": str(Path.cwd())}


def test_before_its_first_sign_a_rank_is_starting(board: PulseBoard) -> None:
    assert [(pulse.rank, pulse.beats, pulse.phase) for pulse in board.read()] == [(rank, 0, RankPhase.STARTING) for rank in (4, 5, 6)]


def test_what_a_rank_says_is_read_and_its_neighbours_are_untouched(board: PulseBoard, pulse: Pulse) -> None:
    pulse.enter(RankPhase.STEPPING)
    pulse.begin_step(1_000_000_000_000)
    pulse.finish_part("data_s", 0.25)
    pulse.finish_part("forward_s", 0.5)
    pulse.finish_part("forward_s", 0.5)
    expected = {"phase": RankPhase.STEPPING, "step": 1_000_000_000_000, "position": 3, "part": "forward_s", "data_s": 0.0, "forward_s": 0.0}
    assert read(board) == RankPulse.model_validate({"rank": 5, "beats": 5, **expected})
    assert (read(board, 4).beats, read(board, 6).beats) == (0, 0)


def test_a_new_step_begins_at_its_beginning_and_times_add_up(board: PulseBoard, pulse: Pulse) -> None:
    for step in range(3):
        pulse.begin_step(step)
        pulse.finish_part("data_s", 0.25)
        pulse.finish_part("forward_s", 0.5)
        pulse.finish_part("forward_s", 0.5)
    before = read(board)
    time.sleep(0.01)
    pulse.begin_step(3)
    now = read(board)
    assert (now.step, now.position, now.part, now.data_s, now.forward_s) == (3, 0, "", 0.75, 3.0)
    assert (before.data_s, before.forward_s) == (0.5, 2.0), "of whole steps: ranks in the same step have made equally many"
    assert now.step_s >= 0.01
    assert before.step_s > 0.0


def test_parts_with_long_names_are_cut_and_do_no_harm(board: PulseBoard, pulse: Pulse) -> None:
    pulse.finish_part("a_part_with_a_very_long_name_s", 1.0)
    assert read(board).part == "a_part_with_a_ve"


def test_another_process_is_heard_before_it_imports_anything_heavy(board: PulseBoard) -> None:
    program = (
        "import sys; from cluster.agent.pulse import own_pulse; from schemas.progress import RankPhase; own_pulse().enter(RankPhase.LOADING);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(board, 6))
    assert read(board, 6).phase is RankPhase.LOADING
    assert read(board, 6).beats == 1


def test_torn_beats_are_never_read(board: PulseBoard) -> None:
    """All fields of a beat carry the same number; a reader that mixed two beats would see two."""
    program = (
        "from cluster.agent.pulse import own_pulse\n"
        "pulse, number = own_pulse(), 0\n"
        "while True:\n"
        "    number += 1\n"
        "    pulse._step = pulse._position = number\n"
        "    pulse._data_s = pulse._forward_s = float(number)\n"
        "    pulse._beat()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], env=environment(board, 5))
    try:
        wait_until(lambda: any(pulse.beats for pulse in board.read()))
        seen = [pulse for _ in range(20_000) for pulse in board.read() if pulse.rank == 5]
    finally:
        writer.kill()
        writer.wait()
    assert len({pulse.beats for pulse in seen}) > 10
    assert all(pulse.step == pulse.position == pulse.data_s == pulse.forward_s == pulse.beats for pulse in seen)


def test_a_rank_that_was_stopped_in_the_middle_of_a_beat_is_left_out(board: PulseBoard, pulse: Pulse) -> None:
    pulse.enter(RankPhase.STEPPING)
    pulse._sequences[SLOT_BYTES // 8] = 3  # odd: a beat has begun and not ended
    assert [found.rank for found in board.read()] == [4, 6]


def test_without_an_agent_signs_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PULSE, raising=False)
    own_pulse.cache_clear()
    own_pulse().enter(RankPhase.STEPPING)
    assert own_pulse() is own_pulse()


def test_a_system_without_anonymous_files_uses_one_in_the_epochs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pulse_module.os, "memfd_create")
    board = PulseBoard([0], folder=tmp_path)
    monkeypatch.setenv(PULSE, board.place(0))
    own_pulse.cache_clear()
    own_pulse().enter(RankPhase.SAVING)
    own_pulse.cache_clear()
    assert read(board, 0).phase is RankPhase.SAVING
    board.close()
