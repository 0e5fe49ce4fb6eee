"""Samples of what users send: a few pictures of many requests, for a bounded time, in the place that a shadow reads.

KServe's logger sends each request to a collector as a CloudEvent (docs/facts.md#kserves-logger). Of a service's
requests one is taken now and then; nothing of it is kept but its first picture.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from model_release.cluster.pairs import LARGEST_PICTURE

#: CloudEvents' type of a request, as KServe's logger has it.
REQUEST = "org.kubeflow.serving.inference.request"
#: Bytes of a request.
LARGEST_BODY = 12 << 20

# Where a request has its picture (docs/requests.md).
_KEYS = ("data", "b64", "image", "image_bytes", "bytes", "body")
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
_TIME, _DIGITS = "%Y%m%dT%H%M%S%f", 8


class PictureStore(Protocol):
    """Where pictures are kept: `store.bucket.Bucket`, or `PictureFolder`. Errors are its own."""

    def names(self) -> list[str]: ...
    def write_bytes(self, key: str, content: bytes, content_type: str) -> None: ...
    def remove(self, names: list[str]) -> None: ...


@dataclass(frozen=True)
class PictureFolder:
    """A folder of this machine, for its owner alone."""

    path: Path

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir() if path.is_file()]

    def write_bytes(self, key: str, content: bytes, content_type: str) -> None:
        passing = self.path / f".{key}"
        passing.touch(0o600)
        passing.write_bytes(content)
        passing.rename(self.path / key)

    def remove(self, names: list[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)


@dataclass
class Collector:
    """Keeps at most `most` pictures in `place`, none for longer than `keep`: one is taken each `keep / most`, give or
    take a half by chance, so that they are spread over all of that time. None is taken again that is there, or was
    within `keep`: a shadow sends the same ones once more, and the logger tells of its requests, too.

    `services` (namespace/name) are those whose requests are taken; empty: all. One process at a time writes to a place;
    started again, it goes on with what is there. Files that are not named as its own are left alone.
    """

    place: PictureStore
    most: int = 500
    keep: timedelta = timedelta(days=1)
    services: frozenset[str] = frozenset()
    chance: random.Random = field(default_factory=random.Random)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    kept: int = 0
    _due: datetime | None = None
    _known: dict[str, datetime] = field(default_factory=dict)  # digests of pictures, and when they were last there

    def wants(self, headers: Mapping[str, str]) -> bool:
        """Whether a picture of this request would be taken: before its body is read."""
        said = {name.lower(): value for name, value in headers.items()}
        service = f"{said.get('ce-namespace', '')}/{said.get('ce-inferenceservicename', '')}"
        wanted = said.get("ce-type") == REQUEST and (not self.services or service in self.services)
        if not wanted or self._due is None:
            return wanted
        # A clock that was set back would else have it wait until then.
        return not timedelta(0) < self._due - self.now() <= self.keep / self.most * 1.5

    def take(self, body: bytes) -> bool:
        """Keeps the first picture of a request, where it has one that can be told to be one, and that is new."""
        picture = _picture(body)
        if picture is None:
            return False
        content, kind = picture
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        if digest in self._known:
            return False
        now = self.now()
        name = f"{now:{_TIME}}-{digest}.{kind}"
        # Before it is written: a place that is away is not asked again for each request.
        self._due = now + self.keep / self.most * (0.5 + self.chance.random())
        self.place.write_bytes(name, content, "application/octet-stream")
        self.kept += 1
        self.tidy()
        return True

    def tidy(self) -> int:
        """Removes what is older than `keep`, and the oldest of more than `most`. Returns how many were removed."""
        now = self.now()
        named = sorted((when, name) for name in self.place.names() if (when := _time_of(name)) is not None)
        self._known |= {name.partition("-")[2][:_DIGITS]: now for _, name in named}
        self._known = {digest: seen for digest, seen in self._known.items() if seen >= now - self.keep}
        # A clock that was ahead by more than that has named some that would never be old.
        young = [name for when, name in named if abs(now - when) <= self.keep]
        kept = set(young[-self.most :])
        gone = [name for _, name in named if name not in kept]
        if gone:
            self.place.remove(gone)
        return len(gone)


def _time_of(name: str) -> datetime | None:
    """When it was taken; None for a file that is not named as the collector's. A dot before it is of one that a kill
    left half written."""
    try:
        return datetime.strptime(name.removeprefix(".").partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def _picture(body: bytes) -> tuple[bytes, str] | None:
    """(the first picture, its kind) of a request's body: a picture's own bytes, or JSON with one in base64."""
    found = body
    if _kind(body) is None:
        try:
            found = base64.b64decode(_text(json.loads(body)), validate=True)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
    kind = _kind(found)
    return (found, kind) if kind is not None and len(found) <= LARGEST_PICTURE else None


def _text(said: Any) -> str:
    """The base64 of the first picture: V1, V2, and as Hugging Face's clients write it."""
    given = said.get("instances") or said.get("inputs") or said
    one = given[0] if isinstance(given, list) else given
    if isinstance(one, dict) and isinstance(one.get("data"), list):
        one = one["data"][0]
    text = str(one if isinstance(one, str) else one[next((key for key in _KEYS if key in one), "data")])
    return text.partition(";base64,")[2] or text


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((kind for begin, kind in _KINDS.items() if content.startswith(begin)), None)
