"""Stable's past on its way: from Prometheus to the judge of each watch, and to the record."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from model_release import metrics
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.release import Release, Watched
from model_release.errors import MetricsRefused
from model_release.judging import Past, Window, judge
from model_release.judging.record import Record
from model_release.metrics import Before
from model_release.release.look import Watch
from model_release.spec import ModelSpec
from model_release.tasks import connections, driving
from model_release.tasks.ask import BACK, LONGER, PROMOTE
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import CanaryTrigger

from .cluster import Kube, ending, moment
from .sensed import CANARY, OPEN, OPENED, World, answer, deferred, event, sensor, window, world
from .test_canary_trigger import Drive

__all__ = ["world"]

STARTED = "2026-02-01T00:00:00Z"
RELEASE = replace(OPEN, baseline=Baseline("1", "digits-00001", started=STARTED))
BURSTS = [{"requests": 300, "bad": {"errors": 8 * (number % 40 == 0)}} for number in range(640)]
PAST = Past.from_dict({"revision": "digits-00001", "windows": BURSTS})
WATCHED = Watched(50, OPENED.isoformat())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Prometheus was asked for; it gives `PAST`."""
    asked: list[dict[str, Any]] = []

    def read_before(prometheus: Any, judged: Any, **given: Any) -> Before:
        asked.append(given)
        return Before(PAST, 30.0, 640)

    monkeypatch.setattr(metrics, "read_before", read_before)
    monkeypatch.setattr(connections, "prometheus", object)
    return asked


