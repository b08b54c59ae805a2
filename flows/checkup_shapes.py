"""`headrace doctor` on the sizes that attempts of a training may have: what `cluster.min_nodes` allows, and what a number of nodes is enough for."""

from cluster.launchers.slurm_site import mib_of
from flows.figure import of_bytes
from flows.finding import Finding, finding
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.gang_shape import GangShape
from schemas.sizing import training_size
from schemas.stage import Stage

PROCESS_BYTES = 1_000_000_000
"""Interpreter, torch and DeepSpeed of one rank, measured at 0.9 GB."""
_SUBJECT = "min_nodes"


def check_shapes(config: RunConfig) -> list[Finding]:
    """Returns what training can go on with when nodes do not come back. Nothing where a recipe does not allow fewer, or asks no scheduler."""
    resources = config.cluster.resources(Stage.TRAIN)
    if resources.min_nodes is None or config.cluster.kind is ClusterKind.LOCAL:
        return []
    largest, *smaller = config.gang_shapes
    if not smaller:
        what = f"{resources.min_nodes} are all the nodes of training: every attempt waits for all of them"
        return [finding("warning", _SUBJECT, what, f"lower {_key(config)}, or leave it out")]
    shapes = ", ".join(_named(shape, config) for shape in smaller)
    what = f"training has {_named(largest, config)}, and goes on with {shapes} ranks when it waits for its nodes {config.restart.smaller_after}"
    skipped = sorted(set(range(resources.min_nodes, (resources.nodes or 1) + 1)) - {shape.num_nodes for shape in config.gang_shapes}, reverse=True)
    if skipped:
        share = config.training.global_batch_size // config.training.micro_batch_size
        numbers = ", ".join(map(str, skipped))
        what += f"; never with {numbers} nodes, over which global_batch_size / micro_batch_size = {share} cannot be shared out for more ranks"
    return [finding("ok", _SUBJECT, what), *_memory(config, smaller[-1])]


def enough_for(config: RunConfig, stage: Stage, *, num_nodes: int) -> str:
    """Returns what a stage would do with so many nodes, fewer than it wants; empty where the recipe does not allow fewer."""
    smaller = config.gang_shapes[1:]
    if stage is not Stage.TRAIN or not smaller:
        return ""
    fitting = next((shape for shape in smaller if shape.num_nodes <= num_nodes), None)
    if fitting is None:
        return f", too few also for the fewest that training goes on with, {smaller[-1].num_nodes} ({_key(config)})"
    return f", enough for the {fitting.num_nodes} that training goes on with when its nodes do not come back ({_key(config)})"


def _memory(config: RunConfig, smallest: GangShape) -> list[Finding]:
    """Returns whether ranks that share their state with the fewest others need more memory of a node than a job without GPUs asks for."""
    resources, most = config.cluster.resources(Stage.TRAIN), training_size(config).most_memory
    if most is None or not resources.memory or resources.gpus_per_node:
        return []
    need, asked = smallest.ranks_per_node * (most.total + PROCESS_BYTES), int(mib_of(resources.memory) * 2**20)
    if need <= asked:
        return []
    what = f"with {_named(smallest, config)} ranks a node needs about {of_bytes(need)}, a job asks for {resources.memory}"
    return [
        finding("warning", _SUBJECT, what, f"raise {_key(config)} or cluster.memory, lower training.micro_batch_size, or raise training.zero_stage")
    ]


def _named(shape: GangShape, config: RunConfig) -> str:
    """Returns `2 nodes x 8`, and how many ranks of a node have nothing to do."""
    per_node = config.ranks(Stage.TRAIN) // (config.cluster.resources(Stage.TRAIN).nodes or 1)
    idle = f" of {per_node}" if shape.ranks_per_node < per_node else ""
    return f"{shape.num_nodes} node{'s' if shape.num_nodes > 1 else ''} x {shape.ranks_per_node}{idle}"


def _key(config: RunConfig) -> str:
    """Returns the key of the recipe that says it: the stage's own where it has one."""
    own = config.cluster.stages.get(Stage.TRAIN)
    return "cluster.stages.train.min_nodes" if own is not None and own.min_nodes is not None else "cluster.min_nodes"
