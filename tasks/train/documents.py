"""Documents within a sequence: positions that start anew with each, labels that are not learned, and whether a model keeps documents apart.

With `training.document_attention: masked` a model gets `position_ids` that restart at every document. transformers' models tell from them, where
there is no `attention_mask`, which tokens belong together, and make the block-diagonal causal mask of it, also for layers with a sliding window.
What a model does with positions is its own affair, so a model at the start of its training is tried out (`check_documents_apart`).

Shapes: B sequences, L tokens of a sequence.
"""

import inspect
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from schemas.errors import ConfigError, Problem
from tasks.train.order import Indices

_KEY = "training.document_attention"
_TOKENS_AT_A_TIME = 1 << 20
"""Labels that are counted at once: a global batch may hold a hundred million."""
_PROBED_TOKENS = 8
_LARGEST_SHARE = 0.25
"""Of what a foreign document changes without a mask, so much may remain with it: rounding, in bf16 some hundredths."""


class MarkedRows(Protocol):
    """What knows lengths and documents of rows (`tasks.tokenize.shard_reader.ShardReader`)."""

    def lengths(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Returns the tokens of each of rows `indices` before its padding: int64 [B]."""

    def starts(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Returns where documents start in rows `indices`: bool [B, L]."""

    def learned(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Returns which tokens of rows `indices` are to be learned, padding excepted: bool [B, L]."""


@dataclass(frozen=True)
class Marks:
    """What is known of some rows beyond their ids."""

    ignored: torch.Tensor
    """Labels that are not learned, bool [B, L]: padding, what others say in conversations, and, where documents are kept apart, their first tokens,
    which nothing foretells."""
    positions: torch.Tensor | None
    """Place of each token in its document, int64 [B, L]; None where documents are not kept apart."""

    def part(self, rows: slice) -> "Marks":
        """Returns the marks of some of the rows, as views."""
        return Marks(self.ignored[rows], positions=None if self.positions is None else self.positions[rows])


def marks_of(reader: MarkedRows, indices: Indices, *, length: int, masked: bool) -> Marks:
    """Returns the marks of rows `indices` of `length` tokens. `masked`: whether documents are kept apart."""
    starts = reader.starts(indices) if masked else None
    ignored = torch.from_numpy(_ignored(reader, indices, length=length, starts=starts))
    return Marks(ignored, positions=torch.from_numpy(positions_of(starts)) if starts is not None else None)


def num_targets_of(reader: MarkedRows, indices: Indices, *, length: int, masked: bool) -> int:
    """Returns how many labels of rows `indices` are learned, without the first of each row, which nothing foretells. Arguments as for `marks_of`."""
    count, rows_at_a_time = 0, max(1, _TOKENS_AT_A_TIME // length)
    for first in range(0, indices.size, rows_at_a_time):
        part = indices[first : first + rows_at_a_time]
        ignored = _ignored(reader, part, length=length, starts=reader.starts(part) if masked else None)
        count += ignored[:, 1:].size - int(np.count_nonzero(ignored[:, 1:]))
    return count


def _ignored(reader: MarkedRows, indices: Indices, *, length: int, starts: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """Returns which labels are not learned, bool [B, L]. `starts`: of documents that are kept apart, bool [B, L]."""
    ignored: npt.NDArray[np.bool_] = (np.arange(length) >= reader.lengths(indices)[:, None]) | ~reader.learned(indices)
    if starts is not None:
        ignored[:, 1:] |= starts[:, 1:]
    return ignored


def positions_of(starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Returns the place of each token in its document, or in its part that is in the row: int64 [B, L]. `starts`: bool [B, L]."""
    places = np.arange(starts.shape[1], dtype=np.int64)
    positions: npt.NDArray[np.int64] = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return positions


@torch.no_grad()
def check_documents_apart(module: nn.Module, *, vocab_size: int, device: torch.device) -> None:
    """Refuses a model in which a document reads the one before it. Three small forward passes, collective under ZeRO 3.

    The logits of a document behind another one must be those of the same document alone: closer to them, by far, than they are where the model
    is not told of documents. So it is found out too if positions do not restart. Nothing is found in a model whose attention does nothing yet.

    Args:
        module: the model, with the weights that training begins with.
        vocab_size: ids are below this.
        device: where the model is.

    Raises:
        ConfigError: it reads across documents, or takes no `position_ids`.
    """
    parameters = inspect.signature(module.forward).parameters
    if "position_ids" not in parameters and not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        raise _refusal(module, "takes no position_ids, from which a model tells documents apart")
    ids = torch.arange(2 * _PROBED_TOKENS, device=device)[None] % vocab_size
    second = ids[:, _PROBED_TOKENS:]
    was_training = module.training
    module.eval()
    together = module(input_ids=ids).logits[:, _PROBED_TOKENS:].float()
    apart = module(input_ids=ids, position_ids=ids % _PROBED_TOKENS).logits[:, _PROBED_TOKENS:].float()
    alone = module(input_ids=second).logits.float()
    module.train(was_training)
    if float((apart - alone).abs().max()) > _LARGEST_SHARE * float((together - alone).abs().max()):
        raise _refusal(module, "lets a document read the one before it, though position_ids tell them apart")


def _refusal(module: nn.Module, what: str) -> ConfigError:
    return ConfigError((Problem(_KEY, "'masked'", f"{type(module).__name__} {what}", nearest="full"),))
