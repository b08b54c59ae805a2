"""G1: text to committed, checksummed token shards, against datatrove, `datasets.map` and mosaicml-streaming's writer; beside the encoders alone.

Everybody reads the same Parquet files (an accepted corpus) with one thread. The three peers encode some MB per second, whatever the size, so
they get the first file alone; rates are compared. The tokenizer is there with its record, as its stage leaves it: which engine encodes has been
decided. Before anything is timed, the hash of all ids must be the same for everybody: over the whole
corpus against `tokenizers` and gigatoken alone, over the first file against the peers.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cluster.storage import file_entry, hash_file, make_folder
from schemas.artifact import ArtifactRecord, Provenance
from schemas.canonical import canonical_json
from schemas.manifest import CorpusGroup, CorpusManifest, InputFile
from schemas.stage import Stage
from schemas.tokens_config import TokenizerConfig
from tasks.runs import provenance_of
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.corpus import Batch
from tasks.tokenizer.engine import choose_engine, facts_of
from tasks.tokenizer.report import Trained, measure
from tasks.validate.scan import scan_group
from tasks.work import Draft
from tests.benchmarks.data_peers import environment_of, peer_pythons, peer_versions
from tests.benchmarks.debian_text import CACHE, Text, debian_text
from tests.benchmarks.harness import Figure, Outcome, Sample, ask_program, in_a_job, interleave, versions_of
from tests.fakes.in_process_work import commit, config_with

GOAL_PEERS, GOAL_ENCODER = 50.0, 0.8
_GROUP_MB, _FIRST_MB, _REFUSED_MB = 64, 24, 8
_PROGRAMS = Path(__file__).parent / "contestants"
_END_OF_TEXT = "<|endoftext|>"
_TOKENIZER_KEY = "tokenizer/bench-000000000000"
_PATTERNS = {"english": "gpt2", "chinese": "qwen2"}
PEERS = ("datatrove", "datasets", "mds")
_ENV = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Site:
    """An accepted corpus and a tokenizer."""

    name: str
    folder: Path
    text_bytes: tuple[int, ...]
    """Of each group."""
    packages: Mapping[str, str]

    @property
    def description(self) -> Path:
        """What `tokenize_headrace` reads."""
        return self.folder / "site.json"

    @property
    def tokenizer_json(self) -> Path:
        """The tokenizer."""
        return self.folder / _TOKENIZER_KEY / "tokenizer.json"


def run(*, megabytes: int = 256, repetitions: int = 5) -> Outcome:
    """Returns the outcome. `megabytes`: English text to encode; of Chinese there is less."""
    pythons = peer_pythons()
    figures: list[Figure] = []
    notes: list[str] = []
    rates: dict[str, dict[str, float]] = {}
    sites = [english(megabytes), _site("chinese", min(megabytes, 64)), _refused_site(min(megabytes, _REFUSED_MB))]
    for site in sites:
        names = ("huggingface", "datatrove") if site.name == "refused" else ("gigatoken", *PEERS)
        contestants = {"headrace": site.text_bytes} | {name: site.text_bytes[:1] if name in PEERS else site.text_bytes for name in names}
        notes.append(_check(site, contestants, pythons=pythons))
        measured = interleave({f"{site.name}: {name}": _contestant(site, name, pythons=pythons) for name in contestants}, repetitions=repetitions)
        figures += measured
        rates[site.name] = {name: sum(sizes) / 1e6 / figure.median_cpu_s for (name, sizes), figure in zip(contestants.items(), measured, strict=True)}
        notes.append(f"{site.name}: MB per CPU-second: " + ", ".join(f"{name} {rate:,.1f}" for name, rate in rates[site.name].items()))
    own = rates["english"]
    best = max(PEERS, key=lambda name: own[name])
    ratio, share = own["headrace"] / own[best], own["headrace"] / own["gigatoken"]
    is_met = ratio >= GOAL_PEERS and share >= GOAL_ENCODER
    return Outcome(
        name="tokenize",
        figures=tuple(figures),
        verdict=f"tokenize: headrace {ratio:.0f} times as fast as {best} per CPU-second (goal {GOAL_PEERS:.0f}), {share:.2f} of gigatoken alone "
        f"(goal {GOAL_ENCODER}): {'met' if is_met else 'missed'}",
        met=is_met,
        versions=versions_of("headrace", "gigatoken", "pyarrow", "tokenizers") | peer_versions() | dict(sites[0].packages) | dict(sites[1].packages),
        notes=tuple(notes),
    )


def english(megabytes: int) -> Site:
    """Returns English text as an accepted corpus, with its tokenizer."""
    return _site("english", megabytes)


def _contestant(site: Site, name: str, *, pythons: Mapping[str, Path]) -> Any:
    return lambda: _ask(site, name, pythons=pythons).sample


@dataclass(frozen=True)
class _Answer:
    sample: Sample
    facts: Mapping[str, Any]


def _ask(site: Site, name: str, *, pythons: Mapping[str, Path]) -> _Answer:
    """Runs one contestant once."""
    out = site.folder / f"out-{name}"
    env = os.environ | _ENV | {"HF_HOME": str(CACHE / "hf")}
    if name == "headrace":
        argv, env = (sys.executable, "-m", "tests.benchmarks.contestants.tokenize_headrace", str(site.description), str(out)), in_a_job(env)
    else:
        python = pythons[environment_of(name)]
        files = site.folder / ("first" if name in PEERS else "all")
        argv = (str(python), str(_PROGRAMS / "tokenize_peers.py"), name, str(files), str(site.tokenizer_json), _END_OF_TEXT, str(out))
    answer = ask_program(argv, env=env)
    return _Answer(Sample(wall_s=answer.pop("wall_s"), cpu_s=answer.pop("cpu_s")), answer)


def _check(site: Site, names: Mapping[str, Any], *, pythons: Mapping[str, Path]) -> str:
    """Compares all ids. Raises AssertionError when somebody has others."""
    ours = list(_ask(site, "headrace", pythons=pythons).facts["hashes"].values())
    rows: list[str] = []
    for name in dict.fromkeys((*names, "huggingface")):
        if name == "headrace":
            continue
        facts = _ask(site, name, pythons=pythons).facts
        rows = rows or list(facts.get("row_hashes", ()))
        found, expected = (facts["row_hashes"], rows[:1]) if name == "mds" else (facts["hashes"], ours[: len(facts["hashes"])])
        assert found == expected, f"{site.name}: {name} has other ids: {found} instead of {expected}"
    return f"{site.name}: {sum(site.text_bytes) / 1e6:,.0f} MB, equal ids: {', '.join(dict.fromkeys((*names, 'huggingface')))}"


# ---- corpora and tokenizers, made once ------------------------------------------------------------------------------------


def _site(language: str, megabytes: int) -> Site:
    """A corpus with a byte-level BPE of its own, trained by this project."""
    text = debian_text(language, megabytes=megabytes)
    config = TokenizerConfig(vocab_size=32_768, pattern=_PATTERNS[language])
    return _made(f"{language}-{megabytes}", language, text, tokenizer=lambda: train_bpe(_beginning(text, 16_000_000), config=config).tokenizer_json)


def _refused_site(megabytes: int) -> Site:
    """A corpus with a tokenizer that gigatoken refuses: WordPiece."""
    text = debian_text("english", megabytes=megabytes)
    return _made(f"refused-{megabytes}", "refused", text, tokenizer=lambda: _wordpiece(_beginning(text, 8_000_000)))


def _beginning(text: Text, num_bytes: int) -> list[str]:
    texts: list[str] = []
    for one in text.texts():
        texts.append(one)
        num_bytes -= len(one.encode())
        if num_bytes <= 0:
            break
    return texts


def _wordpiece(texts: list[str]) -> bytes:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=16_384, special_tokens=["[UNK]", _END_OF_TEXT], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str()).encode()


def _made(folder_name: str, name: str, text: Text, *, tokenizer: Callable[[], bytes]) -> Site:
    """Returns a corpus as `validate` leaves it and a tokenizer, made the first time; their records and the recipe are those of today's code."""
    folder = CACHE / "tokenize" / folder_name
    about = folder / "corpus.json"
    if not about.exists():
        shutil.rmtree(folder, ignore_errors=True)
        corpus, sizes = _accepted(folder, text)
        (folder / _TOKENIZER_KEY).mkdir(parents=True)
        (folder / _TOKENIZER_KEY / "tokenizer.json").write_bytes(tokenizer())
        about.write_text(json.dumps({"text_bytes": sizes, "record": corpus.model_dump(mode="json")}))
    made = json.loads(about.read_text())
    config, record = config_with(tokenizer={"end_of_text": _END_OF_TEXT}), _tokenizer_record(folder, _beginning(text, 100_000))
    described = {"config": config.model_dump(mode="json"), "tokenizer": record.model_dump(mode="json"), "corpus": made["record"]}
    (folder / "site.json").write_text(json.dumps({"root": str(folder), **described}))
    return Site(name=name, folder=folder, text_bytes=tuple(made["text_bytes"]), packages=text.packages)


