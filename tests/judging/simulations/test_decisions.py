"""How soon a bad canary is found, how seldom one is missed, how long a good one waits."""

from __future__ import annotations

import numpy as np
import pytest

from model_release.judging import Past, Policy
from model_release.judging.plan import plan
from model_release.judging.simulate import interval, outcomes
from model_release.judging.verdict import PROMOTE, ROLL_BACK

from .releases import RELEASES, knowing, traffic

pytestmark = pytest.mark.simulation

BETA = 0.05


def judged_by(**limits: float) -> Policy:
    return Policy.from_dict({"metrics": [{"name": "errors", **limits}], "min_requests": 1})


@pytest.mark.parametrize(
    ("stable", "canary", "rate", "worse", "factor", "measured"),
    [
        (180, 20, 0.01, 0.05, 1.5, 12.3),
        (180, 20, 0.001, 0.02, 1.5, 12.8),
        (900, 100, 0.01, 0.02, 2.0, 21.6),
        (900, 100, 0.01, 0.05, 2.0, 5.7),
        (1800, 200, 0.02, 0.03, 2.0, 23.2),
    ],
)
def test_a_regression_is_found_nearly_as_soon_as_by_a_test_that_knows_both_rates(
    stable: int, canary: int, rate: float, worse: float, factor: float, measured: float
) -> None:
    """`measured` is a little above what this judge takes, so that losing speed is seen."""
    counts = traffic(21, canary, stable, worse, rate, length=120)
    codes, windows = outcomes(judged_by(max_ratio=1), counts)
    assert (codes == ROLL_BACK).mean() > 0.995
    best = knowing(counts, rate, worse, 100)
    assert windows.mean() <= factor * best + 2
    assert windows.mean() <= measured


@pytest.mark.parametrize("burst", [1, 3, 10])
@pytest.mark.parametrize(("stable", "canary"), [(180, 20), (1800, 200)])
@pytest.mark.parametrize("limit", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("health", [2, 5])
def test_a_canary_twice_beyond_its_limit_is_seldom_promoted(
    limit: float, stable: int, canary: int, burst: float, health: int
) -> None:
    """Stable is at half or a fifth of the limit. The evidence against is left out: no early roll-back saves it."""
    counts = traffic(22, canary, stable, 2 * limit, limit / health, length=60, burst=burst)
    p = Policy.from_dict({"metrics": [{"name": "e", "max_rate": limit}], "min_requests": 1, "false_rollback": 1e-300})
    missed = int((outcomes(p, counts)[0] == PROMOTE).sum())
    assert missed / RELEASES <= BETA, f"{missed} of {RELEASES}, {interval(missed, RELEASES)}"


def test_where_stable_never_fails_the_assumed_design_effect_stands_in() -> None:
    """Nothing shows the bursts then. The default carries bursts of three; for ten, the policy must say so."""
    limits = {"metrics": [{"name": "e", "max_rate": 0.02}], "false_rollback": 1e-300}
    for burst, more in ((3, {}), (10, {"design_effect": 8.0})):
        counts = traffic(28, 20, 180, 0.04, 0.0, length=120, burst=burst)
        missed = int((outcomes(Policy.from_dict(limits | more), counts)[0] == PROMOTE).sum())
        assert missed / RELEASES <= BETA, f"bursts of {burst}: {missed} of {RELEASES}"


@pytest.mark.parametrize("burst", [1, 3, 10])
@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_a_canary_twice_as_bad_as_stable_is_seldom_promoted(burst: float, floor: float) -> None:
    counts = traffic(23, 20, 180, 0.04, 0.02, length=120, burst=burst)
    limits = {"max_ratio": 1, "floor": floor}
    p = Policy.from_dict({"metrics": [{"name": "e", **limits}], "min_requests": 1, "false_rollback": 1e-300})
    missed = int((outcomes(p, counts)[0] == PROMOTE).sum())
    assert missed / RELEASES <= BETA, f"{missed} of {RELEASES}, {interval(missed, RELEASES)}"


@pytest.mark.parametrize("limits", [{"max_rate": 0.02}, {"max_ratio": 1, "floor": 0.02}, {"max_ratio": 1}])
def test_a_canary_exactly_at_its_limit_is_promoted_in_at_most_beta(limits: dict[str, float]) -> None:
    counts = traffic(24, 20, 180, 0.02, 0.02, length=200)
    promoted = int((outcomes(judged_by(**limits), counts)[0] == PROMOTE).sum())
    assert promoted / RELEASES <= BETA


@pytest.mark.parametrize(
    ("stable", "canary", "limit", "coarse"),
    [
        (180, 20, 0.01, 0),
        (180, 20, 0.02, 0),
        (180, 20, 0.05, 0),
        (900, 100, 0.01, 0),
        (900, 100, 0.02, 1),
        (900, 100, 0.05, 1),
    ],
)
def test_a_good_canary_is_promoted_after_at_most_half_as_many_requests_again_as_the_sprt(
    stable: int, canary: int, limit: float, coarse: int
) -> None:
    """Beside stable's past; without one it waits up to 1.75 times as long. `coarse`: where the SPRT needs fewer than
    four windows, bursts cannot be measured and one window is added."""
    counts = traffic(25, canary, stable, limit / 5, limit / 5, length=max(12, int(45 / limit / canary)))
    past = traffic(29, canary + stable, 1, limit / 5, limit / 5, length=360)
    before = past.canary_requests[..., None], past.canary_bad
    codes, windows = outcomes(judged_by(max_rate=limit), counts, before)
    assert (codes == PROMOTE).mean() > 0.99
    sprt = knowing(counts, limit, limit / 5, 1 / BETA)
    assert coarse == (sprt < 4)
    assert windows.mean() <= 1.5 * sprt + coarse
    assert outcomes(judged_by(max_rate=limit), counts)[1].mean() <= 1.75 * sprt + coarse


@pytest.mark.parametrize(
    ("limits", "rate"), [({"max_rate": 0.02}, 0.004), ({"max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005}, 0.002)]
)
def test_a_plan_keeps_its_word(limits: dict[str, float], rate: float) -> None:
    """What it says is found is found in four of five releases, and good canaries are promoted in its time."""
    p = Policy.from_dict({"metrics": [{"name": "errors", **limits}], "traffic": 0.1})
    counted = Past.from_dict({"windows": [{"requests": 2000, "bad": {"errors": round(2000 * rate)}}] * 100})
    made = plan(p, requests_per_second=20, deadline_minutes=20, window_seconds=10, past=counted)
    (metric,) = made.metrics
    requests, bad = (np.broadcast_to(part, (RELEASES, *part.shape)) for part in counted.counts(p))
    worse, found = metric.smallest or metric.worse * metric.limit, metric.minutes_found or made.deadline_minutes
    codes, _ = outcomes(p, traffic(26, 20, 180, worse, rate, length=round(found * 6)), (requests, bad))
    assert 0.68 <= (codes == ROLL_BACK).mean() <= 0.97
    assert made.minutes_needed is not None
    codes, _ = outcomes(p, traffic(27, 20, 180, rate, rate, length=round(made.minutes_needed * 6)), (requests, bad))
    assert 0.68 <= (codes == PROMOTE).mean() <= 0.97
