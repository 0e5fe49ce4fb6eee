"""Whole releases from the first share to the promotion, on the same traffic: by the judge with a ramp and with fixed
steps, and by the rules of Argo Rollouts, Flagger and Kayenta. `judge.py` prints the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt
import peers
from promises import BOTH, RELEASES, STABLE, policy

from model_release.judging import Policy, ramp
from model_release.judging.evidence import Evidence
from model_release.judging.rules import Rules
from model_release.judging.state import REQUESTS, Counts, EvidenceState, Floats
from model_release.judging.verdict import CONTINUE, PROMOTE, ROLL_BACK

Ints = npt.NDArray[np.int_]

LONGEST = 360  # windows of 10 s: an hour
ACTS_IN = 2  # windows from the window that decides to the gateway: a scrape, a look, the change
MINUTE = 6  # windows; the others' rules look once a minute
HALF_HOUR = 30  # their looks
RATES = (2.0, 20.0, 200.0)  # requests a second
CANARIES = (0.0, 0.001, 0.003, 0.0075, 0.015, 0.04, 0.1, 1.0)


@dataclass(frozen=True)
class Ended:
    """How whole releases ended: codes, minutes (inf: not within an hour), and requests that were bad beyond stable's
    rate; each (R,)."""

    codes: Ints
    minutes: Floats
    hurt: Floats


def judged(asked: Policy, per_second: float, canary: float, *, seed: int = 91) -> Ended:
    """By this judge, window by window. Those that have ended are left out as soon as they are a fifth."""
    rng = np.random.default_rng(seed)
    total = per_second * 10
    before = np.full((RELEASES, 720, 1), total)
    past = before, rng.binomial(int(total), STABLE, before.shape).astype(float)
    evidence = Evidence(asked, past)
    rules, state = Rules(evidence), evidence.start((RELEASES,))
    first = asked.shares[0] if asked.ramp is None else ramp.begin(asked.ramp, total)
    codes, minutes = np.full(RELEASES, CONTINUE), np.full(RELEASES, np.inf)
    hurt, who = np.zeros(RELEASES), np.arange(RELEASES)
    share, since = np.full(RELEASES, first), np.zeros(RELEASES, dtype=int)
    wanted, acts, ending = share.copy(), np.full(RELEASES, -1), np.full(RELEASES, CONTINUE)
    done = np.zeros(RELEASES, dtype=bool)
    most = asked.shares[-1] if asked.ramp is None else asked.ramp.most
    for t in range(LONGEST + ACTS_IN + 1):
        due = acts == t
        over = due & (ending != CONTINUE)
        codes[who[over]], minutes[who[over]] = ending[over], t / MINUTE
        share, since = np.where(due, wanted, share), np.where(due, 0, since)
        acts, done = np.where(due, -1, acts), done | over
        if done.all():
            break
        if done.mean() > 0.2:
            left = ~done
            who, share, since, wanted, acts, ending, done = (
                one[left] for one in (who, share, since, wanted, acts, ending, done)
            )
            state = _some(state, left)
            evidence = Evidence(asked, (past[0][who], past[1][who]))
            rules = Rules(evidence)
        n, m = rng.poisson(total * share).astype(float), rng.poisson(total * (1 - share)).astype(float)
        b, s = (rng.binomial(side.astype(int), rate).astype(float) for side, rate in ((n, canary), (m, STABLE)))
        hurt[who] += np.where(done, 0.0, b - n * STABLE)
        if t >= LONGEST:
            continue
        path = evidence.extend(state, Counts(n[:, None], b[:, None, None], m[:, None], s[:, None, None]))
        readings = evidence.read_path(path)
        state, since = path.after, since + 1
        said = rules.codes(path, readings, share[:, None])[:, 0]
        if t == LONGEST - 1:
            through = share > (most - 1e-9 if asked.ramp is None else 0.0)
            said = np.where((said == CONTINUE) & through & rules.at_deadline(path, readings)[:, 0], PROMOTE, said)
        # A change of the share that is on its way is overtaken by a decision.
        decided = (ending == CONTINUE) & (said != CONTINUE)
        ending, acts = np.where(decided, said, ending), np.where(decided, t + ACTS_IN, acts)
        idle = (ending == CONTINUE) & (acts < 0) & (share < most - 1e-9)
        if not idle.any():
            continue
        if asked.ramp is None:
            steps = np.array(asked.shares)
            good = readings.favour[:, 0, 0] >= ramp.HALF_WAY * evidence.log_needed_for
            good &= path.sums[:, 0, 0, REQUESTS] >= asked.min_requests
            target = steps[np.minimum(np.searchsorted(steps, share + 1e-9), len(steps) - 1)]
        else:
            good = (since >= ramp.SETTLED) & (readings.against[:, 0, 0] < math.log(ramp.DOUBTFUL))
            target = ramp.level(asked.ramp, total, evidence.interval(path)[1][:, 0, 0])
        rises = idle & good & (target > share + 1e-9)
        wanted, acts = np.where(rises, target, wanted), np.where(rises, t + ACTS_IN, acts)
    return Ended(codes, minutes, hurt)


def _some(state: EvidenceState, which: npt.NDArray[np.bool_]) -> EvidenceState:
    kept = {one.name: getattr(state, one.name) for one in fields(EvidenceState)}
    return EvidenceState(**{name: value if name == "age" else value[which] for name, value in kept.items()})


Rule = Callable[[Floats, Floats], tuple[Ints, Ints]]
# Each rule with the canary's share in each minute: Argo's steps of 10 and 30 %, a quarter of an hour each, with its
# analysis in the background; Flagger's stepWeight 5 and maxWeight 50, a step for each check that passed; Kayenta at
# 10 % for half an hour.
PEERS: dict[str, tuple[Rule, Callable[[Floats], Floats]]] = {
    "Argo Rollouts": (
        lambda x, _: peers.argo(x[:, :HALF_HOUR], limit=BOTH["max_rate"], failure_limit=3),
        lambda passed: np.broadcast_to(np.where(np.arange(passed.shape[1]) < 15, 0.1, 0.3), passed.shape),
    ),
    "Flagger": (
        lambda x, _: peers.flagger(x, limit=BOTH["max_rate"], threshold=5, steps=10),
        lambda passed: np.minimum(0.05 * (1 + passed), 0.5),
    ),
    "Kayenta": (
        lambda x, y: peers.kayenta(x[:, :HALF_HOUR], y[:, :HALF_HOUR], looks=list(range(5, HALF_HOUR + 1, 5))),
        lambda passed: np.full(passed.shape, 0.1),
    ),
}


def by_peer(name: str, per_second: float, canary: float, *, seed: int = 92) -> Ended:
    """By another rule, minute by minute. What it decides acts as late as what this judge decides."""
    rule, shares = PEERS[name]
    rng = np.random.default_rng(seed)
    total, length = 60 * per_second, LONGEST // MINUTE
    passed = np.zeros((RELEASES, 1))
    n, m, b, s = (np.zeros((RELEASES, length)) for _ in range(4))
    for t in range(length):
        share = shares(passed)[:, -1]
        n[:, t], m[:, t] = rng.poisson(total * share), rng.poisson(total * (1 - share))
        b[:, t], s[:, t] = rng.binomial(n[:, t].astype(int), canary), rng.binomial(m[:, t].astype(int), STABLE)
        good = b[:, t] <= BOTH["max_rate"] * n[:, t]
        passed = np.concatenate([passed, passed[:, -1:] + good[:, None]], axis=1)
    said, looks = rule(b / np.maximum(n, 1), s / np.maximum(m, 1))
    late = ACTS_IN / MINUTE
    met = np.where(np.arange(length) < looks[:, None], 1.0, np.where(np.arange(length) == looks[:, None], late, 0.0))
    codes = np.where(said == peers.PROMOTED, PROMOTE, ROLL_BACK)
    return Ended(codes, (looks + late).astype(np.float64), ((b - n * STABLE) * met).sum(axis=1))


WAYS = {
    "ramp, budget 20": policy(BOTH, indifference=2, deadline_windows=LONGEST, ramp={"budget": 20, "most": 0.35}),
    "steps 10, 30 %": policy(BOTH, indifference=2, deadline_windows=LONGEST, shares=[0.1, 0.3]),
}


@cache
def ended(way: str, per_second: float, canary: float) -> Ended:
    return judged(WAYS[way], per_second, canary) if way in WAYS else by_peer(way, per_second, canary)


def whole_releases() -> str:
    """Line 7 of what the judge must show."""
    lines = [
        "| requests a second | canary | way | promoted | rolled back | open after an hour | minutes: half, 90 % "
        "| users' bad requests: mean, 95 % |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for per_second in RATES:
        for canary in CANARIES:
            for way in (*WAYS, *PEERS):
                one = ended(way, per_second, canary)
                share = {code: float((one.codes == code).mean()) for code in (PROMOTE, ROLL_BACK, CONTINUE)}
                late = np.sort(one.minutes)
                half, most = (late[math.ceil(q * RELEASES) - 1] for q in (0.5, 0.9))
                times = ", ".join("–" if not np.isfinite(x) else f"{x:.1f}" for x in (half, most))
                lines.append(
                    f"| {per_second:g} | {100 * canary:.4g} % | {way} | {share[PROMOTE]:.1%} | {share[ROLL_BACK]:.1%} "
                    f"| {share[CONTINUE]:.1%} | {times} | {one.hurt.mean():.0f}, {np.quantile(one.hurt, 0.95):.0f} |"
                )
    return "\n".join(lines)


def in_short() -> str:
    """The same for the README: how the larger part ended, after how long, and what it cost the users."""
    lines = [
        f"| requests a second, canary | {' | '.join((*WAYS, *PEERS))} |",
        f"|---|{'---|' * (len(WAYS) + len(PEERS))}",
    ]
    for per_second in RATES:
        for canary in (STABLE, 0.015, 0.04, 1.0):
            cells = []
            for way in (*WAYS, *PEERS):
                one = ended(way, per_second, canary)
                shares = {
                    "promoted": float((one.codes == PROMOTE).mean()),
                    "rolled back": float((one.codes == ROLL_BACK).mean()),
                    "open": float((one.codes == CONTINUE).mean()),
                }
                word = max(shares, key=lambda name: shares[name])
                half = float(np.sort(one.minutes)[RELEASES // 2 - 1])
                after = f" in {half:.1f} min" if np.isfinite(half) else ""
                bad = "" if canary == STABLE else f", {one.hurt.mean():.0f} bad"
                cells.append(f"{shares[word]:.1%} {word}{after}{bad}")
            good = {STABLE: "good: 0.3 %"}.get(canary, f"bad: {100 * canary:g} %")
            lines.append(f"| {per_second:g}, {good} | {' | '.join(cells)} |")
    return "\n".join(lines)
