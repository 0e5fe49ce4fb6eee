"""One release is one test: the evidence of a canary's stretches, carried from share to share, from hand to hand, over a
person's word, and into the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from model_release import metrics
from model_release.cluster import rollout
from model_release.cluster.change import Canary
from model_release.cluster.release import Watched
from model_release.errors import MetricsUnavailable
from model_release.judging import Past, Window, judge
from model_release.judging.record import Record
from model_release.release.look import Watch
from model_release.spec import Metric, ModelSpec
from model_release.tasks import connections, driving
from model_release.tasks.canary import Bake

from .sensed import CANARY, OPENED

STEP = timedelta(seconds=3)


def after(windows: float) -> str:
    """A moment, so many windows after the opening."""
    return (OPENED + windows * STEP).isoformat(timespec="milliseconds")


class Traffic:
    """Stands in for Prometheus: what is counted depends on the moment alone. `away`: it does not answer."""

    def __init__(self) -> None:
        self.away = False
        self.requests = 20
        self.read: list[str] = []
        self.bad_from = OPENED + timedelta(days=1)
        self.total = 0
        self.shares: list[tuple[datetime, float]] = []

    def asked(self, moment: datetime) -> tuple[int, int]:
        """The requests of a window on the canary and on stable, by the share that it had then."""
        if not self.total:
            return self.requests, 34
        share = max((at, share) for at, share in self.shares if at <= moment)[1]
        return round(self.total * share), self.total - round(self.total * share)

    def reader(self, *_: Any, start: datetime, window: timedelta, **__: Any) -> Any:
        return Reader(self, start, window)


class Reader:
    def __init__(self, traffic: Traffic, start: datetime, window: timedelta) -> None:
        self._traffic, self._at, self._window = traffic, start, window

    def read(self, end: datetime, *, now: datetime) -> list[Window]:
        if self._traffic.away:
            raise MetricsUnavailable("timed out")
        found = []
        while self._at + self._window <= end:
            self._traffic.read.append(self._at.isoformat(timespec="milliseconds"))
            number = round(self._at.timestamp() / self._window.total_seconds())
            bad = 15 if self._at >= self._traffic.bad_from else int(number % 40 == 0)
            requests, beside = self._traffic.asked(self._at)
            sides = {
                "canary": {"requests": requests, "bad": {"errors": min(bad, requests)}},
                "stable": {"requests": beside, "bad": {"errors": int(number % 30 == 0)}},
            }
            ends = {"start": self._at.isoformat(), "end": (self._at + self._window).isoformat()}
            found.append(Window.from_dict({**ends, **sides}))
            self._at += self._window
        return found


class Values:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def measured(self, window: Window) -> Window:
        return window


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    one = Traffic()
    monkeypatch.setattr(metrics, "WindowReader", one.reader)
    monkeypatch.setattr(metrics, "ValueReader", Values)
    monkeypatch.setattr(connections, "prometheus", lambda: None)
    monkeypatch.setattr(rollout, "check_untouched", lambda *_: None)
    return one


def watches(spec: ModelSpec) -> driving.Watches:
    return driving.Watches(spec, Canary.from_dict(CANARY), Past((), None))


def looked(watch: Watch, until: float) -> Watch:
    """The watch, after a look at each window and a last one `until` windows after the opening."""
    begun = (watch.stretch.opened - OPENED) / STEP
    for number in range(round(until - begun) + 1):
        watch.look(None, OPENED + (begun + number) * STEP)
    return watch


def recorded(spec: ModelSpec, done: Sequence[Watch]) -> Record:
    class Done:
        watches = dict(enumerate(done))  # noqa: RUF012
        moved: list[Any] = []  # noqa: RUF012

    record = Record.new("r", model="digits", service="models/digits", version=None, started=OPENED.isoformat())
    driving.put(record, spec, driving.counted(Done()))
    return Record.from_json(record.to_json())


# Open at 25 % for four windows of which the judge had seen three, then at 50 %.
FIRST = Watched(25, OPENED.isoformat(), after(4.2), windows=3)
SECOND = Watched(50, after(5))


def test_a_step_goes_on_with_the_evidence_of_the_one_before(spec: ModelSpec, traffic: Traffic) -> None:
    made = watches(spec)
    first = looked(made([replace(FIRST, until=None, windows=None)]), 3)
    assert (len(first.windows), {window.share for window in first.windows}) == (3, {0.25})
    second = looked(made([FIRST, SECOND]), 8)
    assert [window.share for window in second.windows] == [0.5] * 3
    assert second.verdict == judge(second.judge.policy, [*first.windows, *second.windows], Past((), None))
    assert second.verdict.windows_used == 6
    assert second.verdict.metrics[0].canary["requests"] == 6 * 20


def test_a_hand_made_anew_comes_to_the_same_bits(spec: ModelSpec, traffic: Traffic) -> None:
    made = watches(spec)
    looked(made([replace(FIRST, until=None, windows=None)]), 4)  # it read one more than the lease says were judged
    one = looked(made([FIRST, SECOND]), 9)
    again = watches(spec)([FIRST, SECOND])
    again.look(None, OPENED + 9 * STEP)
    assert again.verdict == one.verdict
    assert again.verdict.to_dict() == one.verdict.to_dict()
    assert len(again.windows) == 4


def test_nothing_is_judged_before_what_was_counted_is_read_again(spec: ModelSpec, traffic: Traffic) -> None:
    traffic.away = True
    again = watches(spec)([FIRST, SECOND])
    assert again.look(None, OPENED + 9 * STEP) == ["Not judged: timed out"]
    assert (again.judged, again.verdict.windows_used) == ("continue", 0)
    traffic.away = False
    again.look(None, OPENED + 9 * STEP)
    assert again.verdict.windows_used == 7


def test_what_was_counted_in_a_stretch_is_read_once_by_each_hand(spec: ModelSpec, traffic: Traffic) -> None:
    made = watches(spec)
    looked(made([replace(FIRST, until=None, windows=None)]), 3)
    looked(made([FIRST, SECOND]), 8)
    assert traffic.read == [after(number) for number in (0, 1, 2, 5, 6, 7)]


def test_the_shares_are_opened_by_the_judge_and_said_in_percent(spec: ModelSpec, traffic: Traffic) -> None:
    one = watches(spec)([replace(FIRST, until=None, windows=None)])
    for number in range(1, 200):
        one.look(None, OPENED + number * STEP)
        if one.judged != "continue":
            break
    assert (one.judged, one.share, one.over) == ("open", 50, False)
    made = watches(spec)
    wider = made([replace(FIRST, until=after(number), windows=number), Watched(50, after(number + 1))])
    wider.look(None, OPENED + (number + 1) * STEP)
    assert wider.verdict.decision == "open", "on what was counted before, it would open once more"
    assert wider.judged == "continue", "which was done already"


def test_one_deadline_is_for_the_whole_canary_and_a_persons_word_begins_another(spec: ModelSpec) -> None:
    deadline = spec.rollout.deadline
    asked = Watched(50, after(20), after(90), beside_question=True, again=1)
    later = Watched(50, after(90), again=1)
    some = ([FIRST], [FIRST, SECOND], [FIRST, asked], [FIRST, asked, later])
    ends = [driving._end(spec, stretches) for stretches in some]
    assert ends[0] == ends[1] == (OPENED + deadline, deadline)
    assert ends[2] == (OPENED + 20 * STEP + spec.answer_within, None)
    assert ends[3] == (OPENED + 90 * STEP + deadline, deadline)


def test_the_deadline_is_extended_once_where_as_much_time_again_would_decide(spec: ModelSpec, traffic: Traffic) -> None:
    """And never for a canary that would not be decided by then, as one without requests."""
    windows = 8
    short = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"deadline": windows * STEP})})
    begun = Watched(50, OPENED.isoformat())
    one = looked(watches(short)([begun]), windows)
    assert (one.extended, one.final, one.judged) == (True, False, "continue")
    assert one.stretch.end == OPENED + 2 * windows * STEP
    again = watches(short)([replace(begun, extended=True)])
    for each in (one, again):
        each.look(None, OPENED + 2 * windows * STEP)
    assert one.verdict == again.verdict
    assert again.over
    traffic.requests = 0
    quiet = watches(short)([begun])
    quiet.look(None, OPENED + windows * STEP)
    assert (quiet.extended, quiet.judged) == (False, "inconclusive")


def test_all_looks_at_a_deadline_that_is_put_off_have_the_risk_of_one(spec: ModelSpec, traffic: Traffic) -> None:
    """However often the judge extends it and a person says "Watch longer"."""
    half, spent, stretches = spec.judge.false_promotion / 2, 0.0, []
    for number in range(12):
        begun = Watched(50, after(20 * number), again=number)
        for one in (begun, replace(begun, extended=True)):
            risk = watches(spec)([*stretches, one]).judge.policy.deadline_risk
            assert 0 < risk < half - spent
            spent += risk
        question = Watched(50, after(20 * number + 15), after(20 * number + 20), beside_question=True, again=number + 1)
        stretches += [replace(begun, until=after(20 * number + 15), windows=10, extended=True), question]
    assert spent == pytest.approx(half), "and the first few leave nothing unused"


def test_the_look_at_the_deadline_comes_before_an_extension_and_the_next_one_has_less_risk(
    spec: ModelSpec, traffic: Traffic
) -> None:
    def short(windows: int) -> ModelSpec:
        return spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"deadline": windows * STEP})})

    begun = Watched(50, OPENED.isoformat())
    ends = {windows: looked(watches(short(windows))([begun]), windows) for windows in range(6, 12)}
    extended = [windows for windows, one in ends.items() if one.extended]
    shown = [windows for windows, one in ends.items() if one.judged == "promote"]
    assert extended
    assert shown, "the look decides some of them before the evidence does, and not the others"
    assert max(extended) < min(shown)
    one = ends[shown[0]]
    assert one.reason.endswith("By the look at the deadline, wrong in at most 2.3 %."), one.reason
    assert (one.extended, one.stretch.policy.looked) == (False, 0)
    put_off = ends[extended[-1]]
    assert (put_off.judge.policy.looked, put_off.stretch.policy.looked) == (1, 1)
    assert put_off.judge.policy.deadline_risk < one.judge.policy.deadline_risk
    end = looked(put_off, 2 * extended[-1])
    again = watches(short(extended[-1]))([replace(begun, extended=True)])
    again.look(None, OPENED + 2 * extended[-1] * STEP)
    assert again.verdict == end.verdict
    assert recorded(short(extended[-1]), [end]).differences() == []


def test_what_was_promoted_with_less_confidence_is_baked_twice_as_long(spec: ModelSpec) -> None:
    bakes = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"bake": 20 * STEP})})
    bake = Watched(None, after(90))
    assert driving._end(bakes, [SECOND, bake]) == (OPENED + 110 * STEP, None)
    assert driving._end(bakes, [replace(SECOND, confidence=0.9), bake]) == (OPENED + 130 * STEP, None)


def test_what_a_person_was_asked_decides_no_more_and_is_evidence_still(spec: ModelSpec, traffic: Traffic) -> None:
    made = watches(spec)
    over = Watched(50, OPENED.isoformat())
    first = made([over])
    for number in range(1, 400):
        first.look(None, OPENED + number * STEP)
        if first.over:
            break
    assert first.judged == "promote"
    over = replace(over, until=after(number), windows=number)
    question = Watched(50, after(number), beside_question=True, again=1)
    beside = looked(made([over, question]), number + 10)
    assert beside.judged == "continue"
    assert beside.verdict.windows_used == number + 10
    question = replace(question, until=after(number + 10))
    longer = made([over, question, Watched(50, after(number + 10), again=1)])
    for more in range(1, 3 * number):
        longer.look(None, OPENED + (number + 10 + more) * STEP)
        if longer.over:
            break
    assert (longer.judged, more) == ("promote", number), "as long again as it was watched before"
    traffic.bad_from = OPENED + (number + 12) * STEP
    bad = made([over, question, Watched(50, after(number + 11), again=1)])
    looked(bad, number + 40)
    assert bad.judged == "rollback"
    assert len(bad.windows) < number


def test_the_record_replays_to_the_same_and_says_what_was_carried(spec: ModelSpec, traffic: Traffic) -> None:
    made = watches(spec)
    first = looked(made([replace(FIRST, until=None, windows=None)]), 3)
    second = looked(made([FIRST, SECOND]), 8)
    record = recorded(spec, [first, second])
    assert [(step["percent"], len(step["windows"])) for step in record.steps] == [(25, 3), (50, 3)]
    assert record.steps[1]["carried"] == [[OPENED.isoformat(timespec="milliseconds"), 3]]
    assert record.steps[1]["verdict"] == second.verdict.to_dict()
    assert record.differences() == []
    assert [look.verdict.windows_used for look in record.replay()] == [1, 2, 3, 4, 5, 6]


def test_a_hand_made_anew_records_also_what_the_first_one_could_not(spec: ModelSpec, traffic: Traffic) -> None:
    again = looked(watches(spec)([FIRST, SECOND]), 8)
    record = recorded(spec, [again])
    assert [(step["percent"], len(step["windows"])) for step in record.steps] == [(25, 3), (50, 3)]
    assert record.differences() == []


def test_a_bake_waits_for_what_is_known_late(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader is told since when, and nothing ends it before; where the file says how long, that is said with it."""
    counts = "sum(increase(labels_total{revision='$revision'}[$window]))"
    late = Metric(name="wrong", bad=counts, total=counts, delay=timedelta(hours=6), max_rate=0.1)
    judged = spec.judge.model_copy(update={"metrics": (*spec.judge.metrics, late)})
    unsaid = spec.rollout.model_copy(update={"bake": None})
    one = spec.model_copy(update={"judge": judged, "rollout": unsaid})
    begun = Watched(None, OPENED.isoformat())
    assert driving._end(one, [begun]) == (OPENED + timedelta(hours=6, minutes=10), None)
    longest = Bake(task_id="bake", spec=one)._longest(one)
    assert longest > timedelta(hours=12, minutes=20), "twice that, where less was shown"
    asked: dict[str, Any] = {}
    monkeypatch.setattr(metrics, "WindowReader", lambda *_, **__: None)
    monkeypatch.setattr(metrics, "ValueReader", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(connections, "prometheus", lambda: None)
    watches(one)([begun])
    assert (asked["since"], late in asked["shares"]) == (OPENED, True)
    watches(one)([Watched(25, OPENED.isoformat())])
    assert late not in asked["shares"], "while the canary is open it says nothing"


def test_the_bake_is_a_test_of_its_own(spec: ModelSpec, traffic: Traffic) -> None:
    bake = looked(watches(spec)([FIRST, SECOND, Watched(None, after(20))]), 23)
    assert (bake.verdict.windows_used, bake.windows[0].share, bake.before) == (3, None, [])


def test_the_bake_reads_only_what_can_be_judged_without_stable(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of a metric that the bake's policy does not know would end the watch: limits beside stable, and labels."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(metrics, "WindowReader", lambda _, judge, **__: asked.update(windows=judge.metrics))
    monkeypatch.setattr(metrics, "ValueReader", lambda *_, shares, **__: asked.update(shares=shares))
    monkeypatch.setattr(connections, "prometheus", lambda: None)
    both = [
        {"name": "errors", "max_rate": 0.02},
        {"name": "slow", "above": "1s", "max_ratio": 1.5, "floor": 0.01},
        {"name": "predictions", "max_shift": 0.1},
    ]
    judged = spec.judge.model_copy(update={"metrics": tuple(Metric.model_validate(one) for one in both)})
    one = spec.model_copy(update={"judge": judged})
    for percent, names in ((25, ["errors", "slow", "predictions"]), (None, ["errors"])):
        watches(one)([Watched(percent, OPENED.isoformat())])
        assert [metric.name for metric in asked["windows"]] == names
        assert [metric.name for metric in asked["shares"]] == names
