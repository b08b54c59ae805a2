"""Numbers as people read them, and lines made of a few of them. Pure, and imports next to nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cluster.closing import LEFT_OPEN
from schemas.cost import TrainingCost, of_hours
from schemas.ledger import GoodputLedger, Spent
from schemas.mixture import SLOTS, SourceShare
from schemas.stage import Stage
from schemas.view import JobProgress


def of_bytes(count: float) -> str:
    """Returns `12.3 MB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def counted(count: int, *, noun: str) -> str:
    """Returns `1 shard`, `2,000 shards`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def of_count(count: float) -> str:
    """Returns `999`, `2.2 M`, `26 B`."""
    for unit in ("", "k", "M", "B", "T"):
        if count < 999.5 or unit == "T":
            text = f"{count:.0f}" if not unit or count >= 99.95 else f"{count:.3g}"
            return f"{text} {unit}".strip()
        count /= 1000
    raise AssertionError


def of_seconds(seconds: float) -> str:
    """Returns `3.1 s`, `2 min 05 s`, `4 h 10 min`, `3 d 4 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def of_moment(at: float) -> str:
    """Returns `2026-11-22 02:15:07`, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def table(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """Returns rows as aligned lines; the columns in `right` are set to the right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


_LEAST_SHARE = 0.0005
"""Shares of the time below this are not shown."""

# ---- lines ------------------------------------------------------------------------------------------------------------

_DETAILS: Mapping[Stage, tuple[tuple[str, Callable[[Any], str]], ...]] = {
    Stage.VALIDATE: (
        ("accepted", "{:,} documents".format),
        ("text_bytes", of_bytes),
        ("quarantined", "{:,} quarantined".format),
    ),
    Stage.PREPARE: (
        ("accepted", "{:,} documents left".format),
        ("text_bytes", of_bytes),
        ("quarantined", "{:,} refused".format),
    ),
    Stage.TOKENIZER: (("vocab_size", "{:,} ids".format), ("bytes_per_token", "{:.2f} bytes per token".format)),
    Stage.TOKENIZE: (("tokens", lambda tokens: f"{sum(tokens.values()):,} tokens"), ("shards", partial(counted, noun="shard"))),
    Stage.TRAIN: (
        ("steps", "{:,} steps".format),
        ("world_size", partial(counted, noun="rank")),
        ("validation_loss", "validation loss {:.3f}".format),
        ("goodput", "goodput {:.0%}".format),
        ("cost", "cost {:,.2f}".format),
    ),
    Stage.EXPORT: (("num_parameters", lambda count: f"{of_count(count)} parameters"), ("dtype", str)),
    Stage.EVALUATE: (("bits_per_byte", "{:.3f} bits per byte".format), ("perplexity", "perplexity {:.1f}".format)),
    Stage.REGISTER: (("version", "version {}".format), ("aliases", ", ".join)),
}
"""Per stage: which figures of its summary are shown, and how."""


def source_row(source: SourceShare) -> tuple[str, str, str]:
    """Returns what training uses of one source, as a row of the plan's numbers."""
    share = "?" if source.share is None else f"{source.share:.2%}"
    if source.sequences is None or source.slots is None:
        return (f"source {source.source}", share, "of the sequences; how many it has is known once the text is tokenized")
    epochs = "?" if source.epochs is None else f"{source.epochs:.2f}"
    return (f"source {source.source}", share, f"{source.slots:,} / {SLOTS:,}: {epochs} passes over its {source.sequences:,} sequences")


def stage_detail(stage: Stage, figures: Mapping[str, Any]) -> str:
    """Returns the few figures of a finished stage that matter to people, from its artifact's summary; empty when it has none of them."""
    parts = []
    for name, form in _DETAILS[stage]:
        value = figures.get(name)
        if value is not None and value != () and value != []:
            parts.append(form(value))
    return ", ".join(parts)


def model_uri(figures: Mapping[str, Any]) -> str:
    """Returns `models:/demo@champion`, or `models:/demo/3` without an alias; empty for another stage's figures."""
    name, version, aliases = figures.get("model_name"), figures.get("version"), figures.get("aliases") or ()
    if not name:
        return ""
    best = next((alias for alias in ("champion", "candidate") if alias in aliases), "")
    return f"models:/{name}@{best}" if best else f"models:/{name}/{version}"


def items_line(job: JobProgress) -> str:
    """Returns `scan: 12 of 40 items, 812 MB of 2.5 GB, 34 files/s, 85.2 MB/s, 20 s to go`."""
    parts, array = [f"{job.job}: {job.items_done} of {job.items_total} items"], job.array
    if array is not None and array.bytes_total:
        parts.append(f"{of_bytes(array.bytes_done)} of {of_bytes(array.bytes_total)}")
    if array is not None and array.bytes_per_s > 0:
        parts += [f"{array.files_per_s:.3g} files/s"] if array.files_total else []
        parts.append(f"{of_bytes(array.bytes_per_s)}/s")
    parts += [f"{of_seconds(job.eta_s)} to go"] if job.eta_s >= 0 else []
    return ", ".join(parts)


