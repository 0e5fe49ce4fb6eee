"""A person promotes in spite of the judge, without Airflow."""

from __future__ import annotations

from typing import Any

import pytest
from tests.patience import LIMIT

from model_release.cluster.release import Order, Phase, Release, Watched
from model_release.errors import CanaryLost, SpecError

from .by_hand import R1, R2, R3, opened, order_of, person, promote, roll_back


def test_an_order_survives_the_lease_and_needs_a_reason(live: Any) -> None:
    order = Order("promote", "anna", "because", "2026-03-01T02:00:00.000+00:00", R2)
    claim = Release(live.owner("run-1"), order=order, inherited=Release(live.owner("run-0"), order=order))
    assert Release.from_dict(claim.as_dict()) == claim
    with pytest.raises(SpecError, match="a reason is needed"):
        person(" \n")


def test_what_a_person_ordered_is_promoted_without_any_run(live: Any) -> None:
    """Airflow need not live: the command is a hand like any other, and the run finds it done."""
    opened(live)
    said = promote(live, seconds=LIMIT, reason="looked\nat it")
    assert said == f"models/digits: {R2} has all of the traffic; http://airflow/runs/run-1"
    assert live.door.now == {R2: 100}
    lease = live.leases.read("models", "digits")
    assert lease.release.phase is Phase.PROMOTED
    assert lease.release.promoted_at is not None
    order = order_of(live)
    assert order is not None
    assert (order.kind, order.who, order.why, order.revision) == ("promote", "anna", "looked at it", R2)
    assert lease.release.word == str(order) == "Promoted in spite of the judge by anna: looked at it"
    assert promote(live, seconds=LIMIT, reason="once more") == said
    assert order_of(live) == order


def test_an_order_for_a_canary_that_is_no_more_gives_way_to_the_next(live: Any) -> None:
    """The run was cleared before it saw the order for another revision, and staged this one."""
    opened(live, facts={"order": Order("promote", "bert", "the other", "2026-03-01T02:00:00.000+00:00", R3)})
    promote(live, seconds=LIMIT)
    order = order_of(live)
    assert order is not None
    assert (order.who, order.revision) == ("anna", R2)


def test_a_promotion_that_the_judge_has_begun_is_finished(live: Any) -> None:
    """No order is needed any more: it is done by this hand too, and by no hand twice."""
    opened(live, facts={"phase": Phase.PROMOTED, "word": "0 of 300"})
    said = promote(live, seconds=LIMIT)
    assert said.startswith(f"models/digits: {R2} has all of the traffic")
    assert order_of(live) is None


@pytest.mark.parametrize("facts", [{}, {"phase": Phase.PROMOTED, "word": "0 of 300"}])
def test_where_the_run_has_failed_and_could_not_be_settled_an_order_is_done_all_the_same(
    live: Any, facts: dict[str, Any]
) -> None:
    """Beside a stable that does not answer any more, settle has nothing to go back to, and the canary stays open."""
    opened(live, facts={**facts, "trouble": "task canary failed: lost"})
    assert promote(live, seconds=LIMIT).startswith(f"models/digits: {R2} has all of the traffic")
    order = order_of(live)
    assert order is not None
    assert (order.kind, order.who, order.revision) == ("promote", "anna", R2)


def test_a_promotion_that_its_run_has_settled_meanwhile_is_told_as_done(live: Any) -> None:
    owner, canary = opened(live, facts={"phase": Phase.PROMOTED, "word": "0 of 300"})

    def settled(services: Any, namespace: str, name: str) -> Any:
        live.promote(canary, 30)
        live.leases.give_free("models", "digits", owner)
        return services

    read = live.leases.renew

    def late(*words: Any) -> Any:
        if live.leases.read("models", "digits").holder is not None:
            settled(live.services, "models", "digits")
        return read(*words)

    live.leases.renew = late
    assert promote(live, seconds=LIMIT).startswith(f"models/digits: {R2} has all of the traffic")


def test_a_run_that_ended_before_the_order_was_done_is_told(live: Any) -> None:
    owner, _ = opened(live)
    update = live.leases.update

    def ended(*words: Any) -> Any:
        found = update(*words)
        live.leases.give_free("models", "digits", owner)
        return found

    live.leases.update = ended
    with pytest.raises(CanaryLost, match=r"the release ended before the order was done; traffic is .*00002 30 %"):
        promote(live, seconds=LIMIT)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"phase": Phase.PROVEN, "watches": ()}, r"no canary is open \(proven\)"),
        ({"phase": Phase.CLOSING, "closed": "9 of 30"}, r"no canary is open \(closing\)"),
        ({"canary": R3}, f"{R3} was opened at 30 %, and there is {R2} at 30 %"),
        ({"watches": (Watched(50),)}, f"{R2} was opened at 50 %, and there is {R2} at 30 %"),
    ],
)
def test_only_the_canary_that_the_release_opened_can_be_promoted(live: Any, facts: dict[str, Any], why: str) -> None:
    opened(live, facts=facts)
    with pytest.raises(CanaryLost, match=why):
        promote(live)
    assert order_of(live) is None


def test_without_a_release_there_is_nothing_to_promote(live: Any) -> None:
    live.released("v1")
    with pytest.raises(CanaryLost, match="no release is under way"):
        promote(live)


def test_what_a_person_took_back_no_other_promotes(live: Any) -> None:
    opened(live)
    assert not roll_back(live, reason="broken").alone
    with pytest.raises(CanaryLost, match="no canary is open"):
        promote(live)
    order = order_of(live)
    assert str(order) == "Rolled back by anna: broken"
    roll_back(live, reason="again")
    assert order_of(live) == order, "who was first stays on record"
    assert live.door.now == {R1: 100}


def test_a_promotion_that_was_ordered_can_still_be_taken_back(live: Any) -> None:
    opened(live)
    promote(live, seconds=LIMIT)
    roll_back(live)
    assert live.door.now == {R1: 100}
    order = order_of(live)
    assert order is not None
    assert order.kind == "roll_back"
