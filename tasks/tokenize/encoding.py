"""Documents to ids, each as what its source holds: plain text, checked in samples, or conversations."""

from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.tokenize.conversation import ConversationEncoder, Places
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
    places: Places,
) -> Encoded:
    """Returns the ids of some documents, in order.

    Args:
        columns: the documents; with their sources, where some hold conversations.
        sizes: UTF-8 bytes of each.
        engine: encodes text.
        shadow: checks its share of the texts.
        conversations: encodes conversations; None: there are none.
        sources: those that hold conversations.
        places: where documents are from, for error messages.

    Raises:
        InputError: the chat template refuses a conversation.
        VerificationError: engines disagree on a text.
    """
    if conversations is None:
        encoded = engine.encode_column(columns.texts)
        shadow.check(columns, encoded, sizes=sizes)
        return encoded
    parts: list[Encoded] = []
    for source, documents in runs_of(columns):
        own = Columns(doc_ids=columns.doc_ids[documents], texts=columns.texts[documents])
        if source in sources:
            parts.append(conversations.encode(own.texts.to_pylist(), names=own.doc_ids.to_pylist(), places=places))
        else:
            parts.append(engine.encode_column(own.texts))
            shadow.check(own, parts[-1], sizes=sizes[documents])
    return _concatenated(parts)


def places_of(path: Path, doc_ids: Set[str]) -> Mapping[str, str]:
    """Returns where documents of an accepted file are from, by `doc_id`: source, path and row, as far as the file has them. For error messages."""
    import pyarrow.parquet as pq

    names = [name for name in ("source", "path", "row") if name in pq.read_schema(path).names]
    rows = pq.read_table(path, columns=["doc_id", *names], filters=[("doc_id", "in", doc_ids)], use_threads=False, partitioning=None).to_pylist()
    places: dict[str, list[str]] = {}
    for row in rows:
        file = "/".join(row[name] for name in names if name != "row")
        places.setdefault(row["doc_id"], []).append(f"{file}, row {row['row']}" if "row" in row else file)
    return {doc_id: f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else found[0] for doc_id, found in places.items() if names}


def _concatenated(parts: list[Encoded]) -> Encoded:
    lengths = [np.diff(part.offsets) for part in parts]
    offsets = np.zeros(sum(length.size for length in lengths) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    learned = [np.ones(part.ids.size, dtype=bool) if part.learned is None else part.learned for part in parts]
    return Encoded(ids=np.concatenate([part.ids for part in parts]), offsets=offsets, learned=np.concatenate(learned))
