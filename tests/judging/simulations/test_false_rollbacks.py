"""A canary within its limit is rolled back in at most α of the releases, over 200 looks.

Every canary here is exactly at its limit (as bad as stable with `max_ratio` 1, or at `max_rate`), the hardest place
that is still good.
"""

from __future__ import annotations

import numpy as np
import pytest

from model_release.judging import Policy
from model_release.judging.simulate import interval, outcomes
from model_release.judging.state import Counts
from model_release.judging.verdict import ROLL_BACK, WRONG_SPLIT

from .releases import RELEASES, traffic

pytestmark = pytest.mark.simulation

ALPHA = 0.01
LOOKS = 200
RATES = [0.001, 0.01, 0.05]
# Promotion would end a release and hide what the later looks do, so it is put out of reach.
NEVER = 10**12


def relative(**more: object) -> Policy:
    return Policy.from_dict({"metrics": [{"name": "errors", "max_ratio": 1}], "min_requests": NEVER, **more})


def at_most(alpha: float, hits: int, trials: int = RELEASES) -> None:
    low, high = interval(hits, trials)
    assert hits / trials <= alpha, f"{hits} of {trials}, 99 % interval {low:.4f} to {high:.4f}"


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("burst", [1, 3, 10])
def test_equal_rates_whatever_the_bursts(rate: float, burst: float) -> None:
    codes, _ = outcomes(relative(), traffic(11, 20, 180, rate, rate, burst=burst))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("burst", [1, 10])
def test_equal_rates_in_coarse_windows(burst: float) -> None:
    codes, _ = outcomes(relative(), traffic(12, 200, 1800, 0.01, 0.01, burst=burst))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("rate", RATES)
def test_at_the_absolute_limit(rate: float, burst: float) -> None:
    p = Policy.from_dict({"metrics": [{"name": "errors", "max_rate": rate}], "min_requests": NEVER})
    codes, _ = outcomes(p, traffic(13, 20, 180, rate, rate, burst=burst))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("rate", [0.003, 0.01, 0.03])
def test_a_rate_that_swings_tenfold_on_both_sides(rate: float, burst: float) -> None:
    swing = rate * 10 ** (0.5 * np.sin(np.arange(LOOKS) / LOOKS * 6 * np.pi))
    codes, _ = outcomes(relative(), traffic(14, 20, 180, swing, swing, burst=burst))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("rate", RATES)
def test_a_share_that_changes_mid_way(rate: float, burst: float) -> None:
    canary = np.where(np.arange(LOOKS) < LOOKS // 2, 20, 100)
    codes, _ = outcomes(relative(), traffic(15, canary, 200 - canary, rate, rate, burst=burst))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("burst", [1, 10])
def test_several_metrics_and_steps_together(burst: float) -> None:
    """Three metrics with both limits, two steps of 100 looks: α holds for the whole release."""
    limits = {"max_rate": 0.01, "max_ratio": 1, "floor": 0.01}
    p = Policy.from_dict({"metrics": [{"name": n, **limits} for n in "abc"], "steps": 2, "min_requests": NEVER})
    hit = np.zeros(RELEASES, dtype=bool)
    for step, canary in enumerate((20, 60)):
        counts = traffic(16 + step, canary, 200 - canary, 0.01, 0.01, length=100, metrics=3, burst=burst)
        hit |= outcomes(p, counts)[0] == ROLL_BACK
    at_most(ALPHA, int(hit.sum()))


@pytest.mark.parametrize("floor", [0.01, 0.03])
def test_a_floor_forgives_what_it_says(floor: float) -> None:
    """The canary sits at its floor, three to ten times as bad as stable."""
    p = Policy.from_dict({"metrics": [{"name": "e", "max_ratio": 1, "floor": floor}], "min_requests": NEVER})
    codes, _ = outcomes(p, traffic(18, 20, 180, floor, 0.003, burst=3))
    at_most(ALPHA, int((codes == ROLL_BACK).sum()))


@pytest.mark.parametrize("clients", [1, 10])
def test_the_split_is_not_doubted_for_chance_or_for_clients_that_stick(clients: int) -> None:
    """Each client sends `clients` requests in a row to one side; the share asked for is the true one."""
    rng = np.random.default_rng(19)
    n = clients * rng.binomial(200 // clients, 0.1, (RELEASES, LOOKS)).astype(np.float64)
    none_bad = np.zeros((*n.shape, 1))
    codes, _ = outcomes(relative(traffic=0.1), Counts(n, none_bad, 200 - n, none_bad))
    at_most(ALPHA, int((codes == WRONG_SPLIT).sum()))
