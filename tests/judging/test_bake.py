"""How long a promoted canary is watched on, and what that finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_release.judging import Past, Policy, PolicyError
from model_release.judging.bake import Bake, bake
from model_release.judging.simulate import bad_requests, outcomes
from model_release.judging.state import Counts
from model_release.judging.verdict import ROLL_BACK

ERRORS = {"name": "errors", "max_rate": 0.02}


def alone(*metrics: dict[str, Any], **more: Any) -> Policy:
    """As a bake is judged: half of α, nothing beside it."""
    return Policy.from_dict({"metrics": list(metrics) or [ERRORS], "guard": True, "steps": 2, **more})


def asked(per_second: float, *metrics: dict[str, Any], **more: Any) -> Bake:
    given = {name: more.pop(name) for name in ("past", "minutes") if name in more}
    return bake(alone(*metrics, **more), requests_per_second=per_second, window_seconds=10, **given)


def test_a_bake_is_as_long_as_it_takes_to_find_twice_the_limit_from_five_minutes_to_an_hour() -> None:
    busy, quiet, idle = asked(20), asked(2), asked(0)
    assert (busy.minutes, busy.found) == (5, 1)
    assert 5 < quiet.minutes < 60
    assert quiet.found >= 0.95
    assert (idle.minutes, idle.found) == (60, 0)
    slow = asked(1)
    assert (slow.minutes, slow.found) == (45, 0.988), "by 37, which an hour's bets have found it in, only 93.8 %"
    assert asked(2) == quiet


def test_a_bake_keeps_its_word() -> None:
    """Canaries at twice the limit, drawn apart from the plan, are found in it as often as it says."""
    found = asked(2)
    counted = {}
    for part in (1.0, 0.25):
        requests = np.full((200, int(6 * part * found.minutes)), 20.0)
        bad = bad_requests(np.random.default_rng(61), requests, np.full(requests.shape, 0.04))[..., None]
        policy = alone(deadline_windows=int(6 * found.minutes))
        codes, _ = outcomes(policy, Counts(requests, bad, 0 * requests, 0 * bad))
        counted[part] = (codes == ROLL_BACK).mean()
    assert counted[1.0] >= 0.88
    assert counted[0.25] < 0.7


def test_the_metric_that_is_found_least_counts_and_what_is_only_shown_does_not() -> None:
    slow, shown = {"name": "slow", "max_rate": 0.2}, {"name": "rare", "max_rate": 0.001, "observe": True}
    assert asked(5, slow, shown).minutes < asked(5, slow, ERRORS).minutes
    beside = {"name": "beside", "max_ratio": 1.5, "floor": 0.001}
    assert asked(5, slow, beside).found == 1, "it cannot be judged without stable"


def test_bursts_take_longer_and_a_wider_indifference_asks_for_less() -> None:
    rng, counted = np.random.default_rng(62), np.full(720, 50.0)
    bad = bad_requests(rng, counted, np.full(720, 0.004), 8, 50)
    past = Past.from_dict({"windows": [{"requests": 50, "bad": {"errors": int(b)}} for b in bad]})
    assert asked(5, past=past).minutes > asked(5).minutes
    assert asked(1, indifference=4).minutes < asked(1).minutes


def test_what_is_given_stands_and_is_told_with_what_it_finds() -> None:
    given = asked(1, minutes=5)
    assert given.minutes == 5
    assert given.found < 0.5
    said = f"After the promotion it is watched on for 5 min, in which {100 * given.found:.3g} % of the canaries"
    assert given.sentence == f"{said} at twice a limit are found."
    assert asked(20, indifference=3).sentence.endswith("100 % of the canaries at 3 times a limit are found.")


@pytest.mark.parametrize("per_second", [-1.0, float("nan")])
def test_traffic_that_cannot_be_is_refused(per_second: float) -> None:
    with pytest.raises(PolicyError, match=r"^requests_per_second: "):
        asked(per_second)
