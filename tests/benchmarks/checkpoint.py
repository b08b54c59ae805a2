"""G5, G6, G7: what a checkpoint costs training, how fast it reaches the disk, and whether damage to it is found.

Peers are torch's own, in our environment: `torch.save`, `DCP.save` and `DCP.async_save` (threads, sync of files and a cached staging copy,
as their documentation advises), a bare memcpy, and `dd oflag=direct`. All save the same tensors, one after the other in every round.
DeepSpeed's `save_checkpoint` saves an engine of its own of as many parameters (ZeRO 2, fp32, Adam), whose weights it writes twice.
"""

import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.damage import Damage, damaged_places
from tests.benchmarks.harness import ROOT, Figure, Outcome, Sample, versions_of

STATE_BYTES = 268_435_456
"""As in the goals: 268 MB of fp32, a model of 22 million parameters."""
REPETITIONS = 7
NUM_DAMAGES = 200
_NUM_PARAMETERS = 64
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED: the clock of a process, in the numbers that clock_gettime(2) takes for others."""
_PRODUCTS = 50
_PAIRS = 2
"""Twice as many writes with and without a hash in each round: their difference is small beside what a disk differs by."""
_STEPS = 8
"""Steps of training beside which a checkpoint is written, to see what that costs them."""
_DD_BLOCKS = STATE_BYTES >> 24


@dataclass
class Ledger:
    """Samples by contestant."""

    taken: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, name: str, sample: Sample) -> None:
        self.taken.setdefault(name, []).append(sample)

    def forget(self) -> None:
        """Forgets the round that warmed caches."""
        self.taken.clear()

    def figures(self) -> tuple[Figure, ...]:
        return tuple(_figure(name, samples) for name, samples in self.taken.items())

    def wall(self, name: str) -> float:
        return statistics.median(sample.wall_s for sample in self.taken[name])

    def difference(self, name: str, other: str) -> float:
        """The median of what one took longer than the other in the same round."""
        pairs = zip(self.taken[name], self.taken[other], strict=True)
        return statistics.median(sample.wall_s - theirs.wall_s for sample, theirs in pairs)

    def cpu(self, name: str) -> float:
        return statistics.median(sample.cpu_s for sample in self.taken[name])


def _figure(name: str, samples: list[Sample]) -> Figure:
    walls = [sample.wall_s for sample in samples]
    return Figure(
        name=name,
        median_wall_s=statistics.median(walls),
        min_wall_s=min(walls),
        max_wall_s=max(walls),
        median_cpu_s=statistics.median(sample.cpu_s for sample in samples),
    )


def run() -> Outcome:
    """Returns the outcome. Needs 3 GB of disk below `.headrace`."""
    import torch.distributed as dist

    from tasks.train.libraries import prepare_libraries

    warnings.simplefilter("ignore")
    prepare_libraries(num_threads=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks for them
    dist.init_process_group("cpu:gloo", rank=0, world_size=1, store=dist.HashStore())
    place = ROOT / ".headrace"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=place) as folder:
        ledger = Ledger()
        with _ours(Path(folder)) as ours, _peers(Path(folder), ours.tensors) as peers:
            for repetition in range(REPETITIONS + 1):
                if repetition == 1:
                    ledger.forget()
                with _measured(ledger, f"{_STEPS} steps alone"):
                    for _ in range(_STEPS):
                        forward_and_backward()
                ours.round(ledger)
                for contestant in peers:
                    contestant(ledger)
            found, tried = find_damage(ours, seed=7)
            _assert_equal(ours)
    return _outcome(ledger, found=found, tried=tried)


def _outcome(ledger: Ledger, *, found: int, tried: int) -> Outcome:
    blocked = ledger.wall("stall DCP.async_save")
    stall, copy = ledger.wall("stall headrace"), ledger.wall("memcpy")
    saved, write, dd = ledger.wall("torch.save"), ledger.wall("write headrace"), ledger.wall("write dd O_DIRECT")
    synced, deepspeed = ledger.wall("write torch.save, fsync"), ledger.wall("DeepSpeed save_checkpoint, fsync")
    cpu = ledger.cpu("write headrace") / ledger.cpu("torch.save")
    added = max(0.0, ledger.difference("write file, hashed", "write headrace, no hash")) / write
    cached, alone = ledger.wall("stall DCP.async_save, cached stager"), ledger.wall(f"{_STEPS} steps alone")
    slower = [(ledger.wall(f"{_STEPS} steps, {who}") - alone) * 1e3 for who in ("headrace", "DCP", "DCP, cached stager")]
    goals = {
        f"stall {stall * 1e3:.1f} ms = {blocked / stall:.1f}× less than DCP.async_save (≥ 5)": blocked / stall >= 5,
        f"{saved / stall:.0f}× less than torch.save (≥ 30)": saved / stall >= 30,
        f"{stall / copy:.2f} memcpy (≤ 1.5)": stall / copy <= 1.5,
        f"written at {dd / write:.2f} of dd (≥ 0.9)": dd / write >= 0.9,
        f"{synced / write:.1f}× torch.save with fsync (≥ 4; dd itself is {synced / dd:.1f}×)": synced / write >= 4,
        f"{cpu:.2f} of its CPU (≤ 0.2)": cpu <= 0.2,
        f"hash adds {added:.1%} (≤ 3 %)": added <= 0.03,
        f"damage found {found} of {tried}": found == tried,
    }
    missed = [goal for goal, met in goals.items() if not met]
    beside = f"{_STEPS} steps take longer by {slower[0]:.0f} (DCP {slower[1]:.0f}, {slower[2]:.0f}) ms"
    aside = f"{deepspeed / write:.1f}× DeepSpeed's save_checkpoint; with a cached stager DCP stalls {cached * 1e3:.0f} ms; {beside}"
    verdict = "checkpoint: " + "; ".join((*goals, aside)) + (f"; missed: {'; '.join(missed)}" if missed else "; goals G5, G6, G7: met")
    return Outcome(
        name="checkpoint",
        figures=ledger.figures(),
        verdict=verdict,
        met=not missed,
        versions=versions_of("headrace", "torch", "xxhash"),
    )


def forward_and_backward() -> None:
    """Computes for about 150 ms on one thread, as a rank does between two updates."""
    import torch

    left = torch.ones(512, 512)
    for _ in range(_PRODUCTS):
        torch.mm(left, left)


# ---- ours ------------------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """A rank's writer on made-up state, as the loop uses it."""

    tensors: Mapping[str, Any]
    fragments: list[Any]
    store: Any
    writer: Any
    step: int = 0

    def round(self, ledger: Ledger) -> None:
        """One checkpoint, committed, and the same write with and without its hash."""
        from tasks.train.checkpoint.writer import CheckpointWriter

        writer: CheckpointWriter = self.writer
        self.step += 1
        pid = writer._process._process.pid if writer._process is not None else None
        cpu, began = time.process_time(), time.perf_counter()
        writer.begin(_state(self.step))
        begun = time.perf_counter()
        forward_and_backward()
        passed = time.perf_counter()
        writer.before_update()
        stalled = time.perf_counter()
        for _ in range(_STEPS - 1):
            forward_and_backward()
        trained = time.perf_counter()
        writer.settle(on_wait=lambda: None)
        assert writer.committed_step == self.step
        if pid is not None:
            stall = begun - began + stalled - passed
            ledger.add("stall headrace", Sample(stall, cpu_s=stall))
            ledger.add(f"{_STEPS} steps, headrace", Sample(trained - began, cpu_s=time.process_time() - cpu))
            self._write(ledger, pid)
        self._streams(ledger)

    def _write(self, ledger: Ledger, pid: int) -> None:
        """One checkpoint with nothing beside it: from the copy in memory to the commit, and what the writer process does after it."""
        self.step += 1
        self.writer.begin(_state(self.step))
        self.writer.before_update()
        ledger.add("copy headrace", Sample(self.writer.copy_s, cpu_s=self.writer.copy_s))
        before, began = _cpu_of(pid), time.perf_counter()
        self.writer.settle(on_wait=lambda: None)
        took, cpu = time.perf_counter() - began, _cpu_of(pid)
        ledger.add("write headrace", Sample(took, cpu_s=cpu - before))
        time.sleep(0.3)
        ledger.add("tidy headrace", Sample(0.0, cpu_s=_cpu_of(pid) - cpu))

    def _streams(self, ledger: Ledger) -> None:
        import cluster.durable as durable

        path, buffer = self.store.artifact_dir / "stream.bin", memoryview(self.writer._snapshot.buffer.memory)
        ways = (("write file, hashed", True), ("write headrace, no hash", False))
        order = (*ways, *ways[::-1]) * _PAIRS  # whoever comes first has the disk busy with what came before
        for name, hashed in order:
            path.unlink(missing_ok=True)
            genuine = durable._Hashing.run
            if not hashed:
                durable._Hashing.run = lambda _self: None  # type: ignore[method-assign]
            try:
                with _measured(ledger, name):
                    durable.stream_durably(path, buffer, size=STATE_BYTES)
            finally:
                durable._Hashing.run = genuine  # type: ignore[method-assign]
        path.unlink()


