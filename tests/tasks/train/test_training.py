"""Two ranks that really train: killed, stopped, resized, on damaged checkpoints. The assertion is on bytes wherever it can be."""

import dataclasses
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.checkpoint import SLOTS, CommitRecord, QuarantineRecord, RankIndex, TrainingState
from schemas.config import RunConfig
from schemas.exit_code import ExitCode
from schemas.progress import RankPhase
from schemas.stage import Stage

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
MakeGang = Callable[[str], Any]
PROGRAMS = Path(__file__).parent / "rank_programs.py"


def newest_commit(artifact_dir: Path) -> CommitRecord:
    name = sorted(path.name for path in (artifact_dir / "commits").iterdir())[-1]
    return CommitRecord.model_validate_json((artifact_dir / "commits" / name).read_bytes())


def files_of(artifact_dir: Path, commit: CommitRecord) -> dict[str, bytes]:
    return {entry.path: (artifact_dir / commit.folder / entry.path).read_bytes() for entry in commit.files}


def whole_state(artifact_dir: Path) -> dict[str, npt.NDArray[np.uint32]]:
    """Returns every parameter and moment of the newest commit, whole, as bits."""
    commit = newest_commit(artifact_dir)
    folder = artifact_dir / commit.folder
    state = TrainingState.model_validate_json((folder / "state.json").read_bytes())
    whole = {f"{item.name}/{slot}": np.full(int(np.prod(item.shape)), 0xFFFFFFFF, dtype=np.uint32) for item in state.parameters for slot in SLOTS}
    written = dict.fromkeys(whole, 0)
    for rank in range(commit.world_size):
        index = RankIndex.model_validate_json((folder / f"rank-{rank:04d}.json").read_bytes())
        data = np.fromfile(folder / f"rank-{rank:04d}.bin", dtype=np.uint32)
        for fragment in index.fragments:
            key = f"{fragment.name}/{fragment.slot}"
            first = fragment.byte_offset // 4
            whole[key][fragment.start : fragment.start + fragment.count] = data[first : first + fragment.count]
            written[key] += fragment.count
    assert written == {key: bits.size for key, bits in whole.items()}, "every element is written exactly once"
    return whole


def assert_equal_state(one: Path, other: Path) -> None:
    left, right = whole_state(one), whole_state(other)
    assert left.keys() == right.keys()
    assert [key for key in left if not np.array_equal(left[key], right[key])] == []


ADAMW, MUON = {"learning_rate": 0.01}, {"name": "muon", "learning_rate": 0.01, "matrix_learning_rate": 0.02}
WITH_MUON = [pytest.param(stage, "bf16", MUON, id=f"{stage}-bf16-muon") for stage in (1, 2)]
WITH_MUON += [
    pytest.param(stage, precision, MUON, id=f"{stage}-{precision}-muon", marks=pytest.mark.exhaustive)
    for stage, precision in ((0, "bf16"), (0, "fp32"), (2, "fp32"))
]


@pytest.mark.parametrize(
    ("stage", "precision", "optimizer"),
    [(0, "bf16", ADAMW), (0, "fp32", ADAMW), (1, "bf16", ADAMW), (2, "bf16", ADAMW), (2, "fp32", ADAMW), (3, "bf16", ADAMW), *WITH_MUON],
)
def test_a_killed_run_ends_with_the_bytes_of_a_calm_one(
    gang: MakeGang, make_config: MakeConfig, stage: int, precision: str, optimizer: dict[str, Any]
) -> None:
    config = make_config(training__zero_stage=stage, training__precision=precision, training__optimizer=optimizer)
    calm, killed = gang("calm"), gang("killed")
    calm.run(config)
    statuses = killed.kill_at(config, step=3)
    assert statuses[1] == -signal.SIGKILL
    assert newest_commit(killed.artifact_dir).step in (2, 4)
    killed.run(config)
    expected = newest_commit(calm.artifact_dir)
    assert expected.step == 6
    assert files_of(killed.artifact_dir, newest_commit(killed.artifact_dir)) == files_of(calm.artifact_dir, expected)
    assert [point["step"] for point in calm.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("stage", "precision", "optimizer"), [*((stage, precision, ADAMW) for stage in (0, 1, 2, 3) for precision in ("bf16", "fp32")), *WITH_MUON]
)
def test_state_loads_bit_identical_at_other_world_sizes(
    gang: MakeGang, make_config: MakeConfig, stage: int, precision: str, optimizer: dict[str, Any]
) -> None:
    config = make_config(training__zero_stage=stage, training__precision=precision, training__optimizer=optimizer, training__steps=2)
    trained = gang("trained")
    trained.run(config, world_size=2)
    for world_size in (1, 3):
        trained.run(config, world_size=world_size, program=f"{PROGRAMS}:resave")
        resaved = trained.artifact_dir.with_name("trained-resaved")
        assert newest_commit(resaved).world_size == world_size
        assert_equal_state(trained.artifact_dir, resaved)
        shutil.rmtree(trained.artifact_dir)
        resaved.rename(trained.artifact_dir)  # so the next size loads what this one wrote


