"""`report.html` as text: whole, alone, escaped, in two languages, and small."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from nest_ssl.compare.findings import CallJudgement, Relation
from nest_ssl.report import write_reports
from nest_ssl.report.document import plain
from nest_ssl.report.pictures.data import CallPoint, Node, Pictures, State, Strip
from nest_ssl.report.pictures.draw import draw_strip, drawings
from nest_ssl.report.pictures.gather import call_state, view_of
from nest_ssl.report.render.html import render_html
from nest_ssl.report.words import language
from tests.report.builder import comparison, diverged, measured
from tests.report.pictures import pictures
from tests.report.test_hostile import HOSTILE, full

NO_END = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """Elements with their attributes, in order; text outside of script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.open += [] if tag in NO_END else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {*self.open}:
            self.words.append(data)

    def all(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def text() -> str:
    made = diverged()
    return render_html(made, pictures(made), "0123456789abcdef")


def test_the_page_is_well_formed_and_every_link_leads_somewhere(text: str) -> None:
    page = Page(text)
    assert page.open == []
    english = Page(text[: text.index("<template")])
    names = english.all("id")
    assert len(names) == len(set(names))
    links = [link for link in english.all("href") if link.startswith("#")]
    assert len(links) > 20 and [link for link in links if link[1:] not in names] == []


def test_it_needs_nothing_else(text: str) -> None:
    page = Page(text)
    sources = [*page.all("src"), *(link for link in page.all("href") if not link.startswith("#"))]
    assert [source for source in sources if not source.startswith("data:image/png;base64,")] == []
    assert "connect-src" not in text and "default-src 'none'" in text
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []


def test_landmarks_headers_and_words_for_every_picture(text: str) -> None:
    page = Page(text[: text.index("<template")])
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("main", "header", "nav", "footer", "h1")] == [1, 1, 1, 1, 1]
    shown = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(shown) == 9
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 40 for picture in shown)
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert heads and all(head.get("scope") in ("col", "row") for head in heads)
    buttons = [attributes for tag, attributes in page.elements if tag == "button"]
    assert all(button["type"] == "button" and button["data-action"] for button in buttons)


def test_two_languages_with_the_same_anchors(text: str) -> None:
    english, chinese = text.split("<template", 1)
    assert "The model" in english and "模型" in chinese and "在此产生" in chinese
    ids = [re.findall(r' id="([^"]+)"', half) for half in (english, chinese)]
    assert ids[0][1:] == ids[1] and len(ids[1]) > 50
    made = diverged()
    with language("zh"):
        assert "误差" in plain(drawings(pictures(made))[0].title)


def test_the_first_screen_comes_first_and_names_lead_into_the_tree(text: str) -> None:
    assert text.index("parts from") < text.index('id="tree"') < text.index('id="strip"') < text.index('id="provenance"')
    assert '<a href="#m-encoder.layers.1"><code>encoder.layers.1</code>' in text


@pytest.mark.parametrize(
    "hostile", [HOSTILE, "</script></style></template><script>alert(1)</script>", "\"'><svg onload=x>"]
)
def test_hostile_names_are_shown_and_never_read(hostile: str) -> None:
    made = full()
    shown = pictures(made, hostile, hostile)
    with_text, without = (Page(render_html(m, p)) for m, p in ((made, shown), (diverged(), pictures(diverged()))))
    assert with_text.open == []
    for page in (with_text, without):
        tags = [tag for tag, _ in page.elements]
        assert (tags.count("script"), tags.count("style"), tags.count("img")) == (1, 1, 0)
        assert [name for _, attributes in page.elements for name in attributes if name.startswith("on")] == []
    assert "alert(1)" not in "".join(re.findall("<script.*?</script>", render_html(made, shown), re.DOTALL))
    assert not any(c in "".join(with_text.words) for c in "\x07\x1b\u202e\ud800")


def test_a_node_is_found_by_its_name() -> None:
    name = 'a b.ü"#%<>'
    made = diverged()
    page = Page(render_html(made, pictures(made, name)))
    names = [each for each in page.all("id") if each.startswith("m-")]
    assert name in {unquote(each[2:]) for each in names} and all(re.fullmatch(r"[!-~]+", each) for each in names)


