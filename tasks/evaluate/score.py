"""Runs the model over windows of documents and tallies its predictions.

Shape legend: B windows of a batch, L inputs of the longest of them, V vocabulary, N predicted tokens that count.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tasks.evaluate.tally import Tally
from tasks.evaluate.window import Window, batches_of, windows_of

_LOGITS_BYTES = 1 << 29
"""Most bytes of one batch's logits: a large vocabulary gets smaller batches."""
_CHUNK_ELEMENTS = 1 << 24
"""Logits that are turned into fp32 at a time."""


class CausalModel(Protocol):
    """What is asked of a model: transformers' causal models fulfil it."""

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        """Returns an object whose `logits` have shape [B, L, V]."""


def score(
    model: CausalModel,
    token_ids: Sequence[npt.NDArray[np.int64]],
    *,
    tally: Tally,
    length: int,
    overlap: int,
    batch_size: int,
    vocab_size: int,
    device: torch.device,
    on_tokens: Callable[[int], None],
    learned: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> None:
    """Adds the model's predictions of every token of every document to `tally`.

    Args:
        token_ids: per document, end-of-text first.
        length: most inputs of a window.
        overlap: inputs repeated for context by windows after a document's first.
        batch_size: windows per forward pass, fewer when the logits would grow too large.
        on_tokens: told the number of tokens predicted so far.
        learned: per document, which of its tokens count; None: all.
    """
    windows = windows_of([len(ids) for ids in token_ids], length=length, overlap=overlap)
    rows = max(1, min(batch_size, _LOGITS_BYTES // (length * vocab_size * 4)))
    done = 0
    for batch in batches_of(windows, batch_size=rows):
        inputs_BL, targets_BL, counted_BL = _tensors(batch, token_ids, learned=learned)
        with torch.inference_mode():
            logits_BLV = model(input_ids=inputs_BL.to(device), use_cache=False).logits
            _tally_batch(tally, logits_BLV, targets_BL=targets_BL.to(device), counted_BL=counted_BL.to(device), batch=batch)
        done += int(counted_BL.sum())
        on_tokens(done)


def _tensors(
    batch: Sequence[Window], token_ids: Sequence[npt.NDArray[np.int64]], *, learned: Sequence[npt.NDArray[np.bool_]] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns inputs, targets and which targets count. Padding lies on the right, where causal attention never looks back at it."""
    width = max(window.num_inputs for window in batch)
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    targets = np.zeros((len(batch), width), dtype=np.int64)
    counted = np.zeros((len(batch), width), dtype=bool)
    for row, window in enumerate(batch):
        ids = token_ids[window.document][window.start : window.end]
        inputs[row, : window.num_inputs] = ids[:-1]
        targets[row, : window.num_inputs] = ids[1:]
        counted[row, window.first_scored - window.start - 1 : window.num_inputs] = True
        if learned is not None:
            counted[row, : window.num_inputs] &= learned[window.document][window.start + 1 : window.end]
    return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(counted)


def _tally_batch(tally: Tally, logits_BLV: torch.Tensor, *, targets_BL: torch.Tensor, counted_BL: torch.Tensor, batch: Sequence[Window]) -> None:
    documents_B = torch.tensor([window.document for window in batch], device=counted_BL.device)
    documents_N = documents_B[:, None].expand_as(counted_BL)[counted_BL]
    targets_N, logits_NV = targets_BL[counted_BL], logits_BLV[counted_BL]
    step = max(1, _CHUNK_ELEMENTS // logits_NV.shape[-1])
    for start in range(0, len(targets_N), step):
        part = slice(start, start + step)
        logits = logits_NV[part].float()
        highest, guess = logits.max(dim=-1)
        log_total = logits.logsumexp(dim=-1)
        true = logits.gather(-1, targets_N[part, None]).squeeze(-1)
        tally.add(
            documents_N[part].cpu().numpy(),
            nats=(log_total - true).double().cpu().numpy(),
            confidence=(highest - log_total).double().exp().cpu().numpy(),
            correct=(guess == targets_N[part]).cpu().numpy(),
        )
