"""Every state that a release can leave behind, settled against the real API server of the sandbox.

The end is checked from outside: what the front door serves, what is in the spec, and that no unproven revision was
ever given more than it had.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from tests.patience import until
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline
from model_release.cluster.manifest import holds
from model_release.cluster.progress import State
from model_release.cluster.settle import assess_rolled_back, is_clean, roll_back, settle_step
from model_release.errors import ClusterRefused, ClusterUnavailable, NotSettled
from sandbox.interfaces import Phase, PodState

Asked = Callable[..., dict[str, Any]]
R1, R2, R3, R4 = (f"digits-predictor-0000{n}" for n in (1, 2, 3, 4))
STARTING = PodState(Phase.STARTING, pods=("p",))
BROKEN = PodState(Phase.CRASHED, message="ModuleNotFoundError: No module named 'foo'", exit_code=1, pods=("p",))


def test_nothing_was_touched(live: Any) -> None:
    live.released("v1", "v2")
    baseline = rollout.baseline_of(live.get(), {"metadata": {}, "spec": {"predictor": {"model": {"storageUri": "x"}}}})
    before = live.get().resource_version
    assert live.settle(baseline) == f"{R2} has all of the traffic"
    assert live.get().resource_version == before


@pytest.mark.parametrize("percent", [0, 10, 90])
@pytest.mark.parametrize("releases", [("v1",), ("v0", "v1")])
def test_a_canary_is_rolled_back_and_the_stable_template_restored(
    live: Any, releases: tuple[str, ...], percent: int
) -> None:
    stable = live.released(*releases)[-1]
    baseline, canary = live.stage("v2")
    if percent:
        live.shift(canary, percent)
    mark = len(live.door.history)
    sentence = live.settle(baseline, canary.revision)
    live.assert_clean("v1")
    assert sentence == f"{live.get().latest_created} has all of the traffic"
    assert live.get().template == baseline.template
    for shares in live.door.history[mark:]:
        assert set(shares) <= {stable, live.get().latest_created}, "something else was served on the way"
    before = live.get().resource_version
    assert live.settle(baseline, canary.revision) == sentence
    assert live.get().resource_version == before


def test_rolled_back_at_once_then_restored(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    release = left("models", "digits", baseline, canary.revision)
    roll_back(live.services, release, live.barred.append)
    progress = live.until(partial(assess_rolled_back, release=release))
    assert (progress.state, progress.revision) == (State.READY, R1)
    assert live.get().traffic == {R2: 0, R1: 100}
    spec = live.get().raw["spec"]
    roll_back(live.services, release, live.barred.append)
    assert live.get().raw["spec"] == spec
    assert live.door.now == {R1: 100}
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


def test_settled_at_each_single_step(live: Any) -> None:
    """Whoever settles may be killed after any step, and another goes on with only what was remembered."""
    live.released("v0", "v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    sentences = []
    for _ in range(2000):
        release = left("models", "digits", baseline, canary.revision, barred=tuple(live.barred))
        progress = settle_step(live.services, release, live.barred.append)
        sentences.append(progress.sentence)
        assert live.door.now.get(R3, 0) <= 30
        if progress.state is State.READY:
            break
        time.sleep(0.005)
    assert progress.state is State.READY
    live.assert_clean("v1")
    order = [s for n, s in enumerate(sentences) if n == 0 or s != sentences[n - 1]]
    assert order[0] == f"set to 0 %; {R2} gets all of the traffic"
    assert "the stable template is written back, at 0 %" in order
    assert f"{R4} has the stable template and gets all of the traffic" in order


def test_settled_right_after_the_stage_was_written(live: Any, asked: Asked) -> None:
    """KServe has not even seen the new template. Written back at once, its 0 % would look like a late roll-back to
    v0 (docs/facts.md#who-is-rolled-out)."""
    live.released("v0", "v1")
    baseline = rollout.baseline_of(live.get(), asked("v2"))
    live.pods.phases["v2"] = STARTING
    rollout.stage(live.services, asked("v2"), baseline)
    live.settle(baseline)
    live.assert_clean("v1")
    assert live.door.most(R1) == 100
    assert all(R1 not in shares for shares in live.door.history[live.door.history.index({R2: 100}) :])


def test_a_canary_with_one_field_more_is_not_taken_for_the_stable_template(live: Any, asked: Asked) -> None:
    live.released("v1")
    more = asked("v1", service_account="s3-read-only")
    baseline = rollout.baseline_of(live.get(), more)
    rollout.stage(live.services, more, baseline)
    assert live.until(partial(rollout.assess_staged, wanted=more, baseline=baseline)).state is State.READY
    live.settle(baseline)
    live.assert_clean("v1")
    assert "serviceAccountName" not in live.get().template
    assert live.door.most(R2) == 0


def test_a_canary_that_never_came_up(live: Any, asked: Asked) -> None:
    live.released("v1")
    live.pods.phases["v2"] = BROKEN
    baseline = rollout.baseline_of(live.get(), asked("v2"))
    rollout.stage(live.services, asked("v2"), baseline)
    live.until(partial(rollout.assess_staged, wanted=asked("v2"), baseline=baseline), deadline=0.3)
    live.settle(baseline)
    live.assert_clean("v1")
    assert live.door.most(R2) == 0


def test_the_stable_template_does_not_come_up(live: Any) -> None:
    """No room in the cluster, say: the old revision serves, and that is told instead of an alarm."""
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    live.pods.phases["v1"] = STARTING
    # The baseline's own pods go on; only new ones of the same content do not start.
    live.pods.state = lambda key, state=live.pods.state: (
        PodState(Phase.READY, 1, pods=("p",)) if key.name == R1 else state(key)
    )

    def told() -> bool:
        """Its time passes each time; that it came as far as this in the first may be too much for a busy machine."""
        try:
            sentence = str(live.settle(baseline, canary.revision, deadline=1.0))
        except NotSettled:
            return False
        assert sentence.startswith(f"{R1} has all of the traffic; its template could not be brought back yet")
        return True

    until(told)
    assert live.door.now == {R1: 100}
    del live.pods.phases["v1"]
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


@pytest.mark.parametrize("seed", range(8))
def test_left_at_any_moment_and_settled_by_several(live: Any, asked: Asked, seed: int) -> None:
    """A release of v2 that ends somewhere, an edit by hand perhaps, and settles that are killed in between."""
    chance = random.Random(seed)
    stable = live.released(*chance.choice([("v1",), ("v0", "v1")]))[-1]
    version = asked("v2")
    baseline, canary, promoted = rollout.baseline_of(live.get(), version), None, False
    if is_slow := chance.random() < 0.3:
        live.pods.phases["v2"] = STARTING
    rollout.stage(live.services, version, baseline)
    time.sleep(chance.choice([0.0, 0.01, 0.03, 0.1]))
    if not is_slow and chance.random() < 0.8:
        _, canary = live.stage("v2", baseline)
        percent = chance.choice([5, 30, 90])
        rollout.shift(live.services, canary, percent)
        time.sleep(chance.choice([0.0, 0.02, 0.1]))
        if promoted := chance.random() < 0.5:
            rollout.promote(live.services, canary, percent)
    by_hand = chance.choice(
        [None, None, {"canaryTrafficPercent": None}, {"canaryTrafficPercent": 44}, {"maxReplicas": 3}]
    )
    if by_hand is not None:
        live.edit({"spec": {"predictor": by_hand}})
    name = canary.revision if canary is not None else None
    for _ in range(chance.randrange(3)):
        with suppress(NotSettled):
            live.settle(baseline, name, deadline=chance.choice([0.0, 0.01, 0.05]))
        live.pods.phases.clear()
    live.settle(baseline, name)
    live.assert_clean("v1")
    if by_hand is None and not promoted:
        bad = {key.name for key, pod in live.pods.running.items() if pod.storage_uri.endswith("/v2/")}
        assert all(live.door.most(revision) <= (percent if canary else 0) for revision in bad)
        assert live.door.most(stable) == 100


def test_a_split_removed_by_hand_goes_back(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 20)
    live.edit({"spec": {"predictor": {"canaryTrafficPercent": None}}})
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


def test_one_step_restore_by_hand_ends_well_all_the_same(live: Any, asked: Asked) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 20)
    predictor = {**asked("v1")["spec"]["predictor"], "canaryTrafficPercent": None}
    live.edit({"spec": {"predictor": predictor}})
    live.settle(baseline, canary.revision)
    live.assert_clean("v1")


