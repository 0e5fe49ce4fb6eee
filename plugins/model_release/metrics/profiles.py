"""Which metrics tell a revision's requests on which stack. Names and labels: docs/facts.md#metrics-of-the-queue-proxy
and docs/facts.md#metrics-of-the-mesh.

Requests, response codes and durations always come from the outermost place that the profile names (the whole
queue-proxy, the pod's sidecar, the gateway), so that what queues, times out or overflows there counts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from model_release.metrics.prometheus import Labels, selector
from model_release.spec import Profile

INFINITY = "+Inf"
# What OpenTelemetry knows about a process and not about each sample (docs/facts.md#metrics-of-the-queue-proxy).
TARGET_INFO = "target_info"
_PODS = "-deployment-"
# In Standard mode a revision is a Deployment, and called by the Deployment's own name: `<service>-<name>-predictor`
# (docs/facts.md#standard-mode). Knative's revisions end in a number, and their Deployments in `-deployment`.
_OWN_DEPLOYMENT = "-predictor"
_REVISION = "{revision}"


@dataclass(frozen=True)
class RevisionMetrics:
    """How one stack counts: names, labels, and the unit of its histogram."""

    name: Profile
    requests: str  # a counter with one series for each response code
    durations: str  # the histogram's name, without _bucket
    units_per_ms: float  # the histogram's `le` for one millisecond
    code_label: str
    revision_label: str
    namespace_label: str | None  # None where the revision's label holds the namespace too
    spelled: str = _REVISION  # what the revision's label says, of {revision} and {namespace}
    fixed: tuple[tuple[str, str], ...] = ()
    # More labels that every series of this cluster has, where Prometheus holds several: what a model file says.
    also: tuple[tuple[str, str], ...] = ()
    # True where one process (a gateway) counts for every revision: while it is scraped, no series is no request.
    shared: bool = False
    # True where only `target_info` of the same target has the two labels, and the samples have none.
    joined: bool = False

    def requests_of(self, namespace: str, revisions: Iterable[str]) -> str:
        """PromQL for the counter of these revisions: a selector, or the join that finds them."""
        return self._expression(self.requests, self.matching(namespace, revisions), {})

    def buckets_of(self, namespace: str, revisions: Iterable[str], limits_ms: Iterable[float] | None = None) -> str:
        """PromQL for the histogram's buckets: all, or those at the limits and the last one."""
        return self._expression(
            f"{self.durations}_bucket", self.matching(namespace, revisions), self.edges_of(limits_ms)
        )

    def over(
        self, function: str, metric: str, namespace: str, revisions: Iterable[str], milliseconds: int, by: str = ""
    ) -> str:
        """PromQL for `sum by (…) (function(metric[range]))` of these revisions."""
        inner = self.ranged(function, metric, self.matching(namespace, revisions), f"{milliseconds}ms")
        return f"sum by ({by}) ({inner})" if by else f"sum({inner})"

    def ranged(self, function: str, metric: str, matching: str, range_: str, also: str = "") -> str:
        """PromQL for `function(metric{…}[range])`. `matching` selects the revisions, `also` more of the metric's own
        labels, both as they stand in the braces.

        Where it is joined, a pod counts only as long as its `target_info` is there.
        """
        if self.joined:
            inside = ",".join(filter(None, (selector("", dict(self.also))[1:-1], also)))
            return f"{function}({metric}{f'{{{inside}}}' if inside else ''}[{range_}]) {self._join(matching)}"
        return f"{function}({metric}{{{','.join(filter(None, (matching, also)))}}}[{range_}])"

    def matching(self, namespace: str, revisions: Iterable[str]) -> str:
        """The matchers that select these revisions, without braces; every text escaped."""
        equal = dict(self.fixed + self.also)
        equal |= {} if self.namespace_label is None else {self.namespace_label: namespace}
        names = [self.label_of(namespace, name) for name in revisions]
        return selector("", equal, {self.revision_label: names})[1:-1]

    def bearer(self, namespace: str | None = None) -> str:
        """The selector of the series that carry the revision's label."""
        inside = {} if namespace is None or self.namespace_label is None else {self.namespace_label: namespace}
        return selector(self.bearing, dict(self.fixed + self.also) | inside).removesuffix("{}")

    @property
    def bearing(self) -> str:
        """The metric that carries the revision's label."""
        return TARGET_INFO if self.joined else self.requests

    def label_of(self, namespace: str, revision: str) -> str:
        """What the revision's label says for this revision."""
        spelled = self.spelled.removesuffix("-deployment") if revision.endswith(_OWN_DEPLOYMENT) else self.spelled
        return spelled.replace("{namespace}", namespace).replace(_REVISION, revision)

    def revision_of(self, labels: Labels) -> str | None:
        """The revision that a series counts for; None for a series of something else."""
        value = labels.get(self.revision_label, "")
        head, _, tail = self.spelled.partition(_REVISION)
        if head:
            value = value.partition(head[-1])[2]
        if value.endswith(_OWN_DEPLOYMENT):
            return value
        return value.removesuffix(tail) if value and value.endswith(tail) else None

    def edges_of(self, limits_ms: Iterable[float] | None) -> dict[str, list[str]]:
        """The values of `le` for these limits and the last bucket; nothing where all buckets are wanted."""
        if limits_ms is None:
            return {}
        return {"le": [*(text for limit in limits_ms for text in self.spellings(limit)), INFINITY]}

    def spellings(self, limit_ms: float) -> list[str]:
        """How `le` may be written for this limit: Prometheus 3 writes `500.0`, earlier ones what was exposed."""
        edge = limit_ms * self.units_per_ms
        plain = f"{edge:.6f}".rstrip("0").rstrip(".")
        return list(dict.fromkeys([plain, plain if "." in plain else f"{plain}.0", f"{edge:g}"]))

    def edge_ms(self, le: str) -> float:
        """The upper edge of a bucket in milliseconds, infinite for the last; ValueError if `le` is no number."""
        return round(float(le) / self.units_per_ms, 6)

    def targets_of(self, namespace: str, revisions: Iterable[str]) -> list[str]:
        """Selectors of what finds the revisions' pods even before they have answered a request.

        The first wants the labels that a PodMonitor gives by relabelling (docs/facts.md#labels-by-podmonitor), the
        second those that the Prometheus Operator sets by itself, the third what a pod says of itself. None where a
        gateway counts: it is no revision's own.
        """
        if self.shared:
            return []
        names = list(revisions)
        found = self.pods_of("up", namespace, names)
        return [*found, f"{TARGET_INFO}{{{self.matching(namespace, names)}}}"] if self.joined else found

    def pods_of(self, metric: str, namespace: str, revisions: Iterable[str]) -> list[str]:
        """Selectors of a metric of the revisions' pods, by either way in which a scrape may name them."""
        names, also = list(revisions), dict(self.also)
        return [
            selector(metric, also | {"k8s_namespace_name": namespace}, {"kn_revision_name": names}),
            selector(metric, also | {"namespace": namespace}, beginning={"pod": [_pods_of(name) for name in names]}),
        ]

    def target_revision(self, labels: Labels, revisions: Iterable[str]) -> str | None:
        """Which of the revisions a series of `targets_of` belongs to."""
        for name in revisions:
            if labels.get("kn_revision_name") == name or labels.get("pod", "").startswith(_pods_of(name)):
                return name
        return None

    def _expression(self, metric: str, matching: str, edges: Mapping[str, Iterable[str]]) -> str:
        if self.joined:
            inside = selector(metric, dict(self.also), edges).removesuffix("{}")
            return f"{inside} {self._join(matching)}"
        more = f",{selector('', {}, edges)[1:-1]}" if edges else ""
        return f"{metric}{{{matching}{more}}}"

    def _join(self, matching: str) -> str:
        """The group takes away what else `target_info` says, which may change while a pod lives."""
        labels = f"{self.namespace_label}, {self.revision_label}"
        info = f"group by (job, instance, {labels}) ({TARGET_INFO}{{{matching}}})"
        return f"* on (job, instance) group_left ({labels}) {info}"


