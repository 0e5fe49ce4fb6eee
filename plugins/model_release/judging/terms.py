"""From a window's counts to what is bet on, and to sums over windows. Small steps of evidence.py, without a policy."""

from __future__ import annotations

import math

import numpy as np

from .state import Bools, Floats

LARGEST_LOG = 230.0  # evidence is reported up to 1e100: enough for anyone, far from overflow
SHRUNK_BY = 4.0  # windows fully worth of measuring a dispersion, in which bad requests are taken to come alone
# Of a dispersion that is not known well, so many of its own deviations are added.
UNSURE = 1.0


def beyond(limit: Floats, indifference: float) -> Floats:
    """The rate from which on a canary is promoted in at most β: γ times the limit, and less where that nears 1."""
    out: Floats = np.minimum(indifference * limit, np.maximum(limit, (1 + limit) / 2))
    return np.minimum(out, 1 - 1e-9)


def reported(log_evidence: float) -> float:
    """Evidence as a number a person can read; four digits, so that any machine prints the same."""
    return float(f"{math.exp(min(log_evidence, LARGEST_LOG)):.4g}")


def surely(seen: Floats, worth: Floats) -> Floats:
    """A dispersion with its own deviation added, which is the larger the less it is worth."""
    out: Floats = seen * (1 + UNSURE * np.sqrt(2 / (worth + 2)))
    return out


def alone(n: Floats, b: Floats, limit: Floats) -> Floats:
    """The canary's bad requests beyond `limit`, as a part of what it allows; 0, no bet, without requests."""
    out: Floats = (b / limit - n) / np.maximum(n, 1.0)
    return out


def _fair(n: Floats, m: Floats, ratio: Floats) -> Floats:
    """The canary's fair part of all bad requests."""
    weighted = ratio * n
    return np.minimum(np.maximum(weighted / np.maximum(weighted + m, 1e-300), 1e-15), 1 - 1e-15)


def beside(n: Floats, m: Floats, b: Floats, all_bad: Floats, ratio: Floats) -> Floats:
    out: Floats = (b / _fair(n, m, ratio) - all_bad) / np.maximum(all_bad, 1.0)
    return out


def relative(n: Floats, m: Floats, b: Floats, all_bad: Floats, ratio: Floats, fractions: Floats) -> Floats:
    """Log likelihood ratios of the canary's part of all bad requests, for each alternative below the fair part."""
    part = _fair(n, m, ratio)[..., None]
    whole = 1 - part + part * fractions
    out: Floats = b[..., None] * np.log(fractions) - all_bad[..., None] * np.log(whole)
    return out


def hot(s: Floats, m: Floats, limit: Floats) -> Bools:
    return (s >= limit * m) & (s >= 1)


def edges(counts: Floats | None, beside: Floats, owner: list[int]) -> Floats:
    """The counts at the edges; no data at all where none came."""
    return np.full((*beside.shape[:-1], len(owner)), np.nan) if counts is None else counts


def totals(counts: Floats | None, requests: Floats, owner: list[int]) -> Floats:
    """Of how many the bad ones of each column are a share: (..., T, C), or what broadcasts to it."""
    if counts is None:
        return requests[..., None]
    return np.concatenate([counts, counts[..., owner]], axis=-1) if owner else counts


def dispersed(total: Floats, bad: Floats) -> Floats:
    """What a window adds to the sums that dispersion is measured from: (..., 4)."""
    return np.stack([total, bad, total > 0, bad * bad / np.maximum(total, 1.0)], axis=-1)


def onset(stable: Floats, bad: Floats, hot: Bools, calm: Bools) -> Floats:
    """What stable's incidents had put among its calm windows when nobody could know yet that they would last, to be
    taken out in the window in which that is known: (..., T, C, 4). Each is (..., 5 + T, C), with five windows before:
    stable's requests and bad ones, whether a limit was broken, and whether the window was counted as calm."""
    length = calm.shape[-2] - 5
    waits = ~calm[..., 5:, :]
    out = np.zeros((*waits.shape, 4))
    for back in range(1, 6):
        then = slice(5 - back, 5 - back + length)
        early = waits & hot[..., then, :] & calm[..., then, :]
        out += dispersed(stable[..., then, :] * early, bad[..., then, :] * early)
        waits = waits & calm[..., then, :]  # what came before an earlier one was taken out then
    return out


def shrunk(seen: Floats, worth: Floats) -> Floats:
    """A dispersion, taken for 1 as far as its windows cannot tell."""
    out: Floats = (worth * seen + SHRUNK_BY) / (worth + SHRUNK_BY)
    return out


def running(before: Floats, steps: Floats) -> Floats:
    """Sums after each window. The sum so far is the first term, so one window at a time gives the same bits."""
    before = before[..., None, :, : steps.shape[-1]]
    if steps.shape[-3] == 1:
        out: Floats = before + steps
        return out
    return np.concatenate([before, steps], axis=-3).cumsum(axis=-3)[..., 1:, :, :]


def silence(before: Floats, known: Bools) -> Floats:
    """Windows without data in a row, up to and including each."""
    if known.shape[-2] == 1:
        return np.where(known, 0.0, before[..., None, :] + 1)
    order = np.arange(1, known.shape[-2] + 1)[:, None]
    last = np.maximum.accumulate(np.where(known, order, 0), axis=-2)
    out: Floats = order - last + np.where(last == 0, before[..., None, :], 0.0)
    return out
