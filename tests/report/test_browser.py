"""`report.html` opened from disk in a real headless Chromium: clicks and keys do what they say, at any width."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.report.render.html import render_html
from tests.report.builder import diverged
from tests.report.pictures import pictures

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="no chromium with chromedriver here")
OPTIONS = ["--headless=new", "--disable-gpu", *(["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else [])]


class Browser:
    """As much of WebDriver as is needed here."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/session"
        wanted = {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": BROWSER, "args": OPTIONS},
        }
        made = self.ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/{made['sessionId']}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, path: Path) -> None:
        self.ask("POST", "/url", {"url": path.resolve().as_uri()})

    def js(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def click(self, action: str) -> None:
        self.js(f"document.querySelector('[data-action={action}]').click()")

    def press(self, *keys: str) -> None:
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def size(self, width: int, height: int = 900) -> None:
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": sizes})


@pytest.fixture(scope="module")
def driver() -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        browser = Browser(port)
        yield browser
        browser.ask("DELETE", "")
    finally:
        process.terminate()
        process.wait(10)


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
    page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}})
    assert (
        page.js("['header', '.search', 'nav'].map((s) => getComputedStyle(document.querySelector(s)).display)")
        == ["none"] * 3
    )
    page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": ""}})
    assert len(page.ask("POST", "/print", {})) > 20_000