def _pods_of(revision: str) -> str:
    """What the names of its pods begin with."""
    return f"{revision}-" if revision.endswith(_OWN_DEPLOYMENT) else f"{revision}{_PODS}"


_HTTP_SERVER = "http_server_request_duration_seconds"


def _queue_proxy(name: Profile, *, joined: bool = False) -> RevisionMetrics:
    return RevisionMetrics(
        name=name,
        requests=f"{_HTTP_SERVER}_count",
        durations=_HTTP_SERVER,
        units_per_ms=0.001,
        code_label="http_response_status_code",
        namespace_label="k8s_namespace_name",
        revision_label="kn_revision_name",
        joined=joined,
    )


def _istio(name: Profile, reporter: str) -> RevisionMetrics:
    return RevisionMetrics(
        name=name,
        requests="istio_requests_total",
        durations="istio_request_duration_milliseconds",
        units_per_ms=1,
        code_label="response_code",
        namespace_label="destination_workload_namespace",
        revision_label="destination_workload",
        spelled="{revision}-deployment",
        fixed=(("reporter", reporter),),
        shared=reporter == "source",
    )


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
    # Knative from 1.19 with `request-metrics-protocol`: the revision's labels are on the samples, by a PodMonitor's
    # relabelling or by promotion of what is pushed.
    "knative-otel": _queue_proxy("knative-otel"),
    # The same, pulled or pushed as it comes: the labels are on `target_info` alone.
    "knative-otel-target-info": _queue_proxy("knative-otel-target-info", joined=True),
    # The gateway's view, which also has the requests that never reached a pod. Not with the activator in the path.
    "istio": _istio("istio", "source"),
    # The view of the sidecars in the serving pods.
    "istio-destination": _istio("istio-destination", "destination"),
    # Kourier's Envoy: its clusters are named `<namespace>/<revision>`, with the activator in the path too
    # (net-kourier, pkg/generator/ingress_translator.go, splitName).
    "kourier": RevisionMetrics(
        name="kourier",
        requests="envoy_cluster_upstream_rq",
        durations="envoy_cluster_upstream_rq_time",
        units_per_ms=1,
        code_label="envoy_response_code",
        namespace_label=None,
        revision_label="envoy_cluster_name",
        spelled="{namespace}/{revision}",
        shared=True,
    ),
}


def profile(name: Profile, labels: Mapping[str, str] | None = None) -> RevisionMetrics:
    """The profile of that name; of one cluster alone, where its series have these labels besides (`judge.labels`)."""
    return replace(PROFILES[name], also=tuple((labels or {}).items()))


# Envoy's code for a request that never got an answer: the client gave up, or the connection broke. Nobody was served.
NO_ANSWER = "0"


def code_pattern(codes: str | None) -> re.Pattern[str]:
    """What a metric's `codes` (`5xx`, `503`, `0`) accepts as bad; unless said 5xx, and no answer at all."""
    return re.compile(rf"5\d\d|{NO_ANSWER}" if codes is None else codes.replace("x", r"\d"))
