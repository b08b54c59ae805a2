"""What a training will take of its devices, and what it took: for plans, for `headrace status`, for its record."""

from cluster.attempt import list_attempts, newest_commit, read_spec
from cluster.budget import used_device_s
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.config import RunConfig
from schemas.cost import TrainingCost, training_cost
from schemas.plan import Action, PlannedStage
from schemas.sizing import TrainingSize
from schemas.stage import Stage
from tasks.pace import measured_pace


def planned_cost(config: RunConfig, *, storage: Storage, stage: PlannedStage, size: TrainingSize, alike: str = "") -> TrainingCost | None:
    """Returns what a planned training will have taken in the end; None when it is done already.

    Args:
        stage: the plan of `train`.
        size: its derived numbers.
        alike: a training of the same model, although its model section reads otherwise.
    """
    if stage.action is Action.REUSE:
        return None
    layout = ArtifactLayout(stage.key)
    in_making = stage.action is Action.CONTINUE
    pace = measured_pace(storage, config, key=stage.key, alike=alike)
    left_s = None
    if pace is not None and size.total_steps is not None:
        done = max(0, newest_commit(storage, layout)) if in_making else 0
        left_s = max(0, size.total_steps - done) * size.tokens_per_step * pace.device_s_per_token
    return training_cost(
        gpus=bool(config.cluster.resources(Stage.TRAIN).gpus_per_node),
        used_s=used_device_s(storage, layout) if in_making else 0.0,
        left_s=left_s,
        budget_s=config.budget.seconds,
        price_per_hour=config.cluster.price_per_gpu_hour,
        paced_by=pace.artifact_key if pace is not None else "",
    )


def cost_so_far(storage: Storage, layout: ArtifactLayout, *, left_s: float | None = None) -> TrainingCost | None:
    """Returns what a training's jobs took so far, by the budget and the price of the newest; None before there is a job.

    Args:
        left_s: seconds that the newest job still needs; None: nobody knows.
    """
    numbers = list_attempts(storage, layout, step_name="")
    if not numbers:
        return None
    spec = read_spec(storage, layout.attempt("", numbers[-1]))
    return training_cost(
        gpus=bool(spec.gpus_per_node),
        used_s=used_device_s(storage, layout),
        left_s=None if left_s is None else left_s * spec.devices,
        budget_s=spec.device_s_allowed,
        price_per_hour=spec.config.get("cluster", {}).get("price_per_gpu_hour"),
    )
