"""A new candidate in a model's source starts a release, without waiting for the schedule: Airflow's `AssetWatcher`.

The triggerer looks. An event may come twice (a triggerer that died, two that looked, a training that offers what the
look saw as well); one release comes of it, since `resolve` notes in the store which candidate a release took.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from model_release.errors import ReleaseError, StoreContested
from model_release.spec import ModelSpec
from model_release.store.objects import address
from model_release.tasks import connections
from model_release.tasks.aside import aside

if TYPE_CHECKING:
    from model_release.store.store import Store

# Candidates that were taken out of turn and are kept in mind.
_NAMED = 50


class CandidateTrigger(BaseEventTrigger):
    """Looks at a source every so often, for ever, and tells of each newest candidate that no release has taken.

    Given: model, source (as `build.source` takes it), store (its prefix), root (the project's folder), seconds. Event:
    {"model", "candidate"}. Started anew, it tells again of one that it told of before and that was not taken yet.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given
        self._reach: _Reach | None = None

    @classmethod
    def of(cls, spec: ModelSpec, root: Path) -> CandidateTrigger:
        assert spec.source.watch is not None
        seconds = spec.source.watch.total_seconds()
        return cls(model=spec.model, source=spec.source.place, store=spec.store, root=str(root), seconds=seconds)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", self.given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        told, line = "", ""
        while True:
            try:
                found = await aside(self._look)
                now = f"The newest candidate is {found}" if found else "No candidate is there yet"
            except (ReleaseError, OSError) as error:  # of a folder that is away, or not to be read
                found, now = None, f"Nothing is seen: {error}"
            if now != line:
                self.log.info("%s: %s", self.given["model"], now)
                line = now
            if found is not None and found != told:
                told = found
                yield TriggerEvent({"model": self.given["model"], "candidate": found})
            await asyncio.sleep(self.given["seconds"])

    def _look(self) -> str | None:
        """The newest candidate, where no release has taken it."""
        from model_release.build.source import newest

        source: Mapping[str, str] = self.given["source"]
        # Made once: what a client reads of its service when it is made takes the triggerer's time from all others.
        try:
            reach = self._reach = self._reach or _Reach(source, self.given["store"])
            found = newest(source, base=Path(self.given["root"]), reach=reach.at, hub=reach.hub, mlflow=reach.mlflow)
            taken = _taken(reach.store, self.given["model"])[0] if found else {}
        except ReleaseError:
            self._reach = None  # keys may have been changed
            raise
        return None if found is None or _taker(taken, found) else found


class _Reach:
    """The clients of a source and of the store, by the connections that its release uses."""

    def __init__(self, source: Mapping[str, str], store: str) -> None:
        self.store = connections.store(store)
        self._clients: dict[str, Any] = {}
        self.hub = connections.hub() if "hub" in source else None
        self.mlflow = connections.mlflow() if "mlflow" in source else None

    def at(self, uri: str) -> Any:
        """The client of the source's own store."""
        place = address(uri).place
        self._clients[place] = self._clients.get(place) or connections.reach(uri)
        return self._clients[place]


def take(store: Store, model: str, candidate: str, release: str, *, by_event: bool, newest: bool = True) -> str | None:
    """Notes that `release` takes the candidate. For a run that an event started: which other release took it already;
    None where none did, or that one came to nothing before it was decided. Without `newest` it is one that somebody
    named, or that was the newest once: for that, what was taken before does not become new again."""
    from model_release.release.index import History

    for _ in range(5):  # each lost race is another run of this model, and a model has one at a time
        kept, tag = _taken(store, model)
        other = _taker(kept, candidate)
        if by_event and other not in (None, release):
            record = History(store).record(str(other))
            if record is not None and record.outcome != "failed":
                return other
        new = {**kept, "candidate": candidate, "release": release}
        if not newest and candidate != kept.get("candidate"):
            named = {**kept.get("named", {}), candidate: release}
            new = {**kept, "named": dict(list(named.items())[-_NAMED:])}
        if kept == new:
            return None
        try:
            store.write_json(_key(model), new, if_match=tag)
            return None
        except StoreContested:
            continue
    raise StoreContested(f"{store.uri}{_key(model)}: somebody writes it all the time; try again")


def _taker(kept: Mapping[str, Any], candidate: str) -> str | None:
    """The release that took it; None where none did."""
    found = kept.get("release") if kept.get("candidate") == candidate else kept.get("named", {}).get(candidate)
    return None if found is None else str(found)


def _taken(store: Store, model: str) -> tuple[dict[str, Any], str | None]:
    """{"candidate": the newest that was taken, "release": by which, "named": {another one: its release}}."""
    kept, tag = store.read_json(_key(model))
    return kept or {}, tag


def _key(model: str) -> str:
    return f"candidates/{model}.json"
