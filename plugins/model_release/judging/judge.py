"""The judge: policy and windows in, verdict out. A pure function; it knows no clock and acts on nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from . import explain, values
from .evidence import CANARY_REQUESTS, Bools, Counts, Evidence, Readings, State
from .policy import Policy
from .verdict import BAD_VALUE, CONTINUE, NO_DATA, PROMOTE, ROLL_BACK, WRONG_SPLIT, Decision, Verdict
from .window import EvidenceError, Side, Window

Codes = npt.NDArray[np.int_]
_DECISIONS: dict[int, Decision] = {
    ROLL_BACK: "rollback",
    PROMOTE: "promote",
    NO_DATA: "inconclusive",
    WRONG_SPLIT: "inconclusive",
    BAD_VALUE: "inconclusive",
}


def judge(policy: Policy, windows: Sequence[Window], *, final: bool = False) -> Verdict:
    """The verdict on the windows, read in order; judging stops at the first window that decides.

    `final` says that no more windows will come: what is still open then is `inconclusive`. The same input
    always gives the same verdict. Raises EvidenceError for counts of a metric that the policy does not know.
    """
    one = Judge(policy)
    one.extend(windows)
    return one.verdict(final=final)


class Judge:
    """The judge of one canary that keeps the evidence so far, so that a new window costs the same at any age.

    Once a window has decided, later ones change nothing: `add` gives the same verdict again.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._evidence = Evidence(policy)
        self._rules = Rules(self._evidence)
        self._state = self._evidence.start()
        self._readings = self._evidence.read(self._state)
        self._values = tuple(values.ValueState() for _ in policy.values)
        self._names = tuple(m.name for m in policy.metrics)
        self._known = frozenset(self._names)
        self._known_values = frozenset(v.name for v in policy.values)
        self._cause = CONTINUE
        self._used = 0
        self._judged_requests = 0
        self._judged_seconds = 0.0
        self._last: Window | None = None

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
        if self.decided:
            return
        skipped = min(max(self.policy.warm_up - self._used, 0), len(fresh))
        self._used += skipped
        fresh = fresh[skipped:]
        if not fresh:
            return
        path = self._evidence.extend(self._state, self._counts(fresh))
        readings = self._evidence.read(path)
        codes = self._rules.codes(path, readings)
        if self.policy.values:
            last = self._extend_values(fresh, codes)
        else:
            deciding = codes != CONTINUE
            last = int(deciding.argmax()) if deciding.any() else len(fresh) - 1
            self._cause = int(codes[last])
        self._state, self._readings = path.at(last), readings.at(last)
        self._used += last + 1
        self._last = fresh[last]
        for window in fresh[: last + 1]:
            seconds = window.seconds
            if seconds is not None and window.canary.requests is not None:
                self._judged_requests += window.canary.requests
                self._judged_seconds += seconds

    def verdict(self, *, final: bool = False) -> Verdict:
        """The verdict on what was taken in; `final`: nothing more will come."""
        per_minute = 60 * self._judged_requests / self._judged_seconds if self._judged_seconds else None
        decision: Decision = _DECISIONS.get(self._cause, "inconclusive" if final else "continue")
        return explain.verdict(
            self._evidence,
            self._state,
            self._readings,
            self._values,
            decision,
            cause=self._cause,
            used=self._used,
            per_minute=per_minute,
            last=self._last,
        )

    def _extend_values(self, windows: Sequence[Window], codes: Codes) -> int:
        """Joins the value metrics to the shares' decisions; the index of the last window taken in."""
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
            code = int(codes[i])
            if "failed" in said:
                code = ROLL_BACK
            elif code in (PROMOTE, CONTINUE) and said & {"inconclusive", "error"}:
                code = BAD_VALUE
            elif code == PROMOTE and said - {"successful"}:
                code = CONTINUE
            self._cause = code
            if self.decided:
                break
        return i

    def _refuse_unknown(self, window: Window, path: str) -> None:
        if not isinstance(window, Window):
            raise EvidenceError(f"{path}: a Window is expected here, not {type(window).__name__}")
        for side, entry in (("canary", window.canary), ("stable", window.stable)):
            if entry is not None and not entry.bad.keys() <= self._known:
                name = next(n for n in entry.bad if n not in self._known)
                known = ", ".join(self._names)
                raise EvidenceError(f"{path}.{side}.bad.{name}: the policy has no such metric; it has {known}")
        if not window.values.keys() <= self._known_values:
            name = next(n for n in window.values if n not in self._known_values)
            known = ", ".join(sorted(self._known_values)) or "none"
            raise EvidenceError(f"{path}.values.{name}: the policy has no such value; it has {known}")

    def _counts(self, windows: Sequence[Window]) -> Counts:
        def requests(side: Side | None) -> float:
            if side is None:
                return 0.0
            return float("nan") if side.requests is None else side.requests

        def bad(side: Side | None) -> list[float]:
            if side is None:
                return [0.0] * len(self._names)
            known: Mapping[str, int | None] = side.bad
            return [float("nan") if (v := known.get(name)) is None else v for name in self._names]

        return Counts(
            np.array([requests(w.canary) for w in windows], dtype=float),
            np.array([bad(w.canary) for w in windows], dtype=float),
            np.array([requests(w.stable) for w in windows], dtype=float),
            np.array([bad(w.stable) for w in windows], dtype=float),
        )


class Rules:
    """From evidence to decisions, for any number of releases at once."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._aside: Bools = np.array([m.observe for m in evidence.policy.metrics])
        self._critical: Bools = np.array([m.critical and not m.observe for m in evidence.policy.metrics])

    def codes(self, path: State, readings: Readings) -> Codes:
        """What the shares say after each window of a path, (..., T).

        Roll back comes before all else, then whatever makes the figures doubtful, and promotion last.
        """
        evidence, policy = self._evidence, self._evidence.policy
        failing = readings.against >= evidence.log_needed_against
        proven = (
            (readings.favour >= evidence.log_needed_for)
            & (path.sums[..., CANARY_REQUESTS] >= policy.min_requests)
            & (path.silent == 0)
            & ~failing
        )
        codes: Codes = np.where(np.logical_and.reduce(proven | self._aside, axis=-1), PROMOTE, CONTINUE)
        if policy.guard:
            codes[...] = CONTINUE
        codes[readings.split >= evidence.log_needed_split] = WRONG_SPLIT
        gone = (path.silent >= policy.no_data_limit) & ~self._aside
        codes[np.logical_or.reduce(gone, axis=-1)] = NO_DATA
        codes[np.logical_or.reduce(failing & self._critical, axis=-1)] = ROLL_BACK
        return codes