@contextmanager
def _ours(folder: Path) -> Iterator[Ours]:
    import torch

    from schemas.execution_config import CheckpointConfig
    from tasks.train.checkpoint.commit import CheckpointStore
    from tasks.train.checkpoint.fragments import LocalFragment
    from tasks.train.checkpoint.snapshot import Snapshot
    from tasks.train.checkpoint.writer import CheckpointFacts, CheckpointWriter
    from tasks.train.gang import Gang

    count = STATE_BYTES // 12 // _NUM_PARAMETERS
    generator = torch.Generator().manual_seed(1)
    fragments = []
    for number in range(_NUM_PARAMETERS):
        slots = {slot: torch.rand(count, generator=generator) for slot in ("weight", "exp_avg", "exp_avg_sq")}
        fragments.append(LocalFragment(f"layer.{number}", start=0, slots=slots, low_precision=slots["weight"]))  # type: ignore[arg-type]
    tensors = {f"{fragment.name}.{slot}": tensor for fragment in fragments for slot, tensor in fragment.slots.items()}
    (folder / "artifact").mkdir()
    store = CheckpointStore(folder / "artifact")
    facts = CheckpointFacts(_state(0), model_config={}, rules=CheckpointConfig(keep_last=2), shared_steps=0, verified_step=None)
    writer = CheckpointWriter(store, gang=Gang(), epoch=0, snapshot=Snapshot(fragments), facts=facts, tell=lambda *_, **__: None)
    writer.prepare()
    try:
        yield Ours(tensors, fragments, store, writer)
    finally:
        writer.close()


