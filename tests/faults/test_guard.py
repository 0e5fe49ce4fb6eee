"""Nobody looks at an open canary any more, whoever is to blame: the guard takes it back, and the run tells of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.patience import until

from .models import ASKED, DAG, NAME
from .scene import Scene

pytestmark = pytest.mark.faults


def test_triggerer_killed_and_kept_away(scene: Scene) -> None:
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.watching()
    scene.kill("triggerer")
    try:
        why = scene.taken_back(before)
    finally:
        scene.restart("triggerer")
    assert why.startswith("closed: nobody looked for ")
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable)
    scene.row("kill -9 of the triggerer, kept away", "watch", one, stable, end)


def test_deferred_task_deleted(scene: Scene) -> None:
    """Airflow drops its trigger with it. What becomes of the run is Airflow's to say; the traffic waits for neither."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.watching()
    with scene.unswept():
        one.delete("canary")
        why = scene.taken_back(before)
    assert why.startswith("closed: nobody looked for ")
    one.mark_run("failed")
    assert one.ended() == "failed"
    until(lambda: scene.live.lease(NAME).holder is None or bool(scene.sweep()), lambda: "never settled")
    assert one.sentence().startswith(f"rolled_back: {why}")
    end = scene.end(one, stable)
    scene.row("deferred task deleted", "watch", one, stable, end)


def test_dag_deleted(scene: Scene) -> None:
    """Its runs, tasks and triggers go with it, and who could settle; the file brings the DAG back, not the run."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.watching()
    said = one.record()
    with scene.unswept():
        scene.airflow.call("DELETE", f"/dags/{ASKED}")
        why = scene.taken_back(before)
    assert why.startswith("closed: nobody looked for ")
    until(lambda: scene.live.lease(NAME).holder is None or bool(scene.sweep()), lambda: "never settled")
    assert one.record()["release"] == said["release"]
    assert one.sentence().startswith(f"rolled_back: {why}")
    end = scene.end(one, stable)
    scene.row("DAG deleted", "watch", one, stable, end)
    scene.parse("release_digits")
    scene.airflow.wait_for_dag(ASKED)


def test_two_triggerers_with_one_canary(scene: Scene) -> None:
    """One stands still until Airflow gives its triggers to the other, and then goes on with the same ones."""
    candidate = scene.other
    one = scene.release_in_silence(candidate, DAG)
    with scene.unguarded():
        with scene.standing_still("triggerer", newcomers=False):
            renewed = scene.live.lease(NAME).renewed
            scene.restart("triggerer")
            until(lambda: scene.live.lease(NAME).renewed != renewed, lambda: "the other one does not look", pause=1.0)
        scene.users()
        assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    changes = [change["task"] for change in one.record()["traffic"]]
    assert changes == ["stage", "open_50", "promote", "settle"]
    end = scene.end(one, candidate, failing=("-",))
    scene.row("two triggerers look at one canary", "watch", one, candidate, end)


def test_guard_that_starts_late_beside_a_second_one(scene: Scene) -> None:
    """Long unrenewed when the two see the lease for the first time, it gets a whole duration from each of them."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    scene.live.sandbox("stop", "guard")
    one = scene.release(dag=ASKED)
    one.watching()
    scene.kill("triggerer")
    try:
        renewed = scene.live.lease(NAME).renewed
        scene.live.sandbox("start", "guard")
        with _second_guard(scene):
            assert scene.claim.closed is None
            why = scene.taken_back(before)
        assert scene.live.lease(NAME).renewed != renewed, "closed, and not recorded"
    finally:
        scene.live.sandbox("start", "guard")
        scene.restart("triggerer")
    assert why.startswith("closed: nobody looked for ")
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable)
    scene.row("kill -9 of the triggerer, two guards that start late", "watch", one, stable, end)


@contextlib.contextmanager
def _second_guard(scene: Scene) -> Iterator[None]:
    """`python -m model_release guard`, as somebody starts it beside the one that runs."""
    state = scene.live.state
    command = [sys.executable, "-m", "model_release", "guard", "--namespace", "models"]
    command += ["--kubeconfig", str(state / "kubeconfig.yaml")]
    env = {**os.environ, "PYTHONPATH": str(scene.live.project / "plugins")}
    with (state / "logs" / "second-guard.log").open("ab") as log:
        guard = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield
        assert guard.poll() is None, "the second guard has ended"
    finally:
        guard.terminate()
        guard.wait(30)
