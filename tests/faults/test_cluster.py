"""Harm done to the cluster: its API, its pods, and other people's hands on the InferenceService."""

from __future__ import annotations

import pytest
from tests.patience import until

from .models import ASKED, BAKE, NAME
from .scene import Scene, following

pytestmark = pytest.mark.faults

KINDS = ("inferenceservices", "leases")


def test_every_other_write_meets_a_conflict_and_every_read_is_slow(scene: Scene) -> None:
    candidate = scene.other
    for kind in KINDS:
        scene.api_fault("patch", kind, status=409, every=2)
    scene.api_fault("get", "inferenceservices", delay=0.7)
    try:
        one = scene.release()
        assert one.ended() == "success"
    finally:
        scene.api_mended()
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    for stage in ("claim", "stage", "open", "promote", "settle"):
        scene.row("API: 409 on every other write", stage, one, candidate, end)
    for stage in ("stage", "open", "watch", "promote", "settle"):
        scene.row("API slow", stage, one, candidate, end)


def test_answers_lost_after_every_other_write_was_done(scene: Scene) -> None:
    stable = scene.stable
    for kind in KINDS:
        scene.api_fault("patch", kind, status=500, after_write=True, every=2)
    try:
        one = scene.release(dag=ASKED)
        one.watching()
        one.mark("canary", "success")
        assert one.ended() == "failed"
    finally:
        scene.api_mended()
    assert one.sentence().startswith("rolled_back: task canary decided nothing about ")
    end = scene.end(one, stable)
    for stage in ("claim", "stage", "open", "roll back", "settle"):
        scene.row("API: 500 after the write was done", stage, one, stable, end)


def test_api_down_on_the_way_to_a_promotion_for_a_minute_while_watched(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    one.until("stage", "deferred")
    with scene.api_down(12):
        pass
    one.watching()
    with scene.api_down(60):
        assert one.state_of("canary") == "deferred", "nobody looked, and somebody decided"
    one.until("canary", "success")
    with scene.api_down(resource="inferenceservices"):
        one.until("promote", "up_for_retry")
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("API down", "stage", one, candidate, end)
    scene.row("API down", "watch", one, candidate, end)
    scene.row("API down", "promote", one, candidate, end)


def test_api_down_while_rolling_back_and_settling(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=ASKED)
    one.watching()
    one.mark("canary", "success")
    with scene.api_down(resource="inferenceservices"):
        one.until("roll_back", "up_for_retry")
    one.until("roll_back", "success")
    with scene.api_down(resource="inferenceservices"):
        one.until("settle", "running", "up_for_retry")
        # One that is at it already waits in its loop; one that begins fails, and is tried again.
        until(lambda: scene.api_faults_left()[0]["seen"], "settle read nothing")
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    end = scene.end(one, stable)
    scene.row("API down", "roll back", one, stable, end)
    scene.row("API down", "settle", one, stable, end)


def test_too_many_requests_and_a_refusal_are_met_by_the_next_look(scene: Scene) -> None:
    """Six attempts within seconds are one look: the seventh answer is met by the next. A refusal is none that stands
    until it has stood for a while."""
    candidate = scene.other
    one = scene.release()
    one.until("smoke", "running")
    scene.api_fault("patch", "inferenceservices", status=429, times=7)
    one.watching()
    assert scene.api_faults_left() == [], "a fault was never met"
    # The next to patch it is the promotion.
    scene.api_fault("patch", "inferenceservices", status=403, times=1)
    assert one.ended() == "success"
    assert scene.api_faults_left() == [], "a fault was never met"
    assert "needs verb patch on inferenceservices.serving.kserve.io" in one.log("canary")
    assert (one.tries("canary"), one.tries("promote")) == (1, 1)
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("API: 429 seven times", "open", one, candidate, end, "tried again")
    scene.row("API: 403", "promote", one, candidate, end, "tried again")


def test_template_edited_by_hand(scene: Scene) -> None:
    """The edit makes a revision of its own, which takes the canary's place until the release has seen it."""
    stable = scene.stable
    one = scene.release(dag=ASKED)
    canary = one.watching()
    patch = '{"spec": {"predictor": {"containerConcurrency": 7}}}'
    scene.kubectl("patch", "inferenceservice", NAME, "--type", "merge", "--field-manager", "somebody", "-p", patch)
    assert one.ended() == "failed"
    assert f"the template of models/{NAME} is not the one that was staged, last changed by somebody" in one.sentence()
    end = scene.end(one, stable, by_hand=(following(canary),))
    scene.row("kubectl patch of the template", "watch", one, stable, end)


def test_split_changed_by_hand(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=ASKED)
    one.watching()
    patch = '{"spec": {"predictor": {"canaryTrafficPercent": 80}}}'
    scene.kubectl("patch", "inferenceservice", NAME, "--type", "merge", "--field-manager", "somebody", "-p", patch)
    assert one.ended() == "failed"
    assert "should be at 50 %; the spec says 80 %, last changed by somebody" in one.sentence()
    end = scene.end(one, stable)
    scene.row("kubectl patch of the split", "watch", one, stable, end)


def test_canary_killed_again_and_again(scene: Scene) -> None:
    stable, before = scene.stable, scene.service.rolled_out
    one = scene.release()
    canary = one.watching()
    kills = scene.crash_until(canary, lambda: one.state_of("canary") not in ("deferred", "scheduled", "queued"))
    assert kills > 0
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    # What the canary failed is the fault's own doing; nobody else may fail.
    end = scene.end(one, stable, failing=(canary, "-"))
    assert before not in scene.failing(end)
    scene.row("canary crashes again and again", "watch", one, stable, end)


def test_promoted_revision_killed_again_and_again_during_the_bake(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=BAKE)
    one.until("bake", "deferred")
    promoted = str(scene.claim.canary)
    kills = scene.crash_until(promoted, lambda: one.state_of("bake") not in ("deferred", "scheduled", "queued"))
    assert kills > 0
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    end = scene.end(one, stable, failing=(promoted, "-"))
    scene.row("canary crashes again and again", "bake", one, stable, end)


def test_stable_killed_again_and_again_beside_a_good_canary(scene: Scene) -> None:
    """A broken stable is no reason to keep a good canary back."""
    candidate, stable = scene.other, str(scene.service.rolled_out)
    one = scene.release()
    one.watching()
    scene.crash_until(stable, lambda: one.state_of("canary") not in ("deferred", "scheduled", "queued"))
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate, failing=(stable, "-"))
    assert stable in scene.failing(end) or "-" in scene.failing(end)
    scene.row("stable crashes again and again", "watch", one, candidate, end)
