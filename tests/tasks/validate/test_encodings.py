"""Other encodings than UTF-8: told, transcoded, and what cannot be is refused where it is."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.corpus_config import RulesConfig, SourceConfig
from schemas.stage import Stage
from tasks.validate import encodings, streams
from tasks.validate.encodings import Decoding, UnknownEncodingError, detect
from tasks.validate.lines import RefusedLine
from tasks.validate.problem import Reason
from tasks.validate.readers import Record, lines_of, read_records, reading_of
from tasks.validate.streams import HashingFile
from tests.fakes.in_process_work import config_with

CHINESE = "水轮把流水的力量变成转动的力量。河水推动水轮，水轮带动石磨，石磨把麦子磨成面粉。\n磨坊旁边住着磨坊主一家，他们每天清晨打开闸门。"
TAIWANESE = "水車把流水的力量變成轉動的力量。河水推動水車，水車帶動石磨，石磨把麥子磨成麵粉。\n磨坊旁邊住著磨坊主一家，他們每天清晨打開閘門。"
JAPANESE = "水車は流れる水の力を回転の力に変える。川の水が水車を回し、水車が石臼を回して、小麦を粉にする。\n粉屋の家族は毎朝水門を開ける。"
KOREAN = "물레방아는 흐르는 물의 힘을 회전하는 힘으로 바꾼다. 강물이 바퀴를 돌리고 바퀴가 맷돌을 돌려 밀을 가루로 만든다."
RUSSIAN = "Водяное колесо превращает силу текущей воды в силу вращения. Река вращает колесо, а колесо вращает жернова мельницы."
FRENCH = (
    "La roue à eau transforme la force de l'eau qui coule en force de rotation. La rivière fait tourner la roue du moulin, située près du château."
)
TOLD = [
    ("gb18030", CHINESE),
    ("big5", TAIWANESE),
    ("cp932", JAPANESE),
    ("euc-jp", JAPANESE),
    ("cp949", KOREAN),
    ("cp1251", RUSSIAN),
    ("koi8-r", RUSSIAN),
    ("utf-8", CHINESE),
]


def read(path: Path, encoding: Any, *, max_chars: int = 10_000, **source: Any) -> list[Record]:
    config = SourceConfig.model_validate({"path": str(path)} | source)
    with HashingFile(path) as file:
        return list(read_records(file, reading_of(str(path), config, rules=RulesConfig(max_chars=max_chars), encoding=encoding)))


def outline(records: list[Record]) -> list[tuple[int, Any]]:
    """(row, fields or reason) of each record."""
    return [(record.row, record.fields if record.problem is None else record.problem.reason) for record in records]


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize(("encoding", "text"), TOLD)
def test_an_encoding_is_told_by_its_text(encoding: str, text: str, times: int) -> None:
    sample = "\n".join([text] * times).encode(encoding)
    found = detect(sample)
    assert sample.decode(found.encoding).startswith(text)
    assert found == (encoding, "strict UTF-8" if encoding == "utf-8" else "detected")


def test_short_rows_of_two_and_four_byte_characters_are_told_wherever_a_sample_may_be_cut() -> None:
    rows = [f'"第{number}页：㐀、𠮷与“水轮”——{number * 7919 % 10_007}。"' for number in range(150)]
    for first in range(40):
        assert detect("\n".join(rows[first:]).encode("gb18030")).encoding == "gb18030"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("今天天气很好。".encode("gb18030"), "too few"),
        (bytes(range(0x80, 0x100)) * 5, "neither UTF-8 nor"),
        (FRENCH.encode("cp1252") * 20, "cp1250 and cp1252 are about as likely"),
    ],
)
def test_what_is_in_doubt_is_not_told_and_the_keys_are_named(data: bytes, why: str) -> None:
    with pytest.raises(UnknownEncodingError, match=why) as caught:
        detect(data)
    assert "corpus.sources[].encoding" in caught.value.problem.detail


def test_damaged_utf8_is_utf8_and_no_other_encoding() -> None:
    data = CHINESE.encode() + b"\n\xff\n" + CHINESE.encode()
    assert detect(data) == ("utf-8", "UTF-8 but for some damage")


def compressed(data: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(data)
    return bytes(pa.compress(data, "zstd", asbytes=True)) if ending == ".zst" else data


@pytest.mark.parametrize("declared", ["auto", None])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("encoding", "text"), TOLD)
def test_every_kind_of_file_gives_the_text(tmp_path: Path, encoding: str, text: str, ending: str, declared: str | None) -> None:
    kinds = {
        "a.jsonl": json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n",
        "a.csv": f'id,text\n1,"{text}"\n',
        "a.txt": text,
    }
    for name, content in kinds.items():
        path = tmp_path / (name + ending)
        path.write_bytes(compressed(content.encode(encoding), ending))
        (record,) = read(path, encoding=declared or encoding)
        assert record.fields is not None, (name, record.problem)
        assert record.fields["text"] == text, name


def test_a_source_has_its_own_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(CHINESE.encode("gb18030"))
    assert outline(read(path, encoding="utf-8")) == [(1, Reason.INVALID_UTF8)]
    config = SourceConfig(path=str(path), encoding="gb18030")
    with HashingFile(path) as file:
        reading = reading_of(str(path), config, rules=RulesConfig(max_chars=10_000), encoding="utf-8")
        assert outline(list(read_records(file, reading))) == [(1, {"text": CHINESE})]


@pytest.mark.parametrize(
    ("kind", "declared"),
    [("utf-8-sig", "auto"), *((kind, declared) for kind in ("utf-16", "utf-16-le", "utf-16-be") for declared in ("auto", "utf-16"))],
)
def test_a_byte_order_mark_decides(tmp_path: Path, kind: str, declared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_RAW_BLOCK_BYTES", 7)
    mark = "\ufeff" if kind in ("utf-16-le", "utf-16-be") else ""
    path = tmp_path / "a.jsonl"
    path.write_bytes((mark + "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("水轮\ufeff", "ਊ ਊ", "third"))).encode(kind))
    assert outline(read(path, encoding=declared)) == [(1, {"text": "水轮\ufeff"}), (2, {"text": "ਊ ਊ"}), (3, {"text": "third"})]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf8_is_no_exception_to_what_a_byte_order_mark_says(tmp_path: Path, kind: str, ending: str) -> None:
    """The default: no key says anything."""
    for name, content in (("a.jsonl", '{"text":"水轮"}\n' * 3), ("a.csv", "text\n水轮\n石磨\n"), ("a.txt", "水轮\n石磨\n")):
        path = tmp_path / (name + ending)
        path.write_bytes(compressed(("\ufeff" + content).encode(kind), ending))
        (record,) = read(path, encoding="utf-8")
        assert record.problem is not None, name
        assert record.problem.reason is Reason.UNKNOWN_ENCODING, name
        assert f"utf-8 is declared, and the file begins with the byte order mark of {kind}" in record.problem.detail
        assert "corpus.encoding, or corpus.sources[].encoding" in record.problem.detail


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("kind", ["utf-32", "utf-32-le", "utf-32-be"])
def test_utf32_is_read_where_its_mark_decides(tmp_path: Path, kind: str, name: str, ending: str) -> None:
    content = {"a.jsonl": '{"text":"水𠮷"}\n', "a.csv": "text\n水𠮷\n", "a.txt": "水𠮷"}[name]
    path = tmp_path / (name + ending)
    path.write_bytes(compressed((("" if kind == "utf-32" else "\ufeff") + content).encode(kind), ending))
    assert outline(read(path, encoding="auto")) == [(1, {"text": "水𠮷"})]
    assert outline(read(path, encoding="utf-16")) == [(1, Reason.UNKNOWN_ENCODING)]


def test_a_text_may_be_as_long_as_the_rule_says_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("水" * 1_000).encode("utf-32"))
    assert outline(read(tmp_path / "a.txt", encoding="auto", max_chars=1_000)) == [(1, {"text": "水" * 1_000})]


def test_utf32_that_has_no_meaning_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_RAW_BLOCK_BYTES", 7)
    path = tmp_path / "a.jsonl"
    bad = (b"\0\0\x11\0", b"\0\xd8\0\0", b"\xff\xff\xff\xff")
    lines = [f'{{"text":"{character}"}}\n'.encode("utf-32-le") for character in "a?b?c?d"]
    marks = iter(bad)
    data = b"".join(line.replace("?".encode("utf-32-le"), next(marks)) if index % 2 else line for index, line in enumerate(lines))
    path.write_bytes(b"\xff\xfe\0\0" + data + b"\0\0")
    problem = Reason.INVALID_UTF8
    expected = [
        (1, {"text": "a"}),
        (2, problem),
        (3, {"text": "b"}),
        (4, problem),
        (5, {"text": "c"}),
        (6, problem),
        (7, {"text": "d"}),
        (8, problem),
    ]
    assert outline(read(path, encoding="auto")) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_utf16_without_a_mark_is_what_windows_writes(tmp_path: Path, name: str) -> None:
    content = {"a.jsonl": '{"text":"水轮"}\n', "a.csv": "text\n水轮\n", "a.txt": "水轮"}[name]
    (tmp_path / name).write_bytes(content.encode("utf-16-le"))
    assert outline(read(tmp_path / name, encoding="utf-16")) == [(1, {"text": "水轮"})]


@pytest.mark.parametrize(("declared", "kind"), [("utf-16-le", "utf-16-be"), ("utf-16-be", "utf-16-le")])
def test_the_mark_of_the_other_byte_order_stops_the_file(tmp_path: Path, declared: str, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text":"水轮"}\n'.encode(kind))
    assert outline(read(tmp_path / "a.jsonl", encoding=declared)) == [(1, Reason.UNKNOWN_ENCODING)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_byte_order_mark_that_contradicts_the_recipe_stops_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('{"text":"水轮"}\n'.encode("utf-8-sig"))
    (record,) = read(tmp_path / name, encoding="gb18030")
    assert record.problem is not None
    assert record.problem.reason is Reason.UNKNOWN_ENCODING
    assert "gb18030 is declared" in record.problem.detail


def test_lines_that_cannot_be_decoded_are_refused_alone_with_their_bytes(tmp_path: Path) -> None:
    good = json.dumps({"text": CHINESE}, ensure_ascii=False).encode("gb18030")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([good, b'{"text": "\xff"}', good, b'{"text": "\x81', good]))
    records = read(path, encoding="gb18030")
    assert outline(records) == [
        (1, {"text": CHINESE}),
        (2, Reason.UNDECODABLE),
        (3, {"text": CHINESE}),
        (4, Reason.UNDECODABLE),
        (5, {"text": CHINESE}),
    ]
    assert records[1].raw == b'{"text": "\xff"}'
    assert records[1].problem is not None
    assert records[1].problem.detail == "gb18030, byte 10: illegal multibyte sequence"


def test_a_csv_line_that_cannot_be_decoded_costs_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\n水轮\n".encode("gb18030") + b"\xff\n" + "石磨\n".encode("gb18030"))
    assert outline(read(tmp_path / "a.csv", encoding="gb18030")) == [(1, {"text": "水轮"}), (2, Reason.UNDECODABLE), (3, {"text": "石磨"})]


def test_a_whole_file_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(CHINESE.encode("gb18030") + b"\xff")
    (record,) = read(tmp_path / "a.txt", encoding="gb18030")
    assert record.problem is not None
    assert record.problem.detail.startswith(f"gb18030, byte {len(CHINESE.encode('gb18030'))}: ")


def test_half_a_utf16_character_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text":"a"}\n{"text":"\ud83d"}\n{"text":"b"}'.encode("utf-16-le", "surrogatepass") + b"\x00")
    assert outline(read(path, encoding="utf-16-le")) == [(1, {"text": "a"}), (2, Reason.INVALID_UTF8), (3, Reason.INVALID_UTF8)]


def test_ascii_before_the_text_that_tells_passes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_SAMPLE_BYTES", 300)
    decoding = Decoding("auto")
    lines = [b"plain ascii"] * 20 + CHINESE.encode("gb18030").split(b"\n") * 10 + [b"more ascii"]
    data = b"\n".join(lines) + b"\n"
    runs = decoding.line_runs(data[start : start + 50] for start in range(0, len(data), 50))
    assert next(runs).startswith(b"plain ascii")
    assert decoding.outcome == ("utf-8", "ASCII")
    rest = [line for run in runs for line in lines_of(run)]
    assert decoding.outcome == ("gb18030", "detected")
    assert [line.decode() for line in rest][-21:] == CHINESE.split("\n") * 10 + ["more ascii"]


def test_a_mark_inside_of_a_file_is_a_character() -> None:
    lines = [b"plain ascii", *(("\ufeff" + CHINESE.replace("\n", "")).encode("gb18030") for _ in range(2))]
    runs = Decoding("auto").line_runs(iter([line + b"\n" for line in lines]))
    assert [line.decode()[0] for run in runs for line in lines_of(run)] == ["p", "\ufeff", "\ufeff"]


def test_memory_that_waits_for_the_decision_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_MOST_HELD_BYTES", 5_000)
    taken = 0

    def blocks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1_000):
            taken += 1
            yield b"ascii " * 100 + "é\n".encode("cp1252")

    with pytest.raises(UnknownEncodingError):
        list(Decoding("auto").line_runs(blocks()))
    assert taken < 20


@given(
    texts=st.lists(st.text(st.characters(codec="gb18030", exclude_characters="\n\ufeff")), min_size=1),
    bad=st.sets(st.integers(0, 20)),
    block=st.integers(1, 40),
)
@settings(max_examples=100)
def test_lines_are_those_of_one_by_one(texts: list[str], bad: set[int], block: int) -> None:
    lines = [text.encode("gb18030") + (b"\xff" if index in bad else b"") for index, text in enumerate(texts)]
    data = b"\n".join(lines) + b"\n"
    runs = Decoding("gb18030").line_runs(data[start : start + block] for start in range(0, len(data), block))
    found = [line for run in runs for line in lines_of(run)]
    assert len(found) == len(texts)
    for index, (line, text) in enumerate(zip(found, texts, strict=True)):
        assert isinstance(line, RefusedLine) == (index in bad)
        assert line == (lines[index] if index in bad else text.encode())


def test_what_files_were_read_as_is_in_the_outcome_and_the_figures(scan: Any, recipe: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(CHINESE.encode("gb18030"))
    (folder / "b.txt").write_text("plain", encoding="ascii")
    (folder / "c.txt").write_bytes(JAPANESE.encode("cp932"))
    (folder / "d.txt").write_bytes(b"\xc0\xc1")
    scanned = scan(recipe({"path": str(folder), "encoding": "auto"}))
    assert scanned.texts == [CHINESE, "plain", JAPANESE]
    assert scanned.refused == [(1, "unknown encoding")]
    assert [(each.relative_path, each.encoding, each.evidence) for each in scanned.output.encodings] == [
        ("a.txt", "gb18030", "detected"),
        ("b.txt", "utf-8", "ASCII"),
        ("c.txt", "cp932", "detected"),
        ("d.txt", "", "not told"),
    ]
    (stats,) = scanned.output.stats
    assert stats.encodings == {"cp932": 1, "gb18030": 1, "unknown": 1, "utf-8": 1}
    assert stats.unreadable_bytes == 2
    assert stats.num_accepted + stats.num_quarantined == stats.read == 4


@pytest.mark.parametrize("encoding", [{}, {"encoding": "utf-8"}])
def test_by_default_nothing_is_written_down(scan: Any, recipe: Callable[..., Any], write_jsonl: Any, encoding: dict[str, str]) -> None:
    output = scan(recipe({"path": str(write_jsonl("a.jsonl", {"text": CHINESE})), **encoding})).output
    assert output.encodings == ()
    assert "encodings" not in output.stats[0].model_dump(mode="json")


def test_a_recipe_without_the_key_keeps_its_identity() -> None:
    default, named, other = (
        config_with(corpus={"sources": [{"path": "x"}], **keys}).identity(Stage.VALIDATE)
        for keys in ({}, {"encoding": "utf-8"}, {"encoding": "auto"})
    )
    assert default == named
    assert "encoding" not in default["corpus"]
    assert "encoding" not in default["corpus"]["sources"][0]
    assert other["corpus"]["encoding"] == "auto"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="gb18030"):
        SourceConfig.model_validate({"path": "x", "encoding": "gb-18030"})
