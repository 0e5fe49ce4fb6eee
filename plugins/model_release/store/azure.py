"""The objects of a container of Azure Blob Storage, through Microsoft's own client.

Conditions are those of HTTP, on ETags. The server computes no SHA-256: that is kept beside the object, as who wrote it
said it; what arrives is held to what was sent by CRC or MD5 of each part, as the client does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from model_release.errors import StoreContested, StoreRefused, StoreUnavailable
from model_release.store.objects import NOTHING, WHATEVER, Address, Head, Listed, Objects

T = TypeVar("T")

_SHA256 = "sha256"
_CURE = (
    "mend the Airflow connection model_store_azure, or the role of whoever runs this (Storage Blob Data Contributor)"
)
_REFUSALS = {401: f"the credentials are wrong; {_CURE}", 403: f"the credentials lack a permission; {_CURE}"}


class AzureObjects(Objects):
    """`client` is an `azure.storage.blob.BlobServiceClient` of the account."""

    def __init__(self, client: Any, where: Address) -> None:
        self._container, self._place = client.get_container_client(where.bucket), where.place

    def get(self, key: str, tag: str | None = None) -> tuple[bytes, str] | None:
        from azure.core import MatchConditions

        condition = {} if tag is None else {"etag": tag, "match_condition": MatchConditions.IfNotModified}

        def read() -> tuple[bytes, str]:
            found = self._container.download_blob(key, **condition)
            return bytes(found.readall()), str(found.properties.etag)

        return self._told(key, read)

    def head(self, key: str) -> Head | None:
        said = self._told(key, lambda: self._container.get_blob_client(key).get_blob_properties())
        if said is None:
            self._told("", self._container.get_container_properties)  # or it is the container that is not there
            return None
        return Head(int(said.size), str(said.etag), (said.metadata or {}).get(_SHA256))

    def put(
        self, key: str, body: bytes | Path, sha256: str, *, over: str = WHATEVER, content_type: str | None = None
    ) -> str:
        from azure.core import MatchConditions
        from azure.storage.blob import ContentSettings

        given: dict[str, Any] = {"metadata": {_SHA256: sha256}, "overwrite": over != NOTHING, "validate_content": True}
        if content_type:
            given["content_settings"] = ContentSettings(content_type=content_type)
        if over not in (WHATEVER, NOTHING):
            given |= {"etag": over, "match_condition": MatchConditions.IfNotModified}
        blob = self._container.get_blob_client(key)

        def send() -> str:
            if isinstance(body, bytes):
                return str(blob.upload_blob(body, **given)["etag"])
            with body.open("rb") as file:
                return str(blob.upload_blob(file, **given)["etag"])

        tag = self._told(key, send, needed=True)
        assert tag is not None
        return tag

    def listed(self, prefix: str, *, deep: bool = True) -> Iterator[Listed]:
        from azure.storage.blob import BlobPrefix

        walk = self._container.list_blobs if deep else self._container.walk_blobs
        pages = walk(name_starts_with=prefix, include=["metadata"]).by_page()
        while (page := self._told(prefix, lambda: next(map(list, pages), None), needed=True)) is not None:
            for blob in page:
                if not isinstance(blob, BlobPrefix) and not _is_folder(blob):
                    tag = '"' + str(blob.etag).strip('"') + '"'  # a list has it without the quotes of a condition
                    yield Listed(str(blob.name), int(blob.size), tag, blob.last_modified)

    def folders(self, prefix: str) -> list[str]:
        from azure.storage.blob import BlobPrefix

        found = self._told(prefix, lambda: list(self._container.walk_blobs(name_starts_with=prefix)), needed=True)
        return sorted(one.name[len(prefix) :].strip("/") for one in found or () if isinstance(one, BlobPrefix))

    def download(self, key: str, target: Path, came: Callable[[int], None] | None) -> None:
        def bring() -> bool:
            with target.open("wb") as file:
                for block in self._container.download_blob(key).chunks():
                    file.write(block)
                    if came:
                        came(len(block))
            return True

        self._told(key, bring, needed=True)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._told(key, self._container.get_blob_client(key).delete_blob)

    def clock(self) -> datetime | None:
        said: list[str] = []
        self._told(
            "",
            lambda: self._container.get_container_properties(
                raw_response_hook=lambda answer: said.append(answer.http_response.headers.get("Date", ""))
            ),
        )
        return parsedate_to_datetime(said[-1]) if said and said[-1] else None

    def _told(self, key: str, call: Callable[[], T], *, needed: bool = False) -> T | None:
        """What the call gives; None for an object that is not there, unless it is needed. Azure's errors as ours."""
        from azure.core import exceptions as azure

        uri = f"{self._place}/{key}"
        try:
            return call()
        except azure.ClientAuthenticationError as error:
            raise StoreRefused(f"{uri}: Azure refuses the credentials; {_CURE}: {error.message}") from error
        except azure.HttpResponseError as error:
            code, status = _code(error), int(error.status_code or 0)
            said = f"{code or error.reason} ({status})"
            if code == "ContainerNotFound" or (status == 404 and not key):
                cure = "create it, or mend the address in the model's file"
                raise StoreRefused(f"{self._place}: there is no such container; {cure}") from error
            if status == 404 and not needed:
                return None
            if status == 412 or code == "BlobAlreadyExists":
                raise StoreContested(f"{uri}: somebody wrote it at the same moment; try again") from error
            if status in (0, 408, 409, 429) or status >= 500 or code in ("Md5Mismatch", "Crc64Mismatch"):
                raise StoreUnavailable(f"{uri}: Azure answers {said}") from error
            why = _REFUSALS.get(status) or "it says no more"
            raise StoreRefused(f"{uri}: Azure refuses: {why}: {said}") from error
        except (azure.ServiceRequestError, azure.ServiceResponseError) as error:
            raise StoreUnavailable(f"{uri}: Azure does not answer: {error}") from error
        except azure.AzureError as error:
            raise StoreUnavailable(f"{uri}: Azure did not do it: {error}") from error


def _is_folder(blob: Any) -> bool:
    """Accounts with a hierarchical namespace list their folders among the blobs (docs/facts.md#other-stores)."""
    return not blob.size and str((blob.metadata or {}).get("hdi_isfolder")).lower() == "true"


def _code(error: Any) -> str:
    """Azure's own name of it, such as BlobNotFound."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")
