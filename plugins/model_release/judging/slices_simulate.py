"""Slices with a known truth: requests drawn by chance, and judged by the very lines that judge real canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import slices
from .evidence import Evidence
from .policy import Policy
from .rules import Rules
from .simulate import Ints, bad_requests
from .state import REQUESTS, Bools, Counts, Floats
from .verdict import CONTINUE, PROMOTE, ROLL_BACK

_AT_ONCE = 100_000  # slices times windows in memory together


@dataclass(frozen=True)
class Ended:
    """How releases ended, (R,): the decision's code, CONTINUE for none, and the windows it took. `named` (R, S): the
    slices that the roll-back names, none of a release that was not rolled back for the sake of one."""

    codes: Ints
    windows: Ints
    named: Bools


def releases(
    policy: Policy,
    canary: Floats,
    stable: Floats,
    requests: tuple[Floats, Floats],
    *,
    seed: int,
    windows: int = 200,
    burst: float = 1.0,
    promoting: bool = True,
    number: int = 2000,
) -> Ended:
    """Releases by a policy of one metric with slices. In each window each slice has so many `requests` (S) of the
    canary and of stable on average, of which the shares `canary` and `stable` (S) are bad, alone or in bursts.
    `promoting` False looks on at canaries that would have been promoted."""
    rng = np.random.default_rng(seed)
    metric = policy.metrics[0]
    assert metric.slices is not None
    each = slices.evidence_of(policy, metric, len(canary))
    whole = Evidence(replace(policy, metrics=(replace(metric, slices=None),)))
    rules, weights = Rules(whole), np.full(len(canary), (1 - slices.LATER) / len(canary))
    parts: list[Sequence[npt.NDArray[np.generic]]] = []
    at_once = max(1, _AT_ONCE // (len(canary) * windows))
    for begin in range(0, number, at_once):
        shape = (min(at_once, number - begin), windows, len(canary))
        n, m = (rng.poisson(np.broadcast_to(side, shape)).astype(float) for side in requests)
        longest = max(1, int(min(side.min() for side in requests)))
        b, s = (
            bad_requests(rng, side, np.broadcast_to(rate, shape), burst, longest)
            for side, rate in ((n, canary), (m, stable))
        )
        counts = Counts(n.sum(axis=-1), b, m.sum(axis=-1), s, canary_totals=n, stable_totals=m)
        path = each.extend(each.start((shape[0],)), counts)
        ages = np.arange(1, windows + 1)
        logs = each.against(path.wealth, ages[:, None])[0]
        so_far = path.sums[..., REQUESTS]
        judged = slices.judged(logs, so_far, metric.slices.at_least)
        somewhere = slices.somewhere(judged, weights)
        waits = slices.waits(path.sums, metric, metric.slices.at_least)
        totals = Counts(n.sum(axis=-1), b.sum(axis=-1)[..., None], m.sum(axis=-1), s.sum(axis=-1)[..., None])
        path = whole.extend(whole.start((shape[0],)), totals)
        readings = whole.read_path(path)
        against = slices.joined(readings.against[..., 0], somewhere)
        codes = rules.codes(path, replace(readings, against=against[..., None]))
        codes[(codes == PROMOTE) & (waits | (not promoting))] = CONTINUE
        decided = (codes != CONTINUE).any(axis=1)
        first = np.where(decided, (codes != CONTINUE).argmax(axis=1), windows - 1)
        here = np.arange(shape[0])
        code = codes[here, first]
        blamed = (code == ROLL_BACK) & (somewhere[here, first] > against[here, first])
        named = slices.named(judged[here, first], weights, whole.log_needed_against)
        parts.append((code, first + 1, named & blamed[:, None]))
    codes, ended, named = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ended(codes, ended, named)
