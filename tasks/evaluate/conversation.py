"""Conversations of the test split: read as in training, and judged by what assistants say."""

from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from schemas.errors import InputError
from tasks.evaluate.document import Document
from tasks.tokenize.conversation import ChatTemplate, ConversationEncoder
from tasks.tokenizer.existing import CONFIG_NAME


def encode_conversations(
    tokenizer: Tokenizer, documents: tuple[Document, ...], *, folder: Path, end_of_text_id: int, names: Set[str]
) -> tuple[tuple[Document, ...], list[npt.NDArray[np.int64]], list[npt.NDArray[np.bool_]]]:
    """Returns documents, their ids behind one end-of-text token, and which of those count. Where nothing counts, a document is left out.

    Args:
        tokenizer: the model's.
        documents: of any sources; the text of a conversation is its JSON, and in the result what assistants say.
        folder: the exported model, whose files have been verified.
        end_of_text_id: id of the token that goes before a document.
        names: of the sources that hold conversations.

    Raises:
        InputError: nothing counts in any document, or the chat template refuses a conversation.
    """
    encoder = ConversationEncoder(tokenizer.to_str().encode(), template=ChatTemplate.of_tokenizer((folder / CONFIG_NAME).read_bytes()))
    kept: list[Document] = []
    token_ids: list[npt.NDArray[np.int64]] = []
    learned: list[npt.NDArray[np.bool_]] = []
    for number, document in enumerate(documents):
        if document.source in names:
            encoded = encoder.encode([document.text], names=[f"{number} of {document.source}"])
            assert encoded.learned is not None
            ids, counts = encoded.ids.astype(np.int64), encoded.learned
            shown = Document(text=tokenizer.decode(ids[counts].tolist(), skip_special_tokens=False), source=document.source)
        else:
            ids = np.array(tokenizer.encode(document.text, add_special_tokens=False).ids, dtype=np.int64)
            shown, counts = document, np.ones(ids.size, dtype=bool)
        if counts.any():
            kept.append(shown)
            token_ids.append(np.concatenate([[end_of_text_id], ids]))
            learned.append(np.concatenate([[False], counts]))
    if not kept:
        raise InputError("no assistant says anything in the test split", mend="raise corpus.splits.test, or look at tokenizer.chat_template")
    return tuple(kept), token_ids, learned
