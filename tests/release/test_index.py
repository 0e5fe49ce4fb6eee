"""The index of releases: it says what the records say, whoever wrote in between."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from model_release.errors import StoreRefused, VersionDamaged
from model_release.judging.record import Record
from model_release.release.index import Entry, History
from model_release.store.store import Store

Make = Callable[..., Record]
Put = Callable[[Record], Record]


def documents(store: Store) -> dict[str, Any]:
    """The whole index, month by month, without months that are empty."""
    names = store.names("releases/index/")
    found = {name: store.read_json(f"releases/index/{name}")[0] for name in names}
    return {name: content for name, content in found.items() if content["entries"]}


def test_an_entry_is_the_records_line(release: Make) -> None:
    uri = "s3://models/digits/versions/fedcba9876543210/"
    record = release(1, baseline={"revision": "digits-predictor-00001", "storage_uri": uri})
    record.reason = "x" * 400
    entry = Entry.of(record)
    assert (entry.release, entry.model, entry.service) == ("digits-00001", "digits", "models/digits")
    assert (entry.version, entry.baseline) == ("0123456789abcdef", "fedcba9876543210")
    assert (entry.outcome, entry.percent, len(entry.reason)) == ("promoted", 30, 300)
    assert entry.run == {"dag_id": "release_digits", "run_id": "run-1", "url": "http://airflow/x", "note": None}
    assert Entry.of(release(2, outcome=None, baseline={"storage_uri": "gs://elsewhere/x"})).baseline is None


def test_the_index_is_what_reindex_computes(store: Store, release: Make, put: Put) -> None:
    """Whatever releases did, in whatever order: the same documents."""
    history, chance = History(store), random.Random(5)
    for _ in range(60):
        number = chance.randrange(12)
        record = release(number, outcome=chance.choice([None, "promoted", "rolled_back"]))
        record.record_traffic("2026-11-22T00:00:00+00:00", "open", chance.choice([0, 25, 50]), {})
        history.note(put(record))
    written = documents(store)
    assert history.reindex() == sum(len(month["entries"]) for month in written.values()) == 12
    assert documents(store) == written
    for name in store.names("releases/index/"):
        store.remove([f"releases/index/{name}"])
    assert history.reindex() == 12
    assert documents(store) == written


def test_noting_again_writes_nothing(store: Store, release: Make, put: Put) -> None:
    history, record = History(store), put(release(1))
    history.note(record)
    tag = store.tag("releases/index/2026-02.json")
    assert tag
    history.note(record)
    history.reindex()
    assert store.tag("releases/index/2026-02.json") == tag


def test_many_writers_at_once_lose_nothing(store: Store, release: Make, put: Put) -> None:
    records = [release(number, started=f"2026-03-01T00:00:0{number}.000+00:00") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda record: History(store).note(put(record)), records))
    assert [entry.release for entry in History(store).page().entries] == [f"digits-0000{n}" for n in range(5, -1, -1)]


def test_a_word_noted_late_does_not_hide_the_newer_one(store: Store, release: Make, put: Put) -> None:
    """Two tasks of one run: the first is held up between its record and the index, the second is not."""
    first = put(release(1, outcome=None))
    second = put(release(1, outcome="rolled_back"))
    History(store).note(second)
    History(store).note(first)
    newest = History(store).newest()
    assert newest is not None
    assert newest.outcome == "rolled_back"


def test_reindex_beside_a_release_that_notes_meanwhile(store: Store, release: Make, put: Put) -> None:
    history = History(store)
    history.note(put(release(1, started="2026-03-01T00:00:00+00:00")))
    store.remove(["releases/index/2026-03.json"])

    class Meanwhile(Store):
        """Somebody else's release starts just before the first index is written."""

        begun = False

        def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
            if "/index/" in key and not self.begun:
                self.begun = True
                History(store).note(put(release(2, started="2026-03-02T00:00:00+00:00")))
            return super().write_json(key, content, if_match=if_match)

    assert History(Meanwhile(store._client, store.uri)).reindex() == 2
    assert [entry.release for entry in history.page().entries] == ["digits-00002", "digits-00001"]


