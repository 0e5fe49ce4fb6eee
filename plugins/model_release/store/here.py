"""What one task of a build leaves for the next, in a folder that all workers share: one machine's, or a shared volume.

In place of `builds/` in the store, for builds on workers: a checkpoint of 343 MB otherwise goes to the store and back
five times. The folder has the same names, verified by the same SHA-256.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from stat import S_ISREG

from model_release.errors import StoreRefused, VersionDamaged
from model_release.store import files

_RECORD = ".stash.json"
#: Seconds after which nobody is taken to be on the way with a build.
IDLE = 3600.0


class Here:
    """Builds in the folder `root`, of `limit` bytes in all: where a new one makes them more, the oldest go, but none
    that was touched in the last hour.

    Methods raise `StoreRefused` for a folder that cannot be written, and `VersionDamaged` as the store's do.
    """

    def __init__(self, root: Path, limit: int, log: Callable[[str], None] | None = None) -> None:
        self._root, self._limit, self._log = root, limit, log or (lambda _: None)

    def stash(self, key: str, directory: Path, known: Mapping[str, str] | None = None) -> None:
        """Leaves the files of `directory` under `key`, with the digests in `known` where the caller has them. Run
        again, they take the place of what was there."""
        target = self._root / key
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            sums = files.digests(directory, known)
            with files.replaced(target) as fresh:
                for name in sums:
                    _put(directory / name, fresh / name)
                (fresh / _RECORD).write_text(json.dumps(sums), encoding="utf-8")
            self._make_room(key.split("/", maxsplit=1)[0])
        except OSError as error:
            cure = "MODEL_RELEASE_BUILDS names a folder that workers may write"
            raise StoreRefused(f"{target}: a build cannot be left there: {error}; {cure}") from error

    def unstash(self, key: str, directory: Path, only: Collection[str] | None = None) -> dict[str, str]:
        """Brings what `stash(key, …)` left into `directory`, replacing it, each file verified by its SHA-256; with
        `only` no file but those. Returns {name: SHA-256} of what came."""
        source = self._root / key
        try:
            sums = chosen(json.loads((source / _RECORD).read_text(encoding="utf-8")), only)
        except (OSError, ValueError):
            raise VersionDamaged(
                f"{source} holds no finished build (any more); clear task resolve, and the build begins anew"
            ) from None
        with files.replaced(directory) as fresh:
            for name, digest in sums.items():
                try:
                    _put(source / name, fresh / name)
                except FileNotFoundError:
                    raise VersionDamaged(f"{source / name} is gone; run the task before this one again") from None
                if files.sha256(fresh / name) != digest:
                    raise VersionDamaged(f"{source / name} was changed after it was stashed")
        os.utime(source / _RECORD)
        return sums

    def _make_room(self, build: str) -> None:
        found = []
        for folder in self._root.iterdir():
            its = [(path.name, status) for path in folder.rglob("*") if (status := _status(path)) is not None]
            touched = max((status.st_mtime for name, status in its if name == _RECORD), default=0.0)
            found.append((touched, sum(status.st_size for _, status in its if S_ISREG(status.st_mode)), folder))
        total = sum(size for _, size, _ in found)
        for touched_last, size, folder in sorted(found):
            if total <= self._limit:
                return
            if folder.name != build and time.time() - touched_last > IDLE:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size
                self._log(f"build {folder.name} gave way: builds may have {self._limit / 1e9:.1f} GB here")


def chosen(sums: Mapping[str, str], only: Collection[str] | None) -> dict[str, str]:
    """Those of a stash that are asked for."""
    return {name: digest for name, digest in sums.items() if only is None or name in only}


def _status(path: Path) -> os.stat_result | None:
    """None for what another worker has taken away, or renamed, in this moment."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _put(source: Path, target: Path) -> None:
    """The same file by another name, or a copy where that cannot be. Nobody writes into a file of a build."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
