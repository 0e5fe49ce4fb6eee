"""A folder of files, wherever it lies: of this machine, under an S3 prefix, or another place that can be read.

Checkpoints are read from one, candidates are put into one, and the model store is one (`store.bucket`). Names are
relative to the folder, with `/`. Another kind of place is another subclass of `Folder`.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from model_release.errors import CheckpointError, StoreUnavailable, TrainingFailed
from model_release.store import s3
from model_release.store.download import Download

Log = Callable[[str], None]


class Folder(ABC):
    """What can be read.

    `origin` names it for people and records; `commit` and `time` are those of a place that keeps versions, whose files
    never change.
    """

    origin: str
    commit: str | None = None
    time: datetime | None = None

    @property
    def looked_at(self) -> str:
        """What a sentence about missing files names: the origin, unless it was not the origin that was asked."""
        return self.origin

    @abstractmethod
    def names(self, below: str = "") -> list[str]:
        """Files right below `below` (empty, or ending in `/`), without those in folders, sorted."""

    @abstractmethod
    def folders(self, last: str) -> list[str]:
        """Folders right here that are whole, where `last` is the file that is written last into each."""

    @abstractmethod
    def inside(self, folder: str) -> Folder:
        """One of the folders."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of one of the files that `names` gave, before it is brought; 0 where the place does not say."""

    def tag(self, name: str) -> str | None:
        """Another one when the file has changed. Where the place keeps versions, none does."""
        return self.commit

    @abstractmethod
    def bring(self, name: str, target: Path) -> None:
        """Copies one of the files to `target`."""


