"""The history: releases of all stores in one list, newest first, with filters, a page at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from model_release.errors import SpecError
from model_release.judging.record import OUTCOMES
from model_release.web import live
from model_release.web.evidence import seconds
from model_release.web.sources import Part, Sources, gather

if TYPE_CHECKING:
    from model_release.judging.record import Record
    from model_release.release.index import Entry, Page
    from model_release.spec import ModelSpec

Json = dict[str, Any]

PAGE = 50
CHOICES = ("running", *OUTCOMES)


def releases(
    sources: Sources,
    specs: Mapping[str, ModelSpec],
    *,
    model: str | None = None,
    service: str | None = None,
    outcome: str | None = None,
    before: str | None = None,
    limit: int = PAGE,
) -> Json:
    """A page of the releases of `specs`, those that fit the filters. `next` is the `before` of the page after it.

    Raises:
        SpecError: for an outcome that does not exist.
    """
    if outcome is not None and outcome not in CHOICES:
        raise SpecError(f"outcome: {outcome!r} is none of {', '.join(CHOICES)}")
    wanted = {
        name: spec
        for name, spec in specs.items()
        if (model is None or name == model) and (service is None or spec.service.key == service)
    }
    stores = sorted({spec.store for spec in wanted.values()})
    filters = {"service": service, "outcome": outcome}
    found = {store: _Course(before) for store in stores}
    # Of many stores each has a few of the newest only: little is asked of all, and more of those that may have more.
    each = limit if len(stores) == 1 else max(2, math.ceil(2 * limit / max(len(stores), 1)))
    while behind := _behind(found, limit):
        reads: dict[str, Callable[[], Any]] = {
            store: partial(
                sources.releases(store).page,
                **filters,
                model=_only(store, wanted),
                before=found[store].next,
                limit=each,
            )
            for store in behind
        }
        for store, part in gather(reads).items():
            found[store].add(part, wanted)
    return _merged(found, limit)


def _only(store: str, wanted: Mapping[str, ModelSpec]) -> str | None:
    """The one model that is wanted of a store, which is asked for no other then; None where there are several."""
    models = [name for name, spec in wanted.items() if spec.store == store]
    return models[0] if len(models) == 1 else None


@dataclass
class _Course:
    """What one store has told so far, newest first, and where it goes on: None once it has no more, or failed."""

    next: str | None
    entries: list[Entry] = field(default_factory=list)
    asked: bool = False
    trouble: str | None = None

    def add(self, part: Part[Page], wanted: Collection[str]) -> None:
        self.asked, self.trouble = True, part.trouble
        self.next = part.value.next if part.value is not None else None
        # Releases of a model that was taken from the folder, or that this person may not see, are passed over, and
        # take no place on a page from those that are shown.
        self.entries += [one for one in part.value.entries if one.model in wanted] if part.value is not None else []

    @property
    def open(self) -> bool:
        return not self.asked or self.next is not None


def _behind(found: Mapping[str, _Course], limit: int) -> list[str]:
    """The stores that may hold one of the first `limit` releases and were not asked as far."""
    known = sorted((entry.cursor for course in found.values() for entry in course.entries), reverse=True)
    last = known[limit - 1] if len(known) >= limit else ""
    return [
        store for store, course in found.items() if course.open and (not course.asked or (course.next or "") > last)
    ]


def span(record: Record, now: float | None = None) -> tuple[float, float]:
    """The time of a release with a little before and after, in seconds since the epoch."""
    present = time.time() if now is None else now
    begun = seconds(record.started) or present
    ended = seconds(record.ended) or present
    around = max(60.0, 0.1 * (ended - begun))
    return begun - around, min(ended + around, present)


def _merged(found: Mapping[str, _Course], limit: int) -> Json:
    """The newest of all stores, in one order of time; the cursor of the last is where the next page goes on."""
    entries = [entry for course in found.values() for entry in course.entries]
    entries.sort(key=lambda entry: entry.cursor, reverse=True)
    shown = entries[:limit]
    more = len(entries) > limit or any(course.next is not None for course in found.values())
    return {
        "releases": [live.listed(entry) for entry in shown],
        "next": shown[-1].cursor if shown and more else None,
        "troubles": [f"The store {store}: {course.trouble}" for store, course in found.items() if course.trouble],
    }
