"""Bad data in real jobs: quarantined with its place or refused, counts that balance, nothing half-made; and what changed under a run."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import HeadraceError, InputError, VerificationError
from schemas.exit_code import ExitCode
from schemas.manifest import CorpusManifest
from schemas.plan import Action
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.planning import make_plan
from tasks.runs import create_run
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tests.fakes.made_stages import judge_leniently, make_stages
from tests.fakes.tiny_pipeline import TEXT_STAGES, Project, make_project

pytestmark = pytest.mark.slow


def half_made(project: Project) -> list[str]:
    """Temporary files anywhere, and records."""
    return [str(path) for path in (project.folder / ".headrace").rglob("*") if path.name.startswith(".tmp-") or path.name == "record.json"]


def write_tokenizer(path: Path, *, vocab_size: int) -> None:
    """Writes a byte-level BPE in one file."""
    from schemas.tokens_config import TokenizerConfig
    from tasks.tokenizer.bpe import train_bpe

    texts = ["the water flows over the mill wheel and grinds the grain " * 20]
    path.write_bytes(train_bpe(texts, config=TokenizerConfig(vocab_size=vocab_size, min_frequency=1)).tokenizer_json)


@pytest.fixture
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_leniently(monkeypatch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose text stages are finished, for tests that take copies."""
    project = make_project(tmp_path_factory.mktemp("prepared") / "project")
    with pytest.MonkeyPatch.context() as patch:
        judge_leniently(patch)
        make_stages(project, until=Stage.TOKENIZE)
    return project


