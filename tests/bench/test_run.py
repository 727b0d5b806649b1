"""The bench on the CPU, the port in NeMo's place: its logic, from the command line to the page."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bench import explained, recorded, run
from nest_ssl.bench.measured import TRAINERS, Workers
from nest_ssl.bench.parts import PARTS
from nest_ssl.bench.results import load_results
from nest_ssl.bench.run import MEASURED, RECORDED, SECONDS, run_parts, share
from nest_ssl.bench.trainings import NO_TIME, Bench, Side
from nest_ssl.cli.gpu import main
from nest_ssl.selftest.cases import places, read_catalogue
from tests.test_planted_faults import STARTS

NARROW = "model.encoder.subsampling_conv_channels=4"
# Of what the parts train, whose size is not the subject.
SMALL = (NARROW, "model.encoder.d_model=16", "model.train_ds.batch_size=2", "model.validation_ds.batch_size=2",
         *STARTS, "model.masking.mask_prob=0.05")  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, python: str) -> Bench:
    port = Side(python, "scripts/train_nest.py")
    place = Bench({"nemo": port, "nest": port}, "cpu", "tiny", tmp_path / "work", batches=((2, 2.0),))
    place.folder.mkdir()
    return place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "pariti"], "no such part.*pariti.*Did you mean parity"),
        (["--nemo-python", "/nowhere/python"], "no such Python: /nowhere/python"),
        (["--batches", "8by16"], "no list of UTTERANCESxSECONDS"),
        (["--batches", "0x16"], "no list of UTTERANCESxSECONDS"),
        ([], "no GPU that torch can use"),
    ],
)
def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_what_is_planted_is_in_the_catalogue_and_expected_as_there(bench: Bench) -> None:
    cases = {case.name: case for case in read_catalogue()}
    planted = [pair for pair in explained.pairs(bench) if pair.candidate.planted]
    assert len(planted) > 2
    for pair in planted:
        case = cases[pair.candidate.planted]
        assert (pair.verdict, places(pair.born)) == (case.verdict, places(case.born))


def test_time_is_shared_among_the_parts_that_are_to_come(bench: Bench) -> None:
    assert SECONDS.keys() == {*RECORDED, *MEASURED}
    assert share(bench, ["parity"], ["speed"]).deadline == float("inf")
    soon = replace(bench, deadline=time.monotonic() + 295)
    assert 160 < share(soon, ["parity"], ["speed"]).seconds_left <= 165
    assert share(soon, ["speed"], []) == soon


def test_parts_that_fail_or_have_no_time_are_said_and_the_others_are_kept(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page, found = tmp_path / "gpu.json", tmp_path / "gpu.md", iter(range(9))
    drawn = {"generator": "torch_cpu", "same": True, "parted": None, "kinds": {}}

    def generator(bench: Bench) -> list[dict[str, Any]]:
        calls = next(found)
        return [{"name": "one", **drawn, "calls": [calls + 1] * 2} if calls < 1 else {"name": "one", "error": NO_TIME}]

    def broken(bench: Bench) -> list[dict[str, Any]]:
        raise KeyError("rungs")

    monkeypatch.setitem(run.RECORDED, "generator", generator)
    monkeypatch.setitem(run.RECORDED, "resume", broken)
    late = replace(bench, deadline=time.monotonic() + 10)
    assert run_parts(late, ["generator", "resume", "sync"], file, page) == 1
    said = capsys.readouterr().out
    assert "generator: 1 rows" in said and "resume: KeyError: 'rungs'" in said and f"one step: nest: {NO_TIME}" in said
    assert run_parts(late, ["generator"], file, page) == 1
    parts = load_results(file).parts
    assert parts["generator"].rows[0]["calls"] == [1, 1] and parts["generator"].tried.endswith(NO_TIME)
    assert all(row["error"].endswith(NO_TIME) for row in parts["sync"].rows) and not parts["resume"].tried
    text = page.read_text()
    assert f"{NO_TIME}. What stands here is of the run above." in text and "not had (KeyError: 'rungs')" in text
    assert 'make test-gpu ARGS="--parts sync --device cpu"' in text


LATE = f"nemo: {NO_TIME}"


@pytest.mark.parametrize(
    ("errors", "why"),
    [
        ([], NO_TIME),
        ([LATE, f"nest: {NO_TIME}"], LATE),
        ([LATE, f"nemo: exit code 1: a.; nest: {NO_TIME}"], f"nemo: exit code 1: a.; nest: {NO_TIME}"),
        (["nest: exit code 3: Check it.", LATE], "nest: exit code 3: Check it"),
    ],
)
def test_what_an_earlier_run_found_stays_where_nothing_can_be_had(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], why: str
) -> None:
    """And a failure is not called a lack of time. Where the earlier run had nothing either, the last one is said."""
    file, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    drawn = {"generator": "torch_cpu", "same": True, "parted": None, "kinds": {}, "calls": [1, 1]}
    good, bad = {"name": "one", **drawn}, [{"name": "one", "error": error} for error in errors]
    for rows in ([{"name": "one", "error": "broken"}], [{"name": "one", "error": "again"}], [good], bad):
        monkeypatch.setitem(run.RECORDED, "generator", lambda bench, rows=rows: rows)
        run_parts(bench, ["generator"], file, page)
        part = load_results(file).parts["generator"]
        assert part.rows == ([good] if rows is bad else rows) and bool(part.tried) == (rows is bad)
    assert part.tried.partition(": ")[2] == why
    assert f": {why}. What stands here is of the run above." in page.read_text()


def test_a_part_that_has_little_time_left_asks_for_nothing(bench: Bench) -> None:
    with Workers(replace(bench, deadline=time.monotonic() + 10)) as workers:
        workers.start(("nest", "32"))
        assert workers.ask("nest", "32", do="limits") == {"error": f"nest: {NO_TIME}"}
    assert not list(bench.folder.glob("worker*"))


@pytest.mark.parametrize("words", [(), ("--size", "small", "--batches", "4x3", "--results", "{}/x.json")])
def test_a_dry_run_is_of_the_tiny_model_and_leaves_the_results_of_a_gpu(
    words: tuple[str, ...], python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(run, "run_parts", lambda *arguments: given.extend(arguments) or 0)
    monkeypatch.setattr("nest_ssl.cli.gpu.WORK", tmp_path)
    arguments = ["--device", "cpu", "--quick", "--nemo-python", python, "--nest-script", "tests/replayed.py"]
    assert main([*arguments, *(word.format(tmp_path) for word in words)]) == 0
    bench, _, file, page = given
    assert (bench.size, bench.batches) == (("small", ((4, 3.0),)) if words else ("tiny", ((2, 2.0),)))
    assert file == (tmp_path / "x.json" if words else tmp_path / "outputs" / "gpu.json")
    assert page == tmp_path / "outputs" / "gpu.md" and bench.quick and bench.sides["nest"].script == "tests/replayed.py"
    assert recorded._filled(bench, "{size}, {long}, {last}") == f"{bench.size}, 6, 5"


def test_no_two_trainings_of_evidence_have_one_folder(bench: Bench) -> None:
    trained = {one for pair in explained.pairs(bench) for one in (pair.reference, pair.candidate)}
    assert bench.size == "tiny" and len({one.folder(bench) for one in trained}) == len(trained) > 6


@pytest.mark.slow
def test_recorded_parts(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same side twice is identical; the CPU is as the CPU; and a part that differs gives exit code 1."""
    for name in ("FULL", "RESUMED"):
        monkeypatch.setattr(recorded, name, (*getattr(recorded, name), *SMALL))
    plan = {"tiny, full, 2 steps": (recorded.TINY, *recorded.FULL, "batches=2", "save_steps=1")}
    monkeypatch.setattr(recorded, "PARITY", plan)
    monkeypatch.setattr(recorded, "DEVICES", {"as it is": SMALL})
    file, document = tmp_path / "gpu.json", tmp_path / "gpu.md"
    assert run_parts(bench, ["parity", "generator", "cpu-gpu", "resume"], file, document) == 0
    parts = json.loads(file.read_text())["parts"]
    (row,) = parts["parity"]["rows"]
    assert row["verdict"] == "identical" and row["tensors"] == row["tensors_same"] > 500
    assert parts["resume"]["rows"][0]["differing"] == 0 and parts["resume"]["rows"][0]["values"] > 1000
    assert parts["resume"]["rows"][1]["verdict"] == "identical"
    tiny, _ = parts["generator"]["rows"]
    assert tiny["generator"] == "torch_cpu" and tiny["same"] and tiny["kinds"]["dropout"][0] > 8
    assert parts["cpu-gpu"]["rows"][0]["rungs"]["draws"] == ["identical", 0]
    assert "| tiny, full, 2 steps |" in document.read_text()
    assert list(bench.folder.glob("parity*/*.out")) and not list(bench.folder.glob("parity*/*/"))

    plan["tiny, full, 2 steps"] += ("seed=x",)  # both fail, and that is no agreement
    assert run_parts(bench, ["parity"], file, document) == 1
    parts = load_results(file).parts
    assert "not supported: x: seed" in parts["parity"].tried and parts["parity"].rows == [row]
    assert "resume" in parts  # what another part found stays


