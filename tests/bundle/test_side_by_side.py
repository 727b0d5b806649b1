"""The two trainers of `make align`, at once: where, what is shown, and how they end. Stand-ins train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import side_by_side
import torch
from side_by_side import MEMORY, decide, free_memory, usable_cores

from nest_ssl.model.models import model_of
from nest_ssl.run import doctor
from nest_ssl.run.command_line import read_command_line

ROOT = Path(__file__).resolve().parents[2]
TRAINER = """\
import os, pathlib, signal, sys, time
name, seconds, code = sys.argv[1:4]
print(f"{name}: trained", flush=True)
print("note: seen by both" if "NEST_SSL_MEETING" in os.environ else "note: alone", file=sys.stderr)
pathlib.Path(name).write_text(str(os.getpid()))
if "says" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(name + " was ended").touch(), sys.exit(143)))
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: None)
try:
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
sys.exit(int(code))
"""
Command = Callable[..., list[str]]
Start = Callable[[list[str]], subprocess.Popen[str]]
Machine = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`command("1", nemo=(2.0, 0), nest=(0.1, 3))`: seconds and exit code of each."""
    (tmp_path / "trainer.py").write_text(TRAINER)

    def made(parallel: str, *more: str, words: str = "", **trainers: tuple[float, int]) -> list[str]:
        made = [sys.executable, str(ROOT / "scripts" / "side_by_side.py"), parallel]
        for name, facts in trainers.items():
            python = [sys.executable, "trainer.py", name, *map(str, facts), *more]
            settings = ["size=tiny", "trainer.accelerator=cpu"]
            made += ["--and", str(ROOT / "scripts" / "with_words.sh"), words, *python, *settings]
        return made

    return made


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Both in a session of their own, as of a terminal; none of it outlives the test."""
    started = []

    def run(command: list[str]) -> subprocess.Popen[str]:
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  which a job's shell ignores
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=heard,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def await_both(folder: Path) -> list[int]:
    """The processes of both trainers, when they run."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [path.read_text() for name in ("nemo", "nest") if (path := folder / name).exists()]
        if len(found) == 2 and all(found):
            return [int(text) for text in found]
        time.sleep(0.02)
    raise AssertionError("they did not start")


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_both_run_at_once_and_each_line_says_whose_it_is(start: Start, command: Command, tmp_path: Path) -> None:
    process = start(command("1", nemo=(60, 0), nest=(60, 0)))
    await_both(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["align: trains both at once: PARALLEL=1", "nemo: trained", "nest: trained"]
    heads = ["nemo: interrupted", "nemo: note: seen by both", "nest: interrupted", "nest: note: seen by both"]
    assert sorted(err.splitlines()) == heads


def test_one_behind_the_other_has_the_terminal_to_itself(start: Start, command: Command) -> None:
    process = start(command("0", nemo=(0, 0), nest=(0, 4)))
    out, err = process.communicate(timeout=30)
    lines = ["align: trains one behind the other: PARALLEL=0", "nemo: trained", "nest: trained"]
    assert (process.returncode, out.splitlines()) == (4, lines)
    assert err.splitlines() == ["note: alone"] * 2


def test_nothing_is_begun_behind_one_that_fails(start: Start, command: Command, tmp_path: Path) -> None:
    process = start(command("0", nemo=(0, 3), nest=(0, 0)))
    process.communicate(timeout=30)
    assert process.returncode == 3 and not (tmp_path / "nest").exists()


@pytest.mark.parametrize("failed", ["nemo", "nest"])
def test_one_that_fails_ends_the_other_and_gives_its_exit_code(
    start: Start, command: Command, tmp_path: Path, failed: str
) -> None:
    trainers = {"nemo": (60.0, 0), "nest": (60.0, 0), failed: (1.0, 3)}
    process = start(command("1", **trainers))
    both, (_, err) = await_both(tmp_path), process.communicate(timeout=30)
    other = "nest" if failed == "nemo" else "nemo"
    assert process.returncode == 3
    assert f"align: {failed} ended with exit code 3, so {other} is ended too\n" in err
    assert f"{other}: interrupted\n" in err and not any(map(is_alive, both))


def test_one_that_does_not_end_is_killed(start: Start, command: Command, tmp_path: Path) -> None:
    words = command("1", "stubborn", nemo=(1, 3), nest=(60, 0))
    patched = "import sys, side_by_side; side_by_side.GRACE = 0.5; sys.exit(side_by_side.main(sys.argv[1:]))"
    process = start(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); {patched}", *words[2:]]
    )
    both = await_both(tmp_path)
    process.communicate(timeout=30)
    assert process.returncode == 3 and not any(map(is_alive, both))


