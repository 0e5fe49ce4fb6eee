"""What Standard mode refuses, and with which reason: older KServes, changes that no canary can say, missing routes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Novelty
from model_release.cluster.manifest import predictor_name
from model_release.cluster.progress import Patience, State
from model_release.cluster.standard.view import StandardService
from model_release.errors import ClusterRefused, ClusterUnavailable
from sandbox.interfaces import Phase, PodState
from sandbox.kube.resources import HTTP_ROUTES
from sandbox.kube.resources import Kind as Resource

Asked = Callable[..., dict[str, Any]]


def named(version: str) -> str:
    return f"digits-{predictor_name('digits', f's3://models/digits/versions/{version}/')}-predictor"


V1, V2, V3 = (named(f"v{n}") for n in (1, 2, 3))


@pytest.fixture
def standard(live: Any) -> Any:
    """The service of the model file is in Standard mode."""
    live.service = {"mode": "standard"}
    return live


@pytest.fixture
def asked(asked: Asked) -> Asked:
    """The manifest of a version in Standard mode."""
    return partial(asked, mode="standard")


def objects(live: Any, kind: Resource) -> dict[str, dict[str, Any]]:
    registry = live.cluster._controller._inference_services.registry
    return {one["metadata"]["name"]: one for one in registry.store.all(kind.id, "models")}


def test_settings_go_along_with_a_version_and_never_alone(standard: Any, asked: Asked) -> None:
    standard.released("v1")
    with pytest.raises(
        ClusterRefused, match=r"serves this very version, and differs in spec.predictor.model.resources"
    ):
        rollout.plan_change(standard.get(), asked("v1", resources={"cpu": "2", "memory": "1Gi"}))
    standard.service |= {"resources": {"cpu": "2", "memory": "1Gi"}, "max_replicas": 3}
    _, canary = standard.stage("v2")
    assert standard.get().canaries[0]["predictor"]["model"]["resources"]["limits"] == {"cpu": "2"}
    standard.shift(canary, 10)
    standard.promote(canary, 10)
    limits = standard.get().template["model"]["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "1Gi"}
    assert standard.get().template["maxReplicas"] == 3
    assert rollout.plan_change(standard.get(), asked("v2", **standard.service)).kind is Novelty.NOTHING


def test_what_a_canary_cannot_take_out_is_refused(standard: Any, asked: Asked) -> None:
    standard.service |= {"service_account": "s3-reader"}
    standard.released("v1")
    baseline = rollout.baseline_of(standard.get(), asked("v2"))
    with pytest.raises(ClusterRefused, match=r"has spec.predictor.serviceAccountName, and the model file has it no"):
        rollout.stage(standard.services, asked("v2"), baseline)
    assert standard.get().entry is None


def test_a_stable_predictor_that_fails_is_no_baseline(standard: Any, asked: Asked) -> None:
    standard.released("v1")
    standard.pods.phases["v1"] = PodState(Phase.CRASHED, 0, "out of memory", 137, pods=("v1-0",))
    # The loop looks at processes once a second at the latest.
    assert standard.until(_stable_away, deadline=3).state is State.READY
    with pytest.raises(ClusterUnavailable, match=f"its stable predictor {V1} is not ready"):
        rollout.baseline_of(standard.get(), asked("v2"))


def _stable_away(live: Any) -> Any:
    from model_release.cluster.progress import Progress

    return Progress(State.WAITING if live.stable_is_ready else State.READY, "")


@pytest.mark.parametrize("live", ["0.19"], indirect=True)
def test_before_0_20_nothing_is_even_created(standard: Any, asked: Asked) -> None:
    with pytest.raises(
        ClusterRefused, match=r"models/digits: the API server drops the predictor's name, so this KServe"
    ):
        rollout.stage(standard.services, asked("v1"), Baseline())
    assert standard.services.get("models", "digits") is None
    assert not standard.pods.running


@pytest.mark.parametrize("live", ["0.19"], indirect=True)
def test_before_0_20_a_service_by_hand_gets_no_canary(standard: Any, asked: Asked) -> None:
    by_hand = asked("v1")
    del by_hand["spec"]["predictor"]["name"], by_hand["spec"]["predictor"]["serviceAccountName"]
    standard.services.create(by_hand)
    ready = standard.until(lambda live: _ready_when(live is not None and live.serving == {"digits-predictor": 100}))
    assert ready.state is State.READY
    baseline = rollout.baseline_of(standard.get(), asked("v2"))
    assert baseline.revision == "digits-predictor"
    with pytest.raises(ClusterRefused, match=r"older than 0\.20"):
        rollout.stage(standard.services, asked("v2"), baseline)
    assert standard.door.now == {"digits-predictor": 100}
    assert standard.get().storage_uri == "s3://models/digits/versions/v1/"


def _ready_when(yes: bool) -> Any:
    from model_release.cluster.progress import Progress

    return Progress(State.READY if yes else State.WAITING, "")


@pytest.mark.parametrize("live", ["0.20"], indirect=True)
def test_0_20_is_refused_before_a_share_is_promised(standard: Any, asked: Asked) -> None:
    standard.released("v1")
    baseline = rollout.baseline_of(standard.get(), asked("v2"))
    rollout.stage(standard.services, asked("v2"), baseline)
    patience, clock = Patience(), iter(range(0, 100_000, 20))

    def assess(live: Any) -> Any:
        told = rollout.assess_staged(live, asked("v2"), baseline)
        return patience.judge(told, next(clock) if told.state is State.FAILING else 0)

    progress = standard.until(assess)
    assert progress.state is State.FAILED
    assert "gives it no place in the HTTPRoutes of models/digits: it is 0.20, which sets no weights" in str(progress)
    assert standard.settle(baseline, V2) == f"{V1} has all of the traffic"
    standard.assert_clean("v1")
    assert standard.door.most(V2) == 0


def test_modes_do_not_mix(live: Any, asked: Asked) -> None:
    live.released("v1")
    with pytest.raises(ClusterRefused, match="runs in Knative mode, and the model file asks for Standard"):
        rollout.plan_change(live.get(), asked("v2"))


def test_http_routes_that_may_not_be_read_are_refused(standard: Any) -> None:
    standard.released("v1")
    standard.fault("get", "httproutes", status=403)
    with pytest.raises(ClusterRefused, match=r"needs verb get on httproutes.gateway.networking.k8s.io"):
        standard.get()


def test_a_route_that_the_gateway_has_not_taken_tells_nothing(standard: Any) -> None:
    standard.released("v1")
    live = standard.get()
    assert live.traffic == {V1: 100}
    first, second = (dict(route) for route in live.routes)
    stale = {**second, "metadata": {**second["metadata"], "generation": 99}}
    other = {**second, "spec": {**second["spec"], "rules": [{"backendRefs": [{"name": V2, "weight": 1}]}]}}
    for routes in ((), (first, stale), (first, other), (first, {**second, "status": {}})):
        assert StandardService(live.raw, tuple(routes)).traffic == {}
    assert set(objects(standard, HTTP_ROUTES)) == {"digits", "digits-predictor"}
