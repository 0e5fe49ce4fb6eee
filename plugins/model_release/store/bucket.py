"""Objects and JSON documents below one prefix of a bucket, sent so that the server itself checks what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from model_release.errors import StoreRefused, StoreUnavailable, VersionDamaged
from model_release.store.folder import Prefix
from model_release.store.s3 import error_code, talking_about

#: S3 takes no larger object in one request, and only one request gives a checksum over all of it.
MAX_FILE = 5 * 1024**3

# Requests at once where many small documents are read. botocore keeps ten connections.
_AT_ONCE = 8
# S3's limit for one request.
_DELETED_AT_ONCE = 1000


class Bucket(Prefix):
    """What is below `uri` (`s3://bucket/prefix/`), through a boto3 S3 client.

    Methods raise `StoreRefused` (no bucket, credentials, permission), `StoreUnavailable` (no answer, or somebody
    wrote at the same moment) and `VersionDamaged`; `SpecError` for addresses that are none.
    """

    def __init__(self, client: Any, uri: str, *, log: Callable[[str], None] | None = None) -> None:
        super().__init__(client, uri, log or logging.getLogger(__name__).info)

    # Documents

    def read_json(self, key: str) -> tuple[Any, str | None]:
        """(content, ETag) of the JSON document at `key` below the store's prefix; (None, None) where none is."""
        found = self._got(key)
        if found is None:
            return None, None
        try:
            return json.loads(found[0]), found[1]
        except ValueError as error:
            raise VersionDamaged(f"{self.uri}{key} is no JSON: {error}") from error

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
        """Writes a JSON document and returns its ETag.

        `if_match` is the ETag that was read; None means that there must be no such document yet. Where somebody
        else wrote meanwhile nothing is written and `StoreUnavailable` is raised: read again, then decide again.
        """
        condition = {"IfNoneMatch": "*"} if if_match is None else {"IfMatch": if_match}
        body = encode(content)
        with talking_about(self.uri + key):
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=body,
                ContentType="application/json",
                ChecksumSHA256=_base64(hashlib.sha256(body).hexdigest()),
                **condition,
            )
        return str(answer["ETag"])

    def write_bytes(self, key: str, content: bytes, content_type: str) -> None:
        """Writes a document that is made anew each time, such as a picture; what was there gives way."""
        with talking_about(self.uri + key):
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=content,
                ContentType=content_type,
                ChecksumSHA256=_base64(hashlib.sha256(content).hexdigest()),
            )

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """(key, content) of many JSON documents, some at once, in the order given.

        The content is None where there is no such document (any more), and the `VersionDamaged` itself where it is no
        JSON, so that one bad document does not hide the others.
        """

        def read(key: str) -> Any:
            try:
                return self.read_json(key)[0]
            except VersionDamaged as error:
                return error

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # In portions: a thousand records at once would all have to be held.
            for portion in _portions(names, 8 * _AT_ONCE):
                yield from zip(portion, pool.map(read, portion), strict=True)

    def listing(self, folder: str) -> list[tuple[str, int, datetime]]:
        """(key below the store's prefix, size in bytes, last written) of everything under `folder`, sorted by key."""
        pages = self._client.get_paginator("list_objects_v2")
        with talking_about(self.uri + folder):
            return sorted(
                (str(item["Key"])[len(self._prefix) :], int(item["Size"]), item["LastModified"])
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + folder)
                for item in page.get("Contents", [])
            )

    def clock(self) -> datetime | None:
        """The server's time, as it says in the header of an answer; whole seconds."""
        with talking_about(f"s3://{self._bucket}"):
            answer = self._client.head_bucket(Bucket=self._bucket)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(said) if said else None

    def remove(self, names: Iterable[str]) -> None:
        """Deletes what is at these keys. Gone already is done."""
        for portion in _portions(names, _DELETED_AT_ONCE):
            objects = [{"Key": self._prefix + name} for name in portion]
            with talking_about(self.uri):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
            if refused := answer.get("Errors"):
                first = refused[0]
                raise StoreRefused(
                    f"s3://{self._bucket}/{first.get('Key')}: S3 does not delete it: "
                    f"{first.get('Message')} ({first.get('Code')})"
                )

    # Objects

    def _checksum(self, key: str) -> str | None:
        """Hex SHA-256 of an object as the server keeps it, None where it keeps none."""
        head = self._head(key) or {}
        checksum = head.get("ChecksumSHA256")
        return base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None

    def _put_file(self, path: Path, key: str, digest: str, *, replace: bool = False) -> None:
        uri = self.uri + key
        size = path.stat().st_size
        if size > MAX_FILE:
            raise StoreRefused(f"{path.name} has {size / 1e9:.1f} GB; S3 takes 5 GB in one request")
        if not replace and self._is_there(key, digest):
            return
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            with talking_about(uri), path.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=body, ChecksumSHA256=_base64(digest), **condition
                )
        except StoreUnavailable:
            # A retry of boto3's own may meet what its first attempt wrote, and so may another run.
            if not self._is_there(key, digest):
                raise
        self._log(f"sent {uri} ({size / 1e6:.1f} MB)" if size >= 1e6 else f"sent {uri} ({size} bytes)")

    def _is_there(self, key: str, digest: str) -> bool:
        if self._head(key) is None:
            return False
        if self._checksum(key) != digest:
            raise VersionDamaged(f"{self.uri}{key} holds something else; remove it, or find out who wrote it")
        return True

    def _create(self, key: str, body: bytes) -> None:
        from botocore.exceptions import ClientError

        with talking_about(self.uri + key):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=body,
                    ContentType="application/json",
                    ChecksumSHA256=_base64(hashlib.sha256(body).hexdigest()),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                # Somebody finished the same content first: theirs stands.
                if error_code(error) not in ("PreconditionFailed", "412"):
                    raise


def encode(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


def _portions(names: Iterable[str], size: int) -> Iterator[list[str]]:
    every = list(names)
    for start in range(0, len(every), size):
        yield every[start : start + size]