def test_muon_goes_on_at_other_world_sizes(gang: MakeGang, make_config: MakeConfig) -> None:
    """Two ranks, then one, then three, whose borders lie in the midst of matrices: the weights stay those of one rank that did it all."""
    model = {"config": dict(make_config().model.config or {}) | {"attention_dropout": 0.0}}
    without_dropout = {"model": model, "training__precision": "fp32", "training__optimizer": MUON}
    alone, resized = gang("alone"), gang("resized")
    for world_size, steps in ((2, 2), (1, 4), (3, 6)):
        config = make_config(training__steps=steps, training__zero_stage=1, **without_dropout)
        resized.run(config, world_size=world_size)
    alone.run(config, world_size=1)
    expected, actual = (
        {key: bits.view(np.float32) for key, bits in whole_state(one.artifact_dir).items() if key.endswith("/weight")} for one in (alone, resized)
    )
    start = gang("start")
    start.run(make_config(training__steps=6, training__zero_stage=1, **without_dropout), world_size=1, program=f"{PROGRAMS}:resave")
    initial = {key: bits.view(np.float32) for key, bits in whole_state(start.artifact_dir.with_name("start-resaved")).items()}
    moved = {key: float(np.abs(weight - initial[key]).mean()) for key, weight in expected.items()}
    assert all(distance > 1e-3 for distance in moved.values())
    assert dict.fromkeys(expected, True) == {key: float(np.abs(actual[key] - expected[key]).mean()) < 0.02 * moved[key] for key in expected}


def test_a_stage_may_change_between_starts(gang: MakeGang, make_config: MakeConfig) -> None:
    trained = gang("trained")
    trained.run(make_config(training__zero_stage=1, training__steps=2))
    for stage in (3, 0, 2):
        trained.run(make_config(training__zero_stage=stage, training__steps=2), world_size=3, program=f"{PROGRAMS}:resave")
        assert_equal_state(trained.artifact_dir, trained.artifact_dir.with_name("trained-resaved"))
        shutil.rmtree(trained.artifact_dir.with_name("trained-resaved"))


