"""Export, from fabricated ranks' fragments to a folder that transformers loads; and every way in which fragments can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.artifact import ArtifactRecord
from schemas.canonical import canonical_json
from schemas.checkpoint import RankIndex
from schemas.errors import GateError, InputError, UnsafeFileError, VerificationError
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tasks.export import layout
from tasks.export.build import build
from tasks.export.job import load_commit
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.training_artifact import FOLDER, Weights, commit_files, halves, slices, tiny_llama, write_tokenizer, write_training

TEXTS = ["the water turns the wheel", "the wheel turns the stone", "naïve 水轮 🙂"]
VOCABULARY = 300


@pytest.fixture(scope="module")
def llama() -> tuple[dict[str, Any], dict[str, Any]]:
    return tiny_llama(vocab_size=VOCABULARY)


def work_on(root: Path, training: ArtifactRecord) -> InProcessWork:
    inputs = {Stage.TRAIN: training, Stage.TOKENIZER: write_tokenizer(root, TEXTS, vocab_size=VOCABULARY)}
    return InProcessWork(root, Stage.EXPORT, config_with(), inputs)


def small() -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {"a.weight": random.standard_normal((5, 7), dtype=np.float32), "b.weight": random.standard_normal(11, dtype=np.float32)}


def exported(work: InProcessWork) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in sorted((work.output_dir / "model").glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("cut", [halves, lambda weights: slices(weights, world_size=3)], ids=["zero2", "zero3"])
def test_loads_with_transformers_and_equals_the_assembled_weights(
    tmp_path: Path, llama: tuple[dict[str, Any], dict[str, Any]], precision: str, cut: Callable[[Weights], Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights, config = llama
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=cut(weights), precision=precision, model_config=config))
    draft = build(work)

    folder = tmp_path / work.key / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, torch.from_numpy(weights[name]).to(dtype)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight, "tied weights are stored once"
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == 0
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.decode(tokenizer.encode(TEXTS[2], add_special_tokens=False)) == TEXTS[2]
    assert draft.summary["num_parameters"] == sum(values.size for values in weights.values())
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {entry.path for entry in draft.files} == {f"model/{name}" for name in names}


def test_many_files_carry_an_index(tmp_path: Path, llama: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    weights, config = llama
    monkeypatch.setattr("tasks.export.job.plan_files", lambda tensors, *, dtype: layout.plan_files(tensors, dtype=dtype, max_file_bytes=8_000))
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights), precision="fp32", model_config=config))
    build(work)
    index = json.loads((work.output_dir / "model/model.safetensors.index.json").read_bytes())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == 4 * sum(values.size for values in weights.values())
    model = AutoModelForCausalLM.from_pretrained(work.output_dir / "model", local_files_only=True)
    np.testing.assert_array_equal(model.model.norm.weight.detach().numpy(), weights["model.norm.weight"])


def test_equal_bytes_when_built_twice_and_nothing_temporary_left(tmp_path: Path) -> None:
    weights = small()
    first = work_on(tmp_path / "one", write_training(tmp_path / "one", weights, cuts=halves(weights), model_config={"model_type": "llama"}))
    second = work_on(tmp_path / "two", write_training(tmp_path / "two", weights, cuts=halves(weights), model_config={"model_type": "llama"}))
    assert build(first).files == build(second).files
    assert list((tmp_path / "one").rglob(".tmp-*")) == []


def test_a_start_after_a_kill_accepts_what_lies_there(tmp_path: Path) -> None:
    weights = small()
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"}))
    files = build(work).files
    (tmp_path / work.layout.item("export", 0)).unlink()  # killed after the data, before the item's record
    assert build(work).files == files


def rewrite_index(root: Path, rank: int, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes a rank's index and writes it back; the caller commits anew, so only the fragments' meaning is wrong."""
    path = root / "train/test-000000000000" / FOLDER / f"rank-{rank:04d}.json"
    values = json.loads(path.read_bytes())
    change(values["fragments"])
    path.write_bytes(canonical_json(RankIndex.model_validate(values)))


def shift(fragments: list[dict[str, Any]]) -> None:
    mine = next(fragment for fragment in fragments if fragment["slot"] == "weight" and fragment["start"] > 0)
    mine["start"] -= 1


def drop(fragments: list[dict[str, Any]]) -> None:
    fragments.remove(next(fragment for fragment in fragments if fragment["slot"] == "weight"))


def rename(fragments: list[dict[str, Any]]) -> None:
    next(fragment for fragment in fragments if fragment["slot"] == "weight")["name"] = "c.weight"


