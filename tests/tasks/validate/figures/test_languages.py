"""Languages of a few documents: the right ones, the same few for any order, and merged exactly."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.figures import languages
from tasks.validate.figures.languages import LanguageTally, language_counts, merge_languages
from tests.tasks.validate.figures.conftest import accepted_rows

ENGLISH = "The mill stands by the river, and the water that comes down the channel turns its wheel. Document {}."
GERMAN = "Die Mühle steht am Fluss, und das Wasser, das durch den Kanal kommt, dreht ihr Rad. Schriftstück {}."
CHINESE = "水轮把水的力量变成转动的力量，磨坊就在河边，这是第{}份文件。"


def counted(texts: list[str], *, step: int = 1000) -> dict[int, str]:
    tally, rows = LanguageTally(), accepted_rows(texts).combine_chunks()
    for start in range(0, len(texts), step):
        for batch in rows.slice(start, step).to_batches():
            tally.add(batch)
    return tally.languages()


def test_languages_are_identified() -> None:
    texts = [form.format(index) for form, number in ((ENGLISH, 20), (GERMAN, 10), (CHINESE, 10)) for index in range(number)]
    assert language_counts(counted([*texts, "0123 4567"])) == {"en": 20, "de": 10, "zh": 10, "unknown": 1}


@settings(max_examples=20)
@given(st.lists(st.integers(0, 400), max_size=80), st.lists(st.integers(0, 400), max_size=80), st.integers(1, 30))
def test_samples_of_parts_merge_to_that_of_the_whole(first: list[int], second: list[int], step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(languages, "KEPT_DOCUMENTS", 8)
        patch.setattr(languages, "_language_of", lambda text: text[:1])
        one, two = ([f"{number % 3}{number}" for number in numbers] for numbers in (first, second))
        whole = counted(one + two)
        assert merge_languages([counted(one, step=step), counted(two, step=step)]) == whole == counted(two + one, step=step)
        assert len(whole) == min(8, len(set(first + second)))


def test_many_documents_are_represented_by_few() -> None:
    texts = [(ENGLISH if index % 4 else CHINESE).format(index) for index in range(2000)]
    counts = Counter(language_counts(counted(texts)))
    assert counts.total() == languages.KEPT_DOCUMENTS
    assert 3 <= counts["zh"] <= 25
