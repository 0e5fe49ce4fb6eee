"""The parts of Grafana's dashboard model that the dashboards use.

Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Grafana 11; newer ones bring it to their own version when they load it.
SCHEMA_VERSION = 39
WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Target:
    """One query of a panel; `legend` names its series by their labels."""

    query: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is Grafana's name of one."""

    title: str
    says: str
    targets: Sequence[Target]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    ceiling: float | None = None  # the axis ends here
    line: float | None = None  # a dashed line, where something is decided
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def now(self) -> bool:
        """Whether it shows one moment and not a course."""
        return self.kind in ("table", "bargauge", "stat")


def laid_out(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """The panels as JSON, in rows from left to right."""
    found, x, y, lowest = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, lowest
        found.append(_panel(panel, number, x, y))
        x, lowest = x + panel.width, max(lowest, y + panel.height)
    return found


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "noValue": "no data"}
    if panel.ceiling is not None:
        defaults["max"] = panel.ceiling
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.line is not None:
        steps.append({"color": "red", "value": panel.line})
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "timeseries":
        # A gap is no data and is drawn as one.
        style = {"mode": "dashed" if panel.line is not None else "off"}
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 5, "spanNulls": False, "thresholdsStyle": style}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": target.query,
                "legendFormat": target.legend or "__auto",
                "instant": panel.now,
                "range": not panel.now,
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for place, target in enumerate(panel.targets)
        ],
        **panel.more,
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    if panel.kind == "bargauge":
        reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"displayMode": "basic", "orientation": "horizontal", "reduceOptions": reduced}
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def variable(name: str, label: str, query: tuple[str, str], *, several: bool = False) -> dict[str, Any]:
    """A choice from what Prometheus holds; with `several`, all of it unless somebody chooses."""
    text, keeps = query
    every = {"text": ["All"], "value": ["$__all"]} if several else {}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": text, "refId": f"Variable-{name}"},
        "definition": text,
        "regex": keeps,
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "current": every,
        "options": [],
        "hide": 0,
    }


def annotation(name: str, query: str, title: str, color: str) -> dict[str, Any]:
    """Marks on the time axis, at the moments that the query gives in milliseconds."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": query,
        "target": {"expr": query, "interval": "", "refId": "Anno"},
        "titleFormat": title,
        "textFormat": "",
        "tagKeys": "",
        "useValueForTime": True,
    }


def dashboard(
    uid: str,
    title: str,
    says: str,
    panels: Sequence[Panel],
    variables: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The whole, with the choice of the Prometheus to ask; its like are linked by their tag."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    more = {"current": {}, "options": [], "hide": 0, "includeAll": False, "multi": False, "refresh": 1, "regex": ""}
    return {
        "uid": uid,
        "title": title,
        "description": says,
        "tags": ["model-release"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "links": [
            {
                "type": "dashboards",
                "title": "Model releases",
                "tags": ["model-release"],
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [source | more, *variables]},
        "annotations": {"list": list(annotations)},
        "panels": laid_out(panels),
    }
