"""`headrace doctor` on Slurm: each finding on a cluster that has the fault, made with programs in place of Slurm's; and once on a real one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows import checkup_slurm
from flows.checkup import findings_of
from flows.checkup_slurm import check_modules, check_shared, judge_settings, slurm_findings
from flows.finding import Finding
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.config import RunConfig
from tests.fakes.in_process_work import config_with
from tests.fakes.tiny_pipeline import make_project

SETTINGS = "AccountingStorageEnforce = associations\nAccountingStorageType = accounting_storage/slurmdbd\nKillWait = 60 sec\nPreemptMode = OFF\n"
MAIN = {"PartitionName": "main", "Default": "YES", "State": "UP", "MaxTime": "UNLIMITED", "DefaultTime": "NONE"}
GPU = {"PartitionName": "gpu", "Default": "NO", "State": "UP", "MaxTime": "1-00:00:00", "DefaultTime": "01:00:00", "MaxNodes": "4"}
NODES = ("main|node1|64|515000|(null)|idle", *(f"gpu|node{number}|128|1000000|gpu:a100:8|mixed" for number in range(2, 6)))
RECIPE: Mapping[str, Any] = {
    "kind": "slurm",
    "queue": "gpu",
    "nodes": 4,
    "gpus_per_node": 8,
    "ranks_per_node": 8,
    "time_limit": "24h",
    "stages": {
        stage: {"queue": "main", "nodes": 1, "ranks_per_node": 4, "gpus_per_node": 0} for stage in ("validate", "tokenizer", "tokenize", "export")
    },
}


class Site:
    """Programs in place of Slurm's, each of which prints what it was told to; and no others on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.say("squeue", "slurm 24.05.3\n")
        self.say("scancel", "")
        self.say("sacct", "")
        self.say("sbatch", "")
        self.say("sacctmgr", "physics||\n")
        self.say("sinfo", "\n".join(NODES))
        self.configure()

    def say(self, name: str, text: str, *, fails: bool = False) -> None:
        (self.folder / f"{name}.txt").write_text(text)
        self._write(name, f"/bin/cat {self.folder}/{name}.txt" + (" >&2; exit 1" if fails else ""))

    def configure(self, *partitions: Mapping[str, str], settings: str = SETTINGS) -> None:
        lines = [" ".join(f"{key}={value}" for key, value in fields.items()) for fields in partitions or (MAIN, GPU)]
        (self.folder / "config.txt").write_text(settings)
        (self.folder / "partitions.txt").write_text("\n".join(lines) + "\n")
        self._write("scontrol", f'case "$*" in *config) /bin/cat {self.folder}/config.txt;; *) /bin/cat {self.folder}/partitions.txt;; esac')

    def _write(self, name: str, line: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.folder / name).chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    monkeypatch.setattr(checkup_slurm, "mounts_here", lambda: "server:/x / nfs4 rw 0 0\n")
    monkeypatch.setattr(checkup_slurm, "_OF_ONE_MACHINE", ())  # the tests' own folder is such a place
    return Site(folder)


def look(config: RunConfig | None = None) -> list[Finding]:
    return slurm_findings(config, project=Path("/home/me"), root="/shared/data", state=Path("/shared/state"))


def recipe(**cluster: Any) -> RunConfig:
    return config_with(
        training={"steps": 200, "global_batch_size": 256, "micro_batch_size": 4},
        state="/shared/state",
        tracking={"mlflow_uri": "http://mlflow:5000"},
        cluster={**RECIPE, **cluster},
    )


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all(found["mend"] for found in findings if found["level"] != "ok")
    return [(found["level"], found["subject"]) for found in findings if found["level"] != "ok"]


def test_a_cluster_without_faults(site: Site) -> None:
    findings = look(recipe())
    assert wrong(findings) == []
    said = {found["subject"]: found["what"] for found in findings}
    assert said["partition gpu"] == "is up, and offers what train, evaluate ask for"
    assert said["slurm jobs"] == "Slurm would take those of validate, tokenizer, tokenize, train, export, evaluate"
    assert said["slurm account"].endswith("may use physics")
    assert "slurm jobs" not in {found["subject"] for found in look(None)}  # without a recipe there are none to ask about


