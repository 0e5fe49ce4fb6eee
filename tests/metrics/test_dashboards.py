"""Every query of every dashboard on every stack, asked of a real Prometheus that holds that stack's exposition and
what two releases told StatsD; and what is written, held to Grafana's model."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.metrics import PROFILES, Prometheus
from model_release.metrics.dashboards import FILES, board
from model_release.metrics.dashboards.grafana import WIDTH
from model_release.metrics.prometheus import Series, milliseconds
from model_release.spec import Profile
from model_release.tasks import telemetry

from .conftest import CANARY, NAMESPACE, STABLE, History, Statsd, at, listening, serving
from .exporter import Exporter
from .releases import record, watch
from .stacks import GATEWAYS, Page, Request

PROVISIONING = Path(__file__).resolve().parents[2] / "include/dashboards/provisioning"
BOARDS = list(itertools.product(PROFILES, FILES))
NOW = 600  # seconds after the opening
# Other services beside the one that is looked at; the second was made by an older KServe.
OTHER, OLDER = "digits-two-predictor-00004", "faces-predictor-default-00012"
RATES = {STABLE: 4, CANARY: 1, OTHER: 2, OLDER: 2}  # requests a second
SERVICES = {"digits", "digits-two", "faces"}


def document(file: str, name: Profile) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(board(file, name))
    return found


def traffic(revision: str) -> list[Request]:
    """Steady; each tenth request of the canary fails, and every one of its requests takes 80 ms, the others 40."""
    every = []
    for n in range(NOW * RATES[revision]):
        failed = revision == CANARY and n % 10 == 0
        every.append(Request(n / RATES[revision], 503 if failed else 200, 80 if revision == CANARY else 40))
    return every


def exposition(name: Profile, statsd: Statsd) -> History:
    """Ten minutes of four revisions' requests, and of what two releases and a watch told StatsD meanwhile."""
    history = History()
    if name in GATEWAYS:
        pages = [Page(name, "gw:15020", "gateway", requests={revision: traffic(revision) for revision in RATES})]
    else:
        pages = [Page(name, f"{revision}:9091", requests={revision: traffic(revision)}) for revision in RATES]
    for page, scrape in itertools.product(pages, range(NOW - 200, NOW + 1, 15)):
        for metric, labels, value in page.exposed(scrape):
            history.add(metric, labels, {scrape: value})
    exporter = Exporter()
    happening: dict[int, Callable[[], None]] = {
        NOW - 150: lambda: telemetry.released(record("a", bad=0, outcome="promoted")),
        NOW - 100: lambda: telemetry.released(record("b", bad=25, outcome="rolled_back")),
        NOW - 60: lambda: telemetry.looked(watch()),
    }
    for scrape in range(NOW - 200, NOW + 1, 10):
        for moment, happens in list(happening.items()):
            if moment <= scrape:
                happening.pop(moment)
                happens()
        for line in statsd.lines():
            exporter.take(line)
        for metric, labels, value in exporter.samples():
            history.add(metric, {"job": "statsd", "instance": "statsd:9102"} | labels, {scrape: value})
    return history


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.stack) for name in PROFILES])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Profile, Prometheus]]:
    """A profile, and a Prometheus that holds its exposition: once for all tests."""
    name: Profile = request.param
    with listening() as statsd, serving(tmp_path_factory.mktemp(name)) as start:
        yield name, start(exposition(name, statsd))


def filled(query: str) -> str:
    """The query as Grafana sends it."""
    chosen = {
        "${revision:regex}": f"({STABLE}|{CANARY})",
        "${service:regex}": "digits",
        "$namespace": NAMESPACE,
        "$service": "digits",
        "$__rate_interval": "1m",
        "$__range": "10m",
    }
    for variable, value in chosen.items():
        query = query.replace(variable, value)
    assert not re.search(r"\$(?!\d)", query), query
    return query


def answers(prometheus: Prometheus, panel: dict[str, Any]) -> Iterator[tuple[str, list[Series]]]:
    """What each query of a panel gives, with the legend that names its series."""
    for target in panel["targets"]:
        yield target["legendFormat"], prometheus.query(filled(target["expr"]), at(NOW)).series


def by(label: str, series: list[Series]) -> dict[str, float]:
    found = {one.labels[label]: one.samples[-1][1] for one in series}
    assert len(found) == len(series), f"more than one series for a {label}"
    return found


