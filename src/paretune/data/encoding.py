"""Text that was read in a wrong encoding on its way here, and how it is repaired, by ftfy (https://ftfy.readthedocs.io).

Only damage is repaired: quotes, ligatures, widths, line ends and HTML stay as they are. What ftfy cannot see is text that lost
all but its ASCII after it was damaged: `person\u2019s`, read as `person\u00e2\u20ac\u2122s`, is then `personaTMs`.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from ftfy import TextFixerConfig, fix_text
from ftfy.badness import is_bad

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


def is_damaged(text: str) -> bool:
    """Whether `text` was read in a wrong encoding, repairable or not."""
    if "aTM" in text and _STRIPPED.search(text):
        return True
    if text.isascii():
        return False
    return _LOST.search(text) is not None or any(map(_is_bad, _near(text)))


def has_control_characters(text: str) -> bool:
    """Whether `text` holds characters that are no text and no white space."""
    return _CONTROL.search(text) is not None


def repaired(text: str) -> str:
    """`text` without the damage that can be undone, and without control characters; itself where there is none."""
    if not is_damaged(text) and not has_control_characters(text):
        return text
    return _STRIPPED.sub("'", fix_text(text, _DAMAGE_ONLY))


def _near(text: str) -> Iterator[str]:
    for match in _BEYOND_ASCII.finditer(text):
        yield text[max(0, match.start() - _BESIDE) : match.end() + _BESIDE]


@lru_cache(maxsize=2**14)
def _is_bad(part: str) -> bool:
    # A text repeats its few words with accents, quotes and dashes; the expression behind this is a slow one.
    return is_bad(part)