def _state(step: int) -> Any:
    from schemas.checkpoint import ParameterShape, TrainingState

    parameters = tuple(ParameterShape(name=f"layer.{number}", shape=(STATE_BYTES // 12 // _NUM_PARAMETERS,)) for number in range(_NUM_PARAMETERS))
    return TrainingState(
        step=step, optimizer_step=step, skipped_steps=(), loss_scale={}, parameters=parameters, seed=1, zero_stage=0, precision="fp32"
    )


def _cpu_of(pid: int) -> float:
    """Returns the CPU-seconds that another process has used, its ended threads included."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


def _assert_equal(ours: Ours) -> None:
    """Asserts that what is committed is what every peer saved."""
    import numpy as np
    import torch

    from tasks.train.checkpoint.reader import CheckpointReader

    commit = ours.store.read(ours.store.steps()[-1])
    reader = CheckpointReader(ours.store, commit)
    data = np.concatenate([np.asarray(reader._data(0))])
    wanted = torch.cat(list(ours.tensors.values())).numpy()
    assert np.array_equal(data, wanted), "the committed bytes are not the state"


# ---- peers -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _measured(ledger: Ledger, name: str) -> Iterator[None]:
    began, cpu = time.perf_counter(), time.process_time()
    yield
    ledger.add(name, Sample(time.perf_counter() - began, cpu_s=time.process_time() - cpu))


@contextmanager
def _peers(folder: Path, tensors: Mapping[str, Any]) -> Iterator[tuple[Callable[[Ledger], None], ...]]:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    engine = _deepspeed_engine()
    copies = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    no_gpu = {"use_pinned_memory": False, "use_async_staging": False, "use_non_blocking_copy": False}
    stagers = {"": None, ", cached stager": DefaultStager(StagingOptions(use_shared_memory=False, **no_gpu))}

    def memcpy(ledger: Ledger) -> None:
        with _measured(ledger, "memcpy"):
            for name, tensor in tensors.items():
                copies[name].copy_(tensor)

    def torch_save(ledger: Ledger) -> None:
        path = folder / "state.pt"
        began, cpu = time.perf_counter(), time.process_time()
        torch.save(dict(tensors), path)
        ledger.add("torch.save", Sample(time.perf_counter() - began, time.process_time() - cpu))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        ledger.add("write torch.save, fsync", Sample(time.perf_counter() - began, time.process_time() - cpu))
        path.unlink()

    def deepspeed_save(ledger: Ledger) -> None:
        target = folder / "deepspeed"
        with _measured(ledger, "DeepSpeed save_checkpoint, fsync"):
            engine.save_checkpoint(str(target), tag="newest")
            for path in target.rglob("*.pt"):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(target)

    def dcp_save(ledger: Ledger) -> None:
        with _measured(ledger, "DCP.save"):
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder / "sync", sync_files=True))
        shutil.rmtree(folder / "sync")

    def dcp_async(ledger: Ledger) -> None:
        for name, stager in stagers.items():
            with _measured(ledger, f"{_STEPS} steps, DCP{name}"):
                with _measured(ledger, f"stall DCP.async_save{name}"):
                    writer = dcp.FileSystemWriter(folder / "async", sync_files=True)
                    answer = dcp.async_save(dict(tensors), storage_writer=writer, async_stager=stager)
                for _ in range(_STEPS):
                    forward_and_backward()
            with _measured(ledger, f"rest of DCP.async_save{name}"):
                (answer if isinstance(answer, Future) else answer.upload_completion).result()
            shutil.rmtree(folder / "async")

    def dd(ledger: Ledger) -> None:
        path = folder / "dd.bin"
        command = ("dd", "if=/dev/zero", f"of={path}", "bs=16M", f"count={_DD_BLOCKS}", "oflag=direct", "conv=fsync")
        began = time.perf_counter()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        ledger.add("write dd O_DIRECT", Sample(time.perf_counter() - began, cpu_s=0.0))
        path.unlink()

    yield memcpy, torch_save, deepspeed_save, dcp_save, dcp_async, dd


def _deepspeed_engine() -> Any:
    """Returns an engine with the weights of the same state, after one update, so that its moments exist."""
    import deepspeed
    import torch

    from tasks.train.engine import join_deepspeed
    from tasks.train.gang import Gang

    join_deepspeed(Gang())
    module = torch.nn.Linear(STATE_BYTES // 12 // 4096, 4096, bias=False)
    config = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    engine.backward(engine(torch.ones(1, module.in_features)).sum())
    engine.step()
    return engine


# ---- damage ----------------------------------------------------------------------------------------------------------------


def find_damage(ours: Ours, *, seed: int) -> tuple[int, int]:
    """Returns how many of the seeded damages to the newest checkpoint are found before use, and how many there were."""
    from tasks.train.checkpoint.reader import newest_verified
    from tasks.train.gang import Gang

    artifact_dir, steps = ours.store.artifact_dir, ours.store.steps()
    assert len(steps) == 2
    found = 0
    logging.disable(logging.ERROR)  # it says of each what was found
    for damage in damaged_places(artifact_dir, step=steps[-1], count=NUM_DAMAGES, seed=seed):
        with damage.done():
            commit = newest_verified(ours.store, gang=Gang(), epoch=1)
            found += commit is not None and commit.step == steps[0]
        _undo_withdrawal(artifact_dir, damage)
    logging.disable(logging.NOTSET)
    return found, NUM_DAMAGES


def _undo_withdrawal(artifact_dir: Path, damage: Damage) -> None:
    """Puts back the commit that was withdrawn."""
    shutil.rmtree(artifact_dir / "quarantine", ignore_errors=True)
    damage.restore_commit()
