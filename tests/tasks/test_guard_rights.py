"""What the guard calls, compared with what include/manifests/guard.yaml allows its account: no less, and no more."""

from __future__ import annotations

from pathlib import Path

import yaml
from kubernetes.client import ApiClient

from model_release.cluster.lease import LEASE_SECONDS
from model_release.cluster.leases import Leases
from model_release.cluster.services import InferenceServices
from model_release.cluster.standard.view import StandardService
from model_release.release.guard import Guard
from model_release.release.rights import NEEDED, missing
from model_release.spec import ModelSpec
from sandbox.interfaces import Phase, PodState
from sandbox.kube.rbac import allowed, needed

from .cluster import wanted
from .driven import NEW, STABLE, Scene, scene, until

__all__ = ["scene"]  # the fixture of a staged canary

MANIFEST = Path(__file__).parents[2] / "include" / "manifests" / "guard.yaml"
AGENT = "model-release-guard"


def test_it_calls_what_its_role_allows_and_no_more(scene: Scene, spec: ModelSpec) -> None:
    """From an open canary that is dead, which takes every call that there is, to the stable revision's 100 %."""
    kube = scene.kube
    until(scene.drive(), lambda: scene.at(25).looks)
    may = allowed(yaml.safe_load_all(MANIFEST.read_text()), "airflow/model-release-guard")
    clock = [1000.0]
    with ApiClient(kube.client.configuration) as client:
        client.user_agent = f"{AGENT}/1"
        services = InferenceServices(client, ask_pods=False)
        guard = Guard(Leases(client), services, ["models"], lambda: clock[0])
        assert guard.look() == []
        kube.pods.phases["v2"] = PodState(Phase.CRASHED, 0, "boom", 1)
        while kube.live().frozen_by != NEW:
            pass
        clock[0] += LEASE_SECONDS + 1
        while scene.serving != {STABLE: 100}:
            guard.look()
        in_standard_mode(scene, spec)
        assert isinstance(services.get("models", "letters"), StandardService)
    called = needed(kube.server.faults.calls(), AGENT)
    assert sorted(map(str, called - may)) == [], "guard.yaml lacks these"
    assert sorted(map(str, may - called)) == [], "guard.yaml allows these, and the guard does not call them"
    assert {(one.group, one.resource, one.verb) for one in may} == set(NEEDED)
    assert missing(kube.client, "models") == []


def in_standard_mode(scene: Scene, spec: ModelSpec) -> None:
    """A second service, whose canary is not ready."""
    service = spec.service.model_copy(update={"name": "letters", "mode": "standard"})
    other = spec.model_copy(update={"service": service})
    made = scene.kube.services.create(wanted(other, "v1"))
    while not isinstance(made, StandardService):
        made = scene.kube.services.get("models", "letters")


def test_a_right_that_is_missing_is_named_before_it_is_needed(scene: Scene) -> None:
    scene.kube.fault("delete", "revisions", status=403)
    scene.kube.fault("patch", "inferenceservices", status=403)
    assert missing(scene.kube.client, "models") == [
        "patch inferenceservices.serving.kserve.io",
        "delete revisions.serving.knative.dev",
    ]
