"""The model card: what the model is, how good it is beside its baselines, what it was made from, how to use it.

Pure: equal inputs give equal bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.stage import Stage
from tasks.evaluate.report import Report, Samples, Speed
from tasks.register.gate import Verdict
from tasks.register.lineage import Lineage

_MAX_SAMPLE_CHARS = 600
_MAX_FACT_CHARS = 32


def render(*, model_name: str, lineage: Lineage, report: Report, speed: Speed, samples: Samples, verdict: Verdict) -> str:
    """Returns the card as Markdown."""
    sections = [
        f"# {model_name}",
        f"A causal language model with {report.parameters:,} parameters ({report.weight_type}), made by Headrace from the text described below.",
        "## How good it is",
        _table(("", "bits per byte"), [("**this model**", f"**{report.overall.bits_per_byte:.4f}**"), *_baselines(report)]),
        _figures(report, speed),
        f"Measured on {report.overall.text_bytes:,} bytes in {report.overall.documents:,} held-out documents: {report.method}.",
        *[f"- {baseline.name}: {baseline.method}." for baseline in report.baselines],
        "## By source and length",
        _table(("", "documents", "bits per byte", "accuracy"), _slices(report)),
        "## Gate",
        "\n".join(f"- {reason}" for reason in verdict.reasons) or "No bound was configured.",
        "## What it says",
        *[_sample(sample.prompt, sample.completion) for sample in samples.samples],
        "## What it was made from",
        *[_stage(stage, lineage) for stage in Stage if stage in lineage.records],
        "## How to use it",
        _usage(model_name),
        "## What it is not",
        "A language model continues text. It was not tuned to follow instructions, nor checked for truth, bias or safety.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _baselines(report: Report) -> list[tuple[str, ...]]:
    return [(baseline.name, f"{baseline.bits_per_byte:.4f}") for baseline in report.baselines]


def _figures(report: Report, speed: Speed) -> str:
    overall = report.overall
    rows = [
        ("loss", f"{overall.loss:.4f} nats per token"),
        ("perplexity", f"{overall.perplexity:.3f}"),
        ("next-token accuracy", f"{overall.accuracy:.2%}"),
        ("expected calibration error", f"{report.calibration.expected_error:.4f}"),
        ("weights", f"{report.weight_bytes / 1e6:,.1f} MB"),
        ("scoring", f"{speed.scoring_tokens_per_s:,.0f} tokens/s on {speed.device} with {speed.threads} threads"),
        ("latency", f"{speed.first_token_ms:.1f} ms to the first token, {speed.next_token_ms:.1f} ms per further token"),
    ]
    return _table(("figure", "value"), rows)


def _slices(report: Report) -> list[tuple[str, ...]]:
    parts = [*report.by_source, *report.by_length]
    return [(part.name, f"{part.scores.documents:,}", f"{part.scores.bits_per_byte:.4f}", f"{part.scores.accuracy:.2%}") for part in parts]


def _sample(prompt: str, completion: str) -> str:
    """A prompt and its continuation as an indented block, which no content of theirs can end."""
    text = (prompt + completion)[:_MAX_SAMPLE_CHARS]
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (nothing)"


def _stage(stage: Stage, lineage: Lineage) -> str:
    record = lineage[stage]
    facts = ", ".join(f"{key} {_plain(value)}" for key, value in record.summary.items() if _is_short(key, value))
    return f"- **{stage.value}** `{record.key}`, content `{record.content_hash}`" + (f": {facts}" if facts else "")


def _is_short(key: str, value: Any) -> bool:
    """Whether a summary's entry is a figure or a word that says something to a reader."""
    return key != "schema_version" and (isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= _MAX_FACT_CHARS))


def _plain(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:.6g}" if type(value) is float else str(value)


def _usage(model_name: str) -> str:
    lines = [
        "```python",
        "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{model_name}@champion")',
        'model.predict(["Once upon a time"], params={"max_new_tokens": 40})',
        "```",
        "",
        "The folder `artifacts/model` inside it loads with `transformers.AutoModelForCausalLM.from_pretrained` as it is.",
    ]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run_metrics(report: Report) -> Mapping[str, float]:
    """Returns the figures that the MLflow run shows beside its training curves."""
    overall = report.overall
    figures = {
        "bits_per_byte": overall.bits_per_byte,
        "loss": overall.loss,
        "perplexity": overall.perplexity,
        "accuracy": overall.accuracy,
        "calibration_error": report.calibration.expected_error,
    }
    figures |= {f"bits_per_byte_{baseline.name}": baseline.bits_per_byte for baseline in report.baselines}
    return {f"evaluation/{name}": value for name, value in figures.items()}
