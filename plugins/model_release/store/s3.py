"""The objects of an S3 bucket, through a boto3 client; and whose trouble an error is."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from model_release.errors import StoreContested, StoreRefused, StoreUnavailable
from model_release.store.objects import NOTHING, WHATEVER, Head, Listed, Objects

# S3's limit for one request.
_REMOVED_AT_ONCE = 1000

# What was sent is not what came.
_DAMAGED = ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")

_REFUSALS = {
    "NoSuchBucket": "there is no such bucket; create it, or mend the address in the model's file",
    "InvalidAccessKeyId": "the access key is unknown; mend the Airflow connection",
    "SignatureDoesNotMatch": "the secret key is wrong; mend the Airflow connection",
    "RequestTimeTooSkewed": "the clock of this machine or of the server is wrong",
    "ExpiredToken": "the credentials have expired; renew them",
    "AccessDenied": "the credentials lack a permission",
    "AllAccessDisabled": "the bucket is disabled",
    "403": "the credentials are wrong or lack a permission (get, put, delete and list are needed)",
    "401": "the credentials are wrong",
    "404": "there is no such bucket or object",
}


@contextmanager
def talking_about(uri: str) -> Iterator[None]:
    """Turns botocore's errors into `StoreRefused` (waiting does not help) or `StoreUnavailable` (it may), each
    with one line that names `uri`."""
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        code = error_code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        message = error.response.get("Error", {}).get("Message") or ""
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            raise StoreContested(f"{uri}: somebody wrote it at the same moment; try again") from error
        if status == 429 or status >= 500 or code in ("SlowDown", "RequestTimeout", *_DAMAGED):
            raise StoreUnavailable(f"{uri}: S3 answers {code} ({message})") from error
        why = _REFUSALS.get(code) or _REFUSALS.get(str(status)) or message or "no reason given"
        raise StoreRefused(f"{uri}: S3 refuses {error.operation_name}: {why} ({code})") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise StoreRefused(f"{uri}: there are no S3 credentials; add them to the Airflow connection") from error
    except exceptions.SSLError as error:
        raise StoreRefused(f"{uri}: the server's certificate is not trusted: {error}") from error
    except (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.ChecksumError,
        exceptions.FlexibleChecksumError,
        RetriesExceededError,
    ) as error:
        raise StoreUnavailable(f"{uri}: S3 does not answer: {error}") from error
    except exceptions.BotoCoreError as error:
        raise StoreRefused(f"{uri}: {error}") from error


def error_code(error: Any) -> str:
    """S3's own name of a botocore `ClientError`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _items(client: Any, bucket: str, prefix: str, delimiter: str) -> Iterator[Any]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)
    for page in pages:
        yield from page.get("Contents", [])


class S3Objects(Objects):
    """Through a boto3 client. Every object is sent with its SHA-256, which the server checks and keeps."""

    computes_sha256 = True

    def __init__(self, client: Any, bucket: str) -> None:
        self._client, self._bucket, self._place = client, bucket, f"s3://{bucket}"

    def get(self, key: str, tag: str | None = None) -> tuple[bytes, str] | None:
        from botocore.exceptions import ClientError

        condition = {} if tag is None else {"IfMatch": tag}
        with talking_about(f"{self._place}/{key}"):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, **condition)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None
                raise
            return bytes(answer["Body"].read()), str(answer["ETag"])

    def head(self, key: str) -> Head | None:
        from botocore.exceptions import ClientError

        with talking_about(f"{self._place}/{key}"):
            try:
                said = self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
            else:
                checksum = said.get("ChecksumSHA256")
                whole = checksum and "-" not in checksum  # else it is of an upload in parts
                sha256 = base64.b64decode(checksum).hex() if whole else None
                return Head(int(said["ContentLength"]), str(said["ETag"]), sha256)
        # A HEAD has no body: its 404 may mean the object or the bucket.
        with talking_about(self._place):
            self._client.head_bucket(Bucket=self._bucket)
        return None

    def put(
        self, key: str, body: bytes | Path, sha256: str, *, over: str = WHATEVER, content_type: str | None = None
    ) -> str:
        given: dict[str, Any] = {"ContentType": content_type} if content_type else {}
        if over != WHATEVER:
            given |= {"IfNoneMatch": "*"} if over == NOTHING else {"IfMatch": over}
        given |= {"Bucket": self._bucket, "Key": key}
        given["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        with talking_about(f"{self._place}/{key}"):
            if isinstance(body, bytes):
                return str(self._client.put_object(Body=body, **given)["ETag"])
            with body.open("rb") as file:
                return str(self._client.put_object(Body=file, **given)["ETag"])

    def listed(self, prefix: str, *, deep: bool = True) -> Iterator[Listed]:
        with talking_about(f"{self._place}/{prefix}"):
            for item in _items(self._client, self._bucket, prefix, "" if deep else "/"):
                yield Listed(str(item["Key"]), int(item["Size"]), str(item["ETag"]), item["LastModified"])

    def folders(self, prefix: str) -> list[str]:
        with talking_about(f"{self._place}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, Delimiter="/"
            )
            found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return [name[len(prefix) :].strip("/") for name in found]

    def download(self, key: str, target: Path, came: Callable[[int], None] | None) -> None:
        with talking_about(f"{self._place}/{key}"):
            self._client.download_file(self._bucket, key, str(target), Callback=came)

    def remove(self, keys: Iterable[str]) -> None:
        every = list(keys)
        for start in range(0, len(every), _REMOVED_AT_ONCE):
            named = [{"Key": key} for key in every[start : start + _REMOVED_AT_ONCE]]
            with talking_about(self._place):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": named, "Quiet": True})
            if refused := answer.get("Errors"):
                first = refused[0]
                raise StoreRefused(
                    f"{self._place}/{first.get('Key')}: S3 does not delete it: "
                    f"{first.get('Message')} ({first.get('Code')})"
                )

    def clock(self) -> datetime | None:
        with talking_about(self._place):
            answer = self._client.head_bucket(Bucket=self._bucket)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(said) if said else None
