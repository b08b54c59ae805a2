"""What a plan says of raw files that changed."""

from dataclasses import replace

from schemas.manifest import CorpusGroup, CorpusPlan, InputFile
from tasks.raw_changes import differences


def plan(*groups: dict[str, str]) -> CorpusPlan:
    """A plan whose groups are given as name → content."""
    return CorpusPlan(
        groups=tuple(
            CorpusGroup(
                index=index,
                inputs=tuple(InputFile(source="web", path=f"/x/{name}", relative_path=name, size=1, xxh3=content) for name, content in files.items()),
            )
            for index, files in enumerate(groups)
        )
    )


BEFORE = plan({"a": "1", "b": "2"}, {"c": "3"}, {"d": "4"})


def test_nothing_is_said_of_what_did_not_change() -> None:
    assert differences(BEFORE, BEFORE).reasons() == ()


def test_changed_new_and_missing_files_are_named_with_their_groups() -> None:
    raw = differences(BEFORE, plan({"a": "1", "b": "2"}, {"c": "other"}, {"e": "5"}))
    assert raw.reasons() == ("web/c changed", "web/e is new", "web/d is gone", "groups g0001, g0002 of 3 scanned anew, the others taken over")


def test_groups_that_cannot_be_taken_over_are_not_promised() -> None:
    raw = replace(differences(BEFORE, plan({"a": "1", "b": "2"}, {"c": "other"}, {"d": "4"})), reused=False)
    assert raw.reasons()[-1] == "group g0001 of 3 scanned anew, and the others, which cannot be taken over"


def test_of_many_files_some_are_named() -> None:
    before, after = ({f"{number:02}": content for number in range(9)} for content in ("1", "2"))
    assert differences(plan(before), plan(after)).reasons()[0] == "web/00, web/01, web/02 and 6 more changed"
