"""What comes next for a canary, as test_advance.py: where other hands, people or nobody at all had a part in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model_release.cluster.release import Cause, Phase, Watched
from model_release.release.advance import (
    Done,
    Look,
    Promote,
    Shift,
    TakeBack,
    World,
    ask,
)

from .builders import NOW, SINCE, STAGED, live, opened, order
from .rows import ASKS, BAKING, CLOSED, PROMOTING, TEN, UNSURE, Row, check, closed, seen, world

TABLE = {
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
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_what_comes_next(row: Row) -> None:
    check(row)
