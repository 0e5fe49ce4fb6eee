"""Where a training leaves its candidates: the folder or S3 prefix that the model file names as its source.

`source` reads there; this writes. A candidate appears whole: a folder by renaming, an S3 prefix by its `config.json`,
which is written last.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from model_release.build.source import CONFIG
from model_release.errors import SpecError, StoreUnavailable, TrainingFailed
from model_release.store.s3 import error_code, keys, split_uri, talking_about


class Candidates(ABC):
    """A source to put candidates into. Names are relative, with `/`; `origin` is for people, and ends in `/`."""

    origin: str

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file."""

    @abstractmethod
    def put(self, folder: Path, name: str) -> None:
        """The files of `folder`, as the candidate `name`: whole or not at all for whoever looks.

        Raises `TrainingFailed` or `StoreUnavailable` when a candidate of that name has come to be meanwhile.
        """

    @abstractmethod
    def clear(self, name: str) -> None:
        """Removes the folder `name` with all that is in it; nothing where there is none."""


def candidates_of(source: Mapping[str, str], base: Path, s3: Any | None) -> Candidates:
    """For `{"directory": path}` (relative to `base`) or `{"s3": prefix}` with `s3`, a boto3 client. Raises `SpecError`
    for any other source."""
    if directory := source.get("directory"):
        return _Directory(directory, base)
    if (prefix := source.get("s3")) and s3 is not None:
        return _Prefix(prefix, s3)
    raise SpecError("a training needs a source that candidates can be put into: directory or s3")


class _Directory(Candidates):
    def __init__(self, address: str, base: Path) -> None:
        self._path = base / address
        self.origin = f"directory:{address.rstrip('/')}/"

    def read(self, name: str) -> bytes | None:
        path = self._path / name
        return path.read_bytes() if path.is_file() else None

    def put(self, folder: Path, name: str) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=f".{name}.", dir=self._path))
        try:
            shutil.copytree(folder, scratch / name)
            try:
                (scratch / name).rename(self._path / name)
            except OSError as error:
                if (self._path / name).exists():
                    raise TrainingFailed(f"{self.origin}{name} came to be meanwhile, by another run") from error
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def clear(self, name: str) -> None:
        shutil.rmtree(self._path / name, ignore_errors=True)


class _Prefix(Candidates):
    def __init__(self, address: str, s3: Any) -> None:
        self._s3 = s3
        self._bucket, self._prefix = split_uri(address)
        self.origin = f"s3://{self._bucket}/{self._prefix}"

    def read(self, name: str) -> bytes | None:
        from botocore.exceptions import ClientError

        with talking_about(self.origin + name):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None
                raise
            return bytes(answer["Body"].read())

    def put(self, folder: Path, name: str) -> None:
        if self.read(f"{name}/{CONFIG}") is not None:  # its files would be overwritten one by one
            raise StoreUnavailable(f"{self.origin}{name} came to be meanwhile, by another run; a retry finds it")
        last = folder / CONFIG
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != last):
            key = f"{self._prefix}{name}/{path.relative_to(folder).as_posix()}"
            with talking_about(f"s3://{self._bucket}/{key}"):
                self._s3.upload_file(str(path), self._bucket, key)
        key = f"{self._prefix}{name}/{CONFIG}"
        with talking_about(f"s3://{self._bucket}/{key}"):
            # Somebody else may have finished a candidate of this name meanwhile: a retry finds theirs.
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=last.read_bytes(), IfNoneMatch="*")

    def clear(self, name: str) -> None:
        with talking_about(f"{self.origin}{name}/"):
            for key, _ in list(keys(self._s3, self._bucket, f"{self._prefix}{name}/")):
                self._s3.delete_object(Bucket=self._bucket, Key=key)
