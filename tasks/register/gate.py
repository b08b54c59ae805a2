"""Whether a model may become `champion`: bounds on the evaluation report. Pure."""

from schemas.artifact import ArtifactRecord
from schemas.errors import GateError
from schemas.frozen import Frozen
from schemas.recipe_config import GateConfig
from tasks.evaluate.report import Report

COMPRESSOR, LANGUAGE_MODEL = "xz", "5-gram"
"""The baselines that `beat_baselines` means."""


class Verdict(Frozen):
    """What the gate says."""

    passed: bool
    """Whether every configured bound holds; true when none is configured."""
    reasons: tuple[str, ...]
    """One line per configured bound, with its numbers; those that fail begin with `no:`."""


def judge(report: Report, gate: GateConfig) -> Verdict:
    """Returns the verdict on a report. A bound that cannot be judged, for want of its figure, fails."""
    own = report.overall.bits_per_byte
    checks: list[tuple[bool, str]] = []
    if gate.max_bits_per_byte is not None:
        checks.append((own <= gate.max_bits_per_byte, f"bits per byte {own:.4f}, at most {gate.max_bits_per_byte}"))
    if gate.max_perplexity is not None:
        perplexity = report.overall.perplexity
        checks.append((perplexity <= gate.max_perplexity, f"perplexity {perplexity:.3f}, at most {gate.max_perplexity}"))
    for name in (COMPRESSOR, LANGUAGE_MODEL) if gate.beat_baselines else ():
        baseline = report.baseline(name)
        if baseline is None:
            checks.append((False, f"{name} was not measured; evaluation.baselines must be true"))
        else:
            checks.append((own < baseline.bits_per_byte, f"bits per byte {own:.4f}, {name} has {baseline.bits_per_byte:.4f}"))
    return Verdict(passed=all(holds for holds, _ in checks), reasons=tuple(f"{'yes' if holds else 'no'}: {text}" for holds, text in checks))


def gate_error(record: ArtifactRecord) -> GateError | None:
    """Returns the error (exit code 4) that a `register` artifact stands for when its gate said no, or None.

    The stage itself succeeds then, with the version kept as `candidate`: registering again would say the same.
    """
    if record.summary["gate_passed"]:
        return None
    failed = "; ".join(str(reason) for reason in record.summary["gate_reasons"] if str(reason).startswith("no"))
    what = f"{record.summary['model_name']} version {record.summary['version']} stays candidate: the gate said no"
    return GateError(what, why=failed, mend="train longer or change registration.gate; headrace run --set registration.gate.… judges again")
