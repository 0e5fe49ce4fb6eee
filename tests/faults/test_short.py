"""The few faults that every `make test` commits, the most dangerous ones; `make faults` commits them all."""

from __future__ import annotations

import pytest

from .models import ASKED, DAG, NAME
from .scene import Scene

pytestmark = pytest.mark.e2e


def test_sensor_cleared_then_triggerer_killed_then_the_cluster_api_fails_during_the_promotion(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release_in_silence(candidate, DAG)
    canary, opened = scene.claim.canary, scene.claim.watches[-1].opened_at
    one.clear("canary")
    one.until_try("canary", 2, "deferred")
    assert scene.claim.watches[-1].opened_at == opened, "the windows begin anew"
    with scene.unguarded():
        scene.kill("triggerer")
        scene.users()
        scene.restart("triggerer")
        # The write is done and its answer is lost; and somebody else writes to the lease each time.
        scene.api_fault("patch", "inferenceservices", status=500, after_write=True, times=1)
        scene.api_fault("patch", "leases", status=409, times=2)
        assert one.ended() == "success"
    assert scene.api_faults_left() == [], "a fault was never met"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate, failing=("-",))
    assert end.revision == canary
    scene.row("task cleared", "watch", one, candidate, end)
    scene.row("kill -9 of the triggerer, started again", "watch", one, candidate, end)
    scene.row("API: 500 after the write was done", "promote", one, candidate, end)


def test_task_that_rolls_back_and_the_one_that_settles_killed(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=ASKED)
    one.watching()
    one.mark("canary", "success")
    one.kill_task("roll_back")
    one.kill_task("settle")
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: task canary decided nothing about ")
    assert one.state_of("promote") == "skipped"
    assert (one.tries("roll_back") > 1, one.tries("settle") > 1) == (True, True)
    end = scene.end(one, stable)
    scene.row("task marked successful by hand", "watch", one, stable, end)
    scene.row("kill -9 of the task", "roll back", one, stable, end)
    scene.row("kill -9 of the task", "settle", one, stable, end)


def test_rolled_back_by_a_person_while_prometheus_and_the_store_are_down(scene: Scene) -> None:
    """From the form of `rollback_<model>`, beside the release that is under way."""
    stable, before = scene.stable, scene.service.rolled_out
    one = scene.release(dag=ASKED)
    one.watching()
    for part in ("prometheus", "s3"):
        scene.live.sandbox("stop", part)
    try:
        state, said = scene.order("rollback_faults-asked", "users complain")
        assert (state, scene.service.serving) == ("success", {before: 100})
        assert f"{before} has all of the traffic; {ASKED} {one.run_id} holds the service and will settle" in said
    finally:
        for part in ("prometheus", "s3"):
            scene.live.sandbox("start", part)
    assert one.ended() == "failed"
    assert one.sentence() == "rolled_back: Rolled back by admin: users complain"
    assert [(one["who"], one["decision"], one["reason"]) for one in one.record()["approvals"]] == [
        ("admin", "roll_back", "users complain")
    ]
    end = scene.end(one, stable)
    scene.row(f"person: rollback_{NAME}, with Prometheus and S3 down", "watch", one, stable, end)
