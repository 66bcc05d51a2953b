import base64
import hashlib
import hmac
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.keys import (
    KEY_FILE,
    SEALED_PREFIX,
    AccessKeys,
    CannotOpen,
    KeyFileError,
    KeyMissing,
    Keyring,
    new_access_key,
    open_keyring,
)

OLD, NEW, HASH = os.urandom(32), os.urandom(32), os.urandom(32)
KEYRING = Keyring([OLD], HASH)


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_what_was_sealed_is_opened_with_its_id_alone(plain: bytes, request_id: str) -> None:
    sealed = KEYRING.seal(plain, request_id)
    assert KEYRING.open(sealed, request_id) == plain
    with pytest.raises(CannotOpen):
        KEYRING.open(sealed, request_id + "x")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    sealed = bytearray(KEYRING.seal(b"driver-token-0123456789", "id"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(CannotOpen):
        KEYRING.open(bytes(sealed), "id")


@given(st.binary(max_size=60))
def test_what_was_never_sealed_cannot_be_opened(junk: bytes) -> None:
    for sealed in (junk, KEYRING.seal(b"", "id")[:SEALED_PREFIX] + junk):
        with pytest.raises(CannotOpen):
            KEYRING.open(sealed, "id")


def test_a_seal_hides_its_content_and_is_never_the_same() -> None:
    sealed = {KEYRING.seal(b"driver-token-0123456789", "id") for _ in range(100)}
    assert len(sealed) == 100
    assert not any(b"driver-token" in each for each in sealed)


def test_keys_are_rotated_by_putting_a_new_one_first() -> None:
    before = KEYRING.seal(b"plain", "id")
    both = Keyring([NEW, OLD], HASH)
    after = both.seal(b"plain", "id")
    assert both.open(before, "id") == both.open(after, "id") == b"plain"
    new = Keyring([NEW], HASH)
    assert new.open(after, "id") == b"plain"
    with pytest.raises(KeyMissing, match=before[1:SEALED_PREFIX].hex()):
        new.open(before, "id")
    assert both.knows(before[:SEALED_PREFIX])
    assert both.knows(after[:SEALED_PREFIX])
    assert new.knows(after[:SEALED_PREFIX])
    assert not new.knows(before[:SEALED_PREFIX])
    assert not new.knows(b"")


@given(st.text("abcXYZ019._~-", min_size=20, max_size=80))
def test_a_tokens_hash_is_hmac_sha256_under_the_own_key(token: str) -> None:
    assert KEYRING.token_hash(token) == hmac.new(HASH, token.encode(), hashlib.sha256).hexdigest()
    assert Keyring([OLD], NEW).token_hash(token) != KEYRING.token_hash(token)


def test_a_digest_is_of_its_parts_and_is_no_tokens_hash() -> None:
    digests = [KEYRING.digest(*parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ())]
    assert len(set(digests)) == 5
    assert KEYRING.token_hash("abc") not in digests
    assert Keyring([OLD], NEW).digest("abc") not in digests


def test_the_key_ids_tell_keys_apart_and_nothing_of_them() -> None:
    assert KEYRING.hash_key_id == Keyring([NEW], HASH).hash_key_id
    assert KEYRING.hash_key_id != Keyring([NEW], OLD).hash_key_id
    assert KEYRING.hash_key_id not in HASH.hex()


# The key file


def test_the_first_start_makes_a_key_file_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = open_keyring(tmp_path, [], "")
    finally:
        os.umask(before)
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    sealed = first.seal(b"plain", "id")
    second = open_keyring(tmp_path, [], "")
    assert second.open(sealed, "id") == b"plain"
    assert second.token_hash("x") == first.token_hash("x")


def test_two_services_have_different_keys(tmp_path: Path) -> None:
    keyrings = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        keyrings.append(open_keyring(tmp_path / name, [], ""))
    assert keyrings[0].hash_key_id != keyrings[1].hash_key_id
    with pytest.raises(CannotOpen):
        keyrings[1].open(keyrings[0].seal(b"", "id"), "id")


def test_first_starts_at_once_agree_on_one_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from chargegate.keys import open_keyring;"
        "print('ready', flush=True); sys.stdin.readline();"
        "print(open_keyring(Path(sys.argv[1]), [], '').hash_key_id)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    ids = {child.communicate(timeout=30)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 4
    assert len(ids) == 1
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    open_keyring(tmp_path, [], "")
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600") as caught:
        open_keyring(tmp_path, [], "")
    assert str(tmp_path / KEY_FILE) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"{}", b'{"encryption_keys": [], "token_hash_key": ""}',
        json.dumps({"encryption_keys": [b64(OLD)]}).encode(),
        json.dumps({"encryption_keys": [], "token_hash_key": b64(HASH)}).encode(),
        json.dumps({"encryption_keys": [b64(OLD[:16])], "token_hash_key": b64(HASH)}).encode(),
        json.dumps({"encryption_keys": [b64(OLD)], "token_hash_key": b64(HASH[:8])}).encode(),
        json.dumps({"encryption_keys": ["hidden!"], "token_hash_key": b64(HASH)}).encode(),
        json.dumps({"encryption_keys": [7], "token_hash_key": b64(HASH)}).encode(),
        json.dumps({"encryption_keys": b64(OLD), "token_hash_key": b64(HASH)}).encode(),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_damaged_key_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / KEY_FILE
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        open_keyring(tmp_path, [], "")
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert "hidden" not in message
    assert b64(OLD) not in message
    assert file.read_bytes() == content


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        open_keyring(tmp_path / "missing", [], "")


def test_with_all_keys_configured_there_is_no_file(tmp_path: Path) -> None:
    keyring = open_keyring(tmp_path, [b64(NEW), b64(OLD)], b64(HASH))
    assert keyring.open(KEYRING.seal(b"plain", "id"), "id") == b"plain"
    assert keyring.token_hash("x") == KEYRING.token_hash("x")
    assert list(tmp_path.iterdir()) == []


def test_what_was_sealed_before_keys_were_configured_stays_readable(tmp_path: Path) -> None:
    stored = open_keyring(tmp_path, [], "")
    configured = open_keyring(tmp_path, [b64(NEW)], "")
    assert configured.open(stored.seal(b"plain", "id"), "id") == b"plain"
    assert configured.token_hash("x") == stored.token_hash("x")
    with pytest.raises(CannotOpen):
        stored.open(configured.seal(b"plain", "id"), "id")


# Access keys


def test_a_new_key_is_found_with_its_role() -> None:
    (client, client_line), (admin, admin_line) = new_access_key("client"), new_access_key("admin")
    keys = AccessKeys([client_line, admin_line])
    assert keys
    found_client, found_admin = keys.find(client), keys.find(admin)
    assert found_client is not None
    assert found_client.role == "client"
    assert found_admin is not None
    assert found_admin.role == "admin"
    assert found_client.name != found_admin.name
    for wrong in ("", client[:-1], client + "x", client.upper(), client_line, client_line.rpartition(":")[2], "\udcff"):
        assert keys.find(wrong) is None


def test_what_is_configured_does_not_tell_the_key() -> None:
    key, line = new_access_key("client")
    assert key not in line
    assert line == f"client:sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert len({new_access_key("client")[0] for _ in range(100)}) == 100


DIGEST = hashlib.sha256(b"a key").hexdigest()
OTHER = hashlib.sha256(b"another key").hexdigest()


def test_a_key_has_the_name_of_its_line() -> None:
    key, line = new_access_key("client", "Depot_7.north-west")
    assert line == f"Depot_7.north-west:client:sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    found = AccessKeys([line]).find(key)
    assert found is not None
    assert (found.name, found.role) == ("Depot_7.north-west", "client")


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper()])
def test_a_line_of_an_older_release_has_the_first_digits_of_its_hash_for_a_name(digest: str) -> None:
    found = AccessKeys([f"client:sha256:{digest}"]).find("a key")
    assert found is not None
    assert found.name == DIGEST[:32]