def test_commands_that_are_missing(site: Site) -> None:
    site.remove("sacct")
    assert wrong(look(recipe())) == [("warning", "slurm")]
    site.remove("scontrol", "sinfo")
    assert wrong(look(recipe())) == [("warning", "slurm")]
    site.remove("sbatch")
    (missing, *_) = look(recipe())
    assert (missing["level"], missing["what"]) == ("error", "sbatch not found on PATH")


def test_a_controller_that_does_not_answer(site: Site) -> None:
    site.say("squeue", "squeue: error: Unable to contact slurm controller", fails=True)
    findings = look(recipe())
    assert wrong(findings) == [("error", "slurm")]
    assert "Unable to contact slurm controller" in findings[-1]["what"]


def test_a_question_that_fails_ends_no_other(site: Site) -> None:
    (site.folder / "scontrol").write_text("#!/bin/sh\necho no scontrol here >&2\nexit 1\n")
    assert wrong(look(recipe())) == [("warning", "slurm.conf"), ("warning", "slurm partitions")]


@pytest.mark.parametrize(
    ("settings", "grace_s", "levels"),
    [
        ({"KillWait": "30 sec"}, 30.0, ["ok", "warning", "ok", "ok"]),
        ({"KillWait": "30 sec"}, 25.0, ["ok", "ok", "ok", "ok"]),
        ({"AccountingStorageType": "accounting_storage/none", "MinJobAge": "300 sec"}, 20.0, ["ok", "ok", "ok", "ok"]),
        ({"AccountingStorageType": "accounting_storage/none", "MinJobAge": "10 sec"}, 20.0, ["warning", "ok", "ok", "ok"]),
        ({"PreemptMode": "REQUEUE"}, 20.0, ["ok", "ok", "ok", "ok"]),
        ({"MaxJobCount": "20"}, 20.0, ["ok", "ok", "ok", "warning"]),
        ({"PreemptMode": "GANG,SUSPEND"}, 20.0, ["ok", "ok", "warning", "ok"]),
    ],
)
def test_settings_that_matter(settings: dict[str, str], grace_s: float, levels: list[str]) -> None:
    cluster = ClusterConfig.model_validate({"kind": "slurm", "grace_s": grace_s})
    found = judge_settings(settings, cluster)
    assert [finding["level"] for finding in found] == levels
    assert all(finding["mend"] for finding in found if finding["level"] != "ok")


def test_accounting_that_is_off_is_said() -> None:
    (accounting, *_) = judge_settings({"AccountingStorageType": "accounting_storage/none"}, ClusterConfig())
    assert "is off" in accounting["what"]


@pytest.mark.parametrize(("rows", "level"), [("", "error"), ("physics|0|\n", "error"), ("physics|0|\nlab||5\n", "ok")])
def test_a_user_whom_accounting_refuses(site: Site, rows: str, level: str) -> None:
    site.say("sacctmgr", rows)
    (found,) = [found for found in look() if found["subject"] == "slurm account"]
    assert found["level"] == level