@pytest.mark.slow
def test_graphs_are_proved_by_a_last_step_without(
    bench: Bench, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays that are not the encoder's steps make the last step another; so does nothing that was replayed fail."""
    starts = Path(__file__).parents[1] / "against_nemo" / "starts" / "train.json"
    three = [json.loads(line) for line in starts.read_text().splitlines()[:3]]  # which are all of them: one shape
    lines = [{**line, "audio_filepath": str((starts.parent / line["audio_filepath"]).resolve())} for line in three]
    (manifest := tmp_path / "three.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one_shape = (f"model.train_ds.manifest_filepath={manifest}", "model.train_ds.batch_size=3", "batches=6",
                 "save_steps=5", "trainer.check_val_every_n_epoch=100", "model.masking.mask_prob=0.05")  # fmt: skip
    plan = {
        "six steps, graphs": (
            recorded.TINY,
            *recorded.FULL,
            *one_shape,
            *SMALL[:2],
            "record=boundaries",
            recorded.GRAPHS,
        )
    }
    monkeypatch.setattr(recorded, "PARITY", plan)
    faulty = tmp_path / "faulty.py"
    faulty.write_text("from nest_ssl.model.encoder import graphs\nfrom tests.replayed import main\n"
                      "graphs.restore_generators = lambda states: None\nmain()\n")  # fmt: skip
    found = []
    for script in ("scripts/train_nest.py", "tests/replayed.py", str(faulty)):
        sides = {"nemo": bench.sides["nemo"], "nest": Side(python, script)}
        place = Bench(sides, "cpu", "tiny", bench.folder / Path(script).stem)
        code = run_parts(place, ["parity"], tmp_path / "gpu.json", tmp_path / "gpu.md")
        (row,) = json.loads((tmp_path / "gpu.json").read_text())["parts"]["parity"]["rows"]
        found.append((code, row["verdict"], row["replayed"]))
    assert found == [(1, "identical", 0), (0, "identical", 3), (1, "diverged", 3)]


@pytest.mark.slow
def test_measured_parts(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nest_ssl.bench.measured.MODES", {"fp32": ("32", "deterministic", False, tuple(TRAINERS))})
    file, document = tmp_path / "gpu.json", tmp_path / "gpu.md"
    code = run_parts(bench, ["repeat", "sync", "speed", "recorder"], file, document)
    parts = json.loads(file.read_text())["parts"]
    assert [row.get("error") for part in parts.values() for row in part["rows"] if "error" in row] == [] and code == 0
    for row in parts["repeat"]["rows"]:
        assert row["times"] == 5 and row["parameter_gradients"][:2] == [88, 0]
    speed = {row["name"]: row for row in parts["speed"]["rows"]}
    assert speed["fp32"]["nest"]["step_ms"] > 0 and speed["fp32"]["nemo"]["forward_ms"] > 0
    assert speed["fp32"]["fast"]["step_ms"] > 0 and speed["fp32"]["graphs"]["step_ms"] > 0
    assert speed["parts"]["parts"].keys() == PARTS.keys() and speed["arithmetic"]["flops"] > 10**8
    recorder = {row["name"]: row for row in parts["recorder"]["rows"]}
    assert recorder["modules"]["bytes"] > recorder["boundaries"]["bytes"] > recorder["digest"]["bytes"] > 10**4
    assert recorder["boundaries"]["bytes"] > recorder["boundaries without state"]["bytes"] > recorder["digest"]["bytes"]
    assert recorder["modules"]["written"] >= recorder["modules"]["seconds"] > 0 and recorder["limits"]["write_gbs"] > 0
