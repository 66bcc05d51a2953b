"""The archive: a bucket of S3, or of anything that speaks as S3 does.

An object is named after the service that put it there (its *origin*), the file, and the times of its first and last
row: ``prefix/ORIGIN/FILE.FIRST-LAST.zst``. So a list says what is where, and two machines never use one name.
"""

import asyncio
import configparser
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from chargegate.audit.life.address import ArchiveAddress
from chargegate.audit.life.archive_errors import has_code, what_it_means

_REQUEST_S: Final = 60  # for a request: a whole small object, or a part of a large one
_CONNECT_S: Final = 10
_RETRIES: Final = 3
_RETRY_S: Final = 60
_PART_BYTES: Final = 5 * 1024 * 1024  # the least that S3 takes, so that a slow line has enough time for one
_AT_ONCE: Final = 2
_OWN_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


class ArchiveUnavailable(Exception):
    """The archive does not answer, or refuses. The message is one line that names the setting, says what to do, and is
    the same for as long as the fault is. It holds no secret."""


class StoredObject(msgspec.Struct, frozen=True):
    """``key`` is below the prefix of the archive."""

    key: str
    size: int


class Archive:
    """Every method raises ``ArchiveUnavailable``."""

    def __init__(self, address: ArchiveAddress) -> None:
        """Connects nowhere yet. Raises ``ImportError`` where ``chargegate[s3]`` is not installed."""
        import obstore  # noqa: PLC0415 - an extra
        from obstore.store import S3Store  # noqa: PLC0415 - as above

        self._obstore = obstore
        self._store = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            client_options={
                "allow_http": address.endpoint.startswith("http://"),
                "timeout": timedelta(seconds=_REQUEST_S),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
            **_options(address),
        )

    async def objects(self, below: str = "") -> list[StoredObject]:
        """All of them, or those whose keys begin with a folder, in the order of their keys."""
        found = []
        with _telling("list"):
            async for page in self._obstore.list(self._store, below or None):
                found += [StoredObject(item["path"], item["size"]) for item in page]
        return sorted(found, key=lambda item: item.key)

    async def attributes(self, key: str) -> dict[str, str] | None:
        """What was said of an object when it was put there; None where there is none."""
        with _telling(key):
            try:
                found = await self._head(key)
            except FileNotFoundError:
                return None
            return {str(name).lower(): text for name, text in found.attributes.items()}

    async def _head(self, key: str) -> Any:
        """The answer to HEAD does not say why it refuses, and so that to another request is told."""
        try:
            return await self._obstore.get_async(self._store, key, options={"head": True})
        except self._obstore.exceptions.BaseError as error:
            if has_code(str(error)):
                raise
        async for _ in self._obstore.list(self._store, key):
            break
        return await self._obstore.get_async(self._store, key, options={"head": True})

    async def put(self, key: str, path: Path, attributes: dict[str, str], *, replace: bool = False) -> None:
        """Upload a file: the object is there whole, or not at all. Without ``replace`` one of that key is left alone,
        which ``attributes`` then tells. A large file goes in parts, each with a time limit of its own, and then no
        condition can be made: whether there is one is asked before."""
        large = (await asyncio.to_thread(path.stat)).st_size > _PART_BYTES
        if large and not replace and await self.attributes(key) is not None:
            return
        with _telling(key):
            try:
                await self._obstore.put_async(
                    self._store,
                    key,
                    path,
                    attributes=attributes,
                    mode="overwrite" if replace or large else "create",  # with "create" it would go as a whole
                    chunk_size=_PART_BYTES,
                    max_concurrency=_AT_ONCE,
                    use_multipart=large,
                )
            except self._obstore.exceptions.AlreadyExistsError:
                return

    async def sha256(self, key: str) -> str:
        """Of what is really stored: all of it is read."""
        digest = hashlib.sha256()
        async for chunk in self.read(key):
            digest.update(chunk)
        return digest.hexdigest()

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """In parts, each with a time limit of its own."""
        with _telling(key):
            size = (await self._head(key)).meta["size"]
            for start in range(0, size, _PART_BYTES):
                end = min(start + _PART_BYTES, size)
                yield bytes(await self._obstore.get_range_async(self._store, key, start=start, end=end))

    async def delete(self, key: str) -> None:
        """It may be gone already."""
        with _telling(key):
            try:
                await self._obstore.delete_async(self._store, key)
            except FileNotFoundError:
                return


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """The library's errors as ours."""
    from obstore.exceptions import BaseError  # noqa: PLC0415 - an extra

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise ArchiveUnavailable(f"audit.archive_url: {what_it_means(what, str(error))}") from None


def _options(address: ArchiveAddress) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if address.endpoint:
        options["endpoint"] = address.endpoint
        options["virtual_hosted_style_request"] = False  # nobody gave each bucket a name in the DNS
    if address.region:
        options["region"] = address.region
    elif not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = "us-east-1"
    provider = _shared_credentials()
    if provider is not None:
        options["credential_provider"] = provider
    return options


def _shared_credentials() -> Callable[[], dict[str, Any]] | None:
    """The profile in the shared credentials file, which the library does not read by itself. None where the environment
    has keys or there is no such profile; then the library goes on to what a container or a machine is given."""
    if any(os.environ.get(name) for name in _OWN_KEYS):
        return None
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = os.environ.get("AWS_PROFILE") or "default"

    def read() -> dict[str, Any]:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path, encoding="utf-8")
        section = parser[profile]
        return {
            "access_key_id": section["aws_access_key_id"],
            "secret_access_key": section["aws_secret_access_key"],
            "token": section.get("aws_session_token"),
            "expires_at": None,
        }

    try:
        read()
    except (OSError, KeyError, UnicodeDecodeError, configparser.Error):
        return None
    return read
