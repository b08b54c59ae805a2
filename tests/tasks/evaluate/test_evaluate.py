"""The evaluate stage on a real exported model: figures against plain transformers, baselines, files, and damage."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import file_entry
from schemas.canonical import canonical_json
from schemas.errors import InputError, VerificationError
from schemas.stage import Stage
from tasks.evaluate.build import build
from tasks.evaluate.document import read_test_split, select
from tasks.evaluate.plot import draw
from tasks.evaluate.report import Report, Samples, Speed
from tests.fakes.in_process_work import InProcessWork, write_corpus
from tests.fakes.model_chain import LENGTH, PROMPTS, Chain, chain_config, make_chain

pytestmark = pytest.mark.slow

KEY = "evaluate/test-000000000001"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def folder(chain: Chain) -> Path:
    work = chain.work(Stage.EVALUATE, key=KEY)
    build(work)
    return work.output_dir


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def reference_nats(chain: Chain) -> tuple[float, int, int]:
    """(nats, tokens, bytes) by one plain forward pass per window of each document."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_dir = chain.root / chain.records[Stage.EXPORT].key / "model"
    model = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    corpus = chain.records[Stage.VALIDATE]
    manifest = next(entry for entry in corpus.files if entry.path == "manifest.json")
    nats, tokens, size = 0.0, 0, 0
    for document in select(read_test_split(chain.root / corpus.key, manifest=manifest), max_bytes=chain.config.evaluation.max_bytes):
        ids = [0, *tokenizer.encode(document.text, add_special_tokens=False)]
        size += len(document.text.encode())
        done, start = 1, 0
        while done < len(ids):
            part = ids[start : start + LENGTH + 1]
            with torch.inference_mode():
                logits = model(torch.tensor([part[:-1]])).logits[0].double()
            every = torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:]), reduction="none")
            nats += float(every[done - start - 1 :].sum())
            tokens += len(every) - (done - start - 1)
            done = start + len(part)
            start = done - 1 - LENGTH // 4
    return nats, tokens, size


def test_figures_equal_a_plain_computation(chain: Chain, report: Report) -> None:
    nats, tokens, size = reference_nats(chain)
    assert (report.overall.tokens, report.overall.text_bytes) == (tokens, size)
    assert report.overall.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert report.overall.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_slices_and_bins_add_up(report: Report) -> None:
    for parts in (report.by_source, report.by_length):
        assert sum(part.scores.tokens for part in parts) == report.overall.tokens
        assert sum(part.scores.text_bytes for part in parts) == report.overall.text_bytes
    assert sum(entry.tokens for entry in report.calibration.bins) == report.overall.tokens
    assert len(report.by_length) > 1


def test_an_untrained_model_loses_against_every_baseline(report: Report) -> None:
    assert [baseline.name for baseline in report.baselines] == ["xz", "gzip", "5-gram"]
    assert all(report.overall.bits_per_byte > baseline.bits_per_byte for baseline in report.baselines)
    grams = report.baseline("5-gram")
    assert grams is not None
    assert grams.bits_per_byte < min(baseline.bits_per_byte for baseline in report.baselines[:2])


def test_files_are_those_promised(folder: Path) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.parent.name != "items")
    pictures = [f"plots/{name}.png" for name in ("bits_per_byte", "calibration", "loss_by_length")]
    assert names == [*pictures, "report.json", "samples.json", "speed.json"]
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    samples = Samples.model_validate_json((folder / "samples.json").read_bytes())
    assert [sample.prompt for sample in samples.samples] == list(PROMPTS)
    assert samples.samples[0].completion
    speed = Speed.model_validate_json((folder / "speed.json").read_bytes())
    assert speed.scoring_tokens_per_s > 0
    assert speed.first_token_ms > 0
    assert speed.next_token_ms > 0


def test_a_start_after_a_kill_makes_the_same_and_keeps_the_times(chain: Chain, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "root"
    shutil.copytree(chain.root, copy)
    again = Chain(copy, chain.config, chain.records).work(Stage.EVALUATE, key=KEY)
    kept = {name: (again.output_dir / name).read_bytes() for name in ("report.json", "samples.json", "speed.json", "plots/calibration.png")}
    (copy / again.layout.item("evaluate", 0)).unlink()
    (again.output_dir / "report.json").unlink()  # killed before it was published
    build(again)
    assert {name: (again.output_dir / name).read_bytes() for name in kept} == kept


def killed_while_drawing(chain: Chain, root: Path) -> InProcessWork:
    """Returns the work after a start that counted with other cores, or on another device, and was killed before its pictures were there."""
    shutil.copytree(chain.root, root)
    work = Chain(root, chain.config, chain.records).work(Stage.EVALUATE, key=KEY)
    (root / work.layout.item("evaluate", 0)).unlink()
    shutil.rmtree(work.output_dir / "plots")
    report = read_report(work)
    overall = report.overall.model_copy(update={"bits_per_byte": report.overall.bits_per_byte + 0.001})  # so much that pictures show it
    (work.output_dir / "report.json").write_bytes(canonical_json(report.model_copy(update={"overall": overall})))
    return work


def read_report(work: InProcessWork) -> Report:
    return Report.model_validate_json((work.output_dir / "report.json").read_bytes())


def contents(work: InProcessWork) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in work.output_dir.rglob("*") if path.is_file()}


