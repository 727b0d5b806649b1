"""What looks like a secret does not travel with a recording; what does not, travels as it is."""

from __future__ import annotations

import pytest
import yaml

from nest_ssl.record.secrets import is_secret, masked, masked_command, masked_yaml


@pytest.mark.parametrize("name", ["password", "wandb.api_key", "apiKey", "--hf-token", "AWS_SECRET_ACCESS_KEY", "key"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["tokenizer", "num_tokens", "monkey", "keys.value", "optimizer.lr", "", "audio_key",
                                  "no_masked_token", "use_start_end_token", "model.pad_token"])  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("command", "safe"),
    [
        (["a.password=x"], ["a.password=***"]),
        (["+wandb.api_key=a=b c"], ["+wandb.api_key=***"]),
        (["--token", "abc", "seed=1"], ["--token", "***", "seed=1"]),
        (["--token=abc"], ["--token=***"]),
        (["--token", "--verbose"], ["--token", "--verbose"]),
        (["logger={api_key:abc,name:x}"], ["logger={api_key:***,name:x}"]),
        (["logger={'password': abc}"], ["logger={'password': ***}"]),
        (["data=https://me:pw@host/x"], ["data=https://me:***@host/x"]),
        (["model.use_start_end_token=", "seed=42", "x=https://host:80/a"], None),
    ],
)
def test_a_command_line(command: list[str], safe: list[str] | None) -> None:
    assert masked_command(command) == (safe or command)


def test_settings() -> None:
    settings = {"logger": {"api_key": "abc", "name": "x"}, "tokens": [1], "use_token": True, "secret": ["a", 3]}
    assert masked(settings) == {
        "logger": {"api_key": "***", "name": "x"}, "tokens": [1], "use_token": True, "secret": ["***", 3],
    }  # fmt: skip


def test_a_configuration_without_secrets_stays_to_the_letter() -> None:
    text = "seed: 42   # the seed\nno_masked_token: nan\nmodel: {lr: 1e-3}\n"
    assert masked_yaml(text) == text
    assert yaml.safe_load(masked_yaml(text + "password: x\n")) == {**yaml.safe_load(text), "password": "***"}
