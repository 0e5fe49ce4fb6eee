"""Places that hold checkpoints: a folder, an S3 prefix; the hub has a module of its own."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from model_release.build.progress import Progress
from model_release.errors import CheckpointError
from model_release.store.s3 import keys, split_uri, talking_about

Log = Callable[[str], None]


class Place(ABC):
    """A place with files.

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
    def names(self) -> list[str]:
        """Files right here, without those in folders."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Folders right here that may be candidates; none where the place itself keeps versions."""

    @abstractmethod
    def inside(self, folder: str) -> Place:
        """The place that one of the folders is."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of one of the files, as the place says before it is brought; 0 where it does not say."""

    def mark(self, name: str) -> object:
        """Another one when the file has changed. Where the place keeps versions, none does."""
        return self.commit

    @abstractmethod
    def bring(self, name: str, target: Path) -> None:
        """Copies one of the files to `target`."""


class DirectoryPlace(Place):
    """A folder of this machine, relative to `base`.

    Whoever may write candidates into it need not be allowed to read what the worker can read: a link that leads out of
    the folder that the model file names is refused.
    """

    def __init__(self, address: str, base: Path, within: Path | None = None) -> None:
        self._address, self._base = address, base
        self._path = base / address
        self._within = within or self._path.resolve()
        self.origin = f"directory:{address}"
        if not self._path.is_dir():
            raise CheckpointError(f"{self._path} is no folder; the model file's source must name one that exists")

    def names(self) -> list[str]:
        return [path.name for path in self._path.iterdir() if path.is_file()]

    def folders(self) -> list[str]:
        return [path.name for path in self._path.iterdir() if path.is_dir()]

    def inside(self, folder: str) -> DirectoryPlace:
        return DirectoryPlace(f"{self._address.rstrip('/')}/{folder}", self._base, self._within)

    def size(self, name: str) -> int:
        return self._real(name).stat().st_size

    def mark(self, name: str) -> object:
        found = self._real(name).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def bring(self, name: str, target: Path) -> None:
        shutil.copyfile(self._real(name), target, follow_symlinks=False)

    def _real(self, name: str) -> Path:
        path = (self._path / name).resolve()
        if not path.is_relative_to(self._within):
            raise CheckpointError(f"{self.origin}: {name} leads out of its folder by a link; put a copy there instead")
        return path


class PrefixPlace(Place):
    """What lies under an S3 prefix; `s3` is a boto3 client."""

    def __init__(self, address: str, s3: Any | None, log: Log) -> None:
        if s3 is None:
            raise CheckpointError(f"{address} needs an S3 client; set the connection of the model's store")
        self._s3, self._log = s3, log
        self._bucket, self._prefix = split_uri(address)
        self._sizes: dict[str, int] = {}
        self.origin = f"s3://{self._bucket}/{self._prefix}"

    def names(self) -> list[str]:
        with talking_about(self.origin):
            found = keys(self._s3, self._bucket, self._prefix, delimiter="/")
            self._sizes = {key[len(self._prefix) :]: size for key, size in found}
        return list(self._sizes)

    def folders(self) -> list[str]:
        # A prefix cannot appear whole, as a folder can: its `config.json` is written last, and until then it is none.
        with talking_about(self.origin):
            names = [key[len(self._prefix) :].split("/") for key, _ in keys(self._s3, self._bucket, self._prefix)]
        return [folder for folder, *rest in names if rest == ["config.json"]]

    def inside(self, folder: str) -> PrefixPlace:
        return PrefixPlace(f"{self.origin}{folder}/", self._s3, self._log)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def mark(self, name: str) -> object:
        with talking_about(self.origin + name):
            return self._s3.head_object(Bucket=self._bucket, Key=self._prefix + name)["ETag"]

    def bring(self, name: str, target: Path) -> None:
        progress = Progress(name, self._sizes[name], self._log)
        with talking_about(self.origin + name):
            self._s3.download_file(self._bucket, self._prefix + name, str(target), Callback=progress)
        progress.done()
