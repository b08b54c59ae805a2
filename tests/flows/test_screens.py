"""What the command line shows. The demo's last screen is a golden file: change it on purpose."""

import time
from typing import Any

import pytest

from flows.screens import demo_screen, plan_screen, runs_screen, status_screen
from schemas.config import RunConfig
from schemas.cost import TrainingCost, training_cost
from schemas.ledger import GoodputLedger, Spent
from schemas.plan import Action, Plan, PlannedStage
from schemas.progress import Heartbeat, Notice, NoticeKind, RankPhase, RankProgress
from schemas.sizing import training_size
from schemas.stage import Stage, stages_of
from schemas.view import JobProgress, QueuePlace, RunState, RunView, StageState, StageView
from tests.fakes.golden import assert_golden
from tests.fakes.in_process_work import config_with

FIGURES: dict[Stage, dict[str, Any]] = {
    Stage.VALIDATE: {"accepted": 1712, "text_bytes": 11_234_567, "quarantined": 14, "read": 1726, "verdict": "pass with quarantine"},
    Stage.TOKENIZER: {"vocab_size": 2048, "bytes_per_token": 3.12},
    Stage.TOKENIZE: {"tokens": {"train": 3_400_000, "validation": 34_000, "test": 136_000}, "shards": 9},
    Stage.TRAIN: {"steps": 600, "world_size": 2, "validation_loss": 2.4131},
    Stage.EXPORT: {"num_parameters": 2_164_416, "dtype": "bfloat16"},
    Stage.EVALUATE: {"bits_per_byte": 1.482, "perplexity": 24.6, "baselines": {"gzip": 1.9, "xz": 1.671, "5-gram": 1.493}},
    Stage.REGISTER: {"model_name": "demo", "version": 1, "aliases": ["candidate", "champion"]},
}
SECONDS = dict(zip(stages_of(prepared=False), (3.1, 2.0, 1.2, 150.2, 2.1, 20.1, 1.8), strict=True))
INCIDENT = {
    "rank": 1,
    "step": 402,
    "committed_step": 400,
    "cause": "killed",
    "decision": "restart",
    "reason": "",
    "recovered_after_s": 0.6,
    "epoch": 0,
}


def stage_view(stage: Stage, state: StageState, **change: Any) -> StageView:
    done = state in (StageState.MADE, StageState.FOUND)
    fields: dict[str, Any] = {"stage": stage, "state": state, "artifact_key": f"{stage.value}/demo-0123456789ab", "started_at": 1e9, "message": ""}
    fields |= {"seconds": SECONDS[stage] if done else 0.0, "figures": FIGURES[stage] if done else {}}
    return StageView(**(fields | change))


def run_view(stages: tuple[StageView, ...], state: RunState, **change: Any) -> RunView:
    fields: dict[str, Any] = {"run_id": "demo-20261122t020000-7f3a", "run_name": "demo-7f3a", "state": state, "recipe": "demo_cpu.yaml"}
    fields |= {"started_at": 1e9, "exit_code": -1, "message": "", "stages": stages, "incidents": ()}
    return RunView(**(fields | change))


FINISHED = run_view(
    tuple(stage_view(stage, StageState.MADE) for stage in stages_of(prepared=False)), RunState.FINISHED, exit_code=0, incidents=(INCIDENT,)
)
COMMANDS = [
    ("verify", "headrace verify models:/demo@champion"),
    ("your text", "headrace init my.yaml --text FOLDER"),
    ("curves", ".venv/bin/mlflow ui --backend-store-uri sqlite:///.headrace/state/mlflow.db"),
    ("flow run", "PREFECT_HOME=.headrace/state/prefect .venv/bin/prefect server start"),
]


def assert_golden_screen(name: str, lines: list[str]) -> None:
    assert_golden(name, "\n".join(lines) + "\n")


