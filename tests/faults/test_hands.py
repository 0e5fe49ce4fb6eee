"""A person's mouse in Airflow's UI: tasks and runs marked and cleared by hand, where nobody should."""

from __future__ import annotations

import pytest
from tests.patience import until

from .models import ASKED, BAKE, DAG
from .scene import Scene

pytestmark = pytest.mark.faults


def test_smoke_prediction_marked_successful_by_hand(scene: Scene) -> None:
    """A branch that never chose: all ways behind it begin, before there is anything to open."""
    stable, before = scene.stable, scene.service.rolled_out
    one = scene.release()
    one.until("stage", "deferred")
    one.mark("smoke", "success")
    assert one.ended() == "failed"
    assert one.state_of("canary") == one.state_of("go_live") == "failed"
    assert one.sentence().startswith(("failed: task canary failed", "failed: task go_"))
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row("task marked successful by hand", "stage", one, stable, end)


def test_decision_marked_successful_by_hand(scene: Scene) -> None:
    """Both ways behind the branch begin: nothing says that the canary was judged, so no way leads forward."""
    stable = scene.stable
    one = scene.release(dag=ASKED)
    one.watching()
    one.mark("decide", "success")
    one.mark("canary", "failed")
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: Rolled back: task roll_back was run, ")
    assert one.state_of("promote") in ("failed", "skipped", "upstream_failed")
    end = scene.end(one, stable)
    scene.row("task marked successful by hand", "decide", one, stable, end)
    scene.row("task marked failed by hand", "watch", one, stable, end)


def test_bake_cleared_and_then_marked_successful_by_hand(scene: Scene) -> None:
    """What was promoted on evidence stays: only evidence against it takes it back."""
    candidate = scene.other
    one = scene.release(dag=BAKE)
    one.until("bake", "deferred")
    one.clear("bake")
    one.until_try("bake", 2, "deferred")
    one.mark("bake", "success")
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("task cleared", "bake", one, candidate, end)
    scene.row("task marked successful by hand", "bake", one, candidate, end)


def test_whole_run_cleared_after_it_was_promoted(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release()
    canary = one.watching()
    assert one.ended() == "success"
    said = one.sentence()
    assert said.startswith("promoted: ")
    end = scene.end(one, candidate)
    assert end.revision == canary
    one.clear_all()
    one.until("report", "running", "success")
    assert one.ended() == "success"
    assert "nothing new" in one.log("report", 2)
    assert one.sentence() == said
    end = scene.end(one, candidate)
    assert end.revision == canary
    scene.row("whole run cleared, after it had promoted", "afterwards", one, candidate, end)


def test_whole_run_cleared_after_it_was_rolled_back(scene: Scene) -> None:
    """It is judged again: what was rolled back once is nothing that was proven."""
    stable, candidate = scene.stable, scene.other
    one = scene.release()
    first = one.watching()
    one.mark("canary", "success")
    assert one.ended() == "failed"
    scene.end(one, stable)
    one.clear_all()
    one.until_try("canary", 2, "deferred")
    assert scene.claim.canary != first
    assert one.ended() == "success"
    assert one.sentence().startswith("promoted: ")
    end = scene.end(one, candidate)
    scene.row("whole run cleared, after it was rolled back", "afterwards", one, candidate, end)


def test_run_marked_failed_while_it_builds(scene: Scene) -> None:
    """No process goes on building, and what was half made is no version."""
    stable, before = scene.stable, scene.stored()
    one = scene.build(rollout="canary")
    one.until("export", "running")
    until(lambda: scene.building() != [], lambda: "nothing is built")
    one.mark_run("failed")
    assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task export failed: it was ended from outside")
    until(lambda: scene.building() == [], lambda: f"still built: {scene.building()}")
    end = scene.end(one, stable)
    assert scene.stored() == before
    scene.row("run marked failed by hand", "build", one, stable, end)


def test_run_marked_failed_while_its_canary_starts(scene: Scene) -> None:
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release()
    one.until("stage", "deferred")
    one.mark_run("failed")
    assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task stage failed: it was ended from outside")
    end = scene.end(one, stable)
    assert scene.met(end.answers) <= {before, end.revision}
    scene.row("run marked failed by hand", "stage", one, stable, end)


def test_run_marked_failed_while_it_promotes(scene: Scene) -> None:
    """The canary was judged and the promotion begun: either end is proven, and the run says that it was ended."""
    one = scene.release()
    one.until("canary", "success")
    scene.api_fault("get", "inferenceservices", delay=2.0)
    try:
        one.until("promote", "running")
        one.mark_run("failed")
    finally:
        scene.api_mended()
    assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task promote failed: it was ended from outside")
    end = scene.end(one, scene.stable)
    scene.row("run marked failed by hand", "promote", one, scene.stable, end)


def test_run_marked_failed_while_it_rolls_back(scene: Scene) -> None:
    stable = scene.stable
    one = scene.release(dag=ASKED)
    one.watching()
    one.mark("canary", "success")
    scene.api_fault("get", "inferenceservices", delay=2.0)
    try:
        one.until("roll_back", "running")
        one.mark_run("failed")
    finally:
        scene.api_mended()
    assert one.ended() == "failed"
    assert one.sentence().startswith("rolled_back: task canary decided nothing about ")
    end = scene.end(one, stable)
    scene.row("run marked failed by hand", "roll back", one, stable, end)


def test_run_marked_failed_during_the_bake(scene: Scene) -> None:
    candidate = scene.other
    one = scene.release(dag=BAKE)
    one.until("bake", "deferred")
    one.mark_run("failed")
    assert one.ended() == "failed"
    assert one.sentence().startswith("failed: task bake failed: it was ended from outside")
    end = scene.end(one, candidate)
    scene.row("run marked failed by hand", "bake", one, candidate, end)


def test_steps_and_limits_edited_under_a_release(scene: Scene) -> None:
    """Counts from the next release on: this one goes on by the file that it began with, also when its task runs anew
    with the other one in its hand."""
    candidate, file = scene.other, scene.live.project / "include" / "models" / "faults.yaml"
    text = file.read_text()
    one = scene.release_in_silence(candidate, DAG)
    edited = text.replace("steps: [50]", "steps: [5, 80]").replace("min_requests: 150", "min_requests: 1000000")
    file.write_text(edited.replace("max_rate: 0.1", "max_rate: 0.0001"))
    try:
        scene.parse("release_digits")
        until(
            lambda: "5 % → 80 %" in scene.airflow.call("GET", f"/dags/{DAG}")["description"],
            lambda: "the edited file was not read",
        )  # fmt: skip
        one.clear("canary")
        one.until_try("canary", 2, "deferred")
        scene.users()
        assert one.ended() == "success"
    finally:
        file.write_text(text)
        scene.parse("release_digits")
    assert one.sentence().startswith("promoted: ")
    (step,) = one.record()["steps"]
    assert (step["percent"], step["policy"]["min_requests"]) == (50, 150)
    end = scene.end(one, candidate, failing=("-",))
    scene.row("steps and limits edited", "watch", one, candidate, end)