def lengthen(fragments: list[dict[str, Any]]) -> None:
    [fragment for fragment in fragments if fragment["slot"] == "weight"][-1]["count"] += 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [(shift, "overlap"), (drop, "gap"), (rename, "does not list"), (lengthen, "the parameter has")],
    ids=["overlap", "gap", "unknown", "too long"],
)
def test_wrong_fragments_are_refused(tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], expected: str) -> None:
    weights = small()
    write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"})
    rewrite_index(tmp_path, 1, change)
    work = work_on(tmp_path, commit_files(tmp_path))
    with pytest.raises(VerificationError, match=expected):
        build(work)
    assert list(work.output_dir.rglob("*.safetensors")) == []


@pytest.mark.parametrize("name", ["rank-0000.bin", "rank-0001.bin", "rank-0000.json", "state.json", "model_config.json"])
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_flipped_bit_is_found_before_anything_is_made(tmp_path: Path, name: str, where: float) -> None:
    weights = small()
    training = write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"})
    path = tmp_path / training.key / FOLDER / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if where >= 0 else -1] ^= 1
    path.write_bytes(data)
    work = work_on(tmp_path, training)
    with pytest.raises(VerificationError, match=name.replace(".", r"\.")):
        build(work)
    assert not (work.output_dir / "model/config.json").exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    weights = small()
    training = write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"})
    path = tmp_path / training.key / FOLDER / "rank-0001.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VerificationError, match=r"rank-0001\.bin: .* the commit says"):
        build(work_on(tmp_path, training))


def test_a_damaged_commit_is_named(tmp_path: Path) -> None:
    weights = small()
    training = write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"})
    path = next((tmp_path / training.key / "commits").iterdir())
    path.write_bytes(path.read_bytes().replace(b'"step":40', b'"step":41'))
    with pytest.raises(VerificationError, match=r"step-00000040\.json"):
        build(work_on(tmp_path, training))


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "fp32"), (np.inf, "bf16"), (np.nan, "bf16"), (1e30, "fp16")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, precision: str) -> None:
    weights = small()
    weights["b.weight"][4] = value
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights), precision=precision, model_config={"model_type": "llama"}))
    with pytest.raises(GateError, match=r"b\.weight \(1 of 11\)"):
        build(work)


def test_a_model_without_a_configuration_is_refused(tmp_path: Path) -> None:
    weights = small()
    with pytest.raises(InputError, match=r"model\.factory"):
        build(work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights))))


def test_a_changed_tokenizer_file_is_named(tmp_path: Path) -> None:
    weights = small()
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"}))
    (work.input_dir(Stage.TOKENIZER) / "tokenizer_config.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match=r"tokenizer_config\.json"):
        build(work)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_flipped_byte_of_the_tokenizer_is_found_before_it_gets_a_name_and_can_be_mended(tmp_path: Path, name: str) -> None:
    weights = small()
    work = work_on(tmp_path, write_training(tmp_path, weights, cuts=halves(weights), model_config={"model_type": "llama"}))
    path = work.input_dir(Stage.TOKENIZER) / name
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"\n", b" ", 1))
    with pytest.raises(VerificationError, match=name.replace(".", r"\.")) as caught:
        build(work)
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert not (work.output_dir / "model" / name).exists()
    path.write_bytes(kept)
    build(work)
    assert (work.output_dir / "model" / name).read_bytes() == kept


PLACES = ("checkpoints", FOLDER, f"{FOLDER}/state.json", f"{FOLDER}/rank-0000.json", f"{FOLDER}/rank-0001.bin", f"{FOLDER}/model_config.json")


@pytest.mark.parametrize("place", [*PLACES, "commits", "commits/step-00000040.json"])
def test_nothing_is_read_through_a_link(tmp_path: Path, place: str) -> None:
    weights = small()
    training = write_training(tmp_path / "data", weights, cuts=halves(weights), model_config={"model_type": "llama"})
    (tmp_path / "data" / training.key / place).rename(tmp_path / "outside")
    (tmp_path / "data" / training.key / place).symlink_to(tmp_path / "outside")
    work = work_on(tmp_path / "data", training)
    with pytest.raises(UnsafeFileError, match="is a symbolic link") as caught:
        build(work)
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert not (work.output_dir / "model" / "config.json").exists()


@pytest.mark.parametrize("place", ["commits", "commits/step-00000040.json"])
def test_the_job_itself_reads_no_commit_through_a_link(tmp_path: Path, place: str) -> None:
    """The control half refuses first; a node may see another folder."""
    weights = small()
    training = write_training(tmp_path / "data", weights, cuts=halves(weights))
    folder = tmp_path / "data" / training.key
    load_commit(folder, name="commits/step-00000040.json", content_hash=training.content_hash)
    (folder / place).rename(tmp_path / "outside")
    with pytest.raises(VerificationError, match=r"step-00000040\.json: missing"):
        load_commit(folder, name="commits/step-00000040.json", content_hash=training.content_hash)
    (folder / place).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        load_commit(folder, name="commits/step-00000040.json", content_hash=training.content_hash)
