"""The judge: policy and windows in, verdict out. A pure function; it knows no clock and acts on nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from . import explain, labels, ramp, slices, values
from .evidence import Evidence
from .past import Past
from .policy import Policy
from .rules import Codes, Rules
from .state import REQUESTS, Counts, Floats, Readings
from .verdict import BAD_VALUE, CONTINUE, NO_DATA, PROMOTE, ROLL_BACK, WRONG_SPLIT, Decision, Verdict
from .window import EvidenceError, Side, Window

_DECISIONS: dict[int, Decision] = {
    ROLL_BACK: "rollback",
    PROMOTE: "promote",
    NO_DATA: "inconclusive",
    WRONG_SPLIT: "inconclusive",
    BAD_VALUE: "inconclusive",
}


def judge(policy: Policy, windows: Sequence[Window], past: Past | None = None, *, final: bool = False) -> Verdict:
    """The verdict on the windows, read in order; judging stops at the first window that decides.

    `past` is what stable did before the release. `final` says that no more windows will come: what is open then is
    looked at once more, by a test that may be made once, and is `inconclusive` if that shows nothing either. The same
    input always gives the same verdict. Raises EvidenceError for counts of a metric that the policy does not know.
    """
    one = Judge(policy, past)
    one.extend(windows)
    return one.verdict(final=final)


class Judge:
    """The judge of one canary that keeps the evidence so far, so that a new window costs the same at any age.

    Once a window has decided, later ones change nothing: `add` gives the same verdict again.
    """

    def __init__(self, policy: Policy, past: Past | None = None) -> None:
        self.policy = policy
        self.past = past
        before = None if past is None or not past.windows else past.counts(policy)
        self._evidence = Evidence(policy, before)
        self._rules = Rules(self._evidence)
        self._state = self._evidence.start()
        self._slices = {
            i: slices.SliceEvidence(policy, m) for i, m in enumerate(policy.metrics) if m.slices is not None
        }
        self._readings = self._read()
        self._values = tuple(values.ValueState() for _ in policy.values)
        self._labels = self._fresh_labels()
        self._names = tuple(m.name for m in policy.metrics)
        self._known = frozenset(self._names)
        self._edges = {m.name: len(m.edges) for m in policy.metrics}
        self._known_slices = frozenset(policy.metrics[i].name for i in self._slices)
        self._known_labels = frozenset(s.name for s in policy.shifts)
        self._known_values = frozenset(v.name for v in policy.values)
        self._cause = CONTINUE
        self._used = 0
        self._judged_requests = 0
        self._judged_seconds = 0.0
        self._last: Window | None = None
        self._opening = ramp.Opening(policy.traffic)
        self._share: float | None = None
        self._warming = policy.warm_up

    @property
    def before(self) -> str:
        """What it was told that stable did before the release, in words; nothing where it was told nothing."""
        return self.past.told(self.policy, self._evidence.usual) if self.past is not None and self.past.windows else ""

    @property
    def decided(self) -> bool:
        """Whether some window has decided; more windows then change nothing."""
        return self._cause != CONTINUE

    def add(self, window: Window) -> Verdict:
        """The verdict after one more window."""
        self.extend([window])
        return self.verdict()

    def extend(self, windows: Iterable[Window]) -> None:
        """Takes windows in until one decides; cheaper than `add` for many, and the same otherwise."""
        fresh = list(windows)
        for i, window in enumerate(fresh):
            self._refuse_unknown(window, f"windows[{self._used + i}]")
        while fresh and not self.decided:
            alike = self._alike(fresh)
            self._take(fresh[:alike])
            fresh = fresh[alike:]

    def _alike(self, windows: Sequence[Window]) -> int:
        """How many of them are of the same kind: at one share, and all answered or none."""
        length = next((i for i, window in enumerate(windows) if window.share != windows[0].share), len(windows))
        left = self.policy.answered - self._used
        return min(length, left) if left > 0 else length

    def _take(self, fresh: list[Window]) -> None:
        """Takes in windows of one kind, until one decides."""
        if self._used == self.policy.answered > 0:
            self._clear_doubts()
        answered = self._used < self.policy.answered
        if fresh[0].share != self._share or not self._used:
            self._share, self._warming = fresh[0].share, self.policy.warm_up
        skipped = min(self._warming, len(fresh))
        self._warming -= skipped
        self._used += skipped
        fresh = fresh[skipped:]
        if not fresh:
            return
        path = self._evidence.extend(self._state, self._counts(fresh))
        standings = {i: one.extend(fresh) for i, one in self._slices.items()}
        readings = self._evidence.read_path(path)
        for i, of_slices in standings.items():
            readings = _joined(readings, i, np.array([one.against for one in of_slices]))
        shares = np.array([np.nan if w.share is None else w.share for w in fresh])
        codes = self._rules.codes(path, readings, shares)
        for i, of_slices in standings.items():
            if not self.policy.metrics[i].observe:
                waits = np.array([self._slices[i].waits(one) for one in of_slices])
                codes[waits & (codes == PROMOTE)] = CONTINUE
        if answered:
            codes[:] = CONTINUE
        if self.policy.values or self._labels:
            last = self._extend_others(fresh, codes, decides=not answered)
        else:
            deciding = codes != CONTINUE
            last = int(deciding.argmax()) if deciding.any() else len(fresh) - 1
            self._cause = int(codes[last])
        self._state, self._readings = path.at(last), readings.at(last)
        for i, one in self._slices.items():
            one.now = standings[i][last]
        self._used += last + 1
        self._last = fresh[last]
        for window in fresh[: last + 1]:
            self._opening.add(window)
            seconds = window.seconds
            if seconds is not None and window.canary.requests is not None:
                self._judged_requests += window.canary.requests
                self._judged_seconds += seconds

    def _read(self) -> Readings:
        """What the state says, slices included."""
        readings = self._evidence.read(self._state)
        for i, one in self._slices.items():
            readings = _joined(readings, i, np.asarray(one.now.against))
        return readings

    def put_off(self) -> None:
        """The look at the deadline has shown nothing, and another one will come: it has its own part of the risk."""
        self.policy = self._evidence.policy = replace(self.policy, looked=self.policy.looked + 1)
        for one in self._labels:
            one.policy = self.policy

    def _clear_doubts(self) -> None:
        """A person has answered what made the figures doubtful; the evidence stays."""
        fresh = self._evidence.start()
        self._state = replace(self._state, silent=fresh.silent, split=fresh.split)
        self._readings = self._read()
        self._values = tuple(values.ValueState() for _ in self.policy.values)
        for one in self._labels:
            one.clear_doubts()

    def verdict(self, *, final: bool = False) -> Verdict:
        """The verdict on what was taken in; `final`: nothing more will come."""
        per_minute = 60 * self._judged_requests / self._judged_seconds if self._judged_seconds else None
        cause = self._cause
        confidence = None
        if final and cause == CONTINUE:
            shown, confidence = self._at_deadline()
            cause = PROMOTE if shown else CONTINUE
        decision: Decision = _DECISIONS.get(cause, "inconclusive" if final else "continue")
        wider = None
        if decision == "continue" and not self.policy.guard and self._used and not self._is_warming:
            wider = ramp.wider(self._evidence, self._state, self._readings, self._opening)
            if not all(one.opens or one.limit.observe for one in self._labels):
                wider = None
        return explain.verdict(
            self._evidence,
            self._state,
            self._readings,
            self._values,
            self._labels,
            self._slices,
            decision,
            cause=cause,
            confidence=confidence,
            wider=wider,
            opening=self._opening,
            used=self._used,
            per_minute=per_minute,
            last=self._last,
        )

    @property
    def _is_warming(self) -> bool:
        """Whether no window of the present share was judged yet: what there is speaks of the share before."""
        return self._warming > 0 or (self._share is not None and self._share != self._opening.share)

    def _at_deadline(self) -> tuple[bool, float | None]:
        """Whether the one look at the deadline promotes, and with which confidence where it is the policy's own. Steps
        that were not gone through cannot be passed over."""
        steps, share = self.policy.shares, self._opening.share
        if steps and share is not None and share < steps[-1] - 1e-9:
            return False, None
        seen, risk = (self._state, self._readings), self.policy.confident_risk
        surely = bool(self._rules.at_deadline(*seen, self._others_pass(None)))
        if risk is None or surely:
            return surely, None
        shown = bool(self._rules.at_deadline(*seen, self._others_pass(risk), risk=risk))
        return shown, self.policy.deadline_confidence

    def _others_pass(self, risk: float | None) -> bool:
        pairs = zip(self.policy.values, self._values, strict=True)
        half_way = 2 * self._readings.against > self._evidence.log_needed_against
        for i, one in self._slices.items():
            doubtful = half_way[i] or one.unseen(float(self._state.sums[i, REQUESTS]))
            if doubtful and not self.policy.metrics[i].observe:
                return False
        labels_pass = all(one.limit.observe or one.at_deadline(risk) for one in self._labels)
        return labels_pass and all(m.observe or values.standing(m, state) == "successful" for m, state in pairs)

    def _fresh_labels(self) -> tuple[labels.Labels, ...]:
        past = {} if self.past is None else self.past.labels
        return tuple(labels.Labels(self.policy, limit, past.get(limit.name, {})) for limit in self.policy.shifts)

    def _extend_others(self, windows: Sequence[Window], codes: Codes, *, decides: bool) -> int:
        """Joins labels and value metrics to the shares' decisions; the index of the last window taken in."""
        i = 0
        for i, window in enumerate(windows):
            self._values = tuple(
                values.after(metric, state, window)
                for metric, state in zip(self.policy.values, self._values, strict=True)
            )
            said = {
                values.standing(metric, state)
                for metric, state in zip(self.policy.values, self._values, strict=True)
                if not metric.observe
            }
            for one in self._labels:
                one.add(window)
            code = labels.joined(self._labels, int(codes[i]))
            if "failed" in said:
                code = ROLL_BACK
            elif code in (PROMOTE, CONTINUE) and said & {"inconclusive", "error"}:
                code = BAD_VALUE
            elif code == PROMOTE and said - {"successful"}:
                code = CONTINUE
            self._cause = code if decides else CONTINUE
            if self.decided:
                break
        return i

    def _refuse_unknown(self, window: Window, path: str) -> None:
        if not isinstance(window, Window):
            raise EvidenceError(f"{path}: a Window is expected here, not {type(window).__name__}")
        for side, entry in (("canary", window.canary), ("stable", window.stable)):
            if entry is None:
                continue
            if not entry.bad.keys() <= self._known:
                name = next(n for n in entry.bad if n not in self._known)
                known = ", ".join(self._names)
                raise EvidenceError(f"{path}.{side}.bad.{name}: the policy has no such metric; it has {known}")
            if entry.labels and not entry.labels.keys() <= self._known_labels:
                name = next(n for n in entry.labels if n not in self._known_labels)
                raise EvidenceError(f"{path}.{side}.labels.{name}: the policy has no such limit on labels")
            if entry.slices and not entry.slices.keys() <= self._known_slices:
                name = next(n for n in entry.slices if n not in self._known_slices)
                raise EvidenceError(f"{path}.{side}.slices.{name}: the policy has no such metric with slices")
            if entry.totals and not entry.totals.keys() <= self._known:
                name = next(n for n in entry.totals if n not in self._known)
                raise EvidenceError(f"{path}.{side}.totals.{name}: the policy has no such metric")
            for name, slower in entry.edges.items():
                if len(slower) > self._edges.get(name, 0):
                    raise EvidenceError(
                        f"{path}.{side}.edges.{name}: {len(slower)} counts, and the policy names "
                        f"{self._edges.get(name, 0)} edges"
                    )
        if window.values and not window.values.keys() <= self._known_values:
            name = next(n for n in window.values if n not in self._known_values)
            known = ", ".join(sorted(self._known_values)) or "none"
            raise EvidenceError(f"{path}.values.{name}: the policy has no such value; it has {known}")

    def _counts(self, windows: Sequence[Window]) -> Counts:
        """As arrays, in which what was not counted is NaN: NumPy makes that of None."""
        names, nothing = self._names, Side(0, dict.fromkeys(self._names, 0))
        canaries, stables = [w.canary for w in windows], [w.stable or nothing for w in windows]

        def bad(sides: Sequence[Side]) -> Floats:
            return np.array([[side.bad.get(name) for name in names] for side in sides], dtype=float)

        def totals(side: Side | None) -> list[float]:
            given = [0 if side is None else side.total(name) for name in self._names]
            return [float("nan") if v is None else v for v in given]

        def slower(side: Side | None) -> list[float]:
            out: list[float] = []
            for metric in self.policy.metrics:
                given: Sequence[int | None] = () if side is None else side.edges.get(metric.name, ())
                out += [float("nan") if v is None else v for v in given]
                out += [float("nan")] * (len(metric.edges) - len(given))
            return out

        edges = any(metric.edges for metric in self.policy.metrics)
        own = any(side is not None and side.totals for w in windows for side in (w.canary, w.stable))
        return Counts(
            np.array([side.requests for side in canaries], dtype=float),
            bad(canaries),
            np.array([side.requests for side in stables], dtype=float),
            bad(stables),
            np.array([slower(w.canary) for w in windows], dtype=float) if edges else None,
            np.array([slower(w.stable) for w in windows], dtype=float) if edges else None,
            np.array([np.nan if w.share is None else w.share for w in windows], dtype=float),
            np.array([totals(w.canary) for w in windows], dtype=float) if own else None,
            np.array([totals(w.stable) for w in windows], dtype=float) if own else None,
        )


def _joined(readings: Readings, metric: int, of_slices: Floats) -> Readings:
    """The readings, of one state or a path, with a metric's evidence against that of its slices included."""
    against = readings.against.copy()
    against[..., metric] = slices.joined(against[..., metric], of_slices)
    return replace(readings, against=against)
