"""Immutable versions in S3, and the few documents beside them.

```
s3://bucket/prefix/
  versions/<version>/          config/, model-store/, smoke.json, and version.json, written last
  releases/<id>.json           records of releases (`read_json`, `write_json`)
  builds/<key>/                what one task leaves for the next (`stash`, `unstash`)
```

A version's name is the digest of what is served (`config/` and `model-store/`): equal content, equal name. A
prefix without `version.json` is no version. Every object is sent with its SHA-256, which the server checks, and
on the condition that there is none of its name, so nothing is ever overwritten and two writers cannot mix.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_release.artifact import files
from model_release.artifact.s3 import error_code, folders, keys, split_uri, talking_about
from model_release.errors import ArchiveError, SpecError, StoreRefused, StoreUnavailable, VersionDamaged

RECORD = "version.json"
SMOKE = "smoke.json"
STASH_RECORD = "stash.json"
#: S3 takes no larger object in one request, and only one request gives a checksum over all of it.
MAX_FILE = 5 * 1024**3

_SERVED = ("config/", "model-store/")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Version:
    """A version as its `version.json` tells it. `storage_uri` ends in `/`, as KServe needs it (facts/kserve.md 3.3).

    `metadata` is what the build said of it: source, fingerprint, toolchain, labels, input, preprocessing, parity,
    evaluation. `files` is {path: {"sha256": hex, "size": bytes}}.
    """

    name: str
    storage_uri: str
    time: datetime
    metadata: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(repr=False)


class Store:
    """The model store at `uri` (`s3://bucket/prefix/`), through a boto3 S3 client.

    Methods raise `StoreRefused` (no bucket, credentials, permission), `StoreUnavailable` (no answer, or somebody
    wrote at the same moment) and `VersionDamaged`; `SpecError` for names and addresses that are none.
    """

    def __init__(self, client: Any, uri: str, *, log: Callable[[str], None] | None = None) -> None:
        self._client, self._log = client, log or logging.getLogger(__name__).info
        self._bucket, self._prefix = split_uri(uri)
        self.uri = f"s3://{self._bucket}/{self._prefix}"

    # Versions

    def publish(self, directory: Path, metadata: Mapping[str, Any]) -> Version:
        """Puts the archive in `directory` into the store and returns its version.

        Run again with equal content, or after half of it was sent, it sends what is not there. A version that is
        complete already is verified and returned as it is, with its first metadata: nothing is uploaded.
        Raises `ArchiveError` for an archive that was not checked, and `VersionDamaged` where something else lies
        under the version's name.
        """
        sums = files.digests(directory)
        served = {name: digest for name, digest in sums.items() if name.startswith(_SERVED)}
        if not any(name.startswith("model-store/") for name in served):
            raise ArchiveError(f"{directory} is no archive: it lacks model-store/")
        if SMOKE not in sums:
            raise ArchiveError(f"{directory} was not checked (it lacks {SMOKE}), and nothing unchecked is published")
        version = files.combined(served)[:16]
        if self._exists(self._key(version, RECORD)):
            self._log(f"version {version} is there already")
            return self.version(version)
        for name, digest in sums.items():
            self._put_file(directory / name, self._key(version, name), digest)
        listed = {name: {"sha256": sums[name], "size": (directory / name).stat().st_size} for name in sums}
        record = {"version": version, "time": _now(), "files": listed, "evaluation": None, **metadata}
        self._create(self._key(version, RECORD), _encode(record))
        self._log(f"version {version} is published at {self._uri(version)}")
        return self.version(version)

    def version(self, name: str) -> Version:
        """The version `name`, verified: its files, and no others, are there with the sizes and SHA-256 that the
        server itself reports. Raises `VersionDamaged` otherwise, and where there is no such version."""
        version = self._record(name)
        prefix = self._key(name, "")
        with talking_about(version.storage_uri):
            there = {key[len(prefix) :]: size for key, size in keys(self._client, self._bucket, prefix)}
        there.pop(RECORD, None)
        problems = [f"{path} is missing" for path in version.files if path not in there]
        problems += [f"{path} does not belong to it" for path in there if path not in version.files]
        for path, about in version.files.items():
            if path in there and there[path] != about["size"]:
                problems.append(f"{path} has {there[path]} bytes instead of {about['size']}")
            elif path in there and self._checksum(prefix + path) != about["sha256"]:
                problems.append(f"{path} has another SHA-256")
        if problems:
            raise VersionDamaged(f"{version.storage_uri} is not what its {RECORD} says: {'; '.join(problems)}")
        return version

    def versions(self) -> list[Version]:
        """All versions, newest first, as their records tell them (not verified). What is half-written or has a
        record that is none is left out, with a line in the log."""
        with talking_about(self.uri):
            names = folders(self._client, self._bucket, f"{self._prefix}versions/")
        found = []
        for name in filter(_VERSION.fullmatch, names):
            try:
                found.append(self._record(name))
            except VersionDamaged as error:
                self._log(f"left out: {error}")
        return sorted(found, key=lambda version: (version.time, version.name), reverse=True)

    def find(
        self, fingerprint: str, *, toolchain: Mapping[str, str] | None = None, service: str | None = None
    ) -> Version | None:
        """The newest version built from the source with this fingerprint (and by this toolchain, for this service,
        where given), verified; None where there is none."""
        wanted: dict[str, Any] = {"fingerprint": fingerprint}
        if toolchain is not None:
            wanted["toolchain"] = dict(toolchain)
        if service is not None:
            wanted["service"] = service
        for version in self.versions():
            if all(version.metadata.get(key) == value for key, value in wanted.items()):
                return self.version(version.name)
        return None

    def smoke(self, version: Version) -> dict[str, Any]:
        """The version's smoke test: {"instances": [{"data": base64}], "expected": [{"label", "score"}]}."""
        content, _ = self.read_json(f"versions/{version.name}/{SMOKE}")
        if content is None:
            raise VersionDamaged(f"{version.storage_uri} has no {SMOKE}, so nobody knows what it should answer")
        return dict(content)

    # Documents

    def read_json(self, key: str) -> tuple[Any, str | None]:
        """(content, ETag) of the JSON document at `key` below the store's prefix; (None, None) where none is."""
        from botocore.exceptions import ClientError

        with talking_about(self.uri + key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None, None
                raise
            body = answer["Body"].read()
        try:
            return json.loads(body), str(answer["ETag"])
        except ValueError as error:
            raise VersionDamaged(f"{self.uri}{key} is no JSON: {error}") from error

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
        """Writes a JSON document and returns its ETag.

        `if_match` is the ETag that was read; None means that there must be no such document yet. Where somebody
        else wrote meanwhile nothing is written and `StoreUnavailable` is raised: read again, then decide again.
        """
        condition = {"IfNoneMatch": "*"} if if_match is None else {"IfMatch": if_match}
        body = _encode(content)
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

    # What one task leaves for the next

    def stash(self, key: str, directory: Path) -> None:
        """Leaves the files of `directory` under `builds/<key>/`, for a task on another machine.

        Run again, it sends what differs; what is there alike stays, what is no longer in `directory` goes.
        """
        prefix = f"{self._prefix}builds/{_name(key)}/"
        sums = files.digests(directory)
        with talking_about(f"s3://{self._bucket}/{prefix}"):
            # Without its record a stash is none: nobody reads one that is being changed.
            self._client.delete_object(Bucket=self._bucket, Key=prefix + STASH_RECORD)
            there = dict(keys(self._client, self._bucket, prefix))
            for stale in (there_key for there_key in there if there_key[len(prefix) :] not in sums):
                self._client.delete_object(Bucket=self._bucket, Key=stale)
        for name, digest in sums.items():
            if prefix + name not in there or self._checksum(prefix + name) != digest:
                self._put_file(directory / name, prefix + name, digest, replace=True)
        self._create(prefix + STASH_RECORD, _encode({"files": sums}))

    def unstash(self, key: str, directory: Path) -> None:
        """Brings what `stash(key, …)` left into `directory`, replacing it, each file verified by its SHA-256.
        Raises `VersionDamaged` where there is no finished stash or one that was changed."""
        prefix = f"builds/{_name(key)}/"
        record, _ = self.read_json(prefix + STASH_RECORD)
        if record is None:
            raise VersionDamaged(f"{self.uri}{prefix} holds no finished build; run the task before this one again")
        with files.replaced(directory) as fresh:
            for name, digest in record["files"].items():
                target = (fresh / name).resolve()
                if not target.is_relative_to(fresh.resolve()):
                    raise VersionDamaged(f"{self.uri}{prefix} names a file outside of it: {name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with talking_about(self.uri + prefix + name):
                    self._client.download_file(self._bucket, self._prefix + prefix + name, str(target))
                if files.sha256(target) != digest:
                    raise VersionDamaged(f"{self.uri}{prefix}{name} was changed after it was stashed")

    # Objects

    def _key(self, version: str, path: str) -> str:
        return f"{self._prefix}versions/{version}/{path}"

    def _uri(self, version: str) -> str:
        return f"s3://{self._bucket}/{self._key(version, '')}"

    def _record(self, name: str) -> Version:
        if not _VERSION.fullmatch(name):
            raise SpecError(f"{name!r} is no version's name; right would be 16 hex digits, like 3f2a9c0d11e4b587")
        record, _ = self.read_json(f"versions/{name}/{RECORD}")
        if record is None:
            with talking_about(self._uri(name)):
                half = any(True for _ in keys(self._client, self._bucket, self._key(name, "")))
            state = f"is half-written: it lacks {RECORD}" if half else "does not exist"
            raise VersionDamaged(f"{self._uri(name)} {state}")
        try:
            if record["version"] != name or not record["files"]:
                raise ValueError("it names another version, or no files")
            listed = {
                str(path): {"sha256": str(f["sha256"]), "size": int(f["size"])} for path, f in record["files"].items()
            }
            rest = {key: value for key, value in record.items() if key not in ("version", "time", "files")}
            return Version(name, self._uri(name), datetime.fromisoformat(record["time"]), rest, listed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VersionDamaged(f"{self._uri(name)}{RECORD} is no version's record: {error!r}") from error

    def _exists(self, key: str) -> bool:
        return self._head(key) is not None

    def _head(self, key: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with talking_about(f"s3://{self._bucket}/{key}"):
            try:
                return dict(self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"))
            except ClientError as error:
                if error_code(error) in ("404", "NoSuchKey", "NotFound"):
                    self._bucket_must_exist()
                    return None
                raise

    def _bucket_must_exist(self) -> None:
        """A HEAD has no body: its 404 may mean the object or the bucket."""
        with talking_about(f"s3://{self._bucket}"):
            self._client.head_bucket(Bucket=self._bucket)

    def _checksum(self, key: str) -> str | None:
        """Hex SHA-256 of an object as the server keeps it, None where it keeps none."""
        head = self._head(key) or {}
        checksum = head.get("ChecksumSHA256")
        return base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None

    def _put_file(self, path: Path, key: str, digest: str, *, replace: bool = False) -> None:
        uri = f"s3://{self._bucket}/{key}"
        size = path.stat().st_size
        if size > MAX_FILE:
            raise StoreRefused(f"{path.name} has {size / 1e9:.1f} GB; S3 takes 5 GB in one request")
        if not replace and self._is_there(key, digest):
            return
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            with talking_about(uri), path.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=body, ChecksumSHA256=_base64(digest), **condition
                )
        except StoreUnavailable:
            # A retry of boto3's own may meet what its first attempt wrote, and so may another run.
            if not self._is_there(key, digest):
                raise
        self._log(f"sent {uri} ({size / 1e6:.1f} MB)" if size >= 1e6 else f"sent {uri} ({size} bytes)")

    def _is_there(self, key: str, digest: str) -> bool:
        if not self._exists(key):
            return False
        if self._checksum(key) != digest:
            raise VersionDamaged(f"s3://{self._bucket}/{key} holds something else; remove it, or find out who wrote it")
        return True

    def _create(self, key: str, body: bytes) -> None:
        from botocore.exceptions import ClientError

        with talking_about(f"s3://{self._bucket}/{key}"):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ContentType="application/json",
                    ChecksumSHA256=_base64(hashlib.sha256(body).hexdigest()),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                # Somebody finished the same content first: theirs stands.
                if error_code(error) not in ("PreconditionFailed", "412"):
                    raise


def _name(key: str) -> str:
    if not all(_NAME.fullmatch(part) for part in key.split("/")):
        raise SpecError(f"{key!r} is no name for a build; letters, digits, '.', '_' and '-' are allowed")
    return key


def _encode(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
