"""The restored stable template is a new revision: it gets no traffic before it has answered a smoke prediction."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.patience import LIMIT
from tests.releases import left

from model_release.cluster.inference_service import InferenceService
from model_release.cluster.knative import settle as settling
from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Release
from model_release.cluster.settle import assess_rolled_back, roll_back, settle
from model_release.errors import NotSettled, SmokeFailed
from sandbox.interfaces import Phase, PodState

R1, R2, R3 = (f"digits-predictor-0000{n}" for n in (1, 2, 3))


class Asked:
    """A smoke prediction that answers as told, and remembers who was asked, at which share."""

    def __init__(self, live: Any, *, refusals: int = 0) -> None:
        self.live, self.refusals = live, refusals
        self.revisions: list[tuple[str | None, int]] = []

    def __call__(self, service: InferenceService) -> None:
        self.revisions.append((service.latest_created, self.live.door.now.get(str(service.latest_created), 0)))
        if self.refusals:
            self.refusals -= 1
            raise SmokeFailed("answered 503")


def _settle(live: Any, release: Release, prove: Asked, **said: Any) -> str:
    return settle(live.services, release, live.barred.append, prove=prove, poll=0.01, **{"deadline": LIMIT, **said})


def test_asked_at_0_percent_before_it_gets_traffic(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    release, prove = left("models", "digits", baseline, canary.revision), Asked(live, refusals=3)
    assert _settle(live, release, prove) == f"{R3} has all of the traffic"
    # A write that crosses KServe's own is done again, after another question.
    assert set(prove.revisions) == {(R3, 0)}
    assert (asked := len(prove.revisions)) >= 4
    live.assert_clean("v1")
    _settle(live, release, prove)
    assert len(prove.revisions) == asked, "a settled service is asked again"


def test_one_that_never_answers_stays_at_0_percent(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(service: InferenceService) -> None:
        if service.gateway == {R1: 100}:  # before, a busy machine's gateway may be what is waited for
            monkeypatch.setattr(settling, "RESTORE_GRACE", 0.0)
        raise SmokeFailed("answered 503")

    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    release = left("models", "digits", baseline, canary.revision)
    sentence = settle(live.services, release, live.barred.append, prove=never, poll=0.01, deadline=LIMIT)
    assert sentence == (
        f"{R1} has all of the traffic; its template could not be brought back yet: the stable template is back at "
        f"0 %; {R3} is not proven: answered 503"
    )
    assert live.door.now == {R1: 100}
    assert live.door.most(R3) == 0
    _settle(live, release, Asked(live))
    live.assert_clean("v1")


def test_a_late_roll_back_without_the_baseline_waits_for_the_answer(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """v3 was promoted by hand after v2, so v1 has to start anew; until it answers, what serves goes on serving, and
    that is no settled service."""
    monkeypatch.setattr(settling, "RESTORE_GRACE", 0.2)
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    _, third = live.stage("v3")
    live.shift(third, 50)
    live.promote(third, 50)
    release, prove = left("models", "digits", baseline, third.revision), Asked(live, refusals=10**6)
    with pytest.raises(NotSettled, match="is not proven: answered 503"):
        _settle(live, release, prove)
    assert live.door.now == {R3: 100}
    prove.refusals = 2

    def step(_: object) -> Any:
        return assess_rolled_back(roll_back(live.services, release, live.barred.append, prove), release)

    assert live.until(step).state is State.READY
    live.assert_clean("v1")


def test_the_baseline_itself_needs_no_proof(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    release, prove = left("models", "digits", baseline, canary.revision), Asked(live, refusals=10**6)
    roll_back(live.services, release, live.barred.append, prove)
    assert live.until(partial(assess_rolled_back, release=release)).state is State.READY
    assert live.door.now == {R1: 100}
    assert prove.revisions == []


def test_where_the_baseline_was_collected_nobody_can_be_asked(live: Any) -> None:
    """No route leads to a revision at 0 % then; the proven content goes before the promoted and refuted one."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    live.collect(R1)
    prove = Asked(live, refusals=10**6)
    _settle(live, left("models", "digits", baseline, canary.revision), prove)
    live.assert_clean("v1")
    assert prove.revisions == []


def test_where_the_baseline_is_only_down_nobody_goes_before_it_unasked(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route stays as it was then, too, and hides the restored revision: but the baseline may come back."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    asked, well = Asked(live), live.pods.state
    release = left("models", "digits", baseline, canary.revision)

    def down(key: Any) -> PodState:
        return PodState(Phase.CRASHED, message="killed", exit_code=137) if key.name == R1 else well(key)

    live.pods.state = down
    live.until(_route_is_down)
    with monkeypatch.context() as soon:
        soon.setattr(settling, "BASELINE_GRACE", 0.3)
        with pytest.raises(NotSettled, match=f"{R3} is ready at 0 % and cannot be asked while {R1} is not ready"):
            _settle(live, release, asked)
    assert (live.door.most(R3), asked.revisions) == (0, [])
    live.pods.state = well
    _settle(live, release, asked)
    live.assert_clean("v1")
    assert asked.revisions == [(R3, 0)]


def _route_is_down(live: InferenceService | None) -> Progress:
    route = live.conditions["PredictorRouteReady"] if live else None
    down = route is not None and route.status == "False"
    return Progress(State.READY if down else State.WAITING, str(route))
