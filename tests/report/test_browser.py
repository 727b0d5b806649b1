"""`report.html` opened from disk in a real headless Chromium: clicks and keys do what they say, at any width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.report.render.html import render_html
from tests.report.browser import BROWSER, DRIVER, Browser, started
from tests.report.builder import diverged
from tests.report.pictures import pictures

pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="no chromium with chromedriver here")


@pytest.fixture(scope="module")
def driver() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture
def page(driver: Browser, tmp_path: Path) -> Browser:
    made = diverged()
    path = tmp_path / "report.html"
    path.write_text(render_html(made, pictures(made), "0" * 16), "utf-8")
    driver.size(1200)
    driver.open(path)
    driver.js("(localStorage.clear(), 1)")
    driver.open(path)
    return driver


def errors(page: Browser) -> list[Any]:
    return [entry for entry in page.ask("POST", "/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]


def test_no_error_and_no_sideways_scrolling_at_any_width(page: Browser) -> None:
    for width in (1200, 390):
        page.size(width)
        for language in ("en", "zh"):
            assert page.js("document.documentElement.lang") == language
            wide = page.js("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert wide[0] <= wide[1] == width
            page.click("language")
    assert errors(page) == []


OUTSIDE = """[...document.querySelectorAll('figure svg')].flatMap((svg) => {
  const paper = svg.viewBox.baseVal;
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBBox();
    const [right, bottom] = [box.x + box.width - paper.width, box.y + box.height - paper.height];
    return box.x < -0.5 || box.y < -0.5 || right > 0.5 || bottom > 2;
  }).map((text) => text.textContent);
})"""


def test_no_word_of_a_picture_is_cut(driver: Browser, tmp_path: Path) -> None:
    made, path = diverged(), tmp_path / "report.html"
    long = "encoder.a_module_of_a_stranger.with_long_names.layers.11.self_attention"
    path.write_text(render_html(made, pictures(made, long)), "utf-8")
    driver.size(1200)
    driver.open(path)
    for _ in ("en", "zh"):
        assert driver.js(f"{OUTSIDE}") == []
        driver.click("language")


def test_another_language_leaves_the_reader_where_he_was(page: Browser) -> None:
    title = page.js("document.title")
    page.click("expand")
    page.js("(document.getElementById('find').value = 'decoder', 1)")
    page.js("(document.querySelector('[data-action=language]').focus(), 1)")
    opened = page.js("document.querySelectorAll('details[open]').length")
    page.press("\ue007")
    assert page.js("document.documentElement.lang") == "zh"
    assert page.js("document.title") != title and "分歧" in page.js("document.title")
    assert page.js("document.querySelectorAll('details[open]').length") == opened > 0
    assert page.js("[document.getElementById('find').value, document.activeElement.dataset.action]") == [
        "decoder",
        "language",
    ]
    page.press("\ue007")
    assert page.js("document.title") == title


def test_what_is_folded_away_can_be_opened_and_is_counted(driver: Browser, tmp_path: Path) -> None:
    made, path = diverged(), tmp_path / "report.html"
    shown = pictures(made)
    changes = shown.operators[0].changes
    shown.operators = [replace(shown.operators[0], changes=changes * 250)]
    path.write_text(render_html(made, shown), "utf-8")
    driver.open(path)
    rows = "['operators-1-table', 'operators-1-more'].map((n) => document.getElementById(n).tBodies[0].rows.length)"
    assert driver.js(rows) == [30, 370]
    assert driver.js("document.querySelector('#operators summary').textContent") == "370 operators more"
    assert "400 of 500 operators; nest-ssl ops diff" in driver.js("document.querySelector('#operators').textContent")


def test_buttons_and_keys_do_what_they_say(page: Browser) -> None:
    head = "document.querySelector('#first table thead')"
    heads = f"[...{head}.querySelectorAll('th')].map((h) => h.textContent.trim())"
    before = page.js(heads)
    page.press("s")
    assert page.js(heads) == [before[0], before[2], before[1]]
    assert page.js("document.querySelector('[data-action=swap]').getAttribute('aria-pressed')") == "true"
    page.press("s", "t")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.js(paper)
    page.press("t")
    assert {dark, page.js(paper)} == {"rgb(20, 23, 26)", "rgb(255, 255, 255)"}
    page.press("l")
    assert "模型" in page.js("document.querySelector('#tree-title').textContent")
    page.press("l", "?")
    assert page.js("!document.querySelector('#help').hidden")
    page.press("/")
    assert page.js("document.activeElement.id") == "find"
    assert errors(page) == []


def test_search_sorting_the_strip_and_links(page: Browser) -> None:
    find = "document.getElementById('find')"
    type_in = f"({find}.value = '%s', {find}.dispatchEvent(new Event('input', {{bubbles: true}})), 1)"
    page.js(type_in % "decoder")
    shown = "[...document.querySelectorAll('.tree li')].filter((n) => !n.hidden).map((n) => n.id)"
    assert page.js(shown) == ["m-", "m-decoder"]
    assert page.js("document.querySelector('.search output').textContent") == "1 of 5 modules"
    page.js(type_in % "")
    assert len(page.js(shown)) == 5
    column = "[...document.querySelectorAll('#ratios-table tbody tr')].map((r) => r.cells[1].textContent.trim())"
    button = "document.querySelectorAll('#ratios-table thead button')[1]"
    for order, rows in (("ascending", ["2", "4"]), ("descending", ["4", "2"]), (None, ["4", "2"])):
        page.js(f"({button}.click(), 1)")
        assert page.js(f"{button}.closest('th').getAttribute('aria-sort')") == order and page.js(column) == rows
    page.js("(document.querySelector('[data-keys=strip]').focus(), 1)")
    page.press("\ue014")
    assert "encoder.layers.1, born here" in page.js("document.querySelector('.cursor').textContent")
    page.click("collapse")
    page.press("\ue007")
    assert page.js("location.hash") == "#m-encoder.layers.1"
    assert page.js("document.getElementById('m-encoder.layers.1').parentElement.parentElement.open")
    assert errors(page) == []


def test_on_paper_there_are_no_tools(page: Browser) -> None:
    page.js("(document.documentElement.dataset.theme = 'dark', 1)")
    paper = "getComputedStyle(document.documentElement).getPropertyValue('--paper')"
    assert page.js(paper) == "#14171a"
    page.tell("Emulation.setEmulatedMedia", media="print")
    assert page.js(paper) == "#ffffff"
    assert (
        page.js("['header', '.search', 'nav'].map((s) => getComputedStyle(document.querySelector(s)).display)")
        == ["none"] * 3
    )
    page.tell("Emulation.setEmulatedMedia", media="")
    assert len(page.ask("POST", "/print", {})) > 20_000