def test_the_demos_last_screen() -> None:
    lines = demo_screen(FINISHED, sample=("def main(", 'self, *args):\n    """Return the name of the module."""'), commands=COMMANDS)
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120
    assert_golden_screen("demo_screen.txt", lines)


def test_many_incidents_take_two_lines_and_a_long_sample_one() -> None:
    many = FINISHED.model_copy(update={"incidents": (INCIDENT,) * 7})
    lines = demo_screen(many, sample=("a\nb", "x" * 500), commands=COMMANDS)
    assert len(lines) <= 20
    assert "  and 6 more: headrace status demo-20261122t020000-7f3a" in lines
    assert [len(line) <= 100 for line in lines if line.startswith("sample")] == [True]


def test_a_screen_without_samples_and_incidents() -> None:
    lines = demo_screen(FINISHED.model_copy(update={"incidents": ()}), sample=None, commands=COMMANDS)
    assert not any("killed" in line or line.startswith("sample") for line in lines)


def training_job(**change: Any) -> JobProgress:
    progress = RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=402, committed_step=400, total_steps=600, at=1e9)
    beat = Heartbeat(key="k", node_rank=0, host="h", agent_pid=1, epoch=1, sequence=1, at=1e9, ranks=(progress,))
    fields: dict[str, Any] = {"job": "job", "attempt": 0, "alive": True, "epoch": 1, "step": 402, "committed_step": 400, "total_steps": 600}
    fields |= {"items_done": 0, "items_total": 0, "heartbeats": (beat,), "incidents": (), "eta_s": 80.0}
    fields |= {"figures": {"loss": 2.4131, "tokens_per_s": 21_300.0}}
    return JobProgress(**(fields | change))


def running_view() -> RunView:
    stages = [stage_view(stage, StageState.FOUND, seconds=0.0) for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)]
    stages.append(stage_view(Stage.TRAIN, StageState.RUNNING, seconds=95.0, job=training_job()))
    stages += [stage_view(stage, StageState.PENDING) for stage in (Stage.EXPORT, Stage.EVALUATE, Stage.REGISTER)]
    return run_view(tuple(stages), RunState.RUNNING, incidents=(INCIDENT,))


def test_status_of_a_running_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        assert_golden_screen("status_running.txt", status_screen(running_view()))
    time.tzset()


def test_status_of_a_job_in_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = QueuePlace(launcher="slurm", state="pending", job_id="4711", told="PENDING (Resources)", reason="Resources", starts="2026-11-22T10:00:00")
    job = training_job(attempt=1, alive=False, epoch=-1, step=0, total_steps=0, heartbeats=(), figures={}, eta_s=-1.0, queue=queue)
    view = running_view()
    stages = (*view.stages[:3], view.stages[3].model_copy(update={"job": job}), *view.stages[4:])
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        assert_golden_screen("status_queued.txt", status_screen(view.model_copy(update={"stages": stages, "state": RunState.DETACHED})))
    time.tzset()


def test_status_of_a_job_with_fewer_nodes_says_why() -> None:
    queue = QueuePlace(launcher="slurm", state="running", job_id="4711", told="RUNNING", nodes="node[1-2]")
    reduced = "2 of 4 nodes since attempt 3: the queue did not give 4 nodes within 10 min"
    view = running_view()
    stages = (*view.stages[:3], view.stages[3].model_copy(update={"job": training_job(queue=queue, reduced=reduced)}), *view.stages[4:])
    lines = status_screen(view.model_copy(update={"stages": stages}))
    assert lines[lines.index("  slurm job 4711: RUNNING on node[1-2]") + 1] == f"  {reduced}"


