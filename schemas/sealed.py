"""Records that find their own damage: stored as canonical JSON with a hash over everything else in them."""

import json
from typing import Any, Self

from pydantic import ValidationError

from schemas.canonical import canonical_json, hash_of
from schemas.frozen import Frozen


class SealBrokenError(ValueError):
    """Bytes that are not a record as it was written. Callers turn it into a VerificationError that names the file."""


class Sealed(Frozen):
    """A record whose every flipped byte is found.

    Either the JSON breaks, or the bytes are not canonical, or `record_hash` disagrees.
    """

    record_hash: str = ""
    """Hash of all other fields; set by `sealed`."""

    def sealed(self) -> Self:
        """Returns the record with its `record_hash`."""
        return self.model_copy(update={"record_hash": self._hash()})

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes that are stored."""
        assert self.record_hash, "only sealed records are stored"
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Returns the record in `data`.

        Raises:
            SealBrokenError: `data` is not what `to_bytes` gave.
        """
        try:  # the bytes are judged as they are, so that a record of an older version, without a newer field, stays intact
            body = json.loads(data)
            seal = body.pop("record_hash")
            intact = hash_of(body) == seal and canonical_json({**body, "record_hash": seal}) == data
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise SealBrokenError(f"not a {cls.__name__}") from error
        if not intact:
            raise SealBrokenError("its bytes are not what was committed")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            problem = " ".join(f"{where}: {first['msg']}".split()).removeprefix(": ")
            raise SealBrokenError(f"not a {cls.__name__} that this version reads ({problem})") from error

    def _hash(self) -> str:
        body: dict[str, Any] = self.model_dump(mode="json")
        del body["record_hash"]
        return hash_of(body)
