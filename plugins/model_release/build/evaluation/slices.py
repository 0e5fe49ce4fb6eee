"""What labelled images have in common beside their labels, and how well each such slice of them is answered. Pure.

A slice is told by the folder that an image lies in within its label's folder (`happy/phone/1.jpg`), and by `slices.csv`
beside the labels' folders:

```
image,country,device
happy/0001.jpg,fr,phone
sad/0003.jpg,de,
```

Each further column is a kind of slices. An image without a line, or with nothing in a column, is in the slice "none".
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from model_release.build.evaluation.measures import Answers, Truth
from model_release.errors import SpecError
from model_release.judging.pairs import bounds

FILE = "slices.csv"
#: Its bytes: some half a million images.
LARGEST_FILE = 32_000_000
#: Columns of the file; as many as a service may tell its traffic by.
MOST_KINDS = 5
#: Of each kind the largest are told apart; the images of all others are one, "other".
MOST = 50
NONE, OTHER, FOLDER = "none", "other", "folder"
_LONGEST = 60  # characters of a slice's name

Kinds = Mapping[str, Mapping[str, str]]  # {kind: {image: slice}}


def check_size(uri: str, size: int) -> None:
    """Raises `SpecError` for a file that is too large to be read."""
    if size > LARGEST_FILE:
        raise SpecError(f"{uri.rstrip('/')}/{FILE} has {size} bytes; {LARGEST_FILE} at most are read")


def slices(uri: str, images: Iterable[str], content: bytes | None) -> dict[str, dict[str, str]]:
    """The slices of `images`, named by their paths below `uri`: by folder where one lies in any, and by the columns of
    `content`, the file. Raises `SpecError`, one line that names the file's line and column, for one that says anything
    else."""
    names = list(images)
    found: dict[str, dict[str, str]] = {}
    folders = {name: name.split("/")[1] if name.count("/") > 1 else NONE for name in names}
    if set(folders.values()) - {NONE}:
        found[FOLDER] = folders
    if content is not None:
        found |= _columns(f"{uri.rstrip('/')}/{FILE}", set(names), content)
    return found


def _columns(file: str, images: set[str], content: bytes) -> dict[str, dict[str, str]]:
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        head = [column.strip() for column in next(rows, [])]
        kinds = head[1:]
        if head[:1] != ["image"] or not all(kinds) or not 1 <= len(kinds) <= MOST_KINDS:
            raise SpecError(
                f"{file}:1 says {','.join(head)!r}; right is image, which is a path, and one to {MOST_KINDS} columns "
                "more, as in image,country"
            )
        if len({*kinds, FOLDER}) <= len(kinds):
            raise SpecError(f"{file}:1 has a column twice, or one called {FOLDER}, as the images' own folders are")
        found = {kind: dict.fromkeys(images, NONE) for kind in kinds}
        told: set[str] = set()
        for row in rows:
            where = f"{file}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(head):
                raise SpecError(f"{where} has {len(row)} fields, and the first line {len(head)}")
            if row[0] not in images:
                raise SpecError(f"{where}: image {row[0]!r} is not there; right is a path such as {min(images)}")
            if row[0] in told:
                raise SpecError(f"{where}: image {row[0]!r} has a line before this one")
            told.add(row[0])
            for kind, value in zip(kinds, row[1:], strict=True):
                if len(value) > _LONGEST or not value.isprintable():
                    raise SpecError(
                        f"{where}: {kind} {value[:_LONGEST]!r} is no plain name of up to {_LONGEST} letters"
                    )
                found[kind][row[0]] = value.strip() or NONE
    except UnicodeDecodeError as error:
        raise SpecError(f"{file} is not UTF-8: byte {error.start}") from None
    except csv.Error as error:
        raise SpecError(f"{file}:{rows.line_num} cannot be read as CSV: {error}") from None
    return found


def by_slice(truth: Truth, told: Kinds, stable: Answers | None, candidate: Answers) -> list[dict[str, Any]]:
    """How well each slice is answered: `by` (the kind) and `slice`, `images`, `accuracy`, and, beside `stable`,
    `before` (its accuracy) and `regressions`, images that it answers right and the candidate wrong. With 95 %
    confidence each, of all images of such a slice a share above `lower`, and one below `upper`, are regressions
    (`judging.pairs`).

    Kind by kind, those first of which surely the most got worse.
    """
    rows: list[dict[str, Any]] = []
    for by, places in told.items():
        apart = {name for name, _ in Counter(places.values()).most_common(MOST)}
        parts: dict[str, list[str]] = {}
        for name, place in places.items():
            parts.setdefault(place if place in apart else OTHER, []).append(name)
        found = [_row(by, part, names, truth, stable, candidate) for part, names in parts.items()]
        rows += sorted(found, key=lambda row: (-row.get("lower", 0.0), row["accuracy"], row["slice"]))
    return rows


def _row(
    by: str, part: str, names: list[str], truth: Truth, stable: Answers | None, candidate: Answers
) -> dict[str, Any]:
    right = {name for name in names if candidate[name].label == truth[name]}
    row = {"by": by, "slice": part, "images": len(names), "accuracy": len(right) / len(names)}
    if stable is None:
        return row
    before = {name for name in names if stable[name].label == truth[name]}
    worse = len(before - right)
    lower, upper = bounds(worse, len(names))
    return {**row, "before": len(before) / len(names), "regressions": worse, "lower": lower, "upper": upper}
