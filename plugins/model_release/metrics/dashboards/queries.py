"""The dashboards' PromQL. Each query gives series with the labels `revision`, or `namespace` and `service`, whatever
the stack calls them; durations are seconds. `$namespace`, `$service`, `$revision` and the intervals are Grafana's."""

from __future__ import annotations

from dataclasses import dataclass

from model_release.metrics.profiles import RevisionMetrics

RATE = "$__rate_interval"
RANGE = "$__range"
# A revision is named after its service: `<service>-predictor-00007`, `…-predictor-default-00007` on older KServe, and
# `<service>-v<version>-predictor` in Standard mode.
_SERVICE = "(.+?)(?:-predictor(?:-default)?-[0-9]+|-v[0-9a-f]{10}-predictor)"
_OURS = "airflow_model_release_"
_HERE = 'namespace="$namespace",service="$service"'


@dataclass(frozen=True)
class Queries:
    """The queries for one profile."""

    metrics: RevisionMetrics

    # ── one service, by revision ──────────────────────────────────────────────────────────────────────────────────

    def volume(self) -> str:
        """Requests a second."""
        return self._revision(self._rate(self.metrics.requests))

    def volume_by_code(self) -> str:
        """Requests a second, by response code too; the label is `code`."""
        label = self.metrics.code_label
        by_code = self._revision(self._rate(self.metrics.requests, label))
        return f'label_replace({by_code}, "code", "$1", "{label}", "(.*)")'

    def share(self) -> str:
        """The share of the service's requests."""
        every = self._rate(self.metrics.requests)
        return self._revision(f"{every} / on () group_left () sum({every})")

    def errors(self) -> str:
        """The share of answers 5xx; 0 where requests are answered and none of them so."""
        every = self._rate(self.metrics.requests)
        failed = self._rate(self.metrics.requests, also=f'{self.metrics.code_label}=~"5.."')
        return self._revision(f"({failed} or 0 * {every}) / {every}")

    def response_time(self) -> str:
        """The mean duration."""
        total, number = (self._rate(f"{self.metrics.durations}_{part}") for part in ("sum", "count"))
        return self._seconds(self._revision(f"{total} / {number}"))

    def latency(self, quantile: float) -> str:
        """A quantile of the durations, interpolated inside a bucket."""
        buckets = self._rate(f"{self.metrics.durations}_bucket", "le")
        return self._seconds(self._revision(f"histogram_quantile({quantile:g}, {buckets})"))

    # ── the fleet, by service ─────────────────────────────────────────────────────────────────────────────────────

    def fleet_volume(self) -> str:
        return self._fleet(self.metrics.requests)

    def fleet_errors(self) -> str:
        every = self._fleet(self.metrics.requests)
        failed = self._fleet(self.metrics.requests, also=f'{self.metrics.code_label}=~"5.."')
        return f"({failed} or 0 * {every}) / {every}"

    def fleet_latency(self, quantile: float) -> str:
        return self._seconds(
            f"histogram_quantile({quantile:g}, {self._fleet(f'{self.metrics.durations}_bucket', 'le')})"
        )

    # ── what Grafana offers to choose from: a query and what it keeps of each value ───────────────────────────────

    def namespaces(self) -> tuple[str, str]:
        if self.metrics.namespace_label is None:
            return self._values(""), "/^([^\\/]+)\\/.+$/"
        return f"label_values({self.metrics.bearer()}, {self.metrics.namespace_label})", ""

    def services(self) -> tuple[str, str]:
        spelled = self._spelled(_SERVICE)
        return self._values(self._matching(spelled)), f"/^{self._javascript(spelled)}$/"

    def revisions(self) -> tuple[str, str]:
        named = self._spelled("${service:regex}(?:-predictor(?:-default)?-[0-9]+|-v[0-9a-f]{10}-predictor)")
        return self._values(self._matching(named)), f"/^{self._javascript(self._spelled('(.+)'))}$/"

    # ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rate(self, metric: str, *labels: str, also: str = "") -> str:
        by = ", ".join((self.metrics.revision_label, *labels))
        matching = self._matching(self._spelled("${revision:regex}"))
        return f"sum by ({by}) ({self.metrics.ranged('rate', metric, matching, RATE, also)})"

    def _revision(self, query: str) -> str:
        pattern = self.metrics.spelled.replace("{namespace}", "[^/]+").replace("{revision}", "(.+)")
        return f'label_replace({query}, "revision", "$1", "{self.metrics.revision_label}", "{pattern}")'

    def _fleet(self, metric: str, *labels: str, also: str = "") -> str:
        one = self.metrics
        anywhere = one.spelled.replace("{namespace}", "([^/]+)").replace("{revision}", _SERVICE)
        fixed = "".join(f'{label}="{value}",' for label, value in one.fixed)
        rate = one.ranged("rate", metric, f'{fixed}{one.revision_label}=~"{anywhere}"', RATE, also)
        space = one.namespace_label or one.revision_label
        # Where one label says both, its namespace is the first group and the service the second.
        found = ("$1", "(.+)") if one.namespace_label else ("$1", anywhere)
        inner = f"sum by ({', '.join(dict.fromkeys((space, one.revision_label, *labels)))}) ({rate})"
        group = "$1" if one.namespace_label else "$2"
        inner = f'label_replace({inner}, "service", "{group}", "{one.revision_label}", "{anywhere}")'
        inner = f'label_replace({inner}, "namespace", "{found[0]}", "{space}", "{found[1]}")'
        return f"sum by ({', '.join(('namespace', 'service', *labels))}) ({inner})"

    def _spelled(self, revision: str) -> str:
        return self.metrics.spelled.replace("{namespace}", "$namespace").replace("{revision}", revision)

    def _matching(self, revision: str) -> str:
        equal = [f'{label}="{value}"' for label, value in self.metrics.fixed]
        if self.metrics.namespace_label:
            equal.append(f'{self.metrics.namespace_label}="$namespace"')
        return ",".join((*equal, f'{self.metrics.revision_label}=~"{revision}"'))

    def _values(self, matching: str) -> str:
        braces = f"{{{matching}}}" if matching else ""
        return f"label_values({self.metrics.bearing}{braces}, {self.metrics.revision_label})"

    def _javascript(self, pattern: str) -> str:
        return pattern.replace("$namespace", "[^/]+").replace("/", "\\/")

    def _seconds(self, query: str) -> str:
        return query if self.metrics.units_per_ms == 0.001 else f"{query} / {1000 * self.metrics.units_per_ms:g}"


