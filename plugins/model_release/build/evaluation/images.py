"""Labelled images: a folder or prefix whose subfolders are named by label, as torchvision's ImageFolder has it.

```
faces/happy/0001.jpg
faces/happy/second shoot/0002.png      folders within a label's folder are the label's own affair
faces/sad/0003.jpg
```

Files that are not named like images, and hidden ones, are left out and counted. An image that lies in no label's
folder is refused: nobody knows what it shows. What else images have in common is told by `slices`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from model_release.build.evaluation import slices
from model_release.build.evaluation.gates import some
from model_release.build.labels import one_of_several
from model_release.errors import SpecError, StoreContested
from model_release.store import files
from model_release.store.clients import objects
from model_release.store.objects import address

Log = Callable[[str], None]

#: Torchvision's, and GIF, which the handler reads as well.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

_DOWNLOADS = 8  # at once; small files wait for the server more than for the line
_LINE_EVERY = 1000  # images


@dataclass(frozen=True)
class LabelledImages:
    """The images at `uri`: `truth` is {name: label}, sorted by name, where a name is the path below `uri`.

    `digest` is the SHA-256 over names and contents (`digest_of` = "contents"), or over names, sizes and ETags
    ("etags") of a store's prefix, whose listing gives no more without a request for each image: an object that changes
    changes its ETag, and an equal one that was uploaded in another way may have another.

    `bring(folder, log)` gives (name, file) of each, in order; images in a store are downloaded into `folder`, once.
    `slices` {kind: {name: slice}} change no answer, and are in no digest.
    """

    uri: str
    digest: str
    digest_of: str
    truth: dict[str, str]
    bring: Callable[[Path, Log], list[tuple[str, Path]]] = field(repr=False)
    slices: slices.Kinds = field(default_factory=dict, repr=False)

    @property
    def support(self) -> dict[str, int]:
        """{label: number of images}, by label."""
        return dict(sorted(Counter(self.truth.values()).items()))

    @property
    def record(self) -> dict[str, Any]:
        return {"uri": self.uri, "digest": self.digest, "digest_of": self.digest_of, "images": len(self.truth)}

    def check_labels(self, known: Collection[str]) -> None:
        """Raises `SpecError` for a folder that is named like no label of the model: its images could only be wrong."""
        strange = [label for label in self.support if label not in known]
        for label in strange:
            if several := one_of_several(label, known):
                raise SpecError(
                    f"{self.uri} has a folder {label}, and {len(several)} classes of the model have that name; name it "
                    f"after the one that is meant: {some(several)}"
                )
        if strange:
            raise SpecError(
                f"{self.uri} has images of {some(strange)}, which the model does not know; it knows "
                f"{some(sorted(known))}, and each folder must be named like one of them"
            )


def labelled(data: str, root: Path, reach: Callable[[str], Any], log: Log) -> LabelledImages:
    """The images at `data`: a store's prefix, read with the client that `reach` gives for it, or a folder below `root`.

    Raises `SpecError` for a place without images, a label's folder without any, and images without a label; the
    store's errors for a store.
    """
    return from_store(reach(data), data, log) if "://" in data else from_folder(root / data, data, log)


def from_folder(folder: Path, uri: str, log: Log) -> LabelledImages:
    """The images in `folder`, which records call `uri`."""
    if not folder.is_dir():
        raise SpecError(f"evaluation.data: {folder} is no folder; it must hold a folder of images for each label")
    names = [path.relative_to(folder).as_posix() for path in _walk(folder) if path.is_file()]
    table = folder / slices.FILE if slices.FILE in names else None
    if table:
        slices.check_size(uri, table.stat().st_size)
    truth = _truth(uri, names, [path.name for path in folder.iterdir() if path.is_dir()], log)
    digest = files.combined({name: files.sha256(folder / name) for name in truth})
    told = slices.slices(uri, truth, table.read_bytes() if table else None)
    return LabelledImages(uri, digest, "contents", truth, lambda _, __: [(name, folder / name) for name in truth], told)


def from_store(client: Any, uri: str, log: Log) -> LabelledImages:
    """The images below the prefix `uri` of a store."""
    where = address(uri)
    bucket, prefix = objects(client, where), where.prefix
    found = {one.key[len(prefix) :]: one for one in bucket.listed(prefix)}
    # A folder marker is an empty object whose key ends in a slash: a folder that somebody made and did not fill.
    markers = [name.split("/", 1)[0] for name in found if name.count("/") == 1 and name.endswith("/")]
    truth = _truth(uri, [name for name in found if name and not name.endswith("/")], markers, log)
    digest = files.combined({name: f"{found[name].tag} {found[name].size}" for name in truth})
    if slices.FILE in found:
        slices.check_size(uri, found[slices.FILE].size)
    table = bucket.get(prefix + slices.FILE) if slices.FILE in found else None
    told = slices.slices(uri, truth, table[0] if table else None)

    def get(folder: Path, number: int, name: str) -> tuple[str, Path]:
        # Named by number: what somebody called an object is no path to write to.
        target = folder / f"{number:07d}"
        if not target.exists():
            content = bucket.get(prefix + name, found[name].tag)
            if content is None:
                raise StoreContested(f"{uri}{name} was removed while the images were read; try again")
            part = target.with_suffix(".part")
            part.write_bytes(content[0])
            part.rename(target)
        return name, target

    def bring(folder: Path, log: Log) -> list[tuple[str, Path]]:
        brought = []
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            for pair in pool.map(lambda entry: get(folder, *entry), enumerate(truth)):
                brought.append(pair)
                if len(brought) % _LINE_EVERY == 0:
                    log(f"fetched {len(brought)}/{len(truth)} images of {uri}")
        return brought

    return LabelledImages(uri, digest, "etags", truth, bring, told)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below; a label's folder may be a link to elsewhere, links further down are not followed."""
    for path in folder.iterdir():
        yield from path.rglob("*") if path.is_dir() else [path]


def _truth(uri: str, names: Iterable[str], folders: Iterable[str], log: Log) -> dict[str, str]:
    """{name: label} of the images among `names`, sorted by name. `folders` are there whether or not they hold any."""
    seen = sorted(
        name
        for name in names
        if name != slices.FILE and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )
    images = [name for name in seen if name.lower().endswith(SUFFIXES)]
    others = [name for name in seen if not name.lower().endswith(SUFFIXES)]
    if others:
        log(f"{uri}: left out {some(others, 3)}, not named like images ({', '.join(SUFFIXES)})")
    for name in images:
        if not name.isprintable() and any("\ud800" <= character <= "\udfff" for character in name):
            raise SpecError(f"{uri}: {name!r} is named in no UTF-8; rename it")
    homeless = [name for name in images if "/" not in name]
    if homeless:
        raise SpecError(
            f"{uri}: {some(homeless, 3)} lies in no folder named by its label; right would be LABEL/{homeless[0]}"
        )
    truth = {name: name.split("/", 1)[0] for name in images}
    there = {name.split("/", 1)[0] for name in seen if "/" in name} | {f for f in folders if not f.startswith(".")}
    empty = sorted(there - set(truth.values()))
    if truth and empty:
        raise SpecError(f"{uri}: the folder of {some(empty)} holds no images; fill it or take it away")
    if not truth:
        raise SpecError(f"{uri} holds no images; right would be a folder of them for each label, as {uri}LABEL/1.png")
    return truth
