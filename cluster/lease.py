"""Leases out of immutable objects: who may write an artifact, who controls a run. Nothing is renamed, replaced or appended to.

    {folder}/000003.json              the third term: who took it, exclusively created
    {folder}/000003.b000017.json      its 17th renewal; older ones are deleted
    {folder}/000003.released.json     given back

A term ends when it is released, when its holder is known to be dead (same process table, pid gone or recycled), or when its
renewals have not *changed* for the holder's ttl as watched from here: clocks of two machines are never compared below an hour.
Whoever finds it ended creates the next term; of several, exactly one succeeds.
"""

import contextlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from cluster.liveness import CLOCK_SKEW_S
from cluster.process import ProcessId, is_dead, is_own, owner_here, this_process
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.errors import HeadraceError, LeaseHeldError
from schemas.frozen import Frozen

logger = logging.getLogger(__name__)

DEFAULT_TTL_S = 30.0
REMOVAL = "removal"
"""Purpose of a lease under which it is settled whether an artifact goes, and under which it does."""
_NAME = re.compile(r"^(?P<term>\d{6})(?:\.b(?P<beat>\d{6,})|\.(?P<released>released))?\.json$")
PATIENCE_S = 1.2 * DEFAULT_TTL_S
"""Watching a silent holder for so long tells that it is dead."""

_WATCH_EVERY_S = 0.5
_MOST_BETWEEN_LOOKS_S = 2.0
"""What counts as watched from one look to the next: while storage rests, or this process does, nobody's silence is seen."""


class LeaseTerm(Frozen):
    """One holder's term (`NNNNNN.json`)."""

    owner: str
    """user@host, for people."""
    host: str
    """The holder's host."""
    pid: int
    """Its process."""
    pid_started: float
    """Its start, seconds after its machine's boot."""
    process_table: str
    """Boot id and pid namespace: who shares them can ask about the pid."""
    at: float
    """When it was taken, seconds since the Unix epoch by the holder's clock."""
    ttl_s: float
    """Without a renewal for so long the term has ended."""
    purpose: str = ""
    """What it is held for, where that is neither to make an artifact nor to control a run: `REMOVAL`."""

    def process(self) -> ProcessId:
        """Returns the holder."""
        return ProcessId(host=self.host, table=self.process_table, pid=self.pid, started=self.pid_started)


class LeaseBeat(Frozen):
    """One renewal, or the release."""

    at: float
    """Seconds since the Unix epoch by the holder's clock."""


class Watched(NamedTuple):
    """What somebody who looks now and then saw of a lease: one that is not renewed any more has no live holder."""

    names: tuple[str, ...]
    """What its folder held."""
    silent_s: float
    """How long it was watched holding just that."""
    looked_at: float
    """The last look, monotonic seconds."""


@dataclass(frozen=True)
class _State:
    """What a lease's folder says."""

    term: int = 0
    """Newest term; 0: never taken."""
    beat: int = 0
    """Its newest renewal; 0: none yet."""
    released: bool = False


