"""`headrace doctor` on raw text behind URLs: listed, not read; what cannot be listed is an error, what cannot be told apart a warning."""

from flows.checkup_sources import check_sources
from tests.fakes.in_process_work import config_with
from tests.fakes.remote_text import InMemory, web_serving


def test_every_remote_source_is_listed_and_local_ones_are_left_to_the_recipe() -> None:
    place = InMemory()
    place.put("raw/a.txt", b"one")
    with web_serving() as web:
        web.put("a.txt", b"one")
        web.says["a.txt"] = {"Content-Length": "3"}
        found = check_sources(config_with(corpus={"sources": [place.url, "nowhere", f"{place.url}/none", f"{web.url}/a.txt"]}))
        assert web.asked == ["HEAD a.txt"]
    assert [(each["level"], each["subject"]) for each in found] == [
        ("ok", "corpus.sources.0"),
        ("error", "corpus.sources.2"),
        ("ok", "corpus.sources.3"),
        ("warning", "corpus.sources.3"),
    ]
    assert "every plan reads all of it" in found[-1]["what"]
    assert all(each["mend"] for each in found if each["level"] != "ok")
