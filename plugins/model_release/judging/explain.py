"""From the evidence to a verdict with its figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import values
from .evidence import Evidence
from .labels import Labels
from .missing import requests_needed
from .policy import Policy, RateLimit
from .ramp import Opening
from .sentences import (
    about,
    at_deadline,
    count,
    duration,
    evidence,
    fact,
    limit,
    limits,
    plural,
    rate_limit,
    ratio_limit,
    share,
    tally,
)
from .slices import SliceEvidence
from .state import ASIDE, BAD, REQUESTS, STABLE_BAD, STABLE_REQUESTS, EvidenceState, Readings
from .terms import reported
from .verdict import BAD_VALUE, WRONG_SPLIT, Decision, MetricState, MetricVerdict, TrafficVerdict, ValueVerdict, Verdict
from .window import Window


def verdict(
    ev: Evidence,
    state: EvidenceState,
    readings: Readings,
    value_states: Sequence[values.ValueState],
    labels: Sequence[Labels],
    slices: Mapping[int, SliceEvidence],
    decision: Decision,
    *,
    cause: int,
    confidence: float | None,
    wider: float | None,
    opening: Opening,
    used: int,
    per_minute: float | None,
    last: Window | None,
) -> Verdict:
    """The whole answer for one canary; `state` has no leading axes, `cause` is why the last window decided, `wider` the
    share that the canary may have now, and `confidence` that of a promotion at the deadline, where it is not β's."""
    policy = ev.policy
    missing = requests_needed(ev, state, readings)
    low, high = ev.interval(state)
    proven = decision == "promote"
    metrics = tuple(
        _metric(
            ev,
            i,
            state,
            readings,
            missing[i],
            (float(low[i]), float(high[i])),
            last,
            confidence,
            slices.get(i),
            proven=proven,
        )
        for i in range(len(policy.metrics))
    ) + tuple(one.verdict(promoted=proven, confidence=confidence) for one in labels)
    shown = tuple(values.verdict(m, s) for m, s in zip(policy.values, value_states, strict=True))
    traffic = _traffic(ev, opening, readings)
    if wider is not None and decision == "continue" and not any(m.state == "fail" for m in metrics if not m.observe):
        decision = "open"
    open_ended = decision in ("continue", "inconclusive")
    needed = _overall(metrics) if open_ended else None
    minutes = needed / per_minute if needed is not None and per_minute else None
    if decision == "rollback":
        reason = _rolled_back(metrics, shown)
    elif decision == "promote":
        reason = _promoted(metrics)
    elif decision == "open":
        reason = f"Open wider, to {share(wider or 0.0)}: {_slowest(metrics).reason}."
    elif decision == "continue":
        reason = _watching(policy, metrics, shown, used, needed, per_minute)
    else:
        reason = _cannot_tell(policy, metrics, shown, traffic, used, needed, per_minute, cause)
    return Verdict(
        decision=decision,
        windows_used=used,
        reason=reason,
        metrics=metrics,
        values=shown,
        traffic=traffic,
        requests_needed=needed,
        minutes_needed=None if minutes is None else float(f"{minutes:.3g}"),
        share=wider if decision == "open" else None,
        confidence=confidence if decision == "promote" else None,
    )


