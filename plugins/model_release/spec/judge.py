"""The `judge` part of a model file: what is measured, and when evidence is enough."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .units import SLICE, Part, PositiveDuration, Share, format_duration

Profile = Literal["knative", "knative-otel", "knative-otel-target-info", "istio", "istio-destination", "kourier"]

_OPENTELEMETRY = (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
_ISTIO = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)

# The upper edges of the latency histogram that each stack exposes, in milliseconds. A share of slow requests can be
# read exactly only at one of them; between two it would be a guess (docs/facts.md#metrics-of-the-queue-proxy; Istio's
# own list is in its `istio_request_duration_milliseconds` definition; Kourier keeps Envoy's, here without that of half
# a millisecond).
BUCKET_EDGES_MS: dict[Profile, tuple[float, ...]] = {
    "knative": (
        *(5, 10, 20, 40, 60, 80, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900),
        *(1000, 2000, 5000, 10000, 20000, 50000, 100000),
    ),
    "knative-otel": _OPENTELEMETRY,
    "knative-otel-target-info": _OPENTELEMETRY,
    "istio": _ISTIO,
    "istio-destination": _ISTIO,
    "kourier": (
        *(1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000),
        *(300000, 600000, 1800000, 3600000),
    ),
}


NEAR = 10  # times the limit, either way: edges at which durations are compared with stable's

_CODES = "Bad response codes: 5xx, 503, …; 0 is Envoy's for a request that got no answer. Unless said, 5xx and 0."
_COUNTS = (
    'PromQL for how many were bad in a window: "$revision", "$namespace", "$service" and "$window" stand for what is '
    'asked about, as in sum(increase(orders_returned_total{revision="$revision"}[$window])).'
)
_LABEL = r"^[a-zA-Z_][a-zA-Z0-9_]*$"


_PLACEHOLDERS = ("namespace", "revision", "service")
# What may be bad: one of these, `bad` with its `total`.
_MEANINGS = ("codes", "above", "below", "bad", "total")


def _known_placeholders(query: str, names: tuple[str, ...]) -> str:
    for found in re.finditer(r"\$(\w*)", query):
        if found[1] not in names:
            known = ", ".join(f"${name}" for name in names)
            raise ValueError(f"{found[0]!r} stands for nothing; {known} do")
    return query


class Slices(Part):
    """A metric is judged in each slice of the traffic, too."""

    by: str = Field(
        pattern=SLICE,
        max_length=40,
        description="The label of the metric's series whose values are the slices: country, for example.",
    )
    at_least: int = Field(200, ge=1, description="A slice with fewer canary requests is not judged, and said so.")


class Metric(Part):
    """A share of bad requests.

    Bad is a response code (`codes`; unless said 5xx, and no answer at all), a duration (`above`), an answer of which
    the model is less sure (`below`), or what a query of one's own counts (`bad` of `total`). With `max_shift` it is no
    such share, but the labels that both sides give, as the handler counts them.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
    codes: str | None = Field(None, pattern=r"^(0|[1-5](\d\d|xx))$", description=_CODES)
    above: PositiveDuration | None = Field(None, description="Bad is slower than this; on a bucket's edge.")
    below: Share | None = Field(
        None, description="Bad is an answer whose likeliest label has less probability than this: 0.05, 0.1, … 0.95."
    )
    of: Literal["probability", "entropy"] = Field(
        "probability",
        description="With `below`, how sure is told by the likeliest label's probability, or by all of them: 1 less "
        "their normalised entropy.",
    )
    bad: str | None = Field(None, min_length=1, description=_COUNTS)
    total: str | None = Field(None, min_length=1, description="Of how many `bad` are a share; PromQL likewise.")
    delay: PositiveDuration | None = Field(
        None,
        description="With `bad`: what came of an answer is known up to so much later; judged after the promotion, in "
        "a bake that is longer.",
    )
    max_rate: Share | None = Field(None, description="The share that may never be exceeded.")
    max_ratio: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="Times stable's share that is still accepted."
    )
    floor: Share | None = Field(None, description="Stable's share counts as at least this, with max_ratio.")
    max_shift: Share | None = Field(
        None, description="The share of the answers that may be other labels than stable's: of all of them together."
    )
    slices: Slices | None = Field(None, description="Judged in each slice of the traffic, too: {by: country}.")
    observe: bool = Field(False, description="Computed and shown; never decides.")

    @model_validator(mode="after")
    def _has_slices_of_its_own(self) -> Metric:
        if self.slices is None:
            return self
        by = self.slices.by
        if self.max_shift is not None:
            raise ValueError("slices: judge shares of bad requests, and max_shift labels; a share with slices is right")
        if self.of == "entropy":
            raise ValueError("slices: the handler counts them by probability; of: entropy judges the whole")
        if self.max_rate is None and self.max_ratio is None:
            raise ValueError("slices: mean nothing without a limit; max_rate, max_ratio or both")
        for name, query in (("bad", self.bad), ("total", self.total)):
            if query is not None and not re.search(rf"\bby\s*\([^)]*\b{by}\b[^)]*\)", query):
                raise ValueError(f"{name}: gives no series for each slice; sum by ({by}) (increase(…[$window])) does")
        return self

    @model_validator(mode="after")
    def _is_late_with_a_limit_of_its_own(self) -> Metric:
        if self.delay is None:
            return self
        if self.bad is None:
            raise ValueError(
                "delay: is for what queries of your own count, bad of total; the others are counted at once"
            )
        if self.max_rate is None or self.max_ratio is not None:
            raise ValueError(
                "delay: what is known that late is judged after the promotion, with no stable beside it; a max_rate is "
                "right, and no max_ratio"
            )
        return self

    @model_validator(mode="after")
    def _has_one_meaning(self) -> Metric:
        if self.of == "entropy" and self.below is None:
            raise ValueError("of: tells how sure an answer is, for below; below: 0.5 beside it is right, for example")
        if self.max_shift is not None:
            bad = [name for name in (*_MEANINGS, "max_rate", "max_ratio", "floor") if getattr(self, name) is not None]
            if bad:
                raise ValueError(f"max_shift limits the labels and {bad[0]} bad requests; give each a name of its own")
            return self
        said = [name for name in _MEANINGS if getattr(self, name) is not None and name != "total"]
        if len(said) > 1:
            raise ValueError(f"{said[0]} and {said[1]} are two metrics; give each a name of its own")
        if (self.bad is None) != (self.total is None):
            here, missing = ("bad", "total") if self.total is None else ("total", "bad")
            raise ValueError(f"{here} needs {missing}: how many were bad, and of how many")
        if self.below is not None and abs(20 * self.below - round(20 * self.below)) > 1e-9:
            low = int(20 * self.below) / 20
            raise ValueError(
                f"below: {self.below:g} is on no edge of what is counted; {low:g} or {low + 0.05:g} can be read exactly"
            )
        if self.max_rate is None and self.max_ratio is None and not self.observe:
            raise ValueError("no limit: max_rate, max_ratio or both; or observe: true to only show it")
        if self.max_ratio is not None and self.floor is None:
            raise ValueError("max_ratio needs a floor, or one bad request against a perfect stable would be fatal")
        if self.floor is not None and self.max_ratio is None:
            raise ValueError("floor has no meaning without max_ratio")
        return self

    @field_validator("bad", "total")
    @classmethod
    def _counts_a_window(cls, query: str | None) -> str | None:
        if query is None:
            return None
        _known_placeholders(query, (*_PLACEHOLDERS, "window"))
        if "$window" not in query:
            raise ValueError("$window is missing: what one window counted is asked for, as in increase(…[$window])")
        if found := re.search(r"\b(i?rate|deriv|i?delta)\s*\(", query):
            raise ValueError(f"{found[1]}(…) gives no count; increase(…[$window]) does")
        if "$revision" not in query:
            raise ValueError("$revision is missing: without it, canary and stable would be told the same")
        return query

    @property
    def of_requests(self) -> bool:
        """Whether it is a share of the requests, as the profile counts them."""
        return self.max_shift is None and self.below is None and self.bad is None

    def limits(self) -> dict[str, Any]:
        """The metric as `judging.Policy` reads it."""
        given = {
            "max_shift": self.max_shift,
            "max_rate": self.max_rate,
            "max_ratio": self.max_ratio,
            "floor": self.floor,
        }
        limits: dict[str, Any] = {"name": self.name, **{k: v for k, v in given.items() if v is not None}}
        if self.below is not None:
            by = " by their entropy" if self.of == "entropy" else ""
            limits |= {"noun": "answers", "phrase": f"were less than {100 * self.below:g} % sure{by}"}
        if self.bad is not None:
            limits["noun"] = "events"
        if self.observe:
            limits["observe"] = True
        if self.slices is not None:
            limits["slices"] = self.slices.model_dump()
        return limits


