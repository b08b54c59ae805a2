"""Whether there is text to evaluate a model by. Asked before training, which costs hours; evaluation itself would find out after it."""

from collections.abc import Mapping

from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem


def check_test_split(config: RunConfig, documents: Mapping[str, int] | None = None) -> None:
    """Refuses a recipe or a corpus that holds out no text for the evaluation.

    Args:
        config: the whole configuration.
        documents: how many the corpus has, by split; None while that is not known.

    Raises:
        ConfigError: naming the key and its value.
    """
    share = config.corpus.splits.test
    if share > 0 and (documents is None or documents.get("test")):
        return
    of = "" if documents is None else f": none of {sum(documents.values()):,} documents fell into it"
    message = f"leaves no text to evaluate the model by, which follows training{of}; raise it, or give more text"
    raise ConfigError((Problem("corpus.splits.test", repr(share), message),))
