"""The compute half of `export`: from the committed checkpoint to a Hugging Face folder. Needs neither torch nor transformers.

Options (from `tasks.export.build`): `commit` (name of the commit, relative to the training artifact), `content_hash` (root
hash over the checkpoint's files), `tokenizer_files` (entries of the tokenizer's files to copy), `end_of_text_id`.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import path_below, publish_file, write_durably
from schemas.artifact import FileEntry, content_hash_of
from schemas.checkpoint import CommitRecord
from schemas.errors import GateError, InputError, VerificationError
from schemas.recipe_config import Precision
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.export.assembly import CheckpointFolder, FragmentReader, Piece, cover
from tasks.export.layout import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, MODEL_FOLDER, WeightFile, generation_config, plan_files, weight_index
from tasks.export.number_format import cast, export_type, num_not_finite, torch_name
from tasks.export.safetensors_file import SafetensorsWriter, TensorSpec, TensorType
from tasks.recorded_file import verified_bytes
from tasks.train.checkpoint.commit import MODEL_CONFIG_NAME

logger = logging.getLogger(__name__)


def run(task: ItemTask) -> ItemOutcome:
    """Exports the training artifact's committed checkpoint into `model/`.

    Raises:
        VerificationError: the checkpoint is not what was committed, or its fragments do not make up the model.
        GateError: the weights hold NaN or infinite values.
        InputError: the model has no transformers configuration.
    """
    commit = load_commit(task.input_dirs[Stage.TRAIN], name=str(task.options["commit"]), content_hash=str(task.options["content_hash"]))
    folder = CheckpointFolder.of(commit, artifact_dir=task.input_dirs[Stage.TRAIN])
    state = folder.state()
    dtype = export_type(Precision(state.precision))
    pieces = folder.weight_pieces()
    by_name = cover(pieces, parameters=state.parameters)
    files = plan_files([TensorSpec(parameter.name, parameter.shape) for parameter in state.parameters], dtype=dtype)
    reader = FragmentReader(folder, pieces=pieces)
    entries = _write_weights(task, files=files, reader=reader, by_name=by_name, dtype=dtype)
    entries += _write_metadata(task, folder=folder, files=files, dtype=dtype)
    entries += _copy_tokenizer(task)
    num_parameters = sum(tensor.num_elements for file in files for tensor in file.tensors)
    logger.info("exported %d parameters as %s from step %d", num_parameters, dtype.value, commit.step)
    output = {"step": commit.step, "dtype": torch_name(dtype), "num_parameters": num_parameters, "weight_bytes": num_parameters * dtype.itemsize}
    return ItemOutcome(files=tuple(sorted(entries, key=lambda entry: entry.path)), output=output)


def load_commit(artifact_dir: Path, *, name: str, content_hash: str) -> CommitRecord:
    """Returns the commit `name` of a training artifact.

    Raises:
        VerificationError: it is missing or damaged, or does not list the files that the artifact's record stands for.
        UnsafeFileError: a link is on the way to it.
    """
    try:
        commit = CommitRecord.from_bytes(path_below(artifact_dir, name).read_bytes())
    except FileNotFoundError as error:
        raise VerificationError((f"{name}: missing",), subject=str(artifact_dir)) from error
    except SealBrokenError as error:
        raise VerificationError((f"{name}: {error}",), subject=str(artifact_dir)) from error
    if content_hash_of(commit.files) != content_hash:
        raise VerificationError((f"{name}: its files are not those of the training artifact's record",), subject=str(artifact_dir))
    return commit


def _write_weights(
    task: ItemTask, *, files: tuple[WeightFile, ...], reader: FragmentReader, by_name: Mapping[str, tuple[Piece, ...]], dtype: TensorType
) -> list[FileEntry]:
    entries, done_bytes, bad = [], 0, []
    for file in files:
        temporary = task.temporary(f"{MODEL_FOLDER}/{file.name}")
        with open(temporary, "wb") as stream:
            writer = SafetensorsWriter(stream, tensors=file.tensors, dtype=dtype)
            for tensor in file.tensors:
                not_finite = 0
                for piece in by_name[tensor.name]:
                    for block in reader.read(piece):
                        values = cast(block, dtype=dtype)
                        not_finite += num_not_finite(values, dtype=dtype)
                        writer.write(values.data)
                        done_bytes += values.nbytes
                        task.report(done_bytes)
                if not_finite:
                    bad.append(f"{tensor.name} ({not_finite} of {tensor.num_elements})")
            writer.finish()
        if bad:
            temporary.unlink()
            why = f"a model with NaN or infinite weights cannot be used; in {dtype.value}: {', '.join(bad)}"
            raise GateError("the exported weights are not finite", why=why, mend="train with a lower learning rate, or in bf16 or fp32")
        entries.append(_publish(task, temporary, name=file.name))
    return entries


def _write_metadata(task: ItemTask, *, folder: CheckpointFolder, files: tuple[WeightFile, ...], dtype: TensorType) -> list[FileEntry]:
    config = json.loads(folder.read_verified(MODEL_CONFIG_NAME))
    if not config:
        why = "model.factory returned a module without a transformers configuration, so no Hugging Face folder can describe it"
        raise InputError("the model cannot be exported", why=why, mend="return a transformers PreTrainedModel from the factory")
    config |= {"dtype": torch_name(dtype), "use_cache": True}  # training runs without the cache that generation wants
    entries = [
        _write_json(task, CONFIG_NAME, config),
        _write_json(task, GENERATION_CONFIG_NAME, generation_config(end_of_text_id=int(task.options["end_of_text_id"]))),
    ]
    if len(files) > 1:
        entries.append(_write_json(task, INDEX_NAME, weight_index(files, dtype=dtype)))
    return entries


def _copy_tokenizer(task: ItemTask) -> list[FileEntry]:
    """Copies the tokenizer's files: the very bytes that were checked against the tokenizer's record."""
    entries = []
    for expected in _entries(task.options["tokenizer_files"]):
        temporary = task.temporary(f"{MODEL_FOLDER}/{expected.path}")
        write_durably(temporary, verified_bytes(task.input_dirs[Stage.TOKENIZER], expected, subject="tokenizer"))
        entries.append(_publish(task, temporary, name=expected.path))
    return entries


def _entries(values: Iterable[Any]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry.model_validate(dict(value)) for value in values)


def _write_json(task: ItemTask, name: str, value: Mapping[str, Any]) -> FileEntry:
    temporary = task.temporary(f"{MODEL_FOLDER}/{name}")
    write_durably(temporary, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
    return _publish(task, temporary, name=name)


def _publish(task: ItemTask, temporary: Path, *, name: str) -> FileEntry:
    entry = publish_file(temporary, task.output_dir / MODEL_FOLDER / name)
    return entry.model_copy(update={"path": f"{MODEL_FOLDER}/{name}"})


if __name__ == "__main__":
    item_main(run)