class Lease:
    """A held lease. A context manager: leaving it releases. A daemon thread renews it every third of its ttl."""

    def __init__(self, storage: Storage, folder: str, *, term: int, ttl_s: float) -> None:
        """Use `Lease.take`."""
        self._storage, self._folder, self._term, self._ttl_s = storage, folder, term, ttl_s
        self._beat = 0
        self._ending = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {folder}", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls, storage: Storage, folder: str, *, ttl_s: float = DEFAULT_TTL_S, wait_s: float = 0.0, watch_s: float = 0.0, purpose: str = ""
    ) -> Self:
        """Takes the lease of `folder`.

        Args:
            storage: where it lies.
            folder: key of its folder.
            ttl_s: without a renewal for so long others may take it over.
            wait_s: how long to wait for the present holder.
            watch_s: how long to watch a holder whose life cannot be known (on another machine, or on this one before a reboot). One
                that is silent for its ttl meanwhile is taken over; `PATIENCE_S` covers the default ttl.
            purpose: see `LeaseTerm.purpose`.

        Raises:
            LeaseHeldError: another live process holds it.
        """
        started = looked_at = time.monotonic()
        watched_s = seen_at_s = 0.0
        seen: _State | None = None
        while True:
            now = time.monotonic()
            watched_s += min(now - looked_at, _MOST_BETWEEN_LOOKS_S)
            looked_at = now
            state = _look(storage, folder)
            if state != seen:
                seen, seen_at_s = state, watched_s
            holder = _holder(storage, folder, state)
            if holder is None or _has_ended(storage, folder, state, holder=holder, unchanged_s=watched_s - seen_at_s):
                with contextlib.suppress(AlreadyExistsError):  # another was faster: look again
                    storage.create_exclusive(_key(folder, state.term + 1), canonical_json(_own_term(ttl_s, purpose=purpose)))
                    _sweep(storage, folder, below=state.term + 1)
                    return cls(storage, folder, term=state.term + 1, ttl_s=ttl_s)
                continue
            if time.monotonic() - started >= wait_s and (_same_machine(holder) or watched_s >= watch_s):
                raise _held(folder, holder)
            time.sleep(min(_WATCH_EVERY_S, max(0.01, wait_s, watch_s)))

    @property
    def lost(self) -> bool:
        """Whether this lease is known to be taken over. Who held it must stop writing."""
        return self._lost.is_set()

    def still_held(self) -> bool:
        """Asks storage whether this lease is still ours."""
        if not self._ending.is_set() and _look(self._storage, self._folder).term != self._term:
            self._lost.set()
        return not self.lost and not self._ending.is_set()

    def release(self) -> None:
        """Gives the lease back. Nothing when it was given back or lost before."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(AlreadyExistsError):
                self._storage.create_exclusive(_key(self._folder, self._term, ".released"), canonical_json(LeaseBeat(at=time.time())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None) -> None:
        self.release()

    def _renew(self) -> None:
        """Renews until the lease is released or taken over. A storage that does not answer is asked again: whether somebody took it is known then."""
        while not self._ending.wait(self._ttl_s / 3):
            try:
                if not self.still_held():
                    logger.error("lease %s was taken over", self._folder)
                    return
                with contextlib.suppress(AlreadyExistsError):  # ours, from a try whose answer was lost: the term is ours alone
                    beat = _key(self._folder, self._term, f".b{self._beat + 1:06d}")
                    self._storage.create_exclusive(beat, canonical_json(LeaseBeat(at=time.time())))
                self._beat += 1
                if self._beat > 1:
                    self._storage.delete(_key(self._folder, self._term, f".b{self._beat - 1:06d}"))
            except (OSError, HeadraceError) as error:
                logger.warning("lease %s cannot be renewed: %s", self._folder, error)


def holder_is_alive(storage: Storage, folder: str) -> bool:
    """Whether somebody holds the lease of `folder` now, as far as one look can tell."""
    return live_holder(storage, folder) is not None


def live_holder(storage: Storage, folder: str) -> LeaseTerm | None:
    """Returns who holds the lease of `folder` now, as far as one look can tell, or None."""
    state = _look(storage, folder)
    holder = _holder(storage, folder, state)
    if holder is None or _has_ended(storage, folder, state, holder=holder, unchanged_s=0.0):
        return None
    return holder


def newest_term(storage: Storage, folder: str) -> LeaseTerm | None:
    """Returns who took the lease of `folder` last, whether or not they hold it still; None when nobody ever did."""
    state = _look(storage, folder)
    return LeaseTerm.model_validate_json(storage.read(_key(folder, state.term))) if state.term else None


def _key(folder: str, term: int, suffix: str = "") -> str:
    return f"{folder}/{term:06d}{suffix}.json"


def _own_term(ttl_s: float, *, purpose: str) -> LeaseTerm:
    process = this_process()
    return LeaseTerm(
        owner=owner_here(),
        host=process.host,
        pid=process.pid,
        pid_started=process.started,
        process_table=process.table,
        at=time.time(),
        ttl_s=ttl_s,
        purpose=purpose,
    )


def _look(storage: Storage, folder: str) -> _State:
    matches = [match for name in storage.names(folder) if (match := _NAME.match(name))]
    term = max((int(match["term"]) for match in matches), default=0)
    mine = [match for match in matches if int(match["term"]) == term]
    return _State(
        term=term,
        beat=max((int(match["beat"]) for match in mine if match["beat"]), default=0),
        released=any(match["released"] for match in mine),
    )


def _holder(storage: Storage, folder: str, state: _State) -> LeaseTerm | None:
    """Returns who holds the newest term, or None when it was released or never taken."""
    if state.term == 0 or state.released:
        return None
    return LeaseTerm.model_validate_json(storage.read(_key(folder, state.term)))


def _has_ended(storage: Storage, folder: str, state: _State, *, holder: LeaseTerm, unchanged_s: float) -> bool:
    """Whether an unreleased term has ended all the same."""
    if is_dead(holder.process()) or unchanged_s > holder.ttl_s:
        return True
    renewed_at = holder.at
    if state.beat:
        try:
            renewed_at = LeaseBeat.model_validate_json(storage.read(_key(folder, state.term, f".b{state.beat:06d}"))).at
        except FileNotFoundError:  # renewed meanwhile: it lives
            return False
    return time.time() - renewed_at > holder.ttl_s + CLOCK_SKEW_S and not _same_machine(holder)


def _same_machine(holder: LeaseTerm) -> bool:
    """Whether the holder's life is known from the process table, so that clocks need not be asked (a laptop that slept is no dead holder)."""
    return holder.process_table == this_process().table


def _sweep(storage: Storage, folder: str, *, below: int) -> None:
    """Deletes the renewals of earlier terms; who held them stays on record."""
    for name in storage.names(folder):
        match = _NAME.match(name)
        if match and match["beat"] and int(match["term"]) < below:
            storage.delete(f"{folder}/{name}")


def _held(folder: str, holder: LeaseTerm) -> LeaseHeldError:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.at))
    cancel = "headrace cancel" if is_own(holder.owner) else f"ask {holder.owner}, or headrace cancel --force"
    stop = f"{cancel}, or kill {holder.pid}" if _same_machine(holder) else f"{cancel}; it renewed its lease from {holder.host}"
    verb = "removed" if holder.purpose == REMOVAL else "worked on"
    return LeaseHeldError(
        f"{folder.rpartition('/')[0]} is being {verb} by {holder.owner} pid {holder.pid} since {since}",
        why="one process at a time may write it",
        mend=f"wait for it, or stop it ({stop}) and run again",
    )
