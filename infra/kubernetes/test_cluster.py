"""A Kubernetes cluster on one machine, for tests and for trying things out: a real control plane, and nodes that run pods as processes.

    python3 infra/kubernetes/test_cluster.py build                   the programs, once: some five minutes, 2 GB of disk meanwhile, 0.5 GB after
    python3 infra/kubernetes/test_cluster.py up DIR [--nodes 3] [--cpus 4] [--memory 8Gi] [--gpus 2]
        then:  export KUBECONFIG=DIR/admin.kubeconfig
    python3 infra/kubernetes/test_cluster.py kill DIR node2          power it off: all that runs there is gone at once
    python3 infra/kubernetes/test_cluster.py start DIR node2         power it on again; etcd and kube-apiserver can be killed and started, too
    python3 infra/kubernetes/test_cluster.py evict DIR node2 NAMESPACE POD       as a node short of memory does
    python3 infra/kubernetes/test_cluster.py image DIR NAME ROOTFS   a folder as an image; `host`, this machine's own files, is there already
    python3 infra/kubernetes/test_cluster.py status DIR
    python3 infra/kubernetes/test_cluster.py down DIR                ends all that `up` started; safe to repeat

A control plane without nodes needs no root. All of it is loopback. See README.md beside this file.
"""

import argparse
import shutil
import sys
from pathlib import Path

from lab import binaries
from lab.api import ApiError
from lab.cluster import KubernetesTestCluster
from lab.errors import ClusterError
from lab.processes import wait_for_end


def main() -> int:
    """Runs one command."""
    arguments = _parser().parse_args()
    try:
        if arguments.command == "build":
            print(binaries.build(say=lambda line: print(line, flush=True)))
        else:
            _act(KubernetesTestCluster(arguments.folder.resolve()), arguments)
    except (ClusterError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `build` goes on from here, `down` ends what was started", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    for name, *more in (
        ("up",),
        ("down",),
        ("status",),
        ("kill", "name"),
        ("start", "name"),
        ("evict", "name", "namespace", "pod"),
        ("image", "name", "rootfs"),
        ("guard",),
    ):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path, metavar="DIR")
        for argument in more:
            command.add_argument(argument)
        if name == "up":
            command.add_argument("--nodes", type=int, default=0)
            command.add_argument("--cpus", type=int, default=4, help="of each node, whatever the machine has")
            command.add_argument("--memory", default="8Gi", help="of each node")
            command.add_argument("--gpus", type=int, default=0, help="of each node; pretended")
        if name == "guard":
            command.add_argument("--owner", type=int, required=True, help="the process with which the cluster ends and its folder goes")
    return parser


def _act(cluster: KubernetesTestCluster, arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "up":
            cluster.folder.mkdir(parents=True, exist_ok=True)
            cluster.up(nodes=arguments.nodes, cpus=arguments.cpus, memory=arguments.memory, gpus=arguments.gpus)
            print(f"up: {len(cluster.nodes)} nodes; export KUBECONFIG={cluster.kubeconfig}")
        case "status":
            print("\n".join(f"{name}\t{pid or '-'}" for name, pid in cluster.pids().items()))
        case "evict":
            cluster.evict(arguments.name, namespace=arguments.namespace, pod=arguments.pod)
        case "image":
            cluster.add_image(arguments.name, rootfs=arguments.rootfs)
        case "guard":
            wait_for_end(arguments.owner)
            cluster.down()
            shutil.rmtree(cluster.folder, ignore_errors=True)  # somebody may have taken it away
        case _:
            getattr(cluster, arguments.command)(*([arguments.name] if "name" in arguments else []))


if __name__ == "__main__":
    raise SystemExit(main())
