"""What programs read of us: AGENTS.md, the action and its example name commands, options and codes that exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nest_ssl.base import errors
from nest_ssl.cli.main import VERBS, dispatch
from tests.compare.builder import Plan, record

ROOT = Path(__file__).resolve().parents[2]
AGENTS = (ROOT / "AGENTS.md").read_text("utf-8")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
EXAMPLE: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "workflow-example.yml").read_text("utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def commands_of(text: str) -> list[str]:
    """Every command in code fences and code spans, one a line, with continued lines joined."""
    fences = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.strip() for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    return [line for line in [*lines, *spans] if line.startswith(("make ", "nest-ssl ", "scripts/"))]


@cache
def help_of(verb: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        dispatch([*verb.split(), "--help"])
    return said.getvalue()


def wrong(command: str) -> str:
    """What of a command does not exist; nothing where all of it does."""
    program, *words = shlex.split(command)
    program = "nest-ssl" if program.endswith("/nest-ssl") else program
    if program == "make":
        words = words[2:] if words[:1] == ["-C"] else words
        targets = [word for word in words if "=" not in word]
        names = [word.split("=")[0] for word in words if "=" in word]
        known = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
        missing = [word for word in targets if word not in known]
        return ", ".join(
            missing + [name for name in names if not re.search(rf"^{name} *\??:?=", MAKEFILE, re.MULTILINE)]
        )
    if program.startswith("scripts/"):
        return "" if (ROOT / program).is_file() else program
    if program != "nest-ssl" or not words or words[0] not in VERBS:
        return command
    verb = " ".join(words[:2]) if words[0] in ("ops", "map") else words[0]
    options = [word.split("=")[0] for word in words if word.startswith("-")]
    return ", ".join(option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(verb)))


@pytest.mark.parametrize("command", commands_of(AGENTS))
def test_a_command_of_agents_exists(command: str) -> None:
    assert wrong(command) == ""


@pytest.mark.parametrize(
    "command",
    ["make algin", "make align SIZES=tiny", "nest-ssl compare --tolerance 1", "nest-ssl check", "scripts/compare.sh",
     "nest-ssl ops diff --phases x", "python -m nest_ssl"],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert wrong(command) != ""


def test_agents_says_what_every_verb_of_a_comparison_is_for() -> None:
    named = {shlex.split(command)[1] for command in commands_of(AGENTS) if command.startswith("nest-ssl")}
    assert named == {*"compare explain replay ops bisect import map selftest bundle verify".split()} <= set(VERBS)
    assert len(AGENTS.splitlines()) < 80


def test_agents_has_every_exit_code() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", AGENTS, re.MULTILINE)}
    codes = {getattr(errors, name) for name in vars(errors) if name.startswith("EXIT_")} - {errors.EXIT_SIGNAL}
    assert rows == codes


def test_what_agents_names_of_the_report_is_in_its_schema() -> None:
    schema = json.loads((ROOT / "nest_ssl" / "report" / "report.schema.json").read_text("utf-8"))
    named = re.search(r"not the words: (.*?)\. Keys", AGENTS, re.DOTALL)
    assert named is not None
    keys = re.findall(r"`(\w+)`", named[1])
    assert len(keys) > 5 and [key for key in keys if key not in schema["properties"]] == []
    assert "`nest_ssl.recording`" in AGENTS and importlib.import_module("nest_ssl").recording


# --- the action -------------------------------------------------------------------------------------------------------


def script(step: dict[str, Any]) -> list[str]:
    """Its commands, with the place of the action left out."""
    return [
        line.replace('"$GITHUB_ACTION_PATH/', '"').strip() for line in step["run"].replace("\\\n", " ").splitlines()
    ]


def test_the_actions_commands_exist_and_take_every_input() -> None:
    used: set[str] = set()
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # an input as text in a script could be a command
        given = {name: re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value) for name, value in step.get("env", {}).items()}
        assert all(given.values())
        assert set(re.findall(r"\$([A-Z_]+)", step["run"])) - {"GITHUB_ACTION_PATH"} == given.keys()
        used |= {found[1] for found in given.values() if found}
        assert [wrong(command) for command in script(step) if command] == [""]
    assert used == ACTION["inputs"].keys()


def test_the_actions_defaults_are_the_commands() -> None:
    for name in ("reference", "candidate", "out", "steps"):
        default = re.escape(ACTION["inputs"][name]["default"])
        assert re.search(rf"--{name} [A-Z]+ .{{0,90}}\(default:? {default}\b", " ".join(help_of("compare").split()))


def test_the_examples_commands_and_inputs_exist() -> None:
    (job,) = EXAMPLE["jobs"].values()
    runs = [command for step in job["steps"] if "run" in step for command in script(step)]
    assert runs and [wrong(command) for command in runs] == [""] * len(runs)
    (own,) = (step for step in job["steps"] if step.get("uses") == "./")
    assert own["with"].keys() <= ACTION["inputs"].keys()
    kept = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))["with"]["path"].split()
    assert kept == [own["with"]["out"], own["with"]["bundle"]]
    assert EXAMPLE["permissions"] == {"contents": "read"}


class Workflow:
    """The action's steps run as a runner runs them: bash with these options, inputs as variables, a folder to work in.

    Args:
        inputs: as a workflow gives them; the action's defaults for the others.
        python: runs its program.
    """

    def __init__(self, workspace: Path, inputs: dict[str, str], python: str) -> None:
        self.workspace, self.place, self.page = workspace, workspace / "an action", workspace / "page.md"
        program = self.place / ".venv" / "nest" / "bin" / "nest-ssl"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{python}" -m nest_ssl.cli.main "$@"\n')
        program.chmod(0o755)
        (self.place / "Makefile").write_text("setup-nest:\n\t@touch made\n")
        self.inputs = {name: entry["default"] for name, entry in ACTION["inputs"].items()} | inputs

    def run(self, step: dict[str, Any]) -> int:
        given = {key: self.inputs[re.findall(r"inputs\.(\w+)", value)[0]] for key, value in step.get("env", {}).items()}
        places = {"GITHUB_ACTION_PATH": str(self.place), "GITHUB_STEP_SUMMARY": str(self.page)}
        script = self.workspace / "step.sh"
        script.write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        return subprocess.run(command, cwd=self.workspace, env={**os.environ, **given, **places}).returncode


@pytest.mark.slow
def test_the_actions_steps_do_what_they_say(tmp_path: Path, python: str) -> None:
    """With names that a shell would take apart; of two that diverged there is a report, a page and a bundle too."""
    record(tmp_path / "two words", Plan(steps=(0,)))
    record(tmp_path / "$(touch pwned)", Plan(name="port", steps=(0,), after_build=_louder))
    inputs = {"reference": "two words", "candidate": "$(touch pwned)", "out": "the; report", "bundle": "all of it.tar"}
    workflow = Workflow(tmp_path, inputs, python)
    setup, compare, bundle = ACTION["runs"]["steps"]
    assert workflow.run(setup) == 0 and (workflow.place / "made").exists()
    assert workflow.run(compare) == errors.EXIT_DIVERGED
    report = tmp_path / "the; report"
    assert "parts from" in workflow.page.read_text() and 'failures="0"' not in (report / "report.junit.xml").read_text()
    assert json.loads((report / "report.json").read_text())["exit_code"] == errors.EXIT_DIVERGED
    assert "!cancelled()" in bundle["if"]  # the failure before it does not keep it from running
    assert workflow.run(bundle) == 0 and (tmp_path / "all of it.tar").stat().st_size > 0
    assert not (tmp_path / "pwned").exists()


def _louder(model: Any) -> None:
    model.decoder.weight.data.mul_(2)


def test_every_script_of_a_workflow_is_shell() -> None:
    (job,) = EXAMPLE["jobs"].values()
    for step in [*ACTION["runs"]["steps"], *job["steps"]]:
        checked = subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")
