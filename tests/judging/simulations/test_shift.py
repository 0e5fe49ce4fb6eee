"""Labels with a known truth: good canaries stay, moved labels are found nearly as soon as by a bet that is told them.

benchmarks/shift.py has more releases, more labels and more scenes.
"""

from __future__ import annotations

import numpy as np
import pytest

from model_release.judging.shift_simulate import Floats, courses, moved

pytestmark = pytest.mark.simulation

SIDES = (20, 180)
LIMIT = 0.1
RELEASES = 300


def steady(labels: int, windows: int) -> Floats:
    shares: Floats = 1 / np.arange(1, labels + 1)
    return np.broadcast_to(shares / shares.sum(), (windows, labels)).copy()


@pytest.mark.parametrize("bursts", [(1, 1), (10, 1), (1, 20), (10, 10)])
@pytest.mark.parametrize("labels", [2, 7, 100])
@pytest.mark.parametrize("past", [0, 5000])
def test_canaries_at_the_limit_are_seldom_rolled_back(labels: int, bursts: tuple[int, int], past: int) -> None:
    stable = steady(labels, 100)
    canary = moved(stable, labels // 3, LIMIT)
    found = courses(31, canary, stable, SIDES, bursts=bursts, past=past, releases=RELEASES)
    assert (found.rolled_back > 0).mean() <= 0.01


def test_a_mix_that_swings_on_both_sides_is_no_shift() -> None:
    stable = steady(7, 100)
    night = (1 - np.cos(np.linspace(0, 4 * np.pi, 100)))[:, None] / 2
    stable = (1 - night) * stable + night * stable[:, ::-1]
    found = courses(32, stable, stable, SIDES, releases=RELEASES)
    assert (found.rolled_back > 0).sum() == 0
    assert (found.promoted > 0).mean() > 0.99


@pytest.mark.parametrize(("labels", "times"), [(7, 1.5), (100, 2.2)])
def test_a_moved_label_is_found_nearly_as_soon_as_by_the_bet_that_is_told_it(labels: int, times: float) -> None:
    stable = steady(labels, 300)
    found = courses(33, moved(stable, labels // 3, 0.2), stable, SIDES, told=labels // 3, releases=100)
    assert (found.rolled_back > 0).all()
    assert found.rolled_back.mean() <= times * found.alone.mean() + 2
    assert found.rolled_back.mean() <= 84  # a little above what it takes, so that losing speed is seen


@pytest.mark.parametrize("bursts", [1, 3, 10])
def test_canaries_at_twice_the_limit_are_seldom_promoted(bursts: int) -> None:
    stable = steady(7, 100)
    canary = moved(stable, 2, 2 * LIMIT)
    found = courses(34, canary, stable, SIDES, bursts=(bursts, bursts), releases=RELEASES)
    assert (found.promoted > 0).mean() <= 0.05


def test_a_canary_as_good_as_stable_is_promoted_in_some_hundred_answers() -> None:
    found = courses(35, steady(7, 100), steady(7, 100), SIDES, releases=RELEASES)
    assert np.median(found.promoted) * SIDES[0] <= 240
