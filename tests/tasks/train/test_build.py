"""The control half: what it refuses before anything runs, how it shapes the gang, and a whole build with real ranks."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from cluster.layout import ArtifactLayout, step_name
from cluster.storage import AlreadyExistsError, FileStorage, file_entry
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.config import RunConfig
from schemas.errors import ConfigError, UnsafeFileError, VerificationError
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tasks.train.build import build, check_training_data, raw_deepspeed_section

MakeConfig = Callable[..., RunConfig]


def test_tokens_that_do_not_fit_are_refused(make_config: MakeConfig, inputs: Any) -> None:
    config = make_config(model={"config": {"model_type": "llama", "vocab_size": 300}})
    check_training_data(config, inputs.manifest)
    with pytest.raises(ConfigError, match="the tokenizer has 301 ids"):
        check_training_data(config, inputs.manifest.model_copy(update={"vocab_size": 301}))
    with pytest.raises(ConfigError, match="no training sequence"):
        check_training_data(config, inputs.manifest.model_copy(update={"shards": ()}))


def test_the_raw_section_is_read_from_its_file(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"communication_data_type": "fp32"}')
    assert raw_deepspeed_section(make_config(deepspeed=str(path))) == {"communication_data_type": "fp32"}
    assert raw_deepspeed_section(make_config(deepspeed={"communication_data_type": "fp32"})) is None
    for text, words in (("[1]", "must hold a JSON object"), ("{", "cannot be read")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            raw_deepspeed_section(make_config(deepspeed=str(path)))


class GangWork:
    """What `build` asks of its `Work`, with ranks from the rank server."""

    def __init__(self, gang: Any, config: RunConfig, inputs: Any) -> None:
        self.config, self.gang, self._inputs = config, gang, inputs
        self.inputs = {stage: SimpleNamespace(key=stage.value, content_hash=stage.value, files=(inputs.entries[stage],)) for stage in inputs.dirs}
        self.identity = SimpleNamespace(inputs={stage.value: stage.value for stage in inputs.dirs}, outside_files=())
        self.storage = FileStorage(gang.artifact_dir.parent.parent)
        self.key = f"train/{gang.artifact_dir.name}"
        self.layout = ArtifactLayout(self.key)
        self.output_dir = gang.artifact_dir
        self.notes: list[str] = []
        self.gangs: list[Mapping[str, Any]] = []
        self.cleared = 0

    def made(self, *files: FileEntry) -> Path:
        folder: Path = self.output_dir
        return folder

    def input_dir(self, stage: Stage, *files: FileEntry) -> Path:
        folder: Path = self._inputs.dirs[stage]
        return folder

    def note(self, message: str) -> None:
        self.notes.append(message)

    def publish_json(self, name: str, value: Any) -> FileEntry:
        data = canonical_json(value)
        try:
            self.storage.create_exclusive(f"{self.key}/{name}", data)
        except AlreadyExistsError:
            assert self.storage.read(f"{self.key}/{name}") == data
        return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())

    def clear_up(self) -> None:
        self.cleared += 1

    def run_gang(self, **request: Any) -> None:
        self.gangs.append(request)
        assert not request["is_complete"](), "nothing is run that is complete"
        self.gang.run(self.config, world_size=request["num_nodes"] * request["ranks_per_node"], options=request["options"])
        assert request["is_complete"]()


class WritingGang:
    """Ranks that do nothing but commit the last step."""

    def __init__(self, artifact_dir: Path, *, step: int) -> None:
        self.artifact_dir, self.step, self.starts = artifact_dir, step, 0

    def run(self, _config: RunConfig, *, world_size: int, options: Mapping[str, Any]) -> None:
        storage, layout = FileStorage(self.artifact_dir.parent), ArtifactLayout(self.artifact_dir.name)
        folder = self.artifact_dir / f"checkpoints/{step_name(self.step)}.e{self.starts:06d}"
        folder.mkdir(parents=True)
        state = TrainingState(
            step=self.step, optimizer_step=self.step, skipped_steps=(), loss_scale={}, parameters=(), seed=7, zero_stage=2, precision="bf16"
        )
        (folder / "state.json").write_bytes(canonical_json(state))
        entry = file_entry(folder / "state.json", relative_to=folder)
        relative = folder.relative_to(self.artifact_dir).as_posix()
        commit = CommitRecord(step=self.step, epoch=self.starts, folder=relative, files=(entry,), world_size=world_size, committed_at=0.0).sealed()
        storage.delete(layout.commit(self.step))  # a damaged one is withdrawn
        storage.create_exclusive(layout.commit(self.step), commit.to_bytes())
        self.starts += 1


def test_a_job_that_ended_well_is_complete_only_while_its_final_checkpoint_verifies(make_config: MakeConfig, inputs: Any, tmp_path: Path) -> None:
    gang = WritingGang(tmp_path / "train" / "tiny-000000000001", step=4)
    work = GangWork(gang, make_config(training__steps=4), inputs)
    draft = build(work)  # type: ignore[arg-type]  # a stand-in
    [request] = work.gangs
    assert request["is_complete"]()
    (work.output_dir / draft.summary["checkpoint"] / "state.json").write_bytes(b"")
    assert not request["is_complete"](), "so the supervisor starts another attempt"
    assert build(work).content_hash == draft.content_hash  # type: ignore[arg-type]
    assert (gang.starts, work.cleared) == (2, 0)
    build(work)  # type: ignore[arg-type]
    assert (gang.starts, work.cleared) == (2, 1), "who saw the job through may have died before it had cleared up"


def test_a_pretrained_model_of_other_content_is_another_trajectory(make_config: MakeConfig, inputs: Any, tmp_path: Path) -> None:
    for number, weights in enumerate(("some", "other"), start=1):
        work = GangWork(WritingGang(tmp_path / "train" / f"tiny-00000000000{number}", step=4), make_config(training__steps=4), inputs)
        work.identity.inputs["pretrained"] = weights
        build(work)  # type: ignore[arg-type]  # a stand-in
        assert len(work.gangs) == 1
        assert work.notes == [], "nothing is taken over"


@pytest.mark.slow
def test_a_build_is_idempotent_and_a_longer_one_goes_on_from_it(train_gang: Callable[[str], Any], make_config: MakeConfig, inputs: Any) -> None:
    config = make_config(training__steps=4, cluster__ranks_per_node=2, deepspeed={"zero_optimization": {"overlap_comm": False}})
    work = GangWork(train_gang("tiny-000000000001"), config, inputs)
    draft = build(work)  # type: ignore[arg-type]  # a stand-in
    again = build(work)  # type: ignore[arg-type]
    assert again == draft
    assert len(work.gangs) == 1, "what is committed is not trained again"
    summary = draft.summary
    assert (summary["steps"], summary["world_size"], summary["zero_stage"], summary["num_restarts"]) == (4, 2, 2, 0)
    assert summary["tokens"] == 4 * 12 * 16
    assert 0 < summary["loss"] < 5
    names = {Path(entry.path).name for entry in draft.files}
    assert names == {"trajectory.json", "state.json", "model_config.json", "rank-0000.bin", "rank-0000.json", "rank-0001.bin", "rank-0001.json"}
    state = json.loads((work.output_dir / summary["checkpoint"] / "model_config.json").read_bytes())
    assert (state["model_type"], state["vocab_size"], state["architectures"]) == ("llama", 64, ["LlamaForCausalLM"])

    longer = GangWork(train_gang("tiny-000000000002"), make_config(training__steps=6, cluster__ranks_per_node=2), inputs)
    extended = build(longer)  # type: ignore[arg-type]
    assert "goes on from step 4" in longer.gang.logs()
    assert "goes on from step 4 of train/tiny-000000000001" in longer.notes[0]
    alone = GangWork(train_gang("other-000000000003"), make_config(name="other", training__steps=6, cluster__ranks_per_node=2), inputs)
    assert build(alone).content_hash == extended.content_hash  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_final_checkpoint_that_was_damaged_is_written_again(train_gang: Callable[[str], Any], make_config: MakeConfig, inputs: Any) -> None:
    config = make_config(training__steps=4, cluster__ranks_per_node=1)
    work = GangWork(train_gang("tiny-000000000001"), config, inputs)
    draft = build(work)  # type: ignore[arg-type]
    (work.output_dir / draft.summary["checkpoint"] / "rank-0000.bin").write_bytes(b"")
    again = build(work)  # type: ignore[arg-type]
    assert again.content_hash == draft.content_hash
    assert again.summary["checkpoint"] != draft.summary["checkpoint"]
    shutil.rmtree(work.output_dir / "commits")
    work.run_gang = lambda **_: None  # type: ignore[method-assign]
    with pytest.raises(VerificationError, match="missing or damaged"):
        build(work)  # type: ignore[arg-type]


def test_a_manifest_that_changed_is_refused_before_any_rank_is_started(make_config: MakeConfig, inputs: Any, tmp_path: Path) -> None:
    dirs = {stage: shutil.copytree(folder, tmp_path / "inputs" / stage.value) for stage, folder in inputs.dirs.items()}
    manifest = dirs[Stage.TOKENIZE] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"vocab_size":64', b'"vocab_size":65'))
    other = SimpleNamespace(dirs=dirs, entries=inputs.entries)
    work = GangWork(WritingGang(tmp_path / "train" / "tiny-000000000001", step=4), make_config(training__steps=4), other)
    with pytest.raises(VerificationError, match=r"manifest\.json") as caught:
        build(work)  # type: ignore[arg-type]  # a stand-in
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert work.gangs == []


def test_ranks_are_told_what_every_input_must_be(make_config: MakeConfig, inputs: Any, tmp_path: Path) -> None:
    work = GangWork(WritingGang(tmp_path / "train" / "tiny-000000000001", step=4), make_config(training__steps=4), inputs)
    code = FileEntry(path="models.py", size=1, xxh3="0")
    work.identity.outside_files = (code,)
    build(work)  # type: ignore[arg-type]  # a stand-in
    options = work.gangs[0]["options"]
    assert FileEntry.model_validate(options["manifest"]) == inputs.entries[Stage.TOKENIZE]
    assert FileEntry.model_validate(options["tokenizer"]) == inputs.entries[Stage.TOKENIZER]
    assert [FileEntry.model_validate(entry) for entry in options["outside_files"]] == [code]


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-00000004.e000000"])
def test_a_final_checkpoint_behind_a_link_is_refused(make_config: MakeConfig, inputs: Any, tmp_path: Path, place: str) -> None:
    gang = WritingGang(tmp_path / "train" / "tiny-000000000001", step=4)
    work = GangWork(gang, make_config(training__steps=4), inputs)
    build(work)  # type: ignore[arg-type]  # a stand-in
    (work.output_dir / place).rename(tmp_path / "outside")
    (work.output_dir / place).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        build(work)  # type: ignore[arg-type]
    assert gang.starts == 1
