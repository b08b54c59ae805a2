"""How fast a model trained in this storage: from the steps of trainings that are done, stopped or under way. Reads a few small objects of each."""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.attempt import list_attempts, read_spec
from cluster.epoch import read_epochs
from cluster.layout import ArtifactLayout
from cluster.metrics import MetricEdges
from cluster.storage import Storage
from schemas.config import RunConfig
from schemas.frozen import thaw
from schemas.job import JobSpec
from schemas.stage import Stage


@dataclass(frozen=True)
class Pace:
    """What a token costs in training."""

    device_s_per_token: float
    """Device-seconds; validation, samples and checkpoints on the way included, starts and restarts not."""
    artifact_key: str
    """The training that was measured."""


def measured_pace(storage: Storage, config: RunConfig, *, key: str = "", alike: str = "") -> Pace | None:
    """Returns the pace of the training that tells most of what `config` asks for, or None when nothing comparable was ever trained here.

    The training itself tells most, then the one that is known to be of the same model, then the newest one with the same model section.
    Comparable are trainings with the same sequence length and precision, on devices of the same kind.

    Args:
        key: the training in the making.
        alike: a training of the same model, although its model section reads otherwise.
    """
    named = [spec for name in (key, alike) if name and (spec := _newest_spec(storage, name)) is not None]
    others = (spec for spec in _specs(storage) if spec.config.get("model") == thaw(config.model.model_dump(mode="json")))
    for spec in (*named, *sorted(others, key=lambda spec: -spec.intended_at)):
        if _is_comparable(spec, config) and (pace := _pace_of(storage, spec)) is not None:
            return pace
    return None


def _specs(storage: Storage) -> Iterator[JobSpec]:
    for folder in storage.names(Stage.TRAIN.value):
        if (spec := _newest_spec(storage, f"{Stage.TRAIN.value}/{folder}")) is not None:
            yield spec


def _newest_spec(storage: Storage, key: str) -> JobSpec | None:
    layout = ArtifactLayout(key)
    numbers = list_attempts(storage, layout, step_name="")
    return read_spec(storage, layout.attempt("", numbers[-1])) if numbers else None


def _is_comparable(spec: JobSpec, config: RunConfig) -> bool:
    theirs = spec.config
    return (
        theirs.get("tokenization", {}).get("sequence_length") == config.tokenization.sequence_length
        and theirs.get("training", {}).get("precision") == config.training.precision.value
        and bool(spec.gpus_per_node) == bool(config.cluster.resources(Stage.TRAIN).gpus_per_node)
    )


def _pace_of(storage: Storage, spec: JobSpec) -> Pace | None:
    """Returns the pace of a training's newest start that made steps."""
    layout = ArtifactLayout(spec.artifact_key)
    edges = MetricEdges(storage, layout)
    per_step = spec.config["training"]["global_batch_size"] * spec.config["tokenization"]["sequence_length"]
    for epoch in reversed(read_epochs(storage, layout)):
        last = edges.last(epoch.epoch)
        if last is None or not last.seconds or last.step <= last.from_step:
            continue
        devices = read_spec(storage, layout.attempt("", epoch.attempt)).devices  # attempts may differ in size
        return Pace(sum(last.seconds.values()) * devices / ((last.step - last.from_step) * per_step), artifact_key=spec.artifact_key)
    return None
