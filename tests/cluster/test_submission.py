"""A launcher that has no room for a job now is asked again, as one waits in a queue."""

from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit
from cluster.launchers.protocol import Handle, JobState, NoRoomError, Submission
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits, JobSpec
from tests.fakes.job_request import gang_request
from tests.fakes.scripted_job import ScriptedJob, ends


class FullLauncher:
    """Refuses for want of room, so many times or for so many nodes."""

    def __init__(self, stage: ScriptedJob, *, refuses: Any) -> None:
        self.tries: list[float] = []
        submit = stage.launcher.submit

        def full(submission: Submission) -> Handle:
            self.tries.append(stage.clock.now)
            if refuses(len(self.tries), submission):
                raise NoRoomError("there is no room", why="quota")
            return submit(submission)

        stage.launcher.submit = full  # type: ignore[method-assign]


def test_it_is_asked_for_as_long_as_it_takes_but_not_all_the_time(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    stage.launcher.scripts = [ends(stage)]
    full = FullLauncher(stage, refuses=lambda count, _submission: count <= 40)
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1
    assert full.tries[-1] == pytest.approx(40 * 15.0, rel=0.1)


def test_a_wish_to_stop_ends_the_wait(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    full = FullLauncher(stage, refuses=lambda _count, _submission: True)
    with pytest.raises(NoRoomError):
        stage.run(stop_requested=lambda: len(full.tries) > 2)


def test_where_fewer_nodes_will_do_they_are_asked_for_after_a_while(tmp_path: Path) -> None:
    shapes = (GangShape(num_nodes=2, ranks_per_node=1), GangShape(num_nodes=1, ranks_per_node=1))
    stage = ScriptedJob(tmp_path)
    stage.request = gang_request(tmp_path, num_nodes=2, ranks=1, elastic=ElasticLimits(shapes=shapes, smaller_after_s=60.0))
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.NODE), ends(stage)]
    FullLauncher(stage, refuses=lambda count, submission: count > 1 and JobSpec.model_validate_json(submission.text).num_nodes == 2)
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.num_nodes for spec in stage.launcher.submitted] == [2, 1]
    withdrawn = read_exit(stage.storage, stage.attempt(1))
    assert withdrawn is not None
    assert withdrawn.cause is Cause.QUEUE
    assert stage.launcher.states[stage.launcher.submitted[0].key] is JobState.ABSENT
