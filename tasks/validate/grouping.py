"""Which inputs are validated together. Pure: equal inputs give equal groups, and an added file changes one group.

A group is the unit of work and of reuse, so its members must not depend on what else is in the corpus. Files go to buckets
by hash of their name; the number of buckets follows the corpus' size by *linear hashing* (Litwin, VLDB 1980): growing from
n to n + 1 buckets splits one bucket in two and leaves all others as they are. A plain `hash mod n` would move every file.
"""

from collections import defaultdict
from collections.abc import Sequence

import xxhash

from schemas.manifest import CorpusGroup, CorpusPlan, InputFile


def plan_groups(inputs: Sequence[InputFile], *, group_bytes: int, source_names: Sequence[str]) -> CorpusPlan:
    """Returns the groups of a corpus, by index; buckets without a file are left out, so indexes may have gaps.

    Args:
        inputs: all raw files.
        group_bytes: stored bytes that a group should have, on average. A file is never divided: one above it makes a larger group.
        source_names: the sources in the order of the recipe, which is their order within a group.
    """
    num_buckets = max(1, -(-sum(file.size for file in inputs) // group_bytes))
    position = {name: index for index, name in enumerate(source_names)}
    buckets: dict[int, list[InputFile]] = defaultdict(list)
    for file in inputs:
        buckets[bucket_of(f"{file.source}/{file.relative_path}", num_buckets=num_buckets)].append(file)
    return CorpusPlan(
        groups=tuple(
            CorpusGroup(index=index, inputs=tuple(sorted(buckets[index], key=lambda file: (position[file.source], file.relative_path))))
            for index in sorted(buckets)
        )
    )


def bucket_of(name: str, *, num_buckets: int) -> int:
    """Returns the bucket of a file, below `num_buckets`, by linear hashing of its name."""
    digest = xxhash.xxh3_64_intdigest(name.encode())
    level = 1 << (num_buckets - 1).bit_length()  # the smallest power of two that holds all buckets
    bucket = digest % level
    return bucket if bucket < num_buckets else bucket - level // 2
