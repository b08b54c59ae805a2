"""The configuration tree. `RunConfig` is the only root; a recipe is one YAML file of it.

Two kinds of section, and they never mix:

* **recipe** (`corpus tokenizer tokenization model training evaluation registration`) says what an artifact *is*
  and makes up its fingerprint;
* **execution** (`storage state deepspeed cluster budget checkpoint restart tracking`) says where and how it is made
  and never does; but for DeepSpeed options that change numbers (`schemas.deepspeed_options`).

The sections are in `schemas.corpus_config`, `tokens_config`, `recipe_config`, `cluster_config`, `execution_config`. Nothing is written back.

A validator that finds several broken rules raises one ValueError with a line per rule. A line names the keys it is
about, the one to change first, and may end in `; nearest: VALUE` (`schemas.diagnosis` reads both).
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from schemas.act import OnBadNumbers, OnOutOfMemory
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.corpus_config import CorpusConfig, Name
from schemas.deepspeed_options import numeric_options
from schemas.execution_config import BudgetConfig, CheckpointConfig, RestartConfig, StorageConfig, TrackingConfig
from schemas.frozen import Frozen, JsonObject, thaw
from schemas.gang_shape import GangShape, gang_shapes
from schemas.recipe_config import EvaluationConfig, ModelConfig, RegistrationConfig, TrainingConfig
from schemas.stage import Stage, inputs_of, stages_of
from schemas.tokens_config import TokenizationConfig, TokenizerConfig

RECIPE_SECTIONS: Mapping[Stage, tuple[str, ...]] = {
    Stage.VALIDATE: ("corpus",),
    Stage.PREPARE: (),  # its section is a part of `corpus`: `RunConfig.identity` takes it from there
    Stage.TOKENIZER: ("tokenizer",),
    Stage.TOKENIZE: ("tokenization",),
    Stage.TRAIN: ("model", "training"),
    Stage.EXPORT: (),
    Stage.EVALUATE: ("evaluation",),
    Stage.REGISTER: ("registration",),
}
"""The recipe sections that make up each stage's fingerprint."""

EXECUTION_SECTIONS: tuple[str, ...] = ("storage", "state", "deepspeed", "cluster", "budget", "checkpoint", "restart", "tracking")
"""The sections that never enter a fingerprint, but for DeepSpeed options that change numbers (`schemas.deepspeed_options`)."""


