"""Proves on one's own recipe that training goes on at other numbers of ranks: one training is cut into segments, each at a size of its own.

Between two segments a rank is killed, some steps after a checkpoint, and nothing is restarted: the next segment goes on at the next size. So
the same step is made twice from the same state, by the old ranks and by the new ones. What is shown, and compared with undisturbed trainings:

| claim | how it is judged |
|---|---|
| what the new ranks load is what was committed, bit for bit | a hash of every element in its place: by the ranks over memory, here over files |
| every step uses the same sequences, as a multiset | the chain of hashes that ranks keep, against an undisturbed training's and the recipe's own |
| the first step costs the same | the two losses of the step that was made twice: 1e-5 relative in fp32, 1e-3 in bf16 and fp16 |
| where it ends is as good | the validation loss is no further from the undisturbed one than three of these, with different seeds, are apart |

Last bits do change: sums of gradients are cut otherwise. So the weights are those of a training as good, not the same ones.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.config import RunConfig
from schemas.frozen import Frozen
from schemas.ledger import GoodputLedger
from schemas.recipe_config import Precision
from tasks.elastic_plan import at_world, micro_batch_for, of_ranks
from tasks.elastic_training import ElasticTraining, Transition
from tasks.scratch_training import Audience, Origin, ScratchTraining, Trained, prescribed_ids, scratch_folder
from tasks.train.checkpoint.commit import MODEL_CONFIG_NAME

NUM_SEEDS = 3
"""Undisturbed trainings that say how far apart seeds are."""
TOLERANCES: Mapping[Precision, float] = {Precision.FP32: 1e-5, Precision.BF16: 1e-3, Precision.FP16: 1e-3}
"""Relative difference of two losses of one step that is no difference: the sum over micro-batches is taken in another order."""
_NEVER = 1 << 40
"""Steps between validations: only the last step has one."""
_ALL = 1 << 14
"""Sequences of a validation: whatever more a split holds would not change its mean by much."""


class ElasticProof(Frozen):
    """What `headrace verify-resume --world` found."""

    world_sizes: tuple[int, ...]
    """Ranks of each segment."""
    steps: int
    """Steps of the training."""
    micro_batch_size: int
    """Sequences per rank and forward pass, of all trainings: the largest divisor of the recipe's at which all sizes divide the batch."""
    precision: Precision
    """Number format of the forward pass."""
    has_dropout: bool
    """Whether the model draws random numbers, other ones at every world size: first losses are not comparable then, and not judged."""
    transitions: tuple[Transition, ...]
    """What happened between the segments."""
    prescribed_ids: str
    """Hash of the sequences that the recipe prescribes for all steps."""
    calm_ids: str
    """Hash of the sequences that the undisturbed training has used."""
    resized_ids: str
    """Hash of the sequences that the resized training has used, of each step as it counts."""
    validation_loss: float | None
    """Where the resized training ends; nats per token. None: there is no validation split."""
    calm_validation_losses: tuple[float, ...]
    """Where undisturbed trainings end: the recipe's seed first."""
    ledger: GoodputLedger
    """Where the resized training's time went."""
    scratch: str
    """Where all of them lie; empty when they are removed."""

    @property
    def tolerance(self) -> float:
        """Relative difference of first losses that is allowed."""
        return TOLERANCES[self.precision]

    @property
    def seed_spread(self) -> float:
        """How far apart undisturbed trainings of different seeds end."""
        return max(self.calm_validation_losses) - min(self.calm_validation_losses) if self.calm_validation_losses else 0.0

    @property
    def findings(self) -> tuple[str, ...]:
        """What is not as claimed; empty: proven."""
        found = [finding for transition in self.transitions for finding in _judge(transition, self)]
        if not self.prescribed_ids == self.calm_ids == self.resized_ids:
            found.append(f"sequences used: prescribed {self.prescribed_ids}, undisturbed {self.calm_ids}, resized {self.resized_ids}")
        if self.validation_loss is not None:
            apart = abs(self.validation_loss - self.calm_validation_losses[0])
            if apart > self.seed_spread:
                found.append(f"validation loss: {apart:.4f} from the undisturbed one; different seeds are {self.seed_spread:.4f} apart")
        return tuple(found)