def _metric(
    ev: Evidence,
    i: int,
    state: EvidenceState,
    readings: Readings,
    missing: float,
    ends: tuple[float, float],
    last: Window | None,
    confidence: float | None,
    slices: SliceEvidence | None,
    *,
    proven: bool,
) -> MetricVerdict:
    policy, metric = ev.policy, ev.policy.metrics[i]
    row = state.sums[i].tolist()
    against, favour = float(readings.against[i]), float(readings.favour[i])
    canary = {"requests": int(row[REQUESTS]), "bad": int(row[BAD])}
    stable = {"requests": int(row[STABLE_REQUESTS]), "bad": int(row[STABLE_BAD])}
    bounded = metric.max_rate is not None or metric.max_ratio is not None
    silent = int(state.silent[i])
    aside, dead = int(row[ASIDE]), bool(readings.dead[i])
    rate_is_worse = bool(readings.rate_is_worse[i])
    if slices is not None and not policy.guard:
        missing = math.inf if slices.unseen(canary["requests"]) else max(missing, slices.requests_needed())
    waits = slices is not None and slices.waits(slices.now)
    is_proven = ((favour >= ev.log_needed_for and not waits) or proven) and canary["requests"] >= policy.min_requests
    standing: MetricState
    if bounded and (dead or against >= ev.log_needed_against):
        standing = "fail"
    elif silent:
        standing = "no_data"
    else:
        standing = "pass" if bounded and is_proven else "undecided"
    needed = None if standing in ("fail", "pass") or not math.isfinite(missing) else math.ceil(missing)
    ev_against = reported(against) if bounded else None
    ev_for = reported(favour) if bounded else None
    low, high = ends
    at_least = f"at least {share(low)}" if standing == "fail" and low > 0 else ""
    at_most = f"at most {share(high)}" if standing in ("pass", "undecided") and high < 1 else ""
    words = fact(metric, canary, stable, metric.max_ratio is not None, at_least or at_most)
    if metric.edges and 2 * against >= ev.log_needed_against and not readings.rate_is_worse[i]:
        words = _at_worst_edge(ev, i, state) or words
    if slices is not None:
        if slices.now.against > against and 2 * against >= ev.log_needed_against:
            words, rate_is_worse = slices.fact(), slices.rate_is_worse
        words += slices.note(canary["requests"], waiting=standing == "undecided" and not policy.guard)
    if aside:
        seen = plural(aside, "window")
        words += f"; stable was failing too, {seen} set aside" if standing != "pass" else f"; stable failed in {seen}"
    if standing == "fail" and dead:
        rows = plural(int(state.dead[i, 0]), "window")
        reason = f"{words}; nothing worked in the last {rows}, and stable did"
    elif standing == "fail":
        broken = _broken_limit(metric, rate_is_worse)
        reason = f"{words}; the limit is {broken}. {tally(ev_against, policy.needed_against)}"
    elif standing == "pass" and favour < ev.log_needed_for:
        by = at_deadline(policy.deadline_risk, confidence)
        reason = f"{words}; {limits(metric, policy.indifference)}. {by}"
    elif standing == "pass":
        reason = f"{words}; {limits(metric, policy.indifference)}. {tally(ev_for, policy.needed_for)}"
    elif standing == "no_data":
        reason = f"no data for {metric.name} in the last {plural(silent, 'window')} ({_gap(metric, last)})"
    elif bounded:
        reason = (
            f"{words}; {limits(metric, policy.indifference)}. Evidence against {evidence(ev_against)} of "
            f"{evidence(policy.needed_against)}, for {evidence(ev_for)} of {evidence(policy.needed_for)}"
        )
    else:
        reason = f"{words}; shown only"
    return MetricVerdict(
        name=metric.name,
        state=standing,
        evidence_against=ev_against,
        needed_against=float(f"{policy.needed_against:.6g}"),
        evidence_for=ev_for,
        needed_for=float(f"{policy.needed_for:.6g}"),
        canary=canary,
        stable=stable,
        limit=limit(metric),
        lower=float(f"{low:.3g}"),
        upper=float(f"{high:.3g}"),
        set_aside=aside,
        design_effect=float(f"{readings.design[i]:.3g}"),
        requests_needed=needed,
        observe=metric.observe,
        critical=metric.critical,
        reason=reason,
        slices=() if slices is None else slices.verdicts(),
    )


def _at_worst_edge(ev: Evidence, i: int, state: EvidenceState) -> str:
    """What was counted at the edge that speaks most against the canary, where that is not the limit's own."""
    found = ev.worst_edge(state, i)
    if found is None:
        return ""
    edge, column = found
    row = state.sums[column].tolist()
    canary = {"requests": int(row[REQUESTS]), "bad": int(row[BAD])}
    stable = {"requests": int(row[STABLE_REQUESTS]), "bad": int(row[STABLE_BAD])}
    return fact(replace(ev.policy.metrics[i], phrase=f"took longer than {edge:g} ms"), canary, stable, compared=True)


