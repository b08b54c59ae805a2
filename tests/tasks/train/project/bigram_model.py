"""A model of one's own, as `model.factory` takes it."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional


class Bigram(nn.Module):
    """Predicts the next token from the present one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Linear(vocab_size, vocab_size)
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> SimpleNamespace:
        """Returns an object with `logits`, and `loss` when there are labels."""
        logits = self.table(functional.one_hot(input_ids, self.vocab_size).to(self.table.weight.dtype))
        if labels is None:
            return SimpleNamespace(logits=logits)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def build(*, vocab_size: int, sequence_length: int) -> nn.Module:
    """Returns a small model without a transformers configuration."""
    del sequence_length  # it looks one token back
    return Bigram(vocab_size)