class RunConfig(Frozen):
    """A whole run: what is made (recipe sections) and where and how (execution sections)."""

    name: Name
    """Readable name; begins the names of runs, folders and jobs. Lower-case letters, digits and dashes, at most 40."""
    corpus: CorpusConfig
    """The raw text and its rules."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    tokenization: TokenizationConfig = TokenizationConfig()
    """How documents become sequences."""
    model: ModelConfig
    """The model."""
    training: TrainingConfig
    """How it is trained."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured on the result."""
    registration: RegistrationConfig = RegistrationConfig()
    """How it is registered."""

    storage: StorageConfig = StorageConfig()
    """Shared storage."""
    state: str = Field(default=".headrace/state", min_length=1)
    """Local folder for the Prefect home, the MLflow database, caches and locks. A relative path starts at the recipe's project folder."""
    deepspeed: JsonObject | str | None = None
    """DeepSpeed options beyond what is derived: a mapping, or the path of a JSON file. `auto` is filled in, contradictions are refused."""
    cluster: ClusterConfig = ClusterConfig()
    """The machines."""
    budget: BudgetConfig = BudgetConfig()
    """What training may use."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When training state is saved."""
    restart: RestartConfig = RestartConfig()
    """How often a failed stage is started again."""
    tracking: TrackingConfig = TrackingConfig()
    """What is measured along the way."""

    @model_validator(mode="after")
    def _cross_rules(self) -> Self:
        problems: list[str] = []
        training, ranks = self.training, self.ranks(Stage.TRAIN)
        per_step = training.micro_batch_size * ranks
        if self.cluster.kind is ClusterKind.LOCAL and training.global_batch_size % per_step:
            sizes = sorted({max(1, round(training.global_batch_size / per_step)) * per_step, (training.global_batch_size // per_step + 1) * per_step})
            problems.append(
                f"training.global_batch_size ({training.global_batch_size}) must be a multiple of "
                f"training.micro_batch_size ({training.micro_batch_size}) "
                f"× ranks ({ranks}) = {per_step}; nearest: {', '.join(map(str, sizes))}"
            )
        if self.model.config is not None:
            positions = self.model.config.get("max_position_embeddings")
            if isinstance(positions, int) and positions < self.tokenization.sequence_length:
                problems.append(
                    f"model.config.max_position_embeddings ({positions}) is below "
                    f"tokenization.sequence_length ({self.tokenization.sequence_length}); "
                    f"nearest: {self.tokenization.sequence_length}"
                )
            vocabulary = self.model.config.get("vocab_size")
            if isinstance(vocabulary, int) and self.tokenizer.path is None and vocabulary < self.tokenizer.vocab_size:
                problems.append(
                    f"model.config.vocab_size ({vocabulary}) is below tokenizer.vocab_size ({self.tokenizer.vocab_size}); "
                    "leave it out and it is filled in from the tokenizer"
                )
        problems += self._problems_of_conversations()
        if training.document_attention == "masked" and not self.tokenization.boundaries:
            problems.append(
                "tokenization.boundaries (False) must be on with training.document_attention (masked): it tells where documents start; nearest: true"
            )
        if training.mixture is not None:
            problems += training.mixture.problems_of_names(self.corpus.source_names)
            if not self.tokenization.by_source:
                problems.append("tokenization.by_source (False) must be on with training.mixture: sources need shards of their own; nearest: true")
        if training.steps is not None and training.schedule.warmup_steps > training.steps:
            problems.append(
                f"training.schedule.warmup_steps ({training.schedule.warmup_steps}) is above training.steps ({training.steps}); "
                f"nearest: {training.steps}"
            )
        if self.restart.on_bad_numbers is OnBadNumbers.REWIND and self.restart.rewind_commits > self.checkpoint.keep_last:
            problems.append(
                f"restart.rewind_commits ({self.restart.rewind_commits}) is above checkpoint.keep_last ({self.checkpoint.keep_last}), "
                f"so the commit would be gone; nearest: {self.checkpoint.keep_last}"
            )
        if self.restart.on_out_of_memory is OnOutOfMemory.SMALLER_MICRO_BATCH and training.micro_batch_size == 1:
            problems.append("restart.on_out_of_memory (smaller_micro_batch) has no effect with training.micro_batch_size = 1; nearest: stop")
        problems += self._problems_of_sizes()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_conversations(self) -> list[str]:
        """Returns what is wrong with the wish to train on conversations."""
        corpus, problems = self.corpus, []
        if not corpus.conversations:
            return []
        if corpus.preparation.quality.families and len(corpus.conversations) == len(corpus.sources):
            problems.append("corpus.preparation.quality has no effect with conversations (kind: chat): its rules are for prose; remove it")
        if self.tokenizer.path is None and self.tokenizer.chat_template is None:
            problems.append(
                "tokenizer.chat_template must be given: a tokenizer that is trained has none, and corpus.sources has conversations (kind: chat)"
            )
        if self.registration.gate.beat_baselines:
            problems.append(
                "registration.gate.beat_baselines has no effect with conversations (kind: chat), of which baselines know nothing; nearest: false"
            )
        return problems

    def _problems_of_sizes(self) -> list[str]:
        """Returns what is wrong with the wish that training may go on with fewer nodes."""
        resources, default = self.cluster.resources(Stage.TRAIN), RestartConfig()
        least, most = resources.min_nodes, resources.nodes or 1
        if least is None:
            changed = [name for name in ("smaller_after", "grow_after") if getattr(self.restart, name) != getattr(default, name)]
            return [f"restart.{name} has no effect without cluster.min_nodes" for name in changed]
        own = self.cluster.stages.get(Stage.TRAIN)
        key = "cluster.stages.train.min_nodes" if own is not None and own.min_nodes is not None else "cluster.min_nodes"
        if least > most:
            return [f"{key} ({least}) is above the nodes of training ({most}); nearest: {most}"]
        shapes = gang_shapes(self.training.feasible_world_sizes, most_nodes=most, most_per_node=self.ranks(Stage.TRAIN) // most, min_nodes=1)
        smaller = [shape.num_nodes for shape in shapes[1:]]
        if least < most and not any(nodes >= least for nodes in smaller):
            feasible = ", ".join(str(shape.num_nodes) for shape in shapes)
            nearest = f"; nearest: {smaller[0]}" if smaller else ""
            return [f"{key} ({least}) has no effect: training can share out its global batch over {feasible} nodes{nearest}"]
        return []

    def ranks(self, stage: Stage) -> int:
        """Returns nodes × ranks per node that `stage` asks for: GPUs where there are any, else `ranks_per_node`, else 1."""
        resources = self.cluster.resources(stage)
        return (resources.nodes or 1) * (resources.ranks_per_node or resources.gpus_per_node or 1)

    @property
    def gang_shapes(self) -> tuple[GangShape, ...]:
        """The shapes that attempts of training may have: the largest that fits the nodes, and those down to `cluster.min_nodes`."""
        resources = self.cluster.resources(Stage.TRAIN)
        most_nodes = resources.nodes or 1
        per_node = self.ranks(Stage.TRAIN) // most_nodes
        sizes = self.training.feasible_world_sizes
        return gang_shapes(sizes, most_nodes=most_nodes, most_per_node=per_node, min_nodes=resources.min_nodes)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of this recipe, in order: `prepare` only where it declares preparation steps."""
        return stages_of(prepared=bool(self.corpus.preparation.steps))

    def inputs_of(self, stage: Stage) -> tuple[Stage, ...]:
        """Returns the stages whose artifacts `stage` reads in this recipe."""
        return inputs_of(stage, prepared=bool(self.corpus.preparation.steps))

    @property
    def corpus_stage(self) -> Stage:
        """The stage that makes the documents which all that follows reads."""
        return Stage.PREPARE if self.corpus.preparation.steps else Stage.VALIDATE

    @property
    def model_name(self) -> str:
        """The registered model's name."""
        return self.registration.model_name or self.name

    def identity(self, stage: Stage) -> dict[str, Any]:
        """Returns the part of the recipe that makes up `stage`'s fingerprint, as plain data.

        Paths are left out: the content of sources, of an existing tokenizer and of a pretrained model is an input. So is
        `training.zero_stage`, a matter of memory. Of the `deepspeed` section, what changes numbers enters (`schemas.deepspeed_options`);
        loading a recipe has put a JSON file's content in its place.
        """
        sections = {section: thaw(getattr(self, section).model_dump(mode="json")) for section in RECIPE_SECTIONS[stage]}
        if stage is Stage.PREPARE:
            talks = {"conversations": list(self.corpus.conversations)} if self.corpus.conversations else {}
            sections["corpus"] = {"preparation": self.corpus.preparation.identity(), **talks}
            if self.corpus.preparation.decontamination.compares_prompts:
                sections["evaluation"] = {"prompts": list(self.evaluation.prompts)}
        if stage is Stage.VALIDATE:
            sections["corpus"].pop("preparation")
            for source, name in zip(sections["corpus"]["sources"], self.corpus.source_names, strict=True):
                del source["path"]
                source["name"] = name
        if stage is Stage.TOKENIZER:
            path = sections["tokenizer"].pop("path")
            sections["tokenizer"]["existing"] = path is not None
            if path is not None:  # what trains a tokenizer has no bearing on one that exists
                for key in ("vocab_size", "pattern", "min_frequency", "training_bytes", "special_tokens"):
                    del sections["tokenizer"][key]
        if stage is Stage.TOKENIZE and self.corpus.conversations:
            sections["conversations"] = list(self.corpus.conversations)
        if stage is Stage.TRAIN:
            del sections["training"]["zero_stage"]
            if self.model.pretrained is not None:
                sections["model"]["pretrained"] = True
            if isinstance(self.deepspeed, Mapping) and (options := numeric_options(self.deepspeed, precision=self.training.precision.value)):
                sections["deepspeed"] = options
        return sections

    def trajectory(self) -> dict[str, Any]:
        """Returns the identity of `train` without its stopping point, where the schedule does not depend on it.

        Two training artifacts with equal trajectory and inputs pass through the same states, so a longer one goes on from a shorter one's checkpoint.
        """
        sections = self.identity(Stage.TRAIN)
        if not self.training.length_is_identity:
            for key in ("steps", "tokens", "epochs"):
                del sections["training"][key]
        return sections
