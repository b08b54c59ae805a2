"""Options that were given and have no effect. Not wrong, but not what the user meant."""

from pydantic import BaseModel

from schemas.cluster_config import ClusterKind, StageResources
from schemas.config import RunConfig
from schemas.recipe_config import Schedule


def warnings_of(config: RunConfig) -> tuple[str, ...]:
    """Returns a line per option of `config` that was given and has no effect, and why."""
    lines: list[str] = []
    if config.tokenizer.path is not None:
        reason = "the tokenizer at tokenizer.path is taken as it is"
        lines += _ineffective(config.tokenizer, ("vocab_size", "pattern", "min_frequency", "special_tokens"), prefix="tokenizer", reason=reason)
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


def _ineffective(section: BaseModel, names: tuple[str, ...], *, prefix: str, reason: str) -> list[str]:
    return [f"{prefix}.{name} = {getattr(section, name)!r} has no effect: {reason}" for name in names if name in section.model_fields_set]
