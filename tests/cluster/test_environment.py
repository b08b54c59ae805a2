"""What compute inherits, and what it must never see."""

import sys
from pathlib import Path

import pytest

from cluster.environment import Place, checkout, compute_environment

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY", "GITHUB_TOKEN")


def environment(inherited: dict[str, str], **extra: str) -> dict[str, str]:
    return compute_environment(inherited, extra=extra, project_dir="/home/ada/project", threads=3, python=sys.executable)


@pytest.mark.parametrize("name", SECRETS)
def test_credentials_do_not_pass(name: str) -> None:
    assert "canary" not in environment({name: "canary"}).values()


def test_what_compute_needs_passes() -> None:
    given = {"HOME": "/home/ada", "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "LC_ALL": "C.UTF-8", "HF_HOME": "/hf", "TMPDIR": "/tmp/ada"}
    assert environment(given).items() >= given.items()


def test_the_jobs_own_variables_win() -> None:
    assert environment({"NCCL_DEBUG": "INFO"}, NCCL_DEBUG="WARN", MINE="x").items() >= {"NCCL_DEBUG": "WARN", "MINE": "x"}.items()


def test_our_modules_come_first_and_neither_the_project_nor_the_working_directory_can_shadow_a_library() -> None:
    env = environment({"PYTHONPATH": "/site"})
    assert env["PYTHONPATH"].split(":") == [str(checkout()), "/site"]
    assert env["HEADRACE_PROJECT_DIR"] == "/home/ada/project"
    assert env["PYTHONSAFEPATH"] == "1"


def test_programs_beside_the_interpreter_are_found_first() -> None:
    assert environment({"PATH": "/usr/bin"})["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]


def test_threads() -> None:
    assert environment({"OMP_NUM_THREADS": "64"})["OMP_NUM_THREADS"] == "3"


def test_a_ranks_place_in_the_words_of_torch() -> None:
    place = Place(rank=5, world_size=8, local_rank=1, local_world_size=4, node_rank=1, master_addr="node1", master_port=29_500)
    assert place.variables() == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
