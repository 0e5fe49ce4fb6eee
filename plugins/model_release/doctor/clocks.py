"""Whether the clocks of this machine, the cluster, the store and Prometheus agree: windows are cut by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from .finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from model_release.metrics.prometheus import Prometheus
    from model_release.store.store import Store

# An HTTP date has whole seconds, and the way takes some of them.
_FINE, _BAD = 3.0, 30.0


def check(cluster: Any | None, store: Store | None, prometheus: Prometheus | None) -> Iterator[Finding]:
    """One finding for each clock that could be read."""
    clocks: dict[str, Callable[[], datetime | None]] = {}
    if cluster is not None:
        clocks["the cluster"] = lambda: _of_cluster(cluster)
    if store is not None:
        clocks["the store"] = store.clock
    if prometheus is not None:
        clocks["Prometheus"] = lambda: _of_prometheus(prometheus)
    for name, read in clocks.items():
        yield _compared(name, read)


def _compared(name: str, read: Callable[[], datetime | None]) -> Finding:
    before = datetime.now(UTC)
    try:
        there = read()
    except Exception as trouble:  # whatever keeps a clock from being read was told by the check of its part
        return warning("clock", f"{name}'s cannot be read: {' '.join(str(trouble).split())}", "see above")
    after = datetime.now(UTC)
    if there is None:
        return warning("clock", f"{name} tells no time", "a Date header in its answers")
    off = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
    if off < _FINE:
        return ok("clock", f"{name}'s agrees with this machine's")
    said = f"{name}'s is {off:.0f} s off this machine's"
    cure = "keep both by NTP: windows are cut by this machine's clock and counted by the other's"
    return error("clock", said, cure) if off >= _BAD else warning("clock", said, cure)


def _of_cluster(client: Any) -> datetime | None:
    _, _, headers = client.call_api(
        "/version",
        "GET",
        auth_settings=["BearerToken"],
        response_types_map={200: "object"},
        _request_timeout=(3.0, 10.0),
    )
    return parsedate_to_datetime(headers["Date"]) if headers.get("Date") else None


def _of_prometheus(prometheus: Prometheus) -> datetime | None:
    found = prometheus.query("time()").series
    return datetime.fromtimestamp(found[0].samples[-1][1], UTC) if found else None