def test_keys_of_one_name_are_one_client() -> None:
    keys = AccessKeys(
        [f"north:client:sha256:{DIGEST}", f"north:client:sha256:{OTHER}", "ops:admin:sha256:" + "ab" * 32]
    )
    assert keys.clients == {"north"}
    assert {found.name for key in ("a key", "another key") if (found := keys.find(key))} == {"north"}


def test_a_name_may_be_a_role() -> None:
    assert AccessKeys([f"client:admin:sha256:{DIGEST}"]).clients == set()
    assert AccessKeys([f"admin:client:sha256:{DIGEST}"]).clients == {"admin"}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([f"a:client:sha256:{DIGEST}", f"b:client:sha256:{DIGEST}"], "lines 1 and 2 hold the same key"),
        ([f"a:client:sha256:{DIGEST}", f"a:client:sha256:{DIGEST}"], "lines 1 and 2 hold the same key"),
        ([f"a:client:sha256:{DIGEST}", f"a:client:sha256:{DIGEST.upper()}"], "lines 1 and 2 hold the same key"),
        ([f"client:sha256:{DIGEST}", f"admin:sha256:{DIGEST}"], "lines 1 and 2 hold the same key"),
        ([f"client:sha256:{DIGEST}", f"x:client:sha256:{DIGEST}"], "lines 1 and 2 hold the same key"),
        ([f"a:client:sha256:{DIGEST}", f"a:admin:sha256:{OTHER}"], "lines 1 and 2 give one name"),
        ([f"client:sha256:{DIGEST}", f"{DIGEST[:32]}:admin:sha256:{OTHER}"], "lines 1 and 2 give one name"),
        (["a:client:sha256:" + hashlib.sha256(b"").hexdigest()], "line 1 holds the hash of nothing"),
        (["client:sha256:" + hashlib.sha256(b"").hexdigest().upper()], "line 1 holds the hash of nothing"),
        (["client:sha256:" + hashlib.sha256(b"\n").hexdigest()], "line 1 holds the hash of nothing"),
        ([f"anonymous:client:sha256:{DIGEST}"], "line 1: the name anonymous"),
        ([f"Anonymous:admin:sha256:{DIGEST}"], "line 1: the name anonymous"),
        ([f":client:sha256:{DIGEST}"], "line 1: the name must be"),
        ([f"a b:client:sha256:{DIGEST}"], "line 1: the name must be"),
        ([f"\u00e4:client:sha256:{DIGEST}"], "line 1: the name must be"),
        (["a" * 65 + f":client:sha256:{DIGEST}"], "line 1: the name must be"),
        ([f"a\n:client:sha256:{DIGEST}"], "line 1: the name must be"),
        ([f"a:b:client:sha256:{DIGEST}"], "line 1: each must be"),
        ([f"x:client:sha256:{DIGEST}", "y:client:sha256:"], "line 2: each must be"),
    ],
)
def test_lines_that_do_not_go_together_are_refused(lines: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        AccessKeys(lines)
    assert DIGEST not in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_with_none_configured_none_is_found() -> None:
    assert not AccessKeys([])
    assert AccessKeys([]).find("anything") is None


@pytest.mark.parametrize(
    "line",
    [
        "", "client", "client:sha256:", "root:sha256:" + "ab" * 32, "client:md5:" + "ab" * 32,
        "client:sha256:" + "ab" * 31,
        "client:sha256:" + "zz" * 32, "client:sha256:" + "ab " * 21 + " ", "hidden", "client:hidden:",
        "CLIENT:sha256:" + "ab" * 32,
    ],
)  # fmt: skip
def test_a_malformed_line_is_refused_without_repeating_it(line: str) -> None:
    with pytest.raises(ValueError, match="each must") as caught:
        AccessKeys([line])
    assert "hidden" not in str(caught.value)
    assert "abab" not in str(caught.value)