def test_an_identical_run_has_a_green_tree_and_no_strip() -> None:
    root = Node("", "", "Model", children=[Node("encoder", "encoder", "Encoder")])
    calls = tuple(CallPoint(place, "encoder", place, State.SAME, 0.0, None) for place in range(3))
    text = render_html(comparison(), Pictures(root, Strip(0, calls)))
    assert "All 3 calls have the same bits" in text and "verdict-same" in text
    assert draw_strip(Strip(0, calls)) is None


def test_a_large_recording_is_small_and_quick() -> None:
    """As many modules and calls as NEST extra large has, most of them differing."""
    made = diverged()
    shown = pictures(made)
    layers = [Node(f"encoder.layers.{n}", str(n), "ConformerLayer", State.CAME_IN, State.CAME_IN) for n in range(48)]
    for layer in layers:
        layer.children = [
            Node(f"{layer.name}.part_{k}", f"part_{k}", "Linear", State.CAME_IN, State.CAME_IN, "came in", 1e-6, 1e-5)
            for k in range(30)
        ]
    assert shown.tree and shown.strip
    shown.tree.children += layers
    points = [
        CallPoint(k, f"encoder.layers.{k // 30}.part_{k % 30}", 0, State.CAME_IN, 1e-6 * k, 1e-7) for k in range(1500)
    ]
    shown.strip = Strip(0, (*shown.strip.calls, *points))
    began = time.perf_counter()
    text = render_html(made, shown)
    assert time.perf_counter() - began < 2
    assert 500_000 < len(text.encode()) < 3_000_000


def test_the_view_of_a_tensor() -> None:
    one = torch.zeros(2, 300, 500)
    other = one.clone()
    other[1, 299, 499], other[1, 0, 0], other[0, 5, 5] = 3.0, 1e-3, 7.0
    view = view_of(measured(index=(1, 299, 499)), one, other)
    assert view.difference.shape == view.reference.shape == (75, 167)
    assert (view.difference[view.at], view.difference[0, 0], view.difference.max()) == (3.0, pytest.approx(1e-3), 3.0)
    assert (sum(view.counts), view.same, view.plane) == (3, 2 * 300 * 500 - 3, (300, 500))
    places = [(n.index, n.candidate) for n in view.neighbours]
    assert ((1, 299, 499), 3.0) in places and len(places) == 9
    line = view_of(measured(index=(1,)), torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]))
    assert (line.plane, line.same, line.at) == ((1, 2), 2, (0, 1))


def test_weights_of_an_earlier_step_blame_no_module() -> None:
    """A module that has other weights at step 1, because step 0 differs, is not where anything was born."""
    made = diverged()  # first at step 0
    calls = [(Relation.WEIGHTS, 1), (Relation.UNKNOWN, 1), (Relation.WEIGHTS, 0), (Relation.BORN, 1)]
    beyond = measured()
    judged = [CallJudgement(step, "decoder", 0, relation, 3, beyond) for relation, step in calls]
    assert [call_state(made, call) for call in judged] == [State.CAME_IN, State.CAME_IN, State.BORN, State.BORN]


def test_the_files_belong_together_and_old_pictures_go(tmp_path: Path) -> None:
    made = diverged()
    write_reports(made, tmp_path, pictures(made))
    digest = re.search(r"SHA-256 begins with ([0-9a-f]{16})", (tmp_path / "report.md").read_text())
    assert digest and digest[1] in (tmp_path / "report.html").read_text("utf-8")
    linked = re.findall(r"\]\((pictures/[\w-]+\.svg)\)", (tmp_path / "report.md").read_text())
    there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("pictures/*"))
    assert sorted(linked) == there and len(there) == 9
    for path in there:
        assert Page((tmp_path / path).read_text("utf-8")).open == []
    write_reports(comparison(), tmp_path, Pictures())
    assert not any((tmp_path / "pictures").iterdir())
