"""The compute half of `evaluate`: scores the exported model on held-out text and writes the report, samples and pictures.

Options (from `tasks.evaluate.build`): `corpus_manifest`, `shard_manifest` (entries of the inputs' manifests) and
`model_files` (entries of the exported folder), so every byte that is read is checked first.
"""

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from cluster.storage import TEMPORARY_PREFIX, AlreadyExistsError, file_entry, publish_file, write_durably
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.errors import VerificationError
from schemas.stage import Stage
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.evaluate.baseline import compressors, ngram, training_stream
from tasks.evaluate.conversation import encode_conversations
from tasks.evaluate.document import Document, read_test_split, select
from tasks.evaluate.generation import latency_ms, sample
from tasks.evaluate.plot import draw, plot_names
from tasks.evaluate.report import PLOTS_FOLDER, REPORT_NAME, SAMPLES_NAME, SPEED_NAME, Baseline, Report, Scores, Speed
from tasks.evaluate.score import score
from tasks.evaluate.tally import Tally, length_bucket, length_bucket_names
from tasks.export.layout import GENERATION_CONFIG_NAME, MODEL_FOLDER
from tasks.recorded_file import verified_bytes, verified_path
from tasks.taking_over import taken_by_other_bytes
from tasks.tokenizer.existing import TOKENIZER_NAME

logger = logging.getLogger(__name__)

_LOADING_FINDINGS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
_READ_BY_US = (GENERATION_CONFIG_NAME, TOKENIZER_NAME)
"""Small files of the exported model that no library opens by itself here."""
_OVERLAP_SHARE = 4
"""Windows after a document's first repeat 1/4 of the sequence length as context."""


@dataclass(frozen=True)
class _Subject:
    """The exported model, loaded."""

    model: Any
    tokenizer: Tokenizer
    folder: Path
    end_of_text_id: int
    device: torch.device

    @property
    def vocab_size(self) -> int:
        """Ids the model knows; at least as many as the tokenizer has."""
        return int(self.model.config.vocab_size)


def run(task: ItemTask) -> ItemOutcome:
    """Evaluates the exported model. Returns the report's main figures as output."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # the only item of its job: every core of the allocation is its own
    documents = select(
        read_test_split(task.input_dirs[task.config.corpus_stage], manifest=_entry(task.options["corpus_manifest"])),
        max_bytes=task.config.evaluation.max_bytes,
    )
    subject = _load(task)
    conversations = frozenset(task.config.corpus.conversations)
    documents, token_ids, learned = _encode(subject, documents, conversations=conversations)
    tally, tokens_per_s = _score(task, subject, token_ids, learned=learned)
    overall = tally.scores(documents)
    logger.info("%d documents: %.4f bits per byte at %.0f tokens/s", len(documents), overall.bits_per_byte, tokens_per_s)
    made = _report(task, subject, documents, tally=tally, overall=overall, baselines=_baselines(task, documents, token_ids))
    report, files = _publish(task, subject, report=made, speed=_speed(task, subject, token_ids[0], tokens_per_s=tokens_per_s))
    overall = report.overall
    figures = {"bits_per_byte": overall.bits_per_byte, "perplexity": overall.perplexity, "loss": overall.loss, "accuracy": overall.accuracy}
    return ItemOutcome(files=files, output=figures | {"baselines": {baseline.name: baseline.bits_per_byte for baseline in report.baselines}})


def _entry(value: Any) -> FileEntry:
    return FileEntry.model_validate(dict(value))


def _load(task: ItemTask) -> _Subject:
    """Loads the exported folder after checking that it holds every recorded file, intact, and no other. Raises VerificationError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    export_dir = task.input_dirs[Stage.EXPORT]
    entries = {entry.path: entry for entry in map(_entry, task.options["model_files"])}
    folder = export_dir / MODEL_FOLDER
    _refuse_unlisted(folder, listed=frozenset(entries))
    for entry in entries.values():
        verified_path(export_dir, entry, subject="exported model")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    findings = tuple(f"{kind}: {', '.join(map(str, sorted(info[kind])))}" for kind in _LOADING_FINDINGS if info.get(kind))
    if findings:  # transformers would go on with random weights
        raise VerificationError(findings, subject=str(folder))
    content = {name: verified_bytes(export_dir, entries[f"{MODEL_FOLDER}/{name}"], subject="exported model") for name in _READ_BY_US}
    end_of_text_id = json.loads(content[GENERATION_CONFIG_NAME])["eos_token_id"]
    tokenizer = Tokenizer.from_buffer(content[TOKENIZER_NAME])
    return _Subject(model=model.to(device).eval(), tokenizer=tokenizer, folder=folder, end_of_text_id=int(end_of_text_id), device=device)


def _refuse_unlisted(folder: Path, *, listed: frozenset[str]) -> None:
    """Refuses files that the export did not make: transformers loads more than it is asked for (an adapter beside a model, say)."""
    names = sorted(path.name for path in folder.glob("*") if not path.name.startswith(TEMPORARY_PREFIX))
    findings = tuple(f"{folder / name}: is not part of the exported model" for name in names if f"{MODEL_FOLDER}/{name}" not in listed)
    if findings:
        raise VerificationError(findings, subject="exported model", mend="move the named files away")


def _encode(
    subject: _Subject, documents: tuple[Document, ...], *, conversations: frozenset[str]
) -> tuple[tuple[Document, ...], list[npt.NDArray[np.int64]], list[npt.NDArray[np.bool_]] | None]:
    """Returns documents, their ids behind one end-of-text token, and which of those count; None: all.

    Of a conversation counts what assistants say, and that is its text from here on.

    Args:
        subject: the model.
        documents: the text of those of `conversations` is JSON.
        conversations: names of sources.
    """
    if not conversations:
        encodings = subject.tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False)
        return documents, [np.array([subject.end_of_text_id, *encoding.ids], dtype=np.int64) for encoding in encodings], None
    return encode_conversations(subject.tokenizer, documents, folder=subject.folder, end_of_text_id=subject.end_of_text_id, names=conversations)


