"""Something that an agent does again and again beside its main thread, and must not fail at in silence."""

import logging
import threading
from collections.abc import Callable

from schemas.errors import UnreachableError

logger = logging.getLogger(__name__)

_EVERY_S = 0.5


class Rounds:
    """Calls `act` twice a second under `lock`. While storage does not answer it is tried again; what else ends it is raised by `check`."""

    def __init__(self, act: Callable[[], None], *, name: str) -> None:
        """Args: act: one round. name: of the thread."""
        self.lock = threading.Lock()
        self._act = act
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._failure: Exception | None = None

    @property
    def begun(self) -> bool:
        """Whether `begin` was called."""
        return self._thread.ident is not None

    @property
    def going_on(self) -> bool:
        """Whether rounds are still made."""
        return self._thread.is_alive()

    def begin(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def end(self) -> None:
        """Ends the thread after the round that it is in."""
        self._ending.set()
        if self.begun:
            self._thread.join()

    def check(self) -> None:
        """Raises what ended the rounds, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ending.wait(_EVERY_S):
                try:
                    with self.lock:
                        self._act()
                except (OSError, UnreachableError) as error:
                    logger.warning("storage does not answer, checkpoints wait on this node: %s", error)
        except Exception as error:  # handed to the main thread, which raises it at the next start of ranks, or in the end
            logger.exception("checkpoints are no longer carried to storage")
            self._failure = error