# ── what releases tell of themselves: the same on every stack ─────────────────────────────────────────────────────


def evidence() -> str:
    """How far the evidence has come, 1 where it decides."""
    return f"max by (revision, metric, toward) ({_OURS}evidence{{{_HERE}}})"


def opened() -> str:
    """The canary's share as it was opened."""
    return f"max by (revision) ({_OURS}canary_percent{{{_HERE}}}) / 100"


def endings(here: bool) -> str:
    """When releases ended, in milliseconds."""
    return f"1000 * max by (namespace, service, model, outcome) ({_OURS}ended_timestamp_seconds{_where(here)})"


def changes() -> str:
    """When the traffic was changed, in milliseconds."""
    return f"1000 * max by (model, change) ({_OURS}traffic_timestamp_seconds{_where(True)})"


def canaries() -> str:
    """Canaries that are watched now, and the percent that they have."""
    return f"max by (namespace, service, revision) ({_OURS}canary_percent)"


def happened(metric: str, by: str, here: bool = False) -> str:
    """How often something happened in the time that is shown.

    A counter is born with its first event, which `increase` does not see: what a counter that is younger than the
    time shown began with is added to it.
    """
    counter = f"{_OURS}{metric}{_where(here)}"
    more = f"round(increase({counter}[{RANGE}]))"
    first = f"(min_over_time({counter}[{RANGE}]) unless {counter} offset {RANGE})"
    return f"sum by ({by}) ({more} + {first} or {more})"


def mean(metric: str, by: str, here: bool = False) -> str:
    """The mean of everything that was timed since the counting began, in seconds."""
    total, number = (f"sum by ({by}) ({_OURS}{metric}_{part}{_where(here)})" for part in ("sum", "count"))
    return f"{total} / {number}"


def calibration() -> str:
    """The share of judged metrics with evidence of at least 1/level against the canary: at most `level`, were all the
    canaries good."""
    return f"sum by (level) ({_OURS}tests_reached_total) / on () group_left () sum({_OURS}tests_total)"


def _where(here: bool) -> str:
    return f"{{{_HERE}}}" if here else ""
