"""`nest-ssl VERB`: quick help, known verbs, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.cli import main as command
from nest_ssl.cli import train

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_verb_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert command.dispatch(argv) == 0
        text = capsys.readouterr().out
        assert all(f"nest-ssl {verb}" in text for verb in command.VERBS)


def test_a_misspelt_verb() -> None:
    with pytest.raises(UserError, match="no such verb: 'trian'. Did you mean train"):
        command.dispatch(["trian"])


def test_a_verb_is_its_files_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "main", len)
    assert command.dispatch(["train", "a", "b"]) == 2


def test_the_console_script_ends_with_the_verbs_code() -> None:
    done = subprocess.run([sys.executable, "-m", "nest_ssl.cli.main", "trian"], capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.startswith("error: no such verb") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", command.VERBS)
def test_each_verb_has_a_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.dispatch([verb, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: nest-ssl {verb} ")


@pytest.mark.parametrize("words", ["data", "compare", "gpu", "train nest", "train nemo"])
def test_a_usage_error_names_the_verb_as_it_was_called(words: str) -> None:
    with pytest.raises(UserError, match=f"bad usage: .*--nothing.* See nest-ssl {words} --help"):
        command.dispatch([*words.split(), "--nothing"])


@pytest.mark.parametrize("script", ["make_data.py", "compare_outputs.py", "train_nest.py"])
def test_a_script_names_itself(script: str) -> None:
    done = subprocess.run([sys.executable, f"scripts/{script}", "--nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.endswith(f"See {script} --help.\n")


@pytest.mark.parametrize("argv", [[], ["nem"], ["../x"]])
def test_which_trainer(argv: list[str]) -> None:
    with pytest.raises(UserError, match="no such trainer"):
        train.main(argv)


def test_mistakes_do_not_wait_for_torch() -> None:
    """`--help`, and everything that is wrong in the configuration by itself."""
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import train_nest, nest_ssl.cli.main\n"
        "from nest_ssl.cli.train import main\n"
        "from nest_ssl.base.errors import UserError\n"
        "for argv in (['--help'], ['seed=-1'], ['size=huge'], ['trainer.precision=13'], ['--nothing']):\n"
        "    try: main(['nest', *argv])\n"
        "    except (UserError, SystemExit): pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'librosa')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_a_misspelt_key_does_not_wait_for_hydra() -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import train_nest\n"
        "from nest_ssl.cli.train import main\n"
        "from nest_ssl.base.errors import UserError\n"
        "try: main(['nest', 'size=tiny', '+sead=7'])\n"
        "except UserError as error: print(error)\n"
        "print(*({'hydra', 'omegaconf', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "unknown key: sead. Did you mean seed?\n\n", done.stderr


def test_the_trainer_runs_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(ROOT / "scripts" / "train_nest.py")
    done = subprocess.run([sys.executable, str(tmp_path / "link.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "size=tiny run=full" in done.stdout, done.stderr


@pytest.mark.parametrize("line", ["nest-ssl comp", "nest-ssl compare --ref", "nest-ssl train ne"])
def test_a_shell_completes(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.dispatch(["completion", "bash"])
    words = line.split()
    program = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _nest_ssl; echo ${{COMPREPLY[@]}}"
    script = capsys.readouterr().out + program
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    expected = {"comp": "compare completion", "--ref": "--reference", "ne": "nest nemo"}
    assert done.stdout.split() == expected[words[-1]].split()
