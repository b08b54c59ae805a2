"""Whether a training may start a further job: its budget, and what the jobs before made of it."""

from cluster.attempt import list_attempts, read_exit, read_spec, read_verdict
from cluster.budget import budget_of
from cluster.layout import ArtifactLayout
from cluster.restart import Decision
from cluster.storage import Storage
from cluster.submission import note_verdict
from schemas.attempt import Cause
from schemas.job import JobSpec


def refuse_spent(storage: Storage, request: JobSpec) -> None:
    """Refuses a job that its budget would end at once. An attempt that runs is none of its business: it is adopted, with the budget that it has.

    An attempt that stopped at the end of its budget while nobody looked is settled here when the request allows more: whoever asks for that
    has decided already.

    Raises:
        PolicyStopError: the budget is used up, or the request allows no more than the attempt that found it so.
    """
    layout = ArtifactLayout(request.artifact_key)
    numbers = list_attempts(storage, layout, step_name=request.step_name)
    if not numbers:
        return
    attempt = layout.attempt(request.step_name, numbers[-1])
    spec, ended = read_spec(storage, attempt), read_exit(storage, attempt)
    if ended is None:
        return
    stopped = ended.cause is Cause.BUDGET
    budget = budget_of(storage, request.model_copy(update={"attempt": numbers[-1] + 1}))
    raised = budget is None or spec.device_s_allowed is None or budget.allowed_s > spec.device_s_allowed
    if budget is not None and (budget.left_s <= 0.0 or (stopped and not raised)):
        raise budget.spent(0.0)
    if stopped and read_verdict(storage, attempt) is None:
        note_verdict(storage, attempt, Decision("stop", "a larger budget was asked for"))
