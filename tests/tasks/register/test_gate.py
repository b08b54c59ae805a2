"""The gate, as a table."""

from typing import Any

import pytest

from schemas.exit_code import ExitCode
from schemas.recipe_config import GateConfig
from schemas.stage import Stage
from tasks.evaluate.report import Baseline, Calibration, Report, Scores
from tasks.register.gate import gate_error, judge
from tasks.work import Draft
from tests.fakes.in_process_work import commit


def report(*, bits_per_byte: float = 1.5, perplexity: float = 9.0, **baselines: float) -> Report:
    scores = Scores(documents=1, text_bytes=10, tokens=5, loss=1.0, perplexity=perplexity, bits_per_byte=bits_per_byte, accuracy=0.5)
    return Report(
        method="",
        overall=scores,
        by_source=(),
        by_length=(),
        calibration=Calibration(expected_error=0.0, bins=()),
        baselines=tuple(Baseline(name=name.replace("five", "5-gram"), bits_per_byte=value, method="") for name, value in baselines.items()),
        parameters=1,
        weight_bytes=4,
        weight_type="float32",
    )


@pytest.mark.parametrize(
    ("gate", "figures", "passed", "failing"),
    [
        ({}, {}, True, 0),
        ({"max_bits_per_byte": 1.5}, {}, True, 0),
        ({"max_bits_per_byte": 1.49}, {}, False, 1),
        ({"max_perplexity": 9.0}, {}, True, 0),
        ({"max_perplexity": 8.9}, {}, False, 1),
        ({"max_bits_per_byte": 1.0, "max_perplexity": 2.0}, {}, False, 2),
        ({"beat_baselines": True}, {"xz": 1.7, "five": 1.6, "gzip": 1.0}, True, 0),
        ({"beat_baselines": True}, {"xz": 1.7, "five": 1.5}, False, 1),
        ({"beat_baselines": True}, {"xz": 1.4, "five": 1.4}, False, 2),
        ({"beat_baselines": True}, {"xz": 1.7}, False, 1),
        ({"beat_baselines": True}, {}, False, 2),
        ({"beat_baselines": True, "max_bits_per_byte": 2.0}, {"xz": 1.7, "five": 1.6}, True, 0),
    ],
)
def test_table(gate: dict[str, Any], figures: dict[str, float], passed: bool, failing: int) -> None:
    verdict = judge(report(**figures), GateConfig(**gate))
    assert verdict.passed is passed
    assert sum(reason.startswith("no:") for reason in verdict.reasons) == failing


def test_the_error_names_what_failed_and_exits_4(tmp_path: Any) -> None:
    verdict = judge(report(), GateConfig(max_bits_per_byte=1.2, max_perplexity=20.0))
    summary = {"gate_passed": verdict.passed, "gate_reasons": list(verdict.reasons), "model_name": "demo", "version": 3}
    error = gate_error(commit(tmp_path, Stage.REGISTER, Draft(files=(), summary=summary), key="register/demo-000000000000"))
    assert error is not None
    assert error.exit_code is ExitCode.GATE
    assert "1.5000" in str(error)
    assert "1.2" in str(error)
    assert "version 3" in str(error)
    assert "perplexity" not in str(error)
    passing = {**summary, "gate_passed": True}
    assert gate_error(commit(tmp_path, Stage.REGISTER, Draft(files=(), summary=passing), key="register/demo-000000000000")) is None
