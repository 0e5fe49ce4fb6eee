"""How often a policy would have cried wolf on a service's own past, and how bursty that past was.

The stable revision's counts are split in two by chance within each window, request by request, as a router
would: one part plays the canary. Both parts are the same revision, so every roll-back is a false one. What no
split can show is trouble that strikes one pod and not the other; tests/judging/simulations cover it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .evidence import Evidence
from .past import counts_of
from .policy import Policy
from .sentences import count, plural, share
from .simulate import interval, outcomes
from .state import Counts, Floats
from .verdict import PROMOTE, ROLL_BACK
from .window import EvidenceError, Side, Window

DEFAULT_SHARE = 0.1

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """`releases` splits of the past, judged to its end. `design_effect` is the past's own, for each metric."""

    releases: int
    windows: int
    requests: int
    share: float
    false_rollbacks: float
    false_rollbacks_interval: tuple[float, float]
    promoted: float
    windows_to_promote: float | None
    design_effect: dict[str, float | None]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(policy: Policy, windows: Sequence[Window], *, releases: int = 2000, seed: int = 1) -> Calibration:
    """Judges `releases` random splits of the stable's counts in `windows`; the same seed gives the same answer.

    Each window's `stable` side is used, or its `canary` side where there is no stable one. Windows without data
    stay without data. Raises EvidenceError when no window holds any request.
    """
    sides = [w.stable if w.stable is not None else w.canary for w in windows]
    requests = np.array([np.nan if s.requests is None else s.requests for s in sides], dtype=float)
    bad = np.array([[_bad(s, m.name) for m in policy.metrics] for s in sides], dtype=float)
    bad = bad.reshape(len(sides), len(policy.metrics))
    totals = counts_of(sides, policy)[0]
    if not np.nansum(requests) > 0:
        raise EvidenceError("windows: no window holds a request; calibration needs past counts of the stable")
    for i, metric in enumerate(policy.metrics):
        if np.isnan(bad[:, i]).all():
            raise EvidenceError(f"windows: none counts {metric.name}, which the policy judges")
    if len(sides) <= policy.warm_up:
        raise EvidenceError(f"windows: {len(sides)} are no more than the warm-up of {policy.warm_up}")
    part = policy.traffic if policy.traffic and policy.traffic < 1 else DEFAULT_SHARE
    counts = _split(np.random.default_rng(seed), requests, totals, bad, part, releases)
    codes, used = outcomes(policy, counts)
    wolf, promoted = int((codes == ROLL_BACK).sum()), codes == PROMOTE
    low, high = interval(wolf, releases)
    design = _design(policy, totals, bad)
    waited = float(np.median(used[promoted])) if promoted.any() else None
    return Calibration(
        releases=releases,
        windows=len(sides),
        requests=int(np.nansum(requests)),
        share=part,
        false_rollbacks=wolf / releases,
        false_rollbacks_interval=(float(f"{low:.3g}"), float(f"{high:.3g}")),
        promoted=float(promoted.mean()),
        windows_to_promote=waited,
        design_effect=design,
        reason=_sentence(policy, releases, wolf, (low, high), float(promoted.mean()), waited, design, len(sides)),
    )


def _bad(side: Side, name: str) -> float:
    value = side.bad.get(name)
    return float("nan") if value is None else value


def _split(
    rng: np.random.Generator, requests: Floats, totals: Floats, bad: Floats, part: float, releases: int
) -> Counts:
    """Each request goes to the canary with chance `part`; of the bad ones the hypergeometric share goes along. What is
    no share of requests is split by itself."""
    known = ~np.isnan(requests)
    whole = np.where(known, requests, 0).astype(np.int64)
    canary = rng.binomial(whole, part, (releases, len(whole)))
    n = np.where(known, canary, np.nan)
    taken = np.full((releases, *bad.shape), np.nan)
    of = np.repeat(n[..., None], bad.shape[1], axis=-1)
    for i in range(bad.shape[1]):
        mine, mine_whole, mine_canary = known, whole, canary
        if not np.array_equal(totals[:, i], requests, equal_nan=True):
            mine = ~np.isnan(totals[:, i])
            mine_whole = np.where(mine, totals[:, i], 0).astype(np.int64)
            mine_canary = rng.binomial(mine_whole, part, (releases, len(whole)))
            of[..., i] = np.where(mine, mine_canary, np.nan)
        column = bad[:, i]
        there = mine & ~np.isnan(column)
        amount = np.where(there, column, 0).astype(np.int64)
        drawn = _hypergeometric(rng, amount, mine_whole - amount, mine_canary)
        taken[..., i] = np.where(there, drawn, np.nan)
    beside = np.where(known, requests - n, np.nan)
    return Counts(n, taken, beside, bad - taken, canary_totals=of, stable_totals=totals - of)


def _hypergeometric(rng: np.random.Generator, bad: Ints, good: Ints, drawn: Ints) -> Ints:
    if bad.max(initial=0) < 10**9 and good.max(initial=0) < 10**9:
        return rng.hypergeometric(bad, good, drawn)
    # NumPy's hypergeometric ends at 1e9; there the binomial is as good.
    chance = drawn / np.maximum(bad + good, 1)
    return np.minimum(rng.binomial(bad, chance), drawn)


def _design(policy: Policy, totals: Floats, bad: Floats) -> dict[str, float | None]:
    """The past's design effect by metric, None where fewer than two bad requests or windows could show one."""
    evidence = Evidence(policy)
    nothing = np.zeros_like(bad)
    counts = Counts(nothing[:, 0], nothing, nothing[:, 0], bad, canary_totals=nothing, stable_totals=totals)
    path = evidence.extend(evidence.start(), counts)
    design = evidence.read(path.at(len(bad) - 1)).design
    seen = [(np.nansum(bad[:, i]), np.count_nonzero(~np.isnan(bad[:, i]))) for i in range(bad.shape[1])]
    return {m.name: float(f"{design[i]:.3g}") if min(seen[i]) >= 2 else None for i, m in enumerate(policy.metrics)}


def _sentence(
    policy: Policy,
    releases: int,
    wolf: int,
    bounds: tuple[float, float],
    promoted: float,
    waited: float | None,
    design: dict[str, float | None],
    windows: int,
) -> str:
    words = (
        f"On {plural(windows, 'past window')}, {count(wolf)} of {count(releases)} releases of the same revision "
        f"would have been rolled back ({share(wolf / releases)}, 99 % interval {share(bounds[0])} to "
        f"{share(bounds[1])}; {share(policy.false_rollback)} allowed)."
    )
    if waited is None:
        words += " None would have been promoted within them: longer past, more traffic or wider limits are needed."
    else:
        words += f" {share(promoted)} would have been promoted, half of those within {plural(round(waited), 'window')}."
    bursty = {name: value for name, value in design.items() if value is not None}
    if bursty:
        seen = ", ".join(f"{name} {value:.3g}" for name, value in bursty.items())
        words += f" Design effect (1 = independent requests): {seen}."
    return words
