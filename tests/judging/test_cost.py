"""What a judgement costs, counted: a clock on a busy machine says nothing. benchmarks/judge.py has the times."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable

from model_release.judging import Judge, Policy, Window, judge

POLICY = Policy.from_dict(
    {
        "metrics": [{"name": n, "max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005} for n in "abc"],
        "traffic": 0.1,
        "min_requests": 10**9,
    }
)
WINDOWS = [
    Window.from_dict(
        {
            "canary": {"requests": 20, "bad": dict.fromkeys("abc", 0)},
            "stable": {"requests": 180, "bad": dict.fromkeys("abc", i % 3)},
        }
    )
    for i in range(360)
]


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_many_windows_are_judged_at_once() -> None:
    """One by one, each of them would be some 500 calls."""
    judge(POLICY, WINDOWS[:2])  # what is worked out once for all
    assert 0 < calls(lambda: judge(POLICY, WINDOWS)) < 40 * len(WINDOWS)


def test_a_new_window_costs_the_same_at_any_age() -> None:
    def cost(age: int) -> tuple[int, int]:
        """Calls for 20 more windows, and the size of all that is kept meanwhile."""
        one = Judge(POLICY)
        one.extend(WINDOWS * age)
        return calls(lambda: [one.add(window) for window in WINDOWS[:20]]), len(pickle.dumps(one))

    cost(1)  # what is worked out once for all
    (calls_later, size_later), (calls_early, size_early) = cost(20), cost(2)
    assert calls_later == calls_early
    assert abs(size_later - size_early) < 16  # a longer number
