"""A person rolls back, without Airflow: onto the revision that is meant, and onto none that was not asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.patience import LIMIT, until

from model_release.cluster.change import Baseline
from model_release.cluster.knative import settle as settling
from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Cause, Phase
from model_release.errors import CanaryLost, NotSettled
from sandbox.interfaces import Phase as Pod
from sandbox.interfaces import PodState

from .by_hand import R1, R2, R3, opened, order_of, person, promote, roll_back
from .conftest import wanted as manifest
from .test_settle_proven import _route_is_down


def test_a_release_that_has_touched_nothing_yet_is_stopped(live: Any) -> None:
    live.released("v1")
    live.leases.acquire("models", "digits", live.owner("run-1"))
    assert "has not touched anything yet, and now it ends before it does" in roll_back(live).sentence
    order = order_of(live)
    assert order is not None
    assert order.revision is None


def test_a_first_version_that_is_live_is_never_taken_away(live: Any) -> None:
    live.released("v1")
    owner = live.owner("run-1")
    live.leases.acquire("models", "digits", owner)
    facts: dict[str, Any] = {"baseline": Baseline(), "canary": R1, "phase": Phase.PROMOTED, "promoted_at": "x"}
    live.leases.update("models", "digits", owner, lambda claim: replace(claim, **facts))
    with pytest.raises(CanaryLost, match=f"{R1} is its first version; there is none to go back to"):
        roll_back(live)
    assert live.door.now == {R1: 100}
    assert live.leases.read("models", "digits").release.promoted


def test_what_could_not_be_proven_is_brought_back_the_next_time(live: Any) -> None:
    from model_release.errors import SmokeFailed

    owner, canary = opened(live, 50)
    live.promote(canary, 50)
    live.leases.give_free("models", "digits", owner)

    def away(_: Any) -> Any:
        def prove(_: Any) -> None:
            raise SmokeFailed("the store is away")

        return prove

    settling.RESTORE_GRACE, grace = 0.5, settling.RESTORE_GRACE
    try:
        done = roll_back(live, prove=away)
    finally:
        settling.RESTORE_GRACE = grace
    assert done.alone
    assert f"{R1} has all of the traffic; its template could not be brought back yet" in done.sentence
    assert live.door.now == {R1: 100}
    assert live.leases.read("models", "digits").holder is None
    asked: list[Any] = []
    done = roll_back(live, prove=lambda baseline: asked.append)
    live.assert_clean("v1")
    assert len(asked) == 1
    assert roll_back(live).sentence.endswith("there is nothing to roll back")


def test_a_command_that_was_killed_is_gone_on_with(live: Any) -> None:
    owner, canary = opened(live, 50)
    live.promote(canary, 50)
    known = live.leases.read("models", "digits").known
    live.leases.give_free("models", "digits", owner)
    # As far as a roll-back comes that dies after its first write.
    me = person().owner
    live.leases.acquire("models", "digits", me, record="by-hand-digits")
    live.leases.update("models", "digits", me, lambda claim: replace(claim, baseline=known, canary=canary.revision))
    live.edit({"spec": {"predictor": {"canaryTrafficPercent": 0}}})
    assert roll_back(live, prove=lambda _: lambda _: None).alone
    live.assert_clean("v1")
    assert live.leases.read("models", "digits").holder is None


def test_an_order_while_the_stable_revision_is_down_gives_nobody_unasked_the_traffic(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored template is another revision; who holds the service asks it, and until then it gets nothing."""
    monkeypatch.setattr(settling, "BASELINE_GRACE", 1.0)
    monkeypatch.setattr(settling, "RESTORE_GRACE", 1.0)
    opened(live, 50)
    well = live.pods.state

    def down(key: Any) -> PodState:
        return PodState(Pod.CRASHED, message="killed", exit_code=137) if key.name == R1 else well(key)

    live.pods.state = down
    live.until(_route_is_down)
    with pytest.raises(NotSettled):
        roll_back(live, None, seconds=5)  # the time passes: nobody asks it
    assert live.door.most(R3) == 0, "it was never asked"


def promoted(live: Any) -> None:
    owner, canary = opened(live, 50)
    live.promote(canary, 50)
    live.leases.give_free("models", "digits", owner)