def test_a_start_after_a_kill_goes_on_from_files_with_other_last_digits(chain: Chain, folder: Path, tmp_path: Path) -> None:
    work = killed_while_drawing(chain, tmp_path / "root")
    left, before = read_report(work), contents(work)
    draft = build(work)
    after = contents(work)
    assert {path: after[path] for path in before} == before
    assert draft.files == tuple(file_entry(work.output_dir / entry.path, relative_to=work.output_dir) for entry in draft.files)
    assert {work.output_dir / entry.path for entry in draft.files} == after.keys() - {work.root / work.layout.item("evaluate", 0)}
    assert draft.summary["bits_per_byte"] == left.overall.bits_per_byte
    draw("bits_per_byte.png", left, path=tmp_path / "drawn.png")
    assert (work.output_dir / "plots/bits_per_byte.png").read_bytes() == (tmp_path / "drawn.png").read_bytes()


def test_a_forgotten_start_that_ends_after_the_record_replaces_nothing(
    chain: Chain, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = killed_while_drawing(chain, tmp_path / "root")
    recorded = build(work).files
    before = contents(work)
    monkeypatch.setattr(work.storage, "exists", lambda _: False)  # it looked before the record was there
    assert build(work).files == recorded
    assert work.items_run == [0, 0]
    assert contents(work) == before


def test_a_report_of_a_killed_start_that_cannot_be_read_is_told(chain: Chain, folder: Path, tmp_path: Path) -> None:
    work = killed_while_drawing(chain, tmp_path / "root")
    (work.output_dir / "report.json").write_bytes(b"{")
    with pytest.raises(VerificationError, match=r"report\.json: is there with other bytes"):
        build(work)


def test_sampling_is_seeded(chain: Chain) -> None:
    drawn = []
    for number in range(2):
        work = chain.work(Stage.EVALUATE, chain_config(temperature=1.0, baselines=False), key=f"evaluate/test-00000000001{number}")
        draft = build(work)
        drawn.append((work.output_dir / "samples.json").read_bytes())
        assert draft.summary["baselines"] == {}
        assert not (work.output_dir / "plots/bits_per_byte.png").exists()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Stage.EXPORT, "model/model.safetensors"),
        (Stage.EXPORT, "model/config.json"),
        (Stage.EXPORT, "model/tokenizer.json"),
        (Stage.EXPORT, "model/generation_config.json"),
        (Stage.VALIDATE, "accepted/g0001-test.parquet"),
        (Stage.TOKENIZE, "manifest.json"),
    ],
)
def test_a_flipped_bit_in_any_input_is_found(chain: Chain, tmp_path: Path, stage: Stage, name: str) -> None:
    copy = tmp_path / "root"
    shutil.copytree(chain.root, copy)
    path = copy / chain.records[stage].key / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    work = Chain(copy, chain.config, chain.records).work(Stage.EVALUATE, key="evaluate/test-000000000020")
    with pytest.raises(VerificationError, match=Path(name).name):
        build(work)
    assert not (work.output_dir / "report.json").exists()


def test_weights_that_do_not_fit_the_configuration_are_refused(chain: Chain, tmp_path: Path) -> None:
    """Transformers itself would go on with random weights where names are missing."""
    copy = tmp_path / "root"
    shutil.copytree(chain.root, copy)
    export = chain.records[Stage.EXPORT]
    path = copy / export.key / "model/config.json"
    config: dict[str, Any] = json.loads(path.read_bytes())
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    entry = file_entry(path, relative_to=copy / export.key)
    changed = export.model_copy(update={"files": tuple(entry if old.path == entry.path else old for old in export.files)})
    work = Chain(copy, chain.config, chain.records | {Stage.EXPORT: changed}).work(Stage.EVALUATE, key="evaluate/test-000000000021")
    with pytest.raises(VerificationError, match="missing_keys"):
        build(work)


def test_an_empty_test_split_is_a_clear_error(chain: Chain, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {(0, "train"): ["a"]})
    manifest = next(entry for entry in corpus.files if entry.path == "manifest.json")
    with pytest.raises(InputError, match="test split is empty"):
        list(read_test_split(tmp_path / corpus.key, manifest=manifest))


@pytest.mark.parametrize("name", ["adapter_config.json", "custom_generate"])
def test_a_file_beside_the_model_that_the_export_did_not_make_is_refused(chain: Chain, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "root"
    shutil.copytree(chain.root, copy)
    folder = copy / chain.records[Stage.EXPORT].key / "model"
    (folder / ".tmp-e000000-1-config.json").write_text("left by a start that was killed")
    (folder / name).write_text("{}")
    work = Chain(copy, chain.config, chain.records).work(Stage.EVALUATE, key="evaluate/test-000000000022")
    with pytest.raises(VerificationError, match=f"{name}: is not part of the exported model"):
        build(work)
    (folder / name).unlink()
    build(work)