def test_pages_newest_first_with_filters(store: Store, release: Make, put: Put) -> None:
    history = History(store)
    for number in range(25):
        model, outcome = ("faces", None) if number % 5 == 0 else ("digits", "promoted")
        service = f"models/{model}"
        history.note(put(release(number, name=f"r-{number:02}", model=model, service=service, outcome=outcome)))
    everything = history.page(limit=100)
    starts = [entry.started for entry in everything.entries]
    assert len(starts) == 25
    assert starts == sorted(starts, reverse=True)
    assert everything.next is None
    turned, before = [], None
    while True:
        page = history.page(before=before, limit=7)
        turned += page.entries
        before = page.next
        if before is None:
            break
        assert len(page.entries) == 7
    assert turned == everything.entries
    assert [entry.release for entry in history.page(outcome="running").entries] == [
        entry.release for entry in everything.entries if entry.outcome is None
    ]
    assert {entry.model for entry in history.page(model="faces").entries} == {"faces"}
    assert len(history.page(service="models/digits", outcome="promoted").entries) == 20
    assert history.page(service="models/none").entries == []
    newest = history.newest(model="faces")
    assert newest == history.page(model="faces", limit=1).entries[0]
    assert history.newest(model="letters") is None
    assert history.page(before="garbage' --", limit=3).entries == everything.entries[:3]


def test_a_page_reads_no_more_months_than_it_shows(store: Store, release: Make, put: Put) -> None:
    for number in range(9):
        History(store).note(put(release(number)))
    read: list[str] = []

    class Counting(Store):
        def read_json(self, key: str) -> tuple[Any, str | None]:
            read.append(key)
            return super().read_json(key)

    assert len(History(Counting(store._client, store.uri)).page(limit=2).entries) == 2
    this = f"{datetime.now(UTC):%Y-%m}"
    assert read == [f"releases/index/{month}.json" for month in (this, "2026-09", "2026-08", "2026-07")]


def test_a_list_that_ends_in_this_month_asks_for_no_other(store: Store, release: Make, put: Put) -> None:
    now = datetime.now(UTC).isoformat()
    for number in range(3):
        History(store).note(put(release(number, started=now)))

    class Unlisted(Store):
        def names(self, prefix: str) -> Any:
            raise AssertionError(f"{prefix} was listed")

    found = History(Unlisted(store._client, store.uri))
    assert found.newest() == found.page(limit=1).entries[0]
    assert [entry.release for entry in found.page(limit=2).entries] == ["digits-00002", "digits-00001"]


def test_a_place_that_is_none_reads_nothing_by_its_name(store: Store, release: Make, put: Put) -> None:
    History(store).note(put(release(1)))

    class Counting(Store):
        def read_json(self, key: str) -> tuple[Any, str | None]:
            assert re.fullmatch(r"releases/index/\d{4}-\d{2}\.json", key)
            return super().read_json(key)

    assert History(Counting(store._client, store.uri)).page(before="../../x").entries == []


def test_the_months_are_those_of_utc(store: Store, release: Make, put: Put) -> None:
    History(store).note(put(release(1, started="2026-03-01T00:30:00.000+02:00")))
    History(store).note(put(release(2, started="2026-02-28T22:40:00.000+00:00")))
    assert store.names("releases/index/") == ["2026-02.json"]
    assert [entry.release for entry in History(store).page().entries] == ["digits-00002", "digits-00001"]


def test_one_record(store: Store, release: Make, put: Put) -> None:
    history, record = History(store), put(release(1))
    assert history.record(record.release) == record
    for name in ("digits-99999", "index/2026-02", "../../etc/passwd", "", "x" * 300):
        assert history.record(name) is None


def test_what_is_damaged_is_told_and_mended(
    store: Store, release: Make, put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(store)
    history.note(put(release(1, started="2026-03-01T00:00:00+00:00")))
    store.write_bytes("releases/index/2026-03.json", b'{"format": 1, "entries": {"x": {}}}', "application/json")
    with pytest.raises(VersionDamaged, match=r"2026-03.json is no index .* `python -m model_release reindex MODEL`"):
        history.page()
    store.write_bytes("releases/index/2026-03.json", b"{", "application/json")
    store.write_bytes("releases/broken.json", b"{", "application/json")
    store.write_bytes("releases/other.json", b'{"format": 1, "release": "x"}', "application/json")
    assert history.reindex() == 1
    assert [entry.release for entry in history.page().entries] == ["digits-00001"]
    left_out = [line for line in caplog.messages if line.startswith("left out of the index: s3:")]
    assert len(left_out) == 2
    with pytest.raises(VersionDamaged, match=r"releases/other.json is no decision record: model: None is not text"):
        history.record("other")


def test_an_index_of_a_later_program_is_not_guessed_at(store: Store, release: Make) -> None:
    entry = asdict(Entry.of(release(1, started="2026-03-01T00:00:00+00:00")))
    store.write_json("releases/index/2026-03.json", {"format": 2, "entries": {"digits-00001": entry}}, if_match=None)
    with pytest.raises(VersionDamaged, match="its format is 2"):
        History(store).newest()


def test_an_empty_store(store: Store, s3: Any) -> None:
    assert History(store).page().entries == []
    assert History(store).newest() is None
    assert History(store).reindex() == 0
    with pytest.raises(StoreRefused):
        History(Store(s3.other(secret_key="wrong"), store.uri)).page()
