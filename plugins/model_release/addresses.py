"""Addresses for people: the Releases page, a service's dashboard in Grafana, a query in Prometheus. Text only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from model_release.spec import ModelSpec

#: Where the plugin mounts the Releases page.
ROUTE = "/model-releases"
# Airflow shows a plugin's page within its own below /plugin/<url_route>, and what follows is the page's path.
_WITHIN = f"/plugin/releases{ROUTE}"


def safe(url: Any) -> str | None:
    """The address, where it is one of the web; None for anything else, such as `javascript:` in a record."""
    try:
        return url if isinstance(url, str) and urlsplit(url).scheme in ("http", "https") else None
    except ValueError:
        return None


def release_page(airflow: str, release: str) -> str:
    """A release on the Releases page, within the Airflow at `airflow`."""
    return f"{airflow.rstrip('/')}{_WITHIN}/releases/{quote(release)}"


def service_page(airflow: str, spec: ModelSpec) -> str:
    """The model's service on the Releases page, within the Airflow at `airflow`."""
    return f"{airflow.rstrip('/')}{_WITHIN}/services/{spec.service.key}"


def grafana(address: str | None, spec: ModelSpec, start: float | None = None, end: float | None = None) -> str | None:
    """The dashboard of the model's service (`metrics.dashboards`: service.json) in Grafana, from `start` to
    `end` (seconds since the epoch; open: the last hour)."""
    if safe(address) is None:
        return None
    shown = {
        "var-namespace": spec.service.namespace,
        "var-service": spec.service.name,
        "from": str(round(start * 1000)) if start is not None else "now-1h",
        "to": str(round(end * 1000)) if end is not None else "now",
    }
    # Grafana takes 40 characters of a dashboard's name, and so does what made it (metrics.dashboards).
    uid = f"model-release-service-{spec.judge.profile}"[:40]
    return f"{str(address).rstrip('/')}/d/{uid}?{urlencode(shown)}"


def graph(address: str | None, query: str, minutes: int = 60) -> str | None:
    """A query in Prometheus' own page."""
    if safe(address) is None:
        return None
    shown = {"g0.expr": query, "g0.tab": "0", "g0.range_input": f"{minutes}m"}
    return f"{str(address).rstrip('/')}/graph?{urlencode(shown)}"
