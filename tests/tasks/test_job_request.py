"""From a recipe to the request for a job: what shapes it on this machine, and what elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from schemas.config import RunConfig
from schemas.execution_config import BudgetConfig
from schemas.job import JobKind, JobSpec
from schemas.stage import Stage
from tasks.job_request import JobPlace, JobShape, array_shape, job_request
from tests.fakes.in_process_work import config_with


def on(kind: str, **cluster: Any) -> RunConfig:
    return config_with(cluster={"kind": kind, **cluster})


def request(config: RunConfig, *, stage: Stage = Stage.TRAIN, ranks: int = 2, cores: int = 64) -> JobSpec:
    place = JobPlace("demo-7f3a", stage, artifact_key="train/x", storage_root="/data", scratch_dir="/state/scratch", project_dir="/me")
    shape = JobShape(JobKind.GANG, num_nodes=1, ranks_per_node=ranks)
    return job_request(config, place=place, shape=shape, module="tasks.train.job", cores=cores)


@pytest.mark.parametrize(
    ("kind", "cluster", "items", "shape"),
    [
        ("local", {}, 100, (1, 16)),  # one per core of this machine
        ("local", {}, 3, (1, 3)),
        ("local", {"max_parallel_items": 2}, 100, (1, 2)),
        ("slurm", {}, 100, (1, 1)),  # this machine's cores tell nothing of a node
        ("slurm", {"ranks_per_node": 8}, 100, (1, 8)),
        ("slurm", {"ranks_per_node": 8, "max_parallel_items": 4, "nodes": 3}, 100, (3, 4)),
        ("slurm", {"ranks_per_node": 8, "stages": {"tokenize": {"ranks_per_node": 32, "nodes": 2}}}, 100, (2, 32)),
        ("slurm", {"ranks_per_node": 8, "nodes": 4}, 1, (1, 1)),  # no node waits for another's only item
        ("slurm", {"ranks_per_node": 8, "nodes": 4}, None, (4, 8)),  # nobody has counted yet
        ("kubernetes", {}, 100, (1, 1)),
    ],
)
def test_how_many_items_run_at_a_time(kind: str, cluster: dict[str, Any], items: int | None, shape: tuple[int, int]) -> None:
    found = array_shape(on(kind, **cluster), Stage.TOKENIZE, step_name="group", num_items=items, cores=16)
    assert (found.num_nodes, found.ranks_per_node) == shape
    assert found.num_items == (items if items is not None else 32)


@pytest.mark.parametrize(
    ("kind", "cluster", "threads"),
    [("local", {}, 32), ("local", {"threads_per_rank": 3}, 3), ("slurm", {}, 1), ("slurm", {"threads_per_rank": 4}, 4), ("kubernetes", {}, 1)],
)
def test_threads_of_a_rank(kind: str, cluster: dict[str, Any], threads: int) -> None:
    assert request(on(kind, **cluster)).threads_per_rank == threads


@pytest.mark.parametrize(
    ("cluster", "standby"),
    [({}, False), ({"gpus_per_node": 2}, True), ({"gpus_per_node": 2, "standby": False}, False), ({"standby": True}, True)],
)
def test_ranks_with_gpus_are_no_forks_unless_the_recipe_says_so(cluster: dict[str, Any], standby: bool) -> None:
    assert request(on("slurm", **cluster)).standby is standby


def test_more_ranks_than_cores_have_one_thread_each() -> None:
    assert request(on("local"), ranks=8, cores=2).threads_per_rank == 1


def test_only_training_may_fall_back_to_smaller_micro_batches() -> None:
    config = config_with(restart={"on_out_of_memory": "smaller_micro_batch"})
    assert request(config).limits.micro_batch_sizes == (2, 1)
    assert request(config, stage=Stage.EVALUATE).limits.micro_batch_sizes == ()
    assert request(config_with()).limits.micro_batch_sizes == ()


def test_a_budget_is_the_trainings_and_gpus_are_what_it_is_charged_for(tmp_path: Path) -> None:
    config = on("slurm", gpus_per_node=4, stages={"evaluate": {"gpus_per_node": 1}}).model_copy(update={"budget": BudgetConfig(gpu_hours=2.5)})
    assert (request(config).device_s_allowed, request(config).gpus_per_node) == (9000.0, 4)
    assert (request(config, stage=Stage.EVALUATE).device_s_allowed, request(config, stage=Stage.EVALUATE).gpus_per_node) == (None, 1)


def test_a_stages_own_time_limit_is_the_jobs(tmp_path: Path) -> None:
    config = on("slurm", time_limit="24h", stages={"evaluate": {"time_limit": "2h"}})
    assert request(config).time_limit_s == 24 * 3600
    assert request(config, stage=Stage.EVALUATE).time_limit_s == 2 * 3600


def test_only_training_may_go_on_with_fewer_nodes() -> None:
    config = on("slurm", nodes=2, min_nodes=1)
    elastic = request(config).elastic
    assert elastic is not None
    assert [shape.num_nodes for shape in elastic.shapes] == [2, 1]
    assert (elastic.smaller_after_s, elastic.grow_after_s) == (600.0, None)
    assert request(config, stage=Stage.EVALUATE).elastic is None
    assert request(on("slurm", nodes=2)).elastic is None
