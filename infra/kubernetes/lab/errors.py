"""What this cluster says when it cannot do something."""


class ClusterError(Exception):
    """The cluster cannot be built, started, changed or stopped.

    Args:
        what: what happened.
        mend: what to do about it; may be empty.
    """

    def __init__(self, what: str, *, mend: str = "") -> None:
        super().__init__(f"{what}\n  mend: {mend}" if mend else what)
