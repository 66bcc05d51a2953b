"""`chargegate config` and `chargegate keys`: what they print can be used."""

import base64
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chargegate import config
from chargegate.keys import AccessKeys

Run = Callable[..., Any]

SECRET = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def test_what_is_shown_is_what_is_in_effect(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "chargegate.toml").write_text('data_dir = "elsewhere"\n[callback]\nallowed_networks = ["10.0.0.0/8"]\n')
    monkeypatch.setenv("CHARGEGATE_SERVER__PORT", "9000")
    expected = msgspec.to_builtins(config.load())
    assert expected["server"]["port"] == 9000
    assert tomllib.loads(run("config", "show").out) == expected
    assert run("config", "show", "--json").json() == expected


def test_secrets_are_hidden(run: Run, folder: Path) -> None:
    (folder / "chargegate.toml").write_text(
        f'[security]\nencryption_keys = ["{SECRET}"]\ntoken_hash_key = "{SECRET}"\n'
        f'[callback]\nsigning_secrets = ["whsec_{SECRET}"]\n'
    )
    for arguments in (["show"], ["show", "--json"]):
        out = run("config", *arguments).out
        assert SECRET not in out
        assert out.count("***") == 3


@pytest.mark.parametrize("given", [[], ["--config", "other.toml"]])
def test_check_names_the_file(run: Run, folder: Path, given: list[str]) -> None:
    (folder / "chargegate.toml").touch()
    (folder / "other.toml").touch()
    file = given[-1] if given else "chargegate.toml"
    assert run("config", "check", *given).out == f"ok: {file}\n"
    assert run("config", "check", "--json", *given).json() == {"status": "ok", "file": file}


def test_check_without_a_file(run: Run) -> None:
    assert run("config", "check", "--json").json() == {"status": "ok", "file": None}


def test_the_file_can_be_named_in_the_environment(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.toml").write_text("server.port = 9001\n")
    monkeypatch.setenv("CHARGEGATE_CONFIG", "other.toml")
    assert run("config", "show", "--json").json()["server"]["port"] == 9001


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('server.host = "0.0.0.0"', "security.api_keys"),
        ('server.host = "::"', "security.api_keys"),
        ('authorization.acl_file = "missing.csv"', "authorization.acl_file: missing.csv: No such file"),
        ('authorization.acl_file = "drivers.csv"', "authorization.acl_file: drivers.csv: line 3: blocked: "),
    ],
)
def test_check_refuses_what_serve_refuses(run: Run, folder: Path, token: str, content: str, named: str) -> None:
    (folder / "drivers.csv").write_text(f"driver_token,blocked\n{token},no\n{token}2,perhaps\n")
    (folder / "chargegate.toml").write_text(content)
    results = [run(*command) for command in (["config", "check"], ["serve"])]
    for result in results:
        assert (result.code, result.out) == (1, "")
        assert named in result.err
        assert token not in result.err
    (folder / "drivers.csv").write_text(f"driver_token,blocked\n{token},no\n")
    (folder / "chargegate.toml").write_text('authorization.acl_file = "drivers.csv"\n')
    assert run("config", "check").code == 0


@pytest.mark.parametrize("role", ["client", "admin"])
def test_a_new_key_and_the_line_that_lets_it_in(run: Run, role: str) -> None:
    made = run("keys", "create", "--role", role, "--json").json()
    assert set(made) == {"role", "key", "hash"}
    found = AccessKeys([made["hash"]]).find(made["key"])
    assert found is not None
    assert found.role == role == made["role"]


def test_a_key_for_people_is_shown_once_with_its_line(run: Run) -> None:
    out = run("keys", "create", "--role", "client").out
    assert "once" in out
    line = next(line for line in out.splitlines() if "sha256" in line)
    key = next(line.strip() for line in out.splitlines() if line.strip().startswith("cg_client_"))
    assert AccessKeys([json.loads(line)]).find(key)
