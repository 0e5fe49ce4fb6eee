"""Evidence for a canary, and intervals for its share: events count here, deflated by their bursts.

Bad requests come in clusters: clusters as a Poisson process, each of geometric length with mean B (Pólya–Aeppli;
Johnson, Kotz, Kemp, "Univariate Discrete Distributions", 9.7). D = 2B - 1 is then the design effect, the variance of
counts over that of independent ones. With n requests at a rate p and the tilt F,
E[F^b] = exp(-(n p) (1 - F) / (B - (B - 1) F)), so

    exp(b ln F - n ln(1 - p₀ (1 - F) / (B - (B - 1) F)))

is evidence (an e-value) against "the rate is at least p₀" for F < 1, and against "at most p₀" for F > 1; n ln(1 - …) in
place of the exponent makes it the binomial's own likelihood ratio at B = 1. Mixed over the tilts that are best for
rates r p₀ it is Robbins' mixture (Howard, Ramdas, McAuliffe, Sekhon, Annals of Statistics 2021).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Alternatives below the limit, as parts of it, and their weights. Half lies where a healthy service is.
FRACTIONS: Floats = np.array([1e-6, 0.1, 0.2, 0.35, 0.5, 0.7])
WEIGHTS: Floats = np.array([0.05, 0.1, 0.5, 0.2, 0.1, 0.05])
# And above a rate, for the lower end of an interval.
MULTIPLES: Floats = np.array([1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0])

CONFIDENCE = 0.95  # of an interval, over all looks together
_GRID: Floats = np.geomspace(1e-6, 1.0, 43)
_BETWEEN: Floats = np.linspace(0, 1, 21)
_EXACT = 600.0  # clusters up to which Pólya–Aeppli's tail is summed term by term
_TERMS = 4000


def tilt(fraction: npt.ArrayLike, burst: npt.ArrayLike) -> Floats:
    """The F that makes most of a rate `fraction` times p₀ when bursts have the mean `burst`: r (B - (B-1) F)² = F."""
    r, mean = np.maximum(np.asarray(fraction, dtype=float), 1e-6), np.asarray(burst, dtype=float)
    more = mean - 1
    a, half = r * more * more, r * more * mean + 0.5
    root = np.sqrt(np.maximum(half * half - a * r * mean * mean, 0.0))
    # The smaller root, in the form that loses no digits where bursts are short.
    out: Floats = np.maximum(r * mean * mean / (half + root), 1e-9)
    return out


def log_evidence(bad: Floats, requests: Floats, rate: Floats, burst: Floats, fraction: Floats) -> Floats:
    """The logarithm of the e-value above. All broadcast; `rate` is p₀, `fraction` is r."""
    f = tilt(fraction, burst)
    part = rate * (1 - f) / (burst - (burst - 1) * f)
    out: Floats = bad * np.log(f) - requests * np.log1p(-np.minimum(part, 0.999))
    return out


def mixed(logs: Floats, log_weights: Floats) -> Floats:
    """log of the weighted mean of exp(logs) over the last axis."""
    terms = logs + log_weights
    top = np.maximum.reduce(terms, axis=-1)
    out: Floats = top + np.log(np.add.reduce(np.exp(terms - top[..., None]), axis=-1))
    return out


def tail(bad: Floats, requests: Floats, rate: Floats, burst: Floats) -> Floats:
    """P(no more than `bad` bad requests) at `rate`, for one look at a time that was fixed before: Pólya–Aeppli's
    distribution function by its recursion, and above 600 expected clusters Chernoff's bound, which is never below it.
    """
    b, n, p, mean = (np.asarray(x, dtype=float).ravel() for x in np.broadcast_arrays(bad, requests, rate, burst))
    expected = n * p
    ratio = np.clip(b / np.maximum(expected, 1e-300), 1e-6, 1.0)
    out: Floats = np.where(b < expected, np.exp(np.minimum(-_rate_function(b, expected, mean, ratio), 0.0)), 1.0)
    clusters = expected / mean
    small = (b < expected) & (clusters <= _EXACT) & (b <= _TERMS)
    if small.any():
        out[small] = _summed(b[small], clusters[small], mean[small])
    return out.reshape(np.broadcast_shapes(*(np.shape(x) for x in (bad, requests, rate, burst))))


def _rate_function(b: Floats, expected: Floats, mean: Floats, ratio: Floats) -> Floats:
    f = tilt(ratio, mean)
    out: Floats = b * np.log(f) + expected * (1 - f) / (mean - (mean - 1) * f)
    return out


def _summed(b: Floats, clusters: Floats, mean: Floats) -> Floats:
    stop, go = 1 / mean, 1 - 1 / mean
    before, last = np.zeros_like(clusters), np.exp(-clusters)
    total = last.copy()
    for x in range(1, int(b.max(initial=0)) + 1):
        term = ((clusters * stop + 2 * (x - 1) * go) * last - (x - 2) * go * go * before) / x
        before, last = last, term
        total += np.where(x <= b, term, 0.0)
    return total


def upper(bad: Floats, requests: Floats, burst: Floats, confidence: float = CONFIDENCE) -> Floats:
    """The rate above which every rate has evidence against it, whatever the number of looks; 1 without requests."""
    return _end(bad, requests, burst, FRACTIONS, np.log(WEIGHTS), confidence, above=True)


def lower(bad: Floats, requests: Floats, burst: Floats, confidence: float = CONFIDENCE) -> Floats:
    """The rate below which every rate has evidence against it, whatever the number of looks; 0 without bad ones."""
    weights = np.full(len(MULTIPLES), -np.log(len(MULTIPLES)))
    return _end(bad, requests, burst, MULTIPLES, weights, confidence, above=False)


def _end(
    bad: Floats,
    requests: Floats,
    burst: Floats,
    fractions: Floats,
    log_weights: Floats,
    confidence: float,
    *,
    above: bool,
) -> Floats:
    """One end of the interval: a coarse grid, then a fine one between two of its points, rounded outwards."""
    b, n, mean = (np.asarray(x, dtype=float)[..., None, None] for x in (bad, requests, burst))
    f = tilt(fractions, mean)
    gain, part = b * np.log(f), (1 - f) / (mean - (mean - 1) * f)
    bar = np.log(2 / (1 - confidence))  # half of the risk at each end

    def shown(rates: Floats) -> npt.NDArray[np.bool_]:
        logs = gain - n * np.log1p(-np.minimum(rates[..., None] * part, 0.999))
        ok: npt.NDArray[np.bool_] = np.greater_equal(mixed(logs, log_weights), bar)
        return ok

    places = np.broadcast_to(_GRID, (*b.shape[:-2], len(_GRID)))
    end, low = places[..., -1:], places[..., :1]
    for _ in range(2):
        ok = np.asarray(shown(places))
        if above:  # evidence grows with the rate: the first rate that is shown to be too high
            none = ~ok.any(axis=-1, keepdims=True)
            at = np.where(none, places.shape[-1] - 1, ok.argmax(axis=-1, keepdims=True))
            low = np.take_along_axis(places, np.maximum(at - 1, 0), axis=-1)
            end = np.where(none, 1.0, np.take_along_axis(places, at, axis=-1))
        else:  # evidence falls with it: the last that is shown to be too low
            count = ok.sum(axis=-1, keepdims=True)
            low = np.where(count > 0, np.take_along_axis(places, np.maximum(count - 1, 0), axis=-1), 0.0)
            end = np.take_along_axis(places, np.minimum(count, places.shape[-1] - 1), axis=-1)
        places = low + (end - low) * _BETWEEN
    out: Floats = np.asarray(end if above else low)[..., 0]
    return out
