"""The image and the compose file, as far as they can be checked without an engine that builds and starts them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+(-[a-z0-9.-]+)?|[a-z0-9./-]+:\d+\.\d+[a-z0-9.-]*@sha256:[0-9a-f]{64}")
SECRET = re.compile("PASS|SECRET|API_KEY|ENCRYPTION_KEY|HASH_KEY")


def pins(name: str) -> dict[str, str]:
    """The packages of a requirements file with their versions. Each has a hash."""
    found = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text().strip()):
        line = re.match(r"([\w.-]+)==([^ ;]+)", block)
        assert line is not None, block
        assert "--hash=sha256:" in block, block
        found[line[1]] = line[2]
    return found


def test_base_images_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-[a-z-]+@sha256:[0-9a-f]{64}", base)


def test_packages_are_installed_by_hash_and_as_they_are_tested() -> None:
    installs = [line for line in re.split(r"&&|\n(?!\s)", DOCKERFILE) if "pip install" in line]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or ("--no-deps" in install and "--no-index" in install), install
    tested = pins("requirements.txt")
    for name in ("requirements-image.txt", "requirements-build.txt"):
        assert name in DOCKERFILE
        assert f"!{name}" in (ROOT / ".dockerignore").read_text().split()
        assert pins(name).items() <= tested.items(), f"{name} is not up to date: make lock"


def test_the_image_has_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[\w.-]+", requirement)[0].replace(".", "-") for requirement in needed}  # type: ignore[index]
    assert names <= pins("requirements-image.txt").keys()


def test_the_image_does_not_run_as_root() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    (user,) = re.findall(r"^USER (\d+)", last, re.MULTILINE)
    assert int(user) > 0
    assert last.index("USER ") < last.index("ENTRYPOINT")
    assert "curl" not in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_confined(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert PINNED.fullmatch(service["image"]), service["image"]
        assert service["networks"] == ["servers"]
        assert "ports" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_every_secret_is_asked_for_and_has_no_default() -> None:
    used = re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", COMPOSE)
    secrets = [(name, rest) for name, rest in used if SECRET.search(name)]
    assert len({name for name, _ in secrets}) >= 7
    assert {rest for _, rest in secrets} == {":?"}
    assert all(name.startswith("DEPLOY_") for name, _ in used)  # CHARGEGATE_ is what the service itself reads


def test_no_two_servers_share_a_password_and_none_is_written_down() -> None:
    own = {}
    for name, service in SERVICES.items():
        if "build" in service:
            continue
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                (variable,) = re.fullmatch(r"\$\{(\w+):\?\}", value).groups()  # type: ignore[union-attr]
                assert variable not in own.values(), f"{name} shares {variable}"
                own[name] = variable
    assert own.keys() == {"postgres", "redis", "redis-queue", "rabbitmq"}
    for url in re.findall(r"\w+://[^ \"]*@", COMPOSE):
        assert re.fullmatch(r"\w+://\w*:\$(\{\w+:\?\}|\w+)@", url), url


def test_the_variables_are_those_of_the_document() -> None:
    asked = set(re.findall(r"\$\{(DEPLOY_\w+):\?\}", COMPOSE))
    text = (ROOT / "docs" / "scaling.md").read_text()
    (servers,) = re.findall(r"for server in ([A-Z_ ]+); do", text)
    told = set(re.findall(r"export (DEPLOY_\w+)=", text)) | {f"DEPLOY_{server}_PASSWORD" for server in servers.split()}
    assert asked == {name for name in told if not name.endswith("DEPLOY_")}


def test_who_finds_a_vulnerability_is_told_what_to_do() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert "private security advisory" in text
    for heading in ("Reporting", "What is trusted", "What is not trusted", "What is not defended against"):
        assert heading in text
