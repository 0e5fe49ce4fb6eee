"""Releases with a known truth: traffic drawn by chance, judged by the very lines that judge real canaries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .evidence import Evidence
from .policy import Policy
from .rules import Rules
from .state import Counts, Floats
from .verdict import CONTINUE, PROMOTE

Ints = npt.NDArray[np.int_]

_AT_ONCE = 250  # releases in memory together


def bad_requests(
    rng: np.random.Generator, requests: npt.ArrayLike, rate: npt.ArrayLike, burst: float = 1.0, longest: int = 20
) -> Floats:
    """Bad requests among `requests` at `rate` (arrays of one shape), independent or in bursts.

    With `burst` above 1 they come in bursts of geometric length, mean about `burst` and never beyond `longest`
    (set it to the smaller side's requests in a window, so that no side is cut). Bursts arrive independently.
    """
    total, share = np.broadcast_arrays(np.asarray(requests, dtype=float), np.asarray(rate, dtype=float))
    if burst <= 1:
        return rng.binomial(total.astype(int), share).astype(float)
    mean = burst * (1 - (1 - 1 / burst) ** longest)
    bursts = rng.poisson(total * share / mean)
    owner = np.repeat(np.arange(bursts.size), bursts.ravel())
    lengths = np.minimum(rng.geometric(1 / burst, owner.size), longest)
    bad = np.bincount(owner, weights=lengths, minlength=bursts.size).reshape(bursts.shape)
    out: Floats = np.minimum(bad, total)
    return out


def outcomes(
    policy: Policy, counts: Counts, past: tuple[Floats, Floats] | None = None, *, final: bool = False
) -> tuple[Ints, Ints]:
    """Each release's first deciding code (verdict.py's, CONTINUE if none) and the windows it took, (R,) each.

    `counts` has one leading axis of releases, and so has stable's `past`, requests and bad ones (R, H, M). The warm-up
    is left out of the windows and value metrics are not simulated. `final`: what is open after the last window has the
    look at the deadline.
    """
    codes, windows = [], []
    releases, length = counts.canary_requests.shape
    for start in range(0, releases, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        evidence = Evidence(policy, None if past is None else (past[0][some], past[1][some]))
        rules = Rules(evidence)
        part = _part(counts, some, policy.warm_up)
        path = evidence.extend(evidence.start((part.canary_requests.shape[0],)), part)
        readings = evidence.read_path(path)
        said = rules.codes(path, readings, part.share)
        decided = (said != CONTINUE).any(axis=1)
        first = np.where(decided, (said != CONTINUE).argmax(axis=1), length - policy.warm_up - 1)
        code = np.take_along_axis(said, first[:, None], axis=1)[:, 0]
        if final:
            end = path.ending
            shown = rules.at_deadline(end, evidence.read_path(end))[:, 0]
            code = np.where(~decided & shown, PROMOTE, code)
        codes.append(code)
        windows.append(first + 1)
    return np.concatenate(codes), np.concatenate(windows)


def _part(counts: Counts, some: slice, warm_up: int) -> Counts:
    """Some releases, without their warm-up."""
    more = (counts.canary_edges, counts.stable_edges, counts.canary_totals, counts.stable_totals)
    canary, stable, canary_of, stable_of = (None if e is None else e[some, warm_up:] for e in more)
    return Counts(
        counts.canary_requests[some, warm_up:],
        counts.canary_bad[some, warm_up:],
        counts.stable_requests[some, warm_up:],
        counts.stable_bad[some, warm_up:],
        canary,
        stable,
        None if counts.share is None else counts.share[warm_up:],
        canary_of,
        stable_of,
    )


def interval(hits: int, trials: int, confidence: float = 0.99) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share, by bisection (so that NumPy is enough)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _bisect(lambda p: 1 - _binomial_cdf(hits - 1, trials, p), tail)
    high = 1.0 if hits == trials else _bisect(lambda p: 1 - _binomial_cdf(hits, trials, p), 1 - tail)
    return low, high


def _bisect(rising: Callable[[float], float], level: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2


def _binomial_cdf(hits: int, trials: int, p: float) -> float:
    k = np.arange(trials + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((trials - k[:-1]) / (k[:-1] + 1)))])
    logs = logs + k * np.log(max(p, 1e-300)) + (trials - k) * np.log1p(-min(p, 1 - 1e-16))
    return float(np.exp(logs[: hits + 1]).sum())
