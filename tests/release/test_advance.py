"""What comes next for a canary: a table, one row for each thing that may happen to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model_release.cluster.release import Cause, Phase, Watched
from model_release.release.advance import (
    Done,
    Look,
    Opened,
    Promote,
    Shift,
    TakeBack,
    World,
    ask,
    bake,
    go_on,
    watch_longer,
)

from .builders import NOW, SINCE, STAGED, live, opened, order
from .rows import ASKS, BAKING, CLOSED, DEAD, PROMOTING, RAMP, TEN, UNSURE, Row, check, closed, world

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
    "its run has failed and settles it: what changes now is no other hand's": Row(
        replace(opened(30), trouble="task canary failed: lost"),
        world(0, judged="promote"),
        Done("rollback", "task canary failed: lost"),
        recorded=(("closed", None), ("percent", 30)),
    ),
    "its run has failed, and a person has ordered the promotion since: all of it": Row(
        replace(opened(30), phase=Phase.PROMOTED, order=order("promote"), word="because", trouble="task canary failed"),
        world(30),
        Promote(30),
    ),
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
    check(row)


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