def _tokenizer_record(folder: Path, texts: list[str]) -> ArtifactRecord:
    """Returns the record that the `tokenizer` stage leaves, measured on some texts: which engine encodes is decided there, off the clock."""
    entry = file_entry(folder / _TOKENIZER_KEY / "tokenizer.json", relative_to=folder / _TOKENIZER_KEY)
    content = (folder / _TOKENIZER_KEY / "tokenizer.json").read_bytes()
    facts = facts_of(content, end_of_text=_END_OF_TEXT, subject="the tokenizer")
    report = measure(
        content,
        [Batch(doc_ids=list(map(str, range(len(texts)))), texts=texts, sizes=[len(text.encode()) for text in texts])],
        split="train",
        facts=facts,
        choice=choose_engine(content, wanted="auto"),
        origin=Trained(kind="trained", requested_vocab_size=facts.vocab_size),
        end_of_text=_END_OF_TEXT,
    )
    record = commit(folder, Stage.TOKENIZER, Draft(files=(entry,), summary=report.model_dump(mode="json")), key=_TOKENIZER_KEY)
    return record.model_copy(update={"provenance": Provenance.model_validate(provenance_of("bench") | {"created_at": "today"})})


def _accepted(folder: Path, text: Text) -> tuple[ArtifactRecord, list[int]]:
    """Scans the text as `validate` does, in groups, and returns the artifact's record and the text bytes of each group."""
    root = folder / "validate/bench-000000000000"
    config = config_with(corpus={"sources": [str(folder / "raw")], "splits": {"validation": 0.0, "test": 0.0}})
    outputs = []
    for number, raw in enumerate(_parts(folder / "raw", text)):
        file = InputFile(source="source-0", path=str(raw), relative_path=raw.name, size=raw.stat().st_size, xxh3=hash_file(raw))
        group = CorpusGroup(index=number, inputs=(file,))
        outputs.append(
            scan_group(group, corpus=config.corpus, output_dir=root, temporary=lambda name: _temporary(root / name), report=lambda _: None)
        )
    shutil.rmtree(folder / "raw")
    files = tuple(file for output in outputs for file in output.accepted)
    documents = sum(file.documents for file in files)
    manifest = CorpusManifest(files=files, inputs=(), read=documents, accepted=documents, quarantined=0, reasons={})
    (root / "manifest.json").write_bytes(canonical_json(manifest))
    for name, chosen in (("all", files), ("first", files[:1])):
        (folder / name).mkdir()
        for accepted in chosen:
            os.link(root / accepted.file.path, folder / name / Path(accepted.file.path).name)
    entries = (*(file.file for file in files), file_entry(root / "manifest.json", relative_to=root))
    record = commit(folder, Stage.VALIDATE, Draft(files=entries, summary={}), key="validate/bench-000000000000")
    return record, [file.text_bytes for file in files]


def _parts(folder: Path, text: Text) -> Iterator[Path]:
    """Yields JSON Lines files of the size of a group, the first one smaller."""
    folder.mkdir(parents=True)
    texts = text.texts()
    left, number = _FIRST_MB * 1_000_000, 0
    out: BinaryIO | None = None
    for one in texts:
        if out is None:
            path = folder / f"{number:04d}.jsonl"
            out = path.open("wb")
        out.write(json.dumps({"text": one}, ensure_ascii=False).encode() + b"\n")
        left -= len(one.encode())
        if left <= 0:
            out.close()
            yield path
            out, left, number = None, _GROUP_MB * 1_000_000, number + 1
    if out is not None:
        out.close()
        yield path


def _temporary(final: Path) -> Path:
    make_folder(final.parent)
    return final.with_name(f".tmp-{final.name}")
