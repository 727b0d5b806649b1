"""`report.junit.xml`: a test case for the verdict and for each rung at each step, in the XML that CI systems read.

Failed: differs, or is missing on a side. Skipped: not compared. An error: refused, or too little compared for a
verdict, so that a system that reads this file alone does not take it for a pass.
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from nest_ssl.base.errors import visible
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Status, Tally
from nest_ssl.report.document import Heading, join, plain
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.sections.headline import consequences, first_difference, headline, next_step, title
from nest_ssl.report.sections.proof import born_list
from nest_ssl.report.sections.rungs import finding_tables
from nest_ssl.report.words import say, word
from nest_ssl.report.words.names import steps_text

SUITE = "nest-ssl compare"
_FAILED = (Status.DIVERGED, Status.MISSING)
_OUTCOMES = {Status.DIVERGED: "failure", Status.INCONCLUSIVE: "error"}


def render_junit(comparison: Comparison) -> str:
    suite = Xml.Element("testsuite", name=SUITE)
    parts = (headline, born_list, first_difference, consequences, next_step)  # of the first screen, below its title
    blocks = [block for part in parts for block in part(comparison) if not isinstance(block, Heading)]
    name, words = plain(title(comparison)), render_markdown(blocks)
    _add_case(suite, "verdict", "verdict", _OUTCOMES.get(comparison.verdict, ""), comparison.verdict.value, name, words)
    for tally in (tally for rung in comparison.rungs for tally in rung.tallies):
        steps = [] if tally.step is None else [steps_text([tally.step])]
        rank = [say("rank", rank=tally.rank)] if tally.rank else []
        case = plain(join([word("rung", tally.rung), *steps, *rank]))
        _add_case(suite, tally.rung, case, *_judged(comparison, tally))
    return _as_text(suite)


def render_verdict(verdict: Status, message: str, text: str) -> str:
    """Of a verdict over several comparisons: one case."""
    suite = Xml.Element("testsuite", name=SUITE)
    _add_case(suite, "verdict", "verdict", _OUTCOMES.get(verdict, ""), verdict.value, message, text)
    return _as_text(suite)


def render_refusal(message: str) -> str:
    """Of a comparison that was refused: one case, with the line that the command ends with."""
    suite = Xml.Element("testsuite", name=SUITE)
    _add_case(suite, "verdict", "verdict", "error", "refused", message)
    return _as_text(suite)


def _judged(comparison: Comparison, tally: Tally) -> tuple[str, str, str, str]:
    """Outcome, kind, message and text; of two experiments nothing but the contract means anything."""
    status = tally.status
    if comparison.contract_differs and tally.rung != "contract" and status is not Status.IDENTICAL:
        return "skipped", "not judged", word("status", "not judged"), ""
    if status is Status.NOT_COMPARED:
        reasons = plain(join(map(note_text, tally.absent), "; ")) or plain(say("compared.nothing"))
        return "skipped", status.value, reasons, ""
    if status not in _FAILED:
        return "", "", "", ""
    missing = tally.missing_reference + tally.missing_candidate
    counts = [say("rung.differ", count=f"{tally.differing:,}", all=f"{tally.compared.total():,}")]
    counts += [say("rung.missing", count=f"{missing:,}")] if missing else []
    return "failure", status.value, plain(join(counts)), render_markdown(finding_tables(comparison, tally.findings))


def _add_case(
    suite: Xml.Element, rung: str, name: str, outcome: str, kind: str = "", message: str = "", text: str = ""
) -> None:
    case = Xml.SubElement(suite, "testcase", classname=f"nest-ssl.{rung}", name=visible(name), time="0")
    if outcome:
        child = Xml.SubElement(case, outcome, type=kind, message=visible(message))
        child.text = "\n".join(map(visible, text.splitlines())) or None


def _as_text(suite: Xml.Element) -> str:
    """With the counts that readers of the format want at its head."""
    suites = Xml.Element("testsuites", name=SUITE)
    suites.append(suite)
    for element in (suites, suite):
        element.set("tests", str(len(suite.findall("testcase"))))
        for key, kind in (("failures", "failure"), ("errors", "error")):
            element.set(key, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))  # Jenkins's schema has it here alone
    Xml.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{Xml.tostring(suites, encoding="unicode")}\n'
