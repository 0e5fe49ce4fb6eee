"""Sample pictures: plain image files in a folder or below a store's prefix, such as a service's clients send them.

Folders within are kinds of pictures, and only named where answers differ; labelled images of an evaluation do as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from model_release.build.evaluation.images import SUFFIXES
from model_release.cluster.pairs import LARGEST_PICTURE, Picture
from model_release.errors import SpecError, StoreUnavailable
from model_release.store.clients import objects
from model_release.store.objects import address

#: As many files are looked at: a place may hold millions.
LISTED = 100_000


def chosen(place: str, root: Path, reach: Callable[[str], Any], many: int, seed: str) -> list[Picture]:
    """Up to `many` pictures at `place`, drawn by chance: a store's prefix, read with the client that `reach` gives for
    it, or a folder below `root`. Equal seeds draw the same ones while the place is the same. Nothing is read but their
    names, until each is asked for; one that is gone by then is None.

    Raises:
        SpecError: there is no such folder, or no picture in it.
        StoreRefused, StoreUnavailable: by the store.
    """
    sizes, read = _in_store(reach(place), place) if "://" in place else _in_folder(root / place)
    names = sorted(name for name, size in sizes.items() if _is_picture(name) and 0 < size <= LARGEST_PICTURE)
    if not names:
        raise SpecError(f"{place} holds no picture ({', '.join(SUFFIXES)}) of at most {LARGEST_PICTURE >> 20} MiB")
    drawn = random.Random(seed).sample(names, min(many, len(names)))  # noqa: S311
    return [(name.split("/", 1)[0] if "/" in name else ".", partial(read, name)) for name in drawn]


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return name.lower().endswith(SUFFIXES) and name.isprintable() and not hidden


def _in_folder(folder: Path) -> tuple[dict[str, int], Callable[[str], bytes | None]]:
    """Links are not followed: whoever may write samples need not be allowed to read what the worker can read."""
    if not folder.is_dir():
        raise SpecError(f"{folder} is no folder; sample pictures belong there")
    found = ((path, status) for path in folder.rglob("*") if (status := _status(path)) and S_ISREG(status.st_mode))
    sizes = {path.relative_to(folder).as_posix(): status.st_size for path, status in islice(found, LISTED)}

    def read(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{folder / name} cannot be read: {error.strerror}") from error

    return sizes, read


def _status(path: Path) -> os.stat_result | None:
    """None for what is removed in this moment."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _in_store(client: Any, uri: str) -> tuple[dict[str, int], Callable[[str], bytes | None]]:
    where = address(uri)
    bucket, prefix = objects(client, where), where.prefix
    sizes = {one.key[len(prefix) :]: one.size for one in islice(bucket.listed(prefix), LISTED)}

    def read(name: str) -> bytes | None:
        found = bucket.get(prefix + name)
        return None if found is None else found[0]

    return sizes, read
