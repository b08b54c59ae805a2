"""What Slurm says of itself: settings, partitions, nodes. PURE: parses the answers of `scontrol` and `sinfo`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

SETTINGS = ("scontrol", "show", "config")
PARTITIONS = ("scontrol", "--all", "--oneliner", "show", "partition")
NODES = ("sinfo", "--all", "--noheader", "--Node", "--format=%R|%N|%c|%m|%G|%T")
"""The questions; also about what is hidden from this user. Of a node: partition, name, CPUs, memory in MiB, generic resources, state."""

_USABLE = frozenset({"idle", "mixed", "allocated", "completing", "planned", "powering_up", "powered_down"})
_NO_LIMIT = frozenset({"UNLIMITED", "INFINITE", "NONE", ""})
_MIB = {"K": 1 / 1024, "M": 1.0, "": 1.0, "G": 1024.0, "T": 1024.0**2}


@dataclass(frozen=True)
class Partition:
    """A partition, as far as jobs of ours are concerned."""

    name: str
    is_default: bool
    state: str
    """`UP`, or why it starts nothing."""
    groups: tuple[str, ...]
    """Only their members may submit; empty: everybody."""
    accounts: tuple[str, ...]
    """Only these accounts; empty: all."""
    qos: tuple[str, ...]
    """Only these; empty: all."""
    max_time_s: float | None
    """Longest job; None: no limit."""
    default_time_s: float | None
    """Limit of a job that names none; None: the longest."""
    max_nodes: int | None
    """Most nodes of a job; None: all."""
    preempt_mode: str
    """What happens to a job that makes room: `OFF`, `REQUEUE`, `CANCEL`, `SUSPEND`."""
    grace_s: float
    """Seconds that such a job has left."""


@dataclass(frozen=True)
class Node:
    """A node in one partition."""

    partition: str
    name: str
    cpus: int
    memory_mib: int
    gpus: int
    state: str

    @property
    def is_usable(self) -> bool:
        """Whether it takes jobs, now or when it is free."""
        return self.state.rstrip("*~#!%$@^-+") in _USABLE and not self.state.endswith("*")  # *: it does not respond


def parse_settings(text: str) -> dict[str, str]:
    """Returns name → value."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_partitions(text: str) -> dict[str, Partition]:
    """Returns name → partition."""
    found = (dict(pair.partition("=")[::2] for pair in line.split()) for line in text.splitlines() if line.startswith("PartitionName="))
    return {fields["PartitionName"]: _partition(fields) for fields in found}


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Returns every node of every partition."""
    lines = (line.strip().split("|") for line in text.splitlines() if line.count("|") == 5)
    return tuple(
        Node(partition=partition, name=name, cpus=_number(cpus), memory_mib=_number(memory), gpus=gpus_of(gres), state=state)
        for partition, name, cpus, memory, gres, state in lines
    )


def gpus_of(gres: str) -> int:
    """Returns the GPUs among a node's generic resources: of `gpu:a100:8(S:0-1),nvme:2` eight."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def seconds_of(text: str) -> float | None:
    """Returns a span of Slurm's (`1-02:00:00`, `30 sec`, minutes as a bare number, `UNLIMITED`) in seconds; None: no limit."""
    if text.strip() in _NO_LIMIT:
        return None
    if text.endswith(" sec"):
        return float(text.split()[0])
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def mib_of(memory: str) -> float:
    """Returns `900G` in MiB; a bare number is MiB."""
    digits = memory.rstrip("KMGT")
    return int(digits) * _MIB[memory[len(digits) :]]


def _partition(fields: Mapping[str, str]) -> Partition:
    most = fields.get("MaxNodes", "UNLIMITED")
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        groups=_only(fields.get("AllowGroups", "ALL")),
        accounts=_only(fields.get("AllowAccounts", "ALL")),
        qos=_only(fields.get("AllowQos", "ALL")),
        max_time_s=seconds_of(fields.get("MaxTime", "UNLIMITED")),
        default_time_s=seconds_of(fields.get("DefaultTime", "NONE")),
        max_nodes=int(most) if most.isdigit() else None,
        preempt_mode=fields.get("PreemptMode", "OFF"),
        grace_s=float(fields.get("GraceTime", "0")),
    )


def _only(value: str) -> tuple[str, ...]:
    return () if value in ("ALL", "(null)", "") else tuple(value.split(","))


def _number(text: str) -> int:
    """Returns a count of `sinfo`; where nodes differ it says `64+`."""
    digits = text.rstrip("+")
    return int(digits) if digits.isdigit() else 0
