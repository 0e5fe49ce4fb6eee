"""Harm done to the service and its canary before anybody could judge it: never ready, edited, deleted."""

from __future__ import annotations

import time

import pytest
from tests.patience import until

from model_release.cluster.inference_service import STOP

from .models import ASKED, NAME, READY, SERVICE
from .releases import Release
from .scene import End, Scene

pytestmark = pytest.mark.faults


def test_canary_never_ready(scene: Scene) -> None:
    """Nothing fails and nothing comes up, until the model file's `ready_within` is over."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=READY)
    one.until("claim", "success")
    assert scene.hang(lambda: one.state_of("stage") == "failed") > 0
    assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task stage failed: not ready in time: ")
    assert one.tries("stage") == 1
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row("canary never ready", "stage", one, stable, end)


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("containerConcurrency", "kubectl patch of the template"),
        ("terminationGracePeriodSeconds", "kubectl patch adds a field to the template"),
    ],
    ids=["changed", "added"],
)
def test_template_edited_by_hand_while_the_canary_starts(scene: Scene, field: str, fault: str) -> None:
    """One field that the model file gives, and one of which it says nothing."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release()
    one.until("stage", "deferred")
    patch = f'{{"spec": {{"predictor": {{"{field}": 7}}}}}}'
    scene.kubectl("patch", "inferenceservice", NAME, "--type", "merge", "--field-manager", "somebody", "-p", patch)
    assert one.ended() == "failed"
    assert "last changed by somebody" in one.sentence()
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row(fault, "stage", one, stable, end)


def test_service_deleted_while_its_canary_is_watched(scene: Scene) -> None:
    """There is nothing left that could be brought back: it is told, and no release begins on top of it unasked."""
    stable, candidate = scene.stable, scene.other
    one = scene.release(dag=ASKED)
    one.watching()
    scene.met(one.answers())
    scene.delete_service()
    _told(scene, one)
    two = scene.release(candidate)
    assert two.ended() == "failed"
    assert two.sentence().startswith(f"failed: task claim failed: {SERVICE} is not settled: ")
    scene.row("InferenceService deleted", "watch", one, stable, _released_anew(scene, one, stable), "told")


def test_service_deleted_while_its_canary_starts(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release()
    one.until("stage", "deferred")
    scene.met(one.answers())
    scene.delete_service()
    _told(scene, one)
    scene.row("InferenceService deleted", "stage", one, stable, _released_anew(scene, one, stable), "told")


def test_service_stopped_while_its_canary_is_watched(scene: Scene) -> None:
    """Nobody is served until somebody starts it, and what starts then is the stable version, under names of its own."""
    stable = scene.stable
    one = scene.release(dag=ASKED)
    canary = one.watching()
    scene.kubectl("annotate", "inferenceservice", NAME, f"{STOP}=true")
    assert one.ended() == "failed"
    assert one.sentence().startswith(f"rolled_back: InferenceService {SERVICE} is stopped")
    assert (scene.stable, scene.service.is_split, scene.live.lease(NAME).holder) == (stable, False, None)
    scene.since = time.time()
    scene.kubectl("annotate", "inferenceservice", NAME, f"{STOP}-")
    until(
        lambda: scene.service.rolled_out is not None and sum(scene.service.serving.values()) == 100,
        lambda: f"it does not start: {scene.service.raw['status']}",
    )  # fmt: skip
    started, candidate = str(scene.service.rolled_out), scene.other
    again = scene.release(candidate)
    assert again.ended() == "success"
    # Nobody answers a user while it is stopped, and who has started it was no release.
    end = scene.end(again, candidate, failing=("-", canary), by_hand=(started,))
    scene.row("InferenceService stopped", "watch", one, candidate, End(end.revision, one.answers()), "rolled_back")


def _told(scene: Scene, one: Release) -> None:
    """The run fails as an incident, and keeps its lease."""
    assert one.ended() == "failed"
    said = f"failed: task settle failed: {SERVICE} is not settled: InferenceService {SERVICE} was deleted; "
    assert one.sentence().startswith(said)
    assert scene.service is None
    assert scene.live.lease(NAME).holder is not None


def _released_anew(scene: Scene, one: Release, version: str) -> End:
    """As docs/runbook.md has a person mend it: the lease given free, the version released again, which is now the
    service's first. What users met of `one`, and on what the traffic ends."""
    scene.edit_lease({"spec": {"holderIdentity": None}})
    again = scene.release(version)
    assert again.ended() == "success"
    assert again.outcome() == "first"
    # As long as there is no service, nobody answers.
    end = scene.end(again, version, failing=("-",))
    return End(end.revision, one.answers())
