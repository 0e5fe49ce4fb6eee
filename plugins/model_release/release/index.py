"""A small index of the decision records, so that a list of releases need not read each of them.

A record holds every window that was counted and may have megabytes; a list shows a line of it. `releases/index/` has
one document for each month (UTC) in which releases were started. It is derived: what it says is what `reindex`
computes from the records, and whoever writes a record notes it here afterwards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from model_release.errors import StoreUnavailable, VersionDamaged
from model_release.judging.record import Record, RecordError

if TYPE_CHECKING:
    from model_release.store.store import Store

FORMAT = 1
RECORDS = "releases/"
INDEX = "releases/index/"

_TRIES = 8  # each lost race is another release of this month that wrote
_REASON = 300  # characters
_MONTH = re.compile(r"\d{4}-\d{2}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION_URI = re.compile(r"/versions/([0-9a-f]{16})/?$")


@dataclass(frozen=True)
class Entry:
    """What a list shows of one release."""

    release: str
    model: str
    service: str  # namespace/name
    version: str | None
    baseline: str | None  # the stable version's name, where its storage URI tells it
    started: str  # ISO 8601
    ended: str | None
    outcome: str | None  # None while it runs
    reason: str  # at most 300 characters
    percent: int  # the canary's traffic as last recorded
    run: dict[str, Any]  # dag_id, run_id, url, note
    cause: str | None = None  # Record.cause

    @classmethod
    def of(cls, record: Record) -> Entry:
        """The record's line. Equal records have equal ones."""
        return cls(
            release=record.release,
            model=record.model,
            service=record.service,
            version=record.version,
            baseline=version_of((record.baseline or {}).get("storage_uri")),
            started=record.started,
            ended=record.ended,
            outcome=record.outcome,
            reason=record.reason if len(record.reason) <= _REASON else f"{record.reason[: _REASON - 1]}…",
            percent=int(record.traffic[-1]["percent"]) if record.traffic else 0,
            run={key: record.run.get(key) for key in ("dag_id", "run_id", "url", "note")},
            cause=record.cause,
        )

    @property
    def cursor(self) -> str:
        """The entry's place in the order of time, as text that sorts: for `History.page(before=…)`."""
        return f"{_utc(self.started)}~{self.release}"


@dataclass(frozen=True)
class Page:
    """Some entries, newest first. `next` is the `before` of the page after this one; None where there is none."""

    entries: list[Entry]
    next: str | None


