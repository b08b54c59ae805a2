"""What acts amount to: which batch an update uses, which updates are skipped, which commits are left behind."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schemas.act import Act, ActKind, acts_behind, batch_number, merged, standing_of
from schemas.checkpoint import BatchWindow


def act(kind: ActKind, *, step: int = 0, epoch: int = 0, back_to_step: int | None = None, micro_batch_size: int | None = None) -> Act:
    return Act(kind=kind, epoch=epoch, step=step, detail="", at=0.0, back_to_step=back_to_step, micro_batch_size=micro_batch_size)


def rewind(step: int, *, to: int, epoch: int = 0) -> Act:
    return act(ActKind.REWIND, step=step, epoch=epoch, back_to_step=to)


def skip(step: int) -> Act:
    return act(ActKind.SKIPPED_UPDATE, step=step)


WINDOWS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=6).map(
    lambda pairs: [BatchWindow(first=first, stop=first + length) for first, length in pairs]
)


@given(WINDOWS)
def test_updates_use_every_batch_outside_of_the_windows_once_and_in_order(windows: list[BatchWindow]) -> None:
    used = [batch_number(step, merged(windows)) for step in range(100)]
    outside = [number for number in range(200) if not any(window.first <= number < window.stop for window in windows)]
    assert used == outside[:100]


@given(WINDOWS)
def test_merged_windows_are_ascending_and_apart(windows: list[BatchWindow]) -> None:
    result = merged(windows)
    assert all(one.stop < other.first for one, other in pairwise(result))


def test_nothing_was_done() -> None:
    standing = standing_of(())
    assert (standing.skipped_updates, standing.skipped_batches, standing.micro_batch_size) == (frozenset(), (), None)
    assert not standing.voids(step=100, epoch=0)


def test_a_rewind_leaves_out_the_batches_and_forgets_what_was_skipped_among_them() -> None:
    standing = standing_of((skip(3), skip(12), rewind(18, to=10)))
    assert standing.skipped_batches == (BatchWindow(first=10, stop=19),)
    assert standing.skipped_updates == {3}


def test_a_second_rewind_counts_batches_as_they_were_used() -> None:
    """Update 10 used batch 19 after the first one; 12 used 21."""
    standing = standing_of((rewind(18, to=10), rewind(12, to=10, epoch=1)))
    assert standing.skipped_batches == (BatchWindow(first=10, stop=22),)


def test_a_rewind_to_before_an_earlier_one_spans_it() -> None:
    standing = standing_of((rewind(18, to=10), rewind(12, to=5, epoch=1)))
    assert standing.skipped_batches == (BatchWindow(first=5, stop=22),)


def test_commits_that_a_rewind_left_behind_are_void_and_those_made_since_are_not() -> None:
    standing = standing_of((rewind(18, to=10, epoch=2),))
    assert standing.voids(step=15, epoch=2)
    assert standing.voids(step=15, epoch=-1)
    assert not standing.voids(step=10, epoch=2)
    assert not standing.voids(step=15, epoch=3)


def test_the_last_micro_batch_holds() -> None:
    acts = (act(ActKind.SMALLER_MICRO_BATCH, micro_batch_size=4), act(ActKind.SMALLER_MICRO_BATCH, micro_batch_size=2), rewind(18, to=10))
    assert standing_of(acts).micro_batch_size == 2


def test_a_checkpoint_has_behind_it_what_was_done_before_it_was_written() -> None:
    """A rewind of its own epoch came after it: it ended the epoch."""
    early, late, ended = skip(3), skip(30), rewind(40, to=10)
    assert acts_behind((early, late, ended), step=20, epoch=0) == (early,)
    assert acts_behind((early, late, ended), step=20, epoch=1) == (early, late, ended)
