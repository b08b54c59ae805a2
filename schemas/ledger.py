"""Where the wall time of a training went: the goodput ledger (`headrace status`, MLflow `goodput/…`, `goodput/e000003.json`)."""

from enum import StrEnum

from schemas.frozen import Frozen


class Spent(StrEnum):
    """What a second of wall time was spent on. Every second belongs to exactly one."""

    USEFUL = "useful step"
    """Forward, backward, agreement and update of steps that count."""
    REDONE = "redone step"
    """Work that a later start did again, all parts of it: steps beyond the checkpoint that training went on from, and the step that was cut off."""
    CHECKPOINT = "checkpoint stall"
    """Training waited for a checkpoint."""
    DATA = "data wait"
    """Training waited for its batch."""
    START_UP = "start-up"
    """From a job's claim until its ranks began their first step."""
    RECOVERY = "recovery"
    """From the notice of a failure until ranks were in a step again; between two attempts too."""
    HANG_DETECTION = "hang detection"
    """From the last sign of life until the hang, or the loss of a node or an agent, was noticed."""
    QUEUE = "queue"
    """From the wish for a job until it claimed its attempt."""
    EVALUATION = "evaluation"
    """Validation and samples between two steps."""
    OTHER = "other"
    """All else: logging between steps, and the end of a job."""


class GoodputLedger(Frozen):
    """The account of one training artifact, from the wish for its first job until `until`."""

    since: float
    """When the first job was wished for, seconds since the Unix epoch."""
    until: float
    """What is accounted for ends here: the end of the last job, or the newest word of the one that runs. Seconds since the Unix epoch."""
    complete: bool
    """Whether no job of the training is left open."""
    wall_s: float
    """Seconds from `since` until `until`, without `away_s`: the sum of `seconds`."""
    away_s: float
    """Seconds in which nobody wanted it to go on, or nobody was there to notice that it had ended."""
    seconds: dict[Spent, float]
    """What was spent on what; all of them are named."""
    goodput: float
    """`useful step` over `wall_s`; 0 when nothing is accounted for yet."""
    steps: int
    """Steps that count."""
    steps_redone: int
    """Steps that were done and had to be done again."""
    attempts: int
    """Jobs."""
    restarts: int
    """Starts of ranks beyond the first."""
    mtbf_s: float
    """Mean time between failures as it is expected now, seconds (`cluster.failure_rate`)."""
    acts: tuple[str, ...] = ()
    """What was done that changes numbers (`schemas.act`), oldest first; empty for a calm training."""

    def figures(self) -> dict[str, float]:
        """Returns the account as single figures, by the names that MLflow shows: `goodput/ratio`, `goodput/useful_step_s`, …"""
        seconds = {f"{what.value.replace(' ', '_').replace('-', '_')}_s": value for what, value in self.seconds.items()}
        counts = {"steps_redone": self.steps_redone, "restarts": self.restarts, "attempts": self.attempts}
        figures = {"ratio": self.goodput, "wall_s": self.wall_s, "mtbf_s": self.mtbf_s, **counts, **seconds}
        return {f"goodput/{name}": float(value) for name, value in figures.items()}
