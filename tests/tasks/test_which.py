"""Which version a run releases: one rule, whatever kind of run it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType

from model_release.errors import SpecError
from model_release.tasks.which import Choice, choose

END = datetime(2026, 3, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
VERSION = "0123456789abcdef"


def run(kind: str, **given: Any) -> Any:
    fields = {"run_after": END + timedelta(hours=1), "logical_date": END, "data_interval_end": END}
    return SimpleNamespace(**{"run_type": DagRunType(kind), **fields, **given})


@pytest.mark.parametrize("kind", ["scheduled", "backfill"])
def test_a_run_of_the_schedule_takes_the_newest_of_its_interval_whenever_it_is_asked(kind: str) -> None:
    one = choose(run(kind), {}, now=NOW)
    assert one == choose(run(kind), {}, now=NOW + timedelta(days=300))
    said = "the newest not later than 2026-03-01T00:00:00Z, the end of the run's data interval"
    assert one == Choice(None, None, END, said)


@pytest.mark.parametrize("kind", ["manual", "asset_triggered", "operator_triggered"])
def test_a_run_for_now_takes_the_newest_by_now_even_with_an_old_logical_date(kind: str) -> None:
    assert choose(run(kind), {}, now=NOW).not_later_than == NOW


def test_a_run_without_any_date_works() -> None:
    one = choose(run("manual", logical_date=None, data_interval_end=None), {"version": None, "revision": None})
    assert (one.version, one.revision) == (None, None)
    assert datetime.now(UTC) - one.not_later_than < timedelta(minutes=1)


def test_a_named_version_is_that_one_and_a_named_revision_that_one() -> None:
    one = choose(run("backfill"), {"version": VERSION})
    assert (one.version, one.revision, one.rule) == (VERSION, None, f"version {VERSION}, named by the form")
    other = choose(run("scheduled"), {"revision": "main"})
    assert (other.version, other.revision) == (None, "main")


def test_two_names_are_one_too_many() -> None:
    with pytest.raises(SpecError, match="a version and a revision"):
        choose(run("manual"), {"version": VERSION, "revision": "main"})


@pytest.mark.parametrize(
    "params",
    [{"version": None, "note": "because"}, {"version": VERSION, "note": None}, {"version": VERSION, "note": " "}],
)
def test_without_a_canary_only_a_named_version_for_a_named_reason(params: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="live before"):
        choose(run("manual"), {"rollout": "direct", **params})


def test_without_a_canary_for_a_reason() -> None:
    assert choose(run("manual"), {"rollout": "direct", "version": VERSION, "note": "outage 41"}).version == VERSION
