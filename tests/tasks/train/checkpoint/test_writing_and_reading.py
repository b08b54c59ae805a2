"""Writer and reader on made-up tensors: a gang of one, with a writer process of its own."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from schemas.checkpoint import SLOTS, CommitRecord, ParameterShape, TrainingState
from schemas.errors import VerificationError
from schemas.execution_config import CheckpointConfig
from schemas.progress import NoticeKind
from tasks.train.checkpoint.commit import CheckpointStore
from tests.fakes.shared_memory import left_since, shared_memory

pytestmark = pytest.mark.slow  # imports torch

SHAPES = (ParameterShape(name="weight", shape=(5, 3)), ParameterShape(name="bias", shape=(4,)))
FAULTY = Path(__file__).parents[1] / "faulty_stream.py"


def state_of(step: int, parameters: tuple[ParameterShape, ...] = SHAPES) -> TrainingState:
    return TrainingState(
        step=step, optimizer_step=step, skipped_steps=(), loss_scale={}, parameters=parameters, seed=1, zero_stage=2, precision="bf16"
    )


def make_fragments(seed: int, *, cuts: tuple[tuple[str, int, int], ...] = (("weight", 0, 15), ("bias", 0, 4))) -> list[Any]:
    """Returns fragments (name, start, stop) of random values."""
    import torch

    from tasks.train.checkpoint.fragments import LocalFragment

    generator = torch.Generator().manual_seed(seed)
    whole = {(shape.name, slot): torch.rand(int(np.prod(shape.shape)), generator=generator) for shape in SHAPES for slot in SLOTS}
    return [
        LocalFragment(
            name, start=start, slots={slot: whole[name, slot][start:stop] for slot in SLOTS}, low_precision=whole[name, "weight"][start:stop]
        )
        for name, start, stop in cuts
    ]


@pytest.fixture
def told() -> Mock:
    """What takes the notices."""
    return Mock()


@pytest.fixture
def make_writer(store: CheckpointStore, told: Mock) -> Iterator[Callable[..., Any]]:
    """Returns a function that makes a rank's writer; the processes end with the test."""
    made = []

    def make(fragments: list[Any], *, epoch: int = 0, into: CheckpointStore = store) -> Any:
        from tasks.train.checkpoint.snapshot import Snapshot
        from tasks.train.checkpoint.writer import CheckpointFacts, CheckpointWriter
        from tasks.train.gang import Gang

        facts = CheckpointFacts(
            state_of(0), model_config={"model_type": "none"}, rules=CheckpointConfig(keep_last=9), shared_steps=0, verified_step=None
        )
        made.append(CheckpointWriter(into, gang=Gang(), epoch=epoch, snapshot=Snapshot(fragments), facts=facts, tell=told))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that lets writer processes fail; see faulty_stream.py."""

    def fail(call: str, *, step: int) -> None:
        import tasks.train.checkpoint.process as process_module

        monkeypatch.setenv("FAULTY_CALL", call)
        monkeypatch.setenv("FAULTY_STEP", str(step))
        monkeypatch.setattr(process_module, "PROGRAM", (str(FAULTY),))

    return fail


def save(writer: Any, step: int) -> bool:
    """Saves and waits; returns whether the step was committed."""
    assert writer.is_free(step)
    writer.begin(state_of(step))
    writer.settle(on_wait=lambda: None)
    return bool(writer.committed_step == step)


def commit_of(store: CheckpointStore, step: int) -> CommitRecord:
    commit = store.read(step)
    assert commit is not None
    return commit


def speak(writer: Any) -> None:
    """What the loop does at an update."""
    from tasks.train.agreement import RankWord, agree
    from tasks.train.gang import Gang

    state, committed_step = writer.word()
    writer.advance(agree(Gang(), RankWord(loss=0.0, stop=False, save=state, committed_step=committed_step)))


def test_fragments_load_into_any_other_cut(store: CheckpointStore, make_writer: Any) -> None:
    import torch

    from tasks.train.checkpoint.reader import CheckpointReader

    assert save(make_writer(make_fragments(1, cuts=(("weight", 0, 7), ("weight", 7, 15), ("bias", 0, 4)))), 2)
    target = make_fragments(2, cuts=(("weight", 3, 11), ("bias", 1, 2)))
    reader = CheckpointReader(store, commit_of(store, 2))
    reader.load(SimpleNamespace(held=tuple(target), parameters=SHAPES))  # type: ignore[arg-type]  # all that load looks at
    expected = make_fragments(1, cuts=(("weight", 3, 11), ("bias", 1, 2)))
    for fragment, wanted in zip(target, expected, strict=True):
        assert all(torch.equal(fragment.slots[slot], wanted.slots[slot]) for slot in SLOTS)


def test_what_is_missing_or_different_is_named(store: CheckpointStore, make_writer: Any) -> None:
    from tasks.train.checkpoint.reader import CheckpointReader

    assert save(make_writer(make_fragments(1, cuts=(("weight", 0, 10), ("bias", 0, 4)))), 2)
    reader = CheckpointReader(store, commit_of(store, 2))
    with pytest.raises(VerificationError, match=r"weight \(exp_avg\): 10 of elements 0 to 15"):
        reader.load(SimpleNamespace(held=tuple(make_fragments(2)), parameters=SHAPES))  # type: ignore[arg-type]
    wider = (ParameterShape(name="weight", shape=(5, 4)), ParameterShape(name="scale", shape=(1,)))
    with pytest.raises(VerificationError) as caught:
        reader.load(SimpleNamespace(held=(), parameters=wider))  # type: ignore[arg-type]
    assert caught.value.findings == (
        "scale: not in the checkpoint",
        "bias: not in the model",
        "weight: (5, 3) in the checkpoint, (5, 4) in the model",
    )


def test_what_training_does_after_the_copy_is_not_saved(store: CheckpointStore, make_writer: Any) -> None:
    fragments = make_fragments(1)
    writer = make_writer(fragments)
    writer.begin(state_of(2))
    assert writer.before_update()
    assert not writer.before_update()
    for fragment in fragments:
        for slot in SLOTS:
            fragment.slots[slot].zero_()
    writer.settle(on_wait=lambda: None)
    data = np.fromfile(store.folder(commit_of(store, 2)) / "rank-0000.bin", dtype=np.float32)
    wanted = [fragment.slots[slot].numpy() for fragment in make_fragments(1) for slot in SLOTS]
    assert np.array_equal(data, np.concatenate(wanted))


def test_a_checkpoint_that_comes_due_too_soon_is_skipped_and_counted(
    store: CheckpointStore, make_writer: Any, told: Mock, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that hangs for ever: training goes on, and only who must wait gives up in the end."""
    from tasks.train.checkpoint import writer as writer_module
    from tasks.train.checkpoint.writer import Tier

    writer = make_writer(make_fragments(1))
    assert save(writer, 2)
    writer.close()
    faulty("hang", step=4)
    writer.begin(state_of(4))
    for step in (6, 8):
        speak(writer)
        assert not writer.is_free(step)
    assert (writer.num_skipped, writer.committed_step, writer.pending) == (2, 2, (4, Tier.SHARED))
    assert [call.args[0] for call in told.call_args_list] == [NoticeKind.CHECKPOINT_SKIPPED], "said once, counted every time"
    monkeypatch.setattr(writer_module, "_PATIENCE_S", 0.2)
    waited = []
    writer.settle(on_wait=lambda: waited.append(True))
    assert waited
    assert (writer.num_failures, writer.committed_step, writer.pending) == (1, 2, None)
    monkeypatch.undo()
    assert save(writer, 10)
    assert store.steps() == (2, 10)
    assert writer.figures() == {"checkpoint_failures": 1.0, "checkpoint_skipped": 2.0, "checkpoint_write_s": writer.write_s}


