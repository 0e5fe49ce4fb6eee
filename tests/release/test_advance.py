"""What comes next for a canary: a table, one row for each thing that may happen to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from model_release.cluster.release import Cause, Phase, Release, Watched
from model_release.release.advance import (
    Action,
    Done,
    Look,
    Opened,
    Promote,
    Rules,
    Shift,
    TakeBack,
    World,
    advance,
    ask,
    bake,
    go_on,
    watch_longer,
)

from .builders import CANARY, NOW, SINCE, STAGED, live, opened, order

RULES = Rules((10, 30))
RAMP = Rules((), ramp_from=2)
ASKS = replace(RULES, asks="before_promote", answer_within="4h")
UNSURE = replace(RULES, asks="on_inconclusive", answer_within="4h")
TEN = Watched(10, SINCE, NOW)
PROMOTING = replace(opened(30, TEN), phase=Phase.PROMOTED, word="0 of 300")
CLOSED = opened(30, TEN).close("9 of 30", Cause.EVIDENCE)
BAKING = bake(replace(PROMOTING, promoted_at=SINCE))
DEAD = "m-00002 is dead: Container failed with: OutOfMemory."


@dataclass(frozen=True)
class Row:
    """One thing that may happen. `recorded` names what must stand in the release afterwards."""

    release: Release
    world: World
    action: Action
    rules: Rules = RULES
    recorded: tuple[tuple[str, object], ...] = ()


def world(percent: int | None = 30, gateway: int | None = None, **more: object) -> World:
    return World(live(percent, gateway=gateway), NOW, **more)  # type: ignore[arg-type]


def seen(metadata: dict[str, Any] | int | None = 30, *, prev: str = "m-00001", silent: bool = False) -> World:
    """The service at this share, or with this metadata; KServe sends the rest to `prev`; a gateway that is silent has
    not said that it has the split."""
    found = live(30 if isinstance(metadata, dict) else metadata)
    if isinstance(metadata, dict):
        found.raw["metadata"] |= metadata
    status = found.raw["status"]
    for target in status["components"]["predictor"]["traffic"]:
        if target.get("tag") == "prev":
            target["revisionName"] = prev
    if silent:
        status["conditions"] = [{"type": "PredictorRouteReady", "status": "Unknown"}, *status["conditions"][:1]]
    return World(found, NOW)


def closed(why: str, cause: Cause) -> tuple[tuple[str, object], ...]:
    return (("closed", why), ("cause", cause), ("promoted", False), ("phase", Phase.CLOSING))


TABLE = {
    # The way forward
    "staged: the first share is asked for, and recorded before": Row(
        STAGED, world(0), Shift(10), recorded=(("percent", 10), ("watches", (Watched(10),)))
    ),
    "a share that the spec has and the gateway has not is waited for": Row(
        opened(10, opened_at=None), world(10, gateway=0), Shift(10)
    ),
    "a share that the gateway has is open from this moment": Row(
        opened(10, opened_at=None),
        world(10),
        Opened(10),
        recorded=(("opened_at", NOW), ("watches", (Watched(10, NOW),))),
    ),
    "no evidence yet": Row(opened(30), world(), Look()),
    "evidence for it at the first share: the next one": Row(
        opened(10),
        world(10, judged="promote"),
        Shift(30),
        recorded=(("percent", 30), ("watches", (Watched(10, SINCE, NOW), Watched(30)))),
    ),
    "half of the evidence for it: the share that the judge says": Row(
        opened(10),
        world(10, judged="open", share=30, windows=7),
        Shift(30),
        recorded=(("percent", 30), ("watches", (Watched(10, SINCE, NOW, windows=7), Watched(30)))),
    ),
    "a ramp begins where the past's traffic lets it": Row(STAGED, world(0), Shift(2), RAMP, recorded=(("percent", 2),)),
    "a ramp knows its first share only: the judge says the next": Row(
        opened(2),
        world(2, judged="open", share=20, windows=2),
        Shift(20),
        RAMP,
        recorded=(("percent", 20), ("watches", (Watched(2, SINCE, NOW, windows=2), Watched(20)))),
    ),
    "a share that the canary has already is not given again": Row(
        opened(20, Watched(2, SINCE, NOW, windows=2)), world(20, judged="open", share=20), Look(), RAMP
    ),
    "beside a question nothing is opened wider": Row(
        opened(20, beside_question=True), world(20, judged="open", share=35), Look(), RAMP
    ),
    "evidence for it at any share of a ramp: all of the traffic": Row(
        opened(5),
        world(5, judged="promote", reason="0 of 300", windows=12),
        Promote(5),
        RAMP,
        recorded=(("phase", Phase.PROMOTED), ("word", "0 of 300")),
    ),
    "nor does it matter where another hand would have begun": Row(
        opened(5),
        world(5, judged="promote", reason="0 of 300", windows=12),
        Promote(5),
        replace(RAMP, ramp_from=20),
    ),
    "a ramp whose promotion a person decides": Row(
        opened(5),
        world(5, judged="promote", reason="0 of 300", windows=12),
        Done("ask", "0 of 300"),
        replace(RAMP, asks="before_promote", answer_within="4h"),
        recorded=(("percent", 5), ("watches", (Watched(5, SINCE, windows=12),))),
    ),
    "a promotion at the deadline with less confidence than usual: the bake is to know": Row(
        opened(30),
        world(judged="promote", reason="with 90 % confidence", windows=99, confidence=0.9),
        Promote(30),
        recorded=(("watches", (Watched(30, SINCE, windows=99, confidence=0.9),)), ("word", "with 90 % confidence")),
    ),
    "a deadline that is extended is recorded, and looked on": Row(
        opened(30), world(extended=True), Look(), recorded=(("watches", (Watched(30, SINCE, extended=True),)),)
    ),
    "evidence for it at the last share: all of the traffic": Row(
        opened(30, TEN),
        world(judged="promote", reason="0 of 300"),
        Promote(30),
        recorded=(("phase", Phase.PROMOTED), ("word", "0 of 300"), ("promoted_at", None)),
    ),
    "a promotion that is written and not done is waited for": Row(PROMOTING, world(None, gateway=30), Promote(30)),
    "a promotion that the gateway has is done": Row(
        PROMOTING, world(None), Done("promote", "0 of 300"), recorded=(("phase", Phase.PROMOTED), ("promoted_at", NOW))
    ),
    "the step of the file that the release began with is the way, whatever the file says now": Row(
        opened(25), world(25, judged="promote"), Shift(30)
    ),
    # The way back
    "evidence against it": Row(
        opened(30), world(judged="rollback", reason="9 of 30"), TakeBack(), recorded=closed("9 of 30", Cause.EVIDENCE)
    ),
    "no decision by the deadline": Row(
        opened(30),
        world(judged="inconclusive", reason="Cannot tell."),
        TakeBack(),
        recorded=closed("Cannot tell.", Cause.DEADLINE),
    ),
    "taken back, and the gateway has not done it": Row(CLOSED, world(0, gateway=30), TakeBack()),
    "taken back, and the gateway has": Row(
        CLOSED, world(0), Done("rollback", "9 of 30"), recorded=(("percent", 0), ("phase", Phase.RESTORED))
    ),
    "what was closed by another hand is taken back here too, for its reason": Row(
        opened(30).close("nobody looked for 63 s", Cause.GUARD),
        world(),
        TakeBack(),
        recorded=closed("nobody looked for 63 s", Cause.GUARD),
    ),
    "a canary that was closed is never promoted, whatever the evidence says": Row(
        CLOSED, world(judged="promote"), TakeBack()
    ),
    "a share that does not reach the gateway in time": Row(
        opened(10, opened_at=None),
        world(10, gateway=0, stuck="stuck"),
        TakeBack(),
        recorded=closed("stuck", Cause.STUCK),
    ),
    # Death
    "a canary that dies while it is open": Row(
        opened(30), World(live(30, dead="m-00002"), NOW), TakeBack(), recorded=closed(DEAD, Cause.DEAD)
    ),
    "a canary that dies in the moment it is opened": Row(
        opened(10, opened_at=None),
        World(live(10, gateway=0, dead="m-00002"), NOW),
        TakeBack(),
        recorded=closed(DEAD, Cause.DEAD),
    ),
    "a canary that dies while a person is asked": Row(
        ask(opened(30), NOW, "0 of 300"),
        World(live(30, dead="m-00002"), NOW),
        TakeBack(),
        ASKS,
        closed(DEAD, Cause.DEAD),
    ),
    "a canary that dies while it is being promoted": Row(
        PROMOTING, World(live(None, gateway=30, dead="m-00002"), NOW), TakeBack(), recorded=closed(DEAD, Cause.DEAD)
    ),
    "a promoted revision that dies in its bake": Row(
        BAKING, World(live(None, dead="m-00002"), NOW), TakeBack(), recorded=closed(DEAD, Cause.DEAD)
    ),
    "a dead stable revision is no evidence against the canary": Row(
        opened(30), World(live(30, dead="m-00001"), NOW), Look()
    ),
    "a share that a dead stable revision freezes is waited for": Row(
        opened(30, TEN, opened_at=None), World(live(30, gateway=10, dead="m-00001"), NOW), Shift(30)
    ),
    "a promotion acts while stable is dead": Row(
        opened(30, TEN), World(live(30, dead="m-00001"), NOW, "promote", "0 of 300"), Promote(30)
    ),
    "0 % that the dead canary freezes is not taken for done": Row(
        opened(30).close(DEAD, Cause.DEAD), World(live(0, gateway=30, dead="m-00002"), NOW), TakeBack()
    ),
    # Other hands
    "somebody gave it another share": Row(
        opened(30),
        world(50),
        TakeBack(),
        recorded=closed("m-00002 should be at 30 %; the spec says 50 %", Cause.CHANGED),
    ),
    "somebody removed the split": Row(
        opened(30),
        world(None),
        TakeBack(),
        recorded=closed("m-00002 should be at 30 %; the spec says None %", Cause.CHANGED),
    ),
    "somebody made the service anew": Row(
        opened(30),
        World(live(30, uid="2"), NOW),
        TakeBack(),
        recorded=closed("InferenceService models/m was deleted and made anew", Cause.CHANGED),
    ),
    "somebody deleted the service": Row(
        opened(30),
        World(None, NOW),
        TakeBack(),
        recorded=closed("InferenceService models/m was deleted", Cause.CHANGED),
    ),
    "a deleted service needs no taking back": Row(
        CLOSED, World(None, NOW), Done("rollback", "9 of 30 (InferenceService models/m was deleted)")
    ),
    "another template while it is being opened": Row(
        opened(10, opened_at=None),
        World(live(10, image="other"), NOW),
        TakeBack(),
        recorded=closed("the template of models/m is not the one that was staged", Cause.CHANGED),
    ),
    "another share while it is being promoted": Row(
        PROMOTING,
        world(50),
        TakeBack(),
        recorded=closed("m-00002 should be at 30 %; the spec says 50 %", Cause.CHANGED),
    ),
    "somebody stopped the service": Row(
        opened(30),
        seen({"annotations": {"serving.kserve.io/stop": "true"}}),
        TakeBack(),
        recorded=closed("InferenceService models/m is stopped (annotation serving.kserve.io/stop)", Cause.CHANGED),
    ),
    "a revision came after it": Row(
        opened(30),
        World(live(30, revision="m-00003"), NOW),
        TakeBack(),
        recorded=closed("models/m has another revision, m-00003, after m-00002", Cause.CHANGED),
    ),
    "KServe splits with another revision than the one that was claimed": Row(
        opened(30),
        seen(prev="m-00000"),
        TakeBack(),
        recorded=closed("models/m splits with m-00000 instead of m-00001", Cause.CHANGED),
    ),
    "0 % went to an older revision than the baseline: it is not taken for done": Row(
        CLOSED, seen(0, prev="m-00000"), TakeBack()
    ),
    "a share that is written and of which the gateway says nothing is not believed": Row(
        opened(10, opened_at=None), seen(10, silent=True), Shift(10)
    ),
    "0 % that is written and of which the gateway says nothing is not believed": Row(
        CLOSED, seen(0, silent=True), TakeBack()
    ),
    "a promotion of which the gateway says nothing is not believed": Row(
        PROMOTING, seen(None, silent=True), Promote(30)
    ),
    # Blindness
    "no data by the deadline": Row(
        opened(30),
        world(judged="inconclusive", reason="Cannot tell: no data.", no_data=True),
        TakeBack(),
        recorded=closed("Cannot tell: no data.", Cause.NO_DATA),
    ),
    "Prometheus away for too long": Row(
        opened(30),
        world(judged="inconclusive", reason="Cannot tell (away)", blind="away"),
        TakeBack(),
        recorded=closed("Cannot tell (away)", Cause.NO_DATA),
    ),
    "no data is never good news, whoever is asked": Row(
        opened(30), world(judged="inconclusive", reason="no data", no_data=True), Done("ask", "no data"), UNSURE
    ),
    # A paused DAG, a deleted, cleared or vanished task, a dead triggerer: another hand, or the same one later
    "nobody looked, and the guard closed it; its own drive comes back later": Row(
        opened(30).close("closed: nobody looked for 63 s", Cause.GUARD),
        world(0, judged="promote"),
        Done("rollback", "closed: nobody looked for 63 s"),
        recorded=(("phase", Phase.RESTORED), ("cause", Cause.GUARD)),
    ),
    "the guard closed it while a person was asked": Row(
        ask(opened(30), NOW, "0 of 300").close("closed: nobody looked for 63 s", Cause.GUARD), world(), TakeBack(), ASKS
    ),
    "a task cleared while it was open: what stands at its share begins anew at the first one": Row(
        STAGED, world(30), Shift(10), recorded=(("phase", Phase.OPEN), ("watches", (Watched(10),)))
    ),
    "a task cleared while it was promoted: it stays so": Row(
        replace(PROMOTING, promoted_at=SINCE),
        world(None),
        Done("promote", "0 of 300"),
        recorded=(("promoted_at", SINCE),),
    ),
    "a drive killed before its write does it again": Row(opened(30, TEN, opened_at=None), world(10), Shift(30)),
    "a drive killed between its word and the promotion does it again": Row(PROMOTING, world(30), Promote(30)),
    "a task that was marked by hand proved nothing: its branch closed it": Row(
        opened(30).close("nothing is proven", Cause.UNPROVEN), world(judged="promote"), TakeBack()
    ),
    "the run was ended, and the sweep has restored the baseline: the drive that comes back finds it": Row(
        replace(CLOSED, phase=Phase.RESTORED), world(0), Done("rollback", "9 of 30")
    ),
    "a release that touched nothing has nothing to take back": Row(
        replace(CLOSED, baseline=None), world(30), Done("rollback", "9 of 30")
    ),
    # People
    "an order to roll back while it is being promoted": Row(
        replace(PROMOTING, order=order("roll_back")),
        world(None, gateway=30),
        TakeBack(),
        recorded=closed("Rolled back by anna: because", Cause.PERSON),
    ),
    "an order to roll back in its bake": Row(
        replace(BAKING, order=order("roll_back")),
        world(None),
        TakeBack(),
        recorded=closed("Rolled back by anna: because", Cause.PERSON),
    ),
    "an order to roll back what evidence has closed: the first word stands": Row(
        replace(CLOSED, order=order("roll_back")),
        world(0, gateway=30),
        TakeBack(),
        recorded=closed("9 of 30", Cause.EVIDENCE),
    ),
    "an order to roll back": Row(
        replace(opened(30), order=order("roll_back")),
        world(judged="promote"),
        TakeBack(),
        recorded=closed("Rolled back by anna: because", Cause.PERSON),
    ),
    "an order to promote, before there is evidence": Row(
        replace(opened(10), order=order("promote")),
        world(10),
        Promote(10),
        recorded=(("promoted", True), ("word", "Promoted in spite of the judge by anna: because")),
    ),
    "an order to promote overtakes a share that is recorded and not written yet": Row(
        replace(opened(30, TEN, opened_at=None), order=order("promote")),
        world(10),
        Promote(10),
        recorded=(("promoted", True), ("closed", None)),
    ),
    "an order to promote is not for a share that this release never gave": Row(
        replace(opened(30, TEN, opened_at=None), order=order("promote")),
        world(20),
        TakeBack(),
        recorded=closed("m-00002 should be at 30 %; the spec says 20 %", Cause.CHANGED),
    ),
    "an order to promote goes before evidence against": Row(
        replace(opened(30), order=order("promote")), world(judged="rollback"), Promote(30)
    ),
    "an order to promote another canary means nothing": Row(
        replace(opened(30), order=order("promote", "m-00003")), world(), Look()
    ),
    "an order to promote what another hand has changed promotes nothing": Row(
        replace(opened(30), order=order("promote")),
        world(50),
        TakeBack(),
        recorded=closed("m-00002 should be at 30 %; the spec says 50 %", Cause.CHANGED),
    ),
    "a person is asked before the promotion": Row(
        opened(30, TEN), world(judged="promote", reason="0 of 300"), Done("ask", "0 of 300"), ASKS
    ),
    "nobody is asked before the last share": Row(opened(10), world(10, judged="promote"), Shift(30), ASKS),
    "a person is asked when the judge cannot tell": Row(
        opened(10), world(10, judged="inconclusive", reason="Cannot tell."), Done("ask", "Cannot tell."), UNSURE
    ),
    "nobody is asked about evidence against it": Row(opened(10), world(10, judged="rollback"), TakeBack(), UNSURE),
    "evidence against it while a person is asked": Row(
        ask(opened(30), NOW, "0 of 300"),
        world(judged="rollback", reason="9 of 30"),
        TakeBack(),
        ASKS,
        closed("9 of 30", Cause.EVIDENCE),
    ),
    "nobody answered": Row(
        ask(opened(30), NOW, "0 of 300"),
        world(judged="inconclusive"),
        TakeBack(),
        ASKS,
        closed("Nobody answered within 4h: rolled back.", Cause.DEADLINE),
    ),
    "nothing can be seen while a person is asked": Row(
        ask(opened(30), NOW, "0 of 300"),
        world(judged="inconclusive", reason="Cannot tell (away)", blind="away"),
        TakeBack(),
        ASKS,
        closed("Not watched: Cannot tell (away)", Cause.NO_DATA),
    ),
    # After the promotion
    "a bake under way": Row(BAKING, world(None), Look()),
    "a bake that came to its end": Row(
        BAKING, world(None, judged="inconclusive", reason="over"), Done("baked", "over")
    ),
    "evidence against what was promoted": Row(
        BAKING, world(None, judged="rollback", reason="9 of 30"), TakeBack(), recorded=closed("9 of 30", Cause.EVIDENCE)
    ),
    "a split under the bake": Row(
        BAKING, world(30), TakeBack(), recorded=closed("m-00002 should be promoted; the spec says 30 %", Cause.CHANGED)
    ),
    "an order to promote what is promoted means nothing": Row(
        replace(BAKING, order=order("promote")), world(None), Look()
    ),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_what_comes_next(row: Row) -> None:
    release, action = advance(row.release, CANARY, row.world, row.rules)
    assert action == row.action
    for field, value in row.recorded:
        assert getattr(release, field) == value, field
    again, same = advance(release, CANARY, row.world, row.rules)
    assert again == release, "asked again, there is nothing new to record"
    if row.world.live is not None and not isinstance(action, Opened):
        assert same == action


def test_further_stretches_at_the_same_share_are_numbered() -> None:
    claim = opened(30)
    numbers = []
    for _ in range(3):
        claim = ask(claim, NOW, "0 of 300")
        numbers.append((claim.watches[-1].beside_question, claim.watches[-1].again))
        claim = watch_longer(claim, NOW)
        numbers.append((claim.watches[-1].beside_question, claim.watches[-1].again))
    assert numbers == [(True, 1), (False, 1), (True, 2), (False, 2), (True, 3), (False, 3)]
    assert all(one.until == NOW for one in claim.watches[:-1])


def test_a_person_who_says_promote_in_the_middle_leads_to_the_next_share() -> None:
    claim = go_on(ask(opened(10), NOW, "0 of 300"), NOW, UNSURE, "ada says promote.")
    assert (claim.percent, claim.promoted, claim.watches[-1]) == (30, False, Watched(30))
    assert go_on(ask(opened(30, TEN), NOW, "0 of 300"), NOW, UNSURE, "ada says promote.").word == "ada says promote."


def test_the_first_word_about_a_canary_that_was_closed_stands() -> None:
    assert CLOSED.close("something else", Cause.PERSON) == CLOSED


def test_a_bake_that_began_goes_on() -> None:
    assert bake(BAKING) == BAKING
    assert bake(PROMOTING) == PROMOTING, "nothing is watched on before the gateway has promoted it"
