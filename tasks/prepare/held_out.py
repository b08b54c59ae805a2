"""The texts that training documents are compared with: held-out splits of the corpus, prompts of the evaluation, and files that the recipe names."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cluster.storage import hash_file, publish_file
from schemas.artifact import FileEntry
from schemas.corpus_config import CorpusConfig
from schemas.errors import VerificationError
from schemas.frozen import Frozen
from schemas.manifest import AcceptedFile
from schemas.preparation_config import PreparationConfig
from tasks.prepare.compared import FILES_KEY, files_hash, unfit
from tasks.prepare.filtering import Pipeline, Pipelines
from tasks.prepare.ngram_index import INDEX_FILES, HeldOutText, NgramIndex
from tasks.prepare.rows import INDEX_FOLDER, read_documents
from tasks.prepare.steps import steps_of
from tasks.validate.corpus_files import Temporary

PROMPTS_KEY = "evaluation.prompts"


class IndexOutput(Frozen):
    """What an index tells the stage (`output` of its item record)."""

    files: tuple[FileEntry, ...]
    """Its files."""
    texts: dict[str, int]
    """Texts to compare with, by what they are of: a split, a file, the prompts."""
    short_texts: int
    """Those of them with fewer words than an n-gram: nothing can be found of them."""
    ngrams: int
    """Different n-grams."""


def build_index(
    files: Sequence[AcceptedFile],
    *,
    folder: Path,
    config: CorpusConfig,
    prompts: Sequence[str] = (),
    expected_files: str | None,
    scratch_dir: Path,
    output_dir: Path,
    temporary: Temporary,
) -> IndexOutput:
    """Publishes the index of everything that documents are compared with.

    Args:
        files: the accepted files of the splits to compare with, split by split; documents that the steps before refuse are not held out, and
            not compared with.
        folder: of the accepted corpus.
        config: the recipe's section of the corpus.
        prompts: `evaluation.prompts`, where the recipe compares with them.
        expected_files: what `files_hash` must return on this node; None without files.
        scratch_dir: where the index is put together.
        output_dir: the artifact's folder.
        temporary: gives paths for unfinished files.

    Raises:
        InputError: files cannot be read as text (all of them are named), or there is too much text.
        VerificationError: a file changed since the stage was planned, or is another one on this node.
    """
    against = config.preparation.decontamination
    assert against.ngram is not None, "an index without a length of n-grams"
    if against.files and files_hash(against.files, hash_file) != expected_files:
        finding = "the files to compare with are not those that the stage was planned with"
        mend = "headrace run takes them as they are now"
        raise VerificationError((finding,), subject=FILES_KEY, mend=mend)
    texts = chain(_documents(files, folder=folder, config=config), _named_texts(config, prompts=prompts))
    index = NgramIndex.build(texts, n=against.ngram, max_texts=against.max_texts)
    made = scratch_dir / INDEX_FOLDER
    made.mkdir(parents=True, exist_ok=True)
    index.save(made)
    entries = []
    for name in INDEX_FILES:
        unfinished = temporary(f"{INDEX_FOLDER}/{name}")
        unfinished.write_bytes((made / name).read_bytes())
        entry = publish_file(unfinished, output_dir / INDEX_FOLDER / name)
        entries.append(entry.model_copy(update={"path": f"{INDEX_FOLDER}/{name}"}))
        (made / name).unlink()
    counts: Counter[str] = Counter()
    for origin, count in index.origins:
        counts[origin] += count
    return IndexOutput(files=tuple(entries), texts=counts, short_texts=index.num_short, ngrams=len(index.hashes))


def _documents(files: Sequence[AcceptedFile], *, folder: Path, config: CorpusConfig) -> Iterator[HeldOutText]:
    """Yields the held-out documents as the steps leave them."""
    for file in files:
        pipelines = Pipelines(config, split=file.split)
        for documents in read_documents(folder, file.file):
            for row, found in zip(documents.rows, pipelines.apply(documents), strict=True):
                if found.outcome.text is not None:
                    yield HeldOutText(f"{file.split}/{row.doc_id.decode()}", found.compared, file.split)


def _named_texts(config: CorpusConfig, *, prompts: Sequence[str]) -> Iterator[HeldOutText]:
    """Yields the prompts, then the texts of the named files, normalized as documents are. Raises InputError at the end, naming all unfit files."""
    normalized = Pipeline(steps_of(PreparationConfig(normalization=config.preparation.normalization), split="test"))
    asked = (HeldOutText(f"{PROMPTS_KEY}:{number}", prompt, PROMPTS_KEY) for number, prompt in enumerate(prompts, start=1))
    files, problems = config.preparation.decontamination.files, list[str]()
    for text in chain(asked, *(_texts_of_file(Path(file), problems) for file in files)):
        ((_, outcome),) = normalized.apply([text.text])
        if outcome.text is not None:
            yield text._replace(text=outcome.text)
    if problems:
        raise unfit(problems, count=len(files))


def _texts_of_file(path: Path, problems: list[str]) -> Iterator[HeldOutText]:
    """Yields every string of a `.jsonl` file, at any depth of its records, else the whole file as one text. Adds to `problems` when it is neither."""
    number = 0
    try:
        if path.suffix != ".jsonl":
            yield HeldOutText(path.name, path.read_text(encoding="utf-8"), path.name)
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from (HeldOutText(f"{path.name}:{number}", text, path.name) for text in _strings_in(json.loads(line)))
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        found = f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else error  # its own line is always the first
        problems.append(f"{path}: line {number} cannot be read as JSON: {found}")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_in(item)
