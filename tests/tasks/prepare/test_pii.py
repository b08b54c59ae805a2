import re._parser as sre  # the tree of a pattern: what the test of bounds walks through
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.preparation_config import PiiConfig, PiiKind
from tasks.prepare.pii import PiiStep
from tasks.prepare.pii_patterns import PATTERNS, is_card_number, is_iban

ALL = PiiStep(PiiConfig(mask=tuple(PiiKind)))

REAL = {
    PiiKind.EMAIL: ["jane.doe+news@mail.example.com", "x@a-b.io", "JANE_DOE@EXAMPLE.ORG"],
    PiiKind.IP: ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2606:2800:220:1:248:1893:25c8:1946"],
    PiiKind.PHONE: ["+49 (0)30 1234567", "+12125550199", "(212) 555-0199", "212-555-0199", "212.555.0199"],
    PiiKind.CREDIT_CARD: ["4111 1111 1111 1111", "4111-1111-1111-1111", "5555555555554444", "3782 822463 10005"],
    PiiKind.IBAN: ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606"],
    PiiKind.SECRET: [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEow==\n-----END RSA PRIVATE KEY-----",
    ],
}
OTHERS = [
    "127.0.0.1 192.168.1.20 10.0.0.7 169.254.0.1 224.0.0.1 fe80::1 ::1",  # not of the public network
    "v1.2.3.4 1.2.3.4.5 release-1.2.3.4 std::beef dead::beef 300.1.1.1",
    "4111 1111 1111 1112 1234567890123456 2024-11-22 12:30:45.123456789",  # no check digit, no card's prefix
    "DE89 3704 0044 0532 0130 01 AB12CDEF",
    "user@host @decorator.name a @ b.com",
    "555-0199 1+1=2 +1 +12 1234; 2021/02/03 100-200-3000 212-555-01999",
    "AKIA_is_short sk_live_",
    "x4111111111111111 4111111111111111x 9+12125550199 5212-555-0199 XDE89370400440532013000 _AKIAIOSFODNN7EXAMPLE",  # a part of something else
    "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in REAL.items() for text in texts])
def test_real_ones_are_masked_and_counted(kind: PiiKind, text: str) -> None:
    (outcome,) = ALL.apply([f"Before ({text}), after."])
    assert outcome.text == f"Before (<{kind.value}>), after."
    assert outcome.counts == {kind.value: 1}


@pytest.mark.parametrize("text", OTHERS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    (outcome,) = ALL.apply([text])
    assert (outcome.text, outcome.counts) == (text, {})


def test_only_the_kinds_of_the_recipe_are_masked() -> None:
    (outcome,) = PiiStep(PiiConfig(mask=(PiiKind.IP,))).apply(["Ask me@example.org at 8.8.8.8, not 8.8.4.4."])
    assert outcome.text == "Ask me@example.org at <ip>, not <ip>."
    assert outcome.counts == {"ip": 2}


def test_what_follows_a_false_beginning_is_found() -> None:
    (outcome,) = ALL.apply(["0123 4111 1111 1111 1111 and DE89 GB82WEST12345698765432"])
    assert outcome.text == "0123 <credit-card> and DE89 <iban>"


def test_one_beside_the_other_is_found_however_many_there_are() -> None:
    """What is masked was no border for what follows; its placeholder is."""
    number = "(212) 555-0199"
    (outcome,) = ALL.apply([f"jane.doe@example.org{number * 50} and {number * 2}"])
    assert outcome.text == f"<email>{'<phone>' * 50} and <phone><phone>"
    assert outcome.counts == {"email": 1, "phone": 52}


def test_no_space_is_needed_beside_other_scripts() -> None:
    (outcome,) = ALL.apply(["请发邮件到me@example.org或者打电话+8613800138000，服务器8.8.8.8。"])
    assert outcome.text == "请发邮件到<email>或者打电话<phone>，服务器<ip>。"


def test_check_digits() -> None:
    assert [is_card_number(text) for text in ("4111111111111111", "4111111111111121")] == [True, False]
    assert [is_iban(text) for text in ("GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 23")] == [True, False]


pieces = st.sampled_from(
    [*(text for texts in REAL.values() for text in texts), *OTHERS, *" .@+-:<>()1a\n", "-----BEGIN PRIVATE KEY-----", "8.8", "+49", "AKIA", "4111 "]
)


@given(st.lists(pieces, max_size=12).map("".join))
def test_masking_again_changes_nothing_and_nothing_grows_without_bound(text: str) -> None:
    (once,) = ALL.apply([text])
    assert once.text is not None
    (again,) = ALL.apply([once.text])
    assert (again.text, again.counts) == (once.text, {})
    assert len(once.text) <= len(text) + 13 * sum(once.counts.values())


# ---- the time grows with the length of a text, and with nothing else ---------------------------------------------------


def repetitions(tree: Any) -> Iterator[int]:
    """The upper bounds of all repetitions of a pattern."""
    for operation, argument in tree:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            yield int(argument[1])
            yield from repetitions(argument[2])
        elif name == "BRANCH":
            for branch in argument[1]:
                yield from repetitions(branch)
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
            yield from repetitions(argument[-1] if name != "ATOMIC_GROUP" else argument)


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_repetition_is_bounded(kind: PiiKind) -> None:
    for pattern in PATTERNS[kind]:
        assert max(repetitions(sre.parse(pattern.regex.pattern))) <= 20_000, pattern.regex.pattern


def test_the_test_of_bounds_would_find_an_unbounded_one() -> None:
    assert max(repetitions(sre.parse(r"(?<!x)a(?:b{2,3}|c+)"))) > 20_000


@pytest.mark.parametrize("unit", ["a.", "1.", "a@", "+1 ", "4111 ", "DE89 ", "2001:", "-----BEGIN PRIVATE KEY-----\n", "ghp_a", "<email>"])
def test_long_adversarial_texts_come_to_an_end(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    (outcome,) = ALL.apply([text])
    assert outcome.text
