"""Whole releases with a known truth, from the first share to the promotion: what a plan and a calibration ask.

The judge's own lines decide, on traffic drawn by chance. The shares follow the evidence as in a live release: with the
policy's `shares` or `ramp`. They are moved every few windows and not after each, as the gateway and the scrapes take
their time too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from . import ramp
from .evidence import Evidence
from .policy import Policy, PolicyError
from .rules import Rules
from .simulate import Ints, bad_requests
from .state import REQUESTS, Bools, Counts, EvidenceState, Floats, Readings
from .verdict import CONTINUE, PROMOTE, ROLL_BACK

RELEASES = 80
# Windows that are judged at once, with one share.
_TOGETHER = 3
# At most, in a release that is drawn: longer ones are drawn with longer windows.
_WINDOWS = 240


@dataclass(frozen=True)
class Traffic:
    """What a service's traffic is taken to be: requests in a window, and for each metric (M) the share of bad ones on
    stable and the mean length of their bursts. `past`: stable's windows before, requests and bad ones, each (H, M)."""

    per_window: float
    rates: Floats
    bursts: Floats
    past: tuple[Floats, Floats] | None = None


@dataclass(frozen=True)
class Ended:
    """How releases ended, (R,): the decision's code (CONTINUE: none by the end) and the windows until then. `waited`
    (M): the windows, on average, until each metric was shown to be within its limits."""

    codes: Ints
    windows: Floats
    waited: Floats

    def by(self, code: int, enough: float) -> float | None:
        """The windows after which so many of the releases have ended in this way; None where they never have."""
        mine = np.sort(self.windows[self.codes == code])
        needed = math.ceil(enough * len(self.codes) - 1e-9)
        return float(mine[needed - 1]) if needed <= len(mine) else None


def releases(
    policy: Policy,
    traffic: Traffic,
    canary: Floats,
    windows: int,
    *,
    final: bool = False,
    until: tuple[int, float] | None = None,
) -> Ended:
    """Releases of a canary whose shares of bad requests are `canary` (M), each over `windows` at most. `final`: what is
    open then has its look at the deadline. `until`: no more is asked than when so many of them have ended with that
    code."""
    first = shares_of(policy)[0] if policy.ramp is None else ramp.begin(policy.ramp, traffic.per_window)
    return _Course(policy, traffic, canary).run(first, windows, final, until)


def shares_of(policy: Policy) -> tuple[float, ...]:
    """The shares that the canary gets, one after the other; of a ramp the largest. Raises PolicyError for none."""
    if policy.ramp is not None:
        return (policy.ramp.most,)
    if not policy.shares and policy.traffic is None:
        raise PolicyError("policy.shares: give the canary's shares, or policy.ramp or policy.traffic")
    return policy.shares or (float(policy.traffic or 0),)


class _Course:
    """Releases side by side."""

    def __init__(self, policy: Policy, traffic: Traffic, canary: Floats) -> None:
        # The split is the one that was asked for: it is not in question here.
        self.policy, self.traffic, self.canary = replace(policy, traffic=None), traffic, canary
        self.evidence = Evidence(self.policy, traffic.past)
        self.rules = Rules(self.evidence)
        self._rng = np.random.default_rng(1)
        self._deciding = np.array([not m.observe for m in policy.metrics])

    def run(self, first: float, windows: int, final: bool, until: tuple[int, float] | None) -> Ended:
        each = max(1, math.ceil(windows / _WINDOWS))
        length = max(1, (windows - self.policy.warm_up) // each)
        share = np.full(RELEASES, first)
        codes, ended = np.full(RELEASES, CONTINUE), np.full(RELEASES, float(length))
        shown = np.full((RELEASES, len(self.policy.metrics)), float(length))
        state, at = self.evidence.start((RELEASES,)), 0
        while at < length and (codes == CONTINUE).any():
            path = self.evidence.extend(state, self._counts(share, min(_TOGETHER, length - at), each))
            readings = self.evidence.read_path(path)
            said = self._said(path, readings, share)
            open_ = codes == CONTINUE
            decided = open_ & (said != CONTINUE).any(axis=1)
            place = (said != CONTINUE).argmax(axis=1)
            codes = np.where(decided, np.take_along_axis(said, place[:, None], axis=1)[:, 0], codes)
            ended = np.where(decided, at + place + 1, ended)
            proven = readings.favour >= self.evidence.log_needed_for
            first_shown = np.where(proven.any(axis=1), at + proven.argmax(axis=1) + 1, length)
            shown = np.minimum(shown, first_shown)
            at += said.shape[1]
            if final and at >= length:
                promoted = self._at_deadline(path, share)
                codes = np.where((codes == CONTINUE) & promoted, PROMOTE, codes)
            if until is not None and (codes == until[0]).mean() >= until[1]:
                break
            share = self._wider(path, readings, share, each)
            state = path.after
        return Ended(codes, ended * each + self.policy.warm_up, shown.mean(axis=0) * each)

    def _counts(self, share: Floats, length: int, each: int) -> Counts:
        shape, total = (RELEASES, length), self.traffic.per_window * each
        n = self._rng.poisson(np.broadcast_to((total * share)[:, None], shape)).astype(float)
        m = self._rng.poisson(np.broadcast_to((total * (1 - share))[:, None], shape)).astype(float)
        least = min(part for part in (share.min(), 1 - share.max()) if part > 0)
        longest = max(1, int(total * least))  # a promoted canary is alone

        def bad(requests: Floats, rates: Floats) -> Floats:
            pairs = zip(rates.tolist(), self.traffic.bursts.tolist(), strict=True)
            drawn = [bad_requests(self._rng, requests, rate, burst, longest) for rate, burst in pairs]
            return np.stack(drawn, axis=-1)

        return Counts(n, bad(n, self.canary), m, bad(m, self.traffic.rates))

    def _said(self, path: EvidenceState, readings: Readings, share: Floats) -> Ints:
        said = self.rules.codes(path, readings, share[:, None])
        return np.where((said == PROMOTE) | (said == ROLL_BACK), said, CONTINUE)

    def _at_deadline(self, path: EvidenceState, share: Floats) -> Bools:
        """Which are promoted by the look at the deadline; the steps that are left are not passed over."""
        end, policy = path.ending, self.policy
        shown: Bools = self.rules.at_deadline(end, self.evidence.read_path(end), risk=policy.confident_risk)[:, 0]
        return shown & (share > policy.shares[-1] - 1e-9) if policy.shares else shown

    def _wider(self, path: EvidenceState, readings: Readings, share: Floats, each: int) -> Floats:
        """The shares for the next windows, by the rules of ramp.py."""
        policy = self.policy
        end = path.ending
        if policy.shares:
            requests = end.sums[:, 0, : len(self._deciding), REQUESTS]
            half_way = readings.favour[:, -1] >= ramp.HALF_WAY * self.evidence.log_needed_for
            good = ((half_way & (requests >= policy.min_requests)) | ~self._deciding).all(axis=1)
            steps = np.array(policy.shares)
            place = np.minimum(np.searchsorted(steps, share + 1e-9), len(steps) - 1)
            return np.where(good, np.maximum(steps[place], share), share)
        if policy.ramp is None:
            return share
        calm = ((readings.against[:, -1] < math.log(ramp.DOUBTFUL)) | ~self._deciding).all(axis=1)
        upper = self.evidence.interval(end)[1][:, 0, self._deciding].max(axis=-1)
        level = ramp.level(policy.ramp, self.traffic.per_window, upper)
        return np.where(calm, np.maximum(level, share), share)
