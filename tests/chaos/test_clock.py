"""Row 15 of the fault matrix: the clock of a node jumps by an hour, forth and back, under a running training.

Agent, zygote and ranks read a clock of their own; libfaketime cannot give them one, since its sleeps fail where the monotonic clock stays true.
"""

import shlex
import sys
from pathlib import Path

import pytest

from schemas.exit_code import ExitCode
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults

pytestmark = pytest.mark.slow

_HOUR_S = 3600
_CLOCK = """
import time
from pathlib import Path

_true = time.time
time.time = lambda: _true() + float(Path({offset!r}).read_text())
"""


def test_a_clock_that_jumps_is_no_hang_and_no_loss(make_training: MakeTraining, calm_hash: str, tmp_path: Path) -> None:
    offset, site, python = tmp_path / "offset", tmp_path / "site", tmp_path / "python"
    offset.write_text("0")
    site.mkdir()
    (site / "sitecustomize.py").write_text(_CLOCK.format(offset=str(offset)))
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(site))}:$PYTHONPATH exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    training = make_training(cluster__python=str(python))

    def jump(seconds: int) -> None:
        new = offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(offset)

    with training.meanwhile({0: lambda: jump(_HOUR_S), 1: lambda: jump(-_HOUR_S)}):
        draft = training.run(Faults().hold(rank=0, at_step=12).hold(rank=1, at_step=27))
    assert draft.content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    assert (training.attempts, training.incidents()) == ((0,), [])
    at = {point.step: point.at for point in training.points()}
    assert at[14] - at[12] > _HOUR_S / 2, "the ranks' clock jumped forth"
    assert at[29] - at[26] < -_HOUR_S, "and back"  # rank 0 tells times: while rank 1 is held already it may still be about to tell that of 27
