"""Harm done to releases that are under way, in a real Airflow beside real servers, under users' load.

After each the end is looked at from outside: which revision answers, what is in the spec, whether a lease is left,
how the run ended and whether its last sentence is true, and how the users fared.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import pytest

from .scene import DAG, LATE, NAME, Scene, failures

pytestmark = pytest.mark.faults


def test_run_marked_failed_while_watched_then_prometheus_gone_under_the_next_in_line(scene: Scene) -> None:
    """Two faults on two releases of one service: the second waits in line for the first."""
    stable = scene.stable
    first = scene.release()
    first.watching()
    second = scene.release(first.candidate, dag=LATE)
    second.until("claim", "deferred")
    assert scene.claim.owner.run_id == first.run_id
    began = time.monotonic()
    scene.live.airflow.call("PATCH", first.path, json={"state": "failed"})
    second.until("watch_50", "deferred")
    between = time.monotonic() - began
    scene.live.sandbox("stop", "prometheus")
    try:
        assert (first.ended(), second.ended()) == ("failed", "failed")
    finally:
        scene.live.sandbox("start", "prometheus")
    # The second when the watch had just come to its end by itself.
    assert first.sentence().startswith(("failed: task watch_50 failed", "failed: the run was ended before it came to"))
    assert second.sentence().startswith("rolled_back: ")
    assert second.state_of("promote") == "skipped"
    revision, answers = scene.at_rest(stable), second.answers()
    assert failures(answers) == {}
    scene.row("run marked failed by hand", "watch", first, stable, revision, answers)
    scene.row(
        "two releases at once", "claim", second, stable, revision, answers, f"waited, began {between:.0f} s later"
    )
    scene.row("Prometheus gone for good", "watch", second, stable, revision, answers)


def test_sensor_cleared_then_triggerer_killed_then_the_cluster_api_fails_during_the_promotion(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    canary = one.watching()
    opened = scene.claim.opened_at
    one.clear("watch_50")
    one.until_try("watch_50", 2, "deferred")
    assert scene.claim.opened_at == opened, "the windows begin anew"
    scene.kill("triggerer")
    scene.restart("triggerer")
    # The write is done and its answer is lost; and somebody else writes to the lease each time.
    scene.api_fault("patch", "inferenceservices", status=500, after_write=True, times=1)
    scene.api_fault("patch", "leases", status=409, times=2)
    assert one.ended() == "success"
    assert scene.api_faults_left() == [], "a fault was never met"
    assert one.sentence().startswith("promoted: ")
    revision, answers = scene.at_rest(candidate), one.answers()
    assert revision == canary
    assert failures(answers) == {}
    scene.row("sensor cleared while it waits", "watch", one, candidate, revision, answers)
    scene.row("kill -9 of the triggerer, started again", "watch", one, candidate, revision, answers)
    scene.row("API: 500 after the write was done, 409 twice", "promote", one, candidate, revision, answers)


def test_smoke_prediction_marked_successful_by_hand(scene: Scene) -> None:
    """A branch that never chose: both ways behind it begin, before there is anything to open."""
    stable, before = scene.stable, scene.service.rolled_out
    one = scene.release()
    one.until("stage", "deferred")
    scene.live.airflow.call("PATCH", f"{one.path}/taskInstances/smoke", json={"new_state": "success"})
    assert one.ended() == "failed"
    assert one.state_of("open_50") == one.state_of("go_live") == "failed"
    assert one.sentence().startswith(("failed: task open_50 failed", "failed: task go_live failed"))
    revision, answers = scene.at_rest(stable), one.answers()
    met = {name for name, counts in answers.items() if counts.total()}
    assert met <= {before, revision}, "a user met a revision that had answered nobody"
    assert failures(answers) == {}
    scene.row("smoke prediction marked successful by hand", "stage", one, stable, revision, answers)


def test_sensor_marked_successful_by_hand(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release()
    one.watching()
    scene.live.airflow.call("PATCH", f"{one.path}/taskInstances/watch_50", json={"new_state": "success"})
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: task watch_50 left no verdict")
    assert one.state_of("promote") == "skipped"
    revision, answers = scene.at_rest(stable), one.answers()
    assert failures(answers) == {}
    scene.row("sensor marked successful by hand", "watch", one, stable, revision, answers)


def test_split_changed_by_hand_and_the_task_that_settles_killed(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release()
    one.watching()
    patch = '{"spec": {"predictor": {"canaryTrafficPercent": 80}}}'
    scene.kubectl("patch", "inferenceservice", NAME, "--type", "merge", "--field-manager", "somebody", "-p", patch)
    one.kill_task("settle")
    assert one.ended() == "failed"
    assert "should be at 50 %; the spec says 80 %, last changed by somebody" in one.sentence()
    revision, answers = scene.at_rest(stable), one.answers()
    assert failures(answers) == {}
    scene.row("kubectl patch of the split", "watch", one, stable, revision, answers)
    assert scene.live.airflow.tasks(one.dag, one.run_id)["settle"]["try_number"] > 1
    scene.row("kill -9 of the task", "settle", one, stable, revision, answers)


def test_canary_killed_again_and_again(scene: Scene) -> None:
    stable, before = scene.stable, scene.service.rolled_out
    one = scene.release()
    canary = one.watching()
    kills = 0
    while one.state_of("watch_50") in ("deferred", "scheduled", "queued") and kills < 40:
        kills += scene.live.sandbox("kill", f"models/{canary}", check=False).returncode == 0
        time.sleep(2)
    assert kills > 1
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: ")
    revision, answers = scene.at_rest(stable), one.answers()
    # What the canary failed is the fault's own doing; nobody else may fail.
    assert set(failures(answers)) <= {canary, "-"}
    assert failures({before: answers[before], revision: answers[revision]}) == {}
    scene.row(f"the canary's process killed {kills} times", "watch", one, stable, revision, answers)


def test_scheduler_and_triggerer_killed_and_the_run_gone_from_the_database(scene: Scene) -> None:
    """A database restored from yesterday knows neither the run nor that a canary is open."""
    stable = scene.stable
    one = scene.release()
    canary = one.watching()
    scene.kill("scheduler")
    scene.kill("triggerer")
    _forget_run(scene, one.dag, one.run_id)
    lease = scene.live.lease(NAME)
    claim = lease.raw["metadata"]["annotations"]["model-release/claim"]
    # Before the sweep settles it, what it must not touch: a lease of another Airflow, and a canary of nobody's.
    elsewhere = claim.replace(lease.claim.owner.installation, "https://elsewhere")
    scene.edit_lease(_held(lease.holder, elsewhere))
    scene.restart("triggerer")
    scene.restart("scheduler")
    state, lines = scene.sweep()
    assert (state, len(lines)) == ("success", 1)
    assert f"is being released by another Airflow, {DAG} {one.run_id} (open at 50 %" in lines[0]
    scene.edit_lease({"spec": {"holderIdentity": None}})
    state, lines = scene.sweep()
    assert (state, len(lines)) == ("success", 1)
    assert lines[0].startswith(f"models/{NAME}: {canary} takes 50 % and no release claims it")
    assert scene.service.canary_percent == 50
    scene.edit_lease(_held(lease.holder, claim))
    # Either this one or the one that its schedule started meanwhile.
    state, lines = scene.sweep()
    assert state == "success"
    said = one.sentence()
    assert said.startswith(
        f"failed: its run ended without settling; models/{NAME}: left by {DAG} {one.run_id} (open at"
    )
    revision, answers = scene.at_rest(stable), one.answers()
    assert failures(answers) == {}
    assert revision != canary
    assert scene.sweep() == ("success", [])
    scene.row(
        "kill -9 of scheduler and triggerer, run lost", "watch", one, stable, revision, answers, "settled by sweep"
    )


def _held(holder: str, claim: str) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder}, "metadata": {"annotations": {"model-release/claim": claim}}}


def _forget_run(scene: Scene, dag: str, run_id: str) -> None:
    """Takes a run out of Airflow's database, with all that belongs to it."""
    with sqlite3.connect(scene.live.state / "airflow" / "airflow.db", timeout=30) as database:
        database.execute(
            "UPDATE task_instance SET state = 'failed' WHERE dag_id = ? AND run_id = ? AND state IS NOT 'success'",
            (dag, run_id),
        )
        database.execute("UPDATE dag_run SET state = 'failed' WHERE dag_id = ? AND run_id = ?", (dag, run_id))
    scene.live.airflow.call("DELETE", f"/dags/{dag}/dagRuns/{run_id}")
    gone = [run["dag_run_id"] for run in scene.live.airflow.call("GET", f"/dags/{dag}/dagRuns")["dag_runs"]]
    assert run_id not in gone
