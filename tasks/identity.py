"""From a configuration to what each artifact is: the fingerprint of every stage, as soon as its inputs are known."""

from collections.abc import Mapping
from pathlib import Path

from schemas.artifact import FileEntry, content_hash_of
from schemas.canonical import hash_of
from schemas.config import RunConfig
from schemas.manifest import raw_hash
from schemas.stage import Stage
from tasks.file_hashes import Hashes
from tasks.outside_inputs import training_entries
from tasks.store import Identity


def identity_of(stage: Stage, *, config: RunConfig, inputs: Mapping[Stage, str], hashes: Hashes, project_dir: Path | None = None) -> Identity:
    """Returns what the artifact of `stage` is.

    Args:
        inputs: content hash of every input stage.
        hashes: of raw inputs; a cache is welcome here.
        project_dir: the user's folder, where the source of `model.factory` is looked for last. None: on this process's import path alone.

    Raises:
        InputError: a raw input is missing or cannot be read.
        UnreachableError: the server of a remote one refuses, or does not answer.
        ConfigError: the source of `model.factory` cannot be found.
    """
    contents = {source.value: inputs[source] for source in config.inputs_of(stage)} | _outside_inputs(stage, config=config, hashes=hashes)
    files: tuple[FileEntry, ...] = ()
    if stage is Stage.TRAIN and config.model.config is None:
        files = training_entries(config, project_dir=project_dir, hash_file=hashes.hash)
        contents["factory" if config.model.factory is not None else "pretrained"] = content_hash_of(files)
    return Identity(stage=stage, name=config.name, recipe=config.identity(stage), inputs=contents, outside_files=files)


def _outside_inputs(stage: Stage, *, config: RunConfig, hashes: Hashes) -> dict[str, str]:
    """What a stage but `train` reads from outside the store: raw text, an existing tokenizer; and the registry it registers in."""
    if stage is Stage.VALIDATE:
        from tasks.validate.sources import plan_inputs

        return {"raw": raw_hash(plan_inputs(config, hashes))}
    if stage is Stage.PREPARE and (compared := config.corpus.preparation.decontamination).ngram is not None and compared.files:
        from tasks.prepare.compared import files_hash

        return {"compared": files_hash(compared.files, hashes.hash)}
    if stage is Stage.TOKENIZER and config.tokenizer.path is not None:
        from tasks.tokenizer.existing import existing_hash

        return {"existing": existing_hash(Path(config.tokenizer.path), hashes.hash)}
    if stage is Stage.REGISTER:
        return {"registry": hash_of(config.tracking.mlflow_uri or f"sqlite:///{config.state}/mlflow.db")}
    return {}
