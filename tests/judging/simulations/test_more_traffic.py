"""What less friendly traffic does: bursts on one side, incidents on both, a canary that turns bad late, and the zone
between the limit and twice the limit. benchmarks/judge.py prints the same with more releases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_release.judging import Policy, whole
from model_release.judging.evidence import Evidence
from model_release.judging.rules import Rules
from model_release.judging.simulate import bad_requests, outcomes
from model_release.judging.state import Counts
from model_release.judging.verdict import PROMOTE, ROLL_BACK

pytestmark = pytest.mark.simulation

Floats = npt.NDArray[np.float64]
Past = tuple[Floats, Floats]

RELEASES = 600
BOTH = {"max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005}
LIMIT = 0.0075  # of a canary beside a stable at 0.3 %
NEVER = 10**12
RAMP: dict[str, Any] = {"ramp": {"budget": 20, "most": 0.35}}
STEPS: dict[str, Any] = {"shares": [0.1, 0.3]}


def judged_by(limits: dict[str, float], **more: float) -> Policy:
    return Policy.from_dict({"metrics": [{"name": "errors", **limits}], "deadline_windows": 180, **more})


def draw(
    seed: int,
    sides: tuple[int, int],
    canary: npt.ArrayLike,
    stable: npt.ArrayLike,
    bursts: tuple[float, float] = (1, 1),
    *,
    length: int = 180,
    releases: int = RELEASES,
) -> tuple[Counts, Past]:
    """Releases, and 720 windows of each one's stable before, at the lowest of its rates."""
    rng = np.random.default_rng(seed)
    shape, longest = (releases, length), min(sides)
    n, m = (np.full(shape, float(requests)) for requests in sides)
    b = bad_requests(rng, n, np.broadcast_to(canary, shape), bursts[0], longest)
    s = bad_requests(rng, m, np.broadcast_to(stable, shape), bursts[1], longest)
    before = np.full((releases, 720, 1), float(sum(sides)))
    bad_before = bad_requests(rng, before, np.full(before.shape, np.min(stable)), bursts[1], longest)
    return Counts(n, b[..., None], m, s[..., None]), (before, bad_before)


def swing(rate: float) -> Floats:
    """Ten times as many errors on both sides in the middle third: somebody else's incident."""
    return rate * np.repeat([1.0, 10.0, 1.0], 60)


@pytest.mark.parametrize("burst", [1, 3, 10])
@pytest.mark.parametrize("well", [0, 5])
def test_beside_a_stable_that_stays_ill_a_good_canary_is_promoted_and_one_at_twice_the_limit_is_not(
    burst: float, well: int
) -> None:
    ill = np.where(np.arange(180) < well, 0.003, 0.2)
    usual = draw(33, (20, 180), 0.003, 0.003, (burst, burst))[1]
    patient = judged_by({"max_rate": 0.02}, indifference=2, false_rollback=1e-300)
    good, _ = draw(34, (20, 180), 0.003, ill, (burst, burst))
    promoted = outcomes(patient, good, usual, final=True)[0] == PROMOTE
    assert promoted.mean() >= {1: 0.99, 3: 0.95, 10: 0.8}[burst]
    bad, _ = draw(35, (20, 180), 0.04, ill, (burst, burst))
    promoted = outcomes(patient, bad, usual, final=True)[0] == PROMOTE
    assert promoted.mean() <= (0.06 if burst == 10 else 0.05) + 3 * (0.05 * 0.95 / RELEASES) ** 0.5


@pytest.mark.parametrize("rate", [0.003, 0.01, 0.019])
@pytest.mark.parametrize("bursts", [(1, 10), (10, 1)])
@pytest.mark.parametrize("with_past", [True, False])
def test_bursts_on_one_side_are_no_regression(rate: float, bursts: tuple[float, float], with_past: bool) -> None:
    counts, past = draw(31, (20, 180), rate, rate, bursts)
    for limits in (BOTH, {"max_ratio": 1.5, "floor": 0.005}):
        codes, _ = outcomes(judged_by(limits, min_requests=NEVER), counts, past if with_past else None)
        assert (codes == ROLL_BACK).mean() <= 0.01 + 3 * (0.01 * 0.99 / RELEASES) ** 0.5


def test_an_incident_on_both_sides_is_not_the_canarys() -> None:
    counts, past = draw(32, (20, 180), swing(0.003), swing(0.003))
    codes, _ = outcomes(judged_by(BOTH, min_requests=NEVER), counts, past)
    assert (codes == ROLL_BACK).mean() <= 0.01
    codes, _ = outcomes(judged_by(BOTH, indifference=2), counts, past, final=True)
    assert (codes != PROMOTE).mean() <= 0.005


