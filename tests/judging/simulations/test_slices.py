"""Slices with a known truth: good ones stay, and one that suffers is found and named.

benchmarks/slices.py has more releases and more scenes.
"""

from __future__ import annotations

import numpy as np
import pytest

from model_release.judging import Policy
from model_release.judging.slices_simulate import releases
from model_release.judging.verdict import PROMOTE, ROLL_BACK

pytestmark = pytest.mark.simulation

WINDOWS = 100


def policy() -> Policy:
    errors = {"name": "errors", "max_rate": 0.02, "slices": {"by": "country"}}
    return Policy.from_dict({"metrics": [errors], "indifference": 2, "deadline_windows": WINDOWS})


@pytest.mark.parametrize("burst", [1, 5])
@pytest.mark.parametrize(("slices", "number"), [(1, 400), (5, 400), (50, 100)])
def test_canaries_whose_slices_are_at_the_limit_are_seldom_rolled_back(slices: int, number: int, burst: int) -> None:
    shape = np.ones(slices)
    found = releases(
        policy(),
        0.02 * shape,
        0.005 * shape,
        (10 * shape, 30 * shape),
        seed=41,
        windows=WINDOWS,
        burst=burst,
        promoting=False,
        number=number,
    )
    assert (found.codes == ROLL_BACK).mean() <= 0.01


def test_one_slice_of_twenty_that_suffers_is_named_and_no_other() -> None:
    canary = np.full(20, 0.01)
    canary[7] = 0.09
    requests = (np.full(20, 10.0), np.full(20, 30.0))
    found = releases(policy(), canary, np.full(20, 0.01), requests, seed=42, windows=WINDOWS, number=200)
    assert (found.codes == ROLL_BACK).mean() >= 0.95
    named = found.named[:, 7] & (found.named.sum(axis=1) == 1)
    assert named.mean() >= 0.95
    assert np.median(found.windows[named]) <= 27  # a little above what it takes, so that losing speed is seen


def test_a_canary_as_good_as_stable_is_promoted_when_its_slices_have_been_judged() -> None:
    good, requests = np.full(20, 0.005), (np.full(20, 10.0), np.full(20, 30.0))
    found = releases(policy(), good, good, requests, seed=43, windows=WINDOWS, number=100)
    assert (found.codes == PROMOTE).mean() >= 0.98
    assert np.median(found.windows) <= 26
