"""The finished images: what is in them, what is not, what they share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pins import LOCKS, canonical, read_lock

from tests.docker.conftest import ROOT, sh

SUBJECTS = ["nemo", "nest"]


def inspect(image: str) -> dict[str, Any]:
    return json.loads(sh("docker", "image", "inspect", image).stdout)[0]


def inside(image: str, *command: str) -> str:
    """What a command says in a container without network."""
    entry, *arguments = command
    done = sh("docker", "run", "--rm", "--network", "none", "--entrypoint", entry, image, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_labels_tell_what_it_is(images: dict[str, str], torch_build: str, release: str, subject: str) -> None:
    config = inspect(images[subject])["Config"]
    labels = config["Labels"]
    assert labels["nest-ssl.torch"] == {"cpu": "2.13.0+cpu", "cuda": "2.13.0"}[torch_build]
    assert labels["nest-ssl.nemo"] == {"nemo": release, "nest": "none"}[subject]
    assert labels["nest-ssl.cuda"] == {"cpu": "", "cuda": "13.0.3.0"}[torch_build]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels["org.opencontainers.image.base.digest"])
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert config["WorkingDir"] == "/app"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_compiler_no_cache_no_tests(images: dict[str, str], subject: str) -> None:
    look = (
        "for tool in gcc cc g++ c++ clang make ld; do command -v $tool; done;"
        "find /root -name .cache; ls -d /build /wheels /var/lib/apt/lists/* /var/cache/apt/* /app/tests 2> /dev/null;"
        "true"
    )
    assert inside(images[subject], "sh", "-c", look) == ""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_it_holds_the_locked_versions_and_nothing_twice(
    images: dict[str, str], torch_build: str, release: str, subject: str
) -> None:
    """torch's layer and the trainer's own packages lie over each other."""
    lock = {"nemo": f"nemo-{release}", "nest": "nest"}[subject]
    files = [LOCKS / f"{name}-{torch_build}.lock" for name in ("torch", lock)] + [LOCKS / "build.lock"]
    locked = {(pin.name, pin.version) for file in files for pin in read_lock(file)}
    say = "from importlib.metadata import distributions as d; print(*sorted(x.name + '==' + x.version for x in d()))"
    found = [tuple(word.split("==")) for word in inside(images[subject], "python", "-W", "ignore", "-c", say).split()]
    found = [(canonical(name), version) for name, version in found if name != "nest_ssl"]
    assert len(found) == len(dict(found))
    assert set(found) <= locked


def test_only_one_has_nemo(images: dict[str, str]) -> None:
    find = "import importlib.util as u; print(u.find_spec('nemo') is not None)"
    assert [inside(images[subject], "python", "-c", find) for subject in SUBJECTS] == ["True", "False"]


def test_both_have_the_same_settings_and_share_base_python_and_torch(images: dict[str, str]) -> None:
    nemo, nest = (inspect(images[subject]) for subject in SUBJECTS)
    assert nemo["Config"]["Env"] == nest["Config"]["Env"]
    shared = [a for a, b in zip(nemo["RootFS"]["Layers"], nest["RootFS"]["Layers"], strict=False) if a == b]
    assert len(shared) >= 4


def test_secrets_stay_out_of_image_and_history(images: dict[str, str], tmp_path: Path, torch_build: str) -> None:
    """Everything after torch's layer is built again, with secrets that pip reads."""
    secret = "the-password-of-nobody"
    config = tmp_path / "pip.conf"
    config.write_text(f"# {secret}\n[global]\nextra-index-url = file:///nowhere/{secret}\n")
    settings = {"PIP_CONFIG": str(config), "TORCH_INDEX": f"file:///elsewhere/{secret}", "TORCH": torch_build}
    options = f"--no-cache-filter nest-packages --iidfile {tmp_path / 'id'}"
    done = sh("docker/images.sh", "nest", BUILD_ARGS=options, **settings)
    assert done.returncode == 0, done.stderr
    assert "elsewhere" in (ROOT / ".venv" / "image-nest.log").read_text(), "pip did not read the secret"
    image = (tmp_path / "id").read_text()
    history = sh("docker", "history", "--no-trunc", image).stdout + json.dumps(inspect(image))
    assert secret not in history
    look = f"grep -rsl {secret} /app /opt/venv/bin /etc /tmp /root; ls /run/secrets 2> /dev/null; true"
    assert inside(image, "sh", "-c", look) == ""


def test_the_default_user_is_not_root(images: dict[str, str]) -> None:
    entry = "/app/docker/entrypoint.sh"
    for subject in SUBJECTS:
        assert inside(images[subject], entry, "id", "-un") == "nest"


ALLOCATES = """
from pathlib import Path
from nest_ssl.run.allocator import keep_freed_memory
def megabytes():
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('RssAnon'))
    return int(line.split()[1]) // 1024
def kept():
    before = megabytes()
    b'x' * (100 << 20)
    return megabytes() - before > 50
print(kept(), keep_freed_memory(), kept())
"""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_trainer_keeps_freed_memory_there_too(images: dict[str, str], subject: str) -> None:
    """What the image sets of the allocator is no setting of the user's."""
    assert inside(images[subject], "python", "-c", ALLOCATES) == "False True True"
