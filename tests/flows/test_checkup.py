"""`headrace doctor`: each finding on a machine that has the fault, made with files."""

import os
from pathlib import Path

import pytest

from flows import checkup, checkup_storage
from schemas.config import RunConfig


def config(**training: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "corpus": {"sources": ["/x"]},
            "model": {"config": {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}},
            "training": {"steps": 1000, "global_batch_size": 8, **training},
        }
    )


def levels(findings: list[dict[str, str]]) -> list[str]:
    return [finding["level"] for finding in findings]


def test_this_machine_has_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = checkup.findings_of(None)
    assert {"python", "memory", "cores", "ports", "storage.root", "state"} <= {finding["subject"] for finding in findings}
    assert "error" not in levels([finding for finding in findings if finding["subject"] != "packages"])
    assert all(finding["mend"] for finding in findings if finding["level"] != "ok")
    assert list(tmp_path.iterdir()) == []  # it only looks


def test_packages_against_the_lock(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("# made by us\npytest==0.0.1\nno-such-package==1.0\npydantic==2.0 ; python_version > '3'\n")
    findings = checkup.check_packages(tmp_path)
    assert [(finding["level"], finding["what"].split()[0]) for finding in findings] == [
        ("warning", "pytest"),
        ("error", "no-such-package"),
        ("warning", "pydantic"),
    ]
    assert levels(checkup.check_packages(tmp_path / "nowhere")) == ["warning"]


def test_a_model_that_does_not_fit_is_an_error() -> None:
    finding = checkup.check_memory(config())
    assert finding["level"] == "error"
    assert "training.zero_stage" in finding["mend"]


def test_a_model_on_gpus_is_not_judged_by_main_memory() -> None:
    on_gpus = config().model_copy(update={"cluster": config().cluster.model_copy(update={"gpus_per_node": 8})})
    assert checkup.check_memory(on_gpus)["level"] == "ok"


def test_a_disk_that_is_too_small_for_the_checkpoints(tmp_path: Path) -> None:
    huge = config(steps=10**9).model_copy(update={"checkpoint": config().checkpoint.model_copy(update={"keep_last": 10**6})})
    assert checkup.check_disk(tmp_path / "not" / "yet", subject="storage.root", config=huge)["level"] == "error"


def test_leftovers_in_shared_memory_are_named(tmp_path: Path) -> None:
    assert checkup.check_shared_memory(tmp_path)["level"] in ("ok", "warning")
    (tmp_path / "deepspeed_allreduce_buffer_0").write_bytes(b"x" * 1000)
    (tmp_path / "somebody_elses").write_bytes(b"x")
    finding = checkup.check_shared_memory(tmp_path)
    assert finding["level"] == "warning"
    assert finding["mend"] == f"rm {tmp_path}/deepspeed_allreduce_buffer_0"
    assert checkup.check_shared_memory(tmp_path / "missing")["level"] == "warning"


def test_what_a_living_process_maps_is_no_leftover(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "torch_12345"
    path.write_bytes(b"x" * 4096)
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 4096):
        assert "leftover" not in checkup.check_shared_memory(tmp_path)["what"]


def test_what_goes_while_it_is_looked_at_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_12345").touch()
    monkeypatch.setattr(checkup, "_is_in_use", lambda path: path.unlink())
    assert "leftover" not in checkup.check_shared_memory(tmp_path)["what"]
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_keeps_its_promises(tmp_path: Path) -> None:
    assert levels(checkup.check_storage(tmp_path / "to" / "be" / "made")) == ["ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("call", "says"), [("link", "link(2) fails"), ("fsync", "fsync of a")])
def test_a_storage_that_breaks_a_promise(tmp_path: Path, call: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, call, refuse)
    findings = checkup.check_storage(tmp_path)
    assert set(levels(findings)) == {"error"}
    assert says in findings[0]["what"]
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_overwrites_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))
    assert "overwrote" in checkup.check_storage(tmp_path)[0]["what"]


def test_state_on_a_network_disk_is_right_where_nodes_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup_storage, "mounts_here", lambda: f"server:/x {tmp_path} nfs4 rw 0 0\n")
    assert levels(checkup.check_file_system(tmp_path, subject="state")) == ["warning"]
    assert checkup.check_file_system(tmp_path, subject="state", is_shared=True) == []
    assert checkup.check_file_system(tmp_path, subject="storage.root") == []


@pytest.mark.parametrize(("mode", "found"), [(0o755, []), (0o775, ["warning"]), (0o2775, ["ok"]), (0o2755, [])])
def test_a_store_for_a_group_is_setgid(tmp_path: Path, mode: int, found: list[str]) -> None:
    root = tmp_path / "data"
    assert checkup.check_sharing(root) == []
    root.mkdir()
    root.chmod(mode)
    assert levels(checkup.check_sharing(root)) == found