def test_a_first_deployment_that_was_never_proven_goes(live: Any, asked: Asked) -> None:
    baseline, canary = live.stage("v1")
    assert live.settle(baseline, canary.revision, promoted=True) == f"{R1} was promoted and has all of the traffic"
    assert live.settle(baseline, canary.revision) == "models/digits does not exist; no traffic to settle"
    assert live.services.get("models", "digits") is None
    assert live.settle(baseline) == "models/digits does not exist; no traffic to settle"


def test_a_service_that_was_there_is_never_deleted(live: Any, asked: Asked) -> None:
    live.pods.phases["v1"] = BROKEN
    rollout.stage(live.services, asked("v1"), Baseline())
    until(lambda: live.get().latest_created, "KServe does not act")
    with pytest.raises(ClusterRefused, match="exists, and no revision of it was ever ready"):
        rollout.baseline_of(live.get(), asked("v2"))
    isvc = live.get()  # as a lease of an older edition has it
    found = Baseline(uid=isvc.uid, created=isvc.latest_created, found=isvc.template_digest)
    assert live.settle(found) == "models/digits had no ready revision before, and has none now"
    live.stage("v2", found)
    with pytest.raises(NotSettled, match=r"never had a proven revision, and .*00002 100 % is served now"):
        live.settle(found)


