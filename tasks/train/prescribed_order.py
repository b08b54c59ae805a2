"""The order of samples that a recipe prescribes for its shards: the one place that decides, for training, proofs and plain PyTorch alike."""

from collections.abc import Sequence

import numpy as np
import xxhash

from schemas.manifest import Shard, ShardManifest, Split
from schemas.mixture import MixtureConfig, check_mixture
from tasks.train.mixed_order import MixedOrder, SourceOrder, SourcePart
from tasks.train.order import GlobalOrder, Order, key_of
from tasks.train.windowed_order import WindowedOrder


def order_of(
    manifest: ShardManifest, *, seed: int, mixture: MixtureConfig | None = None, window_sequences: int | None = None, split: Split = "train"
) -> Order:
    """Returns the order of a split's sequences.

    Args:
        manifest: the shards.
        seed: `training.seed`.
        mixture: `training.mixture`.
        window_sequences: `training.window_sequences`; with a mixture, of each source.
        split: which; of a recipe's own training the training split.

    Raises:
        ConfigError: the shards cannot give the mixture.
    """
    shards = manifest.of_split(split)
    if mixture is None:
        return _plain(shards, seed=seed, window_sequences=window_sequences)
    sequences = manifest.sequences_by_source(split)
    check_mixture(mixture, sequences)
    firsts = np.cumsum([0, *(shard.rows for shard in shards)])
    parts = []
    for source, slots in mixture.quotas(sequences).items():
        chosen = [number for number, shard in enumerate(shards) if shard.source == source]
        own = [shards[number] for number in chosen]
        starts = np.cumsum([0, *(shard.rows for shard in own[:-1])], dtype=np.int64)
        # by its name: other sources, weights and their order do not change in which order a source's own sequences come
        inner = _plain(own, seed=key_of(seed, xxhash.xxh3_64_intdigest(source.encode())), window_sequences=window_sequences)
        parts.append(SourcePart(slots, SourceOrder(inner, starts=starts, firsts=firsts[chosen])))
    return MixedOrder(parts, seed=seed)


def _plain(shards: Sequence[Shard], *, seed: int, window_sequences: int | None) -> Order:
    """Returns the order of these shards' sequences, counted from 0. In a window that holds them all, windows change nothing."""
    rows = [shard.rows for shard in shards]
    if window_sequences is None or window_sequences >= sum(rows):
        return GlobalOrder(sum(rows), seed)
    return WindowedOrder(rows, window_sequences=window_sequences, seed=seed)