class TestWhatIsRead:
    def test_the_same_revision_until_the_claim_in_the_judges_windows(self, spec: ModelSpec, reads: Any) -> None:
        found, said = driving.past(spec, RELEASE, OPENED)
        assert found == PAST
        assert said == "stable before this release: 0.0667 % errors, bursts of 4.4, from 640 windows"
        assert reads == [
            {
                "namespace": "models",
                "revision": "digits-00001",
                "since": datetime(2026, 2, 1, tzinfo=UTC),
                "before": OPENED,
                "window": spec.rollout.window,
            }
        ]

    def test_a_part_says_why_it_is_no_more(self, spec: ModelSpec, reads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        part = Past(PAST.windows[-1:], "digits-00001")
        monkeypatch.setattr(metrics, "read_before", lambda *_, **__: Before(part, 30.0, 1, "too slow"))
        found, said = driving.past(spec, RELEASE, OPENED)
        assert (found, said) == (
            part,
            "stable before this release: 0 % errors, bursts of 1, from 1 window (not further: too slow)",
        )

    @pytest.mark.parametrize(
        ("release", "said"),
        [
            (replace(RELEASE, baseline=Baseline()), "no past: nothing was stable before this release"),
            (OPEN, "no past: since when digits-00001 has meant what it means now is not known"),
            (
                replace(RELEASE, baseline=Baseline("1", "digits-predictor", started=STARTED)),
                "no past: since when digits-predictor has meant what it means now is not known",
            ),
        ],
        ids=["a first deployment", "the name may be another's", "a predictor without a version's name"],
    )
    def test_what_is_not_surely_the_same_revision_is_no_past(
        self, spec: ModelSpec, reads: Any, release: Release, said: str
    ) -> None:
        found, told = driving.past(spec, release, OPENED)
        assert (found.windows, told, reads) == ((), said, [])

    @pytest.mark.parametrize("why", ["", "cannot be reached"])
    def test_nothing_is_a_sentence(
        self, spec: ModelSpec, reads: Any, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        monkeypatch.setattr(metrics, "read_before", lambda *_, **__: Before(Past((), "digits-00001"), None, 0, why))
        found, said = driving.past(spec, RELEASE, OPENED)
        assert found == Past((), "digits-00001")
        assert said == f"no past: {why or 'digits-00001 had no request that Prometheus knows of'}"

    def test_a_connection_that_says_what_cannot_be_ends_no_release(
        self, spec: ModelSpec, reads: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused() -> Any:
            raise MetricsRefused("extra 'tokn' is unknown")

        monkeypatch.setattr(connections, "prometheus", refused)
        assert driving.past(spec, RELEASE, OPENED)[1] == "no past: extra 'tokn' is unknown"

    def test_a_connection_that_is_not_there_is_told_and_ends_no_release(self, spec: ModelSpec) -> None:
        assert driving.past(spec, RELEASE, OPENED)[1] == (
            "no past: there is no connection prometheus; one of type http with the server's address is right"
        )


def windows(how_many: int) -> list[Window]:
    return [Window.from_dict(window(number, bad=0)) for number in range(how_many)]


def watched(spec: ModelSpec, before: Past | None, how_many: int) -> Watch:
    """A watch made anew, which has taken the windows in."""
    one = driving.Watches(spec, Canary.from_dict(CANARY), before)([WATCHED])
    for each in windows(how_many):
        one.windows.append(each)
        one.judge.add(each)
    return one


def test_the_judge_of_a_watch_is_told_the_past_and_a_new_hand_comes_to_the_same(
    spec: ModelSpec, reads: Any, world: World, context: Any
) -> None:
    world.claim = RELEASE
    given = deferred(sensor(spec).execute, context).trigger.serialize()[1]
    one, again = (watched(spec, Past.from_dict(json.loads(given["past"])), 3) for _ in range(2))
    assert one.judge.past == PAST
    assert one.verdict == again.verdict == judge(one.judge.policy, windows(3), PAST)
    assert one.verdict != watched(spec, None, 3).verdict, "the past is part of the evidence"
    assert deferred(sensor(spec).execute, context).trigger.given["past"] == given["past"]
    assert [asked["before"] for asked in reads] == [OPENED, OPENED]


async def test_the_trigger_gives_it_to_its_drive(
    spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Past | None] = []

    def drive(*given: Any) -> Drive:
        told.append(given[-1])
        return Drive([[]])

    monkeypatch.setattr(driving, "drive", drive)
    given: dict[str, Any] = {
        "spec": spec.model_dump_json(),
        "canary": CANARY,
        "run": asdict(Run.of(context, spec)),
        "deadline": moment(60),
    }
    await ending(CanaryTrigger(**given, past=json.dumps(PAST.to_dict())))
    await ending(CanaryTrigger(**given))
    assert told == [PAST, None]


def counted(spec: ModelSpec, before: Past | None, how_many: int) -> dict[str, Any]:
    """What a drive with that one watch hands over."""

    class Done:
        watches = {(50, WATCHED.opened_at): watched(spec, before, how_many)}  # noqa: RUF012
        moved: list[Any] = []  # noqa: RUF012

    return driving.counted(Done())


def new() -> Record:
    return Record.new("r", model="digits", service="models/digits", version=None, started=OPENED.isoformat())


@pytest.mark.parametrize("before", [PAST, Past((), "digits-00001"), None], ids=["a past", "no past", "never read"])
def test_the_replay_of_the_record_gives_the_same(spec: ModelSpec, reads: Any, before: Past | None) -> None:
    found, record = counted(spec, before, 3), new()
    for _ in range(2):
        driving.put(record, spec, found)
    again = Record.from_json(record.to_json())
    assert again.past == (None if before is None else before.to_dict())
    assert again.steps[0]["verdict"] == watched(spec, before, 3).verdict.to_dict()
    assert again.differences() == []


def test_steps_that_were_judged_by_another_past_are_replayed_by_that(spec: ModelSpec, reads: Any) -> None:
    """The run was cleared, and another revision is stable now."""
    record, other = new(), Past.from_dict({"revision": "digits-00003", "windows": BURSTS[:50]})
    driving.put(record, spec, counted(spec, None, 2))
    first = counted(spec, PAST, 3)
    driving.put(record, spec, {**first, "steps": [{**first["steps"][0], "percent": 25}]})
    driving.put(record, spec, {**counted(spec, other, 4)})
    assert record.past == other.to_dict()
    assert [step["percent"] for step in record.steps] == [50, 25]
    assert [record.past_of(step) for step in record.steps] == [other, PAST]
    assert Record.from_json(record.to_json()).differences() == []


def test_whoever_is_asked_the_evidence_beside_the_question_has_the_same_past(
    spec: ModelSpec, reads: Any, world: World, context: Any
) -> None:
    world.claim = RELEASE
    other = Past(PAST.windows[:9], "digits-00001")
    said = event(spec, "ask") | {"past": other.to_dict()}
    trigger = deferred(sensor(spec, "before_promote").ended, context, said).trigger
    assert (json.loads(trigger.given["past"]), reads) == (other.to_dict(), [])


@pytest.mark.parametrize(("chosen", "asks"), [(PROMOTE, 1), (BACK, 0)])
def test_who_wants_the_canary_closed_waits_for_no_past(
    spec: ModelSpec, reads: Any, world: World, context: Any, chosen: str, asks: int
) -> None:
    world.claim = RELEASE
    asking = event(spec, "ask") | {"past": PAST.to_dict()}
    deferred(sensor(spec, "before_promote").ended, context, asking)
    sensor(spec, "before_promote").answered(context, answer(chosen, "because"))
    assert len(reads) == asks


@pytest.mark.parametrize("chosen", [PROMOTE, LONGER, BACK])
def test_an_answer_brings_the_past_along_and_nobody_reads_it_while_nobody_looks(
    spec: ModelSpec, reads: Any, world: World, context: Any, chosen: str
) -> None:
    world.claim = RELEASE
    one = sensor(spec, "before_promote")
    deferred(one.ended, context, event(spec, "ask") | {"past": PAST.to_dict()})
    said = answer(chosen, "because") | {"past": PAST.to_dict()}
    if chosen == LONGER:
        assert json.loads(deferred(one.answered, context, said).trigger.given["past"]) == PAST.to_dict()
    else:
        one.answered(context, said)
    assert reads == []


def test_the_claim_is_one_moment_however_often_the_lease_is_renewed(
    kube: Kube, spec: ModelSpec, context: dict[str, Any]
) -> None:
    released = ReleasedService(spec, Run.of(context, spec))
    kube.leases.acquire("models", "digits", released.owner, "r")
    first = released.claimed()
    kube.leases.renew("models", "digits", released.owner, "triggerer")
    released.note(canary="digits-00002")
    assert kube.leases.acquire("models", "digits", released.owner, "r")
    assert released.claimed() == first
    assert first.tzinfo is not None