def test_asked_to_stop_it_commits_and_says_so(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(training__steps=2000, checkpoint__every_steps=10_000, tracking__validate_every_steps=10_000)
    stopped = gang("stopped")
    statuses = stopped.kill_at(config, step=3, rank=1, number=signal.SIGTERM)
    assert statuses == [ExitCode.INTERRUPTED, ExitCode.INTERRUPTED], stopped.logs()
    assert "is committed" in stopped.logs()
    step = newest_commit(stopped.artifact_dir).step
    assert 3 <= step < 2000
    assert stopped.metrics()[-1]["step"] == step


def test_damaged_commits_are_passed_over_marked_and_written_again(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config()
    trained, undisturbed = gang("trained"), gang("undisturbed")
    trained.run(config)
    shutil.copytree(trained.artifact_dir, undisturbed.artifact_dir)
    commit = newest_commit(trained.artifact_dir)
    damaged = trained.artifact_dir / commit.folder / "rank-0001.bin"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    (trained.artifact_dir / "commits" / "step-00000004.json").write_bytes(b"{}")
    trained.run(config)
    assert "goes on from step 2" in trained.logs()
    assert damaged.read_bytes() == bytes(content), "the evidence stays"
    again = newest_commit(trained.artifact_dir)
    assert (again.step, again.epoch) == (6, 1)
    assert files_of(trained.artifact_dir, again) == files_of(undisturbed.artifact_dir, newest_commit(undisturbed.artifact_dir))
    markers = [QuarantineRecord.model_validate_json(path.read_bytes()) for path in sorted((trained.artifact_dir / "quarantine").iterdir())]
    assert [marker.step for marker in markers] == [4, 6]
    assert "rank-0001.bin: wrong content" in markers[1].findings[0]


def test_it_never_begins_anew_when_every_commit_is_damaged(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(training__steps=4)
    trained = gang("trained")
    trained.run(config)
    for path in trained.artifact_dir.glob("checkpoints/*/rank-0000.bin"):
        path.write_bytes(path.read_bytes()[:-4])
    before = sorted(path.name for path in (trained.artifact_dir / "commits").iterdir())
    for _ in range(2):
        trained.run(config, expect=ExitCode.VERIFICATION)
        assert "rank-0000.bin: wrong size" in trained.logs()
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == before


def test_old_checkpoints_go_and_left_overs_with_them(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__every_steps=1, checkpoint__keep_last=2, checkpoint__keep_every_steps=3)
    trained = gang("trained")
    trained.run(make_config(training__steps=2, checkpoint__every_steps=2))
    left_over = trained.artifact_dir / "checkpoints" / "step-00000003.e000000"
    left_over.mkdir()
    (left_over / "rank-0000.bin").write_bytes(b"unfinished")
    trained.run(config)
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == [f"step-0000000{step}.json" for step in (3, 5, 6)]
    assert sorted(path.name for path in (trained.artifact_dir / "checkpoints").iterdir()) == [f"step-0000000{step}.e000001" for step in (3, 5, 6)]


def test_a_full_disk_costs_one_checkpoint_and_nothing_else(gang: MakeGang, make_config: MakeConfig) -> None:
    trained, undisturbed = gang("trained"), gang("undisturbed")
    trained.run(make_config(), program=f"{PROGRAMS}:full_disk")
    undisturbed.run(make_config())
    assert "No space left on device" in trained.logs()
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == ["step-00000004.json", "step-00000006.json"]
    assert not (trained.artifact_dir / "checkpoints" / "step-00000002.e000000").exists()
    assert_equal_state(trained.artifact_dir, undisturbed.artifact_dir)
    assert trained.metrics()[-1]["values"]["checkpoint_failures"] == 1


def test_training_goes_on_while_a_checkpoint_is_written(gang: MakeGang, make_config: MakeConfig) -> None:
    """On slow storage most checkpoints are skipped, commits follow late, and the end is what it would be without either."""
    config = make_config(checkpoint__background=True, checkpoint__every_steps=1, training__steps=12)
    calm, late = gang("calm"), gang("late")
    calm.run(make_config(training__steps=12))
    late.run(config, program=f"{PROGRAMS}:slow_disk")
    assert newest_commit(late.artifact_dir).files == newest_commit(calm.artifact_dir).files
    points = late.metrics()
    assert points[-1]["values"]["checkpoint_skipped"] >= 1
    assert points[-1]["values"]["checkpoint_write_s"] > 0.3
    assert "no checkpoint of step" in late.logs()
    assert len(list((late.artifact_dir / "commits").iterdir())) < 12


def test_killed_in_the_middle_of_a_background_save_nothing_is_lost(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__background=True, checkpoint__every_steps=2, training__steps=40)
    calm, killed = gang("calm"), gang("killed")
    calm.run(config)
    for rank in (0, 1):
        statuses = killed.kill_in_save(config, rank=rank, program=f"{PROGRAMS}:slow_disk")
        assert statuses[rank] == -signal.SIGKILL
    killed.run(config)
    assert newest_commit(killed.artifact_dir).files == newest_commit(calm.artifact_dir).files


def sampled_events(stage: int, *, count: int) -> list[tuple[int, int]]:
    """Returns (rank, file event of its writer): of the three saves of six steps, rank 0's writer has more than 60, the other's more than 20."""
    chance = random.Random(stage)
    return [(rank, chance.randrange(60 if rank == 0 else 20)) for rank in (chance.randrange(2) for _ in range(count))]


CRASHES = [(stage, *event) for stage in (1, 2, 3) for event in sampled_events(stage, count=10)]
USUALLY = CRASHES[::15]


@pytest.mark.parametrize(
    ("stage", "rank", "at"),
    [pytest.param(*crash, marks=[] if crash in USUALLY else [pytest.mark.exhaustive]) for crash in CRASHES],
)
def test_a_rank_and_its_writer_may_crash_at_any_file_event(gang: MakeGang, make_config: MakeConfig, stage: int, rank: int, at: int) -> None:
    config = make_config(training__zero_stage=stage)
    calm, crashed = gang("calm"), gang("crashed")
    calm.run(config)
    crashed.start(config, world_size=2, program=f"{PROGRAMS}:crash_in_writer", options={"crash_rank": rank, "crash_at": at})
    assert crashed.server.wait()[rank] == -signal.SIGKILL, crashed.logs()
    crashed.run(config)
    assert newest_commit(crashed.artifact_dir).files == newest_commit(calm.artifact_dir).files
    assert not (crashed.artifact_dir / "quarantine").exists()


def test_a_stop_waits_for_the_checkpoint_on_its_way_and_commits_its_own(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__background=True, checkpoint__every_steps=2, training__steps=5000)
    stopped = gang("stopped")
    statuses = stopped.kill_in_save(config, rank=1, program=f"{PROGRAMS}:slow_disk", number=signal.SIGTERM)
    assert statuses == [ExitCode.INTERRUPTED, ExitCode.INTERRUPTED], stopped.logs()
    assert stopped.metrics()[-1]["step"] == newest_commit(stopped.artifact_dir).step


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_restart_goes_on_from_the_nodes_own_disk(gang: MakeGang, make_config: MakeConfig, tmp_path: Path, stage: int) -> None:
    """Shared storage has step 4 alone, the nodes' own disks every step. Calm all the same; when training is over, nothing of it is left."""
    local = tmp_path / "local"
    calm, killed = gang("calm"), gang("killed")
    calm.run(make_config(training__zero_stage=stage, training__steps=60))
    killed.run(make_config(training__zero_stage=stage, training__steps=4))
    rules = {"every_steps": 1000, "local_dir": str(local), "local_every_steps": 1, "background": True}
    config = make_config(training__zero_stage=stage, training__steps=60, checkpoint=rules)
    for lost in (0, 1):
        killed.start(config, world_size=2)
        killed.wait_for(lambda progress: progress["committed_step"] > 8 * (lost + 1), rank=0)  # noqa: B023  # called before the loop goes on
        killed.kill()
    held = [{path.stem for path in local.glob(f"killed-*/records/rank-000{rank}/*")} for rank in (0, 1)]
    newest = max(held[0] & held[1])
    killed.kill_at(config, step=1)
    assert f"goes on from step {int(newest[5:13])}, which epoch {int(newest[15:])} left" in killed.logs()
    for path in local.glob("killed-*/checkpoints/*/rank-0001.bin"):
        path.write_bytes(b"")
    killed.run(config)
    assert "goes on from step 4, written by 2 ranks" in killed.logs()
    assert newest_commit(killed.artifact_dir).files == newest_commit(calm.artifact_dir).files
    assert not list(local.iterdir())


def test_what_is_measured(gang: MakeGang, make_config: MakeConfig) -> None:
    trained = gang("trained")
    trained.run(make_config(training__micro_batch_size=6))
    points = trained.metrics()
    always = {
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_s",
        "mfu",
        "data_s",
        "forward_s",
        "backward_s",
        "optimizer_s",
        "step_s",
        "memory_rss_bytes",
    }
    assert all(always <= point["values"].keys() for point in points)
    assert [point["step"] for point in points if "validation_loss" in point["values"]] == [3, 6]
    assert [point["step"] for point in points if "checkpoint_s" in point["values"]] == [1, 2, 4, 6], "1: its writer starts"
    assert all("sample" in point["text"] for point in points if point["step"] in (3, 6))
    assert points[-1]["values"]["learning_rate"] == 0.01
    state = json.loads((trained.artifact_dir / newest_commit(trained.artifact_dir).folder / "state.json").read_bytes())
    assert state["validation_loss"] == points[-1]["values"]["validation_loss"]
    assert 0 < points[-1]["values"]["validation_loss"] < 5


def test_progress_shows_how_long_a_step_takes() -> None:
    """What `headrace status` estimates the time that is left from."""
    from tasks.train.loop import Progress, _report

    shown: list[dict[str, float]] = []
    task = SimpleNamespace(progress=lambda _phase, *, figures, **_: shown.append(figures))
    session: Any = SimpleNamespace(progress=Progress(step=3), seen_phases={RankPhase.STEPPING}, total_steps=6, task=task, costs={})
    _report(session, RankPhase.STEPPING, {"loss": 2.0, "step_s": 0.25, "mfu": 0.1})
    assert shown == [{"loss": 2.0, "step_s": 0.25}]


def test_a_longer_wsd_training_finds_a_checkpoint_from_before_the_decay(gang: MakeGang, make_config: MakeConfig) -> None:
    schedule = {"kind": "wsd", "warmup_steps": 1, "decay_steps": 3}
    trained = gang("trained")
    trained.run(make_config(training__schedule=schedule, checkpoint__every_steps=1, checkpoint__keep_last=1), world_size=1)
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == ["step-00000003.json", "step-00000006.json"]


def test_fp16_is_refused_where_the_device_cannot(gang: MakeGang, make_config: MakeConfig) -> None:
    torch = pytest.importorskip("torch")
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.fail("this CPU has fp16 matrix units: run the fp16 cases of the other tests here instead")
    refused = gang("refused")
    refused.run(make_config(training__precision="fp16"), expect=ExitCode.USAGE)
    assert "training.precision = fp16" in refused.logs()
    assert not (refused.artifact_dir / "checkpoints").exists()


GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.exhaustive)])
def test_initial_weights_depend_on_the_seed_alone(gang: MakeGang, make_config: MakeConfig, precision: str, model: str) -> None:
    changes = {"training__precision": precision, **({"model": {"config": GPT2}} if model == "gpt2" else {})}
    started = []
    for name, stage, world_size, seed in (("one", 0, 1, 7), ("two", 2, 2, 7), ("three", 3, 3, 7), ("other", 2, 1, 8)):
        gang(name).run(make_config(training__zero_stage=stage, training__seed=seed, **changes), world_size=world_size, program=f"{PROGRAMS}:resave")
        started.append(gang(name).artifact_dir.with_name(f"{name}-resaved"))
    assert_equal_state(started[0], started[1])
    assert_equal_state(started[0], started[2])
    one, other = whole_state(started[0]), whole_state(started[3])
    matrices = [key for key in one if key.endswith(("proj.weight/weight", "c_fc.weight/weight", "embed_tokens.weight/weight"))]
    assert matrices
    assert all(not np.array_equal(one[key], other[key]) for key in matrices)


