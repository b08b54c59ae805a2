"""What `headrace plan` answers: per stage what is reused and what is built, and why; every derived number."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.cost import TrainingCost
from schemas.frozen import Frozen, JsonObject, ReadOnly
from schemas.sizing import TrainingSize
from schemas.stage import Stage

RUN, KEY, FINGERPRINT = "RUN", "KEY", "FINGERPRINT"
"""What stands in a script for the run, for the rest of an attempt's key, and for an artifact that depends on what comes before."""


class Action(StrEnum):
    """What a run would do with a stage."""

    REUSE = "reuse"
    """A finished artifact is found by content."""
    BUILD = "build"
    """Nothing is there yet."""
    CONTINUE = "continue"
    """An unfinished artifact is there; finished items and checkpoints are kept."""
    REBUILD = "rebuild"
    """A finished artifact is there, and `--from` asks for a new one."""
    DEPENDS = "depends"
    """Known only when what comes before is made: equal bytes upstream stop the rebuild there."""


class OnChange(StrEnum):
    """What a flow run does with a plan that has something to do."""

    PROPOSE = "propose"
    """Leaves it to people: shows the plan and how to accept it, and runs nothing."""
    RETRAIN = "retrain"
    """Does what the plan says."""
    CONTINUE = "continue"
    """The same, but training starts from the champion's weights, on its tokenizer; where there is no champion yet, as `retrain`."""


class PlannedStage(Frozen):
    """One stage of the plan."""

    stage: Stage
    """The stage."""
    action: Action
    """What would be done."""
    key: str
    """The artifact's folder; empty when it depends on what comes before."""
    fingerprint: str
    """What the artifact is; empty when it depends on what comes before."""
    reasons: tuple[str, ...]
    """Why, in lines for people: the differences to the newest sibling, the inputs that changed."""
    summary: JsonObject = {}
    """The figures of a reused artifact."""


class Plan(Frozen):
    """The whole plan."""

    name: str
    """The recipe's name."""
    storage_root: str
    """Where artifacts lie."""
    stages: tuple[PlannedStage, ...]
    """All stages, in order."""
    size: TrainingSize
    """Derived numbers of the training."""
    cost: TrainingCost | None = None
    """What training takes; None: it is done."""
    scripts: Annotated[Mapping[Stage, str], *ReadOnly] = Field(default_factory=dict)
    """Batch scripts or manifests of the stages that would start jobs, of each the first one; empty where jobs are processes of this machine."""
    warnings: tuple[str, ...] = ()
    """What would not stop a run but should be known."""
    lacks_room: str = ""
    """Why there is too little room in the store for what must be made; empty: as far as can be told, there is enough."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether every stage is reused."""
        return all(stage.action is Action.REUSE for stage in self.stages)

    def stage(self, stage: Stage) -> PlannedStage:
        """Returns the plan of one stage."""
        return next(planned for planned in self.stages if planned.stage is stage)
