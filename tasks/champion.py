"""The champion of a registered model, as the start of a further training: its weights, its tokenizer, and where they lie."""

import json
from dataclasses import dataclass

from cluster.storage import Storage
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import InputError
from schemas.stage import Stage
from tasks.export.layout import MODEL_FOLDER
from tasks.register.promotion import CHAMPION, history
from tasks.runs import Run
from tasks.store import Store
from tasks.verify import resolve


@dataclass(frozen=True)
class Champion:
    """A model that a further training may start from."""

    uri: str
    """`models:/demo/3`."""
    overrides: tuple[str, ...]
    """What makes a recipe start from it, as after `--set`."""
    started_by: tuple[str, ...]
    """What made its own training start where it did, likewise; empty: from nothing but its recipe."""
    training: str
    """The folder of its training."""


def find_champion(storage: Storage, config: RunConfig) -> Champion | None:
    """Returns what the alias `champion` of the recipe's model stands for, by the promotion log; None before anything was promoted.

    Raises:
        InputError: its artifacts are gone, or lie where `model.pretrained` cannot read them.
        VerificationError: a record on the way is damaged.
    """
    name = config.model_name
    if not any(move.alias == CHAMPION for move in history(storage, name)):
        return None
    store = Store(storage)
    registration = store.read(resolve(storage, f"{name}@{CHAMPION}"))
    export = store.read(registration.input(Stage.EXPORT).key)
    training = store.read(export.input(Stage.TRAIN).key)
    folder = storage.local_path(export.key)
    if folder is None:
        why = "model.pretrained is read from a folder or a mounted path"
        raise InputError(f"{storage.url} cannot be trained from", why=why, mend="mount it, or use on_change: retrain")
    model = str(folder / MODEL_FOLDER)
    return Champion(
        uri=f"models:/{name}/{registration.summary['version']}",
        overrides=_overrides(pretrained=model, tokenizer=config.tokenizer.path or model),
        started_by=_start_of(storage, training),
        training=training.key,
    )


def _start_of(storage: Storage, training: ArtifactRecord) -> tuple[str, ...]:
    run = Run(storage, training.provenance.run_id)
    if not storage.exists(run.layout.config):  # somebody has tidied up: whether anything changed since is then told by the recipe alone
        return ()
    config = run.config()
    if config.model.pretrained is None or config.tokenizer.path is None:
        return ()
    return _overrides(pretrained=config.model.pretrained, tokenizer=config.tokenizer.path)


def _overrides(*, pretrained: str, tokenizer: str) -> tuple[str, ...]:
    """A start from weights needs the tokenizer that they were made with: another one's ids mean other text."""
    return (f"model={json.dumps({'pretrained': pretrained})}", f"tokenizer.path={json.dumps(tokenizer)}")