class History:
    """The releases of one store. Methods raise the store's `StoreRefused`, `StoreUnavailable` and `VersionDamaged`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, record: Record) -> None:
        """Puts the record's entry in, after the record was written. Where nothing changed, nothing is written.

        Two writers of one record may note it in either order: what is put in is the record as the store has it now,
        read after the index, and the write is conditional; so the newest word stands.
        """
        month, entry = _month(record.started), Entry.of(record)
        for left in reversed(range(_TRIES)):
            entries, tag = self._entries(month)
            if entries.get(entry.release) == entry:
                return
            entry = Entry.of(self.record(record.release) or record)
            try:
                self._write(month, {**entries, entry.release: entry}, tag)
                return
            except StoreUnavailable:
                if not left:
                    raise

    def page(
        self,
        *,
        model: str | None = None,
        service: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page:
        """At most `limit` releases that fit, newest first, from the place `before` on (a former page's `next`).

        `outcome` is one of `judging.record.OUTCOMES`, or "running" for those without one. Reads one month after the
        other, and no more of them than the page needs.
        """
        wanted = {"model": model, "service": service}
        found: list[Entry] = []
        for entry in self._newest_first(before):
            if any(value is not None and getattr(entry, name) != value for name, value in wanted.items()):
                continue
            if outcome is not None and (entry.outcome or "running") != outcome:
                continue
            if len(found) == max(1, limit):
                return Page(found, found[-1].cursor)
            found.append(entry)
        return Page(found, None)

    def newest(self, *, model: str | None = None, service: str | None = None) -> Entry | None:
        """The release that was started last; None where there is none."""
        return next(iter(self.page(model=model, service=service, limit=1).entries), None)

    def record(self, release: str) -> Record | None:
        """The whole decision record; None where there is none of this name."""
        if not _RELEASE.fullmatch(release):
            return None
        content, _ = self._store.read_json(f"{RECORDS}{release}.json")
        return None if content is None else parsed(content, release, self._store.uri)

    def records(self) -> Iterator[Record | VersionDamaged]:
        """Every decision record, in the order of their names; in the place of one that cannot be read, why."""
        names = [name for name in self._store.names(RECORDS) if name.endswith(".json")]
        for key, content in self._store.read_all([f"{RECORDS}{name}" for name in names]):
            if content is None:
                continue
            try:
                if isinstance(content, VersionDamaged):
                    raise content
                yield parsed(content, key.removeprefix(RECORDS).removesuffix(".json"), self._store.uri)
            except VersionDamaged as error:
                yield error

    def entries(self, *, model: str | None = None) -> Iterator[Entry]:
        """All of them, newest first."""
        return (entry for entry in self._newest_first(None) if model is None or entry.model == model)

    def reindex(self) -> int:
        """Makes the index anew from the records and returns how many it has. Writes only what differs.

        May run beside releases: who notes something meanwhile is not overwritten; it is then computed again. A record
        that cannot be read is left out, with a line in the log.
        """
        for left in reversed(range(_TRIES)):
            # The index before the records: what is noted in between fails the conditional write below.
            before = {month: self._tag(month) for month in self._months()}
            months: dict[str, dict[str, Entry]] = {month: {} for month in before}
            for entry in self._from_records():
                months.setdefault(_month(entry.started), {})[entry.release] = entry
            try:
                for month, entries in sorted(months.items()):
                    self._replace(month, entries, before.get(month))
                return sum(map(len, months.values()))
            except StoreUnavailable:
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    # Months

    def _newest_first(self, before: str | None) -> Iterator[Entry]:
        # Most lists end in the month that they begin in: then nobody need ask which others there are.
        first = before[:7] if before is not None else _month(datetime.now(UTC).isoformat())
        if _MONTH.fullmatch(first):
            yield from self._of_month(first, before)
        for month in sorted(self._months(), reverse=True):
            if month < first or (before is None and month > first):
                yield from self._of_month(month, before)

    def _of_month(self, month: str, before: str | None) -> Iterator[Entry]:
        entries, _ = self._entries(month)
        for entry in sorted(entries.values(), key=lambda entry: entry.cursor, reverse=True):
            if before is None or entry.cursor < before:
                yield entry

    def _months(self) -> list[str]:
        names = (name.removesuffix(".json") for name in self._store.names(INDEX))
        return [name for name in names if _MONTH.fullmatch(name)]

    def _entries(self, month: str) -> tuple[dict[str, Entry], str | None]:
        content, tag = self._store.read_json(f"{INDEX}{month}.json")
        if content is None:
            return {}, None
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, and this program knows {FORMAT}")
            return {str(name): _entry(given) for name, given in content["entries"].items()}, tag
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VersionDamaged(
                f"{self._store.uri}{INDEX}{month}.json is no index ({error!r}); "
                "`python -m model_release reindex MODEL` makes it anew"
            ) from error

    def _write(self, month: str, entries: dict[str, Entry], tag: str | None) -> None:
        content = {"format": FORMAT, "entries": {name: asdict(entry) for name, entry in entries.items()}}
        self._store.write_json(f"{INDEX}{month}.json", content, if_match=tag)

    # Reindex

    def _tag(self, month: str) -> str | None:
        return self._store.tag(f"{INDEX}{month}.json")

    def _replace(self, month: str, entries: dict[str, Entry], tag: str | None) -> None:
        try:
            there, now = self._entries(month)
        except VersionDamaged as error:
            logging.getLogger(__name__).warning("made anew: %s", error)
        else:
            if now != tag:
                raise StoreUnavailable(f"{self._store.uri}{INDEX}{month}.json was written meanwhile; try again")
            if there == entries:
                return
        self._write(month, entries, tag)

    def _from_records(self) -> Iterator[Entry]:
        for record in self.records():
            if isinstance(record, VersionDamaged):
                logging.getLogger(__name__).warning("left out of the index: %s", record)
            else:
                yield Entry.of(record)


def parsed(content: Any, release: str, store: str) -> Record:
    """The decision record of that name in the store. Raises `VersionDamaged` for a document that is none, or one of a
    newer edition."""
    try:
        record = Record.from_dict(content)
        if record.release != release:
            raise RecordError(f"release: {record.release!r} is another one's name")
        _ = Entry.of(record).cursor  # whatever else a list needs has to be there, too
        return record
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VersionDamaged(f"{store}{RECORDS}{release}.json is no decision record: {error}") from error


def version_of(storage_uri: str | None) -> str | None:
    """The version's name in a storage URI (`…/versions/<version>/`); None for one that is not of a store of ours."""
    match = _VERSION_URI.search(storage_uri or "")
    return match[1] if match else None


_FIELDS = {field.name for field in fields(Entry)}


def _entry(given: Any) -> Entry:
    given = {"cause": None, **given}  # one of the edition before has none
    if set(given) != _FIELDS:
        raise ValueError(f"an entry has other fields than it should: {', '.join(sorted(set(given) ^ _FIELDS))}")
    return Entry(**given)


def _utc(time: str) -> str:
    moment = datetime.fromisoformat(time)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _month(started: str) -> str:
    return _utc(started)[:7]
