"""From a configuration to what each artifact is: the fingerprint of every stage, as soon as its inputs are known."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.remote_files import RemoteFile
from schemas.artifact import FileEntry, content_hash_of
from schemas.canonical import hash_of
from schemas.config import RunConfig
from schemas.manifest import raw_hash
from schemas.stage import Stage
from tasks.outside_inputs import training_entries
from tasks.store import Identity

HashFile = Callable[[Path | RemoteFile], str]
"""Returns the xxh3-128 of a file, hex."""


def identity_of(stage: Stage, *, config: RunConfig, inputs: Mapping[Stage, str], hash_file: HashFile, project_dir: Path | None = None) -> Identity:
    """Returns what the artifact of `stage` is.

    Args:
        inputs: content hash of every input stage.
        hash_file: hashes raw inputs; a cache is welcome here.
        project_dir: the user's folder, where the source of `model.factory` is looked for last. None: on this process's import path alone.

    Raises:
        InputError: a raw input is missing or cannot be read.
        UnreachableError: the server of a remote one refuses, or does not answer.
        ConfigError: the source of `model.factory` cannot be found.
    """
    hashes = {source.value: inputs[source] for source in config.inputs_of(stage)} | _outside_inputs(stage, config=config, hash_file=hash_file)
    files: tuple[FileEntry, ...] = ()
    if stage is Stage.TRAIN and config.model.config is None:
        files = training_entries(config, project_dir=project_dir, hash_file=hash_file)
        hashes["factory" if config.model.factory is not None else "pretrained"] = content_hash_of(files)
    return Identity(stage=stage, name=config.name, recipe=config.identity(stage), inputs=hashes, outside_files=files)


def _outside_inputs(stage: Stage, *, config: RunConfig, hash_file: HashFile) -> dict[str, str]:
    """What a stage but `train` reads from outside the store: raw text, an existing tokenizer; and the registry it registers in."""
    if stage is Stage.VALIDATE:
        from tasks.validate.sources import plan_inputs

        return {"raw": raw_hash(plan_inputs(config, hash_file))}
    if stage is Stage.PREPARE and (compared := config.corpus.preparation.decontamination).ngram is not None and compared.files:
        from tasks.prepare.compared import files_hash

        return {"compared": files_hash(compared.files, hash_file)}
    if stage is Stage.TOKENIZER and config.tokenizer.path is not None:
        from tasks.tokenizer.existing import existing_hash

        return {"existing": existing_hash(Path(config.tokenizer.path), hash_file)}
    if stage is Stage.REGISTER:
        return {"registry": hash_of(config.tracking.mlflow_uri or f"sqlite:///{config.state}/mlflow.db")}
    return {}
