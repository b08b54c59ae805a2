"""Two ranks that really train: killed, stopped, resized. The assertion is on bytes wherever it can be."""

import json
import shutil
import signal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.checkpoint import SLOTS, TrainingState
from schemas.exit_code import ExitCode
from schemas.progress import RankPhase
from tests.tasks.train.trained_state import PROGRAMS, MakeConfig, MakeGang, assert_equal_state, files_of, newest_commit, whole_state

pytestmark = pytest.mark.slow

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
