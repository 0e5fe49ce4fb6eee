"""What the judge answers: plain data, no rules."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Decision = Literal["promote", "open", "rollback", "continue", "inconclusive"]
MetricState = Literal["pass", "fail", "undecided", "no_data"]
# Why a window decided, in the order in which they are looked at: a later one is only asked when none before it holds.
ROLL_BACK, NO_DATA, WRONG_SPLIT, BAD_VALUE, PROMOTE, CONTINUE = range(1, 7)

Outcome = Literal["successful", "failed", "inconclusive", "error", "pending"]


@dataclass(frozen=True)
class LabelShare:
    """How often both sides gave a label."""

    label: str
    canary: int
    stable: int


@dataclass(frozen=True)
class SliceVerdict:
    """One slice of the traffic by a metric. `fail`: shown to be beyond the limit, in the metric's own test; `few`: not
    judged, for it had too few canary requests."""

    slice: str
    state: Literal["fail", "few", "judged"]
    evidence_against: float
    canary: dict[str, int]
    stable: dict[str, int]


@dataclass(frozen=True)
class MetricVerdict:
    """One share of bad requests, as far as it is known after the last judged window.

    `lower` and `upper` are the ends of the canary's bad share: at any look, and over all of them, they leave the true
    one out in at most 5 % of releases. `set_aside` are windows that were left out because stable itself was failing.
    Evidence is None for a metric without limits. `requests_needed` are canary requests still to come until
    this metric decides if it goes on as so far; None when it would not, or when it has decided.

    Where labels are judged, `lower` and `upper` are of the distance between the sides, "bad" is how often each gave the
    label that moved most, "requests" all answers, and `labels` those that moved most, the farthest first.

    Where slices are judged, too, `evidence_against` is of the whole and of them together, and `slices` has the worst
    first; all other figures are the whole's.
    """

    name: str
    state: MetricState
    evidence_against: float | None
    needed_against: float
    evidence_for: float | None
    needed_for: float
    canary: dict[str, int]
    stable: dict[str, int]
    limit: str
    lower: float
    upper: float
    set_aside: int
    design_effect: float
    requests_needed: int | None
    observe: bool
    critical: bool
    reason: str
    labels: tuple[LabelShare, ...] = ()
    slices: tuple[SliceVerdict, ...] = ()


@dataclass(frozen=True)
class ValueVerdict:
    """One value metric: its last measurement, and its counters so far."""

    name: str
    state: Outcome  # what the counters say; "pending" while neither success nor a limit is reached
    last: Outcome  # the last measurement alone
    canary: float | None
    stable: float | None
    limit: str
    measurements: int
    failures: int
    failures_allowed: int
    inconclusive: int
    consecutive_errors: int
    observe: bool
    reason: str


@dataclass(frozen=True)
class TrafficVerdict:
    """The canary's share of all requests, and the evidence that it is not near the wanted one."""

    wanted: float
    seen: float | None
    evidence: float
    needed: float


@dataclass(frozen=True)
class Verdict:
    """The judge's answer after `windows_used` windows (those of the warm-up are counted).

    `requests_needed` and `minutes_needed` say, for `continue` and `inconclusive`, how much more of the canary's
    traffic would decide if things go on as so far; None when more of the same would not. `share` is, with `open`, the
    part of the traffic that the canary may have now (0 to 1). `confidence` is that of a promotion at the deadline which
    the policy's usual risk did not allow.
    """

    decision: Decision
    windows_used: int
    reason: str
    metrics: tuple[MetricVerdict, ...]
    values: tuple[ValueVerdict, ...] = ()
    traffic: TrafficVerdict | None = None
    requests_needed: int | None = None
    minutes_needed: float | None = None
    share: float | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; the same counts give the same document on any machine."""
        out = asdict(self)
        if self.confidence is None:
            del out["confidence"]  # as records of this edition had it before there was any
        out["metrics"] = [_spoken(m) for m in out["metrics"]]
        out["values"] = [{**v, "canary": written(v["canary"]), "stable": written(v["stable"])} for v in out["values"]]
        return out


def _spoken(metric: dict[str, Any]) -> dict[str, Any]:
    """As it was written before there were any, so that records stay equal."""
    more = ("labels", "slices")
    return {name: value for name, value in metric.items() if name not in more} | {
        name: list(metric[name]) for name in more if metric[name]
    }


def written(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity; they are written as Prometheus writes them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