def test_17_8_what_a_person_takes_back_goes_to_the_revision_that_is_meant_or_nowhere(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number 8, while a release is under way and after it."""
    monkeypatch.setattr(settling, "RESTORE_GRACE", 0.2)
    owner, canary = opened(live, 50)
    with pytest.raises(CanaryLost, match=f"{R3} was asked for, and a roll-back goes to {R1} alone; to another"):
        roll_back(live, to=R3)
    assert order_of(live) is None
    assert live.door.now == {R1: 50, R2: 50}
    live.promote(canary, 50)
    live.leases.give_free("models", "digits", owner)
    with pytest.raises(CanaryLost, match=f"{R2} was asked for, and a roll-back goes to {R1} alone"):
        roll_back(live, to=R2)
    assert live.door.now == {R2: 100}
    roll_back(live, to=R1)
    assert live.door.now == {R1: 100}


def test_17_8_what_another_hand_brought_since_is_not_skipped_unsaid(live: Any) -> None:
    """Number 8: v3 by kubectl after v2 was promoted; a roll-back would go to v1, past v2, which nobody asked for."""
    promoted(live)
    third = manifest("v3")["spec"]["predictor"]["model"]["storageUri"]
    live.edit({"spec": {"predictor": {"model": {"storageUri": third}}}})
    until(lambda: live.door.now == {R3: 100}, "v3 does not come")
    with pytest.raises(CanaryLost, match=rf"{R3} came after {R2} of the last release.*kubectl-edit.*--to {R1}` goes"):
        roll_back(live)
    assert live.door.now == {R3: 100}
    roll_back(live, prove=lambda _: lambda _: None, to=R1)
    live.assert_clean("v1")
    assert R2 not in live.door.history[-1]


def test_17_8_where_nobody_can_ask_nothing_unasked_gets_traffic(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number 8: KServe still knows v1's revision, which was proven; the restored template's is another one."""
    monkeypatch.setattr(settling, "RESTORE_GRACE", 0.2)
    promoted(live)
    said = roll_back(live).sentence
    assert f"{R1} has all of the traffic; its template could not be brought back yet" in said
    assert "nobody can ask digits-predictor-00003 from here; DAG rollback_MODEL can" in said
    assert live.door.now == {R1: 100}
    assert live.door.most(R3) == 0


def test_17_8_a_baseline_that_is_gone_is_not_replaced_by_what_cannot_be_asked(live: Any) -> None:
    """Number 8: the route names a revision that does not exist any more, and reaches no other one at 0 %."""
    promoted(live)
    live.collect(R1)
    with pytest.raises(NotSettled, match=f"{R1} is gone, so {R3}.* cannot be asked and gets nothing; to an"):
        roll_back(live, prove=lambda _: lambda _: None)
    assert live.door.most(R3) == 0


@pytest.mark.parametrize("mode", ["knative", "standard"])
def test_a_first_version_that_nobody_proved_is_taken_away_and_told_so(live: Any, mode: str) -> None:
    live.service = {"mode": mode} if mode == "standard" else {}
    baseline, canary = live.stage("v1")
    owner = live.owner("run-1")
    live.leases.acquire("models", "digits", owner)
    facts = {"baseline": baseline, "canary": canary.revision, "phase": Phase.STAGED}
    live.leases.update("models", "digits", owner, lambda claim: replace(claim, **facts))
    done = roll_back(live)
    assert live.services.get("models", "digits") is None
    assert "does not exist; no traffic to settle" in done.sentence
    assert roll_back(live).sentence == done.sentence


def test_a_promotion_that_somebody_else_took_back_meanwhile_is_not_done(live: Any) -> None:
    owner, _ = opened(live)
    update = live.leases.update

    def crossed(*words: Any) -> Any:
        live.leases.update = update
        update("models", "digits", owner, lambda now: now.close("9 of 30", Cause.EVIDENCE))
        return update(*words)

    live.leases.update = crossed
    with pytest.raises(CanaryLost, match="9 of 30"):
        promote(live, seconds=LIMIT)
    assert live.door.most(R2) == 30


def made_anew(live: Any) -> None:
    """By another hand, with revisions of the very names and shares."""
    live.services.delete(live.get())
    live.until(lambda now: Progress(State.WAITING if now else State.READY, ""))
    live.released("v3")
    _, canary = live.stage("v4")
    live.shift(canary, 30)


def test_17_3_a_canary_of_that_name_in_a_service_made_anew_cannot_be_promoted(live: Any) -> None:
    """Number 3."""
    opened(live)
    made_anew(live)
    with pytest.raises(CanaryLost, match="was deleted and made anew: it has no canary of this release"):
        promote(live)
    assert live.door.now == {R1: 70, R2: 30}


def test_17_3_after_the_release_nothing_goes_back_to_a_name_in_a_service_made_anew(live: Any) -> None:
    """Number 3."""
    promoted(live)
    made_anew(live)
    with pytest.raises(CanaryLost, match="no earlier revision's template is on record"):
        roll_back(live)
    assert live.door.now == {R1: 70, R2: 30}


def test_what_cannot_be_brought_back_is_told_at_once(live: Any) -> None:
    opened(live)
    live.services.delete(live.get())
    live.until(lambda now: Progress(State.WAITING if now else State.READY, ""))
    live.stage("v3")
    with pytest.raises(NotSettled, match="was deleted and made anew by another hand; left as it is"):
        roll_back(live)
