"""A flow that ends as it is told to: `python -m tests.fakes.ending_flow TAG HOW`."""

import sys
import time
from typing import Literal

from prefect import flow, tags

How = Literal["well", "badly", "never"]
REASON = "the corpus was judged and failed: 3 % of it is quarantined, at most 1 % may be"


@flow(name="ending")
def ending(how: How) -> None:
    """Returns, raises, or goes on."""
    if how == "badly":
        raise RuntimeError(REASON)
    while how == "never":
        time.sleep(1.0)


def main() -> None:
    """Runs it once; a flow that ended badly is an exit code, and no stack trace."""
    tag, how = sys.argv[1:]
    with tags(tag):
        state = ending(how, return_state=True)
    sys.exit(0 if state.is_completed() else 1)


if __name__ == "__main__":
    main()
