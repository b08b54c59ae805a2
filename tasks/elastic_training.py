"""A training that is cut into segments, each at its own number of ranks: between two, a rank is killed, and nothing is restarted."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cluster.acts import read_acts
from cluster.metrics import MetricEdges
from schemas.act import ActKind
from schemas.checkpoint import CommitRecord
from schemas.config import RunConfig
from schemas.errors import HeadraceError, InputError, InterruptedRunError
from schemas.execution_config import RestartConfig
from schemas.exit_code import ExitCode
from schemas.frozen import Frozen
from tasks.disturbance import Kill, kill_rank
from tasks.elastic_plan import at_world, is_between_saves, of_ranks, save_interval, segment_ends
from tasks.scratch_training import Audience, ScratchTraining, Trained
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.state_hash import as_hex, hash_checkpoint
from tasks.work import Draft, Work


class Transition(Frozen):
    """One change of the number of ranks."""

    was: int
    """Ranks before."""
    now: int
    """Ranks after."""
    killed_rank: int
    """Who was killed."""
    killed_at: int
    """The step it had reached."""
    resumed_from: int
    """The committed step that the new ranks went on from."""
    committed_state: str
    """Hash of the state that was committed, from the files."""
    loaded_state: str
    """Hash of the state that the new ranks have loaded, from their memory; empty: they left none."""
    loss_before: float | None
    """Loss of the step after `resumed_from` as the old ranks had made it. Nats per token. None: they had not."""
    loss_after: float | None
    """The same as the new ranks made it."""

    @property
    def loss_difference(self) -> float | None:
        """How far apart the losses are, relative; None where one is missing."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return abs(self.loss_after - self.loss_before) / abs(self.loss_before)


@dataclass(frozen=True)
class _Cut:
    """The end of a segment."""

    was: int
    now: int
    kill: Kill
    commit: CommitRecord
    """The newest when the next segment began."""
    state: str
    epoch: int
    """The last start of ranks before it."""


class _CutOffError(InterruptedRunError):
    """The segment ended as it was to."""


class ElasticTraining:
    """The resized training, segment by segment."""

    def __init__(self, training: ScratchTraining, config: RunConfig, *, world_sizes: tuple[int, ...], steps: int, rng: random.Random) -> None:
        """Args: config: of the first segment. steps: of the whole training. rng: decides when segments end, and who is killed."""
        self._training, self._world_sizes, self._rng = training, world_sizes, rng
        self._ends = segment_ends(steps, len(world_sizes), rng=rng)
        self._every_steps = save_interval(config.checkpoint.every_steps, steps=steps, num_segments=len(world_sizes))
        self._config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": self._every_steps})})
        self._cuts: list[_Cut] = []

    def train(self, audience: Audience) -> Trained:
        """Trains all segments and returns the training as it ended."""
        for number, (was, now) in enumerate(pairwise(self._world_sizes)):
            kill = self._cut_off(number)
            store = CheckpointStore(self._training.artifact_dir())
            commit = store.read(store.steps()[-1])
            assert commit is not None, "nobody has touched it since it was written"
            state = as_hex(hash_checkpoint(commit, folder=store.folder(commit)))
            self._cuts.append(_Cut(was, now=now, kill=kill, commit=commit, state=state, epoch=self._training.num_epochs() - 1))
            audience.note(f"goes on from step {commit.step} with {of_ranks(now)}")
        return self._training.train(config=at_world(self._config, self._world_sizes[-1]))

    def transitions(self) -> tuple[Transition, ...]:
        """Returns what happened between the segments, once the last one has ended."""
        layout, storage = self._training.layout, self._training.storage
        assert layout is not None
        acts = [act for act in read_acts(storage, layout) if act.kind is ActKind.RESIZED]
        edges, found = MetricEdges(storage, layout), []
        for cut in self._cuts:
            step = cut.commit.step
            loaded = (act.state_hash for act in acts if act.epoch > cut.epoch and (act.step, act.world_size) == (step, cut.now))
            found.append(
                Transition(
                    was=cut.was,
                    now=cut.now,
                    killed_rank=cut.kill.rank,
                    killed_at=cut.kill.step,
                    resumed_from=step,
                    committed_state=cut.state,
                    loaded_state=next(loaded, None) or "",
                    loss_before=_loss_at(edges, step + 1, epochs=(cut.epoch,)),
                    loss_after=_loss_at(edges, step + 1, epochs=range(cut.epoch + 1, self._training.num_epochs())),
                )
            )
        return tuple(found)

    def _cut_off(self, number: int) -> Kill:
        """Trains a segment until one of its ranks is killed."""
        world_size, at_step = self._world_sizes[number], self._ends[number]
        config = at_world(self._config, world_size).model_copy(update={"restart": _no_restart(self._config.restart)})
        rank, epoch = self._rng.randrange(world_size), self._training.num_epochs()
        begun_at = self._cuts[-1].commit.step if self._cuts else 0
        killed: list[Kill] = []

        def kill(ended: threading.Event) -> None:
            done = kill_rank(
                self._training.storage,
                artifact_key=self._training.artifact_key,
                rank=rank,
                at_step=at_step,
                epoch=epoch,
                cancelled=ended,
                when=lambda progress: is_between_saves(progress, begun_at=begun_at, every_steps=self._every_steps),
            )
            killed.extend([done] if done is not None else [])

        def build(work: Work) -> Draft:
            from tasks.train.build import build as build_training

            try:
                return build_training(work)
            except HeadraceError as error:
                if killed and error.exit_code is ExitCode.POLICY:
                    raise _CutOffError(f"rank {rank} was killed at step {killed[0].step}, and is not to be restarted") from error
                raise

        try:
            self._training.train(config=config, meanwhile=kill, build=build)
        except _CutOffError:
            return killed[0]
        why = f"the training was over before segment {number + 1} of {len(self._world_sizes)} was to end"
        raise InputError("not all sizes came in time", why=why, mend="more steps, or fewer sizes")


def _loss_at(edges: MetricEdges, step: int, *, epochs: Sequence[int]) -> float | None:
    """Returns the loss of update `step` (1 is the first) as the first of `epochs` that made it measured it; None when none has."""
    for epoch in epochs:
        for point in edges.around(epoch, step):
            if point.step == step and "loss" in point.values:
                return point.values["loss"]
    return None


def _no_restart(restart: RestartConfig) -> RestartConfig:
    return restart.model_copy(update={"max_failures": 0, "max_interruptions": 0, "max_attempts_without_progress": 1})
