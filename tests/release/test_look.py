"""One watch, look by look: what it counts, what it leaves out, and when it ends. Time is given, nothing sleeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from model_release.errors import ClusterUnavailable, MetricsRefused, MetricsUnavailable
from model_release.judging import Judge, Policy, Window
from model_release.release.look import BLIND, Stretch, Watch, stable_trouble

from .builders import CANARY, OPENED, SECONDS, at, live, window

DEADLINE = OPENED + timedelta(minutes=30)


class Reader:
    """Gives each window once it has ended, and once; or a trouble. Remembers up to when it was asked."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.left = list(windows)
        self.asked: list[datetime] = []
        self.trouble: Exception | None = None

    def read(self, end: datetime, *, now: datetime) -> list[Window]:
        if self.trouble:
            raise self.trouble
        self.asked.append(end)
        done = [one for one in self.left if datetime.fromisoformat(str(one.end)) <= end]
        self.left = self.left[len(done) :]
        return done


class NoValues:
    """The model file names no value metrics."""

    def measured(self, window: Window) -> Window:
        return window


def watch(windows: Sequence[Window], percent: int | None = 30, **policy: Any) -> tuple[Watch, Reader]:
    reader = Reader(windows)
    said = {"traffic": None if percent is None else percent / 100, "metrics": [{"name": "errors", "max_rate": 0.02}]}
    stretch = Stretch(
        reader=reader,
        values=NoValues(),
        percent=percent,
        policy=Policy.from_dict({**said, **policy}),
        opened=OPENED,
        end=DEADLINE,
        window=timedelta(seconds=SECONDS),
    )
    one = Watch(stretch, Judge(stretch.policy), CANARY)
    return one, reader


def test_each_window_is_one_line_with_counts_evidence_and_what_is_still_needed() -> None:
    one, _ = watch([window(1, bad=1)])
    (line,) = one.look(live(), at(11))
    assert line.startswith("30 % window 1: canary 100 requests, 1 errors, stable 300 requests. Keep watching: 1 of 100")
    assert "Evidence against" in line
    assert "more canary requests" in line


def test_a_window_without_data_says_so_and_is_no_zero() -> None:
    one, _ = watch([window(1, bad=None, requests=None)])
    assert "canary no data, stable 300 requests" in one.look(live(), at(11))[0]


def test_nothing_new_is_no_line_and_no_end() -> None:
    one, _ = watch([window(1)])
    assert one.look(live(), at(5)) == []
    assert not one.over


def test_a_good_canary_is_promoted_with_what_was_counted() -> None:
    one, _ = watch([window(number) for number in range(1, 100)])
    lines: list[str] = []
    for number in range(1, 40):
        lines = one.look(live(), at(SECONDS * number + 1))
        if one.over:
            break
    decided = len(one.windows)
    assert lines[-1].startswith(f"30 % window {decided}: ")
    assert "Promoted" in lines[-1]
    assert one.windows == [replace(window(number), share=0.3) for number in range(1, decided + 1)]
    assert (one.judged, one.final, one.trouble) == ("promote", False, "")
    assert one.reason == one.verdict.reason


def test_windows_after_the_one_that_decided_are_not_judged() -> None:
    one, _ = watch([window(number, bad=60) for number in range(1, 10)])
    lines = one.look(live(), at(91))
    assert one.judged == "rollback"
    assert "Rolled back" in lines[-1]
    assert len(lines) == len(one.windows) < 9
    assert one.look(live(), at(101)) == [], "what is over counts no more"


def test_at_the_deadline_there_are_no_more_windows_and_the_verdict_is_final() -> None:
    one, reader = watch([window(1)])
    one.look(live(), DEADLINE - timedelta(seconds=1))
    assert not one.over
    lines = one.look(live(), DEADLINE + timedelta(seconds=30))
    assert lines[-1].startswith("No more windows: Cannot tell at the deadline")
    assert (one.judged, one.final) == ("inconclusive", True)
    assert reader.asked[-1] == DEADLINE, "windows after the deadline do not count"


def test_a_decision_in_the_last_look_is_a_decision() -> None:
    one, _ = watch([window(number, bad=60) for number in range(1, 10)])
    assert "Rolled back" in one.look(live(), DEADLINE)[-1]
    assert (one.judged, one.final) == ("rollback", False)


@pytest.mark.parametrize("changed", [None, live(50), live(None), live(image="other")])
def test_windows_of_a_canary_that_was_changed_are_not_judged(changed: Any) -> None:
    one, _ = watch([window(number, bad=60) for number in range(1, 10)])
    assert one.look(changed, at(91)) == []
    assert one.windows == []


