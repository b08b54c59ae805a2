"""The error tree. Every error says what happened, why, and the mend, and knows its exit code.

HeadraceError
├── ConfigError            2   wrong recipe, override or command line; carries all problems at once
├── InputError             2   an input file or folder is missing or unreadable
├── DataVerdictError       3   validation failed the corpus
├── GateError              4   a tokenizer or evaluation gate said no
├── PolicyStopError        5   restart budget used up, or no progress
├── NumericError           5   loss or gradients that cannot be right; the policy says what follows
├── CorruptStateError      1   weights that changed by themselves; a restart mends it
├── OutOfMemoryError       6   memory ran out and the policy allows no retry
├── VerificationError      7   stored bytes differ from what was committed; carries all findings
│   └── UnsafeFileError    7   a pickle, a link out of its folder, or a path that escapes
├── LeaseHeldError         8   another live writer
├── UnreachableError       9   a service or storage does not answer
└── InterruptedRunError   75   stopped, resumable
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.exit_code import ExitCode


class HeadraceError(Exception):
    """Base of all errors that are shown to a person without a stack trace.

    Args:
        what: what happened, with the value.
        why: the rule that was broken. May be empty when `what` says it.
        mend: the command or the field that mends it. May be empty when nothing can be done.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, *, why: str = "", mend: str = "") -> None:
        self.what, self.why, self.mend = what, why, mend
        super().__init__(self.render())

    def render(self) -> str:
        """Returns the message as lines: what, then why, then the mend. Control characters (of file names, say) are escaped."""
        lines = [self.what]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.mend:
            lines.append(f"  mend: {self.mend}")
        text = "\n".join(lines)
        return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration."""

    key: str
    """Dotted path of the key, as the user would write it after `--set`."""
    value: str
    """The value found, printed as Python would (`repr`), shortened. Empty when the key is missing."""
    message: str
    """The rule that is broken."""
    nearest: str = ""
    """The nearest valid key or value, where there is one."""
    origin: str = ""
    """Where it was written: `line 12` of the recipe, or `--set`. May be empty."""

    def __str__(self) -> str:
        origin = f"{self.origin}: " if self.origin else ""
        found = f" = {self.value}" if self.value else ""
        nearest = f"; nearest valid: {self.nearest}" if self.nearest else ""
        return f"{origin}{self.key}{found}: {self.message}{nearest}"


class ConfigError(HeadraceError):
    """A recipe, an override or the command line is wrong. `problems` holds every problem that was found."""

    exit_code = ExitCode.USAGE

    def __init__(self, problems: tuple[Problem, ...], *, source: str = "the configuration") -> None:
        self.problems = problems
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


class InputError(HeadraceError):
    """An input that the user named is missing, empty or cannot be read."""

    exit_code = ExitCode.USAGE


class MissingTextError(InputError):
    """A source of the corpus does not exist, or holds nothing to read; as seen from this machine."""


class DataVerdictError(HeadraceError):
    """The corpus was judged and failed; nothing after `validate` may use it."""

    exit_code = ExitCode.DATA_VERDICT


class GateError(HeadraceError):
    """A quality gate said no; what was made is kept, nothing is promoted."""

    exit_code = ExitCode.GATE


class PolicyStopError(HeadraceError):
    """The restart policy stopped the stage: a budget is used up, or attempts made no progress."""

    exit_code = ExitCode.POLICY


class NumericError(HeadraceError):
    """Loss or gradients are not finite, or the loss jumped. The weights are as they were before the update."""

    exit_code = ExitCode.POLICY


class CorruptStateError(HeadraceError):
    """Weights in memory are not what the last update left, or ranks disagree about them. What is committed is intact."""


class OutOfMemoryError(HeadraceError):
    """Memory ran out, and retrying as it is would end the same way."""

    exit_code = ExitCode.OUT_OF_MEMORY


class VerificationError(HeadraceError):
    """Stored bytes are not what was committed. `findings` names every damaged file."""

    exit_code = ExitCode.VERIFICATION

    def __init__(self, findings: tuple[str, ...], *, subject: str, mend: str = "") -> None:
        self.findings = findings
        super().__init__("\n".join([f"{subject}: verification failed", *(f"  {finding}" for finding in findings)]), mend=mend)


class UnsafeFileError(VerificationError):
    """A file that Headrace refuses to touch: a pickle, a symbolic link, or a path that leaves its folder."""

    def __init__(self, what: str, *, why: str, mend: str = "") -> None:
        self.findings = (what,)
        HeadraceError.__init__(self, what, why=why, mend=mend)


class LeaseHeldError(HeadraceError):
    """Another live process writes this artifact or controls this run."""

    exit_code = ExitCode.LEASE_HELD


class UnreachableError(HeadraceError):
    """A service or the storage did not answer; nothing is known about what it would have said."""

    exit_code = ExitCode.UNREACHABLE


_STORAGE_FAILURES: Mapping[int, str] = {
    errno.ENOSPC: "the disk is full; what is committed is intact, unfinished files are removed by the next start",
    errno.EDQUOT: "the quota is used up; what is committed is intact",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not do that there",
    errno.EIO: "the device or the network file system failed",
    errno.ESTALE: "the network file system lost the file's handle",
}
"""Failures of storage rather than of the program: no stack trace helps there."""


def storage_failure(error: OSError) -> UnreachableError | None:
    """Returns what an OSError means for people when storage is to blame, else None."""
    why = _STORAGE_FAILURES.get(error.errno or 0)
    if why is None:
        return None
    return UnreachableError(
        f"{error.filename or 'storage'}: {error.strerror}",
        why=why,
        mend="free space or restore access, then the same command again, or headrace resume",
    )


class InterruptedRunError(HeadraceError):
    """The run was stopped and can be resumed."""

    exit_code = ExitCode.INTERRUPTED


BY_EXIT_CODE: dict[ExitCode, type[HeadraceError]] = {
    ExitCode.USAGE: InputError,
    ExitCode.DATA_VERDICT: DataVerdictError,
    ExitCode.GATE: GateError,
    ExitCode.POLICY: PolicyStopError,
    ExitCode.OUT_OF_MEMORY: OutOfMemoryError,
    ExitCode.LEASE_HELD: LeaseHeldError,
    ExitCode.UNREACHABLE: UnreachableError,
    ExitCode.INTERRUPTED: InterruptedRunError,
}
"""The class that stands for an exit code which came back from another process (a job's exit record)."""
