"""A person's orders over the judge's head, on a service in Standard mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.patience import LIMIT

from model_release.cluster.manifest import predictor_name
from model_release.cluster.release import Owner, Phase, Watched
from model_release.release.emergency import ByHand, Person, promote_anyway, roll_back_now


def named(version: str) -> str:
    return f"digits-{predictor_name('digits', f's3://models/digits/versions/{version}/')}-predictor"


V1, V2 = named("v1"), named("v2")
ANNA = Person("anna", "because", Owner("rollback_digits", "by-hand-1", "http://airflow/1", "laptop"))


@pytest.fixture
def opened(live: Any) -> Any:
    """v1 is stable, and a run that is alive has v2 open at 30 %."""
    live.service = {"mode": "standard"}
    live.released("v1")
    live.baseline, live.canary = live.stage("v2")
    live.shift(live.canary, 30)
    live.run = live.owner("run-1")
    live.leases.acquire("models", "digits", live.run)
    said = {"baseline": live.baseline, "canary": V2, "template": live.canary.template, "phase": Phase.OPEN}
    live.leases.update("models", "digits", live.run, lambda now: replace(now, **said, watches=(Watched(30, "x"),)))
    return live


def roll_back(live: Any, asked: list[str] | None = None) -> ByHand:
    def prove(_: Any) -> Any:
        return lambda seen: asked.append(str(seen.tag_url("latest"))) if asked is not None else None

    return roll_back_now(
        live.services, live.leases, "models", "digits", ANNA, seconds=LIMIT, tell=lambda _: None, prove=prove
    )


def test_an_open_canary_loses_its_traffic_at_once_and_the_run_settles(opened: Any) -> None:
    done = roll_back(opened)
    assert done.sentence.startswith(f"models/digits: {V1} has all of the traffic; release_digits run-1 holds")
    assert opened.get().traffic == {V1: 100, V2: 0}
    assert opened.settle(opened.baseline, V2) == f"{V1} has all of the traffic"
    opened.assert_clean("v1")


def test_a_promotion_is_taken_back_by_the_old_version_which_is_asked_first(opened: Any) -> None:
    opened.promote(opened.canary, 30)
    opened.leases.give_free("models", "digits", opened.run)
    asked: list[str] = []
    done = roll_back(opened, asked)
    assert (done.sentence, done.alone) == (f"models/digits: {V1} has all of the traffic", True)
    assert set(asked) == {f"http://{V1}.models.svc.cluster.local"}
    opened.assert_clean("v1")
    again = roll_back(opened)
    assert again == ByHand(f"models/digits: {V1} is what the last release found; there is nothing to roll back")


def test_a_person_promotes_what_the_judge_has_not_and_no_run_is_needed(opened: Any) -> None:
    said = promote_anyway(opened.services, opened.leases, "models", "digits", ANNA, seconds=LIMIT, tell=lambda _: None)
    assert said.startswith(f"models/digits: {V2} has all of the traffic")
    opened.assert_clean("v2")
