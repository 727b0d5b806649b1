"""Markdown, read back by a parser of its own: what a recording says stays text."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Consequence, Note, Remainder, Status, Unexplained
from nest_ssl.compare.kinds import FaultKind, Likely
from nest_ssl.compare.proof import Proof
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, StatusWord, table
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.sections import details, summary
from nest_ssl.report.write import report_text
from tests.report.builder import comparison, diverged, finding, measured
from tests.report.test_proof import HAD, NORM

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


SCREEN = 40  # lines of 120 columns


def first_screen(made: Comparison) -> list[str]:
    """The lines above the first heading of a section, as they break on a screen."""
    text = report_text(made).split("\n## ")[0]
    return [part for line in text.splitlines() for part in textwrap.wrap(line, 120) or [""]]


def crowded() -> Comparison:
    """As much as can be said at once: many births with operators and lines, many things unexplained, many steps."""
    sources = (
        "nemo/collections/asr/parts/submodules/conformer_modules.py:388",
        "nest_ssl/model/encoder/conformer.py:141",
    )
    born = [
        replace(
            NORM, module=f"encoder.layers.{number}.self_attn.linear_out", operators=NORM.operators * 5, source=sources
        )
        for number in range(30)
    ]
    left = [Remainder(why, (finding(), measured(), finding(module="decoder"))) for why in list(Unexplained)[:6]]
    follows = [
        Consequence(rung, step, 1000, 1e-3) for rung in ("forward", "loss", "gradients", "weights") for step in range(9)
    ]
    return diverged(
        proof=Proof(HAD, born=born, lacking=[Note("lacks_floor"), Note("lacks_function")]),
        unexplained=left, follows=follows, first_bits=finding(), first_beyond=finding(),
    )  # fmt: skip


def named_at_length() -> Comparison:
    """The same with the long names of a stranger's model, and several kinds of fault."""
    made, name = crowded(), "encoder.a_stack_of_a_stranger.layers.{}.self_attention.output_projection"
    made.proof.born = [replace(born, module=name.format(n)) for n, born in enumerate(made.proof.born)]
    kinds = (FaultKind.CONVOLUTION_AND_NORMS, FaultKind.ATTENTION, FaultKind.MASKING, FaultKind.OPTIMIZER)
    made.kinds = [Likely(kind, Note("kind_class", {"part": name.format(3), "word": "Linear"})) for kind in kinds]
    made.unexplained = made.unexplained[:2]
    return made


def test_the_example_is_a_screen() -> None:
    text = (Path(__file__).parents[2] / "docs" / "example.md").read_text("utf-8").partition("\n> ")[2]
    lines = [part for line in text.replace("> ", "").splitlines() for part in textwrap.wrap(line, 120) or [""]]
    assert 20 < len(lines) <= SCREEN


@pytest.mark.parametrize(
    "made", [diverged(), crowded(), named_at_length()], ids=["plain", "crowded", "named at length"]
)
def test_the_first_screen_is_a_screen(made: Comparison) -> None:
    screen = first_screen(made)
    text = " ".join(screen)
    assert len(screen) <= SCREEN, "\n".join(screen)
    assert screen[0].startswith("# nest-ssl 0.1.0 parts from NeMo 3.0.0")
    said = ("**diverged**", "Follows from it:", "Not explained by it:")
    assert [words for words in said if words not in text] == []
    assert ("`make explain`" in text) != made.proof.had  # the next step, where nothing was measured yet
    assert text.isascii()


def test_places_that_the_first_screen_has_no_room_for_stand_below() -> None:
    screen, rest = report_text(crowded()).split("\n## ", 1)
    assert "27 more, listed below." in screen and rest.startswith("Rung by rung")
    assert all(f"encoder.layers.{number}.self_attn" in screen + rest for number in range(30))
    assert "Further places" not in report_text(diverged())
