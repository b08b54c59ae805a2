"""Every token is predicted exactly once, with as much context as the window allows."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.window import batches_of, windows_of


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(2, 20), st.data())
def test_every_token_is_scored_exactly_once(num_tokens: list[int], length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    windows = windows_of(num_tokens, length=length, overlap=overlap)
    for document, count in enumerate(num_tokens):
        mine = [window for window in windows if window.document == document]
        assert [token for window in mine for token in range(window.first_scored, window.end)] == list(range(1, count))
        for window in mine:
            assert window.start < window.first_scored <= window.end - 1
            assert window.num_inputs <= length
            if window.start:
                assert window.first_scored - window.start == overlap + 1


@given(st.lists(st.integers(2, 70), min_size=1, max_size=30), st.integers(1, 8))
def test_batches_hold_every_window_longest_first(num_tokens: list[int], batch_size: int) -> None:
    windows = windows_of(num_tokens, length=16, overlap=4)
    batches = batches_of(windows, batch_size=batch_size)
    flat = [window for batch in batches for window in batch]
    assert sorted(flat, key=str) == sorted(windows, key=str)
    assert [window.num_inputs for window in flat] == sorted((window.num_inputs for window in windows), reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_a_short_document_is_one_window() -> None:
    (window,) = windows_of([5], length=16, overlap=4)
    assert (window.start, window.end, window.first_scored, window.num_inputs) == (0, 5, 1, 4)
