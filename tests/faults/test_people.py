"""The emergency ways, at the stages at which a person may need them."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.patience import until

from .models import ASKED, DAG, NAME, SERVICE
from .scene import Scene

pytestmark = pytest.mark.faults


def test_promoted_in_spite_of_the_judge_while_the_stable_revision_crashes(scene: Scene) -> None:
    """The stable revision is the broken one, and the judge has not enough to say so."""
    candidate, stable = scene.other, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    canary = one.watching()
    scene.crash_until(stable, lambda: "Stable fails, too" in one.log("canary"), most=15)
    assert "docs/runbook.md" in one.log("canary")
    said = scene.command("promote", SERVICE, "--reason", "stable fails, canary answers")
    assert f"{canary} has all of the traffic" in said
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: Promoted in spite of the judge by ")
    (approval,) = one.record()["approvals"]
    assert (approval["decision"], approval["reason"]) == ("promote", "stable fails, canary answers")
    end = scene.end(one, candidate, failing=(stable, "-"))
    assert end.revision == canary
    scene.row("stable crashes, person: promote command", "watch", one, candidate, end)


def test_promoted_from_the_form_and_rolled_back_from_the_form_afterwards(scene: Scene) -> None:
    candidate, stable, before = scene.other, scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.watching()
    state, _ = scene.order("promote_faults", "looked at it myself")
    assert state == "success"
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: Promoted in spite of the judge by admin: looked at it myself")
    end = scene.end(one, candidate)
    promoted = end.revision
    scene.row("person: promote_faults", "watch", one, candidate, end)
    for part in ("prometheus", "s3"):
        scene.live.sandbox("stop", part)
    try:
        order = scene.airflow.trigger("rollback_faults", {"reason": "users complain"})
        # A revision that lost its pods meanwhile is downloaded anew, and so has to wait for the store.
        until(
            lambda: scene.is_over("rollback_faults", order) or not scene.runs(before),
            lambda: f"{before} runs and gets no traffic: {scene.service.serving}",
        )  # fmt: skip
        at_once = scene.is_over("rollback_faults", order)
        if at_once:
            state, said = scene.ordered("rollback_faults", order)
            assert state == "success"
            # Nobody can be asked what the restored template should answer: its revision gets nothing.
            assert f"{before} has all of the traffic; its template could not be brought back yet" in said
            assert scene.service.serving == {before: 100}
        else:
            answered = scene.answers().get(promoted, Counter())["200"]
            until(
                lambda: scene.answers().get(promoted, Counter())["200"] > answered,
                "nobody answers users while the revision before is on its way",
            )
    finally:
        for part in ("prometheus", "s3"):
            scene.live.sandbox("start", part)
    assert scene.ordered("rollback_faults", order)[0] == "success"
    state, said = scene.order("rollback_faults", "the store is back")
    assert state == "success"
    end = scene.end(one, stable)
    ended = f"rolled_back {'at once' if at_once else 'with the store back'}"
    scene.row("person: rollback_faults, with Prometheus and S3 down", "afterwards", one, stable, end, ended)
    state, said = scene.order("rollback_faults", "once more")
    assert (state, said.endswith("there is nothing to roll back")) == ("success", True)
    again = scene.order("promote_faults", "again")
    assert again == ("failed", f"{SERVICE}: no release is under way, so there is no canary to promote")


def test_rolled_back_before_the_canary_was_opened(scene: Scene) -> None:
    """The order comes before there is traffic to take back: then none is given."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release()
    one.until("stage", "deferred")
    scene.command("roll-back", SERVICE, "--reason", "not today")
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: Rolled back by ")
    assert one.sentence().endswith(": not today")
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row("person: roll-back command", "stage", one, stable, end)


def test_frozen_service_takes_no_release_and_thawed_it_does(scene: Scene) -> None:
    stable = scene.stable
    scene.command("freeze", SERVICE, "incident 7")
    try:
        one = scene.release()
        assert one.ended() == "failed"
        assert one.sentence().startswith(f"failed: task claim failed: {SERVICE} is frozen: incident 7 (")
        assert one.tries("claim") == 1
        end = scene.end(one, stable)
        scene.row("person: freeze command", "claim", one, stable, end, "refused")
    finally:
        scene.command("thaw", SERVICE)
    two = scene.release(dag=DAG)
    two.until("stage", "running", "deferred", "success")
    scene.command("roll-back", NAME, "--reason", "seen enough")
    assert two.ended() == "failed"
    scene.end(two, stable)
