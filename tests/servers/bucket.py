"""A bucket of an S3 server, as somebody else than the service sees it."""

import hashlib
import hmac
import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import obstore
from obstore.store import S3Store

from outside import PLAIN

REGION: Final = "us-east-1"


class Bucket:
    """A new one. ``url`` is that of an archive in it, and may lead through a proxy; ``environ`` has the keys for it."""

    def __init__(self, server: Any, endpoint: str = "") -> None:
        self._server = server
        self.name = f"b{random.getrandbits(48):x}"
        self.url = f"s3://{self.name}/audit?endpoint={endpoint or server.url}"
        key, secret = server.writer
        self.environ = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": REGION}
        self.store = S3Store(
            self.name,
            endpoint=server.url,
            region=REGION,
            access_key_id=key,
            secret_access_key=secret,
            client_options={"allow_http": True},
            # For some seconds after its start the server answers 500, until it knows again where an object is.
            retry_config={
                "max_retries": 60,
                "retry_timeout": timedelta(seconds=60),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=1), "base": 2},
            },
        )
        obstore.put(self.store, "other", b"")  # makes the bucket
        obstore.delete(self.store, "other")

    def names(self) -> list[str]:
        return [item["path"] for item in obstore.list(self.store).collect()]

    def files(self) -> dict[str, bytes]:
        """Their contents. None may be deleted meanwhile."""
        return {path: bytes(obstore.get(self.store, path).bytes()) for path in self.names()}

    def ask(self, method: str, parameter: str, body: bytes = b"") -> httpx.Response:
        """Something about the bucket as a whole, signed as AWS's Signature Version 4 says."""
        key, secret = self._server.writer
        host = urlsplit(self._server.url).netloc
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{at[:8]}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": at}
        signed = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"{method}\n/{self.name}\n{parameter}=\n{lines}\n{signed}\n{digest}"
        text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        derived = f"AWS4{secret}".encode()
        for part in (at[:8], REGION, "s3", "aws4_request"):
            derived = hmac.digest(derived, part.encode(), "sha256")
        signature = hmac.digest(derived, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        url = f"{self._server.url}/{self.name}?{parameter}="
        return httpx.request(method, url, headers=headers, content=body, verify=PLAIN, trust_env=False, timeout=30)
