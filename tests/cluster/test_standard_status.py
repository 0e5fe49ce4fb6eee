"""Moments that a fast cluster never shows: what is done, and not done, while KServe or the gateway lags behind."""

from __future__ import annotations

from typing import Any

import pytest
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.progress import State
from model_release.cluster.settle import is_clean, settle_step
from model_release.cluster.standard import routes
from model_release.cluster.standard.pods import failure_in
from model_release.cluster.standard.rollout import promotion
from model_release.cluster.standard.view import StandardService

OLD, NEW = "digits-old-predictor", "digits-new-predictor"


def template(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "minReplicas": 1,
        "model": {"modelFormat": {"name": "pytorch"}, "storageUri": f"s3://m/{name}/"},
    }


GROUP = "gateway.networking.k8s.io"
GATEWAY = {"name": "kserve-ingress-gateway", "namespace": "kserve"}


def route(shares: dict[str, int]) -> dict[str, Any]:
    refs = [{"name": name, "weight": weight} for name, weight in shares.items()]
    accepted = [{"type": kind, "status": "True", "observedGeneration": 3} for kind in ("Accepted", "ResolvedRefs")]
    return {
        "metadata": {"generation": 3},
        "spec": {"parentRefs": [GATEWAY], "rules": [{"backendRefs": refs}, {"backendRefs": refs}]},
        "status": {
            "parents": [{"parentRef": {"group": "gateway.networking.k8s.io", **GATEWAY}, "conditions": accepted}]
        },
    }


@pytest.mark.parametrize(
    "gone",
    [
        {
            "parentRef": {"name": "old", "namespace": "gateways"},
            "conditions": [{"type": "Accepted", "status": "False"}],
        },
        {"parentRef": GATEWAY, "controllerName": "removed.example/c", "conditions": []},
        {
            "parentRef": {"name": "old", "namespace": "gateways"},
            "conditions": [{"type": "Accepted", "status": "True", "observedGeneration": 1}],
        },
    ],
    ids=["refused", "controller removed", "left behind"],
)
def test_k5_what_a_gateway_said_that_is_gone_counts_for_nothing(gone: dict[str, Any]) -> None:
    """K5: status.parents keeps it for good, and no split would ever be seen."""
    given = route({"a": 90, "b": 10})
    given["status"]["parents"].append(gone)
    assert routes.shares([given]) == {"a": 90, "b": 10}
    given["status"]["parents"].pop(0)
    assert routes.shares([given]) == {}, "the one that is named has not taken it"
    both = route({"a": 90, "b": 10})
    both["spec"]["parentRefs"].append({"name": "second", "namespace": "gateways"})
    assert routes.shares([both]) == {}, "each that is named has to"


def seen(
    stable: str, canary: str | None = None, percent: int = 0, *, shares: dict[str, int], ready: bool = True
) -> StandardService:
    """A service with these predictors in its spec, and these shares in its routes."""
    entries = [{"predictor": template(canary), "trafficPercent": percent}] if canary else []
    raw = {
        "metadata": {"name": "digits", "namespace": "models", "uid": "1", "resourceVersion": "1"},
        "spec": {"predictor": template(stable), "canary": entries},
        "status": {
            "deploymentMode": "Standard",
            "conditions": [{"type": kind, "status": "True"} for kind in ("PredictorReady", "Ready")],
            "canaryStatuses": [{"name": canary, "ready": ready, "trafficPercent": percent}] if canary else [],
        },
    }
    return StandardService(raw, (route(shares), route(shares)))


class Services:
    """Gives what a test says, and keeps what is written."""

    def __init__(self, live: StandardService) -> None:
        self.live, self.written = live, list[dict[str, Any]]()

    def get(self, namespace: str, name: str) -> StandardService:
        return self.live

    def patch(self, live: StandardService, patch: dict[str, Any]) -> StandardService:
        self.written.append(patch)
        return live


