"""Airflow cannot run a task any more, or the canary is dead: the one that looks closes it all the same, by itself."""

from __future__ import annotations

import pytest
from tests.patience import until

from .models import ASKED, BAD, BAKE, PERSON
from .scene import Scene, following

pytestmark = pytest.mark.faults


def test_dag_paused_under_a_bad_canary(scene: Scene) -> None:
    """A1: nobody can be scheduled; the triggerer takes it back all the same."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release_in_silence(scene.bad, BAD)
    canary = str(scene.claim.canary)
    scene.pause(BAD)
    try:
        scene.users()
        why = scene.taken_back(before)
        assert one.state_of("decide") not in ("success", "running")
    finally:
        scene.pause(BAD, paused=False)
    assert why.startswith("Rolled back: ")
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary, "-"))
    scene.row("DAG paused, bad canary", "watch", one, stable, end)


def test_executor_wedged_under_a_bad_canary(scene: Scene) -> None:
    """The processes of LocalExecutor stand still, so no task runs."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release_in_silence(scene.bad, BAD)
    canary = str(scene.claim.canary)
    with scene.standing_still("LocalExecutor"):
        scene.users()
        why = scene.taken_back(before)
        assert one.state_of("decide") not in ("success", "running")
    assert why.startswith("Rolled back: ")
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary, "-"))
    scene.row("executor wedged, bad canary", "watch", one, stable, end)


def test_canary_dead_in_the_moment_it_is_opened(scene: Scene) -> None:
    """There is no window yet, and nothing to count."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    one.until("smoke", "success")
    canary = str(scene.claim.canary)
    scene.pods_die(canary)
    try:
        until(lambda: scene.claim.closed is not None, lambda: f"still open: {scene.claim}")
        why = scene.taken_back(before)
        assert why.startswith(f"{canary} is dead: ")
    finally:
        scene.api_mended()
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary,))
    scene.row("canary dead", "open", one, stable, end)


def test_canary_dead_in_the_middle_of_the_watch(scene: Scene) -> None:
    """For good, so that its Revision holds the route: 0 % acts only when that is deleted."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=ASKED)
    canary = one.watching()
    scene.pods_die(canary)
    try:
        why = scene.taken_back(before)
        assert why.startswith(f"{canary} is dead: ")
        assert one.ended() == "failed"
    finally:
        scene.api_mended()
    assert one.sentence() == f"rolled_back: {why}"
    assert [change["task"] for change in one.record()["traffic"]] == ["stage", "open_50", "roll_back", "settle"]
    end = scene.end(one, stable, failing=(canary,))
    scene.row("canary dead", "watch", one, stable, end)


def test_canary_dead_while_a_person_is_asked(scene: Scene) -> None:
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=PERSON)
    canary = one.watching()
    until(lambda: scene.claim.watches[-1].beside_question, lambda: f"nobody is asked: {scene.claim}")
    scene.pods_die(canary)
    try:
        why = scene.taken_back(before)
        assert why.startswith(f"{canary} is dead: ")
    finally:
        scene.api_mended()
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary,))
    scene.row("canary dead, while a person is asked", "watch", one, stable, end)


def test_canary_dead_after_its_promotion(scene: Scene) -> None:
    """It has everything, and KServe takes it for the stable one: deleted first, then 0 %."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release(dag=BAKE)
    one.until("bake", "deferred")
    canary = str(scene.claim.canary)
    scene.pods_die(canary)
    try:
        why = scene.taken_back(before)
        assert why.startswith(f"{canary} is dead: ")
        # What is promoted has users, and none of them had to wait for a pod that is new.
        assert scene.service.latest_created in (canary, following(canary))
    finally:
        scene.api_mended()
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary, "-"))
    scene.row("canary dead", "bake", one, stable, end)


def test_stable_dead_beside_a_bad_canary(scene: Scene) -> None:
    """Back on what is dead is back on what was proven; until it heals nothing moves, and that is told."""
    stable, before = scene.stable, str(scene.service.rolled_out)
    one = scene.release_in_silence(scene.bad, BAD)
    canary = str(scene.claim.canary)
    scene.pods_die(before, times=1)
    until(lambda: scene.api_faults_left() == [], lambda: "stable was not killed")
    scene.users()
    why = scene.taken_back(before)
    assert why.startswith("Rolled back: ")
    assert one.ended() == "failed"
    assert one.sentence() == f"rolled_back: {why}"
    end = scene.end(one, stable, failing=(canary, before, "-"))
    scene.row("stable dead, bad canary", "watch", one, stable, end)