def test_the_plan_shows_what_attempts_may_have() -> None:
    training = {"steps": 100, "global_batch_size": 16, "micro_batch_size": 4}
    config = config_with(training=training, cluster={"kind": "slurm", "nodes": 4, "min_nodes": 1, "ranks_per_node": 1})
    rows = plan_screen(Plan(name="x", storage_root="/x", stages=(), size=training_size(config)), config=config)
    (row,) = (line for line in rows if "nodes x ranks" in line)
    assert "4 x 1  or 2 x 1, 1 x 1 after 10m in the queue; memory per rank up to" in row
    rigid = config_with(training=training, cluster={"kind": "slurm", "nodes": 4})
    rows = plan_screen(Plan(name="x", storage_root="/x", stages=(), size=training_size(rigid)), config=rigid)
    assert not any("nodes x ranks" in line for line in rows)


def test_a_failed_stage_shows_its_job_and_its_last_words() -> None:
    queue = QueuePlace(launcher="slurm", state="ended", job_id="4711", nodes="node1")
    job = training_job(alive=False, queue=queue, last_lines=("CUDA error", "x" * 500))
    stages = [stage_view(stage, StageState.PENDING) for stage in stages_of(prepared=False)]
    stages[3] = stage_view(Stage.TRAIN, StageState.FAILED, message="train failed", job=job)
    lines = status_screen(run_view(tuple(stages), RunState.FAILED))
    assert "  slurm job 4711: ended on node1" in lines
    assert "  | CUDA error" in lines
    assert all(len(line) <= 102 for line in lines if line.startswith("  |"))


def test_a_finished_run_says_nothing_of_its_jobs() -> None:
    queue = QueuePlace(launcher="slurm", state="ended", job_id="4711")
    stages = tuple(stage.model_copy(update={"job": training_job(queue=queue)}) for stage in FINISHED.stages)
    assert not any("4711" in line for line in status_screen(FINISHED.model_copy(update={"stages": stages})))


def test_status_shows_the_newest_notices_and_where_the_time_went() -> None:
    notices = tuple(
        Notice(at=1e9 + step, kind=NoticeKind.CHECKPOINT_SKIPPED, epoch=0, rank=-1, step=step, message=f"that of step {step} is still being written")
        for step in range(7)
    )
    ledger = GoodputLedger(
        since=0.0,
        until=100.0,
        complete=False,
        wall_s=100.0,
        away_s=0.0,
        seconds={what: 90.0 if what is Spent.USEFUL else 10.0 if what is Spent.RECOVERY else 0.0 for what in Spent},
        goodput=0.9,
        steps=9,
        steps_redone=1,
        attempts=1,
        restarts=1,
        mtbf_s=60.0,
    )
    view = running_view()
    train = view.stages[3].model_copy(update={"job": training_job(notices=notices), "ledger": ledger})
    lines = status_screen(view.model_copy(update={"stages": (*view.stages[:3], train, *view.stages[4:])}))
    assert [line for line in lines if "still being written" in line] == [
        f"  checkpoint skipped: that of step {step} is still being written" for step in range(2, 7)
    ]
    assert "  2 earlier notices are in --json" in lines
    assert "  90.0 % of 1 min 40 s went into useful steps; recovery 10.0 %; 1 restart, 1 step redone" in lines


def test_status_of_a_failed_run_says_why_and_what_to_do() -> None:
    stages = tuple(stage_view(stage, StageState.PENDING) for stage in stages_of(prepared=False))
    failed = stage_view(Stage.VALIDATE, StageState.FAILED, message="source 'a': nothing there\n  mend: look", seconds=1.0)
    screen = "\n".join(
        status_screen(run_view((failed, *stages[1:]), RunState.FAILED, message="source 'a': nothing there\n  mend: look", exit_code=2))
    )
    assert "failed" in screen
    assert screen.count("nothing there") == 2
    assert "headrace resume demo-20261122t020000-7f3a" in screen


def test_items_are_counted() -> None:
    job = training_job(job="scan", items_done=2, items_total=5, total_steps=0)
    stages = (
        stage_view(Stage.VALIDATE, StageState.RUNNING, job=job),
        *(stage_view(stage, StageState.PENDING) for stage in stages_of(prepared=False)[1:]),
    )
    assert any("scan: 2 of 5 items" in line for line in status_screen(run_view(stages, RunState.RUNNING)))


