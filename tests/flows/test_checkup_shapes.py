"""`headrace doctor` on `cluster.min_nodes`: which sizes it allows, and how many nodes of a partition would be enough."""

from typing import Any

import pytest

from cluster.launchers.slurm_site import Node, parse_partitions
from flows.checkup_partitions import judge_partition
from flows.checkup_shapes import check_shapes
from schemas.config import RunConfig
from schemas.stage import Stage
from tasks.planned_jobs import planned_jobs
from tests.fakes.in_process_work import config_with

LLAMA = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16}
PARTITION = parse_partitions("PartitionName=gpu Default=YES State=UP MaxTime=UNLIMITED DefaultTime=NONE MaxNodes=UNLIMITED")


def recipe(batch: int = 64, **cluster: Any) -> RunConfig:
    return config_with(
        training={"steps": 100, "global_batch_size": batch, "micro_batch_size": 1, "schedule": {"warmup_steps": 10}},
        model={"config": LLAMA},
        cluster={"kind": "slurm", "queue": "gpu", "nodes": 4, "ranks_per_node": 8, "time_limit": "1h", **cluster},
    )


def told(config: RunConfig) -> list[tuple[str, str]]:
    return [(found["level"], found["what"]) for found in check_shapes(config)]


def test_a_recipe_that_does_not_allow_fewer_nodes_is_told_nothing() -> None:
    assert told(recipe()) == []
    assert told(recipe(kind="local", min_nodes=1)) == []


def test_the_sizes_that_it_allows_are_named() -> None:
    ((level, what),) = told(recipe(min_nodes=1))
    assert level == "ok"
    assert what.startswith("training has 4 nodes x 8, and goes on with 2 nodes x 8, 1 node x 8 ranks when it waits for its nodes 10m; never")
    assert what.endswith("never with 3 nodes, over which global_batch_size / micro_batch_size = 64 cannot be shared out for more ranks")
    ((_, what),) = told(recipe(batch=72, min_nodes=2))
    assert what.startswith(
        "training has 3 nodes x 8, and goes on with 2 nodes x 6 of 8 ranks when it waits for its nodes 10m; never with 4 nodes, over"
    )


@pytest.mark.parametrize(
    ("cluster", "key"), [({"min_nodes": 4}, "cluster.min_nodes"), ({"stages": {"train": {"min_nodes": 4}}}, "cluster.stages.train.min_nodes")]
)
def test_a_bound_that_is_all_nodes_does_nothing(cluster: dict[str, Any], key: str) -> None:
    (found,) = check_shapes(recipe(**cluster))
    assert (found["level"], found["mend"]) == ("warning", f"lower {key}, or leave it out")


def test_memory_that_is_enough_for_all_nodes_and_not_for_the_fewest() -> None:
    plenty, scarce = (recipe(min_nodes=1, memory=memory) for memory in ("400G", "40G"))
    assert [level for level, _ in told(plenty)] == ["ok"]
    ok, warning = check_shapes(scarce)
    assert (ok["level"], warning["level"]) == ("ok", "warning")
    assert warning["what"].startswith("with 1 node x 8 ranks a node needs about ")
    assert "cluster.memory" in warning["mend"]
    assert [level for level, _ in told(recipe(min_nodes=1, memory="40G", gpus_per_node=8))] == ["ok"], "then state is in the memory of GPUs"


@pytest.mark.parametrize(
    ("down", "missing", "level", "says"),
    [
        (
            1,
            0,
            "warning",
            "3 that offer it are up, enough for the 2 that training goes on with when its nodes do not come back (cluster.min_nodes); others",
        ),
        (3, 0, "warning", "1 that offer it are up, too few also for the fewest that training goes on with, 2 (cluster.min_nodes); others are down*"),
        (0, 2, "error", "2 of its 2 offer that, enough for the 2 that training goes on with"),
        (0, 3, "error", "1 of its 1 offer that, too few also for the fewest that training goes on with, 2"),
    ],
)
def test_a_partition_with_fewer_nodes_than_all(down: int, missing: int, level: str, says: str) -> None:
    config = recipe(min_nodes=2)
    states = ["down*"] * down + ["idle"] * (4 - down - missing)
    nodes = tuple(
        Node(partition="gpu", name=f"node{number}", cpus=64, memory_mib=500_000, gpus=0, state=state) for number, state in enumerate(states)
    )
    jobs = {Stage.TRAIN: planned_jobs(config, storage_root="/shared/data", project_dir=None)[Stage.TRAIN]}  # type: ignore[arg-type]
    found = judge_partition("gpu", jobs, config=config, partitions=PARTITION, nodes=nodes, groups=frozenset())
    (fault,) = [each for each in found if "are asked for" in each["what"]]
    assert fault["level"] == level
    assert says in fault["what"]
