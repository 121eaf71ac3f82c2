"""What a word is, for all who count or compare them: scores of answers, the search for leaked texts, the audit."""

import re
import unicodedata

import regex

_ASCII_WORD = re.compile(r"[a-z0-9]+")
IGNORED = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
"""Soft hyphens, zero-width characters, variation selectors: nothing that is seen, and a word would be cut at them."""
ALONE = (
    r"\p{Script_Extensions=Han}\p{Script_Extensions=Hiragana}\p{Script_Extensions=Katakana}\p{Line_Break=SA}"
    r"\p{Script=Javanese}\p{Script=Balinese}"
)
"""Inside of a character class: scripts without spaces between words. `SA` are those whose line breaks need a dictionary: Thai,
Lao, Khmer, Myanmar, Tai Le, New Tai Lue, Tai Tham, Tai Viet and Ahom."""
_WORD = regex.compile(
    rf"[[\p{{L}}\p{{N}}]--[{ALONE}]][[\p{{L}}\p{{N}}\p{{M}}]--[{ALONE}]]*+|(?=[\p{{L}}\p{{N}}])\X\p{{M}}*+", regex.V1
)


def words_of(text: str) -> list[str]:
    """The words of `text` as they are compared: Unicode NFKC, case folded, without punctuation and ignorable characters.

    A word is a run of letters, digits and the signs that combine with them: the words of Unicode's UAX 29, but cut at every
    punctuation mark, as rouge-score does; of ASCII text the words are rouge-score's (`don't` is two). Of scripts without
    spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Myanmar and their like) every character is a word, with the signs
    that combine with it (an extended grapheme cluster).
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", IGNORED.sub("", text)).casefold())
