"""What every talk with S3 in this package shares: addresses, and whose trouble an error is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model_release.errors import SpecError, StoreContested, StoreRefused, StoreUnavailable

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)

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


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/prefix` → (`bucket`, `some/prefix/`); the prefix ends in `/` or is empty.

    The slash matters: KServe and S3 compare prefixes as text, and `…/v1` also names `…/v10/…`.

    Raises `SpecError` for anything else.
    """
    match = _URI.fullmatch(uri)
    if match is None or "//" in uri[len("s3://") :] or re.search(r"[\x00-\x1f?#]", uri):
        raise SpecError(f"{uri!r} is no S3 address; right would be s3://bucket/prefix/")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""


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
        if status == 429 or status >= 500 or code in ("SlowDown", "RequestTimeout"):
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
        RetriesExceededError,
    ) as error:
        raise StoreUnavailable(f"{uri}: S3 does not answer: {error}") from error
    except exceptions.BotoCoreError as error:
        raise StoreRefused(f"{uri}: {error}") from error


def error_code(error: Any) -> str:
    """S3's own name of a botocore `ClientError`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def keys(client: Any, bucket: str, prefix: str, delimiter: str = "") -> Iterator[tuple[str, int]]:
    """(key, size in bytes) of every object under `prefix`, in S3's order; with the delimiter `/` only of those
    right under it. Folder markers are left out."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)
    for page in pages:
        for item in page.get("Contents", []):
            if not (item["Size"] == 0 and item["Key"].endswith("/")):
                yield item["Key"], item["Size"]


def folders(client: Any, bucket: str, prefix: str) -> list[str]:
    """Names of the folders right under `prefix`, without slashes."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
    return [name[len(prefix) :].strip("/") for name in found]
