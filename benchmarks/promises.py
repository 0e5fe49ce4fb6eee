"""What the judge promises, measured: false roll-backs, late changes, undecided releases, promotions at twice the limit,
and intervals. `judge.py` prints the tables; seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from model_release.judging import Policy
from model_release.judging.evidence import Evidence
from model_release.judging.simulate import bad_requests, interval, outcomes
from model_release.judging.state import Counts, Floats
from model_release.judging.verdict import PROMOTE, ROLL_BACK

RELEASES = 2000
WINDOWS = 180  # of 10 s: half an hour
BOTH = {"max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005}
RATIO = {"max_ratio": 1.5, "floor": 0.005}
STABLE = 0.003
ILL = 0.2  # of a stable that stays ill
LIMIT = 0.0075
NEVER = 10**12

Past = tuple[Floats, Floats]
Forms = Iterable[tuple[str, dict[str, float]]]


def policy(limits: dict[str, float], **more: object) -> Policy:
    return Policy.from_dict({"metrics": [{"name": "errors", **limits}], "deadline_windows": WINDOWS, **more})


def draw(
    seed: int,
    sides: tuple[npt.ArrayLike, npt.ArrayLike],
    canary: npt.ArrayLike,
    stable: npt.ArrayLike,
    bursts: tuple[float, float] = (1, 1),
    *,
    length: int = WINDOWS,
    before: float | None = None,
    releases: int = RELEASES,
) -> tuple[Counts, Past]:
    """Releases, and stable's 720 windows before each, at the rate `before` (its lowest in the release unless said)."""
    rng = np.random.default_rng(seed)
    shape = (releases, length)
    n, m = (np.broadcast_to(np.asarray(requests, dtype=float), shape).copy() for requests in sides)
    longest = int(min(n.min(), m.min()))
    b = bad_requests(rng, n, np.broadcast_to(canary, shape), bursts[0], longest)
    s = bad_requests(rng, m, np.broadcast_to(stable, shape), bursts[1], longest)
    usual = float(np.min(stable)) if before is None else before
    all_of_it = np.full((releases, 720, 1), float(n[0, 0] + m[0, 0]))
    bad = bad_requests(rng, all_of_it, np.full(all_of_it.shape, usual), bursts[1], longest)
    return Counts(n, b[..., None], m, s[..., None]), (all_of_it, bad)