def test_the_table_of_runs() -> None:
    lines = runs_screen([FINISHED, running_view()])
    assert len(lines) == 3
    assert "finished" in lines[1]
    assert "step 402/600, loss 2.413, 21.3 k tokens/s, 1 min 20 s to go" in lines[2]
    assert runs_screen([]) == ["no runs yet"]


def test_the_plan_shows_actions_reasons_and_numbers() -> None:
    config = RunConfig.model_validate(
        {
            "name": "demo",
            "corpus": {"sources": ["/text"]},
            "tokenization": {"sequence_length": 256},
            "model": {
                "config": {"model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
            },
            "training": {"steps": 600, "global_batch_size": 16, "micro_batch_size": 8},
            "cluster": {"ranks_per_node": 2},
        }
    )
    actions = dict.fromkeys(stages_of(prepared=False), Action.DEPENDS) | {
        Stage.VALIDATE: Action.REUSE,
        Stage.TOKENIZER: Action.BUILD,
        Stage.TOKENIZE: Action.CONTINUE,
    }
    reasons = {
        Stage.VALIDATE: ("found by content",),
        Stage.TOKENIZER: ("vocab_size: 1024 -> 2048", "validate changed"),
        Stage.TOKENIZE: ("unfinished; 2 finished items are kept",),
    }
    stages = tuple(
        PlannedStage(
            stage=stage,
            action=action,
            key="",
            fingerprint="",
            reasons=reasons.get(stage, ("depends on train",)),
            summary=FIGURES[stage] if action is Action.REUSE else {},
        )
        for stage, action in actions.items()
    )
    plan = Plan(name="demo", storage_root="/data", stages=stages, size=training_size(config, train_sequences=13_000), warnings=("slow disk",))
    lines = plan_screen(plan, config=config, warnings=("x has no effect",))
    assert_golden_screen("plan_screen.txt", lines)


def test_the_plan_shows_what_training_sees_of_each_source() -> None:
    config = RunConfig.model_validate(
        {
            "name": "demo",
            "corpus": {"sources": [{"path": "/w", "name": "web"}, {"path": "/c", "name": "code"}, "/rest"]},
            "tokenization": {"sequence_length": 256, "by_source": True},
            "model": {"factory": "package:make"},
            "training": {
                "steps": 600,
                "global_batch_size": 16,
                "micro_batch_size": 8,
                "mixture": {"weights": {"web": 2, "code": 1, "source-2": 0}},
            },
        }
    )
    stages = tuple(PlannedStage(stage=stage, action=Action.BUILD, key="", fingerprint="", reasons=("not made yet",)) for stage in Stage)
    known = training_size(config, train_sequences=9_000, source_sequences={"web": 6_000, "code": 500, "source-2": 2_500})
    plan = Plan(name="demo", storage_root="/data", stages=stages, size=known)
    rows = [" ".join(line.split()) for line in plan_screen(plan, config=config) if "source" in line or "epochs" in line]
    assert rows == [
        "epochs 1.48 passes over what training.mixture.weights makes an epoch",
        "source web 66.67% 43,691 / 65,536: 1.07 passes over its 6,000 sequences",
        "source code 33.33% 21,845 / 65,536: 6.40 passes over its 500 sequences",
    ]
    early = plan.model_copy(update={"size": training_size(config)})
    rows = [" ".join(line.split()) for line in plan_screen(early, config=config) if "source" in line]
    assert rows[0] == "source web 66.67% of the sequences; how many it has is known once the text is tokenized"


def priced(**changes: Any) -> TrainingCost:
    fields: dict[str, Any] = {"gpus": True, "used_s": 1800.0, "left_s": 36_000.0, "budget_s": 28_800.0, "price_per_hour": 2.1}
    return training_cost(**(fields | {"paced_by": "train/demo-0123456789ab"} | changes))


PRICES = {
    "measured": priced(),
    "measured, on ranks, no budget, no price": priced(gpus=False, used_s=0.0, left_s=0.9, budget_s=None, price_per_hour=None),
    "never measured": priced(left_s=None, paced_by=""),
    "measured, but nobody knows how many steps": priced(left_s=None),
    "never measured, no budget, no price": priced(left_s=None, paced_by="", budget_s=None, price_per_hour=None),
}


def test_what_a_plan_says_of_its_price() -> None:
    config = RunConfig.model_validate(
        {"name": "demo", "corpus": {"sources": ["/text"]}, "model": {"factory": "package:make"}, "training": {"epochs": 2.0, "global_batch_size": 16}}
    )
    stages = tuple(
        PlannedStage(stage=stage, action=Action.BUILD, key="", fingerprint="", reasons=("not made yet",)) for stage in stages_of(prepared=False)
    )
    plan = Plan(name="demo", storage_root="/data", stages=stages, size=training_size(config))
    shown = []
    for name, cost in PRICES.items():
        lines = plan_screen(plan.model_copy(update={"cost": cost}), config=config)
        shown += [f"{name}:", *lines[next(index for index, line in enumerate(lines) if line.startswith("  parameters")) :], ""]
    assert_golden_screen("plan_prices.txt", shown)


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        (priced(), "0.5 GPU-hours used of a budget of 8, which cost 1.05 at 2.10 each; 10 more to go"),
        (priced(left_s=None, budget_s=None), "0.5 GPU-hours used, which cost 1.05 at 2.10 each"),
        (priced(gpus=False, left_s=0.0, budget_s=None, price_per_hour=None), "0.5 device-hours (a rank counts as a device) used"),
    ],
)
def test_what_a_status_says_of_it(cost: TrainingCost, line: str) -> None:
    stages = [stage_view(stage, StageState.MADE, cost=cost if stage is Stage.TRAIN else None) for stage in stages_of(prepared=False)]
    assert f"  {line}" in status_screen(run_view(tuple(stages), RunState.FINISHED))


