"""The stages, in order, and what each one reads."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of the pipeline. The value is the only spelling: folders, flags, records."""

    VALIDATE = "validate"
    TOKENIZER = "tokenizer"
    TOKENIZE = "tokenize"
    TRAIN = "train"
    EXPORT = "export"
    EVALUATE = "evaluate"
    REGISTER = "register"

    @property
    def inputs(self) -> tuple["Stage", ...]:
        """The stages whose artifacts this one reads."""
        return _INPUTS[self]

    @property
    def version(self) -> int:
        """`STAGE_VERSION`: raised by hand when the stage makes different bytes from equal inputs."""
        return _VERSIONS[self]

    @property
    def following(self) -> tuple["Stage", ...]:
        """This stage and all after it."""
        stages = tuple(Stage)
        return stages[stages.index(self) :]


_INPUTS: dict[Stage, tuple[Stage, ...]] = {
    Stage.VALIDATE: (),
    Stage.TOKENIZER: (Stage.VALIDATE,),
    Stage.TOKENIZE: (Stage.VALIDATE, Stage.TOKENIZER),
    Stage.TRAIN: (Stage.TOKENIZER, Stage.TOKENIZE),
    Stage.EXPORT: (Stage.TOKENIZER, Stage.TRAIN),
    Stage.EVALUATE: (Stage.VALIDATE, Stage.TOKENIZE, Stage.EXPORT),
    Stage.REGISTER: (Stage.EXPORT, Stage.EVALUATE),
}

_VERSIONS: dict[Stage, int] = dict.fromkeys(Stage, 1)
