"""The stage as a whole: trained or taken over, measured, judged, and loadable by transformers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from schemas.artifact import content_hash_of
from schemas.errors import GateError, InputError, VerificationError
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tasks.entry import run_item
from tasks.recorded_file import entry_of
from tasks.tokenizer.build import build
from tasks.tokenizer.job import run
from tests.fakes.in_process_work import Documents, InProcessWork, config_with, write_corpus

CHINESE = ["水车是利用水流的动力来工作的机械。磨坊里的石磨把谷物磨成面粉,水渠把河水引到水车上。" * 3, "水流推动水车,水车带动石磨。"]


def work_on(root: Path, documents: Documents, **tokenizer: object) -> InProcessWork:
    return InProcessWork(
        root,
        Stage.TOKENIZER,
        config_with(tokenizer={"vocab_size": 320, "max_tokens_per_word": 50} | tokenizer),
        {Stage.VALIDATE: write_corpus(root, documents)},
    )


def test_it_is_trained_on_the_training_split_and_measured_on_the_validation_split(tmp_path: Path, texts: list[str]) -> None:
    work = work_on(tmp_path, {(0, "train"): texts[:250], (1, "train"): texts[250:280], (1, "validation"): texts[280:]})
    draft = build(work)
    report = json.loads((work.output_dir / "report.json").read_bytes())
    assert report == draft.summary
    assert (report["kind"], report["trainer"], report["engine"]) == ("trained", "gigatoken", "gigatoken")
    assert (report["split"], report["documents"], report["trained_on_documents"]) == ("validation", 20, 280)
    assert report["round_trip_share"] == 1.0
    assert report["vocab_size"] == 320
    assert report["text_bytes"] == sum(len(text.encode()) for text in texts[280:])
    assert report["bytes_per_token"] == pytest.approx(report["text_bytes"] / report["tokens"], abs=1e-5)
    assert {file.path for file in draft.files} == {"tokenizer.json", "tokenizer_config.json", "report.json"}


def test_the_content_hash_covers_what_encodes_and_not_the_report(tmp_path: Path, texts: list[str]) -> None:
    first = build(work_on(tmp_path / "a", {(0, "train"): texts[:250], (0, "validation"): texts[250:]}))
    second = build(work_on(tmp_path / "b", {(0, "train"): texts[:250], (0, "validation"): texts[260:]}))
    assert first.content_hash == second.content_hash
    assert content_hash_of(first.files) != content_hash_of(second.files)


def test_without_a_validation_split_it_is_measured_on_the_training_split(tmp_path: Path, texts: list[str]) -> None:
    assert build(work_on(tmp_path, {(0, "train"): texts})).summary["split"] == "train"


@pytest.mark.slow
def test_transformers_loads_the_folder_offline(tmp_path: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    work = work_on(tmp_path, {(0, "train"): texts}, special_tokens=["<|user|>"])
    build(work)
    loaded = AutoTokenizer.from_pretrained(work.output_dir)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.eos_token == "<|endoftext|>"
    assert len(loaded) == 320
    ids = loaded("the mill race\n 水轮子 🙂")["input_ids"]
    assert loaded.decode(ids) == "the mill race\n 水轮子 🙂"
    assert loaded("<|user|>")["input_ids"] == [loaded.convert_tokens_to_ids("<|user|>")]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_bytes_per_token": 50.0}, r"bytes per token .* < tokenizer\.min_bytes_per_token 50\.0"),
        ({"max_tokens_per_word": 0.5}, r"tokens per word .* > tokenizer\.max_tokens_per_word 0\.5"),
    ],
)
def test_the_gate_says_no_with_its_figures_and_keeps_the_report(tmp_path: Path, texts: list[str], limits: dict[str, float], message: str) -> None:
    work = work_on(tmp_path, {(0, "train"): texts}, **limits)
    with pytest.raises(GateError, match=message) as caught:
        build(work)
    assert int(caught.value.exit_code) == 4
    assert (work.output_dir / "report.json").exists()


def test_a_vocabulary_that_the_text_cannot_fill_is_noted_with_the_size_reached(tmp_path: Path) -> None:
    work = work_on(tmp_path, {(0, "train"): ["hello hello hello hello world world"]}, vocab_size=5000, min_bytes_per_token=0.1)
    draft = build(work)
    assert draft.summary["vocab_size"] < 300
    assert any(f"{draft.summary['vocab_size']} of the 5,000 ids" in note for note in work.notes)


@pytest.mark.parametrize("pattern", ["gpt2", "qwen2"])
def test_chinese_text_passes_the_default_limits_because_words_are_characters(tmp_path: Path, pattern: str) -> None:
    work = work_on(tmp_path, {(0, "train"): CHINESE * 20, (0, "validation"): CHINESE}, pattern=pattern, max_tokens_per_word=6.0)
    summary = build(work).summary
    assert summary["round_trip_share"] == 1.0
    assert summary["engine"] == "gigatoken"
    assert summary["tokens_per_word"] < 3.0


def test_a_second_call_after_a_kill_makes_nothing_anew(tmp_path: Path, texts: list[str]) -> None:
    work = work_on(tmp_path, {(0, "train"): texts})
    first = build(work)
    before = {path.name: path.stat().st_mtime_ns for path in work.output_dir.iterdir() if path.is_file()}
    work.epoch = 1
    assert build(work) == first
    assert work.items_run == [0]
    assert {path.name: path.stat().st_mtime_ns for path in work.output_dir.iterdir() if path.is_file()} == before


def test_a_kill_between_the_files_leaves_a_folder_that_goes_on(tmp_path: Path, texts: list[str]) -> None:
    work = work_on(tmp_path, {(0, "train"): texts})
    first = build(work)
    (work.output_dir / "items" / "train-000000.json").unlink()
    (work.output_dir / "report.json").unlink()
    work.epoch = 1
    assert build(work) == first


def test_an_existing_tokenizer_is_taken_byte_by_byte(tmp_path: Path, texts: list[str]) -> None:
    made = work_on(tmp_path / "made", {(0, "train"): texts}, end_of_text="</s>")
    build(made)
    work = work_on(tmp_path / "taken", {(0, "train"): texts}, path=str(made.output_dir / "tokenizer.json"), end_of_text="</s>")
    summary = build(work).summary
    assert (work.output_dir / "tokenizer.json").read_bytes() == (made.output_dir / "tokenizer.json").read_bytes()
    assert (summary["kind"], summary["trainer"], summary["trained_on_documents"]) == ("existing", "none", 0)


def test_an_existing_tokenizer_without_the_end_of_text_token_leaves_nothing_behind(tmp_path: Path, texts: list[str]) -> None:
    made = work_on(tmp_path / "made", {(0, "train"): texts}, end_of_text="</s>")
    build(made)
    work = work_on(tmp_path / "taken", {(0, "train"): texts}, path=str(made.output_dir))
    with pytest.raises(InputError, match=r"no special token '<\|endoftext\|>'"):
        build(work)
    assert [path for path in work.output_dir.rglob("*") if path.is_file()] == []


def test_an_existing_lossy_tokenizer_is_noted_and_not_refused(tmp_path: Path) -> None:
    texts = ["The Mill RACE flows", "water AND stone"] * 30
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = (
        normalizers.Lowercase(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[SEP]", "[UNK]"], show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    work = work_on(tmp_path / "work", {(0, "train"): texts}, path=str(tmp_path / "tokenizer.json"), end_of_text="[SEP]")
    summary = build(work).summary
    assert summary["round_trip_share"] < 1.0
    assert summary["engine"] == "huggingface"
    assert any("lossy" in note for note in work.notes)
    assert any("slow" in note for note in work.notes)


def test_a_given_tokenizer_that_is_another_on_the_node_is_refused(tmp_path: Path, texts: list[str]) -> None:
    """The artifact is named after the tokenizer as it was planned."""
    made = work_on(tmp_path / "made", {(0, "train"): texts})
    build(made)
    given = tmp_path / "tokenizer.json"
    given.write_bytes((made.output_dir / "tokenizer.json").read_bytes())
    work = work_on(tmp_path / "given", {(0, "train"): texts}, path=str(given))
    corpus = entry_of(work.inputs[Stage.VALIDATE], "manifest.json").model_dump(mode="json")
    spec = work.task_spec("train", options={"corpus": corpus, "existing": work.identity.inputs["existing"]})
    given.write_bytes(given.read_bytes().replace(b"\n", b" ", 1) + b" ")
    with pytest.raises(VerificationError, match=r"tokenizer\.json: content \w+ on this node") as caught:
        run_item(run, spec=spec, index=0)
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert not (work.output_dir / "tokenizer.json").exists()
    build(work)
    assert (work.output_dir / "tokenizer.json").read_bytes() == given.read_bytes(), "planned anew, it is taken as it is"
