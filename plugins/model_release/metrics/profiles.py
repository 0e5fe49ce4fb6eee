"""Which metrics tell a revision's requests on which stack. Names and labels: facts/kserve.md 5.1 and 5.3.

Requests, response codes and durations always come from the outermost place that knows the revision (the whole
queue-proxy, or the gateway), so that what queues, times out or overflows counts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from model_release.metrics.prometheus import Labels, selector
from model_release.spec import Profile

INFINITY = "+Inf"
_PODS = "-deployment-"


@dataclass(frozen=True)
class RevisionMetrics:
    """How one stack counts: names, labels, and the unit of its histogram."""

    name: Profile
    requests: str  # a counter with one series for each response code
    durations: str  # the histogram's name, without _bucket
    units_per_ms: float  # the histogram's `le` for one millisecond
    code_label: str
    namespace_label: str
    revision_label: str
    revision_suffix: str = ""  # what the label's value has after the revision's name
    fixed: tuple[tuple[str, str], ...] = ()
    # True where one process (a gateway) counts for every revision: while it is scraped, no series is no request.
    shared: bool = False

    def requests_of(self, namespace: str, revisions: Iterable[str]) -> str:
        """The selector of the counter for these revisions."""
        return self._select(self.requests, namespace, revisions, {})

    def buckets_of(self, namespace: str, revisions: Iterable[str], limits_ms: Iterable[float] | None = None) -> str:
        """The selector of the histogram's buckets: all, or those at the limits and the last one."""
        les = {} if limits_ms is None else {"le": [*(s for ms in limits_ms for s in self.spellings(ms)), INFINITY]}
        return self._select(f"{self.durations}_bucket", namespace, revisions, les)

    def revision_of(self, labels: Labels) -> str | None:
        """The revision that a series counts for."""
        value = labels.get(self.revision_label, "")
        return value.removesuffix(self.revision_suffix) if value.endswith(self.revision_suffix) and value else None

    def spellings(self, limit_ms: float) -> list[str]:
        """How `le` may be written for this limit: Prometheus 3 writes `500.0`, earlier ones what was exposed."""
        edge = limit_ms * self.units_per_ms
        plain = f"{edge:.6f}".rstrip("0").rstrip(".")
        return list(dict.fromkeys([plain, plain if "." in plain else f"{plain}.0", f"{edge:g}"]))

    def edge_ms(self, le: str) -> float:
        """The upper edge of a bucket in milliseconds, infinite for the last; ValueError if `le` is no number."""
        return round(float(le) / self.units_per_ms, 6)

    def targets_of(self, namespace: str, revisions: Iterable[str]) -> list[str]:
        """Selectors of `up` that find the revisions' pods even before they have answered a request.

        The first wants the labels that a PodMonitor gives by relabelling (facts/kserve.md 5.2), the second those
        that the Prometheus Operator sets by itself. None where a gateway counts: it is no revision's own.
        """
        if self.shared:
            return []
        names = list(revisions)
        return [
            selector("up", {"k8s_namespace_name": namespace}, {"kn_revision_name": names}),
            selector("up", {"namespace": namespace}, beginning={"pod": [f"{name}{_PODS}" for name in names]}),
        ]

    def target_revision(self, labels: Labels, revisions: Iterable[str]) -> str | None:
        """Which of the revisions a series of `targets_of` belongs to."""
        for name in revisions:
            if labels.get("kn_revision_name") == name or labels.get("pod", "").startswith(f"{name}{_PODS}"):
                return name
        return None

    def _select(self, metric: str, namespace: str, revisions: Iterable[str], les: dict[str, list[str]]) -> str:
        names = [name + self.revision_suffix for name in revisions]
        return selector(
            metric, dict(self.fixed) | {self.namespace_label: namespace}, {self.revision_label: names} | les
        )


_HTTP_SERVER = "http_server_request_duration_seconds"

PROFILES: dict[Profile, RevisionMetrics] = {
    # Knative up to 1.18, exported by default on port 9091.
    "knative": RevisionMetrics(
        name="knative",
        requests="revision_request_count",
        durations="revision_request_latencies",
        units_per_ms=1,
        code_label="response_code",
        namespace_label="namespace_name",
        revision_label="revision_name",
    ),
    # Knative from 1.19 with `request-metrics-protocol`; the revision's labels come from relabelling or promotion.
    "knative-otel": RevisionMetrics(
        name="knative-otel",
        requests=f"{_HTTP_SERVER}_count",
        durations=_HTTP_SERVER,
        units_per_ms=0.001,
        code_label="http_response_status_code",
        namespace_label="k8s_namespace_name",
        revision_label="kn_revision_name",
    ),
    # The gateway's view, which also has the requests that never reached a pod.
    "istio": RevisionMetrics(
        name="istio",
        requests="istio_requests_total",
        durations="istio_request_duration_milliseconds",
        units_per_ms=1,
        code_label="response_code",
        namespace_label="destination_workload_namespace",
        revision_label="destination_workload",
        revision_suffix="-deployment",
        fixed=(("reporter", "source"),),
        shared=True,
    ),
}


def profile(name: Profile, *, reporter: str = "source") -> RevisionMetrics:
    """The profile of that name. `reporter="destination"` reads Istio's sidecars in the serving pods instead."""
    found = PROFILES[name]
    if name == "istio" and reporter == "destination":
        return replace(found, fixed=(("reporter", "destination"),), shared=False)
    if reporter != "source":
        raise ValueError(f"reporter {reporter!r} has no meaning for profile {name}; istio knows source and destination")
    return found


def code_pattern(codes: str | None) -> re.Pattern[str]:
    """What a metric's `codes` (`5xx`, `503`) accepts as bad; 5xx unless said."""
    return re.compile((codes or "5xx").replace("x", r"\d"))
