"""Groups: stable, deterministic, of about the wanted size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.manifest import CorpusPlan, InputFile
from tasks.validate.grouping import bucket_of, plan_groups


def make_inputs(count: int, *, size: int = 1000, source: str = "s") -> list[InputFile]:
    return [InputFile(source=source, path=f"/x/{i}", relative_path=f"part-{i:05d}.jsonl", size=size, xxh3=f"{i:032x}") for i in range(count)]


def members(plan: CorpusPlan) -> dict[int, frozenset[str]]:
    return {group.index: frozenset(file.relative_path for file in group.inputs) for group in plan.groups}


@given(name=st.text(max_size=20), num_buckets=st.integers(1, 5000))
def test_growing_by_one_bucket_moves_files_only_into_the_new_one(name: str, num_buckets: int) -> None:
    before, after = bucket_of(name, num_buckets=num_buckets), bucket_of(name, num_buckets=num_buckets + 1)
    assert 0 <= before < num_buckets
    assert after in (before, num_buckets)


def test_files_do_not_move_between_groups_when_files_are_added() -> None:
    inputs = make_inputs(400)
    before = members(plan_groups(inputs, group_bytes=20_000, source_names=("s",)))
    after = members(plan_groups(inputs + make_inputs(420)[400:], group_bytes=20_000, source_names=("s",)))
    old = {file.relative_path for file in inputs}
    kept = sum(after.get(index, frozenset()) & old == names for index, names in before.items())
    assert len(after) == 21
    assert kept == 19  # one bucket was split for the new one; a hash modulo the count would have moved nearly all


def test_a_changed_size_within_the_same_count_moves_nothing() -> None:
    inputs = make_inputs(100)
    changed = [inputs[0].model_copy(update={"size": 1500}), *inputs[1:]]
    plans = [members(plan_groups(files, group_bytes=10_400, source_names=("s",))) for files in (inputs, changed)]
    assert plans[0] == plans[1]


def test_every_file_is_in_one_group_and_groups_have_about_the_wanted_size() -> None:
    inputs = make_inputs(3000)
    plan = plan_groups(inputs, group_bytes=100_000, source_names=("s",))
    assert sorted(file.relative_path for group in plan.groups for file in group.inputs) == [file.relative_path for file in inputs]
    sizes = [sum(file.size for file in group.inputs) for group in plan.groups]
    assert max(sizes) < 3 * 100_000
    assert [group.index for group in plan.groups] == sorted({group.index for group in plan.groups})


def test_the_order_of_inputs_does_not_matter_but_within_a_group_sources_follow_the_recipe() -> None:
    inputs = make_inputs(50, source="z") + make_inputs(50, source="a")
    plan = plan_groups(inputs, group_bytes=10**9, source_names=("z", "a"))
    assert plan == plan_groups(list(reversed(inputs)), group_bytes=10**9, source_names=("z", "a"))
    assert [file.source for file in plan.groups[0].inputs] == ["z"] * 50 + ["a"] * 50


@pytest.mark.parametrize(("sizes", "groups"), [([10], 1), ([10**9], 1), ([0, 0], 1)])
def test_a_file_is_never_divided(sizes: list[int], groups: int) -> None:
    inputs = [file.model_copy(update={"size": size}) for file, size in zip(make_inputs(len(sizes)), sizes, strict=True)]
    assert len(plan_groups(inputs, group_bytes=1000, source_names=("s",)).groups) == groups
