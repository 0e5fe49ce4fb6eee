"""The storage initializer: what KServe runs before a model server, by the same rules (docs/facts.md#s3-prefixes)."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

_SCHEME = "s3://"


class DownloadFailed(Exception):
    """The initializer ended with an error; the message is what stands last in its log."""


def download(client: Any, uri: str, into: Path) -> int:
    """Copies everything below an `s3://bucket/prefix` into the folder and returns the number of files.

    Whatever was in the folder before is removed. The prefix is taken as it is, without a slash added: `…/v1`
    also matches `…/v10/`. Objects of zero bytes are skipped, an object whose key equals the prefix is the whole
    model, and a single zip or tar is unpacked.
    Raises DownloadFailed with KServe's words for an empty prefix, and with the store's words for a refusal.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    if not uri.startswith(_SCHEME):
        raise DownloadFailed(f"Cannot recognize storage type for {uri}: the sandbox has s3:// only.")
    bucket, _, prefix = uri.removeprefix(_SCHEME).partition("/")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    try:
        files = [_fetch(client, bucket, key, into / name) for key, name in _objects(client, bucket, prefix)]
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise DownloadFailed(str(error)) from error
    if not files:
        raise DownloadFailed(f"Failed to fetch model. No model found in {prefix}.")
    if len(files) == 1:
        _unpack(files[0], into)
    return len(files)


def _objects(client: Any, bucket: str, prefix: str) -> list[tuple[str, str]]:
    """Keys below the prefix with the path each gets in the model folder."""
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            key = item["Key"]
            if item["Size"] == 0:
                continue
            if key == prefix:
                return [(key, key.rsplit("/", 1)[-1])]
            found.append((key, key.removeprefix(prefix).lstrip("/")))
    return found


def _fetch(client: Any, bucket: str, key: str, target: Path) -> Path:
    if ".." in target.parts:
        raise DownloadFailed(f"The object {key} would be written outside of the model folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    client.download_file(bucket, key, str(target))
    return target


def _unpack(file: Path, into: Path) -> None:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(into)  # noqa: S202 - zipfile takes ".." and leading slashes out of the names
        file.unlink()
    elif file.name.endswith((".tar", ".tgz", ".tar.gz")):
        with tarfile.open(file) as archive:
            archive.extractall(into, filter="data")
        file.unlink()