class WritableFolder(Folder):
    """What can be written, too."""

    def at(self, name: str) -> str:
        """What people and records call the folder `name` in here."""
        return f"{self.origin.rstrip('/')}/{name}"

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file."""

    @abstractmethod
    def put(self, folder: Path, name: str, last: str) -> None:
        """The files of `folder`, as the folder `name`: whole or not at all for whoever looks. Its file `last` is
        written last where that is what makes it whole.

        Raises `TrainingFailed` or `StoreUnavailable` when a folder of that name has come to be meanwhile.
        """

    @abstractmethod
    def clear(self, name: str) -> None:
        """Removes the folder `name` with all that is in it; nothing where there is none."""


class Directory(WritableFolder):
    """A folder of this machine, relative to `base`. It need not be there to be written.

    Whoever may write into it need not be allowed to read what the worker can read: a link that leads out of the folder
    that the model file names is refused.
    """

    def __init__(self, address: str, base: Path, within: Path | None = None) -> None:
        self._address, self._base = address, base
        self.path = base / address
        self._within = within or self.path.resolve()
        self.origin = f"directory:{address}"

    def names(self, below: str = "") -> list[str]:
        return sorted(path.name for path in (self.path / below).iterdir() if path.is_file())

    def folders(self, last: str) -> list[str]:
        return [path.name for path in self.path.iterdir() if path.is_dir()]

    def inside(self, folder: str) -> Directory:
        return Directory(f"{self._address.rstrip('/')}/{folder}", self._base, self._within)

    def size(self, name: str) -> int:
        return self._real(name).stat().st_size

    def tag(self, name: str) -> str | None:
        found = self._real(name).stat()
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def bring(self, name: str, target: Path) -> None:
        shutil.copyfile(self._real(name), target, follow_symlinks=False)

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def put(self, folder: Path, name: str, last: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=f".{name}.", dir=self.path))
        try:
            shutil.copytree(folder, scratch / name)
            try:
                (scratch / name).rename(self.path / name)
            except OSError as error:
                if (self.path / name).exists():
                    raise TrainingFailed(f"{self.at(name)} came to be meanwhile, by another run") from error
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def clear(self, name: str) -> None:
        shutil.rmtree(self.path / name, ignore_errors=True)

    def _real(self, name: str) -> Path:
        path = (self.path / name).resolve()
        if not path.is_relative_to(self._within):
            raise CheckpointError(f"{self.origin}: {name} leads out of its folder by a link; put a copy there instead")
        return path


class Prefix(WritableFolder):
    """What lies under an S3 prefix, through a boto3 client. Raises the store's errors."""

    def __init__(self, client: Any, uri: str, log: Log | None = None) -> None:
        self._client, self._log = client, log or (lambda _: None)
        self._bucket, self._prefix = s3.split_uri(uri)
        self._sizes: dict[str, int] = {}
        self.origin = self.uri = f"s3://{self._bucket}/{self._prefix}"

    def names(self, below: str = "") -> list[str]:
        prefix = self._prefix + below
        with s3.talking_about(self.uri + below):
            found = {key[len(prefix) :]: size for key, size in s3.keys(self._client, self._bucket, prefix, "/")}
        self._sizes.update({below + name: size for name, size in found.items()})
        return sorted(found)

    def folders(self, last: str) -> list[str]:
        # A prefix cannot appear whole, as a folder of a machine can.
        names = [name.split("/") for name in self.everything()]
        return [folder for folder, *rest in names if rest == [last]]

    def everything(self, below: str = "") -> dict[str, int]:
        """{name: bytes} of every file below `below`."""
        with s3.talking_about(self.uri + below):
            found = s3.keys(self._client, self._bucket, self._prefix + below)
            return {key[len(self._prefix) :]: size for key, size in found}

    def inside(self, folder: str) -> Prefix:
        return Prefix(self._client, f"{self.uri}{folder}/", self._log)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def tag(self, name: str) -> str | None:
        """The ETag; None where there is no such file."""
        head = self._head(name)
        return str(head["ETag"]) if head else None

    def bring(self, name: str, target: Path) -> None:
        progress = Download(name, self._sizes[name], self._log) if name in self._sizes else None
        with s3.talking_about(self.uri + name):
            self._client.download_file(self._bucket, self._prefix + name, str(target), Callback=progress)
        if progress:
            progress.done()

    def read(self, name: str) -> bytes | None:
        found = self._got(name)
        return found[0] if found else None

    def put(self, folder: Path, name: str, last: str) -> None:
        if self.read(f"{name}/{last}") is not None:  # its files would be overwritten one by one
            raise StoreUnavailable(f"{self.at(name)} came to be meanwhile, by another run; a retry finds it")
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / last):
            file = f"{name}/{path.relative_to(folder).as_posix()}"
            with s3.talking_about(self.uri + file):
                self._client.upload_file(str(path), self._bucket, self._prefix + file)
        with s3.talking_about(f"{self.uri}{name}/{last}"):
            # Somebody else may have finished one of this name meanwhile: a retry finds theirs.
            key, body = f"{self._prefix}{name}/{last}", (folder / last).read_bytes()
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")

    def clear(self, name: str) -> None:
        for file in self.everything(f"{name}/"):
            with s3.talking_about(self.uri + file):
                self._client.delete_object(Bucket=self._bucket, Key=self._prefix + file)

    def _got(self, name: str) -> tuple[bytes, str] | None:
        """(content, ETag); None where there is no such file."""
        from botocore.exceptions import ClientError

        with s3.talking_about(self.uri + name):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:
                if s3.error_code(error) == "NoSuchKey":
                    return None
                raise
            return bytes(answer["Body"].read()), str(answer["ETag"])

    def _head(self, name: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with s3.talking_about(self.uri + name):
            try:
                return dict(
                    self._client.head_object(Bucket=self._bucket, Key=self._prefix + name, ChecksumMode="ENABLED")
                )
            except ClientError as error:
                if s3.error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
        # A HEAD has no body: its 404 may mean the object or the bucket.
        with s3.talking_about(f"s3://{self._bucket}"):
            self._client.head_bucket(Bucket=self._bucket)
        return None
