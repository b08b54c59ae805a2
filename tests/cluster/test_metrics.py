"""One series out of many segments, without the steps that were done again."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cluster.layout import ArtifactLayout
from cluster.metrics import MetricEdges, MetricReader, current_series, read_metrics
from cluster.storage import FileStorage
from schemas.progress import MetricPoint

LAYOUT = ArtifactLayout("train/x-0123456789ab")


def point(step: int, *, epoch: int, **values: float) -> MetricPoint:
    return MetricPoint(step=step, at=0.0, epoch=epoch, values=values or {"loss": 1.0})


def publish(storage: FileStorage, *points: MetricPoint, epoch: int, sequence: int, rank: int = 0) -> None:
    data = "".join(each.model_dump_json() + "\n" for each in points).encode()
    storage.create_exclusive(LAYOUT.metric_segment(epoch=epoch, rank=rank, sequence=sequence), data)


def test_the_newest_epoch_wins_for_steps_done_again(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    publish(storage, *(point(step, epoch=0) for step in (1, 2, 3)), epoch=0, sequence=0)
    publish(storage, *(point(step, epoch=0) for step in (4, 5, 6, 7)), epoch=0, sequence=1)
    publish(storage, *(point(step, epoch=1) for step in (5, 6)), epoch=1, sequence=0)
    points = read_metrics(storage, LAYOUT)
    assert [(each.step, each.epoch) for each in points] == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)]
    assert [each.step for each in read_metrics(storage, LAYOUT, after_step=4)] == [5, 6]


def test_points_of_one_step_stay_in_order(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    publish(storage, point(1, epoch=0, loss=1.0), point(1, epoch=0, validation_loss=2.0), epoch=0, sequence=0)
    assert [tuple(each.values) for each in read_metrics(storage, LAYOUT)] == [("loss",), ("validation_loss",)]


def test_other_ranks_stay_apart(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    publish(storage, point(1, epoch=0), epoch=0, sequence=0)
    publish(storage, point(2, epoch=0), epoch=0, sequence=0, rank=1)
    assert [each.step for each in read_metrics(storage, LAYOUT)] == [1]
    assert [each.step for each in read_metrics(storage, LAYOUT, rank=1)] == [2]


def test_a_reader_sees_what_is_new(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    reader = MetricReader(storage, LAYOUT)
    assert reader.read() == ()
    publish(storage, point(1, epoch=0), epoch=0, sequence=0)
    assert [each.step for each in reader.read()] == [1]
    publish(storage, point(2, epoch=0), epoch=0, sequence=1)
    assert [each.step for each in reader.read(after_step=1)] == [2]


def test_edges_are_the_newest_point_and_those_next_to_a_step(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    for sequence, steps in enumerate([(2, 4), (6, 8), (10, 12)]):
        publish(storage, *(point(step, epoch=0) for step in steps), epoch=0, sequence=sequence)
    publish(storage, point(99, epoch=0), epoch=0, sequence=3, rank=1)
    edges = MetricEdges(storage, LAYOUT)
    last = edges.last(0)
    assert last is not None
    assert last.step == 12
    assert edges.last(1) is None
    around = {step: [each.step for each in edges.around(0, step)] for step in (1, 4, 5, 9, 12, 20)}
    assert around == {1: [2], 4: [4, 6], 5: [4, 6], 9: [8, 10], 12: [12], 20: [12]}
    assert edges.around(1, 5) == ()


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 10)), max_size=5))
def test_the_series_ascends_and_each_step_comes_from_the_last_epoch_that_reached_it(epochs: list[tuple[int, int]]) -> None:
    by_epoch = {number: [point(step, epoch=number) for step in range(first, first + count)] for number, (first, count) in enumerate(epochs)}
    series = current_series(by_epoch)
    steps = [each.step for each in series]
    assert steps == sorted(set(steps))
    if epochs:
        first, count = epochs[-1]
        assert [each.step for each in series if each.epoch == len(epochs) - 1] == list(range(first, first + count))
        assert steps[-1] == first + count - 1