def _traffic(ev: Evidence, opening: Opening, readings: Readings) -> TrafficVerdict | None:
    if ev.policy.traffic is None:
        return None
    return TrafficVerdict(
        wanted=ev.policy.traffic if opening.share is None else opening.share,
        seen=float(f"{opening.canary / opening.both:.4g}") if opening.both else None,
        evidence=reported(float(readings.split)),
        needed=ev.policy.needed_traffic,
    )


def _overall(metrics: Sequence[MetricVerdict]) -> int | None:
    """Canary requests until the whole verdict, None when some deciding metric would never decide."""
    still = [m for m in metrics if not m.observe and m.state not in ("pass", "fail")]
    needed = [m.requests_needed for m in still]
    known = [n for n in needed if n is not None]
    if any(m.state == "fail" for m in metrics if not m.observe) or len(known) < len(needed):
        return None
    return max(known, default=0)


def _rolled_back(metrics: Sequence[MetricVerdict], shown: Sequence[ValueVerdict]) -> str:
    failed = [m for m in metrics if m.state == "fail" and m.critical and not m.observe]
    if failed:
        # Not by their place in the policy: the same counts give the same sentence in any order.
        worst = max(failed, key=lambda m: (m.evidence_against or 0.0, m.name))
        return f"Rolled back: {worst.reason}."
    vetoes = [v for v in shown if v.state == "failed" and not v.observe]
    return f"Rolled back: {min(vetoes, key=lambda v: v.name).reason}."


def _promoted(metrics: Sequence[MetricVerdict]) -> str:
    deciding = [m for m in metrics if not m.observe]
    weakest = min(deciding, key=lambda m: (m.evidence_for or 0.0, m.name))
    others = sorted(m.name for m in deciding if m is not weakest)
    beside = ""
    if others:
        beside = f" Within {'its limit' if len(others) == 1 else 'their limits'} too: {', '.join(others)}."
    return f"Promoted: {weakest.reason}.{beside}"


def _watching(
    policy: Policy,
    metrics: Sequence[MetricVerdict],
    shown: Sequence[ValueVerdict],
    used: int,
    needed: int | None,
    per_minute: float | None,
) -> str:
    if used <= policy.warm_up:
        if used == 0:
            return "Keep watching: no window has been seen yet."
        return f"Keep watching: warming up, window {used} of {policy.warm_up} is shown and not judged."
    silent = [m for m in metrics if m.state == "no_data" and not m.observe]
    if silent:
        return f"Keep watching: {silent[0].reason}; {policy.no_data_limit} in a row end the watch."
    alarming = _alarming(metrics)
    if alarming:
        missing = alarming.requests_needed
        return f"Keep watching, this looks bad: {alarming.reason}. {_more(missing, per_minute)}"
    slowest = _slowest(metrics)
    if slowest.canary["requests"] == 0:
        return f"Keep watching: no canary request has arrived in {plural(used - policy.warm_up, 'window')}."
    barred = [m for m in metrics if m.state == "fail" and not m.observe]
    if barred:
        return f"Keep watching: {barred[0].reason}. {barred[0].name} is not critical, so it bars the promotion only."
    if policy.guard:
        return f"Nothing against it: {slowest.reason}."
    if slowest.state == "pass":
        waiting = [v for v in shown if v.state != "successful" and not v.observe]
        if not waiting:
            return f"Keep watching: {slowest.reason}. Nothing is promoted in so few windows."
        return f"Keep watching: {waiting[0].reason}; the other metrics are within their limits."
    return f"Keep watching: {slowest.reason}. {_more(needed, per_minute)}"


