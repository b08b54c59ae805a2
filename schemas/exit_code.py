"""One enum of exit codes for the command line, the node agent, exit records and cluster policy."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a Headrace process says when it ends. Documented in `docs/operations.md`; scripts may rely on the numbers."""

    DONE = 0
    """Done, or nothing to do."""
    BUG = 1
    """A defect of ours, or of user code that runs inside a rank."""
    USAGE = 2
    """Wrong configuration, wrong input or wrong command line."""
    DATA_VERDICT = 3
    """The data was judged and failed."""
    GATE = 4
    """A quality gate (tokenizer, evaluation) said no."""
    POLICY = 5
    """Stopped by policy: a budget is used up, of restarts or of device-hours, or there is no progress."""
    OUT_OF_MEMORY = 6
    """Out of memory; retrying as it is would end the same way."""
    VERIFICATION = 7
    """Stored bytes are not what was committed."""
    LEASE_HELD = 8
    """Another live writer holds the lease."""
    UNREACHABLE = 9
    """A service or the storage does not answer."""
    INTERRUPTED = 75
    """Interrupted and resumable (EX_TEMPFAIL of sysexits.h)."""
    CTRL_C = 130
    """Interrupted from the keyboard."""
