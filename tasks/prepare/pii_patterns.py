"""What personal data and secrets look like: for each kind patterns, and a check that tells the real ones. Pure.

Every repetition is bounded, so the time to look through a text grows with its length and with nothing else. All patterns share their borders:
neither beside an ASCII letter or digit, `_` nor `+`, with which they also begin or end. Only what begins with `(` may stand right behind another:
what is masked is no border for it, and the placeholder is one.
Other letters are no border: Chinese puts no space before an address.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from schemas.preparation_config import PiiKind

_BEFORE, _AFTER = r"(?<![\w+].)", r"(?![\w+])"
"""The borders. The first stands behind the first character, not before it: so the engine skips quickly to where one may begin."""

# Letters and digits of an IBAN behind country and check digits, by country: SWIFT's IBAN registry (ISO 13616).
_IBAN_COUNTRIES: Mapping[int, str] = {
    11: "NO",
    12: "BE",
    14: "DK FI FK FO GL NL SD",
    15: "MK SI",
    16: "AT BA EE KZ LT LU MN XK",
    17: "CH HR LI LV",
    18: "BG BH CR DE GB GE IE ME RS VA",
    19: "AE GI IL IQ OM SO TL",
    20: "AD CZ ES MD PK RO SA SE SK TN VG",
    21: "LY PT ST",
    22: "IS TR",
    23: "BI DJ FR GR IT MC MR SM",
    24: "AL AZ BY CY DO GT HU LB NI PL SV",
    25: "BR EG PS QA UA",
    26: "JO KW MU YE",
    27: "MT SC",
    28: "LC",
    29: "RU",
}


class Pattern(NamedTuple):
    """One way in which a kind is written."""

    regex: re.Pattern[str]
    """What looks like it."""
    is_real: Callable[[str], bool]
    """Tells the real ones among what looks like it."""
    hint: str = ""
    """Without this in the text there is none; empty: not known."""


def is_public_address(text: str) -> bool:
    """Whether an IPv4 or IPv6 address is one of the public network."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def is_card_number(text: str) -> bool:
    """Whether digits, grouped or not, begin like a card's number and have a right check digit (Luhn)."""
    digits = [int(char) for char in text if char.isdigit()]
    if not _CARD_PREFIX.match("".join(map(str, digits))):
        return False
    doubled = (2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 13616: the number modulo 97 is 1)."""
    compact = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def _always(_: str) -> bool:
    return True


# First digits and lengths: Visa, Mastercard, American Express, Discover, JCB, Diners Club.
_CARD_PREFIX = re.compile(r"(?:4\d{12}(?:\d{3})?(?:\d{3})?|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(?:011|5\d\d)\d{12}|35\d{14}|3[068]\d{12})\Z")

_DOMAIN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}"
_IBAN = "|".join(
    rf"(?:{'|'.join(f'(?<={code[0]}){code[1]}' for code in codes.split())})\d\d(?: ?[A-Z0-9]){{{size}}}" for size, codes in _IBAN_COUNTRIES.items()
)
_SECRETS = "|".join(
    rf"(?<={first}){rest}"
    for first, rest in (
        ("A", r"(?:KIA|SIA)[A-Z0-9]{16}"),  # AWS access keys
        ("A", r"Iza[A-Za-z0-9_-]{34}[A-Za-z0-9_]"),  # Google
        ("g", r"h[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub
        ("g", r"ithub_pat_[A-Za-z0-9_]{50,255}"),
        ("g", r"lpat-[A-Za-z0-9_]{20,64}"),  # GitLab
        ("h", r"f_[A-Za-z0-9]{30,64}"),  # Hugging Face
        ("s", r"k_live_[A-Za-z0-9]{20,99}"),  # Stripe
        ("x", r"ox[abeoprs]-[A-Za-z0-9-]{9,250}[A-Za-z0-9]"),  # Slack
    )
)
_KEY_BLOCK = r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----(?:[^-]|-(?!----)){1,20000}-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----"
_GROUPS = r"\d{12,18}|\d{3}([ -])\d{4}\1\d{4}\1\d{4}|\d{3}([ -])\d{6}\2\d{4,5}"
_AMERICAN = r"\d\d(?:([.-])[2-9]\d\d\1|/[2-9]\d\d-)\d{4}"


def _pattern(
    first: str, rest: str, is_real: Callable[[str], bool] = _always, *, hint: str = "", before: str = _BEFORE, after: str = _AFTER
) -> Pattern:
    return Pattern(re.compile(f"{first}{before}(?:{rest}){after}", re.ASCII), is_real, hint)


PATTERNS: Mapping[PiiKind, tuple[Pattern, ...]] = {
    PiiKind.SECRET: (Pattern(re.compile(_KEY_BLOCK), _always, "PRIVATE KEY-----"), _pattern("[Aghsx]", _SECRETS)),
    PiiKind.IBAN: (_pattern("[A-Z]", rf"(?=[A-Z]\d\d)(?:{_IBAN})", is_iban),),
    PiiKind.CREDIT_CARD: (_pattern(r"\d", _GROUPS, is_card_number),),
    PiiKind.PHONE: (
        _pattern(r"\+", r"[1-9](?:[ .()/-]{0,2}\d){7,14}", hint="+"),
        _pattern("[2-9]", _AMERICAN, after=rf"{_AFTER}(?![.-]\d)"),
        _pattern(r"\(", r"[2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}", hint="("),
    ),
    PiiKind.IP: (
        _pattern(r"\d", r"\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}", is_public_address, before=r"(?<![\w+.-].)", after=rf"{_AFTER}(?!\.\d|-\d)"),
        _pattern("[23]", r"[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}", is_public_address, before=r"(?<![\w+:.].)", after=rf"{_AFTER}(?!:)"),
    ),
    PiiKind.EMAIL: (_pattern("[A-Za-z0-9_]", rf"[A-Za-z0-9._%+-]{{0,63}}@{_DOMAIN}", hint="@"),),
}
"""The patterns of each kind, in the order in which they are applied: a long one before those that it might contain."""