def _score(
    task: ItemTask, subject: _Subject, token_ids: list[npt.NDArray[np.int64]], *, learned: list[npt.NDArray[np.bool_]] | None
) -> tuple[Tally, float]:
    config, length = task.config.evaluation, task.config.tokenization.sequence_length
    tally = Tally(num_documents=len(token_ids), num_bins=config.calibration_bins)
    started = time.perf_counter()
    score(
        subject.model,
        token_ids,
        learned=learned,
        tally=tally,
        length=length,
        overlap=length // _OVERLAP_SHARE,
        batch_size=config.batch_size,
        vocab_size=subject.vocab_size,
        device=subject.device,
        on_tokens=task.report,
    )
    return tally, float(tally.tokens.sum()) / (time.perf_counter() - started)


def _baselines(task: ItemTask, documents: tuple[Document, ...], token_ids: list[npt.NDArray[np.int64]]) -> tuple[Baseline, ...]:
    if not task.config.evaluation.baselines or task.config.corpus.conversations:  # what assistants say is no text of its own to compress
        return ()
    stream, manifest = training_stream(task.input_dirs[Stage.TOKENIZE], manifest=_entry(task.options["shard_manifest"]))
    total = manifest.num_tokens("train")
    return (*compressors(documents), ngram(documents, token_ids=token_ids, stream=stream, total=total, vocab_size=manifest.vocab_size))


def _report(
    task: ItemTask, subject: _Subject, documents: tuple[Document, ...], *, tally: Tally, overall: Scores, baselines: tuple[Baseline, ...]
) -> Report:
    bounds, length = task.config.evaluation.length_buckets, task.config.tokenization.sequence_length
    sources = sorted({document.source for document in documents})
    weights = [_entry(value) for value in task.options["model_files"] if str(value["path"]).endswith(".safetensors")]
    return Report(
        method=(
            f"each document alone after one end-of-text token, in windows of {length} tokens that repeat {length // _OVERLAP_SHARE} as context; "
            "every token of the text is predicted once, end-of-text is never predicted; bits per byte = nats / ln 2 / UTF-8 bytes"
            + ("; of conversations only what assistants say is predicted and counted" if task.config.corpus.conversations else "")
        ),
        overall=overall,
        by_source=tally.by(documents, name_of=lambda document: document.source, order=sources),
        by_length=tally.by(documents, name_of=lambda document: length_bucket(document.num_bytes, bounds=bounds), order=length_bucket_names(bounds)),
        calibration=tally.calibration(),
        baselines=baselines,
        parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        weight_bytes=sum(entry.size for entry in weights),
        weight_type=str(subject.model.dtype).removeprefix("torch."),
    )


def _speed(task: ItemTask, subject: _Subject, prompt: npt.NDArray[np.int64], *, tokens_per_s: float) -> Speed:
    length = task.config.tokenization.sequence_length
    first, further = latency_ms(subject.model, prompt[:32].tolist(), length=length, device=subject.device)
    name = torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else "cpu"
    return Speed(device=name, threads=torch.get_num_threads(), scoring_tokens_per_s=tokens_per_s, first_token_ms=first, next_token_ms=further)


def _publish(task: ItemTask, subject: _Subject, *, report: Report, speed: Speed) -> tuple[Report, tuple[FileEntry, ...]]:
    """Publishes what was found. Returns the report that stands, of which pictures and figures are made, and the entries of all files."""
    config, training = task.config.evaluation, task.config.training
    samples = sample(
        subject.model,
        subject.tokenizer,
        config=config,
        end_of_text_id=subject.end_of_text_id,
        length=task.config.tokenization.sequence_length,
        seed=training.seed,
        device=subject.device,
    )
    entries = [_publish_json(task, name, value) for name, value in ((REPORT_NAME, report), (SAMPLES_NAME, samples), (SPEED_NAME, speed))]
    report = _standing_report(task.output_dir / REPORT_NAME)
    for name in plot_names(report):
        temporary = task.temporary(f"{PLOTS_FOLDER}/{name}")
        draw(name, report, path=temporary)
        entries.append(_publish_file(task, temporary, name=f"{PLOTS_FOLDER}/{name}"))
    return report, tuple(sorted(entries, key=lambda entry: entry.path))


def _standing_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise taken_by_other_bytes(path, subject="evaluation") from error


def _publish_json(task: ItemTask, name: str, value: BaseModel) -> FileEntry:
    temporary = task.temporary(name)
    write_durably(temporary, canonical_json(value))
    return _publish_file(task, temporary, name=name)


def _publish_file(task: ItemTask, temporary: Path, *, name: str) -> FileEntry:
    """Publishes a file, unless an earlier start did that was killed before its record: its file stands then, and its entry is returned.

    Last digits follow from the cores and the device, and times never repeat, so a later start may find others. Here it replaces nothing all the same
    (what becomes of it in a bucket is the agent's affair): a start that was taken for dead may still write its record, which must fit the files.
    """
    final = task.output_dir / name
    try:
        publish_file(temporary, final)
    except AlreadyExistsError:
        logger.info("%s: an earlier start's stays, other bytes were found now", name)
        temporary.unlink()
    return file_entry(final, relative_to=task.output_dir)


if __name__ == "__main__":
    item_main(run)