def test_lost_windows_a_cold_start_and_a_share_that_grows_are_no_regression() -> None:
    allowed = 0.01 + 3 * (0.01 * 0.99 / RELEASES) ** 0.5
    asked = judged_by(BOTH, min_requests=NEVER)
    lost, past = draw(40, (20, 180), 0.0075, 0.005, length=150)
    gone = np.random.default_rng(41).random(lost.canary_requests.shape) < 0.3
    for side in (lost.canary_requests, lost.stable_requests):
        side[gone] = np.nan
    assert (outcomes(asked, lost, past)[0] == ROLL_BACK).mean() <= allowed
    cold, past = draw(42, (20, 180), np.where(np.arange(100) < 3, 0.3, 0.003), 0.003, length=100)
    assert (outcomes(asked, cold, past)[0] == ROLL_BACK).mean() > 0.5, "what the warm-up is for"
    warmed = judged_by(BOTH, min_requests=NEVER, warm_up=3)
    assert (outcomes(warmed, cold, past)[0] == ROLL_BACK).mean() <= allowed
    parts = [
        draw(seed, sides, 0.007, 0.007, length=50) for seed, sides in ((43, (2, 198)), (44, (20, 180)), (45, (70, 130)))
    ]
    course = (np.concatenate(sides, axis=1) for sides in zip(*(some(counts) for counts, _ in parts), strict=True))
    assert (outcomes(asked, Counts(*course), parts[0][1])[0] == ROLL_BACK).mean() <= allowed


def some(counts: Counts) -> list[Floats]:
    return [side for side in vars(counts).values() if side is not None]


@pytest.mark.parametrize(("per_second", "minutes"), [(2, 14), (20, 4)])
def test_by_a_ramp_good_canaries_are_promoted_in_minutes_and_bad_ones_taken_back(
    per_second: int, minutes: float
) -> None:
    """Whole releases, the shares after the evidence; benchmarks/courses.py has more of them, and the others' rules."""
    requests = np.full((720, 1), 10.0 * per_second)
    past = requests, bad_requests(np.random.default_rng(46), requests, np.full(requests.shape, 0.003))
    stable = whole.Traffic(10 * per_second, np.array([0.003]), np.ones(1), past)

    def ended(rate: float, code: int, **way: Any) -> float:
        """The minutes after which half of them have ended so, of half an hour."""
        asked = Policy.from_dict(
            {"metrics": [{"name": "errors", **BOTH}], "indifference": 2, "deadline_windows": 180, **way}
        )
        one = whole.releases(asked, stable, np.array([rate]), 180, final=True)
        assert (one.codes == code).mean() >= (0.8 if way == STEPS else 0.95)
        return (one.by(code, 0.5) or 180) / 6

    for good in (0.001, 0.003):
        assert ended(good, PROMOTE, **RAMP) <= minutes
    if per_second < 20:
        assert ended(0.001, PROMOTE, **RAMP) < ended(0.001, PROMOTE, **STEPS)
    assert ended(0.04, ROLL_BACK, **RAMP) <= 10
    assert ended(1.0, ROLL_BACK, **RAMP) <= 0.5


@pytest.mark.parametrize(("sides", "factor"), [((20, 180), 2.2), ((100, 900), 2.2)])
@pytest.mark.parametrize("good", [25, 180, 360])
def test_a_late_change_is_found_nearly_as_soon_as_by_a_judge_that_is_told_the_moment(
    sides: tuple[int, int], factor: float, good: int
) -> None:
    length = good + 60
    rate = np.where(np.arange(length) < good, 0.002, 0.05)
    counts, past = draw(33, sides, rate, 0.002, length=length, releases=200)
    codes, windows = outcomes(judged_by(BOTH, min_requests=NEVER, deadline_windows=length), counts, past)
    assert (codes == ROLL_BACK).all()
    told = Counts(*(side[:, good:] for side in some(counts)))
    _, at_best = outcomes(judged_by(BOTH, min_requests=NEVER, deadline_windows=10**9), told)
    assert (windows - good).mean() <= factor * at_best.mean()


@pytest.mark.parametrize(
    ("sides", "burst", "at_most"), [((20, 180), 1, 0.005), ((20, 180), 3, 0.06), ((7, 13), 1, 0.015)]
)
def test_a_good_canary_is_seldom_undecided_after_half_an_hour(
    sides: tuple[int, int], burst: float, at_most: float
) -> None:
    counts, past = draw(34, sides, 0.003, 0.003, (burst, burst))
    codes, _ = outcomes(judged_by(BOTH, indifference=2), counts, past, final=True)
    assert (codes != PROMOTE).mean() <= at_most


