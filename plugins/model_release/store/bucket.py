"""Objects and JSON documents below one prefix of a bucket, sent with their SHA-256 and on conditions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from model_release.errors import StoreContested, StoreRefused, StoreUnavailable, VersionDamaged
from model_release.store.folder import Prefix
from model_release.store.objects import NOTHING, WHATEVER

#: S3 takes no larger object in one request, and only one request gives a checksum over all of it.
MAX_FILE = 5 * 1024**3

# Requests at once where many small documents are read. botocore keeps ten connections.
_AT_ONCE = 8


class Bucket(Prefix):
    """What is below `uri` (`s3://bucket/prefix/`), through the client of its kind.

    Methods raise `StoreRefused` (no bucket, credentials, permission), `StoreUnavailable` (no answer, or somebody
    wrote at the same moment) and `VersionDamaged`; `SpecError` for addresses that are none.
    """

    def __init__(self, client: Any, uri: str, *, log: Callable[[str], None] | None = None) -> None:
        super().__init__(client, uri, log or logging.getLogger(__name__).info)

    # Documents

    def read_json(self, key: str) -> tuple[Any, str | None]:
        """(content, tag) of the JSON document at `key` below the store's prefix; (None, None) where none is."""
        found = self._objects.get(self._prefix + key)
        if found is None:
            return None, None
        try:
            return json.loads(found[0]), found[1]
        except ValueError as error:
            raise VersionDamaged(f"{self.uri}{key} is no JSON: {error}") from error

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
        """Writes a JSON document and returns its tag.

        `if_match` is the tag that was read; None means that there must be no such document yet. Where somebody
        else wrote meanwhile nothing is written and `StoreUnavailable` is raised: read again, then decide again.
        """
        return self._write(key, encode(content), "application/json", NOTHING if if_match is None else if_match)

    def write_bytes(self, key: str, content: bytes, content_type: str) -> None:
        """Writes a document that is made anew each time, such as a picture; what was there gives way."""
        self._write(key, content, content_type, WHATEVER)

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
        found = self._objects.listed(self._prefix + folder)
        return sorted((one.key[len(self._prefix) :], one.size, one.time) for one in found)

    def clock(self) -> datetime | None:
        """The server's time, as it says in the header of an answer; whole seconds."""
        return self._objects.clock()

    def remove(self, names: Iterable[str]) -> None:
        """Deletes what is at these keys. Gone already is done."""
        self._objects.remove(self._prefix + name for name in names)

    # Objects

    def _write(self, key: str, content: bytes, content_type: str, over: str) -> str:
        digest = hashlib.sha256(content).hexdigest()
        return self._objects.put(self._prefix + key, content, digest, over=over, content_type=content_type)

    def _checksum(self, key: str) -> str | None:
        """Hex SHA-256 of an object as the store keeps it, None where it keeps none."""
        head = self._objects.head(self._prefix + key)
        return head.sha256 if head else None

    def _put_file(self, path: Path, key: str, digest: str, *, replace: bool = False) -> None:
        uri = self.uri + key
        size = path.stat().st_size
        if size > MAX_FILE:
            raise StoreRefused(f"{path.name} has {size / 1e9:.1f} GB; S3 takes 5 GB in one request")
        if not replace and self._is_there(key, digest):
            return
        try:
            self._objects.put(self._prefix + key, path, digest, over=WHATEVER if replace else NOTHING)
        except StoreUnavailable:
            # A retry of the client's own may meet what its first attempt wrote, and so may another run.
            if not self._is_there(key, digest):
                raise
        self._log(f"sent {uri} ({size / 1e6:.1f} MB)" if size >= 1e6 else f"sent {uri} ({size} bytes)")

    def _is_there(self, key: str, digest: str) -> bool:
        head = self._objects.head(self._prefix + key)
        if head is not None and head.sha256 != digest:
            raise VersionDamaged(f"{self.uri}{key} holds something else; remove it, or find out who wrote it")
        return head is not None

    def _create(self, key: str, body: bytes) -> None:
        """Unless somebody finished the same content first: theirs stands."""
        try:
            self._write(key, body, "application/json", NOTHING)
        except StoreContested:
            if self.tag(key) is None:  # somebody is about to: a retry finds it, or writes its own
                raise


def encode(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _portions(names: Iterable[str], size: int) -> Iterator[list[str]]:
    every = list(names)
    for start in range(0, len(every), size):
        yield every[start : start + size]