def step(live: StandardService, canary: str | None = NEW, **said: Any) -> tuple[Any, list[dict[str, Any]]]:
    """One step of a settle whose baseline is `old`, and what it wrote."""
    services = Services(live)
    baseline = Baseline("1", OLD, template("old"), "s3://m/old/")
    release = left("models", "digits", baseline, canary, **said)
    return settle_step(services, release, lambda _: None), services.written


def test_a_name_waits_for_the_gateway() -> None:
    assert promotion(seen("old", "new", 100, shares={OLD: 70, NEW: 30})) is None
    written = promotion(seen("old", "new", 100, shares={OLD: 0, NEW: 100}))
    assert written is not None
    assert written["spec"]["canary"] is None
    assert written["spec"]["predictor"]["name"] == "new"


def test_at_0_percent_the_entry_stays_until_the_gateway_has_acted() -> None:
    progress, written = step(seen("old", "new", 0, shares={OLD: 70, NEW: 30}))
    assert (progress.state, written) == (State.WAITING, [])
    _, written = step(seen("old", "new", 0, shares={OLD: 100, NEW: 0}))
    assert written == [{"spec": {"predictor": {}, "canary": None}}]


def test_what_is_promoted_is_not_proven_for_being_alone() -> None:
    live = seen("new", shares={NEW: 100})
    assert is_clean(live, left("models", "digits", Baseline("1", NEW, template("new")), canary=None))
    assert not is_clean(live, left("models", "digits", Baseline("1", NEW, template("new")), canary=NEW))


def test_the_old_version_waits_for_its_place_in_the_route() -> None:
    progress, written = step(seen("new", "old", 0, shares={NEW: 100}))
    assert (str(progress), written) == (f"{OLD} is ready at 0 %, its route is not yet", [])
    progress, written = step(seen("new", "old", 0, shares={NEW: 100, OLD: 0}, ready=False))
    assert (str(progress), written) == (f"the stable version is back at 0 %; {OLD} is not ready yet", [])
    _, written = step(seen("new", "old", 0, shares={NEW: 100, OLD: 0}))
    assert written[0]["spec"]["canary"][0]["trafficPercent"] == 100


def test_a_promotion_is_over_when_nobody_else_is_in_the_route() -> None:
    canary = Canary("models", "digits", "1", NEW, OLD, seen("new", shares={}).template_digest)
    told = rollout.assess_promoted(seen("new", shares={OLD: 0, NEW: 100}), canary)
    assert told.state is State.WAITING
    assert rollout.assess_promoted(seen("new", shares={NEW: 100}), canary).state is State.READY


def test_a_baseline_without_a_template_cannot_come_back() -> None:
    services = Services(seen("new", shares={NEW: 100}))
    release = left("models", "digits", Baseline("1", OLD), NEW)
    progress = settle_step(services, release, lambda _: None)
    assert progress.state is State.FAILED
    assert "its template is not on record; release its version anew" in str(progress)
    assert services.written == []


@pytest.mark.parametrize(
    ("state", "last", "expected"),
    [
        ({"terminated": {"reason": "Error", "exitCode": 1, "message": "no\nmodel"}}, {}, ("no model", 1)),
        ({"terminated": {"reason": "Completed", "exitCode": 0}}, {}, None),
        ({"running": {}}, {"terminated": {"reason": "Error", "exitCode": 1, "message": "before"}}, None),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}},
            {"terminated": {"exitCode": 3, "message": "again"}},
            ("again", 3),
        ),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, {}, ("CrashLoopBackOff", None)),
        ({"waiting": {"reason": "PodInitializing"}}, {}, None),
    ],
)
@pytest.mark.parametrize("listed", ["initContainerStatuses", "containerStatuses"])
def test_why_a_canary_fails(listed: str, state: Any, last: Any, expected: Any) -> None:
    name = {"initContainerStatuses": "storage-initializer", "containerStatuses": "kserve-container"}[listed]
    found = {"name": name, "state": state, "lastState": last}
    other = {"name": "agent", "state": {"terminated": {"reason": "Error", "exitCode": 9}}}
    assert failure_in([{"status": {}}, {"status": {listed: [other, found]}}]) == expected