def incident_line(incident: Mapping[str, Any], *, stage: Stage = Stage.TRAIN) -> str:
    """Returns `rank 1 killed at step 402, running again after 1.9 s, 4 steps redone`. Of another stage, what is committed are items."""
    rank, step, committed = int(incident.get("rank", -1)), int(incident.get("step", -1)), int(incident.get("committed_step", -1))
    who = str(incident.get("item") or (f"rank {rank}" if rank >= 0 else "the job"))
    at = f" at step {step}" if step >= 0 else ""
    if incident.get("cause") == "queue":
        return f"{next(iter(incident.get('evidence', ())), 'its nodes were not to be had')}: the next attempt asks for fewer"
    if incident.get("decision") == "stop" and _goes_on(incident):
        kept = f"step {max(0, committed)} is committed" if stage is Stage.TRAIN else f"{max(0, committed)} items are kept"
        return f"{who} {_verb(str(incident.get('cause')))}{at}; {kept}"
    if incident.get("decision") == "stop":
        return f"{who} {_verb(str(incident.get('cause')))}{at}; stopped: {incident.get('reason')}"
    recovered = float(incident.get("recovered_after_s", -1.0))
    again = f", running again after {recovered:.1f} s" if recovered >= 0 else ", started again"
    redone = max(0, step - max(0, committed)) if step >= 0 else 0
    return f"{who} {_verb(str(incident.get('cause')))}{at}{again}" + ("" if incident.get("item") else f", {_redone(redone)}")


_ANNOUNCED = ("preemption", "time limit")
"""Causes after which ranks committed and ended as they were asked to."""


def _goes_on(incident: Mapping[str, Any]) -> bool:
    """Whether another attempt follows one that ended with this incident, as far as can be told from it."""
    return incident.get("cause") in _ANNOUNCED or (incident.get("reason") == LEFT_OPEN and incident.get("cause") != "cancelled")


def ledger_line(ledger: GoodputLedger) -> str:
    """Returns `94.1 % of 12 min 05 s went into useful steps; redone step 2.1 %, start-up 1.9 %, recovery 1.2 %; 3 restarts, 14 steps redone`."""
    wall_s = ledger.wall_s or 1.0
    others = sorted(((seconds / wall_s, what) for what, seconds in ledger.seconds.items() if what is not Spent.USEFUL), key=lambda item: -item[0])
    parts = [f"{what.value} {100 * share:.1f} %" for share, what in others if share >= _LEAST_SHARE]
    restarts = f"{ledger.restarts} restart{'' if ledger.restarts == 1 else 's'}, {_redone(ledger.steps_redone)}" if ledger.restarts else ""
    head = f"{100 * ledger.goodput:.1f} % of {of_seconds(ledger.wall_s)} went into useful steps"
    acts = f"numbers changed by {len(ledger.acts)} act{'' if len(ledger.acts) == 1 else 's'}, the last: {ledger.acts[-1]}" if ledger.acts else ""
    return "; ".join(part for part in (head, ", ".join(parts), restarts, acts) if part)


def cost_line(cost: TrainingCost) -> str:
    """Returns `4.2 GPU-hours used of a budget of 8, which cost 8.82 at 2.10 each; 1.3 more to go`; of ranks, it says that they are counted."""
    counted = " (a rank counts as a device)" if cost.device == "rank" else ""
    budget = f" of a budget of {cost.budget_hours:g}" if cost.budget_hours is not None else ""
    price = f", which cost {cost.cost_used:,.2f} at {cost.price_per_hour:.2f} each" if cost.cost_used is not None else ""
    to_go = f"; {of_hours(cost.left_hours)} more to go" if cost.left_hours else ""
    return f"{of_hours(cost.used_hours)} {cost.unit}{counted} used{budget}{price}{to_go}"


def _redone(steps: int) -> str:
    return f"{steps:,} step{'' if steps == 1 else 's'} redone"


_VERBS: Mapping[str, str] = {
    "killed": "killed",
    "hang": "hung",
    "out of memory": "ran out of memory",
    "preemption": "preempted",
    "time limit": "stopped before its time limit",
    "budget": "stopped at the end of its budget",
    "user code": "crashed",
}


def _verb(cause: str) -> str:
    return _VERBS.get(cause, f"failed ({cause})")


_BASELINE_ORDER = ("5-gram", "xz", "gzip")


def comparison_lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns bits per byte beside the baselines, and whether the model beats them; nothing without an evaluation."""
    own = figures.get("bits_per_byte")
    if own is None:
        return []
    baselines: Mapping[str, float] = figures.get("baselines") or {}
    named = [name for name in _BASELINE_ORDER if name in baselines] + sorted(set(baselines) - set(_BASELINE_ORDER))
    beside = ", ".join(f"{name} {baselines[name]:.3f}" for name in named)
    unbeaten = [name for name in named if baselines[name] <= own]
    verdict = f"NOT better than {', '.join(unbeaten)}" if unbeaten else "better than all of them"
    return [f"held-out   {own:.3f} bits per byte; {beside}: {verdict}" if named else f"held-out   {own:.3f} bits per byte"]
