"""Objects, their resourceVersion and the log of changes, kept in SQLite so that a restart finds them again."""

from __future__ import annotations

import asyncio
import copy
import json
import sqlite3
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sandbox.interfaces import Manifest

LOG_LENGTH = 5000


class Key(NamedTuple):
    kind: str  # Kind.id
    namespace: str  # "" at the cluster scope
    name: str


@dataclass(frozen=True)
class Change:
    version: int
    key: Key
    before: Manifest | None  # None: it is new
    object: Manifest  # as written, or as it was last
    deleted: bool = False


class Store:
    """What the API serves. Writes are durable when `put` or `drop` returns.

    One counter numbers every write; it is kept across restarts and deletions, so a resourceVersion never
    comes back. The log of changes is in memory only: a watch that asks for an older version is told so
    (`too_old`, 410 Expired) and lists again, as with a real API server.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._objects: dict[Key, Manifest] = {}
        self._log: deque[Change] = deque(maxlen=LOG_LENGTH)
        self._tick = asyncio.Event()
        self._db = sqlite3.connect(path or ":memory:")
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        with self._db:
            self._db.execute("create table if not exists object (key text primary key, body text not null)")
            self._db.execute("create table if not exists counter (version integer not null)")
            if not self._db.execute("select 1 from counter").fetchone():
                self._db.execute("insert into counter values (0)")
        self.version: int = self._db.execute("select version from counter").fetchone()[0]
        for key, body in self._db.execute("select key, body from object"):
            self._objects[Key(*json.loads(key))] = json.loads(body)

    def close(self) -> None:
        self._db.close()

    def get(self, key: Key) -> Manifest | None:
        """A copy of the object, the caller's to change; None when there is none."""
        found = self._objects.get(key)
        return copy.deepcopy(found) if found is not None else None

    def all(self, kind: str, namespace: str | None = None, label: tuple[str, str] | None = None) -> Iterator[Manifest]:
        """Copies of all objects of a kind, by namespace and name; `namespace` None means all of them, and `label` those
        alone that have it with this value."""
        keys = [
            key
            for key, found in self._objects.items()
            if key.kind == kind
            and namespace in (None, key.namespace)
            and (label is None or (found["metadata"].get("labels") or {}).get(label[0]) == label[1])
        ]
        for key in sorted(keys):
            yield copy.deepcopy(self._objects[key])

    def put(self, key: Key, obj: Manifest) -> Manifest:
        """Write an object, new or changed, under the next resourceVersion; returns what was written."""
        obj = copy.deepcopy(obj)
        self._write(key, obj, "replace into object values (?, ?)")
        self._objects[key] = obj
        return copy.deepcopy(obj)

    def drop(self, key: Key) -> Manifest:
        """Delete an object; returns its last form, under the version of the deletion."""
        obj = copy.deepcopy(self._objects[key])
        self._write(key, obj, "delete from object where key = ?", deleted=True)
        del self._objects[key]
        return copy.deepcopy(obj)

    def _write(self, key: Key, obj: Manifest, statement: str, deleted: bool = False) -> None:
        version = self.version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        row = (json.dumps(key), json.dumps(obj))
        with self._db:
            self._db.execute(statement, row[: statement.count("?")])
            self._db.execute("update counter set version = ?", (version,))
        self.version = version
        self._log.append(Change(version, key, self._objects.get(key), obj, deleted))
        self._tick.set()
        self._tick = asyncio.Event()

    @property
    def tick(self) -> asyncio.Event:
        """An event that the next write sets. Take it before reading, wait for it after."""
        return self._tick

    def too_old(self, version: int) -> bool:
        """Whether changes after `version` are no longer all in the log."""
        oldest = self._log[0].version if self._log else self.version + 1
        return version < oldest - 1

    def changes_after(self, version: int) -> list[Change]:
        newer: list[Change] = []
        for change in reversed(self._log):
            if change.version <= version:
                break
            newer.append(change)
        newer.reverse()
        return newer
