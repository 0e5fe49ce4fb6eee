"""A folder of files, wherever it lies: of this machine, under a prefix of a store, or another place that can be read.

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
from model_release.store import files
from model_release.store.clients import objects
from model_release.store.download import Download
from model_release.store.objects import NOTHING, address

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
    """What lies under a prefix of a store, through the client of its kind (`store.objects`). Raises the store's errors.

    `origin` and `uri` are its address as a model file has it.
    """

    def __init__(self, client: Any, uri: str, log: Log | None = None) -> None:
        self._client, self._log = client, log or (lambda _: None)
        self._where = address(uri)
        self._bucket, self._prefix = self._where.bucket, self._where.prefix
        self._objects = objects(client, self._where)
        self._sizes: dict[str, int] = {}
        self.origin = self.uri = self._where.uri

    def names(self, below: str = "") -> list[str]:
        found = self._listed(below, deep=False)
        self._sizes.update({below + name: size for name, size in found.items()})
        return sorted(found)

    def folders(self, last: str) -> list[str]:
        # A prefix cannot appear whole, as a folder of a machine can.
        names = [name.split("/") for name in self.everything()]
        return [folder for folder, *rest in names if rest == [last]]

    def everything(self, below: str = "") -> dict[str, int]:
        """{name: bytes} of every file below `below`."""
        return {below + name: size for name, size in self._listed(below, deep=True).items()}

    def inside(self, folder: str) -> Prefix:
        return Prefix(self._client, f"{self.uri}{folder}/", self._log)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def tag(self, name: str) -> str | None:
        """The store's; None where there is no such file."""
        head = self._objects.head(self._prefix + name)
        return head.tag if head else None

    def bring(self, name: str, target: Path) -> None:
        progress = Download(name, self._sizes[name], self._log) if name in self._sizes else None
        self._objects.download(self._prefix + name, target, progress)
        if progress:
            progress.done()

    def read(self, name: str) -> bytes | None:
        found = self._objects.get(self._prefix + name)
        return found[0] if found else None

    def put(self, folder: Path, name: str, last: str) -> None:
        if self.read(f"{name}/{last}") is not None:  # its files would be overwritten one by one
            raise StoreUnavailable(f"{self.at(name)} came to be meanwhile, by another run; a retry finds it")
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / last):
            file = f"{self._prefix}{name}/{path.relative_to(folder).as_posix()}"
            self._objects.put(file, path, files.sha256(path))
        # Somebody else may have finished one of this name meanwhile: a retry finds theirs.
        self._objects.put(f"{self._prefix}{name}/{last}", folder / last, files.sha256(folder / last), over=NOTHING)

    def clear(self, name: str) -> None:
        self._objects.remove(self._prefix + file for file in self.everything(f"{name}/"))

    def _listed(self, below: str, *, deep: bool) -> dict[str, int]:
        """{name below `below`: bytes}, without the markers that some tools leave for folders."""
        prefix = self._prefix + below
        found = self._objects.listed(prefix, deep=deep)
        return {one.key[len(prefix) :]: one.size for one in found if one.size or not one.key.endswith("/")}