def test_every_query_of_every_panel_gives_data_with_its_labels(stack: tuple[Profile, Prometheus]) -> None:
    name, prometheus = stack
    asked = 0
    for file in FILES:
        for panel in document(file, name)["panels"]:
            for legend, series in answers(prometheus, panel):
                asked += 1
                assert series, f"{file}: {panel['title']}"
                wanted = set(re.findall(r"{{(\w+)}}", legend))
                for one in series:
                    assert wanted <= one.labels.keys(), f"{file}: {panel['title']}: {one.labels}"
                    assert one.samples[-1][1] == one.samples[-1][1], f"{file}: {panel['title']}: not a number"
    assert asked == 25


def test_the_service_by_revision_is_the_truth(stack: tuple[Profile, Prometheus]) -> None:
    name, prometheus = stack
    panels = {panel["title"]: panel for panel in document("service.json", name)["panels"]}

    def shown(title: str, query: int = 0, label: str = "revision") -> dict[str, float]:
        return by(label, list(answers(prometheus, panels[title]))[query][1])

    assert shown("Request volume by revision") == pytest.approx({STABLE: 4, CANARY: 1}, rel=0.02)
    assert shown("Traffic by revision") == pytest.approx({STABLE: 0.8, CANARY: 0.2}, rel=0.02)
    assert shown("Traffic by revision", 1) == {CANARY: 0.25}
    assert shown("Response time by revision") == pytest.approx({STABLE: 0.04, CANARY: 0.08}, rel=0.02)
    errors = shown("Errors by revision")
    assert errors[STABLE] == 0, "no error is 0, not nothing"
    assert errors[CANARY] == pytest.approx(0.1, abs=0.03)
    low, high = shown("Service latency by revision, p50"), shown("Service latency by revision, p99")
    assert 0.02 <= low[STABLE] <= 0.05
    assert 0.05 <= low[CANARY] < high[CANARY] <= 0.1
    codes = {
        (one.labels["code"], one.labels["revision"]): one.samples[-1][1]
        for _, series in answers(prometheus, panels["Answers by code and revision"])
        for one in series
    }
    assert set(codes) == {("200", STABLE), ("200", CANARY), ("503", CANARY)}
    assert codes["200", STABLE] == pytest.approx(4, rel=0.02)
    assert shown("Releases by outcome", label="outcome") == {"promoted": 1, "rolled_back": 1}
    stages = shown("Time in each stage", label="stage")
    assert (stages["build"], stages["smoke"], stages["settle"]) == pytest.approx((60, 5, 2))
    ways = shown("Evidence", label="toward")
    assert ways["rollback"] == 0
    assert 0 < ways["promote"] < 1


def test_the_fleet_is_the_truth(stack: tuple[Profile, Prometheus]) -> None:
    name, prometheus = stack
    panels = {panel["title"]: panel for panel in document("fleet.json", name)["panels"]}

    def shown(title: str, label: str = "service", query: int = 0) -> dict[str, float]:
        return by(label, list(answers(prometheus, panels[title]))[query][1])

    volume = {"digits": 5, "digits-two": 2, "faces": 2}
    assert shown("Services") == shown("Request volume by service") == pytest.approx(volume, rel=0.02)
    assert shown("Errors by service") == pytest.approx({"digits": 0.02, "digits-two": 0, "faces": 0}, abs=0.01)
    assert set(shown("Services", query=2)) == SERVICES
    namespaces = {one.labels["namespace"] for _, found in answers(prometheus, panels["Services"]) for one in found}
    assert namespaces == {NAMESPACE}
    assert shown("Canaries now", "revision") == {CANARY: 25}
    assert shown("Releases by outcome", "outcome") == {"promoted": 1, "rolled_back": 1}
    assert shown("Canaries that evidence turned back", "percent") == {"25": 1}
    assert shown("False alarms: evidence reached", "level") == dict.fromkeys(["0.5", "0.2", "0.1", "0.05", "0.01"], 0.5)
    assert set(shown("Time to a decision", "decision")) == {"promote", "rollback"}