def swing(rate: float) -> Floats:
    return rate * np.repeat([1.0, 10.0, 1.0], WINDOWS // 3)


def told(hits: int, trials: int, at_most: float | None = None) -> str:
    """A share with its 99 % interval, marked where it is beyond what is promised."""
    low, high = interval(hits, trials)
    mark = "" if at_most is None or hits / trials <= at_most else " **missed**"
    return f"{hits / trials:.1%} | {low:.1%} – {high:.1%}{mark}"


def false_rollbacks() -> str:
    """Line 2: over 200 looks, with stable's past and without it."""
    lines = [
        "| traffic (180/20 a window unless said) | limits | past | rolled back | 99 % interval (at most 1 %) |",
        "|---|---|---|---:|---:|",
    ]
    scenes: list[tuple[str, tuple[Counts, Past], Forms]] = []
    for rate in (0.003, 0.01, 0.02):
        for bursts, words in (((1, 10), "stable in bursts of 10"), ((10, 1), "canary in bursts of 10")):
            forms: Forms = [("1.5 × stable, floor 0.5 %", RATIO), ("1 × stable, no floor", {"max_ratio": 1.0})]
            scenes.append((f"{rate:.1%}, {words}", draw(41, (20, 180), rate, rate, bursts, length=200), forms))
    share = np.where(np.arange(200) < 40, 2, np.where(np.arange(200) < 80, 20, 70))
    both: Forms = [("2 % and 1.5 × stable", BOTH)]
    scenes.append(("0.7 %, share from 1 to 35 %", draw(42, (share, 200 - share), 0.007, 0.007, length=200), both))
    common = np.where(np.random.default_rng(43).random(200) < 0.1, 0.2, STABLE)
    scenes.append(("incidents of 20 % on both sides", draw(44, (20, 180), common, common, length=200), both))
    scenes.append(("incident of 3 % on both sides", draw(45, (20, 180), swing(STABLE), swing(STABLE)), both))
    lost, past = draw(46, (20, 180), 0.01, 0.01, length=200)
    gone = np.random.default_rng(47).random(lost.canary_requests.shape) < 0.3
    for side in (lost.canary_requests, lost.stable_requests):
        side[gone] = np.nan
    scenes.append(("1 %, 30 % of the windows lost", (lost, past), both))
    cold = np.where(np.arange(200) < 3, 0.3, STABLE)
    scenes.append(
        ("cold start, 30 % in the first 3 windows, warm_up 3", draw(48, (20, 180), cold, STABLE, length=200), both)
    )
    for name, (counts, before), forms in scenes:
        for words, limits in forms:
            for which, given in (("yes", before), ("none", None)):
                warm = 3 if "warm_up" in name else 0
                asked = policy(limits, min_requests=NEVER, warm_up=warm, deadline_windows=200)
                hits = int((outcomes(asked, counts, given)[0] == ROLL_BACK).sum())
                lines.append(f"| {name} | {words} | {which} | {told(hits, RELEASES, 0.01)} |")
    return "\n".join(lines)


def late_changes() -> str:
    """Line 3."""
    lines = [
        "| good for | then | requests a window | windows to the roll-back | told the moment | factor (at most 2.2) |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for sides in ((20, 180), (100, 900)):
        for good in (25, 180, 360):
            for bad in (0.05, 0.2):
                length = good + 120
                rate = np.where(np.arange(length) < good, 0.002, bad)
                counts, past = draw(51, sides, rate, 0.002, length=length)
                _, windows = outcomes(policy(BOTH, min_requests=NEVER, deadline_windows=length), counts, past)
                after = Counts(
                    counts.canary_requests[:, good:],
                    counts.canary_bad[:, good:],
                    counts.stable_requests[:, good:],
                    counts.stable_bad[:, good:],
                )
                _, best = outcomes(policy(BOTH, min_requests=NEVER, deadline_windows=10**9), after)
                took, least = float((windows - good).mean()), float(best.mean())
                mark = "" if took <= 2.2 * least else " **missed**"
                lines.append(
                    f"| {good} | {bad:.0%} | {sides[0]} | {took:.1f} | {least:.1f} | {took / least:.2f}{mark} |"
                )
    return "\n".join(lines)


def undecided() -> str:
    """Line 4: good canaries that are not promoted after half an hour, γ 2."""
    lines = [
        "| traffic (stable/canary a window) | past | not promoted | 99 % interval | promised | canary requests |",
        "|---|---|---:|---:|---:|---:|",
    ]
    scenes: tuple[tuple[str, tuple[int, int], float | Floats, float, float | None], ...] = (
        ("0.3 %", (20, 180), STABLE, 1, 0.005),
        ("0.3 %, bursts of 3", (20, 180), STABLE, 3, 0.06),
        ("0.3 %, bursts of 10", (20, 180), STABLE, 10, None),
        ("0.3 %, incident of 3 % on both sides", (20, 180), swing(STABLE), 1, 0.005),
        ("0.3 %", (7, 13), STABLE, 1, 0.01),
        ("1 %", (2, 18), 0.01, 1, None),
    )
    for seed, (name, sides, rate, burst, promised) in enumerate(scenes, start=61):
        counts, past = draw(seed, sides, rate, rate, (burst, burst))
        for which, given in (("yes", past), ("none", None)):
            codes, windows = outcomes(policy(BOTH, indifference=2), counts, given, final=True)
            hits = int((codes != PROMOTE).sum())
            words = "" if promised is None else f"{promised:.1%}"
            asked = f"{sides[1]}/{sides[0]}"
            said = told(hits, RELEASES, promised if given is not None else None)
            lines.append(f"| {name} ({asked}) | {which} | {said} | {words} | {windows.mean() * sides[0]:.0f} |")
    ill, past = draw(67, (20, 180), STABLE, ILL, before=STABLE)
    codes, windows = outcomes(policy({"max_rate": LIMIT}, indifference=2), ill, past, final=True)
    said = told(int((codes != PROMOTE).sum()), RELEASES, 0.01)
    name = "0.3 %, `max_rate` 0.75 % alone, stable at 20 % all along (180/20)"
    lines.append(f"| {name} | yes | {said} | 1.0% | {windows.mean() * 20:.0f} |")
    return "\n".join(lines)


def at_twice_the_limit() -> str:
    """Line 5: promoted at γL, the evidence against left out so that no early roll-back saves it."""
    lines = [
        "| canary at 1.5 %, limit 0.75 % (stable/canary) | past | promoted | 99 % interval (5 %; bursts of 10: 6 %) |",
        "|---|---|---:|---:|",
    ]
    asked = policy(BOTH, indifference=2, false_rollback=1e-300)

    def line(
        name: str, counts: Counts, past: Past | None, which: str, promised: float | None, by: Policy = asked
    ) -> None:
        hits = int((outcomes(by, counts, past, final=True)[0] == PROMOTE).sum())
        lines.append(f"| {name} | {which} | {told(hits, RELEASES, promised)} |")

    for sides in ((20, 180), (70, 130), (100, 900)):
        for burst in (1, 3, 10):
            counts, past = draw(71, sides, 2 * LIMIT, STABLE, (burst, burst))
            name = f"bursts of {burst} ({sides[1]}/{sides[0]})"
            line(name, counts, past, "yes", 0.06 if burst == 10 else 0.05)
            line(name, counts, None, "none", None)
    for burst in (1, 3, 10):
        counts, past = draw(74, (20, 180), 2 * LIMIT, ILL, (burst, burst), before=STABLE)
        name = f"bursts of {burst}, `max_rate` alone, stable at 20 % all along (180/20)"
        alone = policy({"max_rate": LIMIT}, indifference=2, false_rollback=1e-300)
        line(name, counts, past, "yes", 0.06 if burst == 10 else 0.05, alone)
    for before in (0.0001, 0.01):
        counts, past = draw(72, (20, 180), 2 * LIMIT, STABLE, before=before)
        line("independent (180/20)", counts, past, f"wrong: {before:.2%}", None)
    for burst in (3, 10):
        counts, past = draw(73, (20, 180), 2 * LIMIT, STABLE, (burst, 1))
        line(f"bursts of {burst} on the canary alone (180/20)", counts, past, "yes", None)
    return "\n".join(lines)


def intervals() -> str:
    """Line 6: releases in which the interval left out the truth at any of 180 looks."""
    lines = [
        "| rate, bursts (180/20) | left out at some look | 99 % interval (at most 5 %) | upper end after 30 min |",
        "|---|---:|---:|---:|",
    ]
    for rate in (0.001, STABLE, 0.03):
        for burst in (1, 3, 10):
            counts, past = draw(81, (20, 180), rate, rate, (burst, burst))
            missed, ends = 0, []
            for start in range(0, RELEASES, 100):
                some = slice(start, start + 100)
                evidence = Evidence(policy(BOTH), (past[0][some], past[1][some]))
                part = Counts(*(s[some] for s in vars(counts).values() if s is not None))
                low, high = evidence.interval(evidence.extend(evidence.start((100,)), part))
                missed += int(((low > rate) | (high < rate)).any(axis=1).sum())
                ends.append(high[:, -1])
            upper = float(np.mean(ends))
            lines.append(f"| {rate:.1%}, {burst} | {told(missed, RELEASES, 0.05)} | {upper:.2%} |")
    return "\n".join(lines)


SECTIONS = {
    "judge-false-rollbacks": false_rollbacks,
    "judge-late": late_changes,
    "judge-undecided": undecided,
    "judge-twice-the-limit": at_twice_the_limit,
    "judge-intervals": intervals,
}
