"""Proves on one's own recipe that restarts lose nothing: trains twice in scratch storage, once calm and once with kills, and compares.

The weights, the moments, the step and the generators of the final commit are compared byte by byte, through its content hash; the
sequences that every step has used, through a hash that the ranks keep (`tasks.train.consumed`), with what the recipe prescribes.
"""

import random
import threading

from schemas.attempt import Incident
from schemas.errors import ConfigError, Problem
from schemas.execution_config import RestartConfig
from schemas.frozen import Frozen, thaw
from schemas.ledger import GoodputLedger
from tasks.disturbance import kill_rank
from tasks.scratch_training import Audience, Origin, ScratchTraining, prescribed_ids, scratch_folder


class ProvenKill(Frozen):
    """One kill of the proof, and what it cost."""

    rank: int
    """The rank that was killed."""
    step: int
    """The newest step that any rank had reached."""
    resumed_from: int
    """The committed step that training went on from."""
    recovered_after_s: float
    """Seconds until all ranks were in a step again."""


class ResumeProof(Frozen):
    """What `headrace verify-resume --kills` found."""

    steps: int
    """Steps of each training."""
    world_size: int
    """Ranks."""
    calm_hash: str
    """Content hash of the undisturbed training's final commit."""
    disturbed_hash: str
    """Content hash of the killed training's final commit."""
    prescribed_ids: str
    """Hash of the sequences that the recipe prescribes for all steps."""
    calm_ids: str
    """Hash of the sequences that the undisturbed training has used."""
    disturbed_ids: str
    """Hash of the sequences that the killed training has used, of each step as it counts."""
    calm_s: float
    """Wall time of the undisturbed training."""
    disturbed_s: float
    """Wall time of the killed training."""
    kills: tuple[ProvenKill, ...]
    """What was done to it."""
    ledger: GoodputLedger
    """Where the killed training's time went."""
    calm_ledger: GoodputLedger
    """Where the undisturbed training's time went."""
    scratch: str
    """Where both lie; empty when they are removed."""

    @property
    def equal(self) -> bool:
        """Whether both ended with the same bytes, made from the same sequences."""
        return self.calm_hash == self.disturbed_hash and self.prescribed_ids == self.calm_ids == self.disturbed_ids


def prove_resume(origin: Origin, *, kills: int, seed: int, audience: Audience, keep: bool = False) -> ResumeProof:
    """Returns the proof for a recipe. The first Ctrl-C or SIGTERM stops the job that runs.

    Args:
        origin: the recipe.
        kills: how many ranks to kill, one after another, at seeded steps.
        seed: decides when and whom.
        audience: who hears how it goes.
        keep: leave the scratch storage in place.

    Raises:
        ConfigError: storage is not a local folder, or more kills than steps.
        InterruptedRunError: it was asked to stop.
        HeadraceError: a stage failed.
    """
    config = origin.config
    with scratch_folder(origin, keep=keep, audience=audience) as folder:
        undisturbed = ScratchTraining(origin, folder / "calm", config=config, audience=audience)
        prepared = undisturbed.prepare()
        undisturbed.take(prepared)
        audience.note("training undisturbed")
        calm = undisturbed.train()
        world_size = int(calm.record.summary["world_size"])
        victims = _victims(kills, steps=calm.state.step, world_size=world_size, seed=seed)
        audience.note(f"training again, with {kills} kill{'' if kills == 1 else 's'}")
        own = config.model_copy(update={"restart": with_kills(config.restart, kills)})
        struck = ScratchTraining(origin, folder / "disturbed", config=own, audience=audience)
        struck.take(prepared)
        disturbed = struck.train(meanwhile=lambda ended: _kill_all(struck, victims, ended))
        return ResumeProof(
            steps=calm.state.step,
            world_size=world_size,
            calm_hash=calm.record.content_hash,
            disturbed_hash=disturbed.record.content_hash,
            prescribed_ids=prescribed_ids(origin, prepared, state=calm.state),
            calm_ids=calm.state.consumed,
            disturbed_ids=disturbed.state.consumed,
            calm_s=calm.seconds,
            disturbed_s=disturbed.seconds,
            kills=tuple(_proven(incident) for incident in disturbed.incidents),
            ledger=disturbed.ledger,
            calm_ledger=calm.ledger,
            scratch=str(folder) if keep else "",
        )


def with_kills(restart: RestartConfig, kills: int) -> RestartConfig:
    """Returns budgets that `kills` kills cannot use up, even when no step is committed between any of them."""
    return restart.model_copy(
        update={
            "max_failures": restart.max_failures + kills,
            "max_interruptions": restart.max_interruptions + kills,
            "max_attempts_without_progress": restart.max_attempts_without_progress + kills,
        }
    )


def _kill_all(training: ScratchTraining, victims: tuple[tuple[int, int], ...], ended: threading.Event) -> None:
    """Kills each (rank, step) in turn, until the training has `ended`."""
    for number, (rank, step) in enumerate(victims):
        kill = kill_rank(training.storage, artifact_key=training.artifact_key, rank=rank, at_step=step, epoch=number, cancelled=ended)
        if kill is None:
            return


def _victims(kills: int, *, steps: int, world_size: int, seed: int) -> tuple[tuple[int, int], ...]:
    """(rank, step) of each kill, in order of steps: seeded, spread over the training, never in its last tenth."""
    last = max(1, steps * 9 // 10)
    if kills > last:
        raise ConfigError((Problem("--kills", str(kills), f"needs more steps than the training has ({steps})", nearest=str(last)),))
    rng = random.Random(seed)  # noqa: S311  # reproducible, not secret
    return tuple((rng.randrange(world_size), step) for step in sorted(rng.sample(range(1, last + 1), kills)))


def _proven(incident: Incident) -> ProvenKill:
    plain = thaw(incident.model_dump())
    return ProvenKill(
        rank=plain["rank"], step=plain["step"], resumed_from=max(0, plain["committed_step"]), recovered_after_s=plain["recovered_after_s"]
    )
