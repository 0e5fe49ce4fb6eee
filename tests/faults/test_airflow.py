"""Harm done to Airflow: killed tasks and parts, a lost database, a deleted DAG, and two runs at once."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg2
import pytest
from tests.patience import until

from sandbox.postgres import Postgres

from .models import ASKED, BAKE, LATE, NAME
from .releases import Release
from .scene import Scene

pytestmark = pytest.mark.faults


def test_run_marked_failed_while_watched_then_prometheus_gone_under_the_next_in_line(scene: Scene) -> None:
    """Faults on two releases of one service: the second waits in line for the first, also without a triggerer."""
    stable = scene.stable
    first = scene.release(dag=ASKED)
    first.watching()
    second = scene.release(first.candidate, dag=LATE)
    second.until("claim", "deferred")
    assert scene.claim.owner.run_id == first.run_id
    with scene.unguarded():
        scene.kill("triggerer")
        scene.restart("triggerer")
        began = time.monotonic()
        first.mark_run("failed")
        second.until("canary", "deferred")
    second.watching()
    between = time.monotonic() - began
    scene.live.sandbox("stop", "prometheus")
    try:
        assert (first.ended(), second.ended()) == ("failed", "failed")
    finally:
        scene.live.sandbox("start", "prometheus")
    assert first.sentence().startswith("failed: task canary failed")
    assert second.sentence().startswith("rolled_back: ")
    assert second.state_of("promote") == "skipped"
    end = scene.end(second, stable)
    scene.row("run marked failed by hand", "watch", first, stable, end)
    scene.row("two releases at once", "claim", second, stable, end, f"waited, began {between:.0f} s later")
    scene.row("kill -9 of the triggerer, started again", "claim", second, stable, end, "waited on")
    scene.row("Prometheus gone for good", "watch", second, stable, end)


def test_tasks_killed_on_the_way_to_a_promotion(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    killed = ("claim", "stage", "canary", "decide", "promote")
    for task in killed:
        one.kill_task(task)
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    # What the first try wrote is found by the second.
    assert [one.tries(task) > 1 for task in killed] == [True] * len(killed)
    end = scene.end(one, candidate)
    for stage in ("claim", "stage", "watch", "decide", "promote"):
        scene.row("kill -9 of the task", stage, one, candidate, end)


def test_triggerer_killed_while_the_canary_starts_scheduler_while_watched_and_while_promoting(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    one.until("stage", "deferred")
    scene.kill("triggerer")
    scene.restart("triggerer")
    one.watching()
    scene.kill("scheduler")
    scene.restart("scheduler")
    one.until("canary", "success")
    scene.api_fault("get", "inferenceservices", delay=2.0)
    one.until("promote", "running")
    scene.kill("scheduler")
    scene.api_mended()
    scene.restart("scheduler")
    assert one.ended() == "success"
    assert one.tries("promote") > 1
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("kill -9 of the triggerer, started again", "stage", one, candidate, end)
    scene.row("kill -9 of the scheduler, started again", "watch", one, candidate, end)
    scene.row("kill -9 of the scheduler, started again", "promote", one, candidate, end)


def test_triggerer_killed_and_prometheus_gone_during_the_bake(scene: Scene) -> None:
    """Nobody watches for a while, and then there is nothing to see: what was promoted on evidence stays."""
    candidate = scene.other
    one = scene.release(dag=BAKE)
    one.until("bake", "deferred")
    scene.kill("triggerer")
    scene.live.sandbox("stop", "prometheus")
    scene.restart("triggerer")
    try:
        assert one.ended() == "success"
    finally:
        scene.live.sandbox("start", "prometheus")
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("kill -9 of the triggerer, started again", "bake", one, candidate, end)
    scene.row("Prometheus gone for good", "bake", one, candidate, end)


@pytest.mark.usefixtures("unguarded")
def test_scheduler_and_triggerer_killed_and_the_run_gone_from_the_database(scene: Scene) -> None:
    """A database restored from yesterday knows neither the run nor that a canary is open."""
    stable = scene.stable
    one = scene.release(dag=ASKED)
    canary = one.watching()
    scene.kill("scheduler")
    scene.kill("triggerer")
    _forget_run(scene, one.dag, one.run_id)
    lease = scene.live.lease(NAME)
    claim = lease.raw["metadata"]["annotations"]["model-release/claim"]
    # Before the sweep settles it, what it must not touch: a lease of another Airflow, and a canary of nobody's.
    elsewhere = claim.replace(lease.release.owner.installation, "https://elsewhere")
    scene.edit_lease(_held(lease.holder, elsewhere))
    scene.restart("triggerer")
    scene.restart("scheduler")
    state, lines = scene.sweep()
    assert (state, len(lines)) == ("success", 1)
    assert f"is being released by another Airflow, {ASKED} {one.run_id} (open at 50 %" in lines[0]
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
        f"failed: its run ended without settling; models/{NAME}: left by {ASKED} {one.run_id} (open at"
    )
    end = scene.end(one, stable)
    assert end.revision != canary
    assert scene.sweep() == ("success", [])
    scene.row("kill -9 of scheduler and triggerer, run lost", "watch", one, stable, end, "settled by sweep")


@pytest.mark.usefixtures("unguarded")
def test_model_file_deleted_under_a_release(scene: Scene) -> None:
    """Its DAG goes with it, and no task of it runs any more: the lease is what the sweep goes by."""
    stable = scene.stable
    file = scene.live.project / "include" / "models" / "faults-asked.yaml"
    text = file.read_text()
    one = scene.release(dag=ASKED)
    one.watching()
    said = one.record()
    file.unlink()
    try:
        scene.parse("release_digits", "sweep")
        scene.airflow.call("DELETE", f"/dags/{ASKED}")
        state, lines = scene.sweep()
        assert state == "success"
        assert scene.live.lease(NAME).holder is None, lines
        end = scene.end(one, stable)
        assert one.outcome() == "failed"
        assert one.record()["release"] == said["release"]
        scene.row("model file and DAG deleted", "watch", one, stable, end, "settled by sweep")
    finally:
        file.write_text(text)
        scene.parse("release_digits", "sweep")
        scene.airflow.wait_for_dag(ASKED)


def test_backfill_beside_a_scheduled_run(scene: Scene) -> None:
    """`max_active_runs` does not count a backfill's runs (docs/facts.md#backfills-are-counted-apart): the lease does.
    The backfill was told to move traffic, which by itself it never does. Both wait in line for a third."""
    candidate, file = scene.other, scene.live.project / "include" / "models" / "faults-late.yaml"
    text = file.read_text()
    first = scene.release(dag=ASKED)
    first.watching()
    # A DAG that gets a schedule gets its latest run at once.
    file.write_text(text.replace("deadline: 12s", "deadline: 3m") + 'schedule: "0 0 * * *"\n')
    try:
        scene.parse("release_digits")
        scheduled = _run_of(scene, "scheduled", candidate)
        scheduled.until("claim", "deferred")
        day = "2026-01-05T00:00:00Z"
        conf = {"rollout": "canary", "version": candidate}
        body = {"dag_id": LATE, "from_date": day, "to_date": day, "reprocess_behavior": "none", "dag_run_conf": conf,
                "max_active_runs": 1, "run_backwards": False}  # fmt: skip
        scene.airflow.call("POST", "/backfills", json=body)
        backfill = _run_of(scene, "backfill", candidate)
        backfill.until("claim", "deferred")
        assert scene.claim.owner.run_id == first.run_id
        first.mark_run("failed")
        assert first.ended() == "failed"
        assert (scheduled.ended(), backfill.ended()) == ("success", "success")
        end = scene.end(backfill, scene.stable)
        assert _apart(scheduled.record(), backfill.record()), "two releases moved one service at a time"
        for one, what in ((scheduled, "scheduled run"), (backfill, "backfill")):
            scene.row(f"{what} beside the other and a third", "claim", one, scene.stable, end, "waited, then promoted")
    finally:
        file.write_text(text)
        scene.parse("release_digits")


def _run_of(scene: Scene, kind: str, candidate: str) -> Release:
    """The run of this type that Airflow made."""
    found: list[str] = []

    def there() -> bool:
        runs = scene.airflow.call("GET", f"/dags/{LATE}/dagRuns", params={"run_type": kind})["dag_runs"]
        found.extend(run["dag_run_id"] for run in runs)
        return bool(found)

    until(there, lambda: f"no {kind} run came")
    return Release(scene, LATE, found[0], candidate, scene.answers())


def _apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one release had made its last change of traffic before the other made its first."""
    times = sorted([change["time"] for change in record["traffic"]] for record in (one, other) if record["traffic"])
    return len(times) < 2 or max(times[0]) < min(times[1])


def _held(holder: str, claim: str) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder}, "metadata": {"annotations": {"model-release/claim": claim}}}


def _forget_run(scene: Scene, dag: str, run_id: str) -> None:
    """Takes a run out of Airflow's database, with all that belongs to it."""
    address = Postgres(scene.live.state).sqlalchemy_url.replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as connection, connection, connection.cursor() as database:
        database.execute(
            "UPDATE task_instance SET state = 'failed'"
            " WHERE dag_id = %s AND run_id = %s AND state IS DISTINCT FROM 'success'",
            (dag, run_id),
        )
        database.execute("UPDATE dag_run SET state = 'failed' WHERE dag_id = %s AND run_id = %s", (dag, run_id))
    scene.airflow.call("DELETE", f"/dags/{dag}/dagRuns/{run_id}")
    gone = [run["dag_run_id"] for run in scene.airflow.call("GET", f"/dags/{dag}/dagRuns")["dag_runs"]]
    assert run_id not in gone
