"""The control half of `tokenizer`: one work item, then the gate."""

from schemas.artifact import content_hash_of
from schemas.errors import GateError
from schemas.frozen import thaw
from schemas.job import FileRead, WorkItem, WorkPlan
from schemas.stage import Stage
from tasks.recorded_file import entry_of
from tasks.tokenizer.corpus import MANIFEST_NAME, open_corpus
from tasks.tokenizer.job import REPORT_NAME
from tasks.tokenizer.report import TokenizerReport, objections, remarks
from tasks.work import Draft, Work


def build(work: Work) -> Draft:
    """Makes the tokenizer and judges it.

    The content hash covers what encodes, not the report: a tokenizer that retrains to equal bytes leaves later stages as they are.

    Raises:
        GateError: it compresses too little, splits words too much, or does not give every document back.
    """
    source = work.config.corpus_stage
    entry = entry_of(work.inputs[source], MANIFEST_NAME)
    corpus = open_corpus(work.input_dir(source, entry), manifest=entry)
    weight = min(work.config.tokenizer.training_bytes, sum(file.text_bytes for file in corpus.manifest.of_split("train")))
    plan = WorkPlan(stage=Stage.TOKENIZER, step_name="train", items=(WorkItem(index=0, weight_bytes=weight, label="tokenizer"),))
    options = {"corpus": entry.model_dump(mode="json"), "existing": work.identity.inputs.get("existing")}
    key = work.inputs[source].key
    reads = [FileRead(key=key, file=file) for file in (entry, *(file.file for file in corpus.manifest.files))]
    (record,) = work.run_array(plan, module="tasks.tokenizer.job", options=options, reads=reads)
    report = TokenizerReport.model_validate(thaw(record.output))
    for remark in remarks(report):
        work.note(remark)
    against = objections(report, config=work.config.tokenizer)
    if against:
        what = "the tokenizer does not pass its gate: " + "; ".join(against)
        why = f"measured on {report.documents:,} documents of the {report.split} split; the whole report: {work.storage.url}/{work.key}/{REPORT_NAME}"
        raise GateError(what, why=why, mend="a larger vocabulary, more text, or another limit in the recipe's tokenizer section")
    figures = f"{report.bytes_per_token:.2f} bytes per token, {report.tokens_per_word:.2f} tokens per word, round trip {report.round_trip_share:.0%}"
    work.note(f"{report.vocab_size:,} ids: {figures}")
    encoding = tuple(file for file in record.files if file.path != REPORT_NAME)
    return Draft(files=record.files, summary=report.model_dump(mode="json"), content_hash=content_hash_of(encoding))
