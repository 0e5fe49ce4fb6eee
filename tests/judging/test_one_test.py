"""One release is one test: what a share's end, a warm-up, and a person's answer change about the evidence so far."""

from __future__ import annotations

from typing import Any

import pytest

from model_release.judging import Judge, Policy, Verdict, Window, judge
from model_release.judging.record import Record, RecordError

from .builders import policy, window

LIMITS: dict[str, Any] = {"max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005}
STEPS: dict[str, Any] = {**LIMITS, "shares": [0.1, 0.3], "traffic": 0.1, "indifference": 2}


def at(share: float, place: int, bad: int = 0, *, requests: int | None = None) -> Window:
    n = round(200 * share) if requests is None else requests
    return window((n, bad), (200 - n, int(place % 3 == 0)), at=place, share=share)


def whole(p: Policy, windows: list[Window]) -> Verdict:
    return judge(p, windows)


def test_the_warm_up_is_at_each_share() -> None:
    p = policy(**STEPS, warm_up=2)
    cold = [at(0.1, 0, 20), at(0.1, 1, 20), *(at(0.1, i) for i in range(2, 9)), at(0.3, 9, 60), at(0.3, 10, 60)]
    one = Judge(p)
    said = [one.add(each) for each in cold]
    assert said[-1].decision == "continue", "nor is it opened again on what was counted at the share before"
    assert said[-1].windows_used == 11
    assert said[-1].metrics[0].canary == {"requests": 7 * 20, "bad": 0}
    assert whole(p, cold) == said[-1]


def test_at_the_deadline_the_steps_that_are_left_are_not_passed_over() -> None:
    windows = [at(0.1, i) for i in range(40)]
    alone = judge(policy(**{**STEPS, "shares": []}), windows)
    assert alone.decision == "promote"
    ended = judge(policy(**STEPS), windows, final=True)
    assert ended.decision == "inconclusive"
    assert ended.reason.startswith("Cannot tell")
    assert judge(policy(**STEPS), [*windows, *(at(0.3, i) for i in range(40, 60))]).decision == "promote"


def test_what_was_answered_is_evidence_and_decides_nothing() -> None:
    good = [at(0.3, i) for i in range(60)]
    decided = judge(policy(**STEPS), good).windows_used
    later = judge(policy(**STEPS, answered=decided), good[: decided + 1])
    assert (later.decision, later.windows_used) == ("promote", decided + 1)
    twice = judge(policy(**STEPS, answered=decided, least_windows=2 * decided), good)
    assert (twice.decision, twice.windows_used) == ("promote", 2 * decided)
    waiting = judge(policy(**STEPS, least_windows=2 * decided), good[:decided])
    assert waiting.reason.endswith("Nothing is promoted in so few windows.")


def test_what_speaks_against_the_canary_is_not_forgotten_by_an_answer() -> None:
    bad = [at(0.3, i, 3) for i in range(30)]
    p = policy(**STEPS)
    found = judge(p, bad)
    assert found.decision == "rollback"
    before = found.windows_used - 1
    kept = judge(policy(**STEPS, answered=before), bad)
    assert (kept.decision, kept.windows_used) == ("rollback", before + 1)


@pytest.mark.parametrize("guard", [False, True])
def test_what_made_the_figures_doubtful_begins_anew_after_an_answer(guard: bool) -> None:
    silent = [Window.from_dict({"canary": {"requests": None}, "stable": {"requests": None}, "share": 0.3})] * 20
    assert judge(policy(**STEPS), silent).windows_used == 6
    answered = judge(policy(**STEPS, answered=6, guard=guard), silent)
    assert (answered.decision, answered.windows_used) == ("inconclusive", 12)
    split = [at(0.3, i, requests=2) for i in range(200)]
    wrong = judge(policy(**STEPS), split)
    assert "traffic is not what was asked for" in wrong.reason
    again = judge(policy(**STEPS, answered=wrong.windows_used, guard=guard), split)
    assert again.windows_used == 2 * wrong.windows_used


def test_window_by_window_and_at_once_are_the_same_bits() -> None:
    p = policy(**STEPS, warm_up=1, answered=12, least_windows=30)
    windows = [at(0.1, i, int(i == 3)) for i in range(9)] + [at(0.3, i, int(i == 20)) for i in range(9, 40)]
    one = Judge(p)
    for each in windows:
        one.add(each)
    assert one.verdict() == judge(p, windows)


def test_a_record_that_lost_what_was_carried_says_so() -> None:
    record = Record.new("r", model="m", service="models/m", version=None, started="2026-03-01T02:00:00+00:00")
    p = policy(**STEPS)
    record.record_step(
        30,
        "2026-03-01T02:01:00+00:00",
        window_seconds=10,
        policy=p,
        windows=[at(0.3, 9)],
        final=False,
        verdict=judge(p, [at(0.1, 0), at(0.3, 9)]),
        carried=[("2026-03-01T02:00:00+00:00", 1)],
    )
    with pytest.raises(RecordError, match="1 windows of the step of 2026-03-01T02:00:00"):
        record.replay()
