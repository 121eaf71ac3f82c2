"""What `clean:` does to every text of a record before anything else looks at it: encoding repaired, personal data masked.

Encodings are repaired by ftfy (https://ftfy.readthedocs.io), and only damage is: quotes, ligatures, widths, line ends and HTML
stay as they are. What it cannot see is text that lost all but its ASCII after it was damaged: `person\u2019s`, read as
`person\u00e2\u20ac\u2122s`, is then `personaTMs`.

Personal data are addresses and numbers by which a person can be reached: mail, web, IP and telephone. Telephone numbers are
candidates of at least seven digits that the phonenumbers library (Google's libphonenumber) takes for valid: with a `+` in any
country's plan, without it as one region writes them. Years, dates, prices, ISBNs and serial numbers are digits too; precision
comes first, so a number that nobody could have (`555-1234`) is left alone.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ftfy import TextFixerConfig, fix_text
from ftfy.badness import is_bad
from phonenumbers import Leniency, PhoneNumberMatcher

from paretune.data.sources import Row
from paretune.study.data import MASKS, Clean

_DAMAGE_ONLY = TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    normalization=None,
)
_STRIPPED = re.compile(r"(?<=[a-z])aTM(?=(?:[sdmt]|re|ve|ll)\b)")
_LOST = re.compile(r"[\x80-\x9f\ufffd\ud800-\udfff]")
"""Control characters of Latin-1, which are a wrong encoding's; characters that were lost; halves of pairs."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f](?:[^\n]{0,5}[^\x00-\x7f])*")
_BESIDE = 5
"""Characters on each side of those beyond ASCII that can tell damage."""

# A text repeats its few words with accents, quotes and dashes; the expression behind this is a slow one.
_is_bad = lru_cache(maxsize=2**14)(is_bad)

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


class Personal(NamedTuple):
    kind: str
    """`email`, `phone`, `url` or `ip`."""
    start: int
    end: int


def clean_row(row: Row, clean: Clean, counts: Counter[str]) -> Row:
    """`row` with its texts cleaned; `counts` gains `fixed` (records) and `masked_email` ... (places)."""
    if clean.encoding == "fix":
        values = _each_text(row.values, repaired)
        counts["fixed"] += values != row.values
        row = row._replace(values=values)
    if clean.mask:
        row = row._replace(values=_each_text(row.values, lambda text: masked(text, clean, counts)))
    return row


def masked(text: str, clean: Clean, counts: Counter[str]) -> str:
    """`text` with `[EMAIL]`, `[PHONE]`, `[URL]` and `[IP]` for what `clean` masks; `counts` gains `masked_email` ..."""
    parts, end = [], 0
    for personal in find_personal(text, clean.mask, clean.region):
        parts += [text[end : personal.start], f"[{personal.kind.upper()}]"]
        end = personal.end
        counts[f"masked_{personal.kind}"] += 1
    return "".join([*parts, text[end:]])


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(item, change) for key, item in value.items()}
    return [_each_text(item, change) for item in value] if isinstance(value, list) else value


def is_damaged(text: str) -> bool:
    """Whether `text` was read in a wrong encoding, repairable or not."""
    if "aTM" in text and _STRIPPED.search(text):
        return True
    if text.isascii():
        return False
    beyond_ascii = (match.span() for match in _BEYOND_ASCII.finditer(text))
    parts = (text[max(0, start - _BESIDE) : end + _BESIDE] for start, end in beyond_ascii)
    return _LOST.search(text) is not None or any(map(_is_bad, parts))


def has_control_characters(text: str) -> bool:
    """Whether `text` holds characters that are no text and no white space."""
    return _CONTROL.search(text) is not None


def repaired(text: str) -> str:
    """`text` without the damage that can be undone, and without control characters; itself where there is none."""
    if not is_damaged(text) and not has_control_characters(text):
        return text
    return _STRIPPED.sub("'", fix_text(text, _DAMAGE_ONLY))


def find_personal(text: str, kinds: Collection[str] = MASKS, region: str = "US") -> list[Personal]:
    """What stands in `text`, in its order and without overlaps: a mail address inside a web address is part of that."""
    accepted: list[Personal] = []
    for kind in MASKS:
        if kind in kinds or kind in ("url", "email"):
            for start, end in _spans(kind, text, region):
                if not any(start < other.end and other.start < end for other in accepted):
                    accepted.append(Personal(kind, start, end))
    return sorted((personal for personal in accepted if personal.kind in kinds), key=lambda personal: personal.start)


def _spans(kind: str, text: str, region: str) -> Iterator[tuple[int, int]]:
    """Start and end of each that stands in `text`; looked for where a quick search finds a sign of it."""
    if kind == "url":
        if _URL_HINT.search(text):
            yield from (match.span() for match in _URL.finditer(text))
        if _BARE_HINT.search(text):
            yield from (match.span() for match in _BARE_URL.finditer(text))
    elif kind == "email":
        if "@" in text:
            yield from (match.span() for match in _EMAIL.finditer(text))
    elif kind == "ip":
        six = _IP6.finditer(text) if _IP6_HINT.search(text) else iter(())
        for match in itertools.chain(_IP4.finditer(text), six):
            if _VERSION.search(text, max(0, match.start() - 12), match.start()):
                continue
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if not (address.is_loopback or address.is_unspecified or address.is_multicast):
                yield match.span()
    else:
        for match in _PHONE.finditer(text):
            abroad = match[0].lstrip("(").startswith("+")
            leniency = Leniency.VALID if abroad else Leniency.STRICT_GROUPING
            for number in PhoneNumberMatcher(match[0], None if abroad else region, leniency):
                lone = number.raw_string.startswith("(") and ")" not in number.raw_string
                yield match.start() + number.start + lone, match.start() + number.end
