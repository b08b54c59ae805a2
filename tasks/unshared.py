"""What pods miss that share no folder with the machine that decides: credentials of object storage, and files that the recipe names.

`plan` and `doctor` warn of it before anything is submitted. They cannot know: machines may have a role of their own, and images files. PURE.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.launchers import machines_see
from cluster.launchers.kubernetes_request import has_credentials
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.source_url import is_remote
from schemas.stage import Stage


@dataclass(frozen=True)
class Missed:
    """Something that pods probably lack."""

    subject: str
    """The key of the recipe."""
    what: str
    """For people."""
    mend: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}; {self.mend}"


def missed_by_pods(config: RunConfig, *, storage_root: str, project_dir: Path, stages: Collection[Stage]) -> tuple[Missed, ...]:
    """Returns what the pods of these stages probably lack; nothing on other clusters.

    Args:
        storage_root: absolute path or URL.
        project_dir: the recipe's project folder.
        stages: those that are to be made.
    """
    if config.cluster.kind is not ClusterKind.KUBERNETES:
        return ()
    made = [stage for stage in config.stages if stage in stages and stage is not Stage.REGISTER]
    files = _unseen_files(config, is_bucket="://" in storage_root, project_dir=project_dir, made=made)
    return (*_credentials(config, storage_root=storage_root, made=made), *files)


def _credentials(config: RunConfig, *, storage_root: str, made: Sequence[Stage]) -> Iterator[Missed]:
    without = [stage.value for stage in made if not has_credentials(config.cluster.kubernetes.pods(stage))]
    if "://" in storage_root and without:
        what = f"pods of {', '.join(without)} get no credentials for {storage_root}; what your shell holds does not reach them"
        mend = "name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there, or a service_account that has a role, unless machines have one"
        yield Missed("cluster.kubernetes.secrets", what, mend)


def _unseen_files(config: RunConfig, *, is_bucket: bool, project_dir: Path, made: Sequence[Stage]) -> Iterator[Missed]:
    for key, path, stage in _files(config, project_dir=project_dir):
        is_carried = stage is Stage.VALIDATE and is_bucket
        if stage in made and not is_carried and not machines_see(path, config.cluster, stage=stage):
            mend = "mount a volume at or above it (cluster.kubernetes.volumes)"
            yield Missed(key, f"pods of {stage.value} do not see {path}, unless their image has it", mend)


def _files(config: RunConfig, *, project_dir: Path) -> Iterator[tuple[str, str, Stage]]:
    """Yields what processes of stages open besides artifacts: the key that names it, where it lies here, and the stage."""
    for index, source in enumerate(config.corpus.sources):
        if not is_remote(source.path):  # fetched by the machine that decides
            yield f"corpus.sources.{index}", source.path, Stage.VALIDATE
    for index, path in enumerate(config.corpus.preparation.decontamination.files):
        yield f"corpus.preparation.decontamination.files.{index}", path, Stage.PREPARE
    if config.tokenizer.path is not None:
        yield "tokenizer.path", config.tokenizer.path, Stage.TOKENIZER
    if config.model.pretrained is not None:
        yield "model.pretrained", config.model.pretrained, Stage.TRAIN
    if config.model.factory is not None:
        yield "model.factory", str(project_dir), Stage.TRAIN
