"""Options that were given and have no effect. Not wrong, but not what the user meant."""

from pydantic import BaseModel

from schemas.cluster_config import ClusterKind, StageResources
from schemas.config import RunConfig
from schemas.preparation_config import PreparationConfig
from schemas.recipe_config import Schedule


def warnings_of(config: RunConfig) -> tuple[str, ...]:
    """Returns a line per option of `config` that was given and has no effect, and why."""
    lines: list[str] = []
    if config.tokenizer.path is not None:
        reason = "the tokenizer at tokenizer.path is taken as it is"
        lines += _ineffective(
            config.tokenizer, ("vocab_size", "pattern", "min_frequency", "training_bytes", "special_tokens"), prefix="tokenizer", reason=reason
        )
    lines += _of_sources(config) + _of_preparation(config.corpus.preparation)
    if config.training.schedule.kind is Schedule.CONSTANT:
        lines += _ineffective(config.training.schedule, ("final_fraction",), prefix="training.schedule", reason="the learning rate is constant")
    if config.cluster.kind is ClusterKind.LOCAL:
        sections: dict[str, StageResources] = {"cluster": config.cluster} | {
            f"cluster.stages.{stage.value}": own for stage, own in config.cluster.stages.items()
        }
        for prefix, section in sections.items():
            names = ("queue", "image", "memory", "min_nodes")
            lines += _ineffective(section, names, prefix=prefix, reason="cluster.kind is local: no scheduler is asked")
        lines += _ineffective(config.cluster, ("container",), prefix="cluster", reason="cluster.kind is local: nothing starts in a container")
    if not config.evaluation.prompts:
        lines += _ineffective(config.evaluation, ("temperature", "max_new_tokens"), prefix="evaluation", reason="evaluation.prompts is empty")
    return tuple(lines)


def _of_sources(config: RunConfig) -> list[str]:
    """Returns a line per key of a source that the source's own format ignores."""
    lines: list[str] = []
    for index, source in enumerate(config.corpus.sources):
        prefix = f"corpus.sources.{index}"
        if source.format == "text":
            lines += _ineffective(source, ("text_column",), prefix=prefix, reason="format is text, which makes one document of a whole file")
        if source.format == "parquet":
            lines += _ineffective(source, ("encoding",), prefix=prefix, reason="Parquet is UTF-8 always")
    return lines


def _of_preparation(preparation: PreparationConfig) -> list[str]:
    """Returns a line per key of a preparation step that is not declared by the key that declares it."""
    prefix, lines = "corpus.preparation", list[str]()
    if not preparation.language.keep:
        lines += _ineffective(preparation.language, ("min_score",), prefix=f"{prefix}.language", reason=f"{prefix}.language.keep is empty")
    for family in ("gopher", "gopher_repetition", "c4", "fineweb"):
        if not getattr(preparation.quality, family):
            limits = getattr(preparation.quality, f"{family}_limits")
            names = tuple(sorted(limits.model_fields_set))
            lines += _ineffective(limits, names, prefix=f"{prefix}.quality.{family}_limits", reason=f"{prefix}.quality.{family} is off")
    if preparation.decontamination.ngram is None:
        names = ("max_shared", "min_shared_share", "max_texts", "test_split", "validation_split", "prompts", "files")
        reason = f"{prefix}.decontamination.ngram is not given, which turns the step on; for example 13"
        lines += _ineffective(preparation.decontamination, names, prefix=f"{prefix}.decontamination", reason=reason)
    if not preparation.duplicates.near:
        names = ("threshold", "permutations", "shingle")
        lines += _ineffective(preparation.duplicates, names, prefix=f"{prefix}.duplicates", reason=f"{prefix}.duplicates.near is off")
    return lines


def _ineffective(section: BaseModel, names: tuple[str, ...], *, prefix: str, reason: str) -> list[str]:
    return [f"{prefix}.{name} = {getattr(section, name)!r} has no effect: {reason}" for name in names if name in section.model_fields_set]
