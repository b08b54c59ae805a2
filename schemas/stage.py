"""The stages, in order, and what each one reads. One is optional: `prepare` is there only where a recipe declares preparation steps."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of the pipeline. The value is the only spelling: folders, flags, records."""

    VALIDATE = "validate"
    PREPARE = "prepare"
    TOKENIZER = "tokenizer"
    TOKENIZE = "tokenize"
    TRAIN = "train"
    EXPORT = "export"
    EVALUATE = "evaluate"
    REGISTER = "register"

    @property
    def version(self) -> int:
        """`STAGE_VERSION`: raised by hand when the stage makes different bytes from equal inputs."""
        return _VERSIONS[self]

    @property
    def is_shared(self) -> bool:
        """Whether recipes of other names take over what the stage made: text and tokens are the same for all, a model belongs to its recipe."""
        return self in _SHARED

    @property
    def following(self) -> tuple["Stage", ...]:
        """This stage and all after it."""
        stages = tuple(Stage)
        return stages[stages.index(self) :]


def stages_of(*, prepared: bool) -> tuple[Stage, ...]:
    """Returns the stages of a recipe, in order. `prepared`: whether it declares preparation steps."""
    return tuple(stage for stage in Stage if prepared or stage is not Stage.PREPARE)


def inputs_of(stage: Stage, *, prepared: bool) -> tuple[Stage, ...]:
    """Returns the stages whose artifacts `stage` reads. What reads the corpus reads the prepared one where there is one."""
    corpus = Stage.PREPARE if prepared else Stage.VALIDATE
    return tuple(corpus if source is _CORPUS else source for source in _INPUTS[stage])


_CORPUS = None
_INPUTS: dict[Stage, tuple[Stage | None, ...]] = {
    Stage.VALIDATE: (),
    Stage.PREPARE: (Stage.VALIDATE,),
    Stage.TOKENIZER: (_CORPUS,),
    Stage.TOKENIZE: (_CORPUS, Stage.TOKENIZER),
    Stage.TRAIN: (Stage.TOKENIZER, Stage.TOKENIZE),
    Stage.EXPORT: (Stage.TOKENIZER, Stage.TRAIN),
    Stage.EVALUATE: (_CORPUS, Stage.TOKENIZE, Stage.EXPORT),
    Stage.REGISTER: (Stage.EXPORT, Stage.EVALUATE),
}

_SHARED = frozenset((Stage.VALIDATE, Stage.PREPARE, Stage.TOKENIZER, Stage.TOKENIZE))

_VERSIONS: dict[Stage, int] = {**dict.fromkeys(Stage, 1), Stage.VALIDATE: 2, Stage.PREPARE: 2}