def write_mixed_corpus(folder: Path) -> Counter[str]:
    """Writes good and bad records of every format and returns how many were planted by reason."""
    folder.mkdir()

    def good(name: str, count: int) -> list[bytes]:
        return [json.dumps({"text": f"A good document of {name}, number {i}, about water and wheels."}).encode() for i in range(count)]

    lines = good("plain", 200)
    bad = [
        b"{broken",
        b'{"text": "caf\xe9"}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"text": "a\\u0000b"}',
        b'{"other": 1}',
        b"",
        b'{"text": 7}',
        b"[1]",
    ]
    for index, line in enumerate([*bad, lines[0]]):
        lines.insert(index * 20 + 10, line)
    (folder / "plain.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    whole = gzip.compress(b"\n".join(good("cut", 5000)) + b"\n")
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "rubbish.jsonl.gz").write_bytes(b"this is not gzip at all")
    pq.write_table(pa.table({"text": [f"row {i} of a table that will be cut" for i in range(500)]}), folder / "cut.parquet")
    data = (folder / "cut.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(data[: len(data) * 2 // 3])
    (folder / "nothing.jsonl").touch()
    (folder / "table.csv").write_text('id,text\n1,a fine row of a table\n2,one,too many\n3,"another, fine, row"\n')
    (folder / "latin.txt").write_bytes("grüße".encode("latin-1"))
    (folder / "binary.txt").write_bytes(b"\x7fELF" + bytes(range(1, 32)) * 20)
    planted = ["invalid JSON", "invalid UTF-8", "null text", "empty text", "NUL character", "missing column", "blank line", "wrong type"]
    planted += ["not a JSON object", "duplicate", "truncated file", "empty file", "malformed CSV", "invalid UTF-8", "unprintable characters"]
    return Counter(planted)


@pytest.mark.usefixtures("lenient_judge")
def test_what_cannot_be_read_is_quarantined_with_its_place_and_the_counts_balance(tmp_path: Path) -> None:
    changes = {"corpus.sources": ["mixed"], "corpus.group_bytes": 20_000, "corpus.rules": {"min_printable_share": 0.9}}
    project = make_project(tmp_path / "project", changes=changes)
    planted = write_mixed_corpus(project.folder / "mixed")
    (record,) = make_stages(project, until=Stage.VALIDATE)
    folder = project.root / record.key
    manifest = CorpusManifest.model_validate_json((folder / "manifest.json").read_bytes())
    accepted = [row for file in manifest.files for row in pq.read_table(folder / file.file.path).to_pylist()]
    refused = [row for path in sorted((folder / "quarantine").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert manifest.read == manifest.accepted + manifest.quarantined
    assert (len(accepted), len(refused)) == (manifest.accepted, manifest.quarantined)
    reasons = Counter(row["reason"] for row in refused)
    assert reasons == manifest.reasons
    damaged = reasons.pop("damaged file")
    assert damaged == 2, "the file that is no gzip, the table without its end"
    assert reasons == planted
    places = {(row["path"], row["row"]): row["reason"] for row in refused}
    assert places["plain.jsonl", 11] == "invalid JSON"
    assert places["plain.jsonl", 31] == "invalid UTF-8"
    assert places["table.csv", 2] == "malformed CSV"
    rescued = sum(row["path"] == "cut.jsonl.gz" for row in accepted)
    assert rescued > 1000, "what came before the cut is kept"
    assert places["cut.jsonl.gz", rescued + 1] == "truncated file"
    assert all(row["excerpt"].isprintable() for row in refused)
    assert [path for path in half_made(project) if not path.endswith("record.json")] == []


@pytest.mark.usefixtures("lenient_judge")
def test_a_missing_column_stops_the_run_and_names_file_and_column(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"corpus.sources": ["shards"]})
    (project.folder / "shards").mkdir()
    for shard in range(20):
        column = "body" if shard == 17 else "text"
        lines = [json.dumps({column: f"document {i} of shard {shard}"}) for i in range(10)]
        (project.folder / "shards" / f"part-{shard:02d}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"part-17\.jsonl: no column 'text', in all 10 records") as caught:
        make_stages(project, until=Stage.TOKENIZE)
    assert caught.value.exit_code is ExitCode.USAGE
    assert half_made(project) == []
    assert not (project.root / "tokenizer").exists()


@pytest.mark.usefixtures("lenient_judge")
def test_text_that_changed_after_validation_is_validated_again(prepared: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.take(prepared, *TEXT_STAGES)
    first, *_ = make_stages(project, until=Stage.TOKENIZE)
    victim = next((project.folder / "text").iterdir())
    victim.write_text("changed = 'after it was validated'\n")
    config = load_recipe(project.recipe).config
    plan = make_plan(config)
    assert plan.stage(Stage.VALIDATE).action is Action.BUILD
    changed, taken_over = plan.stage(Stage.VALIDATE).reasons
    assert changed == f"code/{victim.name} changed"
    assert taken_over.endswith("scanned anew, the others taken over")
    (again,) = make_stages(project, until=Stage.VALIDATE)
    assert again.key != first.key
    texts = [text for path in (project.root / again.key / "accepted").iterdir() for text in pq.read_table(path)["text"].to_pylist()]
    assert "changed = 'after it was validated'\n" in texts


@pytest.mark.usefixtures("lenient_judge")
def test_a_run_whose_text_changed_is_not_resumed_on_other_text(tmp_path: Path) -> None:
    from tasks.validate.build import build

    project = make_project(tmp_path / "project")
    loaded = load_recipe(project.recipe)
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path))
    bench = bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view))
    find_or_make(Stage.VALIDATE, bench=bench, build=build)
    next((project.folder / "text").iterdir()).write_text("other = 'text'\n")
    with pytest.raises(HeadraceError, match="not there any more") as caught:
        find_or_make(Stage.VALIDATE, bench=bench, build=build)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.usefixtures("lenient_judge")
@pytest.mark.parametrize("drop", [True, False])
def test_copies_of_a_held_out_document_never_reach_the_training_split(tmp_path: Path, drop: bool) -> None:
    changes = {"corpus.sources": ["docs"], "corpus.group_bytes": 5_000, "corpus.rules": {"drop_duplicates": drop}}
    project = make_project(tmp_path / "project", changes={**changes, "corpus.splits": {"validation": 0.2, "test": 0.2}})
    (project.folder / "docs").mkdir()
    for file in range(4):  # every file holds every document, in another order
        numbers = sorted(range(100), key=lambda number: (number * 37 + file * 11) % 101)
        lines = [json.dumps({"text": f"This is document {number}, planted in every file."}) for number in numbers]
        (project.folder / "docs" / f"part-{file}.jsonl").write_text("\n".join(lines) + "\n")
    (record,) = make_stages(project, until=Stage.VALIDATE)
    manifest = CorpusManifest.model_validate_json((project.root / record.key / "manifest.json").read_bytes())
    splits: dict[str, set[str]] = {}
    for accepted in manifest.files:
        for text in pq.read_table(project.root / record.key / accepted.file.path)["text"].to_pylist():
            splits.setdefault(text, set()).add(accepted.split)
    assert len(splits) == 100
    assert {len(found) for found in splits.values()} == {1}
    assert {split for found in splits.values() for split in found} == {"train", "validation", "test"}


