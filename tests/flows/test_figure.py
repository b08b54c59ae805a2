"""Numbers and lines as people read them."""

import re
from typing import Any

import pytest

from cluster.closing import LEFT_OPEN
from flows.figure import comparison_lines, counted, incident_line, ledger_line, model_uri, of_bytes, of_count, of_seconds, stage_detail, table
from schemas.ledger import GoodputLedger, Spent
from schemas.stage import Stage


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345, "12.3 kB"),
        (99_949, "99.9 kB"),
        (123_456, "123 kB"),
        (999_600, "1.0 MB"),
        (5e12, "5.0 TB"),
        (5e16, "50000 TB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert of_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (2_164_416, "2.16 M"), (26e9, "26 B"), (1.4e11, "140 B"), (999_999, "1 M")]
)
def test_counts(count: float, text: str) -> None:
    assert of_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.14, "3.1 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"), (3599.6, "1 h 00 min"), (15_000, "4 h 10 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert of_seconds(seconds) == text


def test_one_of_something_has_no_plural() -> None:
    assert [counted(count, noun="shard") for count in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert stage_detail(Stage.TRAIN, {"world_size": 1}) == "1 rank"


def test_a_table_is_aligned_without_trailing_space() -> None:
    assert table([("a", "1", ""), ("bbb", "22", "x")], right=(1,)) == ["a     1", "bbb  22  x"]
    assert table([]) == []


@pytest.mark.parametrize(
    ("figures", "uri"),
    [
        ({"model_name": "demo", "version": 3, "aliases": ["candidate", "champion"]}, "models:/demo@champion"),
        ({"model_name": "demo", "version": 3, "aliases": ["candidate"]}, "models:/demo@candidate"),
        ({"model_name": "demo", "version": 3, "aliases": []}, "models:/demo/3"),
        ({}, ""),
    ],
)
def test_model_uri(figures: dict[str, Any], uri: str) -> None:
    assert model_uri(figures) == uri


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "rank 1 killed at step 80, running again after 1.9 s, 4 steps redone"),
        ({"committed_step": 79}, "rank 1 killed at step 80, running again after 1.9 s, 1 step redone"),
        ({"committed_step": -1}, "rank 1 killed at step 80, running again after 1.9 s, 80 steps redone"),
        ({"recovered_after_s": -1.0, "cause": "hang"}, "rank 1 hung at step 80, started again, 4 steps redone"),
        (
            {"rank": -1, "cause": "queue", "step": -1, "decision": "stop", "evidence": ("the queue did not give 4 nodes within 10 min",)},
            "the queue did not give 4 nodes within 10 min: the next attempt asks for fewer",
        ),
        ({"rank": -1, "cause": "node", "step": -1}, "the job failed (node), running again after 1.9 s, 0 steps redone"),
        ({"decision": "stop", "reason": "no progress", "cause": "user code"}, "rank 1 crashed at step 80; stopped: no progress"),
        ({"item": "item 1 (g0001)", "cause": "hang", "step": -1}, "item 1 (g0001) hung, running again after 1.9 s"),
        (
            {"decision": "stop", "rank": -1, "cause": "preemption", "committed_step": 80},
            "the job preempted at step 80; step 80 is committed",
        ),
        (
            {"decision": "stop", "rank": -1, "cause": "time limit", "committed_step": 80},
            "the job stopped before its time limit at step 80; step 80 is committed",
        ),
        (
            {"decision": "stop", "rank": -1, "cause": "budget", "committed_step": 80, "reason": "a larger budget.gpu_hours goes on"},
            "the job stopped at the end of its budget at step 80; stopped: a larger budget.gpu_hours goes on",
        ),
    ],
)
def test_incidents(change: dict[str, Any], line: str) -> None:
    incident = {"rank": 1, "step": 80, "committed_step": 76, "cause": "killed", "decision": "restart", "reason": "", "recovered_after_s": 1.9}
    assert incident_line(incident | change) == line


def test_of_items_it_is_said_how_many_are_kept() -> None:
    incident = {"rank": -1, "step": -1, "committed_step": 6, "cause": "killed", "decision": "stop", "reason": LEFT_OPEN}
    assert incident_line(incident, stage=Stage.TOKENIZE) == "the job killed; 6 items are kept"
    assert incident_line(incident) == "the job killed; step 6 is committed"


@pytest.mark.parametrize(
    ("baselines", "ending"),
    [
        ({"xz": 1.6, "5-gram": 1.5}, "5-gram 1.500, xz 1.600: better than all of them"),
        ({"xz": 1.2, "5-gram": 1.5, "own": 1.4}, "5-gram 1.500, xz 1.200, own 1.400: NOT better than xz, own"),
        ({}, "1.400 bits per byte"),
    ],
)
def test_a_model_that_is_no_better_is_called_so(baselines: dict[str, float], ending: str) -> None:
    (line,) = comparison_lines({"bits_per_byte": 1.4, "baselines": baselines})
    assert line.endswith(ending)
    assert comparison_lines({}) == []


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_without_figures_shows_none(stage: Stage) -> None:
    assert stage_detail(stage, {}) == ""
    assert stage_detail(stage, {"seconds": 3.0, "unheard_of": 1}) == ""


def ledger(**seconds: float) -> GoodputLedger:
    spent = {what: seconds.get(what.name.lower(), 0.0) for what in Spent}
    wall_s = sum(spent.values())
    return GoodputLedger(
        since=0.0,
        until=wall_s,
        complete=True,
        wall_s=wall_s,
        away_s=0.0,
        seconds=spent,
        goodput=spent[Spent.USEFUL] / wall_s if wall_s else 0.0,
        steps=100,
        steps_redone=0,
        attempts=1,
        restarts=0,
        mtbf_s=60.0,
    )


def test_the_ledger_names_what_the_time_went_into_most_first_and_leaves_out_what_is_nothing() -> None:
    calm = ledger(useful=90.0, start_up=6.0, checkpoint=0.04, data=3.96)
    assert ledger_line(calm) == "90.0 % of 1 min 40 s went into useful steps; start-up 6.0 %, data wait 4.0 %"
    restarted = calm.model_copy(update={"restarts": 2, "steps_redone": 14})
    assert ledger_line(restarted).endswith("data wait 4.0 %; 2 restarts, 14 steps redone")
    acted = restarted.model_copy(update={"restarts": 1, "acts": ("rewind at step 7: the loss is not finite",)})
    assert ledger_line(acted).endswith("1 restart, 14 steps redone; numbers changed by 1 act, the last: rewind at step 7: the loss is not finite")
    assert ledger_line(ledger()) == "0.0 % of 0.0 s went into useful steps"


def test_the_ledgers_figures_have_names_that_mlflow_takes() -> None:
    figures = ledger(useful=90.0, hang_detection=10.0).figures()
    assert (figures["goodput/ratio"], figures["goodput/useful_step_s"], figures["goodput/hang_detection_s"]) == (0.9, 90.0, 10.0)
    assert all(re.fullmatch(r"goodput/[a-z_]+", name) for name in figures)