@pytest.mark.parametrize(
    ("call", "words"),
    [("pwrite", "No space left on device"), ("fsync", "Input/output error"), ("kill", "the writer process was killed by signal 9")],
)
def test_a_failed_checkpoint_is_survived_and_said(
    store: CheckpointStore, make_writer: Any, told: Mock, faulty: Any, caplog: pytest.LogCaptureFixture, call: str, words: str
) -> None:
    writer = make_writer(make_fragments(1))
    faulty(call, step=4)
    assert save(writer, 2)
    assert not save(writer, 4)
    assert writer.num_failures == 1
    assert words in caplog.text
    assert [call.args[0] for call in told.call_args_list] == [NoticeKind.CHECKPOINT_FAILED]
    assert save(writer, 6), "the next one succeeds"
    writer.close()
    assert store.steps() == (2, 6)
    assert sorted(path.name for path in (store.artifact_dir / "checkpoints").iterdir()) == ["step-00000002.e000000", "step-00000006.e000000"]


def test_the_writer_dies_with_its_rank(store: CheckpointStore, make_writer: Any, faulty: Any) -> None:
    faulty("hang", step=2)
    make_writer(make_fragments(1))  # imports what the child needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads that the child does without
        child = os.fork()
    if child == 0:
        writer = make_writer(make_fragments(1))
        writer.begin(state_of(2))
        Path(store.artifact_dir / "writer.pid").write_text(str(writer._process._process.pid))
        time.sleep(60)
        os._exit(0)
    deadline = time.monotonic() + 50
    data, told = store.artifact_dir / "checkpoints" / "step-00000002.e000000" / "rank-0000.bin", store.artifact_dir / "writer.pid"
    while not (data.exists() and told.exists() and told.read_text()):  # the writer may be faster than its rank
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid = int(told.read_text())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/shm")
def test_snapshots_leave_no_name_behind(make_writer: Any) -> None:
    before = shared_memory()
    assert save(make_writer(make_fragments(1)), 2)
    assert left_since(before) == frozenset()


@pytest.mark.parametrize("digest", ["0" * 32, "f" * 32, "8" + "0" * 15 + "7" + "f" * 15, "0123456789abcdef" * 2])
def test_hashes_survive_the_way_between_ranks(digest: str) -> None:
    from schemas.artifact import FileEntry
    from tasks.train.checkpoint.writer import RankWrite

    write = RankWrite(FileEntry(path="rank-0003.bin", size=2**40, xxh3=digest), FileEntry(path="rank-0003.json", size=0, xxh3=digest[::-1]))
    numbers = write.to_numbers()
    assert all(-(2**63) <= number < 2**63 for number in numbers)
    assert RankWrite.from_numbers(numbers, rank=3) == write