@pytest.mark.parametrize("parallel", ["0", "1"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_none_behind(
    start: Start, command: Command, tmp_path: Path, parallel: str, number: signal.Signals, code: int
) -> None:
    """Ctrl-C comes to all of the terminal; SIGTERM, of make, here alone."""
    process = start(command(parallel, nemo=(60 if parallel == "1" else 0, 0), nest=(60, 0)))
    both = await_both(tmp_path)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == code and not any(map(is_alive, both))


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such signal")
@pytest.mark.parametrize("parallel", ["0", "1"])
def test_killed_it_leaves_none_behind(start: Start, command: Command, tmp_path: Path, parallel: str) -> None:
    """They are given SIGTERM, behind which a trainer removes what it has half written."""
    process = start(command(parallel, "says", nemo=(60 if parallel == "1" else 0, 0), nest=(60, 0)))
    await_both(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    ended = [tmp_path / f"{name} was ended" for name in (["nemo", "nest"] if parallel == "1" else ["nest"])]
    while not all(path.exists() for path in ended):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_reader_that_has_gone_changes_no_exit_code(start: Start, command: Command) -> None:
    process = start(
        ["bash", "-c", 'set -o pipefail; "$@" 2>&1 | true', "-", *command("1", nemo=(0.3, 0), nest=(0.3, 3))]
    )
    process.communicate(timeout=30)
    assert process.returncode == 3


# --- Where ------------------------------------------------------------------------------------------------------------


def commands(*settings: str, nemo: str = "", nest: str = "") -> list[list[str]]:
    known = ["size=large", "trainer.accelerator=cpu", *settings]
    sides = {"nemo": nemo, "nest": nest}
    return [
        ["with_words.sh", words, "python", "train.py", *known, f"output_dir=out/{name}"]
        for name, words in sides.items()
    ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    def have(cores: int = 2, gigabytes: float | None = 15.0, threads: str = "1", gpu: bool = False) -> None:
        monkeypatch.setattr(side_by_side, "usable_cores", lambda: cores)
        monkeypatch.setattr(side_by_side, "free_memory", lambda: gigabytes)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(side_by_side, "GPUS", ("/",) if gpu else ())

    return have


@pytest.mark.parametrize(
    ("has", "words", "why"),
    [
        ({}, {}, "2 cores, and 15.0 GB of memory for 15.0. PARALLEL=0 trains one behind the other"),
        ({"cores": 1}, {}, "2 cores are wanted, and 1 may be used."),
        ({"cores": 3, "threads": "2"}, {}, "4 cores are wanted, and 3 may be used."),
        ({"gigabytes": 14.9}, {}, "15.0 GB of memory are wanted, and 14.9 GB are free."),
        ({"gigabytes": 0}, {"nest": "size=tiny"}, "8.7 GB of memory are wanted, and 0.0 GB are free."),
        ({"gigabytes": None}, {}, "15.0 GB of memory are wanted, and how much is free is not known here."),
        ({"gpu": True}, {}, "2 cores, and 15.0 GB"),  # DEVICE=cpu
        ({}, {"nest": "nemo=out/nemo"}, "nemo=out/nemo is of the other's folder."),
        (
            {},
            {"nest": "+init_from_nemo_model.a.path=out/nemo/x.nemo"},
            "init_from_nemo_model.a.path=out/nemo/x.nemo is",
        ),
        ({}, {"nemo": f"init_from_ptl_ckpt={os.path.abspath('out/nest/x.ckpt')}"}, "init_from_ptl_ckpt="),
        ({}, {"nest": "nemo=out/../out/nemo"}, "nemo=out/../out/nemo is of the other's folder."),
        ({}, {"nest": "nemo=2.7.3"}, "2 cores, and 15.0 GB"),
        (
            {},
            {"nemo": "'model.train_ds.batch_size=8' x=1"},
            "what memory model.train_ds.batch_size=8 takes is not known.",
        ),
        ({}, {"nest": "++trainer.precision=64-true"}, "what memory trainer.precision=64-true takes is not known."),
        ({}, {"nest": "model={train_ds:{num_workers:2}}"}, "what memory model={train_ds:{num_workers:2}} takes is not"),
        ({}, {"nest": "--config-path=x"}, "what memory --config-path=x takes is not known."),
        ({}, {"nemo": "operators=true save_steps=0,1,2"}, "2 cores, and 15.0 GB"),
        ({}, {"nemo": "size=huge"}, "what memory size=huge takes is not known."),
        ({}, {"nemo": "a='b"}, "a quote is not closed"),
    ],
)
def test_room_decides(machine: Machine, has: dict[str, float], words: dict[str, str], why: str) -> None:
    machine(**has)
    at_once, said = decide("", commands(**words))
    assert said.startswith(why)
    assert at_once == why.startswith("2 cores, and")
    if "wanted" in why or "known" in why or "folder" in why:
        assert said.endswith(" PARALLEL=1 trains both at once all the same")


@pytest.mark.parametrize(
    ("device", "gpu", "refused"), [("auto", True, True), ("gpu", False, True), ("auto", False, sys.platform != "linux")]
)
def test_a_gpu_is_not_shared(machine: Machine, device: str, gpu: bool, refused: bool) -> None:
    machine(gpu=gpu)
    at_once, why = decide("", commands(f"trainer.accelerator={device}"))
    assert (not at_once, why.startswith("a GPU is not shared")) == (refused, refused)


def test_ranks_want_as_much_each(machine: Machine) -> None:
    machine(cores=4, gigabytes=29)
    assert decide("", commands("trainer.devices=2"))[1].startswith("30.0 GB of memory are wanted")
    machine(cores=3, gigabytes=30)
    assert decide("", commands("trainer.devices=2"))[1].startswith("4 cores are wanted")


@pytest.mark.parametrize("asked", ["0", "1"])
def test_what_is_asked_for_is_done(machine: Machine, asked: str) -> None:
    machine(cores=1, gigabytes=0, gpu=True)
    assert decide(asked, commands(nemo="a='b")) == (asked == "1", f"PARALLEL={asked}")


def test_what_was_measured_has_room() -> None:
    """GB that NeMo took at large, RUN=full; a twentieth more is no surprise."""
    assert MEMORY["large"] >= 1.05 * 7.1


@pytest.mark.parametrize("size", MEMORY)
def test_the_memory_of_a_size_goes_with_what_doctor_says(size: str) -> None:
    """For RUN=full and the practice data: 8 utterances of 6 s."""
    cfg = read_command_line("nest", [f"size={size}"])
    with torch.device("meta"):
        parameters = sum(one.numel() for one in model_of(cfg.model, cfg.nemo).parameters())
    needed = doctor.reckoned_memory(cfg, parameters, 8, 6.0) / 1e9
    assert needed <= MEMORY[size] <= 1.5 * needed + 1.2


def test_a_group_of_processes_may_be_limited(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert free_memory(tmp_path) is None and usable_cores(tmp_path) == usable_cores()
    put("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:   8000 kB\nHugePages_Total: 0\n")
    assert free_memory(tmp_path) == 0.008192
    put("sys/fs/cgroup/memory.max", "max\n")
    put("sys/fs/cgroup/memory.current", "3000000\n")
    put("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 1000000\n")
    put("sys/fs/cgroup/cpu.max", "max 100000\n")
    assert free_memory(tmp_path) == 0.008192 and usable_cores(tmp_path) == usable_cores()
    put("sys/fs/cgroup/memory.max", "5000000\n")
    put("sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert free_memory(tmp_path) == 0.003 and usable_cores(tmp_path) == 1
    put("proc/self/cgroup", "1:name=systemd:/x\n0::/jobs/7\n")  # of a cluster: its own, and the one round it
    assert free_memory(tmp_path) == 0.003
    put("sys/fs/cgroup/jobs/memory.max", "2000000\n")
    put("sys/fs/cgroup/jobs/memory.current", "1500000\n")
    put("sys/fs/cgroup/jobs/memory.stat", "inactive_file 0\n")
    put("sys/fs/cgroup/jobs/7/memory.max", "max\n")
    assert free_memory(tmp_path) == 0.0005
