"""From a configuration to what each artifact is: the fingerprint of every stage, as soon as its inputs are known."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.storage import walk_files
from schemas.canonical import hash_of, root_hash
from schemas.config import RunConfig
from schemas.manifest import raw_hash
from schemas.stage import Stage
from tasks.outside_inputs import check_pretrained
from tasks.store import Identity

HashFile = Callable[[Path], str]
"""Returns the xxh3-128 of a local file."""


def identity_of(stage: Stage, *, config: RunConfig, inputs: Mapping[Stage, str], hash_file: HashFile) -> Identity:
    """Returns what the artifact of `stage` is.

    Args:
        inputs: content hash of every input stage.
        hash_file: hashes raw inputs; a cache is welcome here.

    Raises:
        InputError: a raw input is missing or cannot be read.
    """
    hashes = {source.value: inputs[source] for source in stage.inputs} | _outside_inputs(stage, config=config, hash_file=hash_file)
    return Identity(stage=stage, name=config.name, recipe=config.identity(stage), inputs=hashes)


def _outside_inputs(stage: Stage, *, config: RunConfig, hash_file: HashFile) -> dict[str, str]:
    """What a stage reads from outside the store: raw text, an existing tokenizer, a pretrained model; and the registry it registers in."""
    if stage is Stage.VALIDATE:
        from tasks.validate.sources import plan_inputs

        return {"raw": raw_hash(plan_inputs(config, hash_file))}
    if stage is Stage.TOKENIZER and config.tokenizer.path is not None:
        from tasks.tokenizer.existing import existing_files

        return {"existing": root_hash((file.name, file.stat().st_size, hash_file(file)) for file in existing_files(Path(config.tokenizer.path)))}
    if stage is Stage.TRAIN and config.model.pretrained is not None:
        check_pretrained(config)
        folder = Path(config.model.pretrained)
        return {"pretrained": root_hash((file.relative_to(folder).as_posix(), file.stat().st_size, hash_file(file)) for file in walk_files(folder))}
    if stage is Stage.REGISTER:
        return {"registry": hash_of(config.tracking.mlflow_uri or f"sqlite:///{config.state}/mlflow.db")}
    return {}
