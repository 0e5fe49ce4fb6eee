"""A small world for the pages: services, leases, releases and lines that were written by hand, and can be broken.

What is read of it is counted: a page must not read more than it shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fastapi import HTTPException, Request

from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Lease
from model_release.judging.record import Record
from model_release.metrics.prometheus import Result, Series
from model_release.release.index import Entry, Page
from model_release.spec import ModelSpec
from model_release.web.sources import Models

from .makers import NOW, busy_lines, claim_of, lease_of, record_of, service_of, spec


@dataclass
class Fault:
    """What is down: each is the error that its read raises."""

    store: Exception | None = None
    cluster: Exception | None = None
    leases: Exception | None = None
    prometheus: Exception | None = None


@dataclass
class World:
    """Sources by hand. `reads` counts what was asked, by what it was asked of."""

    specs: dict[str, ModelSpec] = field(default_factory=dict)
    live: dict[str, InferenceService] = field(default_factory=dict)
    held: dict[str, Lease] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    fault: Fault = field(default_factory=Fault)
    unread: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=lambda: {"prometheus": "http://prometheus.test:9090"})
    lines: Callable[[str, datetime], list[Series]] | None = None
    reads: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> Record:
        self.records[record.release] = record
        return record

    # What the pages ask

    def models(self) -> Models:
        return Models(self.specs, self.unread)

    def releases(self, store: str) -> _Releases:
        return _Releases(self, store)

    def services(self, namespace: str) -> dict[str, InferenceService]:
        self.reads["LIST inferenceservices"] += 1
        if self.fault.cluster:
            raise self.fault.cluster
        return {name: one for name, one in self.live.items() if one.namespace == namespace}

    def leases(self, namespace: str) -> dict[str, Lease]:
        self.reads["LIST leases"] += 1
        if error := self.fault.cluster or self.fault.leases:
            raise error
        return {name: one for name, one in self.held.items() if one.namespace == namespace}

    def prometheus(self) -> Any:
        return _Prometheus(self)

    def addresses(self) -> dict[str, str]:
        return self.known

    def release_of(self, one: ModelSpec, run_id: str) -> str | None:
        return next((name for name, it in self.records.items() if it.run["run_id"] == run_id), None)


@dataclass
class _Releases:
    world: World
    store: str

    def _entries(self) -> list[Entry]:
        self.world.reads["index"] += 1
        if self.world.fault.store:
            raise self.world.fault.store
        models = {name for name, one in self.world.specs.items() if one.store == self.store}
        entries = [Entry.of(one) for one in self.world.records.values() if one.model in models]
        return sorted(entries, key=lambda entry: entry.cursor, reverse=True)

    def page(
        self,
        *,
        model: str | None = None,
        service: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page:
        fits = [
            entry
            for entry in self._entries()
            if (model is None or entry.model == model)
            and (service is None or entry.service == service)
            and (outcome is None or (entry.outcome or "running") == outcome)
            and (before is None or entry.cursor < before)
        ]
        return Page(fits[:limit], fits[limit - 1].cursor if len(fits) > limit else None)

    def newest(self, *, model: str | None = None, service: str | None = None) -> Entry | None:
        return next(iter(self.page(model=model, service=service, limit=1).entries), None)

    def record(self, release: str) -> Record | None:
        self.world.reads["record"] += 1
        if self.world.fault.store:
            raise self.world.fault.store
        return self.world.records.get(release)


@dataclass
class _Prometheus:
    world: World

    def __enter__(self) -> _Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def query(self, promql: str, moment: datetime | None = None) -> Result:
        self.world.reads["query"] += 1
        if self.world.fault.prometheus:
            raise self.world.fault.prometheus
        assert moment is not None
        return Result(self.world.lines(promql, moment) if self.world.lines else [])


@dataclass
class Gate:
    """Sign-in by hand: who comes with the header or cookie `user`, and which DAGs each may see (None: all)."""

    users: dict[str, set[str] | None] = field(default_factory=lambda: {"ada": None})
    everybody: str | None = None

    @property
    def user(self) -> Callable[..., Any]:
        def user(request: Request) -> str:
            name = request.headers.get("x-user") or request.cookies.get("user") or self.everybody
            if name not in self.users:
                raise HTTPException(401, "Not authenticated")
            return str(name)

        # FastAPI resolves annotations by the function's own module.
        user.__annotations__ = {"request": Request, "return": str}
        return user

    def readable(self, user: str, dag_ids: Collection[str]) -> set[str]:
        allowed = self.users[user]
        return set(dag_ids) if allowed is None else allowed & set(dag_ids)

    def login(self, back: str) -> str:
        return f"/auth/login/?next={back}"


def example(now: datetime = NOW) -> World:
    """A fleet with one of each: a live canary, a promoted, a rolled back, an inconclusive, a frozen, a new service."""
    world = World()
    for name in ("digits", "faces", "plants", "receipts", "street-signs", "x-rays"):
        world.specs[name] = spec(name)
    running = world.add(record_of(world.specs["digits"], outcome=None, started=now - timedelta(minutes=5), looks=3))
    world.add(record_of(world.specs["digits"], started=now - timedelta(days=2), number=7, evaluated=True))
    world.add(record_of(world.specs["faces"], started=now - timedelta(hours=3), evaluated=True))
    world.add(record_of(world.specs["plants"], started=now - timedelta(days=1), outcome="rolled_back", rate=0.06))
    world.add(record_of(world.specs["receipts"], started=now - timedelta(days=9), outcome="inconclusive", looks=4))
    world.add(record_of(world.specs["street-signs"], started=now - timedelta(days=30)))
    share = int(running.traffic[-1]["percent"])
    world.live["digits"] = service_of("digits", {1: 100 - share, 2: share})
    world.held["digits"] = lease_of("digits", claim_of("digits", running.release, share))
    for name in ("faces", "plants", "receipts"):
        world.live[name] = service_of(name, {1: 100})
    world.live["street-signs"] = service_of("street-signs", {3: 100}, ready=False)
    world.held["receipts"] = lease_of("receipts", frozen="audit until Friday (Grace)")
    world.lines = busy_lines(
        "digits", {"digits-predictor-00001": (18.0, 0.002, 42.0), "digits-predictor-00002": (2.1, 0.004, 47.0)}
    )
    return world
