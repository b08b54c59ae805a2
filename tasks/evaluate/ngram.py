"""A token 5-gram, the baseline that has seen the same training text: interpolated modified Kneser-Ney, in numpy.

Formulas: S. Chen and J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998, section 3
(https://dash.harvard.edu/handle/1/25104739). The highest order discounts raw counts; lower orders discount *continuation*
counts, the number of different tokens seen before an n-gram; below the unigram lies the uniform distribution.

n-grams are numbered, not stored: an n-gram is the pair (number of its first n-1 tokens, its last token), so one sort of
int64 keys per order is all the work, and keys of one context are neighbours. About 1 µs per training token and order.

Shape legend: T training tokens, G distinct n-grams of an order, P predicted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER = 5

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The n-grams of one order."""

    keys: Ids
    """[G] sorted: number of the context × vocabulary + last token. The position is the n-gram's number."""
    counts: Ids
    """[G] raw counts for the highest order, continuation counts below."""
    discounts: Floats
    """[4] what is taken from counts of 0, 1, 2, and 3 or more."""
    totals: Floats
    """[contexts] sum of the counts after each context."""
    backoff: Floats
    """[contexts] share of the probability that each context hands to the next lower order."""


class NgramModel:
    """Token probabilities from counts of up to `order` tokens."""

    def __init__(self, tokens: Ids, *, vocab_size: int, order: int = ORDER) -> None:
        """Counts.

        Args:
            tokens: [T] the training stream, end-of-text tokens included.
            vocab_size: ids are below this.
            order: longest n-gram; fewer when there are fewer tokens.
        """
        self.vocab_size = vocab_size
        order = min(order, len(tokens))
        keys_of, counts_of, continuation_of = _count(tokens, vocab_size=vocab_size, order=order)
        num_contexts = [1, *(len(keys) for keys in keys_of)]
        self.levels = tuple(
            _level(
                keys_of[n],
                counts_of[n] if n == order - 1 else continuation_of[n],
                vocab_size=vocab_size,
                num_contexts=num_contexts[n],
            )
            for n in range(order)
        )

    def nats(self, tokens: Ids, *, positions: Ids) -> Floats:
        """Returns -ln p of every token.

        Args:
            tokens: [P] documents one after the other, each with its context-starting end-of-text token.
            positions: [P] position of each token in its own document; a context never reaches beyond position 0.
        """
        probability: Floats = np.full(len(tokens), 1.0 / self.vocab_size)
        context = np.zeros(len(tokens), dtype=np.int64)  # number of the (n-1)-gram before each token; -1: unseen, or beyond the start
        for n, level in enumerate(self.levels):
            known = context >= 0
            key = context * self.vocab_size + tokens
            found = np.searchsorted(level.keys, key)
            found[found == len(level.keys)] = 0
            seen = known & (level.keys[found] == key)
            counts = np.where(seen, level.counts[found], 0)
            totals = np.where(known, level.totals[context], 0.0)
            discounted = counts - level.discounts[np.minimum(counts, 3)]
            usable = totals > 0
            share = np.divide(discounted, totals, out=np.zeros_like(probability), where=usable)
            probability = np.where(usable, share + level.backoff[context] * probability, probability)
            context = np.full(len(tokens), -1, dtype=np.int64)
            context[1:] = np.where(seen, found, -1)[:-1]  # the n-gram that ends at the token before
            context[positions < n + 1] = -1
        result: Floats = -np.log(probability)
        return result

    def distribution(self, context: Sequence[int]) -> Floats:
        """Returns the probabilities of all tokens [vocabulary] after `context`, which begins a document."""
        length = len(context) + 1
        tokens = np.array([[*context, token] for token in range(self.vocab_size)], dtype=np.int64)
        positions = np.tile(np.arange(length), self.vocab_size)
        nats = self.nats(tokens.reshape(-1), positions=positions).reshape(self.vocab_size, length)
        result: Floats = np.exp(-nats[:, -1])
        return result


def _count(tokens: Ids, *, vocab_size: int, order: int) -> tuple[list[Ids], list[Ids], list[Ids]]:
    """Returns keys, raw counts and continuation counts of every order, lowest first; the highest has no continuation counts."""
    keys_of: list[Ids] = []
    counts_of: list[Ids] = []
    continuation_of: list[Ids] = []
    numbers = np.zeros(len(tokens) + 1, dtype=np.int64)  # of the (n-1)-grams that end before each token
    for n in range(order):
        key = numbers[:-1] * vocab_size + tokens[n:]
        ranked = _order_of(key)
        in_order = key[ranked]
        first = np.empty(len(key), dtype=bool)
        first[:1] = True
        np.not_equal(in_order[1:], in_order[:-1], out=first[1:])
        starts = np.flatnonzero(first)
        keys_of.append(in_order[starts])
        counts_of.append(np.diff(starts, append=len(key)))
        ending = np.empty(len(key), dtype=np.int64)
        ending[ranked] = np.cumsum(first) - 1
        if n:  # one occurrence of each n-gram tells which (n-1)-gram is its end: that one gets one more left neighbour
            continuation_of.append(np.bincount(numbers[1:][ranked[starts]], minlength=len(keys_of[n - 1])))
        numbers = ending
    return keys_of, counts_of, continuation_of


def _order_of(keys: Ids) -> Ids:
    """Returns the positions of `keys` (≥ 0) in ascending order of key.

    A plain sort is more than twice as fast as an argsort, so the position travels in the key's low bits where there is room.
    """
    bits = len(keys).bit_length()
    if int(keys.max()).bit_length() + bits > 63:
        return np.argsort(keys)
    packed = (keys << bits) | np.arange(len(keys))
    packed.sort()
    positions: Ids = packed & ((1 << bits) - 1)
    return positions


def _level(keys: Ids, counts: Ids, *, vocab_size: int, num_contexts: int) -> Level:
    contexts = keys // vocab_size
    discounts = _discounts(counts)
    totals: Floats = np.bincount(contexts, weights=counts, minlength=num_contexts).astype(np.float64)
    taken = np.bincount(contexts, weights=discounts[np.minimum(counts, 3)], minlength=num_contexts)
    backoff = np.divide(taken, totals, out=np.zeros_like(taken), where=totals > 0)
    return Level(keys=keys, counts=counts, discounts=discounts, totals=totals, backoff=backoff)


def _discounts(counts: Ids) -> Floats:
    """Returns the discounts of counts 0, 1, 2 and ≥ 3 (Chen and Goodman, equation 26), kept between 0 and the count itself.

    Where a count of counts is zero, as in tiny corpora, the estimate is undefined and half a count is taken.
    """
    one, two, three, four = (int(np.count_nonzero(counts == value)) for value in (1, 2, 3, 4))
    if not (one and two):
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = one / (one + 2 * two)
    following = ((1, two, one), (2, three, two), (3, four, three))
    estimates = [count - (count + 1) * share * more / fewer if fewer and more else 0.5 for count, more, fewer in following]
    return np.array([0.0, *(min(max(estimate, 0.05), float(count)) for count, estimate in enumerate(estimates, start=1))])
