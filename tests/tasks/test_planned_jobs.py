"""The jobs that a plan foresees: those that a run submits."""

import re
from pathlib import Path

import pytest

from cluster.attempt import read_spec
from cluster.launchers.slurm import SlurmLauncher
from cluster.launchers.slurm_queue import SlurmError
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import FileStorage
from cluster.supervisor import run_job
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import ConfigError, UnreachableError
from schemas.exit_code import ExitCode
from schemas.plan import Action, PlannedStage
from schemas.stage import Stage
from tasks.planned_jobs import planned_jobs, planned_scripts
from tests.fakes.in_process_work import config_with
from tests.fakes.scripted_launcher import StillClock
from tests.fakes.tiny_pipeline import Project

KEY = "train/test-0123456789ab"


def planned(stage: Stage, action: Action, key: str = "") -> PlannedStage:
    return PlannedStage(stage=stage, action=action, key=key, fingerprint="", reasons=("",))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return config_with(state=str(tmp_path / "state"), cluster={"kind": "slurm", "queue": "gpu", "ranks_per_node": 2, "nodes": 2})


def test_what_is_reused_submits_nothing_and_what_depends_has_a_placeholder(config: RunConfig, tmp_path: Path) -> None:
    stages = [planned(Stage.VALIDATE, Action.REUSE, "validate/x"), planned(Stage.TRAIN, Action.DEPENDS), planned(Stage.REGISTER, Action.DEPENDS)]
    scripts = planned_scripts(config, stages, storage=FileStorage(tmp_path), project_dir=tmp_path)
    assert list(scripts) == [Stage.TRAIN]
    assert "train/test-FINGERPRINT/attempts/job-0000" in scripts[Stage.TRAIN]


def test_only_where_jobs_are_scripts(tmp_path: Path) -> None:
    stages = [planned(Stage.TRAIN, Action.BUILD, KEY)]
    assert planned_scripts(config_with(), stages, storage=FileStorage(tmp_path), project_dir=tmp_path) == {}


def test_manifests_are_planned_the_same_way_and_all_that_is_wrong_with_them_is_said_at_once(tmp_path: Path) -> None:
    wrong = config_with(
        state=str(tmp_path / "state"),
        cluster={"kind": "kubernetes", "kubernetes": {"stages": {"export": {"pod_patch": {"spec": {"hostNetwrk": True}}}}}},
    )
    stages = [planned(Stage.TRAIN, Action.DEPENDS), planned(Stage.EXPORT, Action.DEPENDS)]
    with pytest.raises(ConfigError) as caught:
        planned_scripts(wrong, stages, storage=FileStorage(tmp_path), project_dir=tmp_path)
    told = [problem.key for problem in caught.value.problems]
    assert told == ["cluster.image", "storage.root", "cluster.kubernetes.stages.export.pod_patch.spec.hostNetwrk"]
    right = config_with(
        state=str(tmp_path / "state"),
        cluster={"kind": "kubernetes", "image": "x:1", "kubernetes": {"volumes": [{"mount": str(tmp_path), "claim": "c"}]}},
    )
    scripts = planned_scripts(right, stages, storage=FileStorage(tmp_path), project_dir=tmp_path)
    assert list(scripts) == [Stage.TRAIN, Stage.EXPORT]
    assert "headrace/key: RUN-train-KEY" in scripts[Stage.TRAIN]


def test_the_planned_script_is_the_one_that_is_submitted_and_kept(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the run and the end of the key, which nobody knows before."""
    storage = FileStorage(tmp_path / "data")
    planned_script = planned_scripts(config, [planned(Stage.TRAIN, Action.BUILD, KEY)], storage=storage, project_dir=tmp_path)[Stage.TRAIN]
    request = planned_jobs(config, storage_root=storage.url, project_dir=tmp_path, keys={Stage.TRAIN: KEY})[Stage.TRAIN]
    request = request.model_copy(update={"run_id": "demo-7f3a", "key": "", "scratch_dir": str(tmp_path / "state" / "scratch")})
    submitted: list[str] = []

    def sbatch(argv: tuple[str, ...], *, stdin: str = "", **_: object) -> str:
        if argv[0] != "sbatch":
            return ""
        submitted.append(stdin)
        close(storage, attempt)
        return "4711\n"

    attempt = ArtifactLayout(KEY).attempt("", 0)
    run_job(request, storage=storage, launcher=SlurmLauncher(config.cluster, run=sbatch))
    (script,) = submitted
    assert re.sub(r"demo-7f3a-train-[0-9a-f]{6}", "RUN-train-KEY", script) == planned_script
    assert storage.read(attempt.submission).decode() == script


def close(storage: FileStorage, attempt: AttemptLayout) -> None:
    """What a job leaves that has done its work."""
    key = read_spec(storage, attempt).key
    record = ExitRecord(key=key, exit_code=ExitCode.DONE, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=0.0)
    storage.create_exclusive(attempt.exit, canonical_json(record))


def test_the_script_is_kept_before_it_is_submitted_and_the_first_one_stands(config: RunConfig, tmp_path: Path) -> None:
    storage, attempt = FileStorage(tmp_path / "data"), ArtifactLayout(KEY).attempt("", 0)
    request = planned_jobs(config, storage_root=storage.url, project_dir=tmp_path, keys={Stage.TRAIN: KEY})[Stage.TRAIN]

    def refuse(argv: tuple[str, ...], **_: object) -> str:
        if argv[0] == "sbatch":
            raise SlurmError("socket timed out")
        return ""

    for _ in range(2):
        clock = StillClock()
        with pytest.raises(UnreachableError, match="socket timed out"):
            run_job(request, storage=storage, launcher=SlurmLauncher(config.cluster, run=refuse), clock=clock, sleep=clock.sleep)
    assert read_spec(storage, attempt).key in storage.read(attempt.submission).decode()


def test_the_next_attempts_number_is_in_the_script(config: RunConfig, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "data")
    spec = planned_jobs(config, storage_root=storage.url, project_dir=tmp_path, keys={Stage.TRAIN: KEY})[Stage.TRAIN]
    storage.create_exclusive(ArtifactLayout(KEY).attempt("", 2).spec, canonical_json(spec.model_copy(update={"attempt": 2})))
    scripts = planned_scripts(config, [planned(Stage.TRAIN, Action.CONTINUE, KEY)], storage=storage, project_dir=tmp_path)
    assert f"{KEY}/attempts/job-0003 " in scripts[Stage.TRAIN]


@pytest.mark.slow
def test_every_stage_begins_with_the_job_that_is_planned(finished: Project) -> None:
    """By what a whole run left: names of jobs, and how many items those have whose number does not depend on the text."""
    storage = FileStorage(finished.root)
    jobs = planned_jobs(config_with(), storage_root=storage.url, project_dir=finished.folder)
    for stage, foreseen in jobs.items():
        layout = ArtifactLayout(finished.artifact(stage.value).relative_to(finished.root).as_posix())
        spec = read_spec(storage, layout.attempt(foreseen.step_name, 0))
        assert spec.argv == foreseen.argv
        assert spec.kind is foreseen.kind
        if stage in (Stage.TOKENIZER, Stage.EXPORT, Stage.EVALUATE):
            assert spec.num_items == foreseen.num_items
    assert not any((finished.artifact("register") / "attempts").glob("*"))