@pytest.mark.usefixtures("lenient_judge")
def test_a_tokenizer_that_was_swapped_is_found_before_its_ids_are_used(prepared: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.take(prepared, "validate", "tokenizer")
    _, tokenizer = make_stages(project, until=Stage.TOKENIZER)
    path = project.root / tokenizer.key / "tokenizer.json"
    kept = path.read_bytes()
    write_tokenizer(path, vocab_size=400)
    with pytest.raises(VerificationError, match=r"tokenizer\.json") as caught:
        make_stages(project, until=Stage.TOKENIZE)
    assert caught.value.exit_code is ExitCode.VERIFICATION
    assert not list((project.root / "tokenize").glob("*/record.json"))
    path.write_bytes(kept)
    make_stages(project, until=Stage.TOKENIZE)
    write_tokenizer(path, vocab_size=400)
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        make_stages(project, until=Stage.TRAIN)
    assert not list((project.root / "train").glob("*/attempts/*")), "no rank was started"
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        make_plan(load_recipe(project.recipe).config)


@pytest.mark.usefixtures("lenient_judge")
def test_a_given_tokenizer_that_was_swapped_tokenizes_anew(prepared: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"tokenizer.path": "given.json"})
    project.take(prepared, "validate")
    changes = ("tokenizer.min_bytes_per_token=0.1", "tokenizer.max_tokens_per_word=100")
    write_tokenizer(project.folder / "given.json", vocab_size=270)
    make_stages(project, *changes, until=Stage.TOKENIZE)
    write_tokenizer(project.folder / "given.json", vocab_size=280)
    plan = make_plan(load_recipe(project.recipe, changes).config)
    assert plan.stage(Stage.VALIDATE).action is Action.REUSE
    assert plan.stage(Stage.TOKENIZER).reasons == ("the given tokenizer changed",)
    assert plan.stage(Stage.TOKENIZE).action is Action.DEPENDS


# ---- the whole command ----------------------------------------------------------------------------------------------------


def test_a_corpus_that_fails_ends_the_command_with_its_verdict(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"corpus.sources": ["mixed"]})
    write_mixed_corpus(project.folder / "mixed")
    (project.folder / "mixed" / "more.jsonl").write_text("broken\n" * 3000)
    done = project.headrace("run", "tiny.yaml")
    assert done.returncode == ExitCode.DATA_VERDICT, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "max_quarantined_share" in done.stderr
    assert half_made(project) == []
    (folder,) = (project.root / "validate").iterdir()
    assert (folder / "docs" / "index.html").exists(), "the reports are kept"
    view = project.answer("status", "last")
    assert view["state"] == "failed"
    assert [stage["state"] for stage in view["stages"]][:2] == ["failed", "pending"]
    quarantined = sum(len(pq.read_table(path)) for path in (folder / "quarantine").iterdir())
    stats = json.loads((folder / "stats.json").read_text())["total"]
    assert stats["read"] == quarantined + sum(split["documents"] for split in stats["accepted"].values())


def test_a_corpus_that_holds_out_no_text_ends_the_run_before_anything_is_trained(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"corpus.splits": {"validation": 0.1, "test": 1e-9}})
    for command in ("run", "run", "plan"):  # the second run and the plan know the corpus, and refuse at once
        done = project.headrace(command, "tiny.yaml")
        assert done.returncode == ExitCode.USAGE, done.stdout + done.stderr
        assert "corpus.splits.test = 1e-09: leaves no text to evaluate the model by, which follows training: none of " in done.stderr
        assert "raise it, or give more text" in done.stderr
    assert sorted(path.name for path in project.root.iterdir() if any(path.rglob("record.json"))) == ["validate"]
    (run_id,) = project.run_ids()
    assert project.answer("status", run_id)["state"] == "failed"
