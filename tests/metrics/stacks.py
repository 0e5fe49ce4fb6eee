"""What each stack's metrics pages look like, from single requests: those of
docs/facts.md#metrics-of-the-queue-proxy and docs/facts.md#metrics-of-the-mesh, and Envoy's own for a gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from model_release.spec import BUCKET_EDGES_MS, Profile

NAMESPACE = "models"
OTEL: tuple[Profile, ...] = ("knative-otel", "knative-otel-target-info")
GATEWAYS: tuple[Profile, ...] = ("istio", "kourier")  # one process counts for every revision

Line = tuple[str, dict[str, str], float]


@dataclass(frozen=True)
class Request:
    moment: float  # seconds
    code: int
    duration_ms: float


@dataclass
class Page:
    """One process that counts: a queue-proxy or a sidecar of one revision, or a gateway of several."""

    profile: Profile
    instance: str
    job: str = "models/kserve-revisions"
    le_as_float: bool = False
    requests: dict[str, list[Request]] = field(default_factory=dict)  # by revision

    def target(self, revision: str) -> dict[str, str]:
        """The labels that the scrape itself sets."""
        labels = {"job": self.job, "instance": self.instance}
        if self.profile in ("knative", "istio-destination"):
            labels |= {"namespace": NAMESPACE, "pod": f"{revision}-deployment-{self.instance}"}
        elif self.profile == "knative-otel":
            labels |= {"k8s_namespace_name": NAMESPACE, "kn_revision_name": revision}
        return labels

    def exposed(self, until: float) -> list[Line]:
        """Every series of the page at that moment: name, labels, value."""
        lines: list[Line] = []
        for revision, every in self.requests.items():
            seen = [request for request in every if request.moment <= until]
            labels = self.target(revision) | self._labels(revision)
            if self.profile == "knative-otel-target-info":
                lines.append(("target_info", self.target(revision) | resource(revision, self.instance), 1))
            codes = Counter(request.code for request in seen)
            for code, count in codes.items():
                of_code = [request for request in seen if request.code == code]
                lines += self._counted(labels, code, count, of_code)
            if self.profile in ("istio", "istio-destination") and seen:
                lines += self._histogram("istio_request_duration_milliseconds", labels, seen)
            if self.profile == "kourier" and seen:
                lines += self._histogram("envoy_cluster_upstream_rq_time", labels, seen)
        return lines

    def _labels(self, revision: str) -> dict[str, str]:
        if self.profile == "knative":
            service = revision.rsplit("-", 1)[0]
            return {
                "configuration_name": service,
                "container_name": "queue-proxy",
                "namespace_name": NAMESPACE,
                "pod_name": f"{revision}-deployment-{self.instance}",
                "revision_name": revision,
                "service_name": service,
            }
        if self.profile in OTEL:
            return {"http_request_method": "POST", "url_scheme": "http", "server_address": "digits.models"}
        if self.profile == "kourier":
            return {"envoy_cluster_name": f"{NAMESPACE}/{revision}"}
        source = self.profile == "istio"
        return {
            "reporter": "source" if source else "destination",
            "source_workload": "istio-ingressgateway" if source else "activator",
            "destination_workload": f"{revision}-deployment",
            "destination_workload_namespace": NAMESPACE,
            "destination_canonical_service": revision,
        }

    def _counted(self, labels: dict[str, str], code: int, count: int, seen: Sequence[Request]) -> list[Line]:
        if self.profile in OTEL:
            with_code = labels | {"http_response_status_code": str(code)}
            name = "http_server_request_duration_seconds"
            return [(f"{name}_count", with_code, count), *self._histogram(name, with_code, seen)]
        if self.profile == "kourier":
            answered = labels | {"envoy_response_code": str(code)}
            by_class = labels | {"envoy_response_code_class": str(code // 100)}
            return [
                ("envoy_cluster_upstream_rq", answered, count),
                # What Envoy counts besides: added up with the first, every request would count twice.
                ("envoy_cluster_external_upstream_rq", answered, count),
                ("envoy_cluster_upstream_rq_xx", by_class | {"of_code": str(code)}, count),
            ]
        with_code = labels | {"response_code": str(code)}
        if self.profile != "knative":
            return [("istio_requests_total", with_code, count)]
        with_code |= {"response_code_class": f"{code // 100}xx"}
        return [
            ("revision_request_count", with_code, count),
            *self._histogram("revision_request_latencies", with_code, seen),
        ]

    def _histogram(self, name: str, labels: dict[str, str], seen: Sequence[Request]) -> list[Line]:
        lines: list[Line] = []
        for edge in BUCKET_EDGES_MS[self.profile]:
            value = edge / 1000 if self.profile in OTEL else edge
            le = str(float(value)) if self.le_as_float else f"{value:.12g}"
            count = sum(request.duration_ms <= edge for request in seen)
            lines.append((f"{name}_bucket", labels | {"le": le}, count))
        total = sum(request.duration_ms for request in seen) / (1000 if self.profile in OTEL else 1)
        return [
            *lines,
            (f"{name}_bucket", labels | {"le": "+Inf"}, len(seen)),
            (f"{name}_sum", labels, total),
            # The counter of these two stacks is the histogram's own count.
            *([] if self.profile in OTEL else [(f"{name}_count", labels, float(len(seen)))]),
        ]


def resource(revision: str, instance: str) -> dict[str, str]:
    """What `target_info` says of a queue-proxy: its OpenTelemetry resource."""
    service = revision.rsplit("-", 1)[0]
    return {
        "k8s_namespace_name": NAMESPACE,
        "k8s_pod_name": f"{revision}-deployment-{instance}",
        "kn_configuration_name": service,
        "kn_revision_name": revision,
        "kn_service_name": service,
        "service_name": "queue-proxy",
        "telemetry_sdk_language": "go",
    }
