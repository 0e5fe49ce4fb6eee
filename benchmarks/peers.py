"""The rules by which other systems judge a canary, from their published description, over many releases at once.

Sources: docs/facts.md#argo-rollouts, docs/facts.md#flagger, docs/facts.md#kayenta. Rates are shares of bad
requests in a window, shape (releases, windows). Each rule answers two arrays: +1 promoted, -1 rolled back, and the
number of windows that it took.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int_]
PROMOTED, ROLLED_BACK = 1, -1


def argo(canary: Floats, *, limit: float, failure_limit: int) -> tuple[Ints, Ints]:
    """Argo Rollouts, one metric: `successCondition: result[0] <= limit`, `count` = the number of windows.

    A measurement that is not a success has failed; the run fails when failed > failureLimit (so a limit of 3
    takes a fourth), and is successful when `count` is reached.
    """
    failed = np.cumsum(~(canary <= limit), axis=1) > failure_limit
    return _first(failed, np.zeros_like(failed))


def flagger(canary: Floats, *, limit: float, threshold: int, steps: int) -> tuple[Ints, Ints]:
    """Flagger: `thresholdRange.max: limit`; FailedChecks is never reset; one step of weight for each passed check.

    `FailedChecks >= threshold` is tested at the start of a tick, so the roll-back comes one tick later; promoted
    when maxWeight is reached, after `steps` passed checks.
    """
    passed = canary <= limit
    late = np.pad(np.cumsum(~passed, axis=1) >= threshold, ((0, 0), (1, 0)))[:, :-1]
    return _first(late, np.cumsum(passed, axis=1) >= steps)


def kayenta(canary: Floats, stable: Floats, *, looks: list[int]) -> tuple[Ints, Ints]:
    """Kayenta, one metric, direction increase, growing window: stopped by the first look that is High.

    One metric scores 100 or 0, so any `marginal` and `pass` give the same verdicts. At the last look what is not
    High has passed.
    """
    high = np.zeros(canary.shape, dtype=bool)
    for look in looks:
        high[:, look - 1] = is_high(canary[:, :look], stable[:, :look])
    end = np.zeros_like(high)
    end[:, looks[-1] - 1] = True
    return _first(high, end)


def is_high(canary: Floats, stable: Floats) -> npt.NDArray[np.bool_]:
    """MannWhitneyClassifier at 98 % confidence and tolerance 0.25, effect `meanRatio` with allowedIncrease 1.

    The lower end of the interval for the shift is where the two-sided normal approximation with tie correction
    and continuity correction 0.5 reaches the quantile: a step function of the shift, so it is read off the sorted
    pairwise differences and no solver is needed.
    """
    n, m = canary.shape[1], stable.shape[1]
    out = np.zeros(canary.shape[0], dtype=bool)
    for start in range(0, len(out), 250):
        x, y = canary[start : start + 250], stable[start : start + 250]
        differences = np.sort((x[:, :, None] - y[:, None, :]).reshape(len(x), -1), axis=1)[:, ::-1]
        ties = _ties(x) + _ties(y)
        sigma = np.sqrt(n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1))))
        above = n * m / 2 + 0.5 + 2.3263478740408408 * sigma
        place = np.minimum(above.astype(int), n * m - 1)
        low = np.take_along_axis(differences, place[:, None], axis=1)[:, 0]
        estimate = np.median(differences, axis=1)
        mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
        effect = (mean_x >= mean_y) | (mean_x == 0) | (mean_y == 0)
        identical = (np.sort(x, axis=1) == np.sort(y, axis=1)).all(axis=1)
        out[start : start + 250] = (low > 0.25 * np.abs(estimate)) & effect & ~identical & (above < n * m)
    return out


def _ties(values: Floats) -> Floats:
    """Σ (t³ - t) over the groups of equal values in each row."""
    equal = (values[:, :, None] == values[:, None, :]).sum(axis=2).astype(float)
    out: Floats = (equal**2 - 1).sum(axis=1)
    return out


def _first(rolled: npt.NDArray[np.bool_], promoted: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Whichever comes first; a roll-back in the same window goes before, and the end of the windows promotes."""
    promoted = promoted.copy()
    promoted[:, -1] = True
    windows = (rolled | promoted).argmax(axis=1)
    said = np.take_along_axis(rolled, windows[:, None], axis=1)[:, 0]
    return np.where(said, ROLLED_BACK, PROMOTED), windows + 1
