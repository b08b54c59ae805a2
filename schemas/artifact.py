"""What stages make. An artifact is a folder `{stage}/{name}-{fingerprint12}/`, immutable once its `record.json` exists."""

from schemas.canonical import root_hash
from schemas.frozen import Frozen, JsonObject
from schemas.safe_path import RelativePath
from schemas.sealed import Sealed
from schemas.stage import Stage

RECORD_NAME = "record.json"


class FileEntry(Frozen):
    """One file of an artifact, a checkpoint or a corpus."""

    path: RelativePath
    """Path relative to the folder that the containing record describes, with `/`."""
    size: int
    """Bytes."""
    xxh3: str
    """xxh3-128 of the content, hex."""


class ArtifactRef(Frozen):
    """A finished artifact as another stage sees it."""

    stage: Stage
    """The stage that made it."""
    key: RelativePath
    """Its folder, relative to the storage root."""
    fingerprint: str
    """What it is: names the folder."""
    content_hash: str
    """What it holds: later stages build on this."""


class Provenance(Frozen):
    """How an artifact came to be. Never part of a hash that another stage builds on."""

    run_id: str
    """The run that made it."""
    created_at: str
    """UTC, ISO 8601."""
    created_by: str
    """user@host."""
    argv: tuple[str, ...]
    """Command line of the control process."""
    commit: str
    """Git commit of Headrace's checkout, or empty."""
    versions: dict[str, str]
    """Versions of the libraries that matter."""


class ArtifactRecord(Sealed):
    """The record that a stage leaves, last. Only its presence means done."""

    schema_version: int = 1
    """Version of this type."""
    stage: Stage
    """The stage that made it."""
    stage_version: int
    """The stage's version at that time."""
    name: str
    """The recipe's name."""
    key: RelativePath
    """The artifact's folder, relative to the storage root."""
    fingerprint: str
    """Hash of stage, version, recipe section and inputs' content hashes."""
    content_hash: str
    """Root hash over what was made."""
    inputs: tuple[ArtifactRef, ...]
    """The artifacts it was made from."""
    outside: dict[str, str] = {}
    """Content hashes of what was read from outside the store: `raw` text, an `existing` tokenizer, a `pretrained` model, the source of a model's
    `factory`, the model `registry`."""
    recipe: JsonObject
    """The recipe sections that are part of the fingerprint."""
    files: tuple[FileEntry, ...]
    """Every file of the artifact but the record itself."""
    summary: JsonObject
    """A few figures for people and for later stages, per stage; small."""
    provenance: Provenance
    """How it came to be."""

    def ref(self) -> ArtifactRef:
        """Returns the artifact as later stages see it."""
        return ArtifactRef(stage=self.stage, key=self.key, fingerprint=self.fingerprint, content_hash=self.content_hash)

    def input(self, stage: Stage) -> ArtifactRef:
        """Returns the input made by `stage`. Raises KeyError when there is none."""
        for ref in self.inputs:
            if ref.stage is stage:
                return ref
        raise KeyError(f"{self.key} was not made from a {stage.value} artifact")


def content_hash_of(files: tuple[FileEntry, ...]) -> str:
    """Returns the content hash of an artifact: the root hash over its content files."""
    return root_hash((entry.path, entry.size, entry.xxh3) for entry in files)
