"""Mixture weights: how often training uses each source's sequences. Pure arithmetic, exact, the same on every machine.

What a recipe asks for is rounded once, to so many of 65,536 slots for each source: the order of samples (`tasks.train.mixture`) deals out
slots, never fractions. What a source really gets is what `headrace plan` shows.
"""

import difflib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.errors import ConfigError, Problem
from schemas.frozen import Frozen, ReadOnly

SLOTS = 65_536
"""Positions of a cycle: a source has a whole number of them."""
MOST_SOURCES = 4_096
"""Sources of a mixture."""
MANY_EPOCHS = 4.0
"""Repeating text up to so many times is about as good as new text; beyond, it soon adds nothing (Muennighoff et al., 2023, arXiv 2305.16264)."""
_KEY = "training.mixture"

Amount = Annotated[float, Field(ge=0.0)]


class MixtureConfig(Frozen):
    """How often each source is used: exactly one of `weights`, `epochs`. Either names every source; 0 leaves one out."""

    weights: Annotated[Mapping[str, Amount], *ReadOnly] | None = None
    """Source → share of the training sequences that come from it; only their ratios matter. With `training.epochs`, an epoch is as many
    sequences as the sources that are not left out have."""
    epochs: Annotated[Mapping[str, Amount], *ReadOnly] | None = None
    """Source → passes over it, at least 0. With `training.epochs`, an epoch is the sum of these passes: 1 epoch is exactly what stands here."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("weights", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of weights, epochs; found {', '.join(given) or 'none'}")
        if len(self.amounts) > MOST_SOURCES:
            raise ValueError(f"{given[0]} names {len(self.amounts):,} sources; at most {MOST_SOURCES:,} can be mixed")
        if not any(self.amounts.values()):
            raise ValueError(f"{given[0]} leaves every source out; at least one must be above 0")
        return self

    @property
    def kind(self) -> str:
        """`weights` or `epochs`."""
        return "weights" if self.weights is not None else "epochs"

    @property
    def amounts(self) -> Mapping[str, float]:
        """What is given for each source."""
        return self.weights if self.weights is not None else self.epochs or {}

    def problems_of_names(self, sources: Iterable[str]) -> list[str]:
        """Returns what is wrong with the names, in lines as `schemas.config` has them. `sources`: all names of the corpus."""
        known, place = tuple(sources), f"{_KEY}.{self.kind}"
        problems = []
        for name in self.amounts:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                nearest = f"; nearest: {close[0]}" if close else ""
                problems.append(f"{place} names {name!r}, which is no source; corpus.sources has {', '.join(known)}{nearest}")
        problems += [f"{place} does not name the source {name!r}; nearest: {name}: 0 leaves it out" for name in known if name not in self.amounts]
        return problems

    def epoch_sequences(self, sequences: Mapping[str, int]) -> int:
        """Returns the sequences of one data epoch: see `weights` and `epochs`. `sequences`: source → sequences of its training split."""
        if self.weights is not None:
            return sum(sequences.get(name, 0) for name, weight in self.weights.items() if weight)
        return round(sum(Fraction(passes) * sequences.get(name, 0) for name, passes in self.amounts.items()))

    def quotas(self, sequences: Mapping[str, int]) -> dict[str, int]:
        """Returns the slots of each source that is not left out, by name; their sum is `SLOTS`.

        Rounded to the largest remainders; a source that is not left out has one slot at least.

        Args:
            sequences: source → sequences of its training split. A source of which there are none counts as left out.
        """
        wanted = {name: Fraction(amount) for name, amount in sorted(self.amounts.items()) if amount and sequences.get(name)}
        if self.weights is None:
            wanted = {name: passes * sequences[name] for name, passes in wanted.items()}
        return _rounded(wanted)


class SourceShare(Frozen):
    """What a training uses of one source."""

    source: str
    """Its name."""
    slots: int | None
    """Slots of `SLOTS`; None while `epochs` waits for the number of sequences."""
    sequences: int | None
    """Sequences of its training split; None while the text is not tokenized."""
    epochs: float | None
    """Passes over it in the whole training."""

    @property
    def share(self) -> float | None:
        """Its exact share of the training's sequences."""
        return None if self.slots is None else self.slots / SLOTS

    @property
    def warning(self) -> str:
        """What to say of a source that is repeated too often; empty otherwise."""
        if self.epochs is None or self.epochs <= MANY_EPOCHS:
            return ""
        return (
            f"source {self.source} will be seen {self.epochs:.1f} times; beyond about {MANY_EPOCHS:.0f} passes text adds little (arXiv 2305.16264): "
            f"lower {_KEY} of it, or train on fewer tokens"
        )


def source_shares(mixture: MixtureConfig, *, sequences: Mapping[str, int] | None, used: int | None) -> tuple[SourceShare, ...]:
    """Returns what a training uses of each source that is not left out, in the recipe's order.

    Args:
        mixture: the wish.
        sequences: source → sequences of its training split; None while they are not counted.
        used: sequences that the whole training uses, repetitions included; None where that is not known.
    """
    names = [name for name, amount in mixture.amounts.items() if amount]
    assumed = dict.fromkeys(names, 1) if sequences is None else sequences
    quotas = mixture.quotas(assumed) if sequences is not None or mixture.weights is not None else {}
    shares = []
    for name in names:
        slots, has = quotas.get(name), None if sequences is None else sequences.get(name, 0)
        epochs = used * slots / SLOTS / has if used is not None and slots is not None and has else None
        shares.append(SourceShare(source=name, slots=slots, sequences=has, epochs=epochs))
    return tuple(shares)


def check_mixture(mixture: MixtureConfig, sequences: Mapping[str, int]) -> None:
    """Refuses a mixture that these shards cannot give. `sequences`: source → sequences of the training split; "": cut from several sources.

    Raises:
        ConfigError: naming every source that has no sequence, or that sources share shards.
    """
    if "" in sequences:
        why = "needs shards by source, and these were cut from all sources together"
        raise ConfigError((Problem(_KEY, mixture.kind, why, nearest="tokenization.by_source: true"),))
    message = "is to be used, and has no training sequence; give it more text, or 0"
    empty = [name for name, amount in mixture.amounts.items() if amount and not sequences.get(name)]
    if empty:
        raise ConfigError(tuple(Problem(f"{_KEY}.{mixture.kind}.{name}", repr(mixture.amounts[name]), message, nearest="0") for name in empty))


def _rounded(wanted: Mapping[str, Fraction]) -> dict[str, int]:
    """Returns whole slots in the ratio of `wanted`, each at least 1, that sum up to `SLOTS`."""
    total = sum(wanted.values())
    if not total:
        return {}
    exact = {name: amount / total * SLOTS for name, amount in wanted.items()}
    slots = {name: max(1, int(share)) for name, share in exact.items()}
    by_need = sorted(slots, key=lambda name: (slots[name] - exact[name], name))
    left = SLOTS - sum(slots.values())
    for name in by_need[: max(0, left)]:
        slots[name] += 1
    for _ in range(-left):  # sources that were raised to 1 take from those that got most above their share, of which some has two
        richest = max((name for name in slots if slots[name] > 1), key=lambda name: (slots[name] - exact[name], name))
        slots[richest] -= 1
    return slots
