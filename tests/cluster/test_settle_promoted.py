"""After the promotion: what is kept, and how a late roll-back ends, against the real API server of the sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline
from model_release.cluster.progress import Progress, State
from model_release.cluster.settle import assess_rolled_back, roll_back
from model_release.errors import NotSettled
from sandbox.interfaces import Phase, PodState

Asked = Callable[..., dict[str, Any]]
R1, R2, R3, R4 = (f"digits-predictor-0000{n}" for n in (1, 2, 3, 4))
STARTING = PodState(Phase.STARTING, pods=("p",))
BROKEN = PodState(Phase.CRASHED, message="ModuleNotFoundError: No module named 'foo'", exit_code=1, pods=("p",))


def test_late_roll_back(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    assert live.settle(baseline, canary.revision, promoted=True) == f"{R2} was promoted and has all of the traffic"
    mark = len(live.door.history)
    release = left("models", "digits", baseline, canary.revision)
    roll_back(live.services, release, live.barred.append)
    assert live.until(partial(assess_rolled_back, release=release)).state is State.READY
    assert live.door.history[mark:] == [{R1: 100}]
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")
    assert [s for s in live.door.history[mark:] if R2 in s] == []


def test_late_roll_back_when_kserve_no_longer_knows_the_baseline(live: Any, asked: Asked) -> None:
    """v1 → v2 promoted, then v3 promoted by hand: the one before the live one is v2. v1 comes back by its template,
    and v3 serves until that is ready."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    _, third = live.stage("v3")
    live.shift(third, 50)
    live.promote(third, 50)
    mark = len(live.door.history)
    live.pods.phases["v1"] = STARTING
    release = left("models", "digits", baseline, third.revision)

    def step(_: object) -> Progress:
        return assess_rolled_back(roll_back(live.services, release, live.barred.append), release)

    assert live.until(step, deadline=0.3).state is State.WAITING
    assert live.door.now == {R3: 100}
    del live.pods.phases["v1"]
    assert live.until(step).state is State.READY
    live.assert_clean("v1")
    live.settle(baseline, third.revision)
    live.assert_clean("v1")
    assert live.door.history[mark:] == [{R4: 100}]


def test_late_roll_back_when_the_old_revision_was_collected(live: Any) -> None:
    """Knative keeps the former traffic when a split names a revision that is gone: v2 serves until v1's content is
    back as a new revision."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    live.collect(R1)
    mark = len(live.door.history)
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")
    assert live.get().latest_created == R3
    assert live.door.history[mark:] == [{R3: 100}]


def test_an_edit_by_hand_right_after_the_promotion(live: Any, asked: Asked) -> None:
    """The edit and the 0 % reach KServe together, so that it sees no late roll-back: the promoted revision keeps the
    traffic, and the stable template has to come back as a new one."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.promote(canary, 50)
    live.edit({"spec": {"predictor": asked("v3")["spec"]["predictor"]}})
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


def test_late_roll_back_without_a_way_is_an_incident(live: Any) -> None:
    live.released("v1", "v2", "v3")
    lost = Baseline(uid=live.get().uid, revision=R1, template=None)
    with pytest.raises(NotSettled, match="its template is not on record; release its version anew"):
        live.settle(lost, R3)
    assert live.door.now == {R3: 100}


@pytest.mark.parametrize("mode", ["knative", "standard"])
@pytest.mark.parametrize("comes_up", [True, False])
def test_a_first_deployment_that_went_live_outlives_what_its_run_staged_afterwards(
    live: Any, asked: Asked, mode: str, comes_up: bool
) -> None:
    """The run was cleared after `go_live`, and its newest candidate is another one by now."""
    live.service = {"mode": mode} if mode == "standard" else {}
    baseline, canary = live.stage("v1")
    assert baseline.revision is None
    mark = len(live.door.history) - 1
    if not comes_up:
        live.pods.phases["v2"] = BROKEN
    stable = replace(baseline, uid=canary.uid, revision=canary.revision)
    staged = rollout.stage(live.services, asked("v2", **live.service), stable, live.get().template_digest)
    assert staged.is_split
    if comes_up:
        live.until(lambda now: Progress(State.READY if now.latest_ready != canary.revision else State.WAITING, ""))
    sentence = live.settle(baseline, canary.revision, promoted=True)
    assert sentence.startswith(canary.revision)
    assert "has all of the traffic" in sentence
    assert live.get().serving == {canary.revision: 100}
    assert live.door.history[mark:] == [{canary.revision: 100}]


def test_17_3_a_first_deployment_that_was_made_anew_is_not_known_by_its_revisions_name(live: Any, asked: Asked) -> None:
    """Number 3: it went live as 00001, which in the service of another hand is a version that this release never saw,
    beside the one that its users have."""
    baseline, canary = live.stage("v1")
    made = live.get().uid
    live.services.delete(live.get())
    live.until(lambda now: Progress(State.WAITING if now else State.READY, ""))
    live.released("v2")
    other, theirs = live.stage("v3")
    live.shift(theirs, 30)
    before = live.get().raw["spec"]
    with pytest.raises(NotSettled, match="was deleted and made anew by another hand; left as it is"):
        live.settle(baseline, canary.revision, promoted=True, created=made)
    assert live.get().raw["spec"] == before
    assert live.door.now == {other.revision: 70, theirs.revision: 30}


def test_promoted_and_the_write_never_happened(live: Any) -> None:
    """The verdict was promote, and the worker died before the write: rolled back, which is always safe."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 50)
    live.settle(baseline, canary.revision, promoted=True)
    live.assert_clean("v1")


def test_a_field_left_at_100_is_a_promotion_and_is_not_touched_as_a_roll_back(live: Any) -> None:
    live.released("v0", "v1")
    live.edit({"spec": {"predictor": {"canaryTrafficPercent": 100}}})
    isvc = live.get()
    baseline = Baseline(uid=isvc.uid, revision=R2, template=isvc.template)
    assert live.settle(baseline) == f"{R2} has all of the traffic"
    time.sleep(0.1)
    assert live.door.now == {R2: 100}
