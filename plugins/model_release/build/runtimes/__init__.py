"""Serving runtimes, one module each. What is said of one here is all that the rest of the project knows of it.

A version, whichever runtime serves it, is `config/` (settings) and `model-store/<service><SUFFIX>`: one stored zip with
the network, `model.json` and the code that reads and answers requests. On a cluster its ServingRuntime is called
`model-release-<NAME>` unless the model file names another (`service.runtime`), and answers V1 and V2.

The lower half of a module, `Loaded`, is run where this package is not installed (`build.bare_check`), so a module
imports nothing of the project at its top.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Protocol, cast

from model_release.errors import ArchiveError

NAMES = ("torchserve", "kserve")
DEFAULT = "torchserve"

_STORE = "model-store/"
# Zip knows no earlier time.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


class Loaded(Protocol):
    """An unpacked archive that answers in this process. Made as `Loaded(folder, name)`; raises whatever keeps it from
    loading. `holder.model` is the network, which may be replaced by one that is called alike."""

    holder: Any

    def predict(self, instances: list[Any]) -> list[Any]:
        """The answers to a request in V1. Raises what the server's own code raises."""

    def is_clients(self, error: Exception) -> bool:
        """Whether that is the client's fault: 400."""

    def answers(self, pictures: list[bytes]) -> list[Any]:
        """For each picture its labels, best first, or, as text, why it is refused. May be called from several threads.
        Raises where the model fails."""


class Runtime(Protocol):
    """A module of this package.

    Attributes:
        NAME: what a model file says.
        ARTIFACTS: what it serves of a model, best first: `torch.export` or `torchscript` (`build.trace`).
        ENTRY: the file in include/handlers/ that the server meets; the files beside it go with it.
        SUFFIX: of its archives; no two runtimes have the same.
        PACKAGES: what shapes an archive's bytes, beside the packages of the export.
        MANIFEST: the ServingRuntime of that name, a file of the project.
        HIDE_STATUS: parts of images' names that answer a client's fault (400) with 500.
        SETTINGS: which words of `steps.asked_of` do.
        ENVIRONMENT: what its container has, and the bare check too.
        CONFIG: the file in a version that its server reads first, and no other runtime has.
    """

    NAME: str
    ARTIFACTS: tuple[str, ...]
    ENTRY: str
    SUFFIX: str
    PACKAGES: tuple[str, ...]
    MANIFEST: str
    HIDE_STATUS: tuple[str, ...]
    SETTINGS: tuple[str, ...]
    ENVIRONMENT: Mapping[str, str]
    CONFIG: str
    Loaded: Any

    def is_whole(self, directory: Path, service: str) -> bool:
        """Whether `write` has ended in this folder."""

    def write(
        self,
        directory: Path,
        export_dir: Path,
        service: str,
        handler: Path,
        scratch: Path,
        *,
        response_timeout: int,
        batching: Mapping[str, int] | None,
    ) -> None:
        """Puts a version's files into the empty `directory`: equal bytes for equal input. `batching` is how many
        requests go through the network at once (`max`), and for how long the first waits (`within_ms`)."""


def get(name: str) -> Runtime:
    """The runtime of that name. Raises `ArchiveError` for another name."""
    if name not in NAMES:
        raise ArchiveError(f"{name!r} is no serving runtime; known are {', '.join(NAMES)}")
    return cast(Runtime, importlib.import_module(f"{__name__}.{name}"))


def source(runtime: Runtime) -> Path:
    """The module's own file, for a process that has nothing else of this project."""
    return Path(__file__).with_name(f"{runtime.NAME}.py")


def handler(root: Path, name: str) -> Path:
    """The runtime's handler in the project at `root`."""
    return root / "include" / "handlers" / get(name).ENTRY


def of_handler(file: Path) -> Runtime:
    """Whose handler this is, by its name. Raises `ArchiveError`."""
    for name in NAMES:
        if file.name == get(name).ENTRY and file.is_file():
            return get(name)
    raise ArchiveError(f"{file} is no handler; expected a file named {' or '.join(get(name).ENTRY for name in NAMES)}")


def of_archive(archive: Path) -> Runtime:
    """Whose archive this is, by its name. Raises `ArchiveError`."""
    for name in NAMES:
        if archive.name.endswith(get(name).SUFFIX):
            return get(name)
    known = ", ".join(get(name).SUFFIX for name in NAMES)
    raise ArchiveError(f"{archive.name} is no archive of a serving runtime; known are {known}")


def archives(paths: Iterable[str]) -> list[str]:
    """The archives among a version's files."""
    suffixes = tuple(get(name).SUFFIX for name in NAMES)
    return [path for path in paths if path.startswith(_STORE) and path.endswith(suffixes)]


def archive_file(runtime: Runtime, service: str) -> str:
    """Where the service's archive lies in a version."""
    return f"{_STORE}{service}{runtime.SUFFIX}"


def handler_files(handler: Path) -> list[Path]:
    """A runtime's entry and the modules beside it, which all runtimes share: they travel together."""
    of_handler(handler)
    entries = {get(name).ENTRY for name in NAMES} | {"__init__.py"}
    return [handler, *sorted(path for path in handler.parent.glob("*.py") if path.name not in entries)]


def stored_zip(content: Mapping[str, Path], target: Path) -> None:
    """A zip of {name in it: file} whose bytes depend on names and content alone. Stored: weights do not shrink, and
    what is stored is unpacked in a fraction of the time and cannot swell."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(content, key=lambda name: name.split("/")):
            entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
            entry.external_attr, entry.file_size = 0o644 << 16, content[name].stat().st_size
            with content[name].open("rb") as source_file, archive.open(entry, "w") as sink:
                copyfileobj(source_file, sink, 1 << 20)
