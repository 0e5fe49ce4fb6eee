"""What a store of objects has to be able to do, whoever runs it: S3 (`s3`), Google Cloud Storage (`gcs`), Azure Blob
(`azure`). Folders, versions and records are written upon these few calls and know no other."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model_release.errors import SpecError
from model_release.spec.units import AZURE_ACCOUNT, AZURE_CONTAINER, GCS_BUCKET, S3_BUCKET

#: What `put` may replace: whatever is there, or nothing. Any other word is the tag of the content that may give way.
WHATEVER, NOTHING = "whatever", "nothing"

_PREFIX = "(?:/(?P<prefix>.*))?"
_FORMS = {
    scheme: re.compile(bucket + _PREFIX, re.DOTALL)
    for scheme, bucket in {
        "s3": rf"s3://(?P<bucket>{S3_BUCKET})",
        "gs": rf"gs://(?P<bucket>{GCS_BUCKET})",
        "abfs": rf"abfss?://(?P<bucket>{AZURE_CONTAINER})@(?P<account>{AZURE_ACCOUNT})\.dfs\.core\.windows\.net",
        # As KServe is told of it, and so as an InferenceService tells of it.
        "https": rf"https://(?P<account>{AZURE_ACCOUNT})\.blob\.core\.windows\.net/(?P<bucket>{AZURE_CONTAINER})",
    }.items()
}


@dataclass(frozen=True)
class Address:
    """Where a prefix lies. `kind` is `s3`, `gs` or `abfs`; `account` is Azure's; the prefix ends in `/` or is empty."""

    kind: str
    bucket: str
    prefix: str
    account: str = ""

    @property
    def place(self) -> str:
        """The bucket's own address, without a slash at its end."""
        host = f"@{self.account}.dfs.core.windows.net" if self.kind == "abfs" else ""
        return f"{self.kind}://{self.bucket}{host}"

    @property
    def uri(self) -> str:
        return f"{self.place}/{self.prefix}"

    @property
    def served(self) -> str:
        """The same for KServe, which knows Azure's blobs by their web address (docs/facts.md#other-stores)."""
        if self.kind == "abfs":
            return f"https://{self.account}.blob.core.windows.net/{self.bucket}/{self.prefix}"
        return self.uri


def address(uri: str) -> Address:
    """`gs://bucket/some/prefix` → where that is. The slash at a prefix's end matters: stores and KServe compare
    prefixes as text, and `…/v1` also names `…/v10/…`. Raises `SpecError` for anything that is none."""
    scheme = uri.partition("://")[0]
    form = _FORMS.get("abfs" if scheme == "abfss" else scheme)
    match = form.fullmatch(uri) if form else None
    if match is None or "//" in uri.partition("://")[2] or re.search(r"[\x00-\x1f?#]", uri):
        name = "S3 address" if scheme == "s3" else "address of a store"
        others = (
            "" if scheme == "s3" else ", gs://bucket/prefix/ or abfs://container@account.dfs.core.windows.net/prefix/"
        )
        raise SpecError(f"{uri!r} is no {name}; right would be s3://bucket/prefix/{others}")
    found = match.groupdict()
    prefix = (found["prefix"] or "").strip("/")
    kind = "abfs" if scheme in ("abfss", "https") else scheme
    return Address(kind, found["bucket"], f"{prefix}/" if prefix else "", found.get("account") or "")


@dataclass(frozen=True)
class Head:
    """An object without its content. `sha256` is hex, None where the store has none of it."""

    size: int
    tag: str
    sha256: str | None


@dataclass(frozen=True)
class Listed:
    key: str
    size: int
    tag: str
    time: datetime


class Objects(ABC):
    """The objects of one bucket, by their whole keys. A tag is another one when the content is.

    Methods raise `StoreRefused` (no bucket, credentials, permission), `StoreUnavailable` (no answer) and, where a
    condition did not hold, `StoreContested`.
    """

    #: Whether the server itself computes the SHA-256 that `head` tells. Where it does not, the one who wrote said it.
    computes_sha256 = False

    @abstractmethod
    def get(self, key: str, tag: str | None = None) -> tuple[bytes, str] | None:
        """(content, tag); None where there is no such object. With `tag`, only that content: another is contested."""

    @abstractmethod
    def head(self, key: str) -> Head | None:
        """None where there is no such object; a bucket that is not there is refused."""

    @abstractmethod
    def put(
        self, key: str, body: bytes | Path, sha256: str, *, over: str = WHATEVER, content_type: str | None = None
    ) -> str:
        """Writes an object whole, where what is there may be replaced (`over`), and returns its tag."""

    @abstractmethod
    def listed(self, prefix: str, *, deep: bool = True) -> Iterator[Listed]:
        """Everything under `prefix`, by key; without `deep` only what is right under it."""

    @abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right under `prefix`, without slashes."""

    @abstractmethod
    def download(self, key: str, target: Path, came: Callable[[int], None] | None) -> None:
        """The object into a file. `came` hears how many bytes came."""

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> None:
        """Gone already is done."""

    @abstractmethod
    def clock(self) -> datetime | None:
        """The server's time, as it says in the header of an answer; whole seconds."""
