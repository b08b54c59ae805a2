"""Certificates: what an answer "nothing to do" rested on, so that `flows.finished` can give it again without finding out anew.

A fact is taken after the answer was found, and must be older than the process that found it: then it was the same all along. Only records may be
younger, because their content is compared. What a later look could not compare (storage that is no folder, a queue, a factory's source, which only an
import finds) gets no certificate.
"""

import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.layout import ArtifactLayout, sweep_key
from cluster.process import started_at
from cluster.storage import FileStorage, open_storage, replace_local
from flows.finished import IMPORTED_NS, certificate_path, environment, files_below, interpreter, names_in, packed, stamp
from schemas.artifact import RECORD_NAME, ArtifactRecord
from schemas.canonical import FINGERPRINT_CHARS, sha256
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.errors import HeadraceError
from schemas.plan import Plan, PlannedStage
from schemas.recipe import LoadedRecipe
from schemas.reference import has_secret, secret_names
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.witnesses import witnesses_of

logger = logging.getLogger(__name__)

_PACKAGES = ("schemas", "cluster", "tasks", "flows")
_YOUNG_NS = 2_000_000_000
"""As in `tasks.file_hashes`: what changed within this time before it was looked at may change again without a new time stamp."""
_MOST = 64
"""Certificates that a project keeps; each is some 200 kB."""


def certify(loaded: LoadedRecipe, plan: Plan, *, warnings: Sequence[str], text: str, json: str, modules: Collection[str]) -> None:
    """Leaves a certificate of the answer that `plan`, made from `loaded`, has nothing to do; none where that is not certain later.

    Args:
        warnings: lines that the answer puts on stderr.
        text: the answer for people.
        json: the answer for machines.
        modules: names of the modules that finding the answer takes.
    """
    try:
        facts = _facts(loaded, plan, modules=modules)
        if facts is not None:
            path = Path(certificate_path(str(loaded.path), loaded.overrides))
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_local(path, packed({**facts, "warnings": list(warnings), "text": text, "json": json}))
            _drop_oldest(path.parent)
    except (OSError, SealBrokenError, HeadraceError) as error:  # a read-only project, a file that went away: the answer is found again next time
        logger.info("no certificate for %s: %s", loaded.path, error)


def _facts(loaded: LoadedRecipe, plan: Plan, *, modules: Collection[str]) -> dict[str, Any] | None:
    """Returns everything that the answer followed from, as `flows.finished` compares it; None where something cannot be compared."""
    config = loaded.config
    storage = open_storage(config.storage.root) if _is_comparable(config) else None
    witnesses = witnesses_of(config)
    if not isinstance(storage, FileStorage) or witnesses is None:
        return None
    packages = {folder: files_below(folder) for folder in _packages()}
    code = {*_libraries(modules), *(file for files in packages.values() for file in files)}
    stamps = {path: stamp(path) for path in {*witnesses.entries, *map(str, loaded.files), *code}}
    records = _records(storage, plan.stages)
    if records is None or _has_young(stamps):
        return None
    root = config.storage.root.removeprefix("file://")
    names = [[folder, prefix, names_in(folder, prefix)] for folder, prefix in _looked_into(storage, plan)]
    return {
        "interpreter": interpreter(),
        "environment": environment(),
        "variables": list(secret_names(config.tracking.mlflow_uri or "")),
        "recipe": [str(loaded.path), loaded.text_hash],
        "packages": packages,
        "names": names,
        "absent": sorted(_unfinished(names)),
        "links": {**witnesses.links, root: str(storage.root), **{path: path for path in (*records, str(storage.root / "runs"))}},
        "records": records,
        "stamps": stamps,
    }


def _is_comparable(config: RunConfig) -> bool:
    """Whether all that the command line asks before it plans can be asked by the standard library: no scheduler, no secret's value."""
    return config.cluster.kind is ClusterKind.LOCAL and not has_secret(config.storage.root) and "${file:" not in (config.tracking.mlflow_uri or "")


def _records(storage: FileStorage, stages: Sequence[PlannedStage]) -> dict[str, str] | None:
    """Returns the hash of every stage's record by its path; None when one is not what the plan was made with."""
    hashes: dict[str, str] = {}
    contents: dict[Stage, str] = {}
    for stage in stages:
        key = ArtifactLayout(stage.key).record
        data = storage.read(key)
        record = ArtifactRecord.from_bytes(data)
        if record.fingerprint != stage.fingerprint or any(contents[ref.stage] != ref.content_hash for ref in record.inputs):
            return None
        contents[record.stage] = record.content_hash
        hashes[str(storage.root / key)] = sha256(data)
    return hashes


def _looked_into(storage: FileStorage, plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields the folders that are listed for every stage, and how names begin that count: other rebuilds of the artifact, marks of its removal."""
    for stage in plan.stages:
        prefix = f"{plan.name}-{stage.fingerprint[:FINGERPRINT_CHARS]}"
        for key in (stage.key, sweep_key(stage.key)):
            yield str((storage.root / key).parent), prefix


def _unfinished(names: Iterable[Any]) -> Iterator[str]:
    """Yields the records that other rebuilds have not got yet: a newer one would be found instead."""
    for folder, _, found in names:
        yield from (record for name in found if not os.path.lexists(record := f"{folder}/{name}/{RECORD_NAME}"))


def _packages() -> Iterator[str]:
    """Yields the folders of our own code: all of it counts."""
    yield from (str(Path(str(sys.modules[name].__file__)).parent) for name in _PACKAGES)


def _libraries(modules: Collection[str]) -> Iterator[str]:
    """Yields the files of the libraries that found the answer, and the folders where a file could appear that is imported instead."""
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).is_absolute():  # torch.classes calls itself `_classes.py`, and is no file
            yield str(file)
    yield from (folder for folder in (entry or str(Path.cwd()) for entry in sys.path) if Path(folder).is_dir())


def _has_young(stamps: Mapping[str, Sequence[int]]) -> bool:
    """Whether anything changed since this process began, or so shortly before that it may have been read in between."""
    before_ns = _process_started_ns() - _YOUNG_NS
    young = [path for path, (_, modified_ns, changed_ns, _) in stamps.items() if max(modified_ns, changed_ns) > before_ns]
    if young:
        logger.info("no certificate: changed since this process began, or just before: %s", ", ".join(young[:5]))
    return bool(young)


def _process_started_ns() -> int:
    """Returns when this process started, on the clock of files' time stamps; the earlier answer where that clock was set meanwhile."""
    started_s = started_at(os.getpid())
    assert started_s is not None, "a process that runs is no zombie"
    age_ns = round((time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1e9)
    return min(time.time_ns() - age_ns, IMPORTED_NS)


def _drop_oldest(folder: Path) -> None:
    """Keeps a project's certificates few: those of overrides that were tried once are never asked for again."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)[:-_MOST]:
        path.unlink(missing_ok=True)
