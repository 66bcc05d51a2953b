"""Settings as deployments give them: variables that others put beside ours, line ends, secrets in files; and the files
that the service trusts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trying import first_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

COMMAND = str(Path(sys.executable).with_name("chargegate"))
KEY = base64.b64encode(bytes(range(32))).decode()
SECRET = "whsec_" + KEY
TOKEN = "listed-driver-0123456789"
KUBERNETES = {
    "CHARGEGATE_PORT": "tcp://10.0.0.7:8080",
    "CHARGEGATE_SERVICE_HOST": "10.0.0.7",
    "CHARGEGATE_SERVICE_PORT": "8080",
    "CHARGEGATE_SERVICE_PORT_HTTP": "8080",
    "CHARGEGATE_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "CHARGEGATE_PORT_8080_TCP_ADDR": "10.0.0.7",
    "CHARGEGATE_PORT_8080_TCP_PROTO": "tcp",
    "CHARGEGATE_SERVER": "x",
    "CHARGEGATE_QUEUE": "redis://elsewhere",
    "CHARGEGATE_ENCRYPTION_KEY": "not ours",
    "CHARGEGATE_API_KEY": "not ours",
    "CHARGEGATE_WORKER_SERVICE_HOST": "10.0.0.8",
    "CHARGEGATE_": "",
}


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=plain | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def shown(folder: Path, **environ: str) -> dict[str, Any]:
    result = run(folder, "config", "show", "--json", **environ)
    assert (result.returncode, result.stderr) == (0, "")
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), line
    assert KEY not in line
    assert TOKEN not in line


def test_variables_of_others_are_ignored(service: Callable[..., Service], receiver: Site) -> None:
    running = service(environ=KUBERNETES)
    assert running.finished(running.ask(receiver.url()))["status"] == "COMPLETED"


def test_a_key_without_a_section_is_set_as_ever(tmp_path: Path) -> None:
    assert shown(tmp_path, CHARGEGATE_DATA_DIR="elsewhere")["data_dir"] == "elsewhere"


@pytest.mark.parametrize(
    "name",
    [
        "CHARGEGATE_SERVER__PROT", "CHARGEGATE_SERVICE__HOST", "CHARGEGATE___X", "CHARGEGATE_QUEUE__URL__X",
        "CHARGEGATE_SERVER__PORT_FILE", "CHARGEGATE_DATA_DIR__FILE", "CHARGEGATE_TEST__X",
    ],
)  # fmt: skip
def test_a_variable_with_a_section_and_no_key_is_named(tmp_path: Path, name: str) -> None:
    refused(run(tmp_path, "config", "check", **{name: "1"}), name)


@pytest.mark.parametrize("margin", ["\n", " \t\r\n"])
def test_white_space_is_dropped_everywhere(service: Callable[..., Service], receiver: Site, margin: str) -> None:
    """A newline at the end of ``data_dir`` must not lead to another, empty database."""
    running = service(
        started=False, data_dir="data" + margin, callback__allowed_networks=[margin + "127.0.0.0/8" + margin]
    )
    running.start()
    asked = running.ask(receiver.url())
    assert running.finished(asked)["status"] == "COMPLETED"
    assert running.stop() == 0
    assert running.data.is_dir()
    environ = {
        "CHARGEGATE_DATA_DIR": f"{running.data}{margin}",
        "CHARGEGATE_SERVER__PORT": f"{margin}9000{margin}",
        "CHARGEGATE_LOGGING__LEVEL": f"error{margin}",
        "CHARGEGATE_CALLBACK__ALLOWED_NETWORKS": f"10.0.0.0/8 {margin}, fd00::/8{margin}",
        "CHARGEGATE_CONFIG": f"chargegate.toml{margin}",
    }
    values = shown(running.folder, **environ)
    assert values["data_dir"] == str(running.data)
    assert values["server"]["port"] == 9000
    assert values["logging"]["level"] == "error"
    assert values["callback"]["allowed_networks"] == ["10.0.0.0/8", "fd00::/8"]


def test_every_secret_may_be_in_a_file(service: Callable[..., Service], receiver: Site) -> None:
    made = service(started=False)
    printed = json.loads(run(made.folder, "keys", "create", "--role", "admin", "--json").stdout)
    line = next(text for text in printed.values() if "sha256:" in str(text))
    secrets = made.folder / "secrets"
    secrets.mkdir()
    contents = {
        "SECURITY__API_KEYS": line + "\n",
        "SECURITY__ENCRYPTION_KEYS": f"{KEY}\n",
        "SECURITY__TOKEN_HASH_KEY": f"{KEY}\r\n",
        "CALLBACK__SIGNING_SECRETS": f"{SECRET}\n{SECRET}\n",
        "DATABASE__URL": "sqlite\n",
        "QUEUE__URL": " sqlite\n",
    }
    environ = {}
    for name, content in contents.items():
        (secrets / name).write_text(content)
        environ[f"CHARGEGATE_{name}_FILE"] = f"secrets/{name}\n"
    running = service(started=False, environ=environ)
    (running.folder / "secrets").symlink_to(secrets)
    running.start()
    running.sign_in(next(text for text in printed.values() if str(text).startswith("cg_")))
    asked = running.ask(receiver.url())
    assert running.finished(asked)["status"] == "COMPLETED"
    (call,) = receiver.calls_to(asked.callback_url)
    assert len(call.headers["webhook-signature"].split(" ")) == 2
    assert not (running.data / "secrets.json").exists()


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "to-pipe", "empty", "unreadable", "both", "device"])
def test_a_secret_file_that_is_none(tmp_path: Path, what: str) -> None:
    name = "CHARGEGATE_SECURITY__TOKEN_HASH_KEY"
    path = tmp_path / what
    environ = {name + "_FILE": str(path)}
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "to-pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.write_text("\n")
        case "unreadable":
            path.write_text(KEY)
            path.chmod(0)
            if os.access(path, os.R_OK):
                pytest.skip("this user may read everything")
        case "both":
            path.write_text(KEY)
            environ[name] = KEY
    refused(run(tmp_path, "config", "check", **environ), name + "_FILE")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o1777])
def test_a_folder_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(mode)
    for command in (["serve"], ["acl", "add", TOKEN]):
        refused(run(tmp_path, *command), "data_dir", "chmod")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("what", ["pipe", "to-pipe", "device", "folder", "others", "link-to-others"])
def test_a_key_file_that_is_none(tmp_path: Path, what: str) -> None:
    data = tmp_path / "data"
    assert run(tmp_path, "acl", "add", TOKEN).returncode == 0
    file = data / "secrets.json"
    elsewhere = file.rename(tmp_path / "elsewhere.json")
    match what:
        case "pipe":
            os.mkfifo(file)
        case "to-pipe":
            os.mkfifo(tmp_path / "pipe")
            file.symlink_to(tmp_path / "pipe")
        case "device":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
        case _:
            if os.geteuid():
                pytest.skip("only root can give a file away")
            if what == "others":
                elsewhere.rename(file)
                os.chown(file, 12345, -1)
            else:
                os.chown(elsewhere, 12345, -1)
                file.symlink_to(elsewhere)
    for command in (["serve"], ["acl", "list"]):
        refused(run(tmp_path, *command), "secrets.json")


def test_a_key_file_elsewhere_is_used_through_a_link(tmp_path: Path) -> None:
    assert run(tmp_path, "acl", "add", TOKEN).returncode == 0
    file = tmp_path / "data" / "secrets.json"
    file.symlink_to(file.rename(tmp_path / "elsewhere.json"))
    assert run(tmp_path, "acl", "list").returncode == 0


def test_a_pipe_is_no_access_list_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    environ = {"CHARGEGATE_AUTHORIZATION__ACL_FILE": "list.csv"}
    refused(run(tmp_path, "config", "check", **environ), "acl_file", "list.csv")
    result = run(tmp_path, "serve", **environ)
    assert result.returncode == 1
    assert "acl_file" in result.stderr.splitlines()[-1]


STOLEN = f"driver_token,blocked\n{TOKEN},true\n{TOKEN}-2,\n{TOKEN},false\n"


@pytest.mark.parametrize(
    ("content", "words"),
    first_of(
        4,
        [
            (STOLEN.encode(), ["line 4", "line 2"]),
            (f'driver_token,note\n"{TOKEN}","two\nlines"\n\n {TOKEN} ,\n'.encode(), ["line 5", "line 2"]),
            (STOLEN.replace(",", ";").encode(), ["semicolons"]),
            (STOLEN.replace(",", "\t").encode(), ["tabs"]),
            (STOLEN.encode("utf-16"), ["UTF-16"]),
            (STOLEN.encode("utf-16-le"), ["UTF-16"]),
            (STOLEN.encode("utf-16-be"), ["UTF-16"]),
            (STOLEN.replace(",", "\t").encode("utf-16"), ["UTF-16"]),
            (f"driver_token,,\n{TOKEN},,x\n".encode(), ["line 2"]),
        ],
    ),
)
def test_an_import_with_a_fault_stores_nothing(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    result = run(tmp_path, "acl", "import", "list.csv")
    assert (result.returncode, result.stdout) == (1, "")
    line = result.stderr.splitlines()[-1]
    assert all(word in line for word in ["list.csv", *words])
    assert TOKEN not in result.stderr
    assert run(tmp_path, "acl", "list", "--json").stdout.strip() == ""
    refused(run(tmp_path, "config", "check", CHARGEGATE_AUTHORIZATION__ACL_FILE="list.csv"), "list.csv", *words)


def test_a_header_that_ends_in_empty_columns(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"\ufeffdriver_token,blocked,,,\r\n{TOKEN},true,,,\r\n,,,,\r\n{TOKEN}-2,,,,\r\n")
    result = run(tmp_path, "acl", "import", "list.csv", "--json")
    assert json.loads(result.stdout) == {"imported": 2}
    assert len(run(tmp_path, "acl", "list", "--json").stdout.splitlines()) == 2


def test_a_list_shows_nothing_that_a_terminal_runs(tmp_path: Path) -> None:
    note = "a\x1b[31m\x7f\x9b\u202eb\u2066\u200f\u2028\U000e0041c"
    assert run(tmp_path, "acl", "add", TOKEN, "--note", note).returncode == 0
    out = run(tmp_path, "acl", "list", "--json").stdout
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)["note"] == note
    assert run(tmp_path, "acl", "list").stdout.replace("\n", "").replace("\t", "").isprintable()


URLS = {
    "QUEUE__URL": ["postgresql://h/d?p%61ssword={}", "redis://h?pass%77ord={}", "kafka://h/t?sasl_oauthbearer_config={}"],
    "DATABASE__URL": ["postgresql://h/d?user=u&password={}", "postgresql://u:{}@h:port/d", "postgresql://u:{}@[h/d"],
    "CACHE__URL": ["redis://h?PASSWORD={}", "redis://:{}@h:99999"],
    "AUTHORIZATION__URL": ["https://u:{}@h/", "https://h/?api_key={}", "https://u:{}@h:port"],
    "AUDIT__INFLUX_URL": ["http://u:{}@h:8086", "http://h:8086?token={}"],
    "AUDIT__ARCHIVE_URL": [
        "s3://b?endpoint=https://u:{}@s3", "s3://b?endpoint=https%3A%2F%2Fu%3A{}%40s3", "s3://b?endpoint=https://s3?token={}",
        "s3://b?{}", "s3://b?endpoint=https://u:{}@s3\u2100", "s3://b?endpoint=https://[u:{}@s3", "s3://u:{}@b\u2100",
        "s3://b?endpoint=https://s3:{}",
    ],
    "ANALYSIS__WEBHOOK_URL": ["https://u:{}@h/", "https://h/?token={}"],
    "TRACING__OTLP_ENDPOINT": ["http://u:{}@h:4318", "http://h:4318?token={}"],
}  # fmt: skip


@pytest.mark.parametrize("name", URLS)
def test_what_is_secret_in_a_url_is_never_shown(tmp_path: Path, name: str) -> None:
    for url in URLS[name]:
        environ = {f"CHARGEGATE_{name}": url.format(TOKEN), "CHARGEGATE_AUDIT__INFLUX_DATABASE": "d"}
        for arguments in (["config", "show"], ["config", "show", "--json"], ["config", "check"]):
            result = run(tmp_path, *arguments, **environ)
            assert TOKEN not in result.stdout + result.stderr, (url, result)
            assert "Traceback" not in result.stderr
            assert result.returncode == 0 or name.lower().replace("__", ".") in result.stderr


@pytest.mark.parametrize(
    "endpoint", ["https://u:p@s3", "https%3A%2F%2Fu%3Ap%40s3", "https://s3?password=p", "https://s3:x"]
)
def test_the_archives_endpoint_has_no_password(tmp_path: Path, endpoint: str) -> None:
    url = f"s3://bucket/x?endpoint={endpoint}"
    refused(run(tmp_path, "config", "check", CHARGEGATE_AUDIT__ARCHIVE_URL=url), "audit.archive_url", "endpoint")
