"""What a release will need, by what Prometheus knows of stable: from its past to the sentences and the refusal."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.tasks.conftest import SPEC

from model_release import metrics
from model_release.errors import MetricsRefused
from model_release.judging import Past
from model_release.metrics import Before
from model_release.release.plan import Foreseen, as_chosen, foresee
from model_release.spec import ModelSpec

STARTED = "2026-02-01T00:00:00Z"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
PROMETHEUS: Any = object()
LABELS = 'sum(increase(labels_total{revision="$revision"}[$window]))'


def spec(**more: Any) -> ModelSpec:
    return ModelSpec.model_validate({**SPEC, **more})


def counted(per_window: int, *, windows: int = 720, every: int = 20, bad: int = 1) -> Past:
    """`bad` of a window's requests in one of `every` windows."""
    sides = [{"requests": per_window, "bad": {"errors": bad * (i % every == 0)}} for i in range(windows)]
    return Past.from_dict({"revision": "r1", "windows": sides})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what Prometheus has counted; and keeps what it was asked."""
    asked: list[dict[str, Any]] = []

    def say(found: Before | Exception) -> list[dict[str, Any]]:
        def read_before(prometheus: Any, judge: Any, **given: Any) -> Before:
            asked.append(given)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(metrics, "read_before", read_before)
        return asked

    return say


def seen(one: ModelSpec, started: str | None = STARTED, **more: Any) -> Foreseen:
    return foresee(one, PROMETHEUS, "r1", started, now=NOW, **more)


def test_it_is_of_stables_own_past_and_traffic(known: Any) -> None:
    asked = known(Before(counted(36), 12.0, 720))
    found = seen(spec())
    assert found.sentences[0] == "stable: 0.139 % errors, bursts of 1, from 720 windows"
    assert found.sentences[1].startswith("At 12 requests a second and 25 and 50 % of them a good canary needs about ")
    assert found.known
    assert (found.trouble, found.refusal) == ("", "")
    assert asked[0]["revision"] == "r1"
    assert (asked[0]["since"], asked[0]["before"]) == (datetime(2026, 2, 1, tzinfo=UTC), NOW)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["sentences"] == list(found.sentences)


def test_a_deadline_that_the_file_does_not_give_is_the_plans(known: Any) -> None:
    unsaid = spec(rollout={key: said for key, said in SPEC["rollout"].items() if key != "deadline"})  # type: ignore[attr-defined]
    known(Before(counted(36), 12.0, 720))
    found = seen(unsaid)
    assert found.plan.deadline_minutes == 10
    assert as_chosen(unsaid, found.plan.deadline_minutes).rollout.longest == timedelta(minutes=10)
    known(Before(counted(2, bad=0), 0.7, 720))
    later = seen(unsaid)
    assert later.plan.deadline_minutes > 10
    assert later.refusal == "", "it is long enough, whatever the traffic"
    known(Before(counted(36, windows=3), 12.0, 3))
    assert seen(unsaid).plan.deadline_minutes == 30, "three windows tell too little"
    assert unsaid.rollout.longest == timedelta(minutes=30)


def test_a_bake_that_the_file_does_not_give_is_the_plans(known: Any) -> None:
    unsaid = spec(rollout={key: said for key, said in SPEC["rollout"].items() if key != "bake"})  # type: ignore[attr-defined]
    known(Before(counted(36), 12.0, 720))
    busy = seen(unsaid)
    assert busy.bake is not None
    assert busy.bake.minutes == busy.to_dict()["bake_minutes"] == 5
    assert busy.sentences[-1] == busy.bake.sentence
    assert as_chosen(unsaid, 30, busy.bake.minutes).rollout.baked == timedelta(minutes=5)
    late = {"name": "wrong", "max_rate": 0.1, "delay": "6h", **dict.fromkeys(("bad", "total"), LABELS)}
    waits = unsaid.model_validate(
        {**unsaid.model_dump(mode="json"), "judge": {**SPEC["judge"], "metrics": [*SPEC["judge"]["metrics"], late]}}
    )
    longer = seen(waits)
    assert longer.bake is not None
    assert longer.bake.minutes == longer.to_dict()["bake_minutes"] >= 365, "from where what is late begins to be known"
    assert as_chosen(waits, 30, longer.bake.minutes).baked == timedelta(minutes=longer.bake.minutes)
    known(Before(counted(36, windows=3), 12.0, 3))
    hardly = seen(unsaid)
    assert hardly.bake is not None
    assert hardly.bake.minutes == 10 == unsaid.rollout.baked.total_seconds() / 60, "three windows tell too little"
    given = seen(spec(rollout={**SPEC["rollout"], "bake": "2m"}))
    assert given.bake is not None
    assert given.bake.minutes == 2
    assert as_chosen(spec(), 30, 7).rollout == spec().rollout, "what the file gives stands"
    beside = {"metrics": [{"name": "errors", "max_ratio": 1.5, "floor": 0.02}]}
    alone = spec(rollout=unsaid.rollout.model_dump(mode="json"), judge={**SPEC["judge"], **beside})
    found = seen(alone)
    assert (found.bake, found.to_dict()["bake_minutes"]) == (None, 0), "nothing stands beside what is promoted"
    assert as_chosen(alone, 30, 7).rollout.bake is None


def test_what_cannot_end_in_time_is_refused_and_a_person_asked_is_a_way_to_go_on(known: Any) -> None:
    known(Before(counted(1, bad=0), 0.2, 720))
    found = seen(spec())
    assert "\n" not in found.refusal
    for words in (
        "would be promoted by the deadline of 5 min",
        "with a limit of ",
        "with a deadline of ",
        "or approval: on_inconclusive, and a person decides at the deadline",
        "or rollout.if_too_slow: go",
    ):
        assert words in found.refusal
    asking = seen(spec(approval="on_inconclusive"))
    assert (asking.refusal, asking.trouble) == ("", found.trouble)
    assert seen(spec(approval="before_promote")).refusal, "that person is asked when the judge is sure"
    going = seen(spec(rollout={**SPEC["rollout"], "if_too_slow": "go"}))
    assert (going.refusal, going.trouble) == ("", found.trouble)
    assert going.goes == "it is tried all the same, by rollout.if_too_slow: go"
    patient = spec(rollout={**SPEC["rollout"], "deadline": "6h"})
    assert seen(patient).trouble == ""


@pytest.mark.parametrize(
    ("found", "started", "why"),
    [
        (Before(Past(), None, 0), STARTED, "r1 had no request that Prometheus knows of"),
        (Before(Past(), 0.0, 720), STARTED, "r1 had no request that Prometheus knows of"),
        (Before(Past(), None, 0, "too slow"), STARTED, "too slow"),
        (MetricsRefused("extra 'tokn' is unknown"), STARTED, "extra 'tokn' is unknown"),
        (Before(counted(1, bad=0), 0.2, 720), None, "since when r1 has meant what it means now is not known"),
    ],
    ids=["nothing", "nobody asks it", "too slow", "a connection that cannot be", "another's name"],
)
def test_where_nothing_is_known_it_is_said_what_was_assumed_and_nothing_is_refused(
    known: Any, found: Any, started: str | None, why: str
) -> None:
    known(found)
    one = seen(spec(), started)
    assert one.past.startswith(f"no past: {why}; assumed are ")
    assert one.past.endswith("bad requests one by one, at a fifth of each limit")
    assert (one.known, one.refusal) == (False, "")


def test_a_first_deployment_has_no_past_and_prometheus_is_not_asked(known: Any) -> None:
    asked = known(MetricsRefused("must not be asked"))
    one = foresee(spec(), PROMETHEUS, None, None)
    assert one.past.startswith("no past: nothing is stable yet; assumed are 10 requests a second and bad requests one ")
    assert (asked, one.known) == ([], False)


@pytest.mark.parametrize(
    "found", [Before(counted(3, bad=0, windows=59), 0.2, 59), Before(counted(1, bad=0, windows=99), 0.2, 720)]
)
def test_a_service_that_is_hardly_known_is_refused_nothing(known: Any, found: Before) -> None:
    known(found)
    one = seen(spec())
    assert not one.plan.possible
    assert one.refusal == ""
    assert one.sentences[0].startswith("stable: ")


def test_traffic_may_be_said_instead(known: Any) -> None:
    known(Before(counted(1, bad=0), 0.2, 720))
    assert seen(spec()).refusal
    assert seen(spec(), per_second=50).refusal == ""
    assert "At 50 requests a second" in seen(spec(), per_second=50).sentences[1]
