"""How a document is cut into windows that a model can read. Pure; imports no torch.

The document's tokens follow one end-of-text token, which starts the context as it did in training. A window holds at most
`length + 1` tokens: `length` inputs, each predicting the one after it. Windows after the first start `overlap` tokens
early, and those repeated tokens are context only, so every token is predicted exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A piece of one document's token sequence (with the end-of-text token at 0)."""

    document: int
    """Position in the list of documents."""
    start: int
    """First input token."""
    end: int
    """One past the last target: inputs are `start … end-2`, targets `start+1 … end-1`."""
    first_scored: int
    """First target that counts; targets before it were counted by the window before."""

    @property
    def num_inputs(self) -> int:
        """Inputs, and as many targets."""
        return self.end - self.start - 1


def windows_of(num_tokens: Sequence[int], *, length: int, overlap: int) -> tuple[Window, ...]:
    """Returns the windows of documents that have `num_tokens` tokens each, end-of-text included.

    Args:
        num_tokens: per document, ≥ 1; a document of 1 has nothing to predict.
        length: most inputs of a window.
        overlap: inputs that a window repeats for context; below `length`.
    """
    assert 0 <= overlap < length, f"overlap {overlap} must be below length {length}"
    windows: list[Window] = []
    for document, count in enumerate(num_tokens):
        scored, start = 1, 0
        while scored < count:
            end = min(start + length + 1, count)
            windows.append(Window(document, start, end, scored))
            scored, start = end, end - 1 - overlap
    return tuple(windows)


def batches_of(windows: Sequence[Window], *, batch_size: int) -> tuple[tuple[Window, ...], ...]:
    """Returns the windows in batches of similar length, longest first, so that little is padded and memory peaks at once."""
    ordered = sorted(windows, key=lambda window: -window.num_inputs)
    return tuple(tuple(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size))
