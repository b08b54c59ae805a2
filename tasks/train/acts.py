"""What a rank makes of its artifact's acts at a start: the configuration in force, and the commits that a rewind left behind."""

import logging
import time
from dataclasses import dataclass, field

from cluster.acts import add_act, num_acts, read_acts
from schemas.act import Act, ActKind, Standing, standing_of
from schemas.config import RunConfig
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)


@dataclass
class ActBook:
    """The acts of the artifact that is trained, as all ranks of one start know them."""

    store: CheckpointStore
    epoch: int
    acts: list[Act] = field(default_factory=list)
    """All so far, oldest first."""

    @classmethod
    def read(cls, store: CheckpointStore, *, gang: Gang, epoch: int) -> "ActBook":
        """Reads all acts. Collective: rank 0 says how many there are. Raises VerificationError for a damaged one."""
        count = gang.gather([num_acts(store.storage, store.layout) if gang.rank == 0 else 0])[0][0]
        return cls(store, epoch=epoch, acts=list(read_acts(store.storage, store.layout, count=count)))

    @property
    def standing(self) -> Standing:
        """What they amount to."""
        return standing_of(self.acts)

    def in_force(self, config: RunConfig) -> RunConfig:
        """Returns the configuration with what acts have changed of it."""
        size = self.standing.micro_batch_size
        if size is None:
            return config
        return config.model_copy(update={"training": config.training.model_copy(update={"micro_batch_size": size})})

    def add(
        self,
        kind: ActKind,
        *,
        step: int,
        detail: str,
        gang: Gang,
        world_size: int | None = None,
        zero_stage: int | None = None,
        state_hash: str | None = None,
    ) -> Act:
        """Adds an act. Collective: rank 0 writes it, and nobody goes on before it is durable."""
        act = Act(
            kind=kind,
            epoch=self.epoch,
            step=step,
            detail=detail,
            at=time.time(),
            world_size=world_size,
            zero_stage=zero_stage,
            state_hash=state_hash,
        )
        if gang.rank == 0:
            add_act(self.store.storage, self.store.layout, act)
        gang.gather([0])
        self.acts.append(act)
        return act

    def note_size(self, *, step: int, was: tuple[int, int], now: tuple[int, int], state_hash: str, gang: Gang) -> None:
        """Records that training goes on with another (number of ranks, ZeRO stage) than what wrote the state. Collective.

        A start that died before it could commit anything has recorded it already.

        Args:
            step: that it goes on from.
            was: what wrote the state.
            now: what loaded it.
            state_hash: of the state, in the files and as loaded.
            gang: the ranks.
        """
        sizes = [act for act in self.acts if act.kind is ActKind.RESIZED]
        known = sizes and (sizes[-1].step, sizes[-1].world_size, sizes[-1].zero_stage) == (step, *now)
        if not known:
            parts = [f"{one} → {other} {word}" for word, one, other in zip(("ranks", "(ZeRO stage)"), was, now, strict=True) if one != other]
            self.add(ActKind.RESIZED, step=step, detail=", ".join(parts), gang=gang, world_size=now[0], zero_stage=now[1], state_hash=state_hash)


def withdraw_left_behind(store: CheckpointStore, standing: Standing, *, gang: Gang) -> None:
    """Removes the commits that a rewind left behind, so that their steps can be committed again. Collective.

    Their epoch tells them from commits that were made since; a late one of a process taken for dead is removed at the next start.
    """
    if not standing.rewinds:
        return
    if gang.rank == 0:
        for step in store.steps():
            commit = store.read(step)
            if commit is not None and standing.voids(step=step, epoch=commit.epoch):
                logger.warning("the commit of step %d, written in epoch %d, was left behind by a rewind; it is withdrawn", step, commit.epoch)
                store.storage.delete(store.layout.commit(step))
    gang.gather([0])
