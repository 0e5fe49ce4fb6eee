"""Which run this is, what it may move, and how it keeps its record beside others that write."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType

from model_release.errors import StoreRefused, StoreUnavailable
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import connections, links, records, run
from model_release.tasks.run import Run


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "installation", lambda: "http://airflow")


@pytest.mark.parametrize(
    ("kind", "rollout", "moves"),
    [
        ("manual", "auto", True),
        ("scheduled", "auto", True),
        ("asset_triggered", "auto", True),
        ("backfill", "auto", False),
        ("backfill", "canary", True),
        ("backfill", "none", False),
        ("manual", "none", False),
        ("manual", "canary", True),
    ],
)
def test_a_backfill_moves_no_traffic_unless_it_was_told_to(
    context: Any, spec: ModelSpec, kind: str, rollout: str, moves: bool
) -> None:
    # What a task gets from Airflow is no plain text.
    context["dag_run"].run_type = DagRunType(kind)
    context["params"]["rollout"] = rollout
    assert Run.of(context, spec).moves_traffic is moves


def test_a_run_is_named_alike_by_all_its_tasks_and_unlike_any_other(context: Any, spec: ModelSpec) -> None:
    one = Run.of(context, spec)
    assert Run.of(context, spec) == one
    assert one.release.startswith("digits-20260301T020000-")
    context["dag_run"].run_id = "manual__2"
    assert Run.of(context, spec).release != one.release, "two runs of one second"


def test_the_address_of_a_run_can_be_clicked_whatever_its_id(context: Any, spec: ModelSpec) -> None:
    context["dag_run"].run_id = "manual__2026-03-01T02:00:00+00:00"
    url = Run.of(context, spec).url
    assert url == "http://airflow/dags/release_digits/runs/manual__2026-03-01T02%3A00%3A00%2B00%3A00"


class Store:
    """Documents with ETags; `rivals` are written by somebody else between a read and the write that follows."""

    uri = "s3://models/digits/"

    def __init__(self, rivals: int) -> None:
        self.content: Any = None
        self.rivals, self.tag = rivals, 0

    def read_json(self, key: str) -> tuple[Any, str | None]:
        if key.startswith("releases/index/"):
            raise StoreRefused("the lists of releases cannot be read")
        assert key.startswith("releases/digits-20260301T020000-")
        return self.content, None if self.content is None else str(self.tag)

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> None:
        if self.rivals:
            self.rivals -= 1
            rival = Record.from_dict(self.content or content)
            rival.record_approval(f"2026-03-01T02:00:0{self.rivals}+00:00", "rival", "noted")
            self.content, self.tag = rival.to_dict(), self.tag + 1
            raise StoreUnavailable("somebody else wrote")
        assert if_match == (None if self.content is None else str(self.tag))
        self.content, self.tag = content, self.tag + 1


@pytest.mark.parametrize("rivals", [0, 1, 4])
def test_no_word_of_two_writers_is_lost(
    context: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rivals: int
) -> None:
    store = Store(rivals)
    monkeypatch.setattr(connections, "store", lambda prefix: store)
    context["params"]["note"] = "why"
    records.change(spec, Run.of(context, spec), lambda record: setattr(record, "version", "0123456789abcdef"))
    kept = Record.from_dict(store.content)
    assert kept.version == "0123456789abcdef"
    assert len(kept.approvals) == rivals
    assert (kept.model, kept.service, kept.run["note"]) == ("digits", "models/digits", "why")
    assert kept.run["url"].startswith("http://airflow/")
    said = "Lists do not show the last change of digits-20260301T020000-"
    assert [line for line in caplog.messages if line.startswith(said)], "an index that cannot be read fails nothing"


def test_a_record_that_never_stops_changing_is_a_passing_trouble(
    context: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(rivals=9)
    monkeypatch.setattr(connections, "store", lambda prefix: store)
    with pytest.raises(StoreUnavailable):
        records.change(spec, Run.of(context, spec), lambda record: None)
    assert store.rivals == 4, "five tries"


def test_a_moment_is_written_in_whole_milliseconds_of_utc() -> None:
    written = records.now()
    assert written.endswith("+00:00")
    assert datetime.fromisoformat(written).tzinfo == UTC
    assert len(written) == len("2026-03-01T02:00:00.000+00:00")


def test_the_button_to_prometheus_names_every_revision_and_nothing_unescaped(
    spec: ModelSpec, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.parse import parse_qs, urlsplit

    monkeypatch.setattr(connections, "prometheus_address", lambda: "http://prometheus:9090")
    links.push_for(ti, spec, ["digits-00002", "digits-00001"])
    link = ti.xcoms["this", links.PrometheusLink().xcom_key]
    assert set(link) & set(' "{}[]') == set()
    assert link.startswith("http://prometheus:9090/graph?")
    (query,) = parse_qs(urlsplit(link).query)["g0.expr"]
    assert query.startswith("sum by (destination_workload, response_code) (rate(")
    assert "digits-00002" in query
    assert "digits-00001" in query


def test_without_a_connection_there_is_no_button(spec: ModelSpec, ti: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "prometheus_address", lambda: None)
    links.push_for(ti, spec, ["digits-00002"])
    assert ti.xcoms == {}


@pytest.mark.parametrize(("version", "told"), [(None, "dags-folder"), ("265c56779a4a", "dags-folder@265c56779a4a")])
def test_a_record_says_of_which_bundle_its_run_was(
    context: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, version: str | None, told: str
) -> None:
    context["ti"].bundle_instance = SimpleNamespace(name="dags-folder", version=version)
    store = Store(rivals=0)
    monkeypatch.setattr(connections, "store", lambda _: store)
    begun = records.change(spec, Run.of(context, spec), lambda record: None)
    assert begun.run["bundle"] == told
