"""Whole parameters from a checkpoint's fragments: coverage is checked first, bytes are checked as they are read.

A checkpoint holds, per rank, `rank-0000.bin` (raw fp32 fragments) and `rank-0000.json` (which fragment lies where). A file's
hash can only be checked by reading all of it, while parameters are needed one after the other; so one pass hashes each file
against the commit and remembers a hash per weight fragment, and the second pass checks every fragment's hash again while it
copies. Memory: one block, whatever the model's size. Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import ValidationError

from cluster.storage import path_below
from schemas.artifact import FileEntry
from schemas.checkpoint import CommitRecord, Fragment, ParameterShape, RankIndex, TrainingState
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import STATE_NAME, checkpoint_folder

_FP32_BYTES = 4
_MEND = "headrace resume goes on from the newest checkpoint that verifies"
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Piece:
    """A weight fragment and the file it lies in."""

    file: str
    """Name of the data file, relative to the checkpoint's folder."""
    fragment: Fragment
    """Where in the file, and where in the parameter."""


@dataclass(frozen=True)
class CheckpointFolder:
    """A committed checkpoint: its folder and what the commit says about its files."""

    path: Path
    entries: Mapping[str, FileEntry]

    @classmethod
    def of(cls, commit: CommitRecord, *, artifact_dir: Path) -> "CheckpointFolder":
        """Returns the checkpoint that `commit` names, in the training artifact's local folder. Raises UnsafeFileError for a link on the way."""
        return cls(path=checkpoint_folder(commit, artifact_dir=artifact_dir), entries={entry.path: entry for entry in commit.files})

    def read_verified(self, name: str) -> bytes:
        """Returns a small file's bytes, checked against the commit.

        Raises:
            VerificationError: the commit does not know the file, or it is missing, or its bytes changed.
            UnsafeFileError: it is a link, or below one.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise VerificationError((f"{name}: not part of the commit",), subject=str(self.path))
        try:
            data = path_below(self.path, name).read_bytes()
        except FileNotFoundError as error:
            raise VerificationError((f"{name}: missing",), subject=str(self.path)) from error
        if len(data) != entry.size or xxhash.xxh3_128(data).hexdigest() != entry.xxh3:
            raise VerificationError((f"{name}: its bytes are not what was committed",), subject=str(self.path))
        return data

    def state(self) -> TrainingState:
        """Returns the verified training state."""
        return TrainingState.model_validate_json(self.read_verified(STATE_NAME))

    def weight_pieces(self) -> tuple[Piece, ...]:
        """Returns the weight fragments of all ranks, in order of (file, byte offset)."""
        pieces: list[Piece] = []
        for name in sorted(self.entries):
            if not (name.startswith("rank-") and name.endswith(".json")):
                continue
            try:
                index = RankIndex.model_validate_json(self.read_verified(name))
            except ValidationError as error:
                raise VerificationError((f"{name}: not a rank's index ({error.error_count()} problems)",), subject=str(self.path)) from error
            data_file = name.removesuffix(".json") + ".bin"
            pieces += [Piece(data_file, fragment) for fragment in index.fragments if fragment.slot == "weight"]
        return tuple(sorted(pieces, key=lambda piece: (piece.file, piece.fragment.byte_offset)))


def cover(pieces: Sequence[Piece], *, parameters: Sequence[ParameterShape]) -> dict[str, tuple[Piece, ...]]:
    """Returns each parameter's pieces in order, which together hold every element exactly once.

    Raises:
        VerificationError: with every gap, overlap, unknown and missing parameter.
    """
    sizes = {parameter.name: _num_elements(parameter) for parameter in parameters}
    by_name: dict[str, list[Piece]] = {name: [] for name in sizes}
    findings: list[str] = []
    for piece in pieces:
        if piece.fragment.name in by_name:
            by_name[piece.fragment.name].append(piece)
        else:
            findings.append(f"{piece.file}: fragment of {piece.fragment.name!r}, which state.json does not list")
    for name, found in by_name.items():
        found.sort(key=lambda piece: piece.fragment.start)
        findings += _holes(name, found, size=sizes[name])
    if findings:
        raise VerificationError(tuple(findings), subject="checkpoint fragments", mend=_MEND)
    return {name: tuple(found) for name, found in by_name.items()}


def _holes(name: str, pieces: Sequence[Piece], *, size: int) -> list[str]:
    """Returns what is wrong with the pieces of one parameter, which are sorted by start."""
    findings, position = [], 0
    for piece in pieces:
        start, count = piece.fragment.start, piece.fragment.count
        if count <= 0 or start < 0:
            findings.append(f"{name}: fragment of {count} elements at {start} in {piece.file}")
            continue
        if start > position:
            findings.append(f"{name}: gap, elements {position} to {start} are in no file")
        elif start < position:
            findings.append(f"{name}: overlap, elements {start} to {min(position, start + count)} are in more than one fragment ({piece.file})")
        position = max(position, start + count)
    if position < size:
        findings.append(f"{name}: gap, elements {position} to {size} are in no file")
    elif position > size:
        findings.append(f"{name}: fragments reach element {position}, the parameter has {size}")
    return findings


class FragmentReader:
    """Reads weight fragments of a checkpoint whose files were hashed against its commit."""

    def __init__(self, folder: CheckpointFolder, *, pieces: Sequence[Piece]) -> None:
        """Hashes every data file that `pieces` name, once, front to back.

        Raises:
            VerificationError: files that are missing, of another size, or whose bytes changed: all of them at once.
            UnsafeFileError: one of them is a link.
        """
        self._folder = folder
        self._hashes: dict[tuple[str, int], str] = {}
        findings: list[str] = []
        for name in sorted({piece.file for piece in pieces}):
            findings += self._hash_file(name, [piece.fragment for piece in pieces if piece.file == name])
        if findings:
            raise VerificationError(tuple(findings), subject=str(folder.path), mend=_MEND)

    def read(self, piece: Piece) -> Iterator[npt.NDArray[np.float32]]:
        """Yields the fragment's elements (fp32, flat) in blocks.

        Raises:
            VerificationError: after the last block, when the bytes differ from those of the first pass.
        """
        state = xxhash.xxh3_128()
        for block in self._blocks(piece.file, start=piece.fragment.byte_offset, size=piece.fragment.count * _FP32_BYTES):
            state.update(block)
            yield np.frombuffer(block, dtype="<f4")
        if state.hexdigest() != self._hashes[piece.file, piece.fragment.byte_offset]:
            raise VerificationError((f"{piece.file}: changed while it was read, at {piece.fragment.name!r}",), subject=str(self._folder.path))

    def _hash_file(self, name: str, fragments: Sequence[Fragment]) -> list[str]:
        """Hashes a file and its weight fragments, whose order is that of `byte_offset`, in one pass; returns findings."""
        entry, path = self._folder.entries.get(name), path_below(self._folder.path, name)
        if entry is None:
            return [f"{name}: not part of the commit"]
        if not path.is_file() or path.stat().st_size != entry.size:
            return [f"{name}: {'missing' if not path.is_file() else f'{path.stat().st_size} bytes'}, the commit says {entry.size} bytes"]
        whole, position = xxhash.xxh3_128(), 0
        for fragment in fragments:
            size = fragment.count * _FP32_BYTES
            if fragment.byte_offset < position or fragment.byte_offset + size > entry.size:
                return [f"{name}: fragment of {fragment.name!r} at byte {fragment.byte_offset} overlaps another one or passes the end"]
            for block in self._blocks(name, start=position, size=fragment.byte_offset - position):
                whole.update(block)
            part = xxhash.xxh3_128()
            for block in self._blocks(name, start=fragment.byte_offset, size=size):
                whole.update(block)
                part.update(block)
            self._hashes[name, fragment.byte_offset] = part.hexdigest()
            position = fragment.byte_offset + size
        for block in self._blocks(name, start=position, size=entry.size - position):
            whole.update(block)
        return [] if whole.hexdigest() == entry.xxh3 else [f"{name}: its bytes are not what was committed"]

    def _blocks(self, name: str, *, start: int, size: int) -> Iterator[bytes]:
        """Yields `size` bytes of a file from `start`, in blocks; a buffered read is short only at the file's end."""
        with open(path_below(self._folder.path, name), "rb") as file:
            file.seek(start)
            while size > 0:
                block = file.read(min(size, _BLOCK_BYTES))
                if len(block) < min(size, _BLOCK_BYTES):
                    raise VerificationError((f"{name}: ends {size - len(block)} bytes early",), subject=str(self._folder.path))
                size -= len(block)
                yield block


def _num_elements(parameter: ParameterShape) -> int:
    return int(np.prod(parameter.shape, dtype=np.int64))
