"""Pins: set, taken out, listed. Who takes out somebody else's must insist."""

import time
from collections.abc import Sequence

from pydantic import ValidationError

from cluster.layout import PINS, ArtifactLayout, pin_key, pin_removal_key
from cluster.process import is_own, owner_here
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.errors import InputError, VerificationError
from schemas.pin import Pin, PinRemoval
from tasks.store_hygiene.sweep import wait_for_sweep


def standing_pins(storage: Storage) -> tuple[Pin, ...]:
    """Returns the pins that hold, oldest first.

    Raises:
        VerificationError: one cannot be read, so nobody knows what it keeps.
    """
    names = set(storage.names(PINS))
    pins = []
    for name in sorted(names):
        number = name.partition(".")[0]
        if f"{number}.removed.json" in names:
            continue
        try:
            pins.append(Pin.model_validate_json(storage.read(f"{PINS}/{name}")))
        except ValidationError as error:
            finding = f"{PINS}/{name}: is not a pin ({error.error_count()} problems)"
            raise VerificationError((finding,), subject="pins", mend="restore the file, or remove it and pin again") from error
    return tuple(pins)


def add_pin(storage: Storage, *, subject: str, keys: Sequence[str], reason: str) -> Pin:
    """Pins artifacts and returns the pin.

    Raises:
        InputError: one of them is not in the store, or was being removed at that moment.
    """
    number = len([name for name in storage.names(PINS) if not name.endswith(".removed.json")])
    while True:
        pin = Pin(number=number, subject=subject, keys=tuple(keys), reason=reason, by=owner_here(), at=time.time())
        try:
            storage.create_exclusive(pin_key(number), canonical_json(pin))
        except AlreadyExistsError:
            number += 1
            continue
        break
    for key in pin.keys:
        wait_for_sweep(storage, key)
    gone = [key for key in pin.keys if not set(storage.names(key)) - {ArtifactLayout(key).leases.rpartition("/")[2]}]
    if gone:
        _end(storage, pin)
        raise InputError(f"{', '.join(gone)}: not in the store", why=f"nothing is there to keep for {subject!r}", mend="headrace store ls")
    return pin


def remove_pin(storage: Storage, pin: Pin, *, force: bool) -> None:
    """Takes a pin out.

    Raises:
        InputError: it is somebody else's, and nobody insists.
    """
    if not is_own(pin.by) and not force:
        why = f"{pin.by} pinned it: {pin.reason}" if pin.reason else f"{pin.by} pinned it"
        raise InputError(f"pin {pin.number} is not yours", why=why, mend=f"ask {pin.by}, or add --force")
    _end(storage, pin)


def find_pins(pins: Sequence[Pin], what: str) -> tuple[Pin, ...]:
    """Returns the pins that `what` names: a number, what was pinned in its user's words, or an artifact's folder."""
    return tuple(pin for pin in pins if what in (str(pin.number), pin.subject, *pin.keys))


def _end(storage: Storage, pin: Pin) -> None:
    try:
        storage.create_exclusive(pin_removal_key(pin.number), canonical_json(PinRemoval(by=owner_here(), at=time.time())))
    except AlreadyExistsError:  # somebody else was faster: it is out
        return
