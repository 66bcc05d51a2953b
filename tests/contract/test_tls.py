"""HTTPS: with a certificate, with certificates of clients, and with files that are wrong."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Service, Site

PATH = "/api/v1/charging-session"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


def started(service: Callable[..., Service], eventually: Callable[..., Any], **settings: Any) -> Service:
    """A service with TLS, which accepts connections."""
    gate = service(started=False, **settings)
    process = gate.spawn()
    eventually(lambda: process.poll() is not None or '"event":"ready"' in gate.log, 30)
    assert process.poll() is None, gate.log
    return gate


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service], eventually: Callable[..., Any], authority: Authority) -> Service:
    own = authority.sign("server")
    tls = {"server__tls_certificate": own.certificate, "server__tls_key": own.key}
    return started(shared_service, eventually, server__request_timeout_ms=1000, **tls)


@contextlib.contextmanager
def connected(service: Service, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        yield tls


def answers(connection: ssl.SSLSocket) -> bytes:
    """All that comes until the server says that it closes; without that it is an error."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def test_requests_over_tls(gate: Service, authority: Authority, receiver: Site) -> None:
    with httpx.Client(base_url=f"https://127.0.0.1:{gate.port}", verify=authority.context(), trust_env=False) as client:
        asked = [client.post(PATH, json=gate.body(receiver.url())) for _ in range(20)]
        assert {answer.status_code for answer in asked} == {202}
        document = client.get("/openapi.json")
        assert document.status_code == 200
        assert len(document.content) > 20_000
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        origin = {"origin": f"http://127.0.0.1:{gate.port}"}
        assert client.get("/health", headers=origin).status_code == 403
        origin = {"origin": f"https://127.0.0.1:{gate.port}"}
        assert client.get("/health", headers=origin).status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(gate: Service, authority: Authority, version: ssl.TLSVersion) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connected(gate, context) as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        for piece in (LIVE * 3)[:100], (LIVE * 3)[100:]:
            connection.sendall(piece)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 3:
            received += connection.recv(4096)


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
def test_old_versions_are_refused(gate: Service, authority: Authority) -> None:
    context = authority.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError), connected(gate, context):
        pass


def test_what_is_no_tls_is_closed(gate: Service) -> None:
    for data in (LIVE, b"\x00" * 100, b"\x16\x03\x01\xff\xff"):
        with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(4096):
                    received += piece
            assert not received.startswith(b"HTTP/1.1 2")
    assert "Traceback" not in gate.log
    assert '"traceback"' not in gate.log


def test_a_handshake_has_a_limit_of_time(gate: Service) -> None:
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        assert connection.recv(1) == b""


def test_who_sends_too_much_sees_the_answer(gate: Service, authority: Authority) -> None:
    for framing, body in (
        (b"content-length: 900000\r\n\r\n", b"x" * 900_000),
        (b"connection: close\r\ncontent-length: 900000\r\n\r\n", b"x" * 900_000),
        (b"transfer-encoding: chunked\r\n\r\nffff\r\n", b"x" * 65535),
        (b"x: ", b"y" * 200_000),
    ):
        with connected(gate, authority.context()) as connection:
            connection.sendall(POST + framing)
            with contextlib.suppress(OSError):
                connection.sendall(body)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(4096)
                assert piece
                head += piece
            assert head.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


def test_a_connection_ends_in_order(gate: Service, authority: Authority) -> None:
    with connected(gate, authority.context()) as connection:
        connection.sendall(LIVE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        assert answers(connection).startswith(b"HTTP/1.1 200 ")


def turned_away(gate: Service, context: ssl.SSLContext) -> bool:
    """Whether the service ends the connection before it answers."""
    try:
        with connected(gate, context) as connection:
            connection.sendall(LIVE)
            return not connection.recv(4096)
    except OSError:
        return True


def test_certificates_of_clients(
    service: Callable[..., Service], eventually: Callable[..., Any], authority: Authority, tmp_path: Path
) -> None:
    own, client = authority.sign("mutual"), authority.sign("client")
    gate = started(
        service,
        eventually,
        server__tls_certificate=own.certificate,
        server__tls_key=own.key,
        server__tls_client_ca=authority.file,
    )
    with connected(gate, authority.context(client)) as connection:
        connection.sendall(LIVE)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    stranger = Authority(tmp_path, "stranger").sign("unknown")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for shown in (None, stranger):
            context = authority.context(shown)
            context.maximum_version = version
            assert turned_away(gate, context)
    assert "Traceback" not in gate.log


def test_wrong_files_stop_the_start(service: Callable[..., Service], authority: Authority, tmp_path: Path) -> None:
    own, other = authority.sign("right"), authority.sign("other")
    secret = authority.sign("secret", b"password")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for certificate, key, client_ca, said in (
        ("no-such.pem", own.key, "", "server.tls_certificate"),
        (str(empty), own.key, "", "server.tls_certificate"),
        (str(tmp_path), own.key, "", "server.tls_certificate"),
        (own.certificate, "no-such.key", "", "server.tls_key"),
        (own.certificate, str(empty), "", "server.tls_key"),
        (own.certificate, other.key, "", "server.tls_key"),
        (secret.certificate, secret.key, "", "server.tls_key"),
        (own.certificate, "", "", "server.tls_key"),
        ("", own.key, "", "server.tls_certificate"),
        ("", "", authority.file, "server.tls_certificate"),
        (own.certificate, own.key, str(empty), "server.tls_client_ca"),
        (own.certificate, own.key, "no-such.pem", "server.tls_client_ca"),
    ):
        tls = {"server__tls_certificate": certificate, "server__tls_key": key, "server__tls_client_ca": client_ca}
        wrong = service(started=False, **tls)
        wrong.spawn()
        assert wrong.ended() == 1, wrong.log
        (line,) = [line for line in wrong.log.splitlines() if not is_event(line)]
        assert f"{said}: " in line
        assert "Traceback" not in wrong.log


def is_event(line: str) -> bool:
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


def test_the_metrics_tell_when_the_certificate_expires(gate: Service, authority: Authority) -> None:
    with httpx.Client(base_url=f"https://127.0.0.1:{gate.port}", verify=authority.context(), trust_env=False) as client:
        text = client.get("/metrics").text
    with connected(gate, authority.context()) as connection:
        shown = connection.getpeercert()
    assert shown is not None
    (value,) = re.findall(r"^tls_certificate_expiration_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert float(value) == ssl.cert_time_to_seconds(shown["notAfter"])
