"""A headless Chromium, driven by as much of WebDriver as is needed here; and pictures of a page.

python tests/report/browser.py outputs/report/report.html docs/images     # the README's
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--headless=new", "--disable-gpu", *(["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else [])]


class Browser:
    """One window."""

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

    def tell(self, command: str, **given: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": given})

    def open(self, path: Path) -> None:
        """Returns when the whole page is there; on a busy machine the driver alone returns earlier."""
        self.ask("POST", "/url", {"url": path.resolve().as_uri()})
        while self.js("document.readyState") != "complete":
            time.sleep(0.05)

    def js(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def click(self, action: str) -> None:
        self.js(f"document.querySelector('[data-action={action}]').click()")

    def press(self, *keys: str) -> None:
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def size(self, width: int, height: int = 900) -> None:
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def dark(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def picture(self, x: float = 0, y: float = 0, width: float = 0, height: float = 0) -> bytes:
        """A PNG of a part of the page, in its own pixels; of all of it where no size is given."""
        page = self.js("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": x, "y": y, "width": width or page[0], "height": height or page[1], "scale": 1}
        made = self.tell("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(made["data"])


@contextmanager
def started() -> Iterator[Browser]:
    """A browser for a block; it is ended behind it."""
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
