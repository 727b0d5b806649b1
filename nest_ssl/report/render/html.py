"""`report.html`: one file that needs nothing else. The templates, the style and the script lie in `page/`.

Whatever a recording holds goes through `inline` or through Jinja2's escaping, and is shown and never read as markup.
The page says everything in each language that there are words for; the script exchanges one for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nest_ssl.base.errors import visible
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Status
from nest_ssl.report.document import Block, Code, Heading, Inline, Ref, StatusWord, Text, plain, table
from nest_ssl.report.pictures.data import Node, Pictures, State, TensorView
from nest_ssl.report.pictures.draw import CLASS, drawings
from nest_ssl.report.pictures.svg import FONTS, STYLE, variables
from nest_ssl.report.sections import details, summary
from nest_ssl.report.sections.operators import MARKS, call_name, operator_text
from nest_ssl.report.words import LANGUAGES, counted, heads, language, say, word
from nest_ssl.report.words.names import labels, number, small

PAGE = Path(__file__).with_name("page")
STATES = {Status.IDENTICAL: "same", Status.EQUIVALENT: "rounding", Status.MISSING: "missing", Status.DIVERGED: "born"}
OPERATORS = 30, 400  # rows of one call's that are shown, and that are folded away; beyond them a number
SIGNS = {State.SAME: "=", State.ROUNDING: "~", State.CAME_IN: ">", State.MISSING: "?", State.BORN: "!"}


@dataclass(frozen=True, slots=True)
class Part:
    """A heading and what stands below it; `name` is its anchor."""

    name: str
    title: Text
    blocks: tuple[Block, ...]


def render_html(comparison: Comparison, pictures: Pictures, digest: str = "") -> str:
    """The whole page, in all languages.

    Args:
        digest: of the `report.json` that it belongs to.
    """
    names: list[str] = []

    def said() -> dict[str, Any]:
        found = details(comparison)
        names[:] = names or anchors([plain(block.text) for block in found if isinstance(block, Heading)])
        return {
            "first": summary(comparison),
            "parts": parts_of(found, names),
            "pictures": pictures,
            "drawn": {drawing.name: drawing for drawing in drawings(pictures)},
            "neighbours": neighbours_of(comparison, pictures.tensor) if pictures.tensor else None,
            "sides": labels(comparison),
            "modules": set(names_in(pictures.tree)) if pictures.tree else set(),
            "digest": digest,
            "pages": {},
        }

    return _in_all_languages(comparison.verdict, said)


def render_front(verdict: Status, blocks: Callable[[], Sequence[Block]], pages: Callable[[], Mapping[str, str]]) -> str:
    """A page in front of others, in all languages; what is given is asked for in each.

    Args:
        blocks: what it says; a title first.
        pages: by their words, files to link to.
    """
    nothing = {"parts": [], "pictures": Pictures(), "drawn": {}, "neighbours": None, "modules": set(), "digest": ""}
    return _in_all_languages(verdict, lambda: {**nothing, "first": blocks(), "sides": (), "pages": pages()})


def _in_all_languages(verdict: Status, said: Callable[[], dict[str, Any]]) -> str:
    """One document; `said` gives what the template of its body asks for, in the language that is spoken."""
    environment, spoken, title = templates(), {}, ""
    for code in LANGUAGES:
        with language(code):
            values = said()
            heading = next(plain(block.text) for block in values["first"] if isinstance(block, Heading))
            title = title or heading
            values |= {"title": heading, "code": code, "verdict": STATES.get(verdict, "came")}
            spoken[code] = Markup(environment.get_template("body.html").render(values))
    assets = {name: Markup((PAGE / name).read_text("utf-8")) for name in ("page.css", "page.js")}
    colours = Markup(f":root{{{variables(False)}}}{STYLE}")
    dark = Markup(variables(True))
    page = environment.get_template("page.html")
    return page.render(title=title, spoken=spoken, assets=assets, colours=colours, dark=dark, fonts=Markup(FONTS))


def anchor(module: str) -> str:
    """The anchor of a module in the tree."""
    return f"m-{quote(module, safe='.-_~', errors='backslashreplace')}"


def inline(modules: set[str], text: Sequence[Inline], outside: bool = True) -> Markup:
    """A line of text; names of modules that stand in the tree link there.

    Args:
        outside: of a link.
    """
    shown = Markup()
    for part in text:
        if isinstance(part, Ref):
            inside, module = inline(modules, part.shown, False), part.address.module
            link = Markup('<a href="#{}">{}</a>').format(anchor(module or ""), inside)
            shown += link if module is not None and module in modules else inside
        elif isinstance(part, Code):
            code = Markup("<code>{}</code>").format(visible(part.text))
            linked = Markup('<a href="#{}">{}</a>').format(anchor(part.text), code)
            shown += linked if outside and part.text and part.text in modules else code
        elif isinstance(part, StatusWord):
            tag = Markup(
                '<strong class="status {0}">{1}</strong>' if part.strong else '<span class="status {0}">{1}</span>'
            )
            shown += tag.format(STATES.get(part.status, "came"), visible(part.word))
        else:
            shown += visible(part)
    return shown


@cache
def templates() -> Environment:
    """Everything that a template prints is escaped, control characters are shown, and a misspelt name is an error."""
    found = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    found.globals.update(
        say=say, word=word, heads=heads, plain=plain, counted=counted, number=number, small=small, anchor=anchor,
        inline=inline,
        kind=lambda block: type(block).__name__, state_class=CLASS, signs=SIGNS, states=list(State), table_of=table,
        drawn_svg=lambda drawing: Markup(drawing.svg()), operator_text=operator_text,
        rows_of_operators=OPERATORS,
        call_name=call_name, marks=MARKS, opened=is_open,
    )  # fmt: skip
    return found


def is_open(node: Node) -> bool:
    """Whether a module is shown open at first: down to what is to blame, else the outermost only."""
    return node.name == "" or any(child.worst in (State.BORN, State.MISSING) for child in node.children)


def names_in(node: Node) -> list[str]:
    return [node.name, *(name for child in node.children for name in names_in(child))]


def anchors(titles: Sequence[str]) -> list[str]:
    """Of each title a name to link to, each once."""
    found: list[str] = []
    for title in titles:
        words = (
            "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()[:6]) or "part"
        )
        name = next(n for n in (words, *(f"{words}-{i}" for i in range(2, len(titles) + 2))) if n not in found)
        found.append(name)
    return found


def parts_of(blocks: Sequence[Block], names: Sequence[str]) -> list[Part]:
    """What stands before the first heading has an empty title."""
    found, left = [Part("facts", (), ())], list(names)
    for block in blocks:
        if isinstance(block, Heading):
            found.append(Part(left.pop(0), block.text, ()))
        else:
            found[-1] = Part(found[-1].name, found[-1].title, (*found[-1].blocks, block))
    return found


def neighbours_of(comparison: Comparison, view: TensorView) -> Block:
    rows = [
        [Code(str(list(each.index))), number(each.reference), number(each.candidate),
         small(abs(float(each.candidate) - float(each.reference)))]
        for each in view.neighbours
    ]  # fmt: skip
    return table([say("head.at"), *labels(comparison), say("head.largest_difference")], rows, right=3, sides=1)