@pytest.mark.parametrize("burst", [1, 3, 10])
@pytest.mark.parametrize("sides", [(20, 180), (70, 130), (100, 900)])
def test_at_twice_the_limit_a_canary_is_seldom_promoted(sides: tuple[int, int], burst: float) -> None:
    """With the evidence against left out: no early roll-back saves it."""
    counts, past = draw(35, sides, 2 * LIMIT, 0.003, (burst, burst))
    codes, _ = outcomes(judged_by(BOTH, indifference=2, false_rollback=1e-300), counts, past, final=True)
    allowed = 0.06 if burst == 10 else 0.05
    assert (codes == PROMOTE).mean() <= allowed


def test_looks_at_a_deadline_that_is_put_off_again_and_again_promote_no_more_than_one() -> None:
    """A person says "Watch longer" five times; with the whole risk at each look, one in fifteen would be promoted."""
    looks, length, releases = 6, 60, 400
    counts, past = draw(39, (20, 180), 2 * LIMIT, 0.003, (3, 3), length=looks * length, releases=releases)
    asked = judged_by(BOTH, indifference=2, false_rollback=1e-300)
    evidence = Evidence(asked, past)
    rules, state = Rules(evidence), evidence.start((releases,))
    promoted, undivided = np.zeros(releases, dtype=bool), np.zeros(releases, dtype=bool)
    for looked in range(looks):
        now = slice(looked * length, (looked + 1) * length)
        path = evidence.extend(state, Counts(*(side[:, now] for side in some(counts))))
        state, end = path.after, path.ending
        by_evidence = (rules.codes(path, evidence.read_path(path)) == PROMOTE).any(axis=1)
        for found, risk in (
            (promoted, replace(asked, looked=looked).deadline_risk),
            (undivided, asked.false_promotion / 2),
        ):
            found |= by_evidence | rules.at_deadline(end, evidence.read_path(end), risk=risk)[:, 0]
    assert promoted.mean() <= 0.04
    assert undivided.mean() > 0.05, "what this test could find"


@pytest.mark.parametrize(("rate", "burst"), [(0.003, 1), (0.003, 3), (0.03, 1), (0.03, 10)])
def test_the_interval_holds_the_truth_at_every_look(rate: float, burst: float) -> None:
    counts, past = draw(36, (20, 180), rate, rate, (burst, burst), length=120, releases=200)
    evidence = Evidence(judged_by(BOTH), past)
    low, high = evidence.interval(evidence.extend(evidence.start((200,)), counts))
    assert ((low > rate) | (high < rate)).any(axis=1).mean() <= 0.05
    assert np.median(high[:, -1]) < 8 * rate


def test_a_canary_of_which_nothing_works_is_taken_back_after_two_windows() -> None:
    counts, past = draw(37, (20, 180), 1.0, 0.003, length=20, releases=50)
    _, windows = outcomes(judged_by(BOTH), counts, past)
    assert (windows == 2).all()


def test_a_slower_median_is_found_though_the_limits_own_edge_hardly_moves() -> None:
    """Durations are log-normal; the canary's median is a quarter longer, the limit lies far out in the tail."""
    edges = (25.0, 50.0, 75.0, 100.0, 250.0, 500.0)
    rng = np.random.default_rng(38)

    def slower(median: float, requests: int) -> Floats:
        durations = median * np.exp(0.5 * rng.standard_normal((100, 180, requests)))
        return np.stack([(durations > edge).sum(axis=-1) for edge in edges], axis=-1).astype(float)

    canary, stable = slower(125, 20), slower(100, 180)
    n, m = np.full((100, 180), 20.0), np.full((100, 180), 180.0)
    found = {}
    for name, given in (("one edge", ()), ("all edges", edges)):
        limits = {"name": "slow", "max_ratio": 1.1, "floor": 0.001, "edges": list(given)}
        policy = Policy.from_dict({"metrics": [limits], "min_requests": NEVER, "deadline_windows": 180})
        sides = (canary, stable) if given else (None, None)
        codes, windows = outcomes(policy, Counts(n, canary[..., -1:], m, stable[..., -1:], *sides))
        found[name] = (codes == ROLL_BACK).mean(), windows.mean()
    assert found["all edges"][0] > 0.95
    assert found["all edges"][1] < 0.5 * found["one edge"][1]
