"""A polite request to stop: SIGTERM or SIGUSR1 set a flag, the loop reads it between two updates."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a node away; USR1 where TERM is followed by KILL too soon."""


class Interruption:
    """Whether this rank was asked to stop. What a rank was told counts for all once they agree on it."""

    def __init__(self) -> None:
        self.requested = False
        """Set by the signal's handler, which does nothing else."""

    def listen(self) -> None:
        """Installs the handlers. Main thread only."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
