"""What the guard calls, compared with what include/manifests/guard.yaml allows its account: no less, and no more."""

from __future__ import annotations

from pathlib import Path

import yaml
from kubernetes.client import ApiClient

from model_release.cluster.inference_service import InferenceServices
from model_release.cluster.lease import LEASE_SECONDS
from model_release.cluster.leases import Leases
from model_release.release.guard import Guard
from sandbox.interfaces import Phase, PodState
from sandbox.kube.rbac import allowed, needed

from .test_drive import NEW, STABLE, Scene, scene, until

__all__ = ["scene"]  # the fixture of a staged canary

MANIFEST = Path(__file__).parents[2] / "include" / "manifests" / "guard.yaml"
AGENT = "model-release-guard"


def test_it_calls_what_its_role_allows_and_no_more(scene: Scene) -> None:
    """From an open canary that is dead, which takes every call that there is, to the stable revision's 100 %."""
    kube = scene.kube
    until(scene.drive(), lambda: scene.at(25).looks)
    may = allowed(yaml.safe_load_all(MANIFEST.read_text()), "airflow/model-release-guard")
    clock = [1000.0]
    with ApiClient(kube.client.configuration) as client:
        client.user_agent = f"{AGENT}/1"
        guard = Guard(Leases(client), InferenceServices(client), ["models"], lambda: clock[0])
        assert guard.look() == []
        kube.pods.phases["v2"] = PodState(Phase.CRASHED, 0, "boom", 1)
        while kube.live().frozen_by != NEW:
            pass
        clock[0] += LEASE_SECONDS + 1
        while scene.serving != {STABLE: 100}:
            guard.look()
    called = needed(kube.server.faults.calls(), AGENT)
    assert sorted(map(str, called - may)) == [], "guard.yaml lacks these"
    assert sorted(map(str, may - called)) == [], "guard.yaml allows these, and the guard does not call them"
