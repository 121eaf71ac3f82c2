from pathlib import Path

import pytest

from paretune.report.blocks import Block, Bullets, Document, Paragraph, Section, SideBySide, Table, Text
from paretune.report.render import as_html, as_markdown, as_text, escaped, fenced, visible


def one(*blocks: Block) -> Document:
    return Document("title", [Section("part", list(blocks))])


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert visible("a\x1b[31mb\r\nc\td\u202ee\x00") == "a<U+001B>[31mb\nc    d<U+202E>e<U+0000>"
    document = one(SideBySide("\x1b[2J", [Text("x", "note", "\x1b]0;title\x07")]), Paragraph("\x1b[0m"))
    assert "\x1b" not in as_text(document)
    assert "\x1b" not in as_markdown(document)


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("2 * 3 * 4 and [a](b)", "2 \\* 3 \\* 4 and \\[a\\](b)"),
        ("<b>&amp;</b>", "\\<b\\>\\&amp;\\</b\\>"),
        ("`a_b` and a_b", "`a_b` and a\\_b"),
        ("1. no list", "1\\. no list"),
        ("- no list + either", "\\- no list + either"),
        ("-3.1 %", "-3.1 %"),
        ("# no heading", "\\# no heading"),
        ("$x$", "\\$x\\$"),
    ],
)
def test_markdown_takes_words_literally(text: str, markdown: str) -> None:
    assert escaped(text) == markdown


def test_bars_do_not_end_a_cell() -> None:
    text = as_markdown(one(Table(("name", "value"), [["a|b `c|d`", "1"]])))
    assert "| a\\|b `c\\|d` | 1 |" in text


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("```\ncode\n````").startswith("`````text\n")
    assert fenced("plain").startswith("```text\n")


def test_no_line_is_wider_than_a_terminal() -> None:
    wide = Table(("name", "words", "number"), [["v" * 200, "word " * 80, "1.23 (1.11 to 1.35)"]], words=2)
    texts = SideBySide("prompt " * 60, [Text("l" * 80, "n" * 60, "t" * 500), Text("b", "", "中文" * 200)])
    text = as_text(one(Paragraph("p" * 300), Bullets(["b " * 200]), wide, texts))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert text.count("v") == 200


def test_a_grouped_name_is_said_once_in_text_and_always_in_markdown() -> None:
    table = Table(("variant", "epoch"), [["full", "1"], ["full", "2"]], grouped=True)
    assert as_text(one(table)).count("full") == 1
    assert as_markdown(one(table)).count("full") == 2


def test_an_empty_generation_is_shown_as_such_and_a_long_one_is_cut() -> None:
    text = as_text(one(SideBySide("p", [Text("a", "", ""), Text("b", "", "x" * 3000)])))
    assert "(nothing)" in text
    assert text.count("x") == 1500
    assert "(all of it in generations.jsonl)" in " ".join(text.split())


def test_a_page_takes_words_literally_and_knows_verdicts(tmp_path: Path) -> None:
    table = Table(("<name>", "verdict"), [["`a` & b", "better"], ["`a` & b", "worse"]], "of `<x>`", grouped=True)
    texts = SideBySide("<script>", [Text("a", "n", "</pre>")])
    page = as_html(one(Paragraph("`<b>` and <i>"), Bullets(["x < y"]), table, texts), tmp_path)
    assert "<p><code>&lt;b&gt;</code> and &lt;i&gt;</p>" in page
    assert "<ul><li>x &lt; y</li></ul>" in page
    assert '<th class="word">&lt;name&gt;</th>' in page
    assert '<tr><td class="word">`a` &amp; b</td><td class="better">better</td></tr>' in page
    assert '<tr><td class="word"></td><td class="worse">worse</td></tr>' in page
    assert "<caption>of <code>&lt;x&gt;</code></caption>" in page
    assert "<pre>&lt;/pre&gt;</pre>" in page
    assert "<script" not in page


def test_a_paragraph_that_introduces_a_list_stands_close_to_it() -> None:
    listed = Bullets(["one", "two"])
    assert "all:\n- one\n- two\n" in as_text(one(Paragraph("all:", introduces=True), listed))
    assert "all:\n\n- one\n" in as_text(one(Paragraph("all:"), listed))
