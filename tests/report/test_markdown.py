"""Markdown, read back by a parser of its own: what a recording says stays text."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from nest_ssl.compare.findings import Status
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, StatusWord, table
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.sections import details, summary
from tests.report.builder import comparison, diverged

PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def html(*blocks: Block) -> str:
    return str(PARSER.render(render_markdown(blocks)))


def test_every_kind_of_block() -> None:
    blocks: list[Block] = [
        Heading(("a ", Code("b")), 1),
        Paragraph((StatusWord(Status.DIVERGED, "diverged", strong=True), ": ", StatusWord(Status.MISSING, "missing"))),
        table(["x", ""], [["1", Code("y")], ["", "2"]], right=1),
        CodeBlock(("make", "```")),
        Bullets((("one",), ("two",))),
    ]
    assert render_markdown(blocks) == (
        "# a `b`\n\n**diverged**: missing\n\n| x |  |\n| --- | --: |\n| 1 | `y` |\n|  | 2 |\n\n"
        "````\nmake\n```\n````\n\n- one\n- two\n"
    )


TEXTS = [
    "# a heading", "a\n# a heading", "a\r\n\r\n# b", "1. a list", "12) a list", "- a list", "+ a", "* a list", "=====",
    "---",
    "> a quotation", "<script>alert(1)</script>", "<img src=x>", "<!-- x", "<https://x.example>", "![a](https://x.example/a.png)",
    "[a](https://x.example)", "[a]: https://x.example", "**bold**", "__bold__", "_a_", "snake_case_name", "~~gone~~",
    "`code`",
    "`` a", "a | b", "a \\| b", "\\", "a\\", "&lt;b&gt;", "&#x3c;b&#x3e;", "$x$", "a  \nb", "C:\\new\\table", "a`b|c`d",
    "```\nx", "    indented", "\tx", "a\\`b", "\\<b>",
]  # fmt: skip


def shown(text: str) -> str:
    """What a reader of the page sees of `text`: itself, with line ends and the like as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_html(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(text: str) -> None:
    wanted = in_html(shown(text))
    assert html(Paragraph((text,))) == f"<p>{wanted.strip()}</p>\n"
    assert html(Heading((text,))) == f"<h2>{wanted.strip()}</h2>\n"
    assert html(Bullets(((text,),))) == f"<ul>\n<li>{wanted.strip()}</li>\n</ul>\n"
    cells = html(table([text, "b"], [["c", text]]))
    assert cells.count("<th>") == 2
    assert f"<th>{wanted.strip()}</th>" in cells
    assert f"<td>{wanted.strip()}</td>" in cells


@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip() == text])
def test_code_stays_code(text: str) -> None:
    assert html(Paragraph((Code(text),))) == f"<p><code>{in_html(shown(text))}</code></p>\n"
    cells = html(table(["a", "b"], [[Code(text), "c"]]))
    assert f"<td><code>{in_html(shown(text).replace('|', chr(92) + 'x7c'))}</code></td>\n<td>c</td>" in cells
    assert html(CodeBlock((text, "end"))) == f"<pre><code>{in_html(shown(text))}\nend\n</code></pre>\n"


@pytest.mark.parametrize("text", ["https://x.example", "www.x.example", "WWW.x.example", "a@x.example", "@someone"])
def test_github_links_nothing(text: str) -> None:
    """Its own extension finds addresses in text: not behind an escape, and not across a code span."""
    found = render_markdown([Paragraph((text,))])
    assert not re.search(r"[^\\]:/|(?i:www)\.|[a-z]@|@[a-z]", found)
    assert text.replace(".", "") == plain_of(found).replace(".", "")


def plain_of(markdown: str) -> str:
    return re.sub("<[^>]*>", "", str(PARSER.render(markdown))).strip()


def test_a_report_needs_no_escape_of_its_own_words() -> None:
    for made in (comparison(), diverged()):
        assert "\\" not in render_markdown([*summary(made), *details(made)])


def test_a_whole_report_is_what_it_is_made_of() -> None:
    made = diverged()
    blocks = [*summary(made), *details(made)]
    tokens = PARSER.parse(render_markdown(blocks))
    counts = {
        "heading_open": Heading,
        "table_open": type(table([""], [])),
        "bullet_list_open": Bullets,
        "fence": CodeBlock,
    }
    for token, kind in counts.items():
        assert sum(t.type == token for t in tokens) == sum(isinstance(block, kind) for block in blocks) > 0
    assert {t.type for t in tokens} & {
        "html_block",
        "ordered_list_open",
        "blockquote_open",
        "hr",
        "code_block",
    } == set()


def test_the_first_screen_is_a_screen() -> None:
    assert len(render_markdown(summary(diverged())).splitlines()) < 40
    assert render_markdown(summary(diverged())).isascii()