def test_what_is_offered_to_choose_from(stack: tuple[Profile, Prometheus]) -> None:
    name, prometheus = stack
    offered = {}
    for variable in document("service.json", name)["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
        values = prometheus.label_values(label, filled(match), after=milliseconds(at(0)), until=milliseconds(at(NOW)))
        if variable["regex"]:
            keeps = re.compile(variable["regex"].strip("/").replace("\\/", "/"))
            values = [found[1] for value in values if (found := keeps.search(value))]
        offered[variable["name"]] = set(values)
    assert offered == {"namespace": {NAMESPACE}, "service": SERVICES, "revision": {STABLE, CANARY}}


def test_releases_are_marked_where_they_ended(stack: tuple[Profile, Prometheus]) -> None:
    name, prometheus = stack
    found: dict[tuple[str, str], float] = {}
    for file in FILES:
        for mark in document(file, name)["annotations"]["list"]:
            assert mark["useValueForTime"] is True
            assert mark["target"]["expr"] == mark["expr"]
            series = prometheus.query(filled(mark["expr"]), at(NOW)).series
            title = re.sub(r"{{(\w+)}}", lambda label: "%(" + label[1] + ")s", mark["titleFormat"])
            found |= {(file, title % one.labels): one.samples[-1][1] for one in series}
    ended = {outcome: record("x", bad=bad, outcome=outcome) for outcome, bad in (("promoted", 0), ("rolled_back", 25))}
    for outcome, made in ended.items():
        moment = 1000 * telemetry._moment(str(made.ended)).timestamp()
        assert found["service.json", f"digits: {outcome}"] == pytest.approx(moment, abs=1)
        assert found["fleet.json", f"models/digits: {outcome}"] == pytest.approx(moment, abs=1)
    assert ("service.json", "digits: open_25") in found
    assert ("service.json", "digits: roll_back") in found


def test_what_happened_is_counted_through_births_and_restarts(serve: Callable[[History], Prometheus]) -> None:
    """`increase` alone would not see the first event of a counter, and a difference would not survive a restart."""
    from model_release.metrics.dashboards import queries

    history = History()

    def counter(outcome: str, values: dict[float, float]) -> None:
        history.add("airflow_model_release_ended_total", {"outcome": outcome}, values)

    seconds = [float(second) for second in range(-900, NOW + 1, 10)]
    counter("old", dict.fromkeys(seconds, 7))
    counter("older_and_new", {s: 7 if s < 300 else 8 for s in seconds})
    counter("born", {s: 1 if s < 500 else 2 for s in seconds if s >= 400})
    counter("through_a_restart", {s: 7 if s < 100 else 8 if s < 200 else 1 for s in seconds})
    query = filled(queries.happened("ended_total", "outcome"))
    found = by("outcome", serve(history).query(query, at(NOW)).series)
    assert found == {"old": 0, "older_and_new": 1, "born": 2, "through_a_restart": 2}


def test_the_command_writes_each_profile_s_two_and_again_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "model_release.metrics.dashboards", tmp_path], check=True)
        found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.json")}
        assert found == {f"{name}/{file}": board(file, name) for name, file in BOARDS}


@pytest.mark.parametrize(("name", "file"), BOARDS)
def test_the_files_are_dashboards_to_grafana(name: Profile, file: str) -> None:
    found = document(file, name)
    assert {"uid", "title", "schemaVersion", "panels", "templating", "annotations", "time", "tags"} <= found.keys()
    assert found["schemaVersion"] >= 36  # since then a data source is named by type and uid
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", found["uid"]), "Grafana takes no other uid"
    panels = found["panels"]
    assert sorted(panel["id"] for panel in panels) == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in ("timeseries", "table", "bargauge")
        assert panel["description"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["instant"] is not target["range"] for target in panel["targets"])
        asking = [panel, *panel["targets"], *found["annotations"]["list"]]
        assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in asking)
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names[0] == "datasource"
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([panels, found["annotations"]]))) - {"datasource"}
    assert used - {"__data"} <= set(names), "a query asks for what nobody can choose"


def test_every_uid_is_its_own() -> None:
    uids = [document(file, name)["uid"] for name, file in BOARDS]
    assert len(set(uids)) == len(uids) == 12


def test_grafana_is_told_where_they_are() -> None:
    folder = PROVISIONING
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    where = provider["options"]["path"]
    assert where.endswith("/$MODEL_RELEASE_PROFILE")
    (source,) = yaml.safe_load((folder / "datasources.yaml").read_text())["datasources"]
    assert (source["type"], source["url"], source["uid"]) == ("prometheus", "$PROMETHEUS_URL", "prometheus")
