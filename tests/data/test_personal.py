from collections import Counter

import pytest

from paretune.data.cleaning import find_personal, masked
from paretune.study.data import MASKS, Clean

FOUND = [
    ("write to jane.doe+news@mail.example.co.uk.", "email", "jane.doe+news@mail.example.co.uk"),
    ("<a href='mailto:j@example.org'>", "email", "j@example.org"),
    ("m\u00fcller@b\u00fccher.example", "email", "m\u00fcller@b\u00fccher.example"),
    ("see https://en.wikipedia.org/wiki/Foo_(bar), or ask", "url", "https://en.wikipedia.org/wiki/Foo_(bar"),
    ("at www.example.com/a?b=c&d=e#f.", "url", "www.example.com/a?b=c&d=e#f"),
    ("read hbr.org/2020/03/grief today", "url", "hbr.org/2020/03/grief"),
    ('<a href="http://x.example/y">y</a>', "url", "http://x.example/y"),
    ("www.example.org.&nbsp; and more", "url", "www.example.org"),
    ("https://me@example.com/inbox", "url", "https://me@example.com/inbox"),
    ("from 93.184.216.34, then", "ip", "93.184.216.34"),
    ("host 2606:2800:220:1:248:1893:25c8:1946 answers", "ip", "2606:2800:220:1:248:1893:25c8:1946"),
    ("Tel.: +49-89-382-18634", "phone", "+49-89-382-18634"),
    ("+49 (0) 179-5079009,", "phone", "+49 (0) 179-5079009"),
    ("call +44 (0)1243 755055.", "phone", "+44 (0)1243 755055"),
    ("call 1-800-273-8255 now", "phone", "1-800-273-8255"),
    ("(514) 690-2469", "phone", "(514) 690-2469"),
    ("(800-273-8255)", "phone", "800-273-8255"),
    ("604 683-7151", "phone", "604 683-7151"),
]
"""Text, kind and what is found of it."""

NOTHING = [
    "on 31.03.2024 and 2024-03-31, 03/31/2024, 1931-2020 and 2021\u20132025",
    "from 1987 to 1994; 2014/2015; (1928\u20131987)",
    "EUR 1,234,567.89, $12,345,678 and 100 000 000 euros",
    "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISSN 2049-3630",
    "BMW 320d xDrive, M340i, R 1250 GS, EOS-5D-2000, WBA3A5C51CF256789",
    "tyres 130/80-17 and 225/45 R18, 166.2 \u2013 176.6 g/km",
    "pi is 3.14159265358979, and 1 2 3 4 5 6 7 8 9 10",
    "order 1234567890, part 642087513, DOI 10.1000/182",
    "call 555-1234, or (555) 123-4567, which nobody has",
    "version 10.2.3.4, v1.2.3.4, numpy==1.26.4.1, at 127.0.0.1, chapter 1.2.3.4.5",
    "at 12:30:45, ratio 1:2:3, std::vector<a::b>",
    "@app.route, a@b, user@localhost, x @ y.z, 5 @ 3.50",
    "and/or, Node.js/Deno, Amazon.com, e.g. this",
]


@pytest.mark.parametrize(("text", "kind", "expected"), FOUND)
def test_addresses_and_numbers_are_found(text: str, kind: str, expected: str) -> None:
    assert [(each.kind, text[each.start : each.end]) for each in find_personal(text)] == [(kind, expected)]


@pytest.mark.parametrize("text", NOTHING)
def test_other_digits_and_dots_are_left_alone(text: str) -> None:
    assert [text[each.start : each.end] for each in find_personal(text)] == []


def test_masks_are_stable_and_counted() -> None:
    text = "Ann (ann@example.org, +49 89 382-18634) wrote https://a.example/b, https://c.example/d and 93.184.216.34"
    counts: Counter[str] = Counter()
    once = masked(text, Clean(mask=MASKS), counts)
    assert once == "Ann ([EMAIL], [PHONE]) wrote [URL], [URL] and [IP]"
    assert counts == {"masked_email": 1, "masked_phone": 1, "masked_url": 2, "masked_ip": 1}
    assert masked(once, Clean(mask=MASKS), counts) == once
    assert counts.total() == 5


def test_only_what_is_asked_for_is_masked() -> None:
    text = "a@example.org at https://b.example/c@d.example"
    assert masked(text, Clean(mask=("email",)), Counter()) == "[EMAIL] at https://b.example/c@d.example"


def test_a_region_knows_its_own_numbers() -> None:
    text = "089 38218634"
    assert masked(text, Clean(mask=("phone",), region="DE"), Counter()) == "[PHONE]"
    assert masked(text, Clean(mask=("phone",), region="US"), Counter()) == text
