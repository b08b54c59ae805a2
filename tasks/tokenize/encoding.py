"""Documents to ids, each as what its source holds: plain text, checked in samples, or conversations."""

import numpy as np
import numpy.typing as npt

from tasks.tokenize.conversation import ConversationEncoder
from tasks.tokenize.cutting import runs_of
from tasks.tokenize.shadow import ShadowCheck
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded, Engine


def encode_documents(
    columns: Columns,
    *,
    sizes: npt.NDArray[np.int64],
    engine: Engine,
    shadow: ShadowCheck,
    conversations: ConversationEncoder | None,
    sources: tuple[str, ...],
) -> Encoded:
    """Returns the ids of some documents, in order.

    Args:
        columns: the documents; with their sources, where some hold conversations.
        sizes: UTF-8 bytes of each.
        engine: encodes text.
        shadow: checks its share of the texts.
        conversations: encodes conversations; None: there are none.
        sources: those that hold conversations.

    Raises:
        VerificationError: engines disagree on a text, or the chat template refuses a conversation.
    """
    if conversations is None:
        encoded = engine.encode_column(columns.texts)
        shadow.check(columns, encoded, sizes=sizes)
        return encoded
    parts: list[Encoded] = []
    for source, documents in runs_of(columns):
        own = Columns(doc_ids=columns.doc_ids[documents], texts=columns.texts[documents])
        if source in sources:
            parts.append(conversations.encode(own.texts.to_pylist(), names=own.doc_ids.to_pylist()))
        else:
            parts.append(engine.encode_column(own.texts))
            shadow.check(own, parts[-1], sizes=sizes[documents])
    return _concatenated(parts)


def _concatenated(parts: list[Encoded]) -> Encoded:
    lengths = [np.diff(part.offsets) for part in parts]
    offsets = np.zeros(sum(length.size for length in lengths) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    learned = [np.ones(part.ids.size, dtype=bool) if part.learned is None else part.learned for part in parts]
    return Encoded(ids=np.concatenate([part.ids for part in parts]), offsets=offsets, learned=np.concatenate(learned))
