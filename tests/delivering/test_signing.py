import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from chargegate.delivering.signing import Signer

SECRETS = ["whsec_" + base64.b64encode(bytes([number]) * 24).decode() for number in (1, 2, 3)]
BODY = b'{"station_id":"a","driver_token":"b","status":"allowed"}'
ID = "0190b6a5-0000-7000-8000-000000000001"


def parsed(block: bytes) -> dict[str, str]:
    assert block.endswith(b"\r\n")
    lines = block.decode("ascii").removesuffix("\r\n").split("\r\n")
    return dict(line.split(": ", 1) for line in lines)


@given(st.sampled_from([1, 2, 3]), st.text(alphabet="abc0123-", min_size=1, max_size=40), st.text(max_size=80))
def test_the_public_library_verifies_every_secret(count: int, message_id: str, text: str) -> None:
    body = text.encode()
    headers = parsed(Signer(SECRETS[:count]).headers(message_id, int(time.time()), body))
    assert list(headers) == ["webhook-id", "webhook-timestamp", "webhook-signature"]
    assert len(headers["webhook-signature"].split(" ")) == count
    for secret in SECRETS[:count]:
        Webhook(secret).verify(body, headers, json_parse=False)
    for secret in SECRETS[count:]:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers, json_parse=False)


def test_the_newest_secret_signs_first() -> None:
    now = int(time.time())
    both = parsed(Signer(SECRETS[:2]).headers(ID, now, BODY))["webhook-signature"].split(" ")
    alone = [parsed(Signer([secret]).headers(ID, now, BODY))["webhook-signature"] for secret in SECRETS[:2]]
    assert both == alone
    assert all(signature.startswith("v1,") for signature in both)


@pytest.mark.parametrize("changed", ["body", "webhook-id", "webhook-timestamp"])
def test_what_was_changed_fails(changed: str) -> None:
    now = int(time.time())
    headers = parsed(Signer(SECRETS[:1]).headers(ID, now, BODY))
    Webhook(SECRETS[0]).verify(BODY, headers)
    body = BODY
    if changed == "body":
        body = BODY.replace(b"allowed", b"unknown")
    else:
        headers[changed] = {"webhook-id": ID[:-1] + "2", "webhook-timestamp": str(now + 1)}[changed]
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(SECRETS[0]).verify(body, headers)


def test_without_secrets_there_is_no_signature() -> None:
    assert Signer([]).headers(ID, 1700000000, BODY) == (
        b"webhook-id: " + ID.encode() + b"\r\nwebhook-timestamp: 1700000000\r\n"
    )


@pytest.mark.parametrize("secret", ["", "whsec_", "c2VjcmV0c2VjcmV0", "whsec_no base64", "whsec_YQ", "WHSEC_YWJj"])
def test_a_malformed_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match=r"^a signing secret must be 'whsec_' and base64$"):
        Signer([SECRETS[0], secret])
