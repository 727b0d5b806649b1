"""Marks on paper: the few of SVG that our pictures are made of, and PNG for what is a grid of numbers.

A picture has classes and no colours. Inside a page the page colours them; alone it brings `STYLE`, which follows the
reader's light or dark.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

from nest_ssl.base.errors import visible
from nest_ssl.report.pictures.data import Grid

# Light and dark of each; states differ by mark and word too, never by colour alone.
COLOURS = {
    "ink": ("#1c2024", "#e6e8ea"),
    "muted": ("#5d6670", "#a3adb8"),
    "line": ("#d5dae0", "#3a4149"),
    "paper": ("#ffffff", "#14171a"),
    "same": ("#2f7d4f", "#58b37d"),
    "rounding": ("#2a6cb0", "#6aa9e9"),
    "came": ("#b87400", "#e2a53c"),
    "missing": ("#7448b0", "#b08be6"),
    "born": ("#c3232c", "#ff6a70"),
}
# Of the reader's own: what the system speaks, then what has Chinese on Windows, macOS and Linux.
FONTS = (
    "system-ui,-apple-system,'Segoe UI','PingFang SC','Microsoft YaHei','Noto Sans CJK SC','Noto Sans SC',"
    "'Source Han Sans SC','WenQuanYi Micro Hei','WenQuanYi Zen Hei',sans-serif"
)
STYLE = (
    f"text{{font:12px {FONTS};fill:var(--ink)}}text.muted{{fill:var(--muted)}}text.token{{font-size:10px}}"
    ".axis{stroke:var(--muted);fill:none}.grid{stroke:var(--line);fill:none}"
    "path.reference,line.reference{stroke:var(--rounding);fill:none;stroke-width:2.5}"
    "path.candidate,line.candidate{stroke:var(--born);fill:none;stroke-width:1.5;stroke-dasharray:5 3}"
    ".floor{stroke:var(--ink);fill:none;stroke-width:1.2}.mark{stroke:var(--born);fill:none;stroke-width:1.5}"
    ".ring{stroke:#fff;fill:none;stroke-width:4}"
    ".mask{fill:var(--came);fill-opacity:.35}.box{fill:none;stroke:var(--muted)}.box.other{stroke:var(--born);stroke-width:2}"
    ".curve{fill:none;stroke-width:2}.dot{fill:var(--ink)}"
    "image{image-rendering:pixelated}"
    + "".join(f".{s}{{fill:var(--{s})}}.c-{s}{{stroke:var(--{s})}}" for s in list(COLOURS)[4:])
)
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # dark to bright, to every eye


def wide(text: str, size: float = 12) -> float:
    """About how wide a text is, in pixels: a picture is laid out before anybody's font is known."""
    return size * sum(1.0 if ord(letter) > 0x2E80 else 0.64 for letter in text)


def variables(dark: bool) -> str:
    """The colours as custom properties of CSS."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


class Paper:
    """One picture in the making; sizes are in pixels, and the origin is at the upper left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def add(self, tag: str, kind: str = "", text: str = "", title: str = "", **attributes: object) -> None:
        """One element of class `kind`; whatever text is given is escaped. `title` is shown under the pointer."""
        given = {"class": kind, **{name.replace("_", "-"): value for name, value in attributes.items()}}
        shown = "".join(
            f' {name}="{escape(_short(value))}"' for name, value in given.items() if value not in ("", None)
        )
        inside = f"<title>{escape(visible(title))}</title>" if title else ""
        self.parts.append(f"<{tag}{shown}>{inside}{escape(visible(text))}</{tag}>")

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.add("text", kind, text, x=x, y=y, text_anchor="" if anchor == "start" else anchor)

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, kind: str, points: Sequence[tuple[float, float] | None]) -> None:
        """A line through points, broken where one is None."""
        begins, shown = True, []
        for point in points:
            if point:
                shown.append(f"{'M' if begins else 'L'}{_short(point[0])} {_short(point[1])}")
            begins = point is None
        if shown:
            self.add("path", kind, d="".join(shown))

    def grid(self, x: float, y: float, width: float, height: float, values: Grid) -> None:
        """A grid of numbers from 0 to 1, of shape [R, C], the first row at the top; what is no number is bright."""
        href = f"data:image/png;base64,{base64.b64encode(png(values)).decode()}"
        self.add("image", x=x, y=y, width=width, height=height, preserveAspectRatio="none", href=href)

    def svg(self, alt: str, style: bool = False) -> str:
        """The whole; `alt` says in words what is to be seen. `style`: it brings its own colours."""
        own = f"svg{{{variables(False)}background:var(--paper)}}{STYLE}"
        own += f"@media(prefers-color-scheme:dark){{svg{{{variables(True)}}}}}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_short(self.width)} {_short(self.height)}" '
            f'role="img" aria-label="{escape(visible(alt))}">{f"<style>{own}</style>" if style else ""}'
            f"{''.join(self.parts)}</svg>"
        )


def png(values: Grid) -> bytes:
    """Numbers from 0 to 1, of shape [R, C], as an image with a palette of 256 colours."""
    levels = np.nan_to_num(np.clip(values, 0, 1), nan=1.0) * 255
    rows, columns = levels.shape
    lines = np.concatenate([np.zeros((rows, 1)), levels], axis=1).astype(np.uint8)  # each line begins with its filter
    stops, ramp = np.linspace(0, 255, len(_RAMP)), np.array(_RAMP)
    palette = np.stack([np.interp(np.arange(256), stops, ramp[:, channel]) for channel in range(3)], 1).astype(np.uint8)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    chunks = {b"IHDR": header, b"PLTE": palette.tobytes(), b"IDAT": zlib.compress(lines.tobytes(), 9), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two others: 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / most
    if not math.isfinite(raw) or raw <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