def test_windows_read_while_the_cluster_was_away_wait_until_it_is_seen_again() -> None:
    one, _ = watch([window(number) for number in range(1, 100)])
    away = ClusterUnavailable("connection refused")
    assert one.blind(away, at(31)) == ["Not judged: connection refused"]
    assert one.blind(away, at(36)) == [], "the same trouble is told once"
    back = one.look(live(), at(41))
    assert [line.split(":")[0] for line in back] == [f"30 % window {number}" for number in range(1, 5)]
    assert one.trouble == ""


@pytest.mark.parametrize("trouble", [MetricsUnavailable("timed out"), MetricsRefused("404")])
def test_prometheus_may_be_away_for_a_while_or_refuse_once(trouble: Exception) -> None:
    """K6: a proxy before it answers 401 or 404 for a moment: that is blindness, and not the end of a good canary."""
    one, reader = watch([window(number) for number in range(1, 100)])
    reader.trouble = trouble
    assert one.look(live(), at(11)) == [f"Not judged: {trouble}"]
    reader.trouble = MetricsUnavailable("refused")
    assert one.look(live(), at(16)) == ["Not judged: refused"]
    reader.trouble = None
    assert len(one.look(live(), at(21))) == 2
    assert not one.over


def test_a_canary_that_nobody_could_watch_for_two_minutes_is_judged_on_what_there_is() -> None:
    one, reader = watch([window(1)])
    one.look(live(), at(11))
    reader.trouble = MetricsUnavailable("timed out")
    began = at(15)
    for moment in (began, began + BLIND - timedelta(seconds=1)):
        one.look(live(), moment)
        assert not one.over
    lines = one.look(live(), began + BLIND)
    assert lines[-1].startswith("No more windows")
    assert (one.windows, one.final, one.trouble) == ([replace(window(1), share=0.3)], True, "timed out")
    assert one.reason.endswith("(timed out)")


def test_blindness_is_counted_from_the_last_good_look() -> None:
    one, _ = watch([])
    away = ClusterUnavailable("refused")
    one.blind(away, at(0))
    one.look(live(), at(100))
    one.blind(away, at(110))
    one.blind(away, at(110) + BLIND - timedelta(seconds=1))
    assert not one.over
    one.blind(away, at(110) + BLIND)
    assert one.over


def test_the_bake_judges_the_promoted_canary_alone() -> None:
    bad = [window(number, bad=90, alone=True) for number in range(2, 30)]
    one, _ = watch([window(1, alone=True), *bad], percent=None)
    (first,) = one.look(live(None), at(11))
    assert first.startswith("promoted window 1: canary 100 requests. ")
    assert "Rolled back" in one.look(live(None), at(300))[-1]
    again, _ = watch([window(1, alone=True)], percent=None)
    assert again.look(live(30), at(11)) == [], "a split came back under the bake"


def test_a_watch_made_anew_comes_to_the_same_verdict() -> None:
    counts = [window(number, bad=number % 3) for number in range(1, 60)]
    patient, _ = watch(counts)
    for number in range(1, 60):
        patient.look(live(), at(SECONDS * number + 1))
    moved, _ = watch(counts)
    moved.look(live(), at(SECONDS * 60))
    assert moved.windows == patient.windows
    assert moved.verdict == patient.verdict


def failing_stable(bad: int, requests: int = 300) -> Any:
    return replace(window(1), stable=replace(window(1).stable, requests=requests, bad={"errors": bad}))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("windows", "metric", "said"),
    [
        ([failing_stable(30)], {}, True),
        ([failing_stable(3)], {}, False),
        ([failing_stable(30, requests=40)], {}, False),
        ([failing_stable(30)], {"observe": True}, False),
        ([failing_stable(30)], {"max_rate": None, "max_ratio": 2.0}, False),
        ([window(1, alone=True)], {}, False),
        ([], {}, False),
    ],
)
def test_a_stable_revision_beyond_the_limit_is_told(windows: Any, metric: dict[str, Any], said: bool) -> None:
    policy = Policy.from_dict(
        {"traffic": 0.3, "metrics": [{"name": "errors", "max_rate": 0.02, **metric}, {"name": "x", "max_rate": 0.5}]}
    )
    trouble = stable_trouble(policy, windows)
    assert trouble.startswith("Stable fails, too: 30 of 300 requests (errors); ") is said
    assert bool(trouble) is said


def test_it_is_told_once_that_the_stable_revision_fails() -> None:
    one, _ = watch([failing_stable(30), replace(window(2), stable=failing_stable(30).stable)])
    lines = [line for seconds in (11, 21) for line in one.look(live(), at(seconds))]
    assert ["Stable fails, too" in line for line in lines] == [True, False]