def test_17_3_a_service_made_anew_is_another_ones(live: Any) -> None:
    """Number 3: of another name than its baseline's."""
    live.released("v1")
    with pytest.raises(NotSettled, match="made anew by another hand"):
        live.settle(Baseline(uid="another", revision="digits-predictor-00007", template={}))
    assert live.door.now == {R1: 100}


def test_an_unclean_start_uses_the_template_that_the_lease_remembers(live: Any, asked: Asked) -> None:
    live.released("v1")
    known, canary = live.stage("v2")
    live.shift(canary, 30)
    # The run is gone and nobody settled: v2's template is in the spec, at 30 %.
    unknown = rollout.baseline_of(live.get(), asked("v3"))
    assert (unknown.revision, unknown.template, unknown.created, unknown.percent) == (R1, None, R2, 30)
    baseline = rollout.baseline_of(live.get(), asked("v3"), known)
    assert baseline.template == known.template
    assert baseline.storage_uri == "s3://models/digits/versions/v1/"
    live.stage("v3", baseline)
    assert live.door.now == {R1: 100}
    live.settle(baseline, R3)
    live.assert_clean("v1")


def test_an_unclean_start_without_memory_ends_at_0(live: Any, asked: Asked) -> None:
    live.released("v1")
    live.stage("v2")
    baseline = rollout.baseline_of(live.get(), asked("v3"))
    _, canary = live.stage("v3", baseline)
    live.shift(canary, 30)
    sentence = live.settle(baseline, canary.revision)
    assert sentence == f"{R1} has all of the traffic; the spec keeps the other template at 0 %"
    assert live.door.now == {R1: 100}


def test_the_same_bad_version_again_is_staged_without_a_new_revision(live: Any, asked: Asked) -> None:
    live.released("v1")
    live.stage("v2")
    baseline = rollout.baseline_of(live.get(), asked("v2"))
    assert baseline.created is None
    _, canary = live.stage("v2", baseline)
    assert canary.revision == R2


@pytest.mark.parametrize(
    ("nth", "fault"),
    [
        *((nth, {"status": 500, "after_write": True}) for nth in (1, 2, 3)),
        (1, {"status": 409}),
        (2, {"status": 503}),
    ],
)
def test_each_write_of_a_settle_cut_off(live: Any, fault: dict[str, Any], nth: int) -> None:
    live.released("v0", "v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    real, count = live.services.patch, 0

    def patch(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            live.fault("patch", times=1, **fault)
        return real(*args)

    live.services.patch = patch
    live.settle(baseline, canary.revision)
    assert count >= 3
    live.assert_clean("v1")
    assert live.door.most(R3) == 30


def test_no_permission_is_an_error_with_the_rule(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    live.fault("patch", status=403)
    with pytest.raises(
        ClusterRefused, match=r"needs verb patch on inferenceservices\.serving\.kserve\.io in namespace models"
    ):
        live.settle(baseline, canary.revision)


def test_an_api_that_stays_away_is_not_settled(live: Any) -> None:
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 30)
    live.fault("get", status=500)
    with pytest.raises(ClusterUnavailable):
        live.settle(baseline, canary.revision, deadline=0.1)


def test_clean_means_the_content_too(live: Any) -> None:
    live.released("v1", "v2")
    isvc = live.get()
    baseline = Baseline(
        uid=isvc.uid, revision=R1, template={"model": {"storageUri": "s3://models/digits/versions/v1/"}}
    )
    release = left("models", "digits", baseline)
    assert not holds(isvc.template, baseline.template)
    assert not is_clean(isvc, release)
    assert is_clean(isvc, left("models", "digits", Baseline(isvc.uid, R1, isvc.template)))
    assert not is_clean(isvc, left("models", "digits", Baseline(isvc.uid, R1, isvc.template), barred=(R2,)))