def _cannot_tell(
    policy: Policy,
    metrics: Sequence[MetricVerdict],
    shown: Sequence[ValueVerdict],
    traffic: TrafficVerdict | None,
    used: int,
    needed: int | None,
    per_minute: float | None,
    cause: int,
) -> str:
    """What was missing, when a window ended the watch (`cause`) or the deadline did."""
    silent = [m for m in metrics if m.state == "no_data" and not m.observe]
    if cause == WRONG_SPLIT and traffic is not None:
        seen = "unknown" if traffic.seen is None else share(traffic.seen)
        return (
            f"Cannot tell: traffic is not what was asked for, {seen} of the requests reached the canary and "
            f"{share(traffic.wanted)} should. {tally(traffic.evidence, traffic.needed)}."
        )
    if silent and cause != BAD_VALUE:
        return f"Cannot tell: {silent[0].reason}."
    doubtful = [v for v in shown if v.state in ("inconclusive", "error") and not v.observe]
    if doubtful:
        return f"Cannot tell: {min(doubtful, key=lambda v: v.name).reason}."
    if used == 0:
        return "Cannot tell: no window came."
    if used <= policy.warm_up:
        return f"Cannot tell: {plural(used, 'window')} came and the warm-up takes {policy.warm_up}."
    slowest = _slowest(metrics)
    if slowest.canary["requests"] == 0:
        return f"Cannot tell: no canary request arrived in {plural(used - policy.warm_up, 'window')}."
    barred = [m for m in metrics if m.state == "fail" and not m.observe]
    if barred:
        return f"Cannot tell: {barred[0].reason}. {barred[0].name} is not critical, so it does not roll back by itself."
    if policy.guard:
        return f"Nothing against it in {plural(used - policy.warm_up, 'window')}: {slowest.reason}."
    if slowest.state == "pass":
        waiting = [v for v in shown if v.state != "successful" and not v.observe]
        if not waiting:
            return f"Cannot tell: {slowest.reason}. The steps were not gone through, or in too few windows."
        return f"Cannot tell: {waiting[0].reason}."
    if slowest.canary["requests"] < policy.min_requests:
        seen = count(slowest.canary["requests"])
        least = count(policy.min_requests)
        return f"Cannot tell: only {seen} of the {least} canary requests needed came; {slowest.reason}."
    return f"Cannot tell at the deadline: {slowest.reason}. {_more(needed, per_minute, late=True)}"


def _alarming(metrics: Sequence[MetricVerdict]) -> MetricVerdict | None:
    """The critical metric that is more than half way to a roll-back, on the scale on which evidence grows."""
    half_way = [
        m
        for m in metrics
        if m.critical and not m.observe and m.state == "undecided" and (m.evidence_against or 0) ** 2 > m.needed_against
    ]
    return max(half_way, key=lambda m: (m.evidence_against or 0, m.name), default=None)


def _slowest(metrics: Sequence[MetricVerdict]) -> MetricVerdict:
    """The deciding metric that keeps the verdict waiting longest."""

    def wait(m: MetricVerdict) -> tuple[float, str]:
        if m.state in ("pass", "fail"):
            return -1.0, m.name
        return (math.inf if m.requests_needed is None else float(m.requests_needed)), m.name

    return max((m for m in metrics if not m.observe), key=wait)


def _more(needed: int | None, per_minute: float | None, *, late: bool = False) -> str:
    if needed is None:
        return "More requests like these would not settle it."
    needed = max(needed, 1)
    at_rate = f", {duration(needed / per_minute)} at this rate" if per_minute else ""
    return f"About {about(needed)} more canary requests{' were missing' if late else ''}{at_rate}."


def _broken_limit(metric: RateLimit, rate_broken: bool) -> str:
    if metric.max_rate is not None and (rate_broken or metric.max_ratio is None):
        return rate_limit(metric)
    return ratio_limit(metric)


def _gap(metric: RateLimit, last: Window | None) -> str:
    """Which count is missing, and the query that failed when it is known."""
    if last is None:
        return "nothing was measured"
    gaps = []
    for name, side in (("canary", last.canary), ("stable", last.stable)):
        if side is None or (name == "stable" and metric.max_ratio is None):
            continue
        if side.requests is None:
            gaps.append(f"the {name}'s requests")
        elif side.bad.get(metric.name) is None:
            gaps.append(f"the {name}'s {metric.name}")
    what = f"missing: {' and '.join(gaps)}" if gaps else "nothing was measured"
    return f"{what}; {last.error}" if last.error else what
