"""What is on the two dashboards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_release.metrics.dashboards import queries
from model_release.metrics.dashboards.grafana import Panel, Target, annotation, dashboard, variable
from model_release.metrics.dashboards.queries import Queries
from model_release.metrics.profiles import PROFILES
from model_release.spec import Profile


def uid(kind: str, name: Profile) -> str:
    """By which Grafana knows the dashboard, `/d/<uid>`; it takes no more than 40 characters."""
    return f"model-release-{kind}-{name}"[:40]


def service(name: Profile) -> dict[str, Any]:
    """One service: its revisions beside each other, the evidence as it grows, releases on the time axis."""
    ask = Queries(PROFILES[name])
    panels = [
        Panel("Request volume by revision", "Requests a second.", [Target(ask.volume(), "{{revision}}")], "reqps"),
        Panel("Response time by revision", "The mean duration.", [Target(ask.response_time(), "{{revision}}")], "s"),
        Panel(
            "Traffic by revision",
            "Each revision's share of the requests, and the canary's as the release opened it.",
            [Target(ask.share(), "{{revision}}"), Target(queries.opened(), "{{revision}}, as opened")],
            "percentunit",
            ceiling=1,
        ),
        *(
            Panel(
                f"Service latency by revision, p{quantile * 100:g}",
                "Interpolated inside a bucket, and never above the last one's edge: to look at, not to judge by.",
                [Target(ask.latency(quantile), "{{revision}}")],
                "s",
            )
            for quantile in (0.5, 0.95, 0.99)
        ),
        Panel(
            "Errors by revision",
            "The share of answers 5xx.",
            [Target(ask.errors(), "{{revision}}")],
            "percentunit",
        ),
        Panel(
            "Answers by code and revision",
            "Requests a second.",
            [Target(ask.volume_by_code(), "{{code}} {{revision}}")],
            "reqps",
        ),
        Panel(
            "Evidence",
            "How far each metric has come toward its answer: at 1 it is given. No line, no canary.",
            [Target(queries.evidence(), "{{metric}}: {{toward}}")],
            ceiling=1,
            line=1,
        ),
        Panel(
            "Releases by outcome",
            "In the time shown.",
            [Target(queries.happened("ended_total", "outcome", here=True), "{{outcome}}")],
            kind="bargauge",
            height=6,
        ),
        Panel(
            "Time in each stage",
            "The mean since the counting began.",
            [Target(queries.mean("stage_seconds", "stage", here=True), "{{stage}}")],
            "s",
            kind="bargauge",
            height=6,
        ),
        Panel(
            "Time to a decision",
            "From a step's opening to its verdict; the mean since the counting began.",
            [Target(queries.mean("decision_seconds", "decision", here=True), "{{decision}}")],
            "s",
            kind="bargauge",
            height=6,
        ),
    ]
    return dashboard(
        uid("service", name),
        f"Model release: service ({name})",
        f"One service by revision, from the metrics of profile {name}.",
        panels,
        [
            variable("namespace", "Namespace", ask.namespaces()),
            variable("service", "Service", ask.services()),
            variable("revision", "Revision", ask.revisions(), several=True),
        ],
        [
            annotation("Releases", queries.endings(here=True), "{{model}}: {{outcome}}", "purple"),
            annotation("Traffic", queries.changes(), "{{model}}: {{change}}", "blue"),
        ],
    )


def fleet(name: Profile) -> dict[str, Any]:
    """All services, and how their releases go."""
    ask = Queries(PROFILES[name])
    by_service = "{{namespace}}/{{service}}"
    panels = [
        Panel(
            "Canaries now",
            "Watched at this moment, with the percent of the traffic that they were given.",
            [Target(queries.canaries())],
            "percent",
            kind="table",
            height=7,
            more=_rows({"Value": "Percent"}),
        ),
        Panel(
            "Releases by outcome",
            "In the time shown.",
            [Target(queries.happened("ended_total", "outcome"), "{{outcome}}")],
            kind="bargauge",
            height=7,
        ),
        Panel(
            "Canaries that evidence turned back",
            "In the time shown, by the percent of the traffic that they had.",
            [Target(queries.happened("caught_total", "percent"), "at {{percent}} %")],
            kind="bargauge",
            height=7,
        ),
        Panel(
            "Services",
            "Now: requests a second, share of answers 5xx, 95 % of the answers within.",
            [Target(ask.fleet_volume()), Target(ask.fleet_errors()), Target(ask.fleet_latency(0.95))],
            kind="table",
            width=24,
            height=9,
            more=_services(name),
        ),
        Panel("Request volume by service", "Requests a second.", [Target(ask.fleet_volume(), by_service)], "reqps"),
        Panel(
            "Errors by service", "The share of answers 5xx.", [Target(ask.fleet_errors(), by_service)], "percentunit"
        ),
        Panel("Service latency by service, p95", "Seconds.", [Target(ask.fleet_latency(0.95), by_service)], "s"),
        Panel(
            "Time in each stage",
            "The mean since the counting began.",
            [Target(queries.mean("stage_seconds", "stage"), "{{stage}}")],
            "s",
            kind="bargauge",
        ),
        Panel(
            "Time to a decision",
            "From a step's opening to its verdict; the mean since the counting began.",
            [Target(queries.mean("decision_seconds", "decision"), "{{decision}}")],
            "s",
            kind="bargauge",
        ),
        Panel(
            "False alarms: evidence reached",
            "The share of judged metrics that ended with evidence of 1/level against the canary. Were all canaries "
            "good, each bar would stay below its level; bad ones come on top.",
            [Target(queries.calibration(), "level {{level}}")],
            "percentunit",
            kind="bargauge",
            ceiling=1,
        ),
    ]
    return dashboard(
        uid("fleet", name),
        f"Model release: fleet ({name})",
        f"All services and their releases, from the metrics of profile {name}.",
        panels,
        [],
        [annotation("Releases", queries.endings(here=False), "{{namespace}}/{{service}}: {{outcome}}", "purple")],
    )


FILES: dict[str, Callable[[Profile], dict[str, Any]]] = {"service.json": service, "fleet.json": fleet}


def board(file: str, name: Profile) -> str:
    """The text of a dashboard's file."""
    return json.dumps(FILES[file](name), indent=1, ensure_ascii=False) + "\n"


def write(folder: Path) -> list[Path]:
    """Writes every dashboard for every profile below the folder; again, it writes the same."""
    written = []
    for name in PROFILES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            path = folder / name / file
            path.write_text(board(file, name), encoding="utf-8")
            written.append(path)
    return written


def _rows(names: dict[str, str]) -> dict[str, Any]:
    """A table of several queries: one row for the same labels, columns by name, no column for the time."""
    organized = {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": {}}
    return {"transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": organized}]}


def _services(name: Profile) -> dict[str, Any]:
    columns = {"Value #A": "Requests/s", "Value #B": "Errors", "Value #C": "p95"}
    units = {"Requests/s": "reqps", "Errors": "percentunit", "p95": "s"}
    overrides = [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in units.items()
    ]
    link = {
        "title": "This service",
        "url": f"/d/{uid('service', name)}?var-namespace=${{__data.fields.namespace}}"
        "&var-service=${__data.fields.service}",
    }
    overrides.append(
        {"matcher": {"id": "byName", "options": "service"}, "properties": [{"id": "links", "value": [link]}]}
    )
    return _rows(columns) | {"fieldConfig": {"defaults": {"noValue": "no data"}, "overrides": overrides}}
