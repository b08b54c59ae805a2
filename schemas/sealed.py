"""Records that find their own damage: stored as canonical JSON with a hash over everything else in them."""

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
        try:
            record = cls.model_validate_json(data)
        except ValidationError as error:
            raise SealBrokenError(f"not a {cls.__name__} ({error.error_count()} problems)") from error
        if record.record_hash != record._hash() or canonical_json(record) != data:
            raise SealBrokenError("its bytes are not what was committed")
        return record

    def _hash(self) -> str:
        body: dict[str, Any] = self.model_dump(mode="json")
        del body["record_hash"]
        return hash_of(body)