class Value(Part):
    """A number that is no share (queue depth, memory, a business figure), held against a threshold. It can stop a
    release and never promotes one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
    query: str = Field(
        min_length=1,
        description='PromQL for one number; "$revision", "$namespace" and "$service" stand for what is asked about.',
    )
    max: float | None = Field(None, allow_inf_nan=False)
    min: float | None = Field(None, allow_inf_nan=False)
    max_ratio: float | None = Field(None, gt=0, allow_inf_nan=False, description="Times stable's value, at most.")
    failures_allowed: int = Field(0, ge=0)
    inconclusive_allowed: int = Field(0, ge=0)
    consecutive_errors_allowed: int = Field(4, ge=0)
    observe: bool = Field(False, description="Measured and shown; never decides.")

    @field_validator("query")
    @classmethod
    def _placeholders_are_known(cls, query: str) -> str:
        return _known_placeholders(query, _PLACEHOLDERS)

    @model_validator(mode="after")
    def _has_a_limit(self) -> Value:
        if self.max is None and self.min is None and self.max_ratio is None and not self.observe:
            raise ValueError("no limit: max, min or max_ratio; or observe: true to only show it")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; every value would fail")
        return self


class JudgeSpec(Part):
    """When evidence is enough. The mathematics is in `model_release/judging`."""

    profile: Profile = Field("knative-otel", description="Which stack's metrics Prometheus holds.")
    labels: dict[Annotated[str, Field(pattern=_LABEL)], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="What else every series of this cluster says, where Prometheus holds several: {cluster: eu-1}.",
    )
    metrics: tuple[Metric, ...] = Field(min_length=1)
    values: tuple[Value, ...] = ()
    false_rollback: Share = Field(0.01, description="At most this chance that a release rolls back a good canary.")
    false_promotion: Share = Field(
        0.05, description="At most this chance to promote one beyond indifference times a limit."
    )
    indifference: float = Field(
        2.0,
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="Promoted below so many times a limit; between it and that, either may happen. 1: below it only.",
    )
    min_requests: int = Field(100, ge=1, description="On the canary, before it may go on or is promoted.")
    warm_up: int = Field(0, ge=0, description="Windows after each opening that are shown and not judged.")
    no_data_limit: int = Field(6, ge=1, description="So many windows without data in a row end the watch.")
    design_effect: float = Field(
        4.0,
        ge=1,
        allow_inf_nan=False,
        description="Burstiness of failures, assumed until stable's own windows show it; 1 where requests fail alone.",
    )

    @property
    def delay(self) -> timedelta:
        """How long after an answer the last of what is judged by is known."""
        return max((metric.delay for metric in self.metrics if metric.delay is not None), default=timedelta(0))

    def edges_of(self, metric: Metric) -> tuple[float, ...]:
        """The other edges of the histogram, in milliseconds, at which a limit on durations beside stable is compared:
        those within a tenth and ten times of it. A shift that leaves the limit's own edge alone is seen there."""
        if metric.above is None or metric.max_ratio is None:
            return ()
        limit = metric.above / timedelta(milliseconds=1)
        near = (edge for edge in BUCKET_EDGES_MS[self.profile] if limit / NEAR <= edge <= limit * NEAR)
        return tuple(edge for edge in near if edge != limit)

    @model_validator(mode="after")
    def _metrics_are_readable(self) -> JudgeSpec:
        names = [metric.name for metric in self.metrics] + [value.name for value in self.values]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two metrics are called {doubled[0]!r}")
        if all(metric.observe for metric in self.metrics):
            raise ValueError("every metric is only observed; at least one must decide")
        if all(metric.observe or metric.delay for metric in self.metrics):
            raise ValueError(
                "every metric that decides has a delay, so none does before the promotion; one without is right"
            )
        shifts = [metric.name for metric in self.metrics if metric.max_shift is not None]
        if len(shifts) > 1:
            raise ValueError(f"{shifts[0]} and {shifts[1]} limit the same labels; one max_shift is enough")
        if all(metric.observe or metric.delay or metric.max_shift is not None for metric in self.metrics):
            raise ValueError("max_shift alone would promote a canary that fails; judge a share of bad requests, too")
        edges = BUCKET_EDGES_MS[self.profile]
        for metric in self.metrics:
            if metric.above is None:
                continue
            limit = metric.above.total_seconds() * 1000
            if limit not in edges:
                near = sorted(sorted(edges, key=lambda edge: abs(edge - limit))[:2])
                named = " or ".join(format_duration(timedelta(milliseconds=edge)) for edge in near)
                raise ValueError(
                    f"metrics.{metric.name}.above: {format_duration(metric.above)} is on no bucket's edge of profile "
                    f"{self.profile}, so the share could only be guessed; {named} can be read exactly"
                )
        return self