@pytest.mark.parametrize(
    ("changes", "cluster", "says", "mend"),
    [
        ({}, {"queue": "gqu"}, "wanted by train, evaluate; there is none", "nearest: gpu"),
        ({}, {"queue": "gpu,nowhere"}, "wanted by train, evaluate; there is none", "set cluster.queue to one of main, gpu"),
        ({"PartitionName": "other"}, {}, "wanted by train, evaluate; there is none", "to one of main, other"),
        ({"State": "DRAIN"}, {}, "is DRAIN: it starts no jobs", "another cluster.queue"),
        ({"AllowGroups": "staff-of-another-lab"}, {}, "groups staff-of-another-lab only", "AllowGroups"),
        ({"AllowAccounts": "lab"}, {"extra_directives": ["--account=mine"]}, "--account=mine is none of them", '"--account=…"'),
        ({"AllowAccounts": "lab"}, {}, "account lab only; the recipe names none", '"--account=…"'),
        ({"MaxTime": "12:00:00"}, {}, "train, evaluate: 24 h 00 min are asked for, a job may take 12 h 00 min", "set cluster.time_limit: 720m"),
        ({}, {"time_limit": None}, "train, evaluate: a job ends after 1 h 00 min", "set cluster.time_limit: 60m"),
        ({"MaxNodes": "2"}, {}, "train: 4 nodes are asked for, a job may have 2", "set cluster.nodes: 2"),
        ({}, {"gpus_per_node": 16, "ranks_per_node": 8}, "0 of its 4 offer that; there are: 128 CPUs, 8 GPUs, 977G", "lower one of cluster.nodes"),
        ({}, {"memory": "2T"}, "0 of its 4 offer that", "lower one of cluster.nodes"),
        ({}, {"threads_per_rank": 17}, "train: 4 nodes with 136 CPUs", "cluster.threads_per_rank"),
        ({"PreemptMode": "CANCEL", "GraceTime": "20"}, {}, "a job that makes room has 20 s", "set cluster.grace_s: 15"),
    ],
)
def test_a_partition_that_does_not_fit(site: Site, changes: dict[str, str], cluster: dict[str, Any], says: str, mend: str) -> None:
    site.configure(MAIN, {**GPU, **changes})
    findings = look(recipe(**cluster))
    assert wrong(findings)
    found = [found for found in findings if found["level"] != "ok" and says in found["what"]]
    assert found, [found["what"] for found in findings]
    assert all(mend in each["mend"] for each in found[:1])


def test_the_key_that_is_to_be_changed_is_the_stages_own(site: Site) -> None:
    site.configure(GPU)
    (found,) = [found for found in look(recipe()) if found["subject"] == "partition main"]
    assert found["what"] == "wanted by validate, tokenizer, tokenize, export; there is none"
    assert "cluster.stages.validate.queue, cluster.stages.tokenizer.queue" in found["mend"]


def test_nodes_that_are_down(site: Site) -> None:
    site.say("sinfo", "\n".join((*NODES[:3], *(line.replace("mixed", "down*") for line in NODES[3:]))))
    findings = look(recipe())
    assert wrong(findings) == [("warning", "partition gpu")]
    assert any("2 that offer it are up; others are down*" in found["what"] for found in findings)


def test_a_recipe_without_a_queue_uses_the_default_and_needs_one(site: Site) -> None:
    config = recipe(queue=None, gpus_per_node=0, nodes=1, stages={})
    assert wrong(look(config)) == []
    site.configure({**MAIN, "Default": "NO"}, GPU)
    findings = look(config)
    assert wrong(findings)[0] == ("error", "partition")
    assert "there is none by default" in findings[-1]["what"]


def test_what_slurm_itself_says_to_a_job(site: Site) -> None:
    site.say("sbatch", "sbatch: error: AssocMaxSubmitJobLimit\nallocation failure: Job violates accounting/QOS policy\n", fails=True)
    findings = look(recipe())
    assert wrong(findings) == [("error", f"job of {stage}") for stage in ("validate", "tokenizer", "tokenize", "train", "export", "evaluate")]
    assert findings[-1]["what"] == ("Slurm would not take it: AssocMaxSubmitJobLimit allocation failure: Job violates accounting/QOS policy")


def test_jobs_of_a_wrong_partition_are_not_asked_about(site: Site) -> None:
    site.say("sbatch", "no", fails=True)
    site.configure(MAIN, {**GPU, "State": "DOWN"})
    subjects = [subject for _, subject in wrong(look(recipe()))]
    assert subjects == ["partition gpu", "job of validate", "job of tokenizer", "job of tokenize", "job of export"]


def test_places_that_nodes_do_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup_slurm, "_OF_ONE_MACHINE", (str(tmp_path / "own"),))
    kinds = {"shared": "lustre", "memory": "tmpfs", "disk": "ext4"}
    mounts = "".join(f"x {tmp_path}/{name} {kind} rw 0 0\n" for name, kind in kinds.items())
    for name in kinds:
        (tmp_path / name).mkdir()
    paths = {name: tmp_path / name / "deeper" for name in ("own", *kinds)}
    found = {finding["what"].rpartition(": ")[2]: finding for finding in check_shared(paths, mounts=mounts)}
    assert {name: finding["level"] for name, finding in found.items()} == {"own": "warning", "shared": "ok", "memory": "warning", "disk": "warning"}
    assert str(tmp_path / "disk" / "deeper") in found["disk"]["mend"]


