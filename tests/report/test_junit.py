"""`report.junit.xml` and a job's page: what CI systems show of a comparison."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from nest_ssl.compare.findings import Status
from nest_ssl.report import append_step_summary, write_junit
from nest_ssl.report.render.junit import render_junit, render_refusal
from tests.report.builder import add, comparison, diverged, finding, other_experiment, setting

OUTCOMES = ("failure", "error", "skipped")

# What readers take: the schema of Jenkins's xUnit plugin (junit-10.xsd) and Surefire's, both of which a file must pass.
# Of each element: attributes that it needs, others that it may have, and what may stand in it, in that order.
FORM: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "disabled", "errors"}, ("testsuite",)),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped"}, {"time", "timestamp"}, ("testcase",)),
    "testcase": ({"name", "classname", "time"}, set(), ("skipped", "error", "failure")),
    "skipped": (set(), {"type", "message"}, ()),
    "error": ({"type"}, {"message"}, ()),
    "failure": ({"type"}, {"message"}, ()),
}
NUMBERS = {"tests", "failures", "errors", "skipped", "time"}


def not_in_form(element: Xml.Element) -> list[str]:
    """What of an element, and of all in it, is not as `FORM` says."""
    needed, others, children = FORM[element.tag]
    given = set(element.keys())
    names = [child.tag for child in element]
    found = [f"{element.tag} lacks {name}" for name in sorted(needed - given)]
    found += [f"{element.tag} has {name}" for name in sorted(given - needed - others)]
    found += [f"{name}={element.get(name)}" for name in NUMBERS & given if not element.get(name, "").isdigit()]
    if set(names) - set(children) or names != sorted(names, key=children.index):
        return [*found, f"{element.tag} holds {names}"]
    if element.tag == "testcase" and len(names) > 1:
        found.append("a case with two outcomes")
    return found + [each for child in element for each in not_in_form(child)]


def cases(text: str) -> dict[str, Xml.Element]:
    """Cases by rung and name; the form is that of CI systems, and the counts in the head are those of the cases."""
    suites = Xml.fromstring(text)
    assert suites.tag == "testsuites" and not_in_form(suites) == []
    found = {f"{case.get('classname')}: {case.get('name')}": case for case in suites.iter("testcase")}
    for element in (suites, suites[0]):
        assert element.get("tests") == str(len(found))
        for key, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            count = str(sum(case.find(kind) is not None for case in found.values()))
            assert element.get(key, count) == count
    return found


def outcomes(text: str) -> dict[str, str]:
    """What did not pass."""
    return {name: kind for name, case in cases(text).items() for kind in OUTCOMES if case.find(kind) is not None}


def test_identical_is_a_case_a_rung_and_step_and_all_pass() -> None:
    found = cases(render_junit(comparison()))
    assert "nest-ssl.forward: forward, step 1" in found and "nest-ssl.contract: contract" in found
    assert len(found) == 1 + 4 + 2 * 8  # the verdict, the run's rungs, those of two steps
    assert outcomes(render_junit(comparison())) == {}


def test_what_diverged_fails_in_the_reports_own_words() -> None:
    text = render_junit(diverged())
    wanted = ["nest-ssl.verdict: verdict", "nest-ssl.forward: forward, step 0", "nest-ssl.gradients: gradients, step 0"]
    assert outcomes(text) == dict.fromkeys(wanted, "failure")
    verdict, forward, _ = (cases(text)[name].find("failure") for name in wanted)
    assert verdict is not None and forward is not None
    assert verdict.get("message") == "nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, forward, encoder.layers.1, output"
    assert "Follows from it: at step 0: 7 calls" in (verdict.text or "") and "make explain" in (verdict.text or "")
    assert forward.get("type") == "diverged" and "0.182317644" in (forward.text or "")


def test_another_experiment_fails_in_the_contract_and_nothing_else_is_judged() -> None:
    found = outcomes(render_junit(other_experiment(setting("config.seed", 42, 7))))
    assert found["nest-ssl.verdict: verdict"] == "error" and found["nest-ssl.contract: contract"] == "failure"
    assert set(found.values()) == {"error", "failure", "skipped"}
    assert [name for name, kind in found.items() if kind == "failure"] == ["nest-ssl.contract: contract"]


def test_too_little_compared_is_no_pass() -> None:
    made = comparison(verdict=Status.INCONCLUSIVE, exit_code=2)
    made.rung("loss").tallies[1].compared.clear()
    found = outcomes(render_junit(made))
    assert found == {"nest-ssl.verdict: verdict": "error", "nest-ssl.loss: loss, step 1": "skipped"}


def test_a_refusal_is_an_error_with_the_commands_own_line(tmp_path: Path) -> None:
    line = "damaged recording: outputs/nest/step_0/loss.pt differs from its SHA-256. Copy it again"
    write_junit(line, tmp_path)
    text = (tmp_path / "report.junit.xml").read_text()
    assert text == render_refusal(line)
    error = cases(text)["nest-ssl.verdict: verdict"].find("error")
    assert error is not None and (error.get("type"), error.get("message")) == ("refused", line)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("<testsuites name", '<testsuites skipped="0" name'), "testsuites has skipped"),
        ((' classname="nest-ssl.verdict"', ""), "testcase lacks classname"),
        (('type="diverged"', 'kind="diverged"'), "failure lacks type"),
        (('time="0"', 'time="none"'), "time=none"),
        (("</testcase>", "<skipped /></testcase>"), "testcase holds ['failure', 'skipped']"),
        (("</failure>", '</failure><failure type="again" />'), "a case with two outcomes"),
    ],
)
def test_what_readers_refuse_is_found(edit: tuple[str, str], said: str) -> None:
    text = render_junit(diverged())
    assert edit[0] in text and said in not_in_form(Xml.fromstring(text.replace(*edit, 1)))


@pytest.mark.parametrize("name", ["]]>", "<failure/>", '"&amp;', "a\x00b\x1b[31m", "\ud800", "日本\n- x"])
def test_whatever_a_recording_is_called_stays_text(name: str) -> None:
    made = diverged()
    made.candidate.label = name
    add(made, "loss", finding("loss", module=name))
    text = render_junit(made)
    text.encode()
    assert outcomes(text)["nest-ssl.loss: loss, step 0"] == "failure"


def test_a_jobs_page_gets_the_first_screen_and_keeps_what_was_there(tmp_path: Path) -> None:
    page = tmp_path / "summary"
    page.write_text("earlier\n")
    append_step_summary(diverged(), page)
    append_step_summary(comparison(), page)
    text = page.read_text()
    assert text.startswith("earlier\n# nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0")
    assert "## Rung by rung" in text and "train identically" in text and "## Provenance" not in text
