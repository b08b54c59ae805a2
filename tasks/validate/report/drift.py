"""How a corpus differs from the one before it: records, sources, lengths, scripts. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.manifest import SPLITS
from tasks.validate.stats import CorpusStats, Lengths, SourceStats, merge_lengths

NOTABLE_PSI: Final = 0.1
LARGE_PSI: Final = 0.25
"""The usual reading of a population stability index: below 0.1 nothing happened, above 0.25 it is another population."""
LARGE_DIVERGENCE: Final = 0.05
"""Jensen-Shannon divergence of scripts, in bits, from which text is of another kind."""
_FEWEST: Final = 100
"""Documents below which the shape of a distribution says nothing."""
_SMOOTHING: Final = 0.5


@dataclass(frozen=True)
class Change:
    """A number before and now."""

    name: str
    """Of what."""
    before: int
    """In the previous corpus."""
    now: int
    """In this one."""

    @property
    def share(self) -> float | None:
        """The change as a share of what was; None where nothing was."""
        return (self.now - self.before) / self.before if self.before else None


@dataclass(frozen=True)
class Drift:
    """How a corpus differs from the previous one."""

    key: str
    """The previous one."""
    counts: tuple[Change, ...]
    """Records, accepted documents and so on."""
    sources: tuple[Change, ...]
    """Accepted documents by source; new ones had none, vanished ones have none."""
    new_sources: tuple[str, ...]
    """Sources that were not in the recipe."""
    lost_sources: tuple[str, ...]
    """Sources that no longer are."""
    lengths: tuple[tuple[int, ...], tuple[int, ...]]
    """Documents by power of two of their characters, before and now, as `Lengths.by_length`."""
    length_psi: float | None
    """Population stability index of these; None with too few documents."""
    script_divergence: float | None
    """Jensen-Shannon divergence of the letters' scripts, 0 to 1 bit; None where either is unknown."""
    scripts: tuple[Change, ...]
    """Letters by script, of the documents that were looked at."""


def drift_of(stats: CorpusStats, *, previous: CorpusStats, key: str) -> Drift:
    """Returns how a corpus differs from the previous one. `key`: that one's."""
    before, now = previous.total, stats.total
    old, new = {source.source: source for source in previous.sources}, {source.source: source for source in stats.sources}
    lengths = before.lengths.by_length, now.lengths.by_length
    is_shaped = min(before.num_accepted, now.num_accepted) >= _FEWEST
    scripts = _scripts(previous), _scripts(stats)
    return Drift(
        key=key,
        counts=(
            Change("records", before.read, now.read),
            Change("accepted documents", before.num_accepted, now.num_accepted),
            Change("quarantined records", before.num_quarantined, now.num_quarantined),
            Change("bytes of text", before.lengths.text_bytes, now.lengths.text_bytes),
            *(Change(f"documents in {split}", _documents(before, split), _documents(now, split)) for split in SPLITS),
        ),
        sources=tuple(Change(name, _accepted(old.get(name)), _accepted(new.get(name))) for name in dict.fromkeys((*new, *old))),
        new_sources=tuple(name for name in new if name not in old),
        lost_sources=tuple(name for name in old if name not in new),
        lengths=lengths,
        length_psi=population_stability(*lengths) if is_shaped else None,
        script_divergence=divergence(*scripts) if all(scripts) else None,
        scripts=tuple(Change(name, scripts[0].get(name, 0), scripts[1].get(name, 0)) for name in sorted({*scripts[0], *scripts[1]})),
    )


def split_drift(source: SourceStats) -> float | None:
    """Returns the population stability index of held-out lengths against those of training; None with too few documents."""
    train = source.accepted.get("train", Lengths())
    held_out = merge_lengths(source.accepted[split] for split in SPLITS if split != "train" and split in source.accepted)
    if min(train.documents, held_out.documents) < _FEWEST:
        return None
    return population_stability(train.by_length, held_out.by_length)


def population_stability(before: tuple[int, ...], now: tuple[int, ...]) -> float:
    """Returns the population stability index of two histograms over the same bins: sum of (q - p) ln(q / p) over the bins' shares.

    Half a value is added to every bin that either has, so that an empty one does not make it infinite.
    """
    size = max(len(before), len(now))
    pairs = [(_at(before, index), _at(now, index)) for index in range(size)]
    used = [(old + _SMOOTHING, new + _SMOOTHING) for old, new in pairs if old or new]
    old_total, new_total = sum(old for old, _ in used), sum(new for _, new in used)
    return sum((new / new_total - old / old_total) * math.log((new / new_total) / (old / old_total)) for old, new in used)


def divergence(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Returns the Jensen-Shannon divergence of two sets of counts, 0 (equal shares) to 1 (nothing in common), in bits."""
    old_total, new_total = sum(before.values()), sum(now.values())
    found = 0.0
    for name in {*before, *now}:
        old, new = before.get(name, 0) / old_total, now.get(name, 0) / new_total
        middle = (old + new) / 2
        found += sum(share / 2 * math.log2(share / middle) for share in (old, new) if share)
    return max(0.0, found)


def _at(counts: tuple[int, ...], index: int) -> int:
    return counts[index] if index < len(counts) else 0


def _accepted(source: SourceStats | None) -> int:
    return 0 if source is None else source.num_accepted


def _documents(source: SourceStats, split: str) -> int:
    return next((lengths.documents for name, lengths in source.accepted.items() if name == split), 0)


def _scripts(stats: CorpusStats) -> Mapping[str, int]:
    return {} if stats.figures is None else stats.figures.whole.characters.scripts
