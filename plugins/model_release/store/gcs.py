"""The objects of a bucket of Google Cloud Storage, through Google's own client.

Conditions are generations: each write of an object has another one, and a write may say which one it replaces, or that
there is none. The server computes an MD5, by which the client holds what arrived to what was sent, and no SHA-256: that
is kept beside the object, as who wrote it said it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from model_release.errors import StoreContested, StoreRefused, StoreUnavailable
from model_release.store.objects import NOTHING, WHATEVER, Address, Head, Listed, Objects

T = TypeVar("T")

_SHA256 = "sha256"
_CURE = "mend the Airflow connection model_store_gcs, or what the machine's own credentials may do"
_REFUSALS = {401: f"the credentials are wrong; {_CURE}", 403: f"the credentials lack a permission; {_CURE}"}


@dataclass(frozen=True)
class Google:
    """A `google.cloud.storage.Client`, the seconds for one answer, and those in which a request is tried again."""

    client: Any
    timeout: float = 60.0
    patience: float = 120.0


class GcsObjects(Objects):
    def __init__(self, google: Google, where: Address) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._client, self._bucket, self._place = google.client, google.client.bucket(where.bucket), where.place
        self._asked = {"timeout": google.timeout, "retry": DEFAULT_RETRY.with_timeout(google.patience)}

    def get(self, key: str, tag: str | None = None) -> tuple[bytes, str] | None:
        blob, generation = self._bucket.blob(key), None if tag is None else int(tag)
        content = self._told(key, lambda: blob.download_as_bytes(if_generation_match=generation, **self._asked))
        if content is None:
            return None
        if tag is not None and str(blob.generation) != tag:
            raise StoreContested(f"{self._place}/{key}: somebody wrote it at the same moment; try again")
        return bytes(content), str(blob.generation)

    def head(self, key: str) -> Head | None:
        blob = self._told(key, lambda: self._bucket.get_blob(key, **self._asked))
        if blob is None:
            self._told("", lambda: self._bucket.reload(**self._asked))  # or it is the bucket that is not there
            return None
        return Head(int(blob.size), str(blob.generation), (blob.metadata or {}).get(_SHA256))

    def put(
        self, key: str, body: bytes | Path, sha256: str, *, over: str = WHATEVER, content_type: str | None = None
    ) -> str:
        blob = self._bucket.blob(key)
        blob.metadata = {_SHA256: sha256}
        generation = {WHATEVER: None, NOTHING: 0}[over] if over in (WHATEVER, NOTHING) else int(over)
        given = {**self._asked, "if_generation_match": generation, "checksum": "md5", "content_type": content_type}
        send = blob.upload_from_string if isinstance(body, bytes) else blob.upload_from_filename
        self._told(key, lambda: send(body, **given), needed=True)
        return str(blob.generation)

    def listed(self, prefix: str, *, deep: bool = True) -> Iterator[Listed]:
        pages = self._below(prefix, None if deep else "/").pages
        while (page := self._told(prefix, lambda: next(map(list, pages), None), needed=True)) is not None:
            for blob in page:
                yield Listed(str(blob.name), int(blob.size), str(blob.generation), blob.updated)

    def folders(self, prefix: str) -> list[str]:
        def found() -> set[str]:
            return {name for page in self._below(prefix, "/").pages for name in page.prefixes}

        return sorted(name[len(prefix) :].strip("/") for name in self._told(prefix, found) or ())

    def download(self, key: str, target: Path, came: Callable[[int], None] | None) -> None:
        with target.open("wb") as file:
            into = _Counted(file, came) if came else file
            self._told(key, lambda: self._bucket.blob(key).download_to_file(into, **self._asked) or True, needed=True)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._told(key, lambda key=key: self._bucket.blob(key).delete(**self._asked))  # type: ignore[misc]

    def clock(self) -> datetime | None:
        # The client hands no headers on; its session, which signs, does.
        path = f"{self._client._connection.API_BASE_URL}/storage/v1/b/{self._bucket.name}"
        answer = self._told("", lambda: self._client._http.get(path, timeout=self._asked["timeout"]))
        said = answer.headers.get("Date") if answer is not None else None
        return parsedate_to_datetime(said) if said else None

    def _below(self, prefix: str, delimiter: str | None) -> Any:
        return self._client.list_blobs(self._bucket, prefix=prefix, delimiter=delimiter, **self._asked)

    def _told(self, key: str, call: Callable[[], T], *, needed: bool = False) -> T | None:
        """What the call gives; None for an object that is not there, unless it is needed. Google's errors as ours."""
        from google.api_core import exceptions as google
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption
        from requests import exceptions as web

        uri = f"{self._place}/{key}"
        try:
            return call()
        except google.NotFound as error:
            if key and not needed and "bucket does not exist" not in str(error):
                return None
            what = f"{uri}: there is no such object, or no such" if needed else f"{self._place}: there is no such"
            raise StoreRefused(f"{what} bucket; create it, or mend the address in the model's file") from error
        except google.PreconditionFailed as error:
            raise StoreContested(f"{uri}: somebody wrote it at the same moment; try again") from error
        except google.RetryError as error:
            raise StoreUnavailable(f"{uri}: Google's storage does not answer: {error.cause}") from error
        except google.GoogleAPICallError as error:
            code = int(error.code or 0)
            if code in (408, 409, 429) or code >= 500:
                raise StoreUnavailable(f"{uri}: Google's storage answers {code} ({error.message})") from error
            why = _REFUSALS.get(code) or error.message
            raise StoreRefused(f"{uri}: Google's storage refuses: {why} ({code})") from error
        except auth.TransportError as error:
            raise StoreUnavailable(f"{uri}: nobody signs in for Google's storage now: {error}") from error
        except auth.GoogleAuthError as error:
            raise StoreRefused(f"{uri}: the credentials for Google's storage are refused: {error}; {_CURE}") from error
        except web.SSLError as error:
            raise StoreRefused(f"{uri}: the server's certificate is not trusted: {error}") from error
        except DataCorruption as error:
            raise StoreUnavailable(f"{uri}: it was damaged on its way, by Google's checksum; try again") from error
        except (web.RequestException, ConnectionError) as error:
            raise StoreUnavailable(f"{uri}: Google's storage does not answer: {error}") from error


class _Counted:
    """A file that tells how much is written to it."""

    def __init__(self, file: Any, came: Callable[[int], None]) -> None:
        self._file, self._came = file, came

    def write(self, block: bytes) -> int:
        self._came(len(block))
        return int(self._file.write(block))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
