"""The whole demo on a real Slurm cluster of three nodes on this machine; one of them is powered off in mid-training. Needs root, and Slurm.

    make slurm-demo          or          .venv/bin/python infra/slurm/demo.py [--steps 400] [--folder .headrace/slurm-demo] [--calm]

Training takes two nodes, text a partition without GPUs. The cluster lies below /tmp and is taken down at the end, also after Ctrl-C; then it is
looked whether anything is left. Artifacts, the registered model and the curves stay in `--folder`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from test_cluster import ClusterError, SlurmTestCluster

from flows.cluster_demo import demonstrate
from schemas.view import JobProgress

_CHECKOUT = Path(__file__).resolve().parents[2]
_CHANGES = {
    "name": "slurm-demo",
    "cluster.kind": "slurm",
    "cluster.queue": "cpu",
    "cluster.ranks_per_node": 1,
    "cluster.stages": {"train": {"queue": "gpu", "nodes": 2, "gpus_per_node": 1}},
}
"""What differs from the demo on one machine."""


def main() -> int:
    """Runs the demo and returns an exit code (`flows.cluster_demo.demonstrate`)."""
    return demonstrate(
        __doc__ or "",
        folder=_CHECKOUT / ".headrace/slurm-demo",
        start=_cluster,
        changes=lambda _: _CHANGES,
        variables=lambda cluster: cluster.variables,
        disturb=_power_off,
        work_left=_jobs,
        refusal=ClusterError,
    )


def _jobs(cluster: SlurmTestCluster) -> list[str]:
    return list(cluster.ask("squeue", "--noheader", "--format=job %A %j %T").splitlines())


@contextmanager
def _cluster(folder: Path) -> Iterator[SlurmTestCluster]:
    cluster = SlurmTestCluster(folder)
    try:
        cluster.up(nodes=3, gpus=1)
        print(f"cluster: {len(cluster.nodes)} nodes with a pretended GPU each; in another terminal: . {folder}/env.sh; squeue", flush=True)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


def _power_off(cluster: SlurmTestCluster, training: JobProgress) -> None:
    """Takes the node of the first agent away, which leads the others and would have told how the job ended."""
    node = training.heartbeats[0].host
    cluster.kill(node)
    print(f"{node} is powered off at step {training.step}; Slurm believes it for some 15 s yet", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
