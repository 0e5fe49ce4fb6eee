"""The labels of a canary's answers beside stable's: from windows to the evidence in shift.py, and on to words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from . import ramp, shift, terms
from .policy import Policy, ShiftLimit
from .sentences import at_deadline, bound, count, evidence, name_of, plural, share, tally, times
from .state import Floats
from .verdict import CONTINUE, NO_DATA, PROMOTE, ROLL_BACK, WRONG_SPLIT, LabelShare, MetricState, MetricVerdict
from .window import Side, Window

SHOWN = 10  # labels in a verdict
# How much more of the same to try, as multiples of what was seen.
_MORE: Floats = np.geomspace(0.02, 300, 60)


class Labels:
    """One limit on labels, window by window. Columns are labels as they came; the first is "other"."""

    def __init__(self, policy: Policy, limit: ShiftLimit, past: Mapping[str, int]) -> None:
        self.policy, self.limit = policy, limit
        known = shift.binned(past)
        ranked = sorted((label for label in known if label != shift.OTHER), key=lambda label: (-known[label], label))
        self._place = {label: place for place, label in enumerate([shift.OTHER, *ranked])}
        self._state = shift.start(np.array([float(known.get(label, 0)) for label in self._place]))
        self._bound = float(terms.beyond(np.array(limit.max_shift), policy.indifference))
        self._last: Window | None = None

    def add(self, window: Window) -> None:
        """One more window."""
        sides = [_counts(side, self.limit.name) for side in (window.canary, window.stable)]
        self._learn(sides)
        known = len(self._place)

        def row(counts: Mapping[str, int] | None) -> Floats:
            if counts is None:
                return np.full(known, np.nan)
            out = np.zeros(known)
            for label, value in counts.items():
                out[self._place.get(label, 0)] += value
            return out

        self._state = shift.extend(
            self._state, row(sides[0]), row(sides[1]), self.limit.max_shift, self.policy.deadline_windows
        )
        self._last = window

    def _learn(self, sides: Sequence[Mapping[str, int] | None]) -> None:
        """Gives the labels that were not met before a place, stable's most frequent ones first."""
        stable = sides[1] or {}
        new = {label for counts in sides for label in counts or () if label and label not in self._place}
        room = shift.MOST_LABELS + 1 - len(self._place)
        for label in sorted(new, key=lambda label: (-stable.get(label, 0), label))[:room]:
            self._place[label] = len(self._place)
        if new and room:
            self._state = self._state.grown(len(self._place))

    def clear_doubts(self) -> None:
        """A person has answered that there was no data; the evidence stays."""
        self._state = replace(self._state, silent=np.zeros(()))

    @property
    def answers(self) -> int:
        """The canary's, so far."""
        return int(self._state.canary.sum())

    @property
    def silent(self) -> int:
        return int(self._state.silent)

    @property
    def _design(self) -> Floats:
        return shift.design_effect(self._state, self.policy.design_effect)

    @property
    def against(self) -> float:
        return float(shift.against(self._state))

    @property
    def favour(self) -> float:
        if not float(self._state.paired):
            return 0.0
        return float(shift.favour(self._state, self._bound, self._design))

    @property
    def failing(self) -> bool:
        return self.against >= math.log(self.policy.needed_against)

    def shown(self, part: float = 1.0) -> bool:
        """Whether the evidence for the canary is there, or on its logarithm that part of it."""
        enough = self.favour >= part * math.log(self.policy.needed_for)
        return enough and self.answers >= self.policy.min_requests and not self.silent and not self.failing

    @property
    def opens(self) -> bool:
        """Whether the canary may have more of the traffic: a step waits for evidence, a ramp for the lack of doubt."""
        if self.policy.ramp is None:
            return self.shown(ramp.HALF_WAY)
        return not self.silent and self.against < math.log(ramp.DOUBTFUL)

    def at_deadline(self, risk: float | None = None) -> bool:
        """By a look whose moment was fixed before, at the policy's risk unless `risk` says another one."""
        if self.shown():
            return True
        risk = self.policy.deadline_risk if risk is None else risk
        by_size = shift.at_deadline(self._state, self._bound, self._design, risk)
        return bool(by_size) and self.answers >= self.policy.min_requests and not self.silent and not self.failing

    def verdict(self, *, promoted: bool, confidence: float | None = None) -> MetricVerdict:
        """How it stands; `promoted`: the decision was to promote, at the deadline with `confidence` where that is not
        β's."""
        policy, name = self.policy, self.limit.name
        ev_against, ev_for = terms.reported(self.against), terms.reported(self.favour)
        low, high = shift.interval(self._state, float(self._design))
        standing: MetricState
        if self.failing:
            standing = "fail"
        elif self.silent:
            standing = "no_data"
        else:
            risk = None if confidence is None else policy.confident_risk
            standing = "pass" if self.shown() or (promoted and self.at_deadline(risk)) else "undecided"
        labels = self._moved()
        needed = self._requests_needed() if standing in ("undecided", "no_data") else None
        words = self._fact(labels, f"at least {share(low)}" if standing == "fail" and low else f"at most {share(high)}")
        limit = f"a shift of {bound(self.limit.max_shift)}"
        limits = f"the limit is {limit}"
        if policy.indifference != 1:
            limits += f", promoted below {times(policy.indifference)} that"
        if standing == "fail":
            reason = f"{words}; the limit is {limit}. {tally(ev_against, policy.needed_against)}"
        elif standing == "no_data":
            reason = f"no data for {name} in the last {plural(self.silent, 'window')} ({self._gap()})"
        elif standing == "pass" and self.favour < math.log(policy.needed_for):
            reason = f"{words}; {limits}. {at_deadline(policy.deadline_risk, confidence)}"
        elif standing == "pass":
            reason = f"{words}; {limits}. {tally(ev_for, policy.needed_for)}"
        else:
            reason = (
                f"{words}; {limits}. Evidence against {evidence(ev_against)} of {evidence(policy.needed_against)}, "
                f"for {evidence(ev_for)} of {evidence(policy.needed_for)}"
            )
        moved = labels[0] if labels else LabelShare("", 0, 0)
        return MetricVerdict(
            name=name,
            state=standing,
            evidence_against=ev_against,
            needed_against=float(f"{policy.needed_against:.6g}"),
            evidence_for=ev_for,
            needed_for=float(f"{policy.needed_for:.6g}"),
            canary={"requests": self.answers, "bad": moved.canary},
            stable={"requests": int(self._state.stable.sum()), "bad": moved.stable},
            limit=limit,
            lower=float(f"{low:.3g}"),
            upper=float(f"{high:.3g}"),
            set_aside=0,
            design_effect=float(f"{float(self._design):.3g}"),
            requests_needed=needed,
            observe=self.limit.observe,
            critical=self.limit.critical,
            reason=reason,
            labels=labels,
        )

    def _moved(self) -> tuple[LabelShare, ...]:
        """The labels that moved most, window beside window, the farthest first; of two alike the one that rose."""
        apart = np.round(self._state.apart, 6)
        places = sorted(
            self._place.items(), key=lambda one: (-abs(float(apart[one[1]])), -float(apart[one[1]]), one[0])
        )
        canary, stable = self._state.canary, self._state.stable
        there = [(label, int(canary[place]), int(stable[place])) for label, place in places]
        return tuple(LabelShare(*one) for one in there if one[1] or one[2])[:SHOWN]

    def _fact(self, labels: Sequence[LabelShare], end: str) -> str:
        """ "angry 31 % instead of 12 % of the answers (96 of 310, 220 of 1 830 on stable), in all …"."""
        n, m = self.answers, int(self._state.stable.sum())
        if not n or not m:
            return (
                f"no answers on {'either side' if not n and not m else 'stable' if n else 'the canary'} to compare yet"
            )
        moved = labels[0]
        return (
            f"{name_of(moved.label)} {share(moved.canary / n)} instead of {share(moved.stable / m)} of the answers "
            f"({count(moved.canary)} of {count(n)}, {count(moved.stable)} of {count(m)} on stable), "
            f"in all {share(float(shift.distance(self._state)))} moved, {end}"
        )

    def _requests_needed(self) -> int | None:
        """Canary answers until this decides, if all goes on as so far; None where it would not."""
        state, n = self._state, self.answers
        if not n or not float(state.paired):
            return None
        now = self.favour
        least = max(0, self.policy.min_requests - n)
        needed = []
        # With more answers less of the distance seen is chance.
        left = 1 - float(shift.distance(state)) / np.sqrt(1 + _MORE) / self._bound
        worth = 2 * self._bound**2 * float(state.paired) * (1 + _MORE) / max(float(self._design), 1.0)
        best = np.maximum(left, 0.0)
        later = np.where(left > 0, worth * best**2, -math.inf) - 1
        reached = later >= math.log(self.policy.needed_for)
        if now >= math.log(self.policy.needed_for):
            needed.append(least)
        elif reached.any():
            needed.append(max(least, math.ceil(n * float(_MORE[reached.argmax()]))))
        if self.against > 0:
            needed.append(math.ceil(n * (math.log(self.policy.needed_against) / self.against - 1)))
        return min(needed, default=None)

    def _gap(self) -> str:
        """Which side's labels are missing, and the query that failed when it is known."""
        last = self._last
        if last is None:
            return "nothing was measured"
        sides = (("canary", last.canary), ("stable", last.stable))
        missing = [name for name, side in sides if side is not None and side.labels.get(self.limit.name) is None]
        what = "missing: " + " and ".join(f"the {name}'s labels" for name in missing)
        return f"{what}; {last.error}" if last.error else what


def joined(kept: Sequence[Labels], code: int) -> int:
    """What a window decides, from what it decides without the labels."""
    deciding = [one for one in kept if not one.limit.observe]
    if code == ROLL_BACK or any(one.failing and one.limit.critical for one in deciding):
        return ROLL_BACK
    if code in (WRONG_SPLIT, PROMOTE, CONTINUE) and any(one.silent >= one.policy.no_data_limit for one in deciding):
        return NO_DATA
    if code == PROMOTE and not all(one.shown() for one in deciding):
        return CONTINUE
    return code


def _counts(side: Side | None, name: str) -> Mapping[str, int] | None:
    """Nothing was asked of a side that is not there."""
    return {} if side is None else side.labels.get(name)
