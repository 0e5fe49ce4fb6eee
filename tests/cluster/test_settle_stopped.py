"""A service that is stopped, was started since, or was deleted and made anew: names of revisions mean nothing any more,
and nothing is brought back, promoted or deleted on the strength of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.releases import OWNER

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.inference_service import STOP
from model_release.cluster.progress import Progress, State
from model_release.errors import CanaryLost, NotSettled

from .by_hand import opened, order_of, promote, roll_back

R1, R2 = "digits-predictor-00001", "digits-predictor-00002"


def stop(live: Any) -> None:
    live.edit({"metadata": {"annotations": {STOP: "true"}}})
    wait(live, lambda isvc: isvc.conditions["Stopped"].status == "True")


def start(live: Any, before: str | None) -> None:
    """Times of Kubernetes are whole seconds, so one stop after another is told apart only then."""
    while True:
        live.edit({"metadata": {"annotations": {STOP: None}}})
        wait(live, lambda isvc: isvc.started is not None and sum((isvc.gateway or {}).values()) == 100)
        if live.get().started != before:
            return
        stop(live)


def wait(live: Any, holds: Any) -> None:
    progress = live.until(lambda isvc: Progress(State.READY if isvc and holds(isvc) else State.WAITING, "not yet"))
    assert progress.state is State.READY


def canary_of(live: Any) -> tuple[Baseline, Canary]:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    return baseline, canary


@pytest.mark.parametrize("mode", ["knative", "standard"])
def test_a_stopped_service_is_left_so_that_it_starts_without_the_canary(live: Any, mode: str) -> None:
    live.service = {"mode": mode} if mode == "standard" else {}
    baseline, canary = canary_of(live)
    stop(live)
    said = live.settle(baseline, canary.revision)
    assert said.startswith("InferenceService models/digits is stopped ")
    before = live.get().resource_version
    assert live.settle(baseline, canary.revision) == said
    assert live.get().resource_version == before, "settled again, it is written again"
    mark = len(live.door.history)
    start(live, baseline.started)
    assert not any(canary.revision in shares for shares in live.door.history[mark:] if mode == "standard")
    if mode == "knative":
        assert live.get().storage_uri == "s3://models/digits/versions/v1/"
        assert live.get().canary_percent is None
        assert live.door.now == {R1: 100}


def test_what_was_started_with_the_canary_in_its_spec_is_told_and_left(live: Any) -> None:
    """All users are on it, and there is nothing any more to which they could go back."""
    baseline, canary = canary_of(live)
    stop(live)
    start(live, baseline.started)
    before = live.get().raw["spec"]
    with pytest.raises(
        NotSettled, match=f"was stopped and started at .*; {R1} 100 % is served, which nobody has proven"
    ):
        live.settle(baseline, canary.revision)
    assert live.get().raw["spec"] == before


def test_what_was_started_with_the_stable_template_is_settled(live: Any) -> None:
    baseline, canary = canary_of(live)
    stop(live)
    live.settle(baseline, canary.revision)
    start(live, baseline.started)
    before = live.get().resource_version
    assert live.settle(baseline, canary.revision) == f"{R1} has all of the traffic"
    assert live.get().resource_version == before


def test_a_stopped_service_whose_stable_template_nobody_knows_is_an_incident(live: Any) -> None:
    baseline, canary = canary_of(live)
    stop(live)
    with pytest.raises(NotSettled, match="it starts with what is in its spec, which is the canary's"):
        live.settle(replace(baseline, template=None), canary.revision)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("whose", [OWNER.identity, "laptop/release_digits/run-2", ""])
def test_17_2_only_the_service_that_this_release_made_is_deleted_with_it(
    live: Any, asked: Any, whose: str, recorded: bool
) -> None:
    """Number 2: a first deployment that never came up was deleted, and another hand's is under its name meanwhile: of
    the same version, as a backup would bring it. `recorded` False: its try died before it could note the uid."""
    made = rollout.stage(live.services, asked("v1"), Baseline(), by=OWNER.identity)
    live.services.delete(made)
    wait_gone(live)
    other = rollout.stage(live.services, asked("v1"), Baseline(), by=whose)
    mine = whose == OWNER.identity
    said = live.settle(Baseline(), created=(other if mine else made).uid if recorded else None)
    if mine:
        assert said == "models/digits does not exist; no traffic to settle"
        assert live.services.get("models", "digits") is None
    else:
        assert said == "InferenceService models/digits was made by another hand; left as it is"
        assert live.get().uid == other.uid


def test_17_2_what_another_hand_restores_after_the_claim_is_not_taken_for_ones_own(live: Any, asked: Any) -> None:
    """Number 2: the very version that is to be released, so that nothing of the template would show it."""
    rollout.stage(live.services, asked("v1"), Baseline())
    with pytest.raises(CanaryLost, match="was made by another hand after it was claimed"):
        rollout.stage(live.services, asked("v1"), Baseline(), by=OWNER.identity)
    assert live.get().raw["metadata"]["generation"] == 1
    assert live.get().made_by == ""
    known = live.get().uid
    assert rollout.stage(live.services, asked("v1"), Baseline(), by=OWNER.identity, created=known).uid == known


def wait_gone(live: Any) -> None:
    progress = live.until(lambda isvc: Progress(State.WAITING if isvc else State.READY, "still there"))
    assert progress.state is State.READY


def test_a_roll_back_by_command_after_a_restart_moves_nothing_and_says_why(live: Any) -> None:
    opened(live)
    was = live.get().started
    stop(live)
    start(live, was)
    before = live.get().raw["spec"]
    with pytest.raises(NotSettled, match=r"the roll-back cannot be done: .* was stopped and started at"):
        roll_back(live)
    assert live.get().raw["spec"] == before
    assert order_of(live).kind == "roll_back", "the run ends all the same"


def test_a_roll_back_by_command_of_a_stopped_service_leaves_the_stable_template(live: Any) -> None:
    opened(live)
    stop(live)
    assert "nobody is served, and it starts without the canary; " in roll_back(live).sentence
    assert (live.get().storage_uri, live.get().is_split) == ("s3://models/digits/versions/v1/", False)


def test_a_roll_back_by_command_after_the_release_finds_no_baseline_in_a_service_started_since(live: Any) -> None:
    owner, canary = opened(live)
    live.promote(canary, 30)
    live.leases.give_free("models", "digits", owner)
    was = live.get().started
    stop(live)
    start(live, was)
    before = live.get().raw["spec"]
    with pytest.raises(CanaryLost, match="no earlier revision's template is on record; release its version anew"):
        roll_back(live)
    assert live.get().raw["spec"] == before


def test_a_canary_of_that_name_in_a_service_started_since_cannot_be_promoted(live: Any) -> None:
    """Somebody made two revisions of it since, and gave the second the very share that the canary had."""
    opened(live)
    was = live.get().started
    stop(live)
    start(live, was)
    live.edit({"spec": {"predictor": {"containerConcurrency": 7, "canaryTrafficPercent": 30}}})
    wait(live, lambda isvc: (isvc.gateway or {}).get(R2) == 30)
    with pytest.raises(CanaryLost, match="was stopped and started at"):
        promote(live)
    assert order_of(live) is None
