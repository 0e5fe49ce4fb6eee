"""The drive of a canary on a real API server with the sandbox's controllers: what it does, when it is killed between
two writes, when two of them drive the same canary, and when other hands are there. The judge's word is given."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.progress import Progress, State
from model_release.cluster.release import Cause, Owner, Phase
from model_release.errors import CanaryLost, NotSettled, ServiceBusy
from model_release.release import advance
from model_release.release.advance import Done
from model_release.release.emergency import Person, roll_back_now
from model_release.spec import ModelSpec

from .driven import NEW, OWNER, STABLE, Scene, dies, scene, until

__all__ = ["scene"]


def test_it_opens_widens_and_promotes_without_any_other_hand(scene: Scene) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks > 2)
    assert scene.serving == {STABLE: 75, NEW: 25}
    assert scene.claim.opened_at is not None
    scene.at(25).judged = "promote"
    until(drive, lambda: scene.at(50).looks > 0)
    assert scene.serving == {STABLE: 50, NEW: 50}
    scene.at(50).judged, scene.at(50).reason = "promote", "0 of 300"
    until(drive, lambda: drive.done)
    assert drive.done == Done("promote", "0 of 300")
    assert scene.serving == {NEW: 100}
    assert [move.percent for move in drive.moved] == [25, 50, 100]
    assert (scene.claim.phase, scene.claim.word) == (Phase.PROMOTED, "0 of 300")
    assert scene.claim.promoted_at is not None


def test_a_ramp_gives_the_share_that_the_judge_says_and_promotes_from_any(scene: Scene) -> None:
    scene.rules = replace(scene.rules, steps=(), ramp_from=2)
    drive = scene.drive()
    until(drive, lambda: scene.at(2).looks)
    scene.at(2).judged, scene.at(2).share, scene.at(2).windows = "open", 20, [object()] * 3
    until(drive, lambda: scene.at(20).looks)
    assert scene.serving == {STABLE: 80, NEW: 20}
    assert [(one.percent, one.windows) for one in scene.claim.watches] == [(2, 3), (20, None)]
    scene.at(20).judged, scene.at(20).reason = "promote", "0 of 300"
    other = scene.drive()  # another triggerer, which knows no more than the lease says
    until(other, lambda: other.done)
    assert other.done == Done("promote", "0 of 300")
    assert scene.serving == {NEW: 100}
    assert [move.percent for move in other.moved] == [2, 20, 100], "whoever ends it tells the whole way"


def test_a_ramp_takes_back_from_whatever_share(scene: Scene) -> None:
    scene.rules = replace(scene.rules, steps=(), ramp_from=2)
    drive = scene.drive()
    until(drive, lambda: scene.at(2).looks)
    scene.at(2).judged, scene.at(2).share = "open", 35
    until(drive, lambda: scene.at(35).looks)
    scene.at(35).judged, scene.at(35).reason = "rollback", "9 of 30"
    until(drive, lambda: drive.done)
    assert drive.done == Done("rollback", "9 of 30")
    assert scene.serving == {STABLE: 100}


def test_evidence_against_takes_the_traffic_back_in_the_same_look(scene: Scene) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    scene.at(25).judged, scene.at(25).reason = "rollback", "9 of 30 failed"
    drive.look()
    assert scene.kube.live().canary_percent == 0, "written in the look that saw it"
    until(drive, lambda: drive.done)
    assert drive.done == Done("rollback", "9 of 30 failed")
    assert scene.serving == {STABLE: 100}
    assert (scene.claim.closed, scene.claim.cause) == ("9 of 30 failed", Cause.EVIDENCE)
    assert scene.claim.phase is Phase.RESTORED
    assert [move.percent for move in drive.moved] == [25, 0]


def test_each_look_is_a_heartbeat_in_the_lease(scene: Scene) -> None:
    drive = scene.drive()
    beats = set()
    for _ in range(3):
        drive.look()
        lease = scene.kube.leases.read("models", "digits")
        assert lease is not None
        beats.add(lease.renewed)
    assert len(beats) == 3


@pytest.mark.parametrize("killed_after", range(12))
def test_a_drive_that_is_killed_anywhere_is_gone_on_with_by_the_next_one(scene: Scene, killed_after: int) -> None:
    """Each drive lives for a few calls of the cluster only, and forgets all that it knew."""
    scene.at(25).judged = scene.at(50).judged = "promote"
    calls = 0
    real = scene.kube.services.get

    class Killed(Exception):
        pass

    def get(*words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed_after:
            raise Killed
        return real(*words)

    first = scene.drive()
    first.services = type("Services", (), {"get": staticmethod(get), "change": scene.kube.services.change})()
    try:
        for _ in range(killed_after + 1):
            first.look()
    except Killed:
        pass
    drive = scene.drive()
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert drive.done.decision == "promote"
    assert [one.percent for one in scene.claim.watches] == [25, 50]
    assert [(move.change, move.revisions) for move in drive.moved] == [
        ("open_25", {NEW: 25, STABLE: 75}),
        ("open_50", {NEW: 50, STABLE: 50}),
        ("promote", {NEW: 100}),
    ]
    assert scene.serving == {NEW: 100}


@pytest.mark.parametrize("word", ["promote", "rollback"])
def test_two_drives_of_one_canary_do_no_harm(scene: Scene, word: str) -> None:
    """Airflow may run a trigger twice: two triggerers for a while hold it for theirs."""
    one, other = scene.drive(), scene.drive()
    scene.at(25).judged = "promote"
    scene.at(50).judged = word
    until(one, lambda: one.done, also=other)
    until(other, lambda: other.done)
    assert one.done is not None
    assert other.done is not None
    assert one.done.decision == other.done.decision == word
    assert scene.serving == ({NEW: 100} if word == "promote" else {STABLE: 100})
    assert [stretch.percent for stretch in scene.claim.watches] == [25, 50], "nothing was begun twice"


def test_a_canary_that_another_hand_closed_is_not_opened_again(scene: Scene) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    scene.kube.leases.update("models", "digits", OWNER, lambda now: now.close("nobody looked for 63 s", Cause.GUARD))
    scene.at(25).judged = "promote"
    until(drive, lambda: drive.done)
    assert drive.done == Done("rollback", "nobody looked for 63 s")
    assert scene.serving == {STABLE: 100}


def test_a_person_who_takes_it_back_by_command_ends_the_drive(scene: Scene) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    me = Person("anna", "users complain", Owner("by hand", "anna", "", "by hand"))
    roll_back_now(
        scene.kube.services, scene.kube.leases, "models", "digits", me, seconds=600, tell=lambda progress: None
    )
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert drive.done.decision == "rollback"
    assert "anna: users complain" in drive.done.reason
    assert scene.serving == {STABLE: 100}


def test_a_question_is_watched_and_evidence_goes_before_its_answer(scene: Scene, spec: ModelSpec) -> None:
    scene.rules = replace(scene.rules, asks="before_promote", answer_within="4h")
    drive = scene.drive()
    scene.at(25).judged = scene.at(50).judged = "promote"
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert drive.done.decision == "ask"
    assert scene.serving == {STABLE: 50, NEW: 50}

    drive.record(lambda claim: advance.ask(claim, datetime.now(UTC).isoformat(), "0 of 300"))
    beside = scene.drive()
    until(beside, lambda: scene.at(50, True).looks)
    scene.at(50, True).judged, scene.at(50, True).reason = "rollback", "9 of 30"
    until(beside, lambda: beside.done)
    assert beside.done == Done("rollback", "9 of 30")
    assert scene.serving == {STABLE: 100}


def test_a_release_whose_lease_passed_on_moves_nothing(scene: Scene) -> None:
    drive = scene.drive()
    scene.kube.leases.give_free("models", "digits", OWNER)
    with pytest.raises(ServiceBusy, match="is held by nobody"):
        drive.look()
    assert scene.serving == {STABLE: 100}


def test_a_cluster_that_is_away_is_waited_for(scene: Scene) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    scene.at(25).judged, scene.at(25).reason = "rollback", "9 of 30"
    scene.kube.fault("patch", "inferenceservices", status=503, times=20)
    until(drive, lambda: drive.done)
    assert scene.serving == {STABLE: 100}


def test_another_hand_between_the_read_and_the_write_ends_in_a_roll_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = scene.drive()

    def lost(*_: Any) -> Any:
        raise CanaryLost("the template is not the one that was staged")

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "shift", lost)
        assert drive.look() == ["the template is not the one that was staged"]
    until(drive, lambda: scene.at(25).looks)


def test_the_watch_of_a_stretch_is_made_once(scene: Scene) -> None:
    drive, made = scene.drive(), list[Any]()
    inner = drive.watch
    drive.watch = lambda some: made.append(some[-1]) or inner(some)
    until(drive, lambda: scene.at(25).looks > 2)
    assert [stretch.percent for stretch in made] == [25]


@pytest.mark.parametrize(("word", "what"), [("promote", "promotion"), ("rollback", "roll-back")])
def test_what_is_refused_for_long_is_told_and_not_tried_for_ever(scene: Scene, word: Any, what: str) -> None:
    scene.rules = replace(scene.rules, steps=(25,))
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    scene.at(25).judged = word
    scene.kube.fault("patch", "inferenceservices", status=403, times=20)
    began = datetime.now(UTC)
    drive.look(began)
    drive.look(began + timedelta(minutes=1))
    with pytest.raises(NotSettled, match=f"the {what} did not take effect: .* needs verb patch"):
        drive.look(began + timedelta(minutes=11))


def test_a_roll_back_that_does_not_take_effect_ends_with_a_word(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    drive.close("9 of 30", Cause.EVIDENCE)
    monkeypatch.setattr("model_release.cluster.settle.roll_back", lambda *_: scene.kube.live())
    began = datetime.now(UTC)
    drive.look(began)
    with pytest.raises(NotSettled, match="the roll-back did not take effect: traffic is still"):
        drive.look(began + timedelta(minutes=11))


def test_17_6_a_dead_canary_is_taken_back_and_let_go_in_the_look_that_sees_it(scene: Scene) -> None:
    """Number 6."""
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    dies(scene, "v2")
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert drive.done.decision == "rollback"
    assert drive.done.reason.startswith(f"{NEW} is dead: ")
    scene.check_proven_serves()


def test_17_6_a_canary_that_dies_while_it_is_opened_is_closed_at_the_next_look(scene: Scene) -> None:
    """Number 6: nobody waits for a share that a dead revision keeps from acting, nor for a first window."""
    drive = scene.drive()
    drive.look()
    assert scene.kube.live().canary_percent == 25
    dies(scene, "v2")
    drive.look()
    assert scene.kube.live().canary_percent == 0, "written in the look that saw it"
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert (drive.done.decision, drive.done.reason.startswith(f"{NEW} is dead: ")) == ("rollback", True)
    assert scene.at(25).looks == 0
    scene.check_proven_serves()


def test_one_that_dies_in_its_bake_is_taken_back_though_it_has_everything(scene: Scene) -> None:
    drive = scene.drive()
    scene.at(25).judged = scene.at(50).judged = "promote"
    until(drive, lambda: drive.done)
    scene.kube.leases.update("models", "digits", OWNER, advance.bake)
    bake = scene.drive()
    until(bake, lambda: scene.at(None).looks)
    dies(scene, "v2")
    until(bake, lambda: bake.done)
    assert bake.done is not None
    assert bake.done.decision == "rollback"
    assert bake.done.reason.startswith(f"{NEW} is dead: ")
    scene.check_proven_serves()


def test_a_roll_back_that_has_to_wait_is_told_once(scene: Scene) -> None:
    """A dead stable revision freezes the route, so each look asks again; the log, and the record with it, do not."""
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    dies(scene, "v1")
    drive.close("users complain", Cause.PERSON)
    lines = [line for _ in range(6) for line in drive.look()]
    assert drive.done is None
    assert lines.count("Taken back: users complain") == 1
    assert len(lines) == len(set(lines))
    del scene.kube.pods.phases["v1"]
    until(drive, lambda: drive.done)
    scene.check_proven_serves()


def test_what_a_change_waits_for_is_told_once_though_it_comes_and_goes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that reads late says now that the route is frozen, now that the gateway has not yet taken it."""
    drive = scene.drive()
    until(drive, lambda: scene.at(25).looks)
    drive.close("users complain", Cause.PERSON)
    monkeypatch.setattr("model_release.cluster.settle.roll_back", lambda *_: scene.kube.live())
    said = itertools.cycle(["frozen", "not taken yet"])
    monkeypatch.setattr(
        "model_release.cluster.settle.assess_rolled_back", lambda *_: Progress(State.WAITING, next(said))
    )
    lines = [line for _ in range(6) for line in drive.look()]
    assert lines == ["Taken back: users complain", "frozen", "not taken yet"]


def test_what_two_changes_wait_for_alike_is_told_of_each(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Progress(State.WAITING, "frozen")
    monkeypatch.setattr("model_release.cluster.rollout.assess_split", lambda *_: frozen)
    monkeypatch.setattr("model_release.cluster.settle.assess_rolled_back", lambda *_: frozen)
    drive = scene.drive()
    assert drive.look() == ["frozen"]
    drive.close("users complain", Cause.PERSON)
    assert drive.look() == ["Taken back: users complain", "frozen"]
