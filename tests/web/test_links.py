"""Links from a task to the page: in Airflow's own address, pushed at once, and only to what there is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from model_release import addresses
from model_release.tasks import connections

from .makers import spec


def test_addresses_stand_within_airflow_and_hold_nothing_unescaped() -> None:
    one = spec("digits")
    assert (
        addresses.release_page("http://airflow:8080/team/", "digits-20260301T020000-00000000")
        == "http://airflow:8080/team/plugin/releases/model-releases/releases/digits-20260301T020000-00000000"
    )
    assert addresses.service_page("http://a", one) == "http://a/plugin/releases/model-releases/services/models/digits"
    assert addresses.grafana("https://g/", one, 1.5, 2) == (
        "https://g/d/model-release-service-istio?var-namespace=models&var-service=digits&from=1500&to=2000"
    )
    graph = addresses.graph("http://p", 'rate(x{a="b c"}[1m])')
    assert graph is not None
    assert parse_qs(urlsplit(graph).query, strict_parsing=True)["g0.expr"] == ['rate(x{a="b c"}[1m])']
    assert set(graph).isdisjoint(' "{}[]')


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "//evil", "", None, 7, "http://[::1"])
def test_what_is_no_address_of_the_web_is_no_link(url: Any) -> None:
    assert addresses.safe(url) is None
    assert addresses.grafana(url, spec("digits")) is None
    assert addresses.graph(url, "up") is None


def test_a_task_pushes_its_links_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_release.tasks import links
    from model_release.tasks.run import Run

    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    dag_run = SimpleNamespace(
        dag_id="release_digits", run_id="manual__1", run_type="manual", run_after=datetime(2026, 3, 1, tzinfo=UTC)
    )
    one = spec("digits")
    run = Run.of({"dag_run": dag_run, "params": {}}, one)
    monkeypatch.setattr(connections, "grafana_address", lambda: None)
    links.push(ti, one, run)
    links.push(ti, one, run)
    assert set(pushed) == {"_link_ReleaseLink", "_link_ServiceLink"}
    assert pushed["_link_ReleaseLink"].endswith(f"/plugin/releases/model-releases/releases/{run.release}")
    monkeypatch.setattr(connections, "grafana_address", lambda: "http://grafana:3000")
    links.push(ti, one, run)
    assert pushed["_link_GrafanaLink"].startswith("http://grafana:3000/d/model-release-service-istio?")
    # Airflow asks each link of the task when it has ended, and takes what it answers.
    monkeypatch.setattr(links.XCom, "get_value", lambda *, ti_key, key: pushed.get(key))
    shown = {link.name: link.get_link(None, ti_key=None) for link in links.LINKS}
    assert shown == {
        "Release": pushed["_link_ReleaseLink"],
        "Service": pushed["_link_ServiceLink"],
        "Grafana": pushed["_link_GrafanaLink"],
        "Prometheus": "",
    }


@pytest.mark.parametrize("seconds", [1, 10, 30, 31, 120])
def test_the_link_to_prometheus_rates_over_more_than_two_scrapes(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """A window holds two scrapes. Pushed once a minute, a rate over one minute has one sample, and draws nothing."""
    from model_release.tasks import links

    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    one = spec("digits")
    rollout = one.rollout.model_copy(update={"window": timedelta(seconds=seconds)})
    one, revisions = one.model_copy(update={"rollout": rollout}), ["digits-predictor-00002", "digits-predictor-00001"]
    monkeypatch.setattr(connections, "prometheus_address", lambda: None)
    links.push_for(ti, one, revisions)
    assert pushed == {}
    monkeypatch.setattr(connections, "prometheus_address", lambda: "http://prometheus:9090")
    links.push_for(ti, one, revisions)
    (query,) = parse_qs(urlsplit(pushed["_link_PrometheusLink"]).query)["g0.expr"]
    (over,) = re.findall(r"\[(\d+)ms\]", query)
    assert int(over) == max(60_000, 2000 * seconds)
    assert [name in query for name in revisions] == [True, True]
