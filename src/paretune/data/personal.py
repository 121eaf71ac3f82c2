"""Addresses and numbers by which a person can be reached: mail, web, IP and telephone.

Telephone numbers are candidates of at least seven digits that the phonenumbers library (Google's libphonenumber) takes for
valid: with a `+` in any country's plan, without it as one region writes them. Years, dates, prices, ISBNs and serial numbers
are digits too; precision comes first, so a number that nobody could have (`555-1234`) is left alone.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from phonenumbers import Leniency, PhoneNumberMatcher

from paretune.study.data import MASKS

_DOMAINS = "com|org|net|edu|gov|info|io|co|eu|de|at|ch|fr|it|es|nl|be|uk|ca|au|us|in|jp|cn|br|pl|se|no|dk|fi|ru"
_ENDS = r"(?<![.,;:!?)\]'\"\u2026\u2019\u201d*_])"
_PART = r"(?:(?!&(?:nbsp|quot|[lg]t)\b)[^\s<>\"'`{}|\\^\[\]])"
_URL = re.compile(rf"(?:\b(?:https?|ftp)://|\bwww\.){_PART}+{_ENDS}", re.IGNORECASE)
_URL_HINT = re.compile(r"://|www\.", re.IGNORECASE)
_BARE_HINT = re.compile(rf"\.(?:{_DOMAINS})/\w", re.IGNORECASE)
_BARE_URL = re.compile(rf"(?<![\w@./-])(?:[a-z0-9-]+\.)+(?:{_DOMAINS})/{_PART}+{_ENDS}", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]+\.)+[^\W\d_]{2,24}(?![\w-])")
# Each begins with what is rare in a text, and looks behind only then: scanning takes most of the time.
_IP4 = re.compile(r"\d(?<![\w.:]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w:]|\.\w)")
_IP6_HINT = re.compile(r"(?::[0-9a-f]{0,4}){4}", re.IGNORECASE)
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){4,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE)
_VERSION = re.compile(r"(?:\bv|version|release|==|>=|~=)[\s:]*$", re.IGNORECASE)
_PHONE = re.compile(r"(?:\d(?<![\w.,/-]\d)|[+(](?<![\w.,/-][+(])\(?\d)(?:[\s().\-/\u2010-\u2015\xa0]{0,3}\d){6,18}(?!\w)")


class Found(NamedTuple):
    kind: str
    """`email`, `phone`, `url` or `ip`."""
    start: int
    end: int


def find_personal(text: str, kinds: Collection[str] = MASKS, region: str = "US") -> list[Found]:
    """What stands in `text`, in its order and without overlaps: a mail address inside a web address is part of that."""
    found: list[Found] = []
    for kind in MASKS:
        if kind in kinds or kind in ("url", "email"):
            for each in _FINDERS[kind](text, region):
                if not any(_overlap(each, other) for other in found):
                    found.append(each)
    return sorted((each for each in found if each.kind in kinds), key=lambda each: each.start)


def mask_personal(text: str, kinds: Collection[str], region: str = "US") -> tuple[str, Counter[str]]:
    """`text` with `[EMAIL]`, `[PHONE]`, `[URL]` and `[IP]` in place of what is found, and how often each is written."""
    found = find_personal(text, kinds, region)
    parts, end = [], 0
    for each in found:
        parts += [text[end : each.start], f"[{each.kind.upper()}]"]
        end = each.end
    return "".join([*parts, text[end:]]), Counter(each.kind for each in found)


def _overlap(one: Found, other: Found) -> bool:
    return one.start < other.end and other.start < one.end


def _urls(text: str, _: str) -> Iterator[Found]:
    if _URL_HINT.search(text):
        yield from (Found("url", *match.span()) for match in _URL.finditer(text))
    if _BARE_HINT.search(text):
        yield from (Found("url", *match.span()) for match in _BARE_URL.finditer(text))


def _emails(text: str, _: str) -> Iterator[Found]:
    if "@" in text:
        yield from (Found("email", *match.span()) for match in _EMAIL.finditer(text))


def _ips(text: str, _: str) -> Iterator[Found]:
    six = _IP6.finditer(text) if _IP6_HINT.search(text) else iter(())
    for match in itertools.chain(_IP4.finditer(text), six):
        if not _VERSION.search(text, max(0, match.start() - 12), match.start()) and _is_address(match[0]):
            yield Found("ip", *match.span())


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _phones(text: str, region: str) -> Iterator[Found]:
    for match in _PHONE.finditer(text):
        written = match[0]
        abroad = written.lstrip("(").startswith("+")
        leniency = Leniency.VALID if abroad else Leniency.STRICT_GROUPING
        for number in PhoneNumberMatcher(written, None if abroad else region, leniency):
            lone = number.raw_string.startswith("(") and ")" not in number.raw_string
            yield Found("phone", match.start() + number.start + lone, match.start() + number.end)


_FINDERS = {"url": _urls, "email": _emails, "ip": _ips, "phone": _phones}