def test_databases_that_nodes_share(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    (found,) = checkup_slurm.check_databases(recipe(), state=Path("/shared"), mounts="server:/x / nfs4 rw 0 0\n")
    assert (found["level"], found["mend"]) == ("warning", "set PREFECT_API_URL to servers of yours")
    (found,) = checkup_slurm.check_databases(None, state=Path("/shared"), mounts="server:/x / nfs4 rw 0 0\n")
    assert found["mend"] == "set tracking.mlflow_uri and PREFECT_API_URL to servers of yours"
    assert checkup_slurm.check_databases(None, state=Path("/shared"), mounts="/dev/sda / ext4 rw 0 0\n") == []


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    (found,) = check_shared({"python /shared/venv/bin/python": tmp_path / "python"}, mounts="server:/x / nfs4 rw 0 0\n")
    assert (found["level"], found["what"]) == ("warning", "python /shared/venv/bin/python is not on this machine; nodes need it")


def test_a_module_command_that_a_batch_shell_would_not_have(site: Site, tmp_path: Path) -> None:
    patterns = (f"{tmp_path}/*module*.sh",)
    assert check_modules(recipe(setup=["export A=1"]), patterns=patterns) == []
    (found,) = check_modules(recipe(setup=["export A=1", "module load cuda"]), patterns=patterns)
    assert (found["level"], found["what"].partition(":")[0]) == ("warning", "`module load cuda`")
    (tmp_path / "modules.sh").touch()
    (found,) = check_modules(recipe(setup=["module load cuda"]), patterns=patterns)
    assert (found["level"], found["what"]) == ("ok", f"`module load cuda`: {tmp_path}/modules.sh defines module")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_real_cluster(slurm_cluster: Any, tmp_path: Path) -> None:
    cluster = {"kind": "slurm", "queue": "gpu", "nodes": 2, "gpus_per_node": 2, "ranks_per_node": 2, "time_limit": "1h", "lost_after_s": 20.0}
    project = make_project(tmp_path / "project", changes={"cluster": cluster})
    before = slurm_cluster.ask("squeue", "--noheader", "--states=all", "--format=%A")
    findings = project.answer("doctor", "tiny.yaml")["findings"]
    said = {finding["subject"]: finding["what"] for finding in findings}
    assert said["slurm jobs"] == "Slurm would take those of validate, tokenizer, tokenize, train, export, evaluate"
    assert said["partition gpu"].startswith("is up")
    assert said["slurm accounting"].startswith("is off")
    assert slurm_cluster.ask("squeue", "--noheader", "--states=all", "--format=%A") == before, "nothing was submitted"
    for key, value, subject in (("queue", "closed", "partition closed"), ("queue", "gqu", "partition gqu"), ("nodes", 9, "partition gpu")):
        other = make_project(tmp_path / subject, changes={"cluster": {**cluster, key: value}})
        answer = other.here("doctor", "tiny.yaml", "--json")
        assert answer.code == 2
        assert subject in {finding["subject"] for finding in json.loads(answer.out)["findings"] if finding["level"] == "error"}


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_refuses_what_looked_right(slurm_cluster: Any, tmp_path: Path) -> None:
    """An option of the site's own, which only Slurm can judge."""
    cluster = {"kind": "slurm", "queue": "main", "extra_directives": ["--constraint=no-such-feature"]}
    answer = make_project(tmp_path / "project", changes={"cluster": cluster}).here("doctor", "tiny.yaml", "--json")
    refused = [finding for finding in json.loads(answer.out)["findings"] if finding["subject"] == "job of train"]
    assert (answer.code, len(refused)) == (2, 1)
    assert "eature" in refused[0]["what"]


def test_without_a_recipe_the_cluster_is_named(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "slurm grace" in {finding["subject"] for finding in findings_of(None, ClusterKind.SLURM)}
    assert "slurm grace" not in {finding["subject"] for finding in findings_of(None)}
