"""What the benchmarks' page says of what it does not know."""

from __future__ import annotations

from nest_ssl.bench import cpu, cpu_page
from nest_ssl.report.render.markdown import render_markdown


def test_cases_without_a_row_are_named() -> None:
    rows = [{"name": case.name, "batch": list(case.batch), "step_ms": [1.0] * 4} for case in cpu.FULL]
    results = {"steps": rows[1:], "recorder": [], "start": []}
    said = "No row yet of what the first command measures besides"
    assert f"{said}: tiny, 2 x 3 s." in "".join(render_markdown(list(cpu_page.page(results))))
    assert said not in "".join(render_markdown(list(cpu_page.page({**results, "steps": rows}))))


def test_how_fast_the_disk_was_is_said() -> None:
    recorded = dict.fromkeys(cpu_page.RECORDED.values(), 1.0)
    rows = [{"name": name, "bytes": size, **recorded, "bytes_alone": seconds}
            for name, size, seconds in (("a", 2e8, 2.0), ("b", 4e9, 2.0), ("c", 1e5, 9.0))]  # fmt: skip
    text = "".join(render_markdown(list(cpu_page.page({"steps": [], "recorder": rows, "start": []}))))
    assert "as the disk is at that moment: 100 MB and more at 0.1 to 2 GB/s." in text