def _judge(transition: Transition, proof: ElasticProof) -> list[str]:
    where, found = f"{transition.was} → {transition.now} ranks at step {transition.resumed_from}", []
    if transition.committed_state != transition.loaded_state:
        found.append(f"{where}: state {transition.committed_state} was committed, {transition.loaded_state or 'nothing'} was loaded")
    if proof.has_dropout:
        return found
    apart = transition.loss_difference
    if apart is None or apart > proof.tolerance:
        losses = f"{transition.loss_before} before and {transition.loss_after} after"
        found.append(f"{where}: the first loss is {losses}; {proof.tolerance:g} relative is allowed")
    return found


def prove_elastic(origin: Origin, *, world_sizes: Sequence[int], seed: int, audience: Audience, keep: bool = False) -> ElasticProof:
    """Returns the proof for a recipe. The first Ctrl-C or SIGTERM stops the job that runs.

    Args:
        origin: the recipe.
        world_sizes: ranks of each segment, at least two, neighbours different.
        seed: decides when segments end, and who is killed.
        audience: who hears how it goes.
        keep: leave the scratch storage in place.

    Raises:
        ConfigError: some size is not feasible, there are too few steps, or storage is not a local folder.
        InputError: the training was over before its segments were.
        InterruptedRunError: it was asked to stop.
        HeadraceError: a stage failed.
    """
    base = _base_config(origin.config, world_sizes=world_sizes)
    with scratch_folder(origin, keep=keep, audience=audience) as folder:
        prepared = ScratchTraining(origin, folder / "prepared", config=base, audience=audience).prepare()
        calm: list[Trained] = []
        for number in range(NUM_SEEDS):
            config = _at_seed(base, base.training.seed + number)
            audience.note(f"training undisturbed on {of_ranks(world_sizes[0])}, seed {config.training.seed} ({number + 1} of {NUM_SEEDS})")
            training = ScratchTraining(origin, folder / f"calm-{number}", config=config, audience=audience)
            training.take(prepared)
            calm.append(training.train())
        audience.note(f"training on {', '.join(map(str, world_sizes))} ranks")
        training = ScratchTraining(origin, folder / "resized", config=base, audience=audience)
        training.take(prepared)
        segments = ElasticTraining(training, base, world_sizes=tuple(world_sizes), steps=calm[0].state.step, rng=random.Random(seed))  # noqa: S311
        resized = segments.train(audience)
        losses = tuple(trained.state.validation_loss for trained in calm if trained.state.validation_loss is not None)
        return ElasticProof(
            world_sizes=tuple(world_sizes),
            steps=resized.state.step,
            micro_batch_size=base.training.micro_batch_size,
            precision=base.training.precision,
            has_dropout=_has_dropout(training, resized),
            transitions=segments.transitions(),
            prescribed_ids=prescribed_ids(origin, prepared, state=calm[0].state),
            calm_ids=calm[0].state.consumed,
            resized_ids=resized.state.consumed,
            validation_loss=resized.state.validation_loss,
            calm_validation_losses=losses,
            ledger=resized.ledger,
            scratch=str(folder) if keep else "",
        )


def _base_config(config: RunConfig, *, world_sizes: Sequence[int]) -> RunConfig:
    """Returns what all trainings of the proof share: the first size, a micro-batch that fits all sizes, the loss of every step, one validation.

    Which sequences a validation takes depends on the seed, unless it takes all of the split: then seeds are compared on the same text.
    """
    training = config.training.model_copy(update={"micro_batch_size": micro_batch_for(config, world_sizes)})
    own = {"log_every_steps": 1, "validate_every_steps": _NEVER, "validation_sequences": _ALL}
    tracking = config.tracking.model_copy(update=own)
    shared = config.checkpoint.model_copy(update={"local_dir": None, "local_every_steps": None})  # another size cannot go on from a node's own disk
    return at_world(config.model_copy(update={"training": training, "tracking": tracking, "checkpoint": shared}), world_sizes[0])


def _at_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def _has_dropout(training: ScratchTraining, trained: Trained) -> bool:
    """Whether the model's configuration names a dropout that is not zero."""
    folder = training.artifact_dir() / str(trained.record.summary["checkpoint"])
    values: Mapping[str, Any] = json.loads((folder / MODEL_CONFIG_NAME).read_bytes())
    names = [key for key, value in values.items() if isinstance(value, float) and value > 0.0]
    return any("dropout" in name or name.endswith(("_pdrop", "_drop")) for name in names)