def test_a_model_of_ones_own_trains_and_goes_on(gang: MakeGang, make_config: MakeConfig) -> None:
    """At ZeRO 3 too, where the factory knows nothing of partitioning."""
    for stage in (1, 3):
        config = make_config(model={"factory": "bigram_model:build"}, training__zero_stage=stage)
        calm, stopped = gang(f"calm{stage}"), gang(f"stopped{stage}")
        calm.run(config)
        stopped.kill_at(config, step=3)
        stopped.run(config)
        assert_equal_state(calm.artifact_dir, stopped.artifact_dir)
        assert set(whole_state(calm.artifact_dir)) == {f"table.{name}/{slot}" for name in ("weight", "bias") for slot in SLOTS}


@pytest.mark.exhaustive
def test_state_in_cpu_memory_is_saved_and_restored_like_any_other(gang: MakeGang, make_config: MakeConfig) -> None:
    for stage in (2, 3):
        config = make_config(training__zero_stage=stage, deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
        offloaded, stopped = gang(f"offloaded{stage}"), gang(f"stopped{stage}")
        offloaded.run(config)
        stopped.kill_at(config, step=3)
        stopped.run(config)
        assert_equal_state(offloaded.artifact_dir, stopped.artifact_dir)


def test_a_loss_that_is_not_finite_stops_before_anything_is_committed(gang: MakeGang, make_config: MakeConfig) -> None:
    for stage in (0, 2):
        config = make_config(
            training__zero_stage=stage, training__optimizer={"learning_rate": 1e38}, training__schedule={"kind": "constant", "warmup_steps": 0}
        )
        spoiled = gang(f"spoiled{stage}")
        spoiled.run(config, expect=ExitCode.POLICY)
        assert "is not finite" in spoiled.logs()
        assert not (spoiled.artifact_dir / "commits").exists()


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_fp16_goes_on_with_its_loss_scale_and_skipped_steps(gang: MakeGang, make_config: MakeConfig, stage: int) -> None:
    """The first scale is far too high, so the first updates are skipped."""
    scale = {"fp16": {"initial_scale_power": 23, "loss_scale_window": 2, "hysteresis": 1}}
    config = make_config(training__precision="fp16", training__zero_stage=stage, deepspeed=scale)
    calm, stopped = gang("calm"), gang("stopped")
    calm.run(config, program=f"{PROGRAMS}:fp16_anyway")
    stopped.run(
        make_config(training__precision="fp16", training__zero_stage=stage, training__steps=2, deepspeed=scale), program=f"{PROGRAMS}:fp16_anyway"
    )
    stopped.run(config, program=f"{PROGRAMS}:fp16_anyway")
    expected = newest_commit(calm.artifact_dir)
    assert files_of(stopped.artifact_dir, newest_commit(stopped.artifact_dir)) == files_of(calm.artifact_dir, expected)
    state = TrainingState.model_validate_json((calm.artifact_dir / expected.folder / "state.json").read_bytes())
    assert state.skipped_steps
    assert state.skipped_steps[0] == 0
    assert state.optimizer_step == 6 - len(state.skipped_steps) > 0
    assert state.loss_scale["cur_scale"] < 2**23
    assert "gradient_norm" not in calm.metrics()[0]["values"]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_watching_changes_nothing(gang: MakeGang, make_config: MakeConfig, stage: int) -> None:
    """Validation and samples touch neither weights nor the random numbers of dropout."""
    dropout = {"training__zero_stage": stage, "model": {"config": GPT2 | {"resid_pdrop": 0.3, "embd_pdrop": 0.3}}}
    watched, unwatched = gang("watched"), gang("unwatched")
    watched.run(make_config(tracking__validate_every_steps=1, **dropout))
    unwatched.run(make_config(tracking__validate_every_steps=1000, tracking__sample_tokens=0, checkpoint__every_steps=1000, **dropout))
    assert_equal_state(watched.artifact_dir, unwatched.artifact_dir)


@pytest.mark.parametrize(
    ("stage", "name", "old", "new"),
    [(Stage.TOKENIZE, "manifest.json", b'"vocab_size":64', b'"vocab_size":65'), (Stage.TOKENIZER, "tokenizer.json", b"\n", b" ")],
)
def test_a_flipped_byte_that_only_the_node_sees_stops_every_rank(
    gang: MakeGang, make_config: MakeConfig, tmp_path: Path, stage: Stage, name: str, old: bytes, new: bytes
) -> None:
    """Both files stay readable: without the check training would go on with them."""
    refused = gang("refused")
    dirs = {source: shutil.copytree(folder, tmp_path / "node" / source.value) for source, folder in refused.inputs.dirs.items()}
    path = dirs[stage] / name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refused.inputs = dataclasses.replace(refused.inputs, dirs=dirs)
    refused.run(make_config(), expect=ExitCode.VERIFICATION)
    assert f"VerificationError: input {stage.value}: verification failed" in refused.logs()
    assert f"{path}: xxh3" in refused.logs()
    assert not (refused.artifact_dir / "commits").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pretrained_model_that_is_another_on_the_node_is_refused(gang: MakeGang, make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "pretrained"
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(folder)
    config = make_config(model={"pretrained": str(folder)}, training__steps=2)
    refused = gang("refused")
    planned = refused.inputs.options(config)
    refused.run(config, world_size=1, options=planned)
    shutil.rmtree(refused.artifact_dir)
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\n", b" ", 1) if name == "config.json" else data[:-1] + bytes([data[-1] ^ 1]))
    refused.run(config, world_size=1, expect=ExitCode.VERIFICATION, options=planned)
    assert f"{path}: its content is not what this training was planned with" in refused.logs()
    assert not (refused.artifact_dir / "commits").exists()


def test_a_factory_whose_source_is_another_on_the_node_is_never_run(gang: MakeGang, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model={"factory": "hr_node_model:build"})
    (tmp_path / "hr_node_model.py").write_text("raise AssertionError('planned')\n")
    refused = gang("refused")
    planned = refused.inputs.options(config, project_dir=tmp_path)
    (tmp_path / "hr_node_model.py").write_text("raise AssertionError('run')\n")
    refused.run(config, world_size=1, expect=ExitCode.VERIFICATION, options=planned)
    assert "hr_node_model.py: its content is not what this training was planned with" in refused.logs()
    assert "AssertionError" not in refused.logs()


def test_ranks_read_and_write_no_checkpoint_through_a_link(gang: MakeGang, make_config: MakeConfig, tmp_path: Path) -> None:
    config, outside = make_config(), tmp_path / "outside"
    fresh = gang("fresh")
    fresh.artifact_dir.mkdir()
    outside.mkdir()
    (fresh.artifact_dir / "checkpoints").symlink_to(outside)
    fresh.run(config, world_size=1, expect=ExitCode.VERIFICATION)
    assert "checkpoints is a symbolic link" in fresh.logs()
    assert list(outside.iterdir()) == []

    started = gang("started")
    started.run(make_config(training__steps=2), world_size=1)
    folder = started.artifact_dir / newest_commit(started.artifact_dir).folder
    folder.rename(outside / "moved")
    folder.symlink_to(outside / "moved")
    started.run(config, world_size=1, expect=ExitCode.VERIFICATION)
    assert f"{folder.name} is a symbolic link" in started.logs()