@pytest.mark.parametrize(
    ("scripts", "end"),
    [
        ({Stage.TRAIN: "#!/bin/bash\nexit $code\n", Stage.EXPORT: "x"}, ["", "#!/bin/bash", "exit $code"]),
        ({Stage.EXPORT: "x", Stage.EVALUATE: "y"}, ["", "what is submitted for export, evaluate: --json"]),
    ],
)
def test_a_plan_ends_in_the_trainings_script_which_can_be_copied(scripts: dict[Stage, str], end: list[str]) -> None:
    config = RunConfig.model_validate(
        {"name": "demo", "corpus": {"sources": ["/text"]}, "model": {"factory": "package:make"}, "training": {"epochs": 2.0, "global_batch_size": 16}}
    )
    stages = tuple(
        PlannedStage(stage=stage, action=Action.BUILD, key="", fingerprint="", reasons=("not made yet",)) for stage in stages_of(prepared=False)
    )
    lines = plan_screen(Plan(name="demo", storage_root="/data", stages=stages, size=training_size(config), scripts=scripts), config=config)
    assert lines[-len(end) :] == end


def test_the_plan_of_a_model_known_to_its_code_only() -> None:
    config = RunConfig.model_validate(
        {"name": "demo", "corpus": {"sources": ["/text"]}, "model": {"factory": "package:make"}, "training": {"epochs": 2.0, "global_batch_size": 16}}
    )
    stages = tuple(
        PlannedStage(stage=stage, action=Action.BUILD, key="", fingerprint="", reasons=("not made yet",)) for stage in stages_of(prepared=False)
    )
    lines = plan_screen(Plan(name="demo", storage_root="/data", stages=stages, size=training_size(config)), config=config)
    assert any("known once the text is tokenized" in line for line in lines)
    assert any("known to the model's own code only" in line for line in lines)
