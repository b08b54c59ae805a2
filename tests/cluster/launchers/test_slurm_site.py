"""What Slurm says of itself, parsed: answers of real clusters."""

import pytest

from cluster.launchers.slurm_site import Node, gpus_of, mib_of, parse_nodes, parse_partitions, parse_settings, seconds_of

SETTINGS = """Configuration data as of 2026-11-22T09:00:00
AccountingStorageType   = accounting_storage/none
KillWait                = 30 sec
PreemptMode             = OFF
SlurmctldHost[0]        = localhost(127.0.0.1)

Slurmctld(primary) at localhost is UP
"""
PARTITIONS = (
    "PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE GraceTime=0 "
    "MaxNodes=UNLIMITED MaxTime=UNLIMITED PreemptMode=OFF State=UP TotalCPUs=12 TotalNodes=3\n"
    "PartitionName=short AllowGroups=staff,lab AllowAccounts=physics AllowQos=normal,high Default=NO DefaultTime=00:30:00 GraceTime=60 "
    "MaxNodes=2 MaxTime=1-12:00:00 PreemptMode=REQUEUE State=DRAIN TotalNodes=3\n"
)


def test_settings() -> None:
    settings = parse_settings(SETTINGS)
    assert settings["KillWait"] == "30 sec"
    assert settings["AccountingStorageType"] == "accounting_storage/none"


def test_partitions() -> None:
    found = parse_partitions(PARTITIONS)
    main, short = found["main"], found["short"]
    assert (main.is_default, main.state, main.groups, main.max_time_s, main.default_time_s, main.max_nodes) == (True, "UP", (), None, None, None)
    assert (short.is_default, short.state, short.groups, short.accounts, short.qos) == (
        False,
        "DRAIN",
        ("staff", "lab"),
        ("physics",),
        ("normal", "high"),
    )
    assert (short.max_time_s, short.default_time_s, short.max_nodes, short.preempt_mode, short.grace_s) == (129_600.0, 1800.0, 2, "REQUEUE", 60.0)


def test_nodes() -> None:
    text = "gpu|node1|64|515000|gpu:a100:8(S:0-1)|idle\ngpu|node2|64+|515000+|(null)|down*\nnonsense\n"
    assert parse_nodes(text) == (Node("gpu", "node1", 64, 515_000, 8, "idle"), Node("gpu", "node2", 64, 515_000, 0, "down*"))


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("idle", True),
        ("mixed", True),
        ("allocated", True),
        ("idle~", True),
        ("idle*", False),
        ("down*", False),
        ("drained", False),
        ("draining", False),
    ],
)
def test_usable_nodes(state: str, usable: bool) -> None:
    assert Node("gpu", "n", 1, 1, 0, state).is_usable is usable


@pytest.mark.parametrize(
    ("gres", "gpus"), [("gpu:2", 2), ("gpu:a100:8(S:0-1)", 8), ("nvme:4,gpu:v100:4,gpu:a100:2", 6), ("(null)", 0), ("shard:gpu:3", 0), ("", 0)]
)
def test_gpus(gres: str, gpus: int) -> None:
    assert gpus_of(gres) == gpus


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("NONE", None),
        ("30 sec", 30.0),
        ("15", 900.0),
        ("10:30", 630.0),
        ("02:00:00", 7200.0),
        ("1-12:00:00", 129_600.0),
        ("2-6", 194_400.0),
    ],
)
def test_spans_of_time(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(("memory", "mib"), [("900G", 921_600.0), ("2T", 2_097_152.0), ("4000", 4000.0), ("4000M", 4000.0), ("1024K", 1.0)])
def test_memory(memory: str, mib: float) -> None:
    assert mib_of(memory) == mib
