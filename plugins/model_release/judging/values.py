"""Value metrics: thresholds on numbers that are no shares, by Argo Rollouts' four outcomes.

The counters and their order are Argo's (docs/facts.md#argo-rollouts), without its two traps: a stopped measurement is
never written down as successful, and a limit of 3 allows exactly 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .policy import ValueLimit
from .sentences import number, times
from .verdict import Outcome, ValueVerdict
from .window import Window


@dataclass(frozen=True)
class ValueState:
    """The counters of one value metric; `outcome` is the last measurement's."""

    outcome: Outcome = "pending"
    canary: float | None = None
    stable: float | None = None
    measurements: int = 0
    failures: int = 0
    inconclusive: int = 0
    consecutive_errors: int = 0
    error: str | None = None


def measure(metric: ValueLimit, window: Window) -> tuple[Outcome, float | None, float | None]:
    """One measurement's outcome.

    error: there is no number (empty answer, failed query). inconclusive: there is one and it cannot be compared:
    NaN, or no number of stable's to compare it with. Neither is ever a success. pending: NaN, where nobody was asked
    anything in the window: no measurement yet (a quantile of no requests is no number).
    """
    sides = window.values.get(metric.name, {})
    canary, stable = sides.get("canary"), sides.get("stable")
    if canary is None:
        return "error", canary, stable
    if math.isnan(canary):
        return "pending" if window.canary.requests == 0 else "inconclusive", canary, stable
    if metric.max is not None and canary > metric.max:
        return "failed", canary, stable
    if metric.min is not None and canary < metric.min:
        return "failed", canary, stable
    if metric.max_ratio is not None and window.stable is not None:
        if stable is None or math.isnan(stable):
            quiet = stable is not None and window.stable.requests == 0
            return "pending" if quiet else "inconclusive", canary, stable
        if canary > metric.max_ratio * stable:
            return "failed", canary, stable
    return "successful", canary, stable


def after(metric: ValueLimit, state: ValueState, window: Window) -> ValueState:
    """The counters after one more window. An error counts as no measurement and breaks no row of them."""
    outcome, canary, stable = measure(metric, window)
    if outcome == "pending":
        return state
    if outcome == "error":
        return replace(
            state,
            outcome=outcome,
            canary=canary,
            stable=stable,
            consecutive_errors=state.consecutive_errors + 1,
            error=window.error,
        )
    return ValueState(
        outcome=outcome,
        canary=canary,
        stable=stable,
        measurements=state.measurements + 1,
        failures=state.failures + (outcome == "failed"),
        inconclusive=state.inconclusive + (outcome == "inconclusive"),
    )


def standing(metric: ValueLimit, state: ValueState) -> Outcome:
    """What the counters say of the metric: the first three end the watch, `successful` lets others promote."""
    if state.failures > metric.failures_allowed:
        return "failed"
    if state.inconclusive > metric.inconclusive_allowed:
        return "inconclusive"
    if state.consecutive_errors > metric.consecutive_errors_allowed:
        return "error"
    return "successful" if state.outcome == "successful" else "pending"


def limit_words(metric: ValueLimit) -> str:
    limits = []
    if metric.max is not None:
        limits.append(f"at most {number(metric.max)}")
    if metric.min is not None:
        limits.append(f"at least {number(metric.min)}")
    if metric.max_ratio is not None:
        limits.append(f"at most {times(metric.max_ratio)} stable's")
    return " and ".join(limits) or "none, shown only"


def verdict(metric: ValueLimit, state: ValueState) -> ValueVerdict:
    return ValueVerdict(
        name=metric.name,
        state=standing(metric, state),
        last=state.outcome,
        canary=state.canary,
        stable=state.stable,
        limit=limit_words(metric),
        measurements=state.measurements,
        failures=state.failures,
        failures_allowed=metric.failures_allowed,
        inconclusive=state.inconclusive,
        consecutive_errors=state.consecutive_errors,
        observe=metric.observe,
        reason=_reason(metric, state),
    )


def _reason(metric: ValueLimit, state: ValueState) -> str:
    said = standing(metric, state)
    if state.outcome == "pending":
        return f"{metric.name} has not been measured yet"
    if said == "failed":
        return (
            f"{metric.name} is {_shown(state)}, the limit is {limit_words(metric)}; "
            f"{state.failures} of {state.measurements} measurements failed, "
            f"{metric.failures_allowed} may"
        )
    if said == "inconclusive":
        what = "not a number" if state.canary is None or math.isnan(state.canary) else "without stable's to compare"
        return (
            f"{metric.name} is {what}; {state.inconclusive} of {state.measurements} measurements could not be "
            f"compared, {metric.inconclusive_allowed} may"
        )
    if state.outcome == "error":
        query = state.error or (f"query {metric.query}" if metric.query else "the query gave no number")
        return (
            f"{metric.name} could not be measured {state.consecutive_errors} times in a row, "
            f"{metric.consecutive_errors_allowed} may be ({query})"
        )
    if state.outcome == "inconclusive":
        return f"{metric.name} could not be compared in the last window"
    return f"{metric.name} is {_shown(state)}, the limit is {limit_words(metric)}"


def _shown(state: ValueState) -> str:
    beside = "" if state.stable is None or math.isnan(state.stable) else f" ({number(state.stable)} on stable)"
    return "unknown" if state.canary is None else f"{number(state.canary)}{beside}"
